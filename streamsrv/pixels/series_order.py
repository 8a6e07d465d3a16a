"""The instances of a series as they follow one another: by Instance Number, in either direction.

Rules of this file
- An order is looked up when it is needed for the first time, and kept. It only chooses whom to make: whoever
  uses it looks the row up anew.
- Memory is bounded: SERIES orders of INSTANCES instances together, none of more than LONGEST.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from streamsrv.pixels.description import whole
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import Query
from streamsrv.store import InstanceRow, Store, instance_attributes

# An order of 300 instances is looked up in 5 ms, and takes 40 kB.
SERIES, LONGEST, INSTANCES = 64, 2_000, 20_000
INSTANCE_NUMBER = "00200013"
LAST = 1 << 40  # those without a number


@dataclass(frozen=True, slots=True)
class Order:
    """`mark` is another one as soon as places are others."""

    uids: Sequence[str]
    places: dict[str, int]
    mark: int


def order_of(store: Store, study: str, series: str) -> Order:
    """By Instance Number, then UID; empty if there are too many."""
    query = Query(Level.INSTANCE, study, series, wanted=LONGEST + 1)
    numbered = [
        (whole(instance_attributes(hit.instance_row), INSTANCE_NUMBER, LAST), hit.instance)
        for hit, _ in zip(store.index.search(query), range(LONGEST + 1), strict=False)
        if hit.instance is not None and hit.instance_row is not None
    ]
    uids = [uid for _, uid in sorted(numbered)] if len(numbered) <= LONGEST else []
    return Order(uids, {uid: place for place, uid in enumerate(uids)}, hash(tuple(uids)))


class Orders:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: OrderedDict[tuple[str, str], Order] = OrderedDict()

    def __contains__(self, row: InstanceRow) -> bool:
        """Whether there is one of its series, be it from before this instance came."""
        return row.key[:2] in self._orders

    def known(self, row: InstanceRow) -> Order | None:
        """Of the row's series, if it is known and the instance has a place in it (unless it is too long)."""
        series = row.key[:2]
        with self._lock:
            order = self._orders.get(series)
            if order is None:
                return None
            self._orders.move_to_end(series)
        return order if not order.uids or row.key.instance in order.places else None

    def learn(self, store: Store, row: InstanceRow) -> Order:
        order = self.known(row)
        if order is None:
            order = order_of(store, *row.key[:2])
            with self._lock:
                self._orders[row.key[:2]] = order
                self._orders.move_to_end(row.key[:2])
                while len(self._orders) > SERIES or self._instances() > INSTANCES:
                    self._orders.popitem(last=False)
        return order

    def _instances(self) -> int:
        return sum(len(order.uids) for order in self._orders.values())

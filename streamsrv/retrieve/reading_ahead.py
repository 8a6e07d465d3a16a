"""Frames and pictures made before they are asked for: whoever scrolls asks for one after the other.

Strategy: of each walk, which is a series or a multi-frame instance in one representation, the places that
were asked for last are remembered. A request for the neighbour of one of them is a step; what lies on behind
it is then wished for (pixelwishes.py) and made by processes that would be idle. So the next request finds its
frame made, or being made, and a single client keeps several cores busy.

Rules of this file
- Instances of a series follow one another by Instance Number, in either direction. The order is looked up
  when a second instance is asked for, and kept: it only chooses whom to make, whose row is looked up anew.
- No more is wished for than was asked for in a row: clients whose requests are spread over several workers
  walk with gaps in each of them, and what is made for them in vain stays little.
- Whoever jumps wishes for nothing, and what was wished for that walk is dropped.
- Whoever walks alone may keep all processes busy; while others are about, one of them stays free.
- All memory is bounded: WALKS walks of a few places each, SERIES orders of INSTANCES instances together.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

from streamsrv.pixelpool import Making, PixelPool
from streamsrv.retrieve.pixels import whole
from streamsrv.retrieve.selection import Selection
from streamsrv.store.index_answers import instance_attributes
from streamsrv.store.query import Level
from streamsrv.store.query_conditions import Query
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store

WALKS = 64
# Several clients may walk through the same series, each with a last place of its own.
PLACES = 4
# Places that were wished for last, and need not be looked at again.
WISHED = 8
# An order of 300 instances is looked up in 5 ms, and takes 40 kB.
SERIES, LONGEST, INSTANCES = 64, 2_000, 20_000
INSTANCE_NUMBER = "00200013"
LAST = 1 << 40  # those without a number

Place: TypeAlias = int | str  # a frame index, or a SOP instance UID
Make: TypeAlias = Callable[[Selection, InstanceRow, int], Making]


@dataclass(frozen=True, slots=True)
class Order:
    """The instances of a series as they follow one another."""

    uids: Sequence[str]
    places: dict[str, int]


@dataclass(frozen=True, slots=True)
class Walk:
    """What was asked for last, and what was wished for."""

    visited: deque[Place]
    wished: deque[Place]

    def wish(self, place: Place) -> bool:
        """Whether it is a new one."""
        if place in self.wished:
            return False
        self.wished.append(place)
        return True


def following(here: int, before: Collection[int], most: int) -> list[int]:
    """The places behind `here` on its way, as many as were visited in a row before it; none if it is the
    neighbour of none of those, the latest of which comes first."""
    step = next((here - place for place in before if abs(here - place) == 1), 0)
    run = 0
    while step and here - (run + 1) * step in before:
        run += 1
    return [here + number * step for number in range(1, min(run, most) + 1)]


def order_of(store: Store, study: str, series: str) -> Order:
    """By Instance Number, then UID; empty if there are too many."""
    query = Query(Level.INSTANCE, study, series, wanted=LONGEST + 1)
    numbered = [
        (whole(instance_attributes(hit.instance_row), INSTANCE_NUMBER, LAST), hit.instance)
        for hit, _ in zip(store.index.search(query), range(LONGEST + 1), strict=False)
        if hit.instance is not None and hit.instance_row is not None
    ]
    uids = [uid for _, uid in sorted(numbered)] if len(numbered) <= LONGEST else []
    return Order(uids, {uid: place for place, uid in enumerate(uids)})


class Walks:
    """Thread-safe. Those of one pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visited: OrderedDict[Hashable, Walk] = OrderedDict()
        self._orders: OrderedDict[tuple[str, str], Order] = OrderedDict()

    def visit(self, walk: Hashable, here: Place) -> Sequence[Place]:
        """The places before this one, the latest first; none if it is the latest itself: a request may be
        looked at twice."""
        with self._lock:
            visited = self.walk(walk).visited
            self._visited.move_to_end(walk)
            while len(self._visited) > WALKS:
                self._visited.popitem(last=False)
            if visited and visited[-1] == here:
                return ()
            if here in visited:  # another client's request came between two looks
                visited.remove(here)
            before = list(reversed(visited))
            visited.append(here)
            return before

    def walk(self, walk: Hashable) -> Walk:
        return self._visited.setdefault(walk, Walk(deque(maxlen=PLACES), deque(maxlen=WISHED)))

    def order(self, row: InstanceRow) -> Order | None:
        """Of the row's series, if it is known and the instance has a place in it (unless it is too long)."""
        with self._lock:
            order = self._orders.get(row.key[:2])
            if order is not None:
                self._orders.move_to_end(row.key[:2])
        has_place = order is not None and (not order.uids or row.key.instance in order.places)
        return order if has_place else None

    def learn(self, store: Store, row: InstanceRow) -> Order:
        order = self.order(row)
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


_walks: WeakKeyDictionary[PixelPool, Walks] = WeakKeyDictionary()


def asked(
    store: Store, pool: PixelPool, row: InstanceRow, index: int, representation: Hashable, make: Make
) -> None:
    """A frame was asked for, in a representation that `make` gives to others. Costs microseconds."""
    walks, most = _walks.setdefault(pool, Walks()), pool.read_ahead
    wish: Iterator[Making] | None = None
    if row.number_of_frames > 1:
        walk: Hashable = (row.record_id, representation)
        before = walks.visit(walk, index)
        if places := following(index, [place for place in before if isinstance(place, int)], most):
            wish = _frames(store, walks.walk(walk), row, places, make)
    else:
        walk = (row.key[:2], representation)
        before = walks.visit(walk, row.key.instance)
        order = walks.order(row)
        if order is None or _following(order, row, before, most):  # whether it is a step will be seen
            wish = _instances(store, walks, walk, row, before, most, make)
    pool.wishes.see(walk)
    if before and wish is not None:
        pool.wishes.put(walk, wish)
    elif before:
        pool.wishes.drop(walk)


def _following(order: Order, row: InstanceRow, before: Iterable[Place], most: int) -> list[int]:
    if row.key.instance not in order.places:
        return []
    places = [order.places[uid] for uid in before if isinstance(uid, str) and uid in order.places]
    return following(order.places[row.key.instance], places, most)


def _frames(
    store: Store, walk: Walk, row: InstanceRow, places: Iterable[int], make: Make
) -> Iterator[Making]:
    for place in places:
        if 0 <= place < row.number_of_frames and walk.wish(place):
            yield from _making(store, row.key, place, make)


def _instances(
    store: Store,
    walks: Walks,
    walk: Hashable,
    row: InstanceRow,
    before: Sequence[Place],
    most: int,
    make: Make,
) -> Iterator[Making]:
    order = walks.learn(store, row)
    for place in _following(order, row, before, most):
        if 0 <= place < len(order.uids) and walks.walk(walk).wish(order.uids[place]):
            yield from _making(store, (*row.key[:2], order.uids[place]), 0, make)


def _making(store: Store, key: tuple[str, str, str], index: int, make: Make) -> Iterator[Making]:
    """What it is made of is held until the next one is asked for."""
    selection = Selection(store, *key, [index])
    try:
        row = next(selection.rows())
        if index < row.number_of_frames:
            yield make(selection, row, index)
    finally:
        selection.release()

"""Frames and pictures made before they are asked for: whoever scrolls asks for one after the other, and
whoever takes a whole series asks for all of them.

Strategy: of each walk, which is a series or a multi-frame instance in one representation, the places that
were asked for last are remembered. A request for the neighbour of one of them is a step; what lies on behind
it is then wished for (pixels/prefetch.py) and made by processes that would be idle. So the next request
finds its
frame made, or being made, and a single client keeps several cores busy. Of whoever asks for many that are no
neighbours, all that was asked for tells what else is worth making (coverage.py).

Rules of this file
- Instances of a series follow one another as pixels/series_order.py says; the order is looked up when a
  second instance is asked for.
- On a walk no more is wished for than was asked for in a row: clients whose requests are spread over several
  workers walk with gaps in each of them, and what is made for them in vain stays little.
- Whoever jumps drops what was wished for on that walk.
- Whoever walks alone may keep all processes busy; while others are about, one of them stays free. Where
  nobody walks it is less certain what will be asked for: one works on what was asked for, or is free for it,
  and while others are about, another one.
- All memory is bounded: WALKS walks of a few places each, and what the other two files say.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from framecodecs.pool.messages import Result
from streamsrv.pixels.coverage import Coverage, Coverages
from streamsrv.pixels.pool import Making, PixelPool
from streamsrv.pixels.series_order import Order, Orders
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store

WALKS = 64
# Several clients may walk through the same series, each with a last place of its own.
PLACES = 4
# Places that were wished for last, and need not be looked at again.
WISHED = 8

Place: TypeAlias = int | str  # a frame index, or a SOP instance UID
Make: TypeAlias = Callable[[Selection, InstanceRow, int], Making]


@dataclass(slots=True, eq=False)
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
    for place in before:
        if (step := here - place) == 1 or step == -1:
            break
    else:
        return []
    run = 1
    while here - (run + 1) * step in before:
        run += 1
    return [here + number * step for number in range(1, min(run, most) + 1)]


def _is_walk(places: Sequence[int]) -> bool:
    """A single step may be one by chance."""
    return len(places) > 1


class Walks:
    """Thread-safe. Those of one pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visited: OrderedDict[Hashable, Walk] = OrderedDict()
        self.orders = Orders()
        self.coverages = Coverages()

    def visit(self, walk: Hashable, here: Place) -> Sequence[Place]:
        """The places before this one, the latest first; none if it is the latest itself: a request may be
        looked at twice."""
        with self._lock:
            known = self._visited.get(walk)
            visited = (self.walk(walk) if known is None else known).visited
            self._visited.move_to_end(walk)
            while len(self._visited) > WALKS:
                self._visited.popitem(last=False)
            if visited and visited[-1] == here:
                return ()
            if here in visited:  # another client's request came between two looks
                visited.remove(here)
            before = tuple(reversed(visited))
            visited.append(here)
            return before

    def walk(self, walk: Hashable) -> Walk:
        return self._visited.setdefault(walk, Walk(deque(maxlen=PLACES), deque(maxlen=WISHED)))


def asked(
    store: Store, pool: PixelPool, row: InstanceRow, index: int, representation: Hashable, make: Make
) -> None:
    """A frame was asked for, in a representation that `make` gives to others. Costs microseconds, and less
    than anything else where nobody walks and no process may be left for others of the series."""
    walks: Walks | None = pool.kept.get(Walks)
    if walks is None:
        walks = pool.kept.setdefault(Walks, Walks())
    order: Order | None = None
    if row.number_of_frames > 1:
        what: Hashable = row.record_id, representation
        before = walks.visit(what, index)
        places = following(index, [place for place in before if isinstance(place, int)], PLACES)
    else:
        what = row.key[:2], representation
        before = walks.visit(what, row.key.instance)
        order = walks.orders.known(row)
        places = _following(order, row.key.instance, before) if order is not None else []
    any_order = not _is_walk(places) and pool.see(what)
    is_known = order is not None or row.number_of_frames > 1
    if not is_known and what in pool.wishes and row not in walks.orders:
        return  # nobody had time yet to look up the order: what is wished for already will do
    if places or any_order or not is_known:
        one = _Asked(store, pool, walks, row, make, what)
        if row.number_of_frames > 1:
            one.frame(index, before, places, any_order)
        else:
            one.instance(order, before, places, any_order)
    elif before:
        pool.wishes.drop(what)


def _following(order: Order, here: str, before: Iterable[Place]) -> list[int]:
    """Of the instance `here`, where it has a place."""
    place = order.places.get(here)
    if place is None:
        return []
    visited = []
    for uid in before:
        if isinstance(uid, str) and (other := order.places.get(uid)) is not None:
            visited.append(other)
    return following(place, visited, PLACES)


@dataclass(slots=True, eq=False)
class _Asked:
    """`what` is the multi-frame instance or the series, in one representation."""

    store: Store
    pool: PixelPool
    walks: Walks
    row: InstanceRow
    make: Make
    what: Hashable

    def frame(self, index: int, before: Sequence[Place], places: Sequence[int], any_order: bool) -> None:
        """`places` lead on; `any_order`: others of the instance may be worth making."""
        others = None
        if any_order:
            coverage = self.walks.coverages.ask(self.what, None, self.row.number_of_frames, index)
            others = self._others(coverage, self._frame) if coverage is not None else None
        self._wish(before, places, self._frames(places) if places else None, others)

    def instance(
        self, order: Order | None, before: Sequence[Place], places: Sequence[int], any_order: bool
    ) -> None:
        """The same of the series. Whether it is a step will be seen where the order is not known yet."""
        wish: Iterator[Making] | None = None
        others: Iterator[Making] | None = None
        if any_order and order is not None:
            coverage = self._coverage(order, (self.row.key.instance,))
            others = self._others(coverage, partial(self._instance, order)) if coverage is not None else None
        if order is None:
            wish = self._first_instances()
        elif places:
            wish = self._instances(order, places)
        self._wish(before, places, wish, others)

    def _wish(
        self,
        before: Sequence[Place],
        places: Sequence[int],
        wish: Iterator[Making] | None,
        others: Iterator[Making] | None,
    ) -> None:
        wishes, in_any_order = self.pool.wishes, (self.what, "in any order")
        if _is_walk(places):
            wishes.see(self.what)
            wishes.drop(in_any_order)
        if before and wish is not None:
            wishes.put(self.what, wish)
        elif before:
            wishes.drop(self.what)
        if before and others is not None:
            wishes.keep(in_any_order, others)

    # Walks

    def _frames(self, places: Sequence[int]) -> Iterator[Making]:
        walk = self.walks.walk(self.what)
        for place in places[: self.pool.read_ahead]:
            if 0 <= place < self.row.number_of_frames and walk.wish(place):
                yield from self._step(places, place, self._frame)

    def _first_instances(self) -> Iterator[Making]:
        """Of a series whose order is not known yet. Others may have been asked for until it is."""
        order = self.walks.orders.learn(self.store, self.row)
        uids = [uid for uid in self.walks.walk(self.what).visited.copy() if isinstance(uid, str)]
        places = _following(order, uids[-1], uids[-2::-1]) if uids else []
        if not _is_walk(places):
            self._coverage(order, uids)
        yield from self._instances(order, places)

    def _instances(self, order: Order, places: Sequence[int]) -> Iterator[Making]:
        for place in places[: self.pool.read_ahead]:
            if 0 <= place < len(order.uids) and self.walks.walk(self.what).wish(order.uids[place]):
                yield from self._step(places, place, partial(self._instance, order))

    def _step(
        self, places: Sequence[int], place: int, makings: Callable[[int], Iterator[Making]]
    ) -> Iterator[Making]:
        """Perhaps it is one by chance, of whoever takes frames in any order."""
        coverage = None if _is_walk(places) else self.walks.coverages.taken(self.what, place)
        if coverage is None:
            yield from makings(place)
        else:
            yield from self._tried(coverage, place, makings(place))

    # In any order

    def _coverage(self, order: Order, uids: Iterable[str]) -> Coverage | None:
        """If others of the series are worth making. Those were asked for, the latest one last."""
        places = [order.places[uid] for uid in uids if uid in order.places]
        if not places:
            return None
        return self.walks.coverages.ask(self.what, order.mark, len(order.uids), *places)

    def _others(self, coverage: Coverage, makings: Callable[[int], Iterator[Making]]) -> Iterator[Making]:
        coverages, most = self.walks.coverages, self.pool.cache.largest
        while (place := coverages.choose(coverage, most)) is not None:
            for making in self._tried(coverage, place, makings(place)):
                if self._is_there(making):
                    coverages.passes(coverage, place, was_there=True)
                    return
                yield making
                if not self._is_there(making):
                    return  # whoever asks for something else has another one tried

    def _tried(self, coverage: Coverage, place: int, makings: Iterator[Making]) -> Iterator[Making]:
        """The coverage learns how large it is, or that it could not be made."""
        begun: Making | None = None
        try:
            for making in makings:
                begun = making
                yield replace(making, finish=partial(self._finish, coverage, making))
        finally:
            if begun is None or not self._is_there(begun):
                self.walks.coverages.passes(coverage, place)

    def _finish(self, coverage: Coverage, making: Making, results: list[Result]) -> bytes:
        made = making.finish(results)
        self.walks.coverages.made(coverage, len(made))
        return made

    def _is_there(self, making: Making) -> bool:
        """Or is being made."""
        return making.key in self.pool.makings or self.pool.cache.get(making.key) is not None

    def _frame(self, index: int) -> Iterator[Making]:
        return _making(self.store, self.row.key, index, self.make)

    def _instance(self, order: Order, place: int) -> Iterator[Making]:
        return _making(self.store, (*self.row.key[:2], order.uids[place]), 0, self.make)


def _making(store: Store, key: tuple[str, str, str], index: int, make: Make) -> Iterator[Making]:
    """What it is made of is held until the next one is asked for."""
    selection = Selection(store, *key, [index])
    try:
        row = next(selection.rows())
        if index < row.number_of_frames:
            yield make(selection, row, index)
    finally:
        selection.release()

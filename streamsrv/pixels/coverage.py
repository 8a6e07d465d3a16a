"""How much of a series, or of a multi-frame instance, was asked for in one representation, in whatever order.

Strategy: data loaders take frames in random order, exporters in the order of UIDs. None of these is a walk,
and yet whoever has asked for ENOUGH different frames of a series will ask for most of the others. So some of
those that nobody has asked for yet are worth making: the nearest to the last one first, in both directions,
because whoever jumps about looks around where he is.

Rules of this file
- What is ahead, made or being made and not asked for so far, is never more than was asked for, nor than
  AHEAD, nor, of all coverages together, than a share of the cache: where a jump was only a jump, little was
  in vain.
- Each worker knows what it was asked for itself. A client whose requests are spread over several asks for
  some of it elsewhere, and then what is ahead here is not asked for, so it stays at these limits.
- Whoever pauses for PAUSE seconds begins anew.
- What could not be made is not tried again. What had been made already shows that the series was taken
  before: ENOUGH others have to be asked for until the next one is tried.
- Memory is bounded: COVERAGES of two bits a place, none of more than LONGEST places.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

ENOUGH = 8
AHEAD, STEPS = 128, 4
PAUSE = 2.0
COVERAGES, LONGEST = 64, 1 << 16


@dataclass(slots=True, eq=False)
class Coverage:
    """Of `count` places, as sets of bits. `mark` tells that they are the same places still."""

    count: int
    mark: Hashable
    asked: int = 0  # or not to be had
    ahead: int = 0
    here: int = 0  # asked for last
    step: int = 0  # from the one before
    is_regular: bool = False  # whether the step before was as long
    when: float = 0.0
    different: int = 0  # ones that were asked for
    since: int = 0  # as many of these count
    made: int = 0  # ones made ahead, of so many bytes together
    size: int = 0

    def bytes_ahead(self, more: int = 0) -> float:
        return (self.ahead.bit_count() + more) * self.size / max(self.made, 1)

    def ask(self, place: int) -> None:
        is_new = not self.asked >> place & 1
        self.different += is_new
        self.since += is_new
        self.asked |= 1 << place
        self.ahead &= ~(1 << place)
        if place != self.here:  # a request may be looked at twice
            self.is_regular, self.step = place - self.here == self.step, place - self.here
            self.here = place

    def next(self) -> int | None:
        """Steps of one length lead on; else the nearest one."""
        if not self.is_regular or abs(self.step) == 1:
            return self.nearest()
        taken = self.asked | self.ahead
        on = [self.here + number * self.step for number in range(1, STEPS + 1)]
        return next((place for place in on if 0 <= place < self.count and not taken >> place & 1), None)

    def nearest(self) -> int | None:
        """Of the places that are neither asked for nor ahead."""
        taken = self.asked | self.ahead
        free = ~(taken >> self.here)
        behind = self.here + (free & -free).bit_length() - 1
        before = (~taken & ((1 << self.here) - 1)).bit_length() - 1
        if behind < self.count and (before < 0 or behind - self.here <= self.here - before):
            return behind
        return before if before >= 0 else None


class Coverages:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coverages: OrderedDict[Hashable, Coverage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._coverages)

    def ask(self, what: Hashable, mark: Hashable, count: int, *places: int) -> Coverage | None:
        """They were asked for, the last one just now; the coverage, if others are worth making."""
        if count > LONGEST:
            return None
        now = time.monotonic()
        with self._lock:
            self._forget_those_before(now - PAUSE)
            coverage = self._coverages.get(what)
            if coverage is None or coverage.mark != mark:
                coverage = self._coverages[what] = Coverage(count, mark)
            self._coverages.move_to_end(what)
            while len(self._coverages) > COVERAGES:
                self._coverages.popitem(last=False)
            for place in places:
                coverage.ask(place)
            coverage.when = now
            return coverage if coverage.since >= ENOUGH else None

    def _forget_those_before(self, moment: float) -> None:
        while self._coverages and next(iter(self._coverages.values())).when < moment:
            self._coverages.popitem(last=False)

    def choose(self, coverage: Coverage, most: int) -> int | None:
        """The place that is worth making now, if there is one; it is ahead then. `most` bytes may be."""
        with self._lock:
            self._forget_those_before(time.monotonic() - PAUSE)
            if coverage.since < ENOUGH or not self._has_room(coverage, most):
                return None
            place = coverage.next()
            if place is not None:
                coverage.ahead |= 1 << place
            return place

    def _has_room(self, coverage: Coverage, most: int) -> bool:
        """As long as it is not known how large they are, one is enough."""
        ahead = coverage.ahead.bit_count()
        if coverage not in self._coverages.values() or ahead >= min(coverage.different, AHEAD):
            return False
        others = sum(one.bytes_ahead() for one in self._coverages.values() if one is not coverage)
        return others + coverage.bytes_ahead(1) <= most if coverage.made else not ahead

    def made(self, coverage: Coverage, size: int) -> None:
        with self._lock:
            coverage.made += 1
            coverage.size += size

    def taken(self, what: Hashable, place: int) -> Coverage | None:
        """A walk has it made; the coverage, if there is one."""
        with self._lock:
            coverage = self._coverages.get(what)
            if coverage is not None and not coverage.asked >> place & 1:
                coverage.ahead |= 1 << place
            return coverage

    def passes(self, coverage: Coverage, place: int, *, was_there: bool = False) -> None:
        """It could not be made, or had been made already."""
        with self._lock:
            coverage.ahead &= ~(1 << place)
            coverage.asked |= 1 << place
            if was_there:
                coverage.since = 0

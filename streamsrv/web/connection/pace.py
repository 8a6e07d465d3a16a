"""How slow a client may be: one sweep a second over everything that waits for one.

Strategy: no timer a request. Connections that owe us a head stand in a queue in the order in which they began
to wait, so a sweep looks only at those that are due. A second queue has those whose head has begun, and new
connections: they have less time. Each body on its way, in or out, has a Meter; in every
`stall_timeout` it must move by `min_rate` times as much. A window rather than an average, because a client
that took a gigabyte at once and then stopped would live off its credit for days.

Rules of this file
- Time that we spend ourselves (reading from disk, syncing, decoding) is not the client's: the Meter is paused
  meanwhile.
- RFC 9112 9.5: a server may close a connection that has been idle too long, without notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from streamsrv.web.connection.turns import Turns


def _nobody() -> None:
    """Waits any more."""


def _ignore(now: float) -> None:
    pass


class Meter:
    """Bytes of one body as they pass. `on_stall` is called once, from the loop, when they have passed too
    slowly."""

    __slots__ = ("_at", "_mark", "moved", "on_stall", "paused")

    def __init__(self, on_stall: Callable[[], None], now: float) -> None:
        self.on_stall = on_stall
        self.moved = 0
        self._mark = 0
        self._at = now
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def stalled(self, now: float, window: float, least: float) -> bool:
        """Whether a whole window went by in which less than `least` bytes moved."""
        if self.paused or self.moved - self._mark >= least:
            self._mark, self._at = self.moved, now
            return False
        return now - self._at >= window


# What an upload takes in one turn of the loop while other bodies move as well: a quarter of a millisecond of
# it, a few where memory is written for the first time.
SHARED = 256 << 10


class Watch:
    """All waiting of one worker."""

    def __init__(self, idle_timeout: float, stall_timeout: float, min_rate: int, head_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = idle_timeout
        self._head_timeout = head_timeout
        self.on_sweep: Callable[[float], None] = _ignore
        self._window = stall_timeout
        self._least = min_rate * stall_timeout
        # key -> (since, close, party); a dict keeps its order, and every wait is equally long: the first is
        # due first
        self._heads: dict[Hashable, tuple[float, Callable[[], None], str]] = {}
        self._begun: dict[Hashable, float] = {}  # the same for heads that have begun; all are in _heads too
        self._meters: set[Meter] = set()
        self._interval = min(1.0, idle_timeout / 4, stall_timeout / 4, head_timeout / 4)
        self._timer = self._loop.call_later(self._interval, self._sweep)
        self.turns = Turns(lambda: len(self._meters) <= 1)

    def head_awaited(
        self, key: Hashable, close: Callable[[], None], party: str = "", *, new: bool = False
    ) -> None:
        """`party` is the client that `end_longest` may be asked for. A `new` connection has no more time than
        a head that has begun."""
        self.head_arrived(key)
        now = self._loop.time()
        self._heads[key] = (now, close, party)
        if new:
            self._begun[key] = now

    def head_begun(self, key: Hashable) -> None:
        """The first bytes of an awaited head have come, and not all of it."""
        if key in self._heads and key not in self._begun:
            self._begun[key] = self._loop.time()

    def head_awaited_again(self, key: Hashable, now: float) -> None:
        """As of `now`, of one that was awaited: its head came and was answered at once."""
        awaited = self._heads.pop(key, None)
        if awaited is not None:
            self._heads[key] = now, awaited[1], awaited[2]
            self._begun.pop(key, None)

    def head_arrived(self, key: Hashable) -> None:
        self._heads.pop(key, None)
        self._begun.pop(key, None)

    @property
    def has_waiting(self) -> bool:
        return bool(self._heads)

    def end_longest(self, party: str = "") -> bool:
        """Close the connection, of this party or of all, that has waited for a head for the longest time;
        False if there is none."""
        for key, (_, close, owner) in self._heads.items():
            if not party or owner == party:
                self.head_arrived(key)
                close()
                return True
        return False

    def waiting(self) -> list[Callable[[], None]]:
        """What closes each connection that owes us a head."""
        return [close for _, close, _ in self._heads.values()]

    def share(self, most: int) -> int:
        """How much of `most` an upload may move in its turn."""
        return most if len(self._meters) <= 1 else min(most, SHARED)

    def meter(self, on_stall: Callable[[], None]) -> Meter:
        """A Meter that counts; `add` it when there is something to wait for."""
        return Meter(on_stall, self._loop.time())

    def add(self, meter: Meter) -> None:
        self._meters.add(meter)

    def drop(self, meter: Meter) -> None:
        """Nobody is told any more: who was to be told has the meter, and is in no cycle with it now."""
        self._meters.discard(meter)
        meter.on_stall = _nobody

    def stop(self) -> None:
        self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._sweep)
        now = self._loop.time()
        self._sweep_heads(now - self._idle)
        self._sweep_begun(now - self._head_timeout)
        self.on_sweep(now)
        for meter in [meter for meter in self._meters if meter.stalled(now, self._window, self._least)]:
            self._meters.discard(meter)
            meter.on_stall()

    def _sweep_heads(self, since: float) -> None:
        while self._heads:
            key, (began, close, _) = next(iter(self._heads.items()))
            if began > since:
                return
            self.head_arrived(key)
            close()

    def _sweep_begun(self, since: float) -> None:
        while self._begun:
            key, began = next(iter(self._begun.items()))
            if began > since:
                return
            close = self._heads[key][1]
            self.head_arrived(key)
            close()

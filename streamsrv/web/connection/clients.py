"""How slow a client may be, how many uploads run at once, and the order in which bodies move: one Watch and
one Uploads for all connections of a worker.

Strategy: no timer for each request. Connections that wait for a head stand in a queue in the order of their
begin. So a sweep each second reads only those that are due. A second queue has those whose head has begun,
and new connections: they have less time. Each body on its way, in or out, has a Meter. In each period of
`stall_timeout` it must move `min_rate` times as many bytes. A period is better than an average: a client that
took a gigabyte at once and then stopped would live for days from its credit.

Bodies of a worker move one after another, one slice in each turn of the loop (`TurnQueue`).

An upload takes a slot before its body is read. One client holds three quarters of the slots at most. If no
slot is free, the slowest upload makes room, provided that it is slower than `slow_rate`. While three quarters
of the slots are taken, `slow_rate` is the least rate for each upload; the slowest end first.

Rules of this file
- The time in which the server works (reads from disk, syncs, decodes) does not count: the Meter is paused,
  and its upload does not end.
- The rate of an upload is that of the last 4 to 8 seconds, or since the begin. A young upload has no rate.
- RFC 9112 9.5: a server may close a connection that has been idle too long, without notice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable

from streamsrv.errors import Overloaded, TooManyRequests
from streamsrv.web.hosts import party

# Seconds: a rate is measured over one or two of these.
SPAN = 4.0
# Seconds after which an upload may end: for a newcomer, and because slots are scarce.
YOUNG, GRACE = 0.5, 5.0
RETRY_AFTER = 2


def _no_action(now: float = 0) -> None:
    pass


class Meter:
    """Counts the bytes of one body. The loop calls `on_stall` once, if they pass too slowly."""

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
        """Whether less than `least` bytes have moved in `window` seconds."""
        if self.paused or self.moved - self._mark >= least:
            self._mark, self._at = self.moved, now
            return False
        return now - self._at >= window


class TurnQueue:
    """Gives each turn of the loop to one body. So a small request waits for one slice, not for one slice of
    every body. `alone` returns whether at most one body moves: it waits for no turn. Must be made inside the
    running loop."""

    def __init__(self, alone: Callable[[], bool] = lambda: False) -> None:
        self._alone = alone
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False

    def take(self) -> bool:
        """Takes this turn of the loop. False if another body has it."""
        if self._taken:
            return False
        if self._alone():
            return True
        self._taken = True
        self._loop.call_soon(self._next)
        return True

    def queue(self, move: Callable[[], None]) -> None:
        """Calls `move`, which must not raise, in a later turn."""
        self._waiting.append(move)

    async def turn(self) -> None:
        """Returns in a turn of the caller."""
        if not self.take():
            called = asyncio.Event()
            self.queue(called.set)
            await called.wait()

    def _next(self) -> None:
        if not self._waiting:
            self._taken = False
            return
        self._loop.call_soon(self._next)
        self._waiting.popleft()()


# Bytes that an upload takes in one turn of the loop while other bodies move: a quarter of a millisecond, or a
# few where memory is written for the first time.
SHARED = 256 << 10


class Watch:
    """All connections of one worker that wait for a client."""

    def __init__(self, idle_timeout: float, stall_timeout: float, min_rate: int, head_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = idle_timeout
        self._head_timeout = head_timeout
        self.on_sweep: Callable[[float], None] = _no_action
        self._window = stall_timeout
        self._least = min_rate * stall_timeout
        # key -> (since, close, party). A dict keeps its order, and each wait is equally long.
        self._heads: dict[Hashable, tuple[float, Callable[[], None], str]] = {}
        self._begun: dict[Hashable, float] = {}  # the same for heads that have begun; all are in _heads too
        self._meters: set[Meter] = set()
        self._interval = min(1.0, idle_timeout / 4, stall_timeout / 4, head_timeout / 4)
        self._timer = self._loop.call_later(self._interval, self._sweep)
        self.bodies = TurnQueue(lambda: len(self._meters) <= 1)

    def head_awaited(
        self, key: Hashable, close: Callable[[], None], party: str = "", *, new: bool = False
    ) -> None:
        """`party` is an argument of `end_longest`. A `new` connection has no more time than a head that has
        begun."""
        self.head_arrived(key)
        now = self._loop.time()
        self._heads[key] = (now, close, party)
        if new:
            self._begun[key] = now

    def head_begun(self, key: Hashable) -> None:
        """The first bytes of an awaited head have arrived, but not all."""
        if key in self._heads and key not in self._begun:
            self._begun[key] = self._loop.time()

    def head_awaited_again(self, key: Hashable, now: float) -> None:
        """The awaited head has arrived and was answered at once. The connection waits since `now`."""
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
        """Closes the connection, of this party or of all, that has waited longest for a head. False if there
        is none."""
        for key, (_, close, owner) in self._heads.items():
            if not party or owner == party:
                self.head_arrived(key)
                close()
                return True
        return False

    def waiting(self) -> list[Callable[[], None]]:
        """For each connection that waits for a head, the function that closes it."""
        return [close for _, close, _ in self._heads.values()]

    def share(self, most: int) -> int:
        """The part of `most` that an upload may move in its turn."""
        return most if len(self._meters) <= 1 else min(most, SHARED)

    def meter(self, on_stall: Callable[[], None]) -> Meter:
        """A Meter that counts. `add` it when the client is waited for."""
        return Meter(on_stall, self._loop.time())

    def add(self, meter: Meter) -> None:
        self._meters.add(meter)

    def drop(self, meter: Meter) -> None:
        """Breaks the reference cycle of the meter and its owner."""
        self._meters.discard(meter)
        meter.on_stall = _no_action

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


class UploadSlot:
    """One upload. `end` is called with the reason if it has to make room."""

    __slots__ = ("_newer", "_older", "began", "end", "meter", "party")

    def __init__(self, party: str, now: float) -> None:
        self.party = party
        self.began = now
        self.meter: Meter | None = None
        self.end: Callable[[str], None] | None = None
        self._older = self._newer = (now, 0)  # (when, bytes)

    def watch(self, meter: Meter, end: Callable[[str], None]) -> None:
        self.meter, self.end = meter, end

    def sample(self, now: float) -> None:
        if self.meter is not None and now - self._newer[0] >= SPAN:
            self._older, self._newer = self._newer, (now, self.meter.moved)

    def rate(self, now: float, age: float) -> float:
        """Bytes a second; infinite if it is younger than `age` seconds, or waits for the server."""
        if self.meter is None or self.meter.paused or now - self.began < age:
            return float("inf")
        at, moved = self._older
        return (self.meter.moved - moved) / max(now - at, YOUNG)


class Uploads:
    """The slots of one worker. `slow_rate` is in bytes a second. 0: no upload ends for another."""

    def __init__(self, most: int, slow_rate: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._share = most - most // 4
        self._slow_rate = slow_rate
        self._clock = clock
        self._slots: dict[UploadSlot, None] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, client: str) -> UploadSlot:
        """`client` is the party of the requester. Raises Overloaded if there is no slot, and TooManyRequests
        if the client has its share."""
        now, owner = self._clock(), party(client)
        own = [slot for slot in self._slots if slot.party == owner]
        if len(own) >= self._share:
            if not self._make_room(own, now):
                raise TooManyRequests(f"{len(own)} uploads of this client are being received", RETRY_AFTER)
        elif len(self._slots) >= self._most and not self._make_room(self._slots, now):
            raise Overloaded(f"{len(self._slots)} uploads are being received; try again", RETRY_AFTER)
        slot = UploadSlot(owner, now)
        self._slots[slot] = None
        return slot

    def free(self, slot: UploadSlot) -> None:
        """Does nothing if it is free already."""
        self._slots.pop(slot, None)
        slot.meter = slot.end = None  # breaks the cycle slot -> exchange -> slot

    def sweep(self, now: float) -> None:
        """Called about once a second."""
        for slot in self._slots:
            slot.sample(now)
        while self._scarce and self._end_slowest(
            self._slots,
            now,
            GRACE,
            f"slots are scarce, and it was slower than {self._slow_rate} bytes a second",
        ):
            pass

    @property
    def _scarce(self) -> bool:
        return len(self._slots) > 1 and 4 * len(self._slots) >= 3 * self._most

    def _make_room(self, slots: Iterable[UploadSlot], now: float) -> bool:
        return self._end_slowest(slots, now, YOUNG, "it was the slowest upload, and others need its slot")

    def _end_slowest(self, slots: Iterable[UploadSlot], now: float, age: float, reason: str) -> bool:
        """Whether one was slow enough to end."""
        rate, slot = min(((slot.rate(now, age), slot) for slot in slots), key=lambda found: found[0])
        if rate >= self._slow_rate or slot.end is None:
            return False
        end = slot.end
        self.free(slot)
        end(f"the upload was ended: {reason}")
        return True

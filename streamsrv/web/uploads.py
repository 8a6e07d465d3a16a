"""Slots and buffers of uploads: how many uploads run at once, of all clients and of one, and which of them
end when slots are scarce.

Strategy: a slot is taken before the body is read. One client holds three quarters of the slots at most. If
no slot is free, the slowest upload makes room, provided that it is slower than `slow_rate`. While three
quarters of the slots are taken, `slow_rate` is the least rate for each upload; the slowest end first.

Rules of this file
- A rate is that of the last 4 to 8 seconds, or since the begin. A young upload has no rate yet.
- The time in which the server works on an upload does not count: such an upload does not end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamsrv.errors import Overloaded
from streamsrv.web.connection.clients import Meter
from streamsrv.web.hosts import party

# Seconds: a rate is measured over one or two of these.
SPAN = 4.0
# Seconds after which an upload may end: for a newcomer, and because slots are scarce.
YOUNG, GRACE = 0.5, 5.0
RETRY_AFTER = 2
# The buffer of one upload. It is written at once: a quarter faster than half of it, or part by part.
BUFFER = 4 << 20
BUFFERS_KEPT = 8  # for their next use


class Buffers:
    """Buffers of uploads, used again: the pages of a new one cost as much as to fill it."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(BUFFER)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < BUFFERS_KEPT:
            self._free.append(buffer)


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

    def take(self, client: str) -> UploadSlot:
        """`client` is the address of the requester. Raises Overloaded if there is no slot."""
        now, owner = self._clock(), party(client)
        own = [slot for slot in self._slots if slot.party == owner]
        full = len(self._slots) >= self._most
        if len(own) >= self._share:
            found = self._make_room(own, now)
        else:
            found = not full or self._make_room(self._slots, now)
        if not found:
            many = f"{len(self._slots)} uploads" if full else f"{len(own)} uploads of this client"
            raise Overloaded(f"{many} are being received; try again", RETRY_AFTER)
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

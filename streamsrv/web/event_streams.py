"""`GET /events`: changes and completed studies as server-sent events, for many clients of one worker.

Strategy: one reader for all clients with the same view of the store. It asks the version of the index each
TICK. If that is new, it reads the changes in a thread, and keeps the last events as text. A client behind
them reads the log itself, a page at a time, until it has caught up. An idle client costs a timer and no
thread.

Rules of this file
- All runs in the loop, except the reads of a tail. One read of a tail at a time, READERS reads of clients.
- A client holds one page of events at most. One that falls behind the kept events reads the log again.
- A stream ends when its principal ends or changes, after `duration`, when the store does not answer, and when
  the worker ends. The id of the last event tells the client where to go on.
- The place of a client is found before its answer begins. So a store that does not answer is a status.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from streamsrv.errors import BadRequest, NotFound
from streamsrv.events import ChangeTail, EventPosition, TailSource, ToldEvent
from streamsrv.events.messages import EVENT_STREAM, RETRY, beat, message, place, position_from, reset
from streamsrv.query.rules import Rule
from streamsrv.wire.accept import Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, Deferred, LiveBytes, Request, Taking

log = logging.getLogger("streamsrv.web")

# Seconds.
TICK, BEAT, LOOK = 0.2, 15.0, 1.0
LONGEST = 86_400
# Events that are kept for the followers of a view, in bytes of text.
KEPT = 1 << 20
CHUNK = 64 << 10
# Clients that read the log at once.
READERS = 4
Result = TypeVar("Result")
_HEADERS = (
    ("Content-Type", EVENT_STREAM),
    ("Cache-Control", "no-store"),
    ("Vary", "Accept"),
    ("X-Accel-Buffering", "no"),  # of nginx
)


class EventLine:
    """The last events of one view, numbered. `base` is the position before the first one that is kept."""

    def __init__(self, tail: ChangeTail, version_now: Callable[[], int]) -> None:
        self.tail = tail
        self.version_now = version_now  # of the index
        self.followers: set[Follower] = set()
        self.is_ready = self.is_busy = False
        self.version = -1
        self.looked = 0.0
        self.first = 0
        self.base = self.position = EventPosition(0)
        self.events: deque[tuple[ToldEvent, bytes]] = deque()
        self._size = 0

    @property
    def end(self) -> int:
        return self.first + len(self.events)

    def add(self, events: Sequence[ToldEvent], texts: Sequence[bytes], position: EventPosition) -> None:
        self.events.extend(zip(events, texts, strict=True))
        self._size += sum(map(len, texts))
        self.position = position
        while self._size > KEPT:
            event, text = self.events.popleft()
            self.base, self.first, self._size = event.position, self.first + 1, self._size - len(text)

    def keeps(self, position: EventPosition) -> bool:
        """Whether all events behind a position are kept."""
        base = self.base
        return self.is_ready and position.sequence >= base.sequence and position.complete >= base.complete


class Follower:
    """One client. `may` tells whether its principal is still the same. `read_on` is called to read the log,
    or to join the line."""

    def __init__(
        self,
        line: EventLine,
        tail: ChangeTail,
        epoch: str,
        first: bytes,
        may: Callable[[], bool],
        wake: Callable[[], None],
        read_on: Callable[[Follower], None],
    ) -> None:
        """`first` is its first event."""
        self.line = line
        self.tail = tail
        self.may = may
        self.wake = wake
        self.until = self.beat_at = float("inf")
        self.is_reading = False
        self.position = tail.position
        self._read_on = read_on
        self._epoch = epoch
        self._texts = [RETRY, first]
        self._next: int | None = None  # number of the next event of the line; None: it reads the log
        self._ended = False

    @property
    def follows(self) -> bool:
        """Whether it has caught up."""
        return self._next is not None

    def say(self, texts: Sequence[bytes]) -> None:
        self._texts += texts
        self.wake()

    def end(self) -> None:
        self._ended = True
        self.wake()

    def join(self) -> bool:
        """False if the line has not all of the next events."""
        self._next = self.line.first if self.line.keeps(self.position) else None
        return self.follows

    def take(self) -> bytes | None:
        """The bytes that wait: empty if there are none, None at the end."""
        if self._next is not None and self._next < self.line.first:
            self._next = None  # it is slow: its next events are not kept any more
        if self._next is None and not self.is_reading and not self._ended:
            self._read_on(self)
        texts, self._texts = self._texts, []
        size = sum(map(len, texts))
        while self._next is not None and self._next < self.line.end and size < CHUNK:
            event, text = self.line.events[self._next - self.line.first]
            self._next += 1
            if not event.is_behind(self.position):
                continue
            self.position = self.position.further(event.position)
            texts.append(text)
            size += len(text)
        if not texts and self._ended:
            return None
        return b"".join(texts)

    def watch(self, now: float) -> None:
        """Ends the stream, or says that it is still there, if it is time."""
        if not self.may() or (now >= self.until and self.follows):
            self.end()
        elif now >= self.beat_at and not self._texts:
            self.beat_at = now + BEAT
            if self._next == self.line.end:
                self.position = self.position.further(self.line.position)
            self.say([beat(self._epoch, self.position)])


class EventStreams:
    """All followers of one worker. Must be made inside the running loop."""

    def __init__(self, pool: Executor) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._epoch = ""
        self._lines: dict[Rule | None, EventLine] = {}
        self._readers = 0
        self._waiting: deque[Follower] = deque()  # for a turn to read the log
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def __len__(self) -> int:
        return sum(len(line.followers) for line in self._lines.values())

    def answer(
        self,
        request: Request,
        rule: Rule | None,
        source: TailSource | None,
        may: Callable[[], bool],
        began: Callable[[], None],
    ) -> Deferred:
        """`source` makes readers of the view that the rule shows. `began` is called in the loop when the
        stream begins. Raises RequestError."""
        if source is None:
            raise NotFound("this service has no events")
        accepted = tuple(value for name, value in request.query if name == "accept")
        choose_json(parse_accept(request.headers.get("accept"), accepted), (Offer(EVENT_STREAM),))
        self._epoch = self._epoch or source.epoch()
        asked = {name.lower(): value for name, value in request.query}
        duration = _duration(asked.get("duration"))
        last = request.headers.get("last-event-id") or asked.get("offset") or ""
        position = position_from(last, self._epoch) if last else None
        tail = source.tail()

        def begin(could: bool, wake: Callable[[], None]) -> Taking:
            began()
            line = self._lines.get(rule)
            if line is None:
                line = self._lines[rule] = EventLine(source.tail(), source.version)
            named = place if could and (position or not last) else reset  # else it has lost its place
            first = named(self._epoch, tail.position)
            follower = Follower(line, tail, self._epoch, first, may, wake, self._read_on)
            self._begin(follower, duration)
            return Taking(follower.take, partial(self._left, rule, follower))

        def placed() -> Answer:
            could = tail.begin(position)
            return Answer(200, list(_HEADERS), length=None, live=LiveBytes(partial(begin, could)))

        return Deferred(placed)

    def end(self) -> None:
        """Ends all streams; no new one begins."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        for line in list(self._lines.values()):
            for follower in list(line.followers):
                follower.end()

    # A client

    def _begin(self, follower: Follower, duration: float | None) -> None:
        follower.line.followers.add(follower)
        now = self._loop.time()
        follower.beat_at = now + BEAT
        if duration is not None:
            follower.until = now + duration
        if self._ended:
            self._loop.call_soon(follower.end)
        else:
            self._tick_soon(0)

    def _left(self, rule: Rule | None, follower: Follower) -> None:
        line = follower.line
        line.followers.discard(follower)
        if not line.followers and self._lines.get(rule) is line:
            del self._lines[rule]

    def _read_on(self, follower: Follower) -> None:
        """Joins the line, or reads the next page of the log when it is its turn."""
        if not follower.join():
            follower.is_reading = True
            self._waiting.append(follower)
            self._next_readers()

    def _next_readers(self) -> None:
        while self._waiting and self._readers < READERS:
            follower = self._waiting.popleft()
            self._readers += 1
            page = partial(_page, follower.tail, follower.position)
            self._in_thread(page, partial(self._caught, follower), partial(self._failed, follower))

    def _caught(self, follower: Follower, events: list[ToldEvent]) -> None:
        self._readers -= 1
        self._next_readers()
        follower.position = follower.tail.position
        if events or follower.line.is_ready:
            follower.is_reading = False
            follower.say([message(self._epoch, each) for each in events])
        else:
            self._loop.call_later(TICK, self._try_again, follower)

    def _try_again(self, follower: Follower) -> None:
        follower.is_reading = False
        follower.wake()

    def _failed(self, follower: Follower) -> None:
        self._readers -= 1
        self._next_readers()
        follower.end()

    def _in_thread(
        self, work: Callable[[], Result], then: Callable[[Result], None], failed: Callable[[], None]
    ) -> None:
        future = self._loop.run_in_executor(self._pool, work)

        def done(_: object) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                then(future.result())
                return
            log.error("changes cannot be read: %s", error)
            failed()

        future.add_done_callback(done)

    # The clock

    def _tick_soon(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for line in list(self._lines.values()):
            self._look(line, now)
            for follower in list(line.followers):
                follower.watch(now)
        if self._lines and not self._ended:
            self._tick_soon(TICK)

    def _look(self, line: EventLine, now: float) -> None:
        """Reads the new events of a line: after a commit, and once in a while for completed studies."""
        version = line.version_now()
        if line.is_busy or (version == line.version and now - line.looked < LOOK):
            return
        line.is_busy, line.version, line.looked = True, version, now
        page = partial(_line_page, line.tail, line.is_ready)
        self._in_thread(page, partial(self._looked, line), partial(self._look_failed, line))

    def _look_failed(self, line: EventLine) -> None:
        line.is_busy = False
        for follower in list(line.followers):
            follower.end()

    def _looked(self, line: EventLine, events: list[ToldEvent] | None) -> None:
        line.is_busy = False
        if events is None:
            line.base = line.position = line.tail.position
            line.is_ready, line.version = True, -1
        else:
            line.add(events, [message(self._epoch, each) for each in events], line.tail.position)
        if events:
            for follower in list(line.followers):
                follower.wake()
        if events or events is None:
            line.version = -1  # perhaps there are more
            self._look(line, self._loop.time())


def _page(tail: ChangeTail, behind: EventPosition) -> list[ToldEvent]:
    if tail.position != behind:
        tail.begin(behind)
    return tail.read()


def _line_page(tail: ChangeTail, is_ready: bool) -> list[ToldEvent] | None:
    if not is_ready:
        tail.begin(None)
        return None
    return tail.read()


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text[:9]) > LONGEST:
        raise BadRequest(f"duration must be a whole number of seconds, at most {LONGEST}")
    return float(text)

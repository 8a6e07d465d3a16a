"""What will be asked for next, if those who walk go on: made ahead by processes that would be idle.

Strategy: a wish is an iterator that yields one thing after another, and may look things up before each.
Whoever calls `look` takes a step of the latest wish as long as there is something idle, so nothing is ever
ahead of what is really asked for. A step looks things up and reads: that is for a thread of its own
(Lookout), because answers come through those of the processes.

Rules of this file
- A wish is a walk's own: its next one takes its place, and whoever goes elsewhere drops it. At most WALKS are
  remembered.
- What is less certain than a walk is kept until it is fulfilled, and has its turn when no walk wishes for
  anything.
- What fails is forgotten. Whoever asks for it will be told.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from streamsrv.errors import StreamsrvError

log = logging.getLogger("streamsrv.pixels")

WALKS = 8
COMPANY = 1.0  # seconds
SURE = 8  # requests; half of them may deceive

Wished = TypeVar("Wished")


class Lookout:
    """A thread that calls `look` when it is called itself; started by the first call."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._called = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self) -> None:
        """Returns at once."""
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._serve, name="pixels-ahead", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread can be started: nothing is made ahead
                    thread.start()
                    self._thread = thread
        self._called.set()

    def _serve(self) -> None:
        while self._called.wait() and not self._closed:
            self._called.clear()
            self._look()

    def close(self) -> None:
        """Waits for the step that is being taken."""
        with self._lock:
            self._closed = True
        self._called.set()
        if self._thread is not None:
            self._thread.join()


class Wishes(Generic[Wished]):
    """Thread-safe. `call` has `look` called by a thread that may read; `may` says whether something is idle
    now; `fulfil` begins the work and does not wait for it."""

    def __init__(
        self, call: Callable[[], None], may: Callable[[], bool], fulfil: Callable[[Wished], None]
    ) -> None:
        self._call = call
        self._may = may
        self._fulfil = fulfil
        self._wishes: OrderedDict[Hashable, Iterator[Wished]] = OrderedDict()
        self._uncertain: OrderedDict[Hashable, Iterator[Wished]] = OrderedDict()
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._closed = False
        self._seen: tuple[Hashable, float] = (None, -COMPANY)
        self._another = -COMPANY  # when the walk was another one than just before

    def see(self, walk: Hashable) -> None:
        """Something of it was asked for."""
        now, (before, when) = time.monotonic(), self._seen
        if walk != before:
            self._another = when
        self._seen = walk, now

    @property
    def is_alone(self) -> bool:
        """Whether nobody has gone another way lately."""
        return time.monotonic() - self._another > COMPANY

    @property
    def is_certain(self) -> bool:
        """Whether the next step is a walk's."""
        return bool(self._wishes)

    def put(self, walk: Hashable, wish: Iterator[Wished]) -> None:
        with self._lock:
            self._remember(self._wishes, walk, wish)
        self._call()

    def keep(self, key: Hashable, wish: Iterator[Wished]) -> None:
        """What is less certain than a walk, unless there is one of this key already."""
        with self._lock:
            if key in self._uncertain:
                return
            self._remember(self._uncertain, key, wish)
        self._call()

    def _remember(
        self, wishes: OrderedDict[Hashable, Iterator[Wished]], key: Hashable, wish: Iterator[Wished]
    ) -> None:
        if self._closed:
            return
        wishes[key] = wish
        wishes.move_to_end(key)
        while len(wishes) > WALKS:
            wishes.popitem(last=False)

    def __contains__(self, walk: Hashable) -> bool:
        return walk in self._wishes

    def __bool__(self) -> bool:
        return bool(self._wishes or self._uncertain)

    def drop(self, walk: Hashable) -> None:
        if not self._wishes and not self._uncertain:
            return  # mostly, where nobody walks
        with self._lock:
            self._wishes.pop(walk, None)
            self._uncertain.pop(walk, None)

    def look(self) -> None:
        """Something may be idle. One thread at a time takes steps; it looks again after each."""
        while self and self._may() and self._stepping.acquire(blocking=False):
            try:
                self._step_of_latest()
            finally:
                self._stepping.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wishes.clear()
            self._uncertain.clear()

    def _step_of_latest(self) -> None:
        with self._lock:
            wishes = self._wishes or self._uncertain
            latest = next(reversed(wishes.items()), None)
        if latest is None or self._step(latest[1]):
            return
        with self._lock:
            if wishes.get(latest[0]) is latest[1]:
                del wishes[latest[0]]

    def _step(self, wish: Iterator[Wished]) -> bool:
        """Whether there may be another one."""
        try:
            for wished in wish:
                self._fulfil(wished)
                return True
        except StreamsrvError:
            pass
        except Exception:
            log.exception("something that nobody has asked for yet could not be made")
        return False


class Processes(Protocol):
    """As a FramePool tells of them: how many there may be, whether one is idle, and how many orders of this
    pool are under way."""

    @property
    def most(self) -> int: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def unfinished(self) -> int: ...


class Company:
    """Who else is about, and so how many processes are left idle. Thread-safe: a wrong look is outvoted."""

    def __init__(self, wishes: Wishes[Any]) -> None:
        self._wishes = wishes
        self._ahead: set[Future[Any]] = set()
        self._beside = 0  # rises with each request beside others, and falls with each without

    def make_ahead(self, order: Future[Any]) -> None:
        """It is under way, and nobody has asked for it."""
        self._ahead.add(order)
        order.add_done_callback(self._ahead.discard)

    def see(self, walk: Hashable, processes: Processes | None) -> bool:
        """Something of it was asked for; whether there are so many processes that one may be left for what is
        less certain than a walk."""
        self._wishes.see(walk)
        if processes is not None and self._is_beside_others(processes):
            self._beside = min(self._beside + 1, SURE)
        else:
            self._beside = max(self._beside - 1, 0)
        return processes is None or processes.most > 2 or processes.most > 1 + self._has_company

    def _is_beside_others(self, processes: Processes) -> bool:
        """Of this worker, or of one that has taken the processes which this one has not."""
        unfinished = processes.unfinished
        return unfinished - len(self._ahead) > 1 or (unfinished < processes.most and not processes.is_idle)

    def _asked_for(self, processes: Processes) -> int:
        return processes.unfinished - len(self._ahead)

    def kept(self, processes: Processes) -> int:
        """None for whoever walks alone. While others are about, one of them might ask for something else, and
        would have to wait for what nobody has asked for. Where nobody walks one works on what was asked for,
        or is left idle as well."""
        if self._wishes.is_certain:
            return 0 if self._wishes.is_alone else 1
        return (self._asked_for(processes) < 1) + self._has_company

    @property
    def _has_company(self) -> bool:
        return self._beside > SURE // 2 or not self._wishes.is_alone

"""Prefetch: frames and pictures made ahead for a client that reads in sequence.

Strategy: a sequence is the frames of one instance, or the instances of one series, in one representation. For
each sequence the last requested places are kept. A request next to one of them is a step. The places ahead of
it are then prefetched by pixel processes that are idle. A prefetch looks up rows and reads frames, so a
thread of its own does that: the threads of the pool bring the answers of other requests.

Rules of this file
- The instances of a series follow one another by Instance Number, in either direction. The thread looks up
  this order when a second instance of the series is requested. It may be out of date: each prefetch looks up
  its row.
- At most as many frames are prefetched as were requested in a row. A client whose requests are spread over
  several workers has gaps in its steps, and few frames are prefetched for it in vain.
- A request elsewhere drops the prefetches of its sequence.
- A client that is alone may occupy all processes. If other sequences are read too, one process stays idle.
- A prefetch that fails is dropped. The request for its frame has the error.
- Memory is bounded: SEQUENCES access patterns of a few places each, and INSTANCES places of series.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.json.values import whole
from streamsrv.errors import StreamsrvError
from streamsrv.pixels.tasks import FrameJob
from streamsrv.plans.selection import Selection
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import Query
from streamsrv.store import InstanceRow, Store, instance_attributes

log = logging.getLogger("streamsrv.pixels")

# Access patterns that are kept, and sequences that have prefetches.
SEQUENCES, QUEUED = 64, 8
# Requested places that are kept of a sequence (several clients may read it), and prefetched ones.
PLACES, PREFETCHED = 4, 8
ALONE = 1.0  # seconds without a request in another sequence
# The order of 300 instances is looked up in 5 ms, and takes 40 kB.
INSTANCES, LONGEST = 20_000, 2_000
INSTANCE_NUMBER = "00200013"
LAST = 1 << 40  # place of an instance without a number

Place: TypeAlias = int | str  # a frame index, or a SOP instance UID
MakeJob: TypeAlias = Callable[[Selection, InstanceRow, int], FrameJob]


@dataclass(slots=True, eq=False)
class AccessPattern:
    """The places of a sequence, the latest last."""

    requested: deque[Place] = field(default_factory=lambda: deque(maxlen=PLACES))
    prefetched: deque[Place] = field(default_factory=lambda: deque(maxlen=PREFETCHED))

    def request(self, here: Place) -> Sequence[Place]:
        """The places before this one, the latest first. Empty if `here` is the latest: a request may be
        looked at twice."""
        if self.requested and self.requested[-1] == here:
            return ()
        if here in self.requested:  # a request of another client came between two looks
            self.requested.remove(here)
        before = tuple(reversed(self.requested))
        self.requested.append(here)
        return before


def following(here: int, before: Collection[int], most: int) -> list[int]:
    """The places ahead of `here`: as many as were requested in a row, at most `most`. Empty if no place in
    `before`, which begins with the latest, is a neighbour."""
    for place in before:
        if (step := here - place) == 1 or step == -1:
            break
    else:
        return []
    run = 1
    while here - (run + 1) * step in before:
        run += 1
    return [here + number * step for number in range(1, min(run, most) + 1)]


def series_order(store: Store, study: str, series: str) -> list[str]:
    """SOP instance UIDs by Instance Number, then by UID. Empty if there are more than LONGEST."""
    query = Query(Level.INSTANCE, study, series, wanted=LONGEST + 1)
    numbered = [
        (whole(instance_attributes(hit.instance_row), INSTANCE_NUMBER, LAST), hit.instance)
        for hit, _ in zip(store.index.search(query), range(LONGEST + 1), strict=False)
        if hit.instance is not None and hit.instance_row is not None
    ]
    return [uid for _, uid in sorted(numbered)] if len(numbered) <= LONGEST else []


class PrefetchThread:
    """Begins queued jobs, those of the latest sequence first, as long as `may_begin` says so. `begin` does
    not wait for the result. Thread-safe."""

    def __init__(self, may_begin: Callable[[], bool], begin: Callable[[FrameJob], None]) -> None:
        self._may_begin = may_begin
        self._begin = begin
        self._queue: OrderedDict[Hashable, Iterator[FrameJob]] = OrderedDict()
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, sequence: Hashable, jobs: Iterator[FrameJob]) -> None:
        """In place of the jobs that are left of this sequence. Takes the jobs one by one."""
        with self._lock:
            if not self._closed:
                self._queue[sequence] = jobs
                self._queue.move_to_end(sequence)
                if len(self._queue) > QUEUED:
                    self._queue.popitem(last=False)

    def drop(self, sequence: Hashable) -> None:
        if self._queue:
            with self._lock:
                self._queue.pop(sequence, None)

    def wake(self) -> None:
        """A process may be idle. Returns at once."""
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._serve, name="pixels-prefetch", daemon=True)
                with contextlib.suppress(RuntimeError):  # without a thread there is no prefetch
                    thread.start()
                    self._thread = thread
        self._awake.set()

    def _serve(self) -> None:
        while self._awake.wait() and not self._closed:
            self._awake.clear()
            self.run()

    def run(self) -> None:
        """Begins jobs until no process is idle. One thread at a time does so."""
        while self._queue and self._may_begin() and self._stepping.acquire(blocking=False):
            try:
                self._step()
            finally:
                self._stepping.release()

    def _step(self) -> None:
        with self._lock:
            sequence, jobs = next(reversed(self._queue.items()), (None, None))
        if jobs is None or self._begun(jobs):
            return
        with self._lock:
            if self._queue.get(sequence) is jobs:
                del self._queue[sequence]

    def _begun(self, jobs: Iterator[FrameJob]) -> bool:
        """Whether there may be another job."""
        try:
            for job in jobs:
                self._begin(job)
                return True
        except StreamsrvError:
            pass
        except Exception:
            log.exception("a prefetch failed")
        return False

    def close(self) -> None:
        """Waits for the job that is being begun."""
        with self._lock:
            self._closed = True
            self._queue.clear()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()


class Prefetch:
    """The access patterns of the clients of one pool, and the prefetches that follow from them. At most
    `most` frames ahead of a client; `look` wakes the thread as soon as a process is idle. Thread-safe."""

    def __init__(self, most: int, thread: PrefetchThread, look: Callable[[], None]) -> None:
        self.most = most
        self._thread = thread
        self._look = look
        self._lock = threading.Lock()
        self._patterns: OrderedDict[Hashable, AccessPattern] = OrderedDict()
        self._orders: SizedCache[tuple[str, ...], dict[str, int]] = SizedCache(
            INSTANCES, lambda order: len(order) + 1
        )
        self._latest: Hashable = None
        self._latest_at = self._other_at = -ALONE

    @property
    def is_alone(self) -> bool:
        """Whether all requests of the last second were for one sequence."""
        return time.monotonic() - self._other_at > ALONE

    def requested(
        self, store: Store, row: InstanceRow, index: int, representation: Hashable, make_job: MakeJob
    ) -> None:
        """A client requests this frame, in a representation of which `make_job` makes other frames. Takes
        microseconds."""
        if row.number_of_frames > 1:
            sequence: Hashable = row.record_id, representation
            pattern, before = self._request(sequence, index)
            places = following(index, [place for place in before if isinstance(place, int)], self.most)
            jobs = _jobs(store, row, pattern, range(row.number_of_frames), places, make_job)
        else:
            sequence = row.key[:2], representation
            pattern, before = self._request(sequence, row.key.instance)
            if not before:
                return
            order = self._orders.get(row.key[:2])
            if order is None or (order and row.key.instance not in order):
                self._put(sequence, self._first_jobs(store, row, pattern, make_job))
                return
            places = _following(order, row.key.instance, before, self.most)
            jobs = _jobs(store, row, pattern, list(order), places, make_job)
        if places:
            self._put(sequence, jobs)
        elif before:
            self._thread.drop(sequence)

    def _request(self, sequence: Hashable, here: Place) -> tuple[AccessPattern, Sequence[Place]]:
        """The access pattern, and the places that were requested before."""
        now = time.monotonic()
        with self._lock:
            if sequence != self._latest:
                self._other_at = self._latest_at
            self._latest, self._latest_at = sequence, now
            pattern = self._patterns.get(sequence)
            if pattern is None:
                pattern = self._patterns[sequence] = AccessPattern()
            self._patterns.move_to_end(sequence)
            if len(self._patterns) > SEQUENCES:
                self._patterns.popitem(last=False)
            return pattern, pattern.request(here)

    def _put(self, sequence: Hashable, jobs: Iterator[FrameJob]) -> None:
        self._thread.put(sequence, jobs)
        self._look()

    def _first_jobs(
        self, store: Store, row: InstanceRow, pattern: AccessPattern, make_job: MakeJob
    ) -> Iterator[FrameJob]:
        """Looks up the order of the series, and continues from the requests until then."""
        order = self._orders.get(row.key[:2])
        if order is None or row.key.instance not in order:
            order = {uid: place for place, uid in enumerate(series_order(store, *row.key[:2]))}
            self._orders.put(row.key[:2], order)
        here, *before = [str(uid) for uid in reversed(pattern.requested.copy())]
        places = _following(order, here, before, self.most)
        yield from _jobs(store, row, pattern, list(order), places, make_job)

    def close(self) -> None:
        self._thread.close()


def _following(order: dict[str, int], here: str, before: Iterable[Place], most: int) -> list[int]:
    if here not in order:
        return []
    return following(order[here], [order[uid] for uid in before if uid in order], most)


def _jobs(
    store: Store,
    row: InstanceRow,
    pattern: AccessPattern,
    sequence: Sequence[Place],
    places: Sequence[int],
    make_job: MakeJob,
) -> Iterator[FrameJob]:
    """The jobs of these places of the sequence, unless they were prefetched before."""
    for place in places:
        if 0 <= place < len(sequence) and (one := sequence[place]) not in pattern.prefetched:
            pattern.prefetched.append(one)
            key = row.key if isinstance(one, int) else (*row.key[:2], one)
            yield from _job(store, key, one if isinstance(one, int) else 0, make_job)


def _job(store: Store, key: tuple[str, str, str], index: int, make_job: MakeJob) -> Iterator[FrameJob]:
    """Holds the segment until the next job is taken."""
    selection = Selection(store, *key, [index])
    try:
        row = next(selection.rows())
        if index < row.number_of_frames:
            yield make_job(selection, row, index)
    finally:
        selection.release()

"""Who of a process writes to the index, and the group commit.

Strategy: one commit costs one wait for the disk whatever it holds. So requests queue, and the first of them
leads: in its own thread it begins a transaction, applies all that wait by then (up to SLICE_INSTANCES or
SLICE_BYTES), commits it durably, and wakes each of them with its result or its exception. While it commits,
the next ones gather; the first of those leads then. Nothing is handed to another thread by who is alone.

Who is about to decide something asks `catch_up` first: a commit that its writer did not live to announce is
seen by nobody until another writer begins.

A request that is refused before it wrote anything fails alone. If a write fails, the transaction is given up
and its requests are tried again one by one, so that only the one at fault fails.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import lmdb

from streamsrv.errors import StoreError, StreamsrvError
from streamsrv.store.index.batch import Batch
from streamsrv.store.index.environment import Environment, in_our_words
from streamsrv.store.rows import SLICE_BYTES, SLICE_INSTANCES

Result = TypeVar("Result")


@dataclass(slots=True)
class _Job(Generic[Result]):
    """`turn` is released when the job is over, or when its thread has to lead."""

    apply: Callable[[Batch], Result]
    instances: int
    size: int
    turn: Any = field(default_factory=threading.Lock)
    over: bool = False
    result: Result | None = None
    error: BaseException | None = None

    def finish(self, error: BaseException | None) -> None:
        self.error = error
        self.over = True
        self.turn.release()


def _nothing(batch: Batch) -> None:
    """To have begun is enough."""


class Writer:
    """`submit` from any thread."""

    def __init__(self, environment: Environment, keep_changes: int = 0) -> None:
        self._environment = environment
        self._keep_changes = keep_changes
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._waiting: deque[_Job[Any]] = deque()
        self._led = False  # some thread leads, or has been told to
        self._closed = False
        self._own = 0  # the number of our latest commit, known before readers are shown it

    def catch_up(self) -> None:
        """Whatever was committed, by writers that have died too, is seen from here on."""
        if self._environment.unseen() not in (0, self._own):
            self.submit(_nothing, instances=0)

    def submit(self, apply: Callable[[Batch], Result], *, instances: int = 1, size: int = 0) -> Result:
        """Blocks until the transaction that holds the request is durable."""
        job: _Job[Result] = _Job(apply, instances, size)
        job.turn.acquire()
        with self._guard:
            if self._closed or self._environment.read_only:
                raise StoreError(
                    "the index is closed" if self._closed else "the index is open for reading only"
                )
            self._waiting.append(job)
            leads, self._led = not self._led, True
        if not leads:
            job.turn.acquire()
        if not job.over:
            self._lead()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set by who led unless there is an error

    def close(self) -> None:
        """What was submitted before is committed first."""
        with self._guard:
            self._closed = True
            while self._led:
                self._idle.wait()

    def _lead(self) -> None:
        """Called by the first of those that wait."""
        try:
            for job in self._commit(None):
                self._commit([job])
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting[0].turn.release()
            else:
                self._led = False
                self._idle.notify_all()

    def _slice(self) -> list[_Job[Any]]:
        """What one transaction takes of those that wait: the first, and as many more as there is room for."""
        jobs: list[_Job[Any]] = []
        instances = size = 0
        with self._guard:
            while self._waiting:
                job = self._waiting[0]
                instances, size = instances + job.instances, size + job.size
                if jobs and (instances > SLICE_INSTANCES or size > SLICE_BYTES):
                    break
                jobs.append(self._waiting.popleft())
        return jobs

    def _commit(self, chosen: list[_Job[Any]] | None) -> list[_Job[Any]]:
        """Commit these jobs, or a slice of those that wait. Returns those of a transaction that failed, if
        they were several and nobody has been told: to be tried one by one."""
        refused: list[tuple[_Job[Any], BaseException]] = []
        jobs, environment = chosen, self._environment
        try:
            environment.require_files()
            with environment.lmdb.begin(write=True) as transaction:
                # Until here another process may have written: some more have come meanwhile.
                jobs = jobs or self._slice()
                batch = Batch(transaction, environment.handles, self._keep_changes)
                applied = []
                for job in jobs:
                    try:
                        job.result = job.apply(batch)
                        applied.append(job)
                    except StreamsrvError as error:
                        if batch.writing:
                            raise
                        refused.append((job, error))
                batch.finish()
                # One that writes nothing leaves its number to the next.
                wrote = any(job.apply is not _nothing for job in applied)
                self._own = transaction.id() if wrote else 0
        except BaseException as error:
            self._own = 0
            jobs = jobs or self._slice()
            if len(jobs) > 1:
                return jobs
            words = in_our_words(error, "writing to the index") if isinstance(error, lmdb.Error) else error
            for job in jobs:
                job.finish(words)
            return []
        for job in applied:
            job.finish(None)
        for job, reason in refused:
            job.finish(reason)
        return []

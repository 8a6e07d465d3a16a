"""The writer of the index in one process, and its group commit.

Strategy: a commit of any size costs one wait for the disk. So requests queue, and the first of them
leads. In its own thread it begins a transaction and applies all waiting requests, up to SLICE_INSTANCES or
SLICE_BYTES. It commits them durably, and wakes each with its result or its exception. New requests queue
meanwhile, and the first of them leads next. A request that is alone needs no other thread.

A commit is invisible if its writer died before it announced it, until another writer begins. So a caller that
decides by the content calls `catch_up` first.

A request that is refused before it wrote anything fails alone. If a write fails, the transaction is aborted
and its requests are tried again one by one, so that only the faulty one fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from streamsrv.errors import StoreError, StreamsrvError
from streamsrv.store.index.batch import Batch
from streamsrv.store.ordered_map import OrderedMap, Transaction
from streamsrv.store.rows import SLICE_BYTES, SLICE_INSTANCES

Result = TypeVar("Result")
# Makes a Batch from its transaction, the handles of the maps, and the bound of the log of changes.
BatchFactory: TypeAlias = Callable[[Transaction, dict[str, Any], int], Batch]


@dataclass(slots=True)
class _Submission(Generic[Result]):
    """`turn` is released when the job is over, or when its thread must lead."""

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
    """An empty write makes earlier commits visible."""


class Writer:
    """`submit` from any thread."""

    def __init__(self, environment: OrderedMap, keep_changes: int = 0, batch: BatchFactory = Batch) -> None:
        self._environment = environment
        self._batch = batch
        self._keep_changes = keep_changes
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._waiting: deque[_Submission[Any]] = deque()
        self._led = False  # a thread leads, or has been chosen to
        self._closed = False
        self._own = 0  # the number of our latest commit, even before readers see it

    def catch_up(self) -> None:
        """Make all commits visible, also those of dead writers."""
        if self._environment.unseen() not in (0, self._own):
            self.submit(_nothing, instances=0)

    def submit(self, apply: Callable[[Batch], Result], *, instances: int = 1, size: int = 0) -> Result:
        """Blocks until the transaction that holds the request is durable."""
        job: _Submission[Result] = _Submission(apply, instances, size)
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
        return job.result  # type: ignore[return-value]  # set by the leader unless there is an error

    def close(self) -> None:
        """Waits for earlier requests."""
        with self._guard:
            self._closed = True
            while self._led:
                self._idle.wait()

    def _lead(self) -> None:
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

    def _slice(self) -> list[_Submission[Any]]:
        """The jobs of one transaction: the first waiting one, and as many more as fit."""
        jobs: list[_Submission[Any]] = []
        instances = size = 0
        with self._guard:
            while self._waiting:
                job = self._waiting[0]
                instances, size = instances + job.instances, size + job.size
                if jobs and (instances > SLICE_INSTANCES or size > SLICE_BYTES):
                    break
                jobs.append(self._waiting.popleft())
        return jobs

    def _commit(self, chosen: list[_Submission[Any]] | None) -> list[_Submission[Any]]:
        """Commit these jobs, or a slice of the waiting ones. If a transaction of several jobs fails, returns
        them, to be tried one by one."""
        refused: list[tuple[_Submission[Any], BaseException]] = []
        jobs, environment = chosen, self._environment
        try:
            environment.require_files()
            with environment.begin() as transaction:
                # Another process may have been writing: more jobs have come meanwhile.
                jobs = jobs or self._slice()
                batch = self._batch(transaction, environment.handles, self._keep_changes)
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
                # A transaction that writes nothing leaves its number to the next.
                wrote = any(job.apply is not _nothing for job in applied)
                self._own = transaction.id() if wrote else 0
        except BaseException as error:
            self._own = 0
            jobs = jobs or self._slice()
            if len(jobs) > 1:
                return jobs
            error = environment.failure(error, "writing to the index")
            for job in jobs:
                job.finish(error)
            return []
        for job in applied:
            job.finish(None)
        for job, reason in refused:
            job.finish(reason)
        return []

"""The one thread of a process that writes to the index, and the group commit.

Strategy: LMDB's writer is bound to its thread, and one commit costs one wait for the disk whatever it holds.
So requests queue; the thread takes all that wait (up to SLICE_INSTANCES or SLICE_BYTES), applies them in one
transaction, commits it durably, and wakes each of them with its result or its exception. While it commits,
the next ones gather.

Who is about to decide something asks `catch_up` first: a commit that its writer did not live to announce is
seen by nobody until another writer begins.

A request that is refused before it wrote anything fails alone. If a write fails, the transaction is given up
and its requests are tried again one by one, so that only the one at fault fails.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import lmdb

from streamsrv.errors import StoreError, StreamsrvError
from streamsrv.store.index_batch import Batch
from streamsrv.store.index_environment import Environment, in_our_words

SLICE_INSTANCES = 1000  # a transaction of these takes 20 to 40 ms: what others wait for it
SLICE_BYTES = 16 << 20  # dirty pages are held in memory until the commit

Result = TypeVar("Result")


@dataclass(slots=True)
class _Job(Generic[Result]):
    apply: Callable[[Batch], Result]
    instances: int
    size: int
    done: Any = field(default_factory=threading.Lock)
    result: Result | None = None
    error: BaseException | None = None

    def finish(self, error: BaseException | None) -> None:
        self.error = error
        self.done.release()


def _nothing(batch: Batch) -> None:
    """To have begun is enough."""


class Writer:
    """`submit` from any thread. The writer thread starts with the first request."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._own = 0  # the number of our latest commit, known before readers are shown it

    def catch_up(self) -> None:
        """Whatever was committed, by writers that have died too, is seen from here on."""
        if self._environment.unseen() not in (0, self._own):
            self.submit(_nothing, instances=0)

    def submit(self, apply: Callable[[Batch], Result], *, instances: int = 1, size: int = 0) -> Result:
        """Blocks until the transaction that holds the request is durable."""
        job: _Job[Result] = _Job(apply, instances, size)
        job.done.acquire()
        with self._starting:
            if self._closed or self._environment.read_only:
                raise StoreError(
                    "the index is closed" if self._closed else "the index is open for reading only"
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="index-writer", daemon=True)
                self._thread.start()
            self._queue.put(job)
        job.done.acquire()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set by the writer thread unless there is an error

    def close(self) -> None:
        """What was submitted before is committed first."""
        with self._starting:
            self._closed = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        for jobs in self._slices():
            if self._commit(jobs):
                continue
            for job in jobs:
                self._commit([job])

    def _slices(self) -> Iterator[list[_Job[Any]]]:
        held: _Job[Any] | None = None
        while (job := held or self._queue.get()) is not None:
            jobs, instances, size, held = [job], job.instances, job.size, None
            while instances < SLICE_INSTANCES and size < SLICE_BYTES:
                try:
                    held = self._queue.get_nowait()
                except queue.Empty:
                    break
                if held is None:
                    yield jobs
                    return
                instances, size = instances + held.instances, size + held.size
                if instances > SLICE_INSTANCES or size > SLICE_BYTES:
                    break
                jobs.append(held)
                held = None
            yield jobs

    def _commit(self, jobs: list[_Job[Any]]) -> bool:
        """False if a transaction of several failed and nobody has been told: to be tried one by one."""
        refused: list[tuple[_Job[Any], BaseException]] = []
        environment = self._environment
        try:
            with environment.lmdb.begin(write=True) as transaction:
                batch = Batch(transaction, environment.handles)
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
            if len(jobs) > 1:
                return False
            words = in_our_words(error, "writing to the index") if isinstance(error, lmdb.Error) else error
            for job in jobs:
                job.finish(words)
            return True
        for job in applied:
            job.finish(None)
        for job, reason in refused:
            job.finish(reason)
        return True

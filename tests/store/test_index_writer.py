"""Group commit when something goes wrong: whoever is at fault fails, and nobody else."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from index_examples import new_instance

from streamsrv.errors import InsufficientStorage, StoreCorrupt, StoreError
from streamsrv.store.index import environment as index_environment
from streamsrv.store.index.batch import Batch
from streamsrv.store.index.environment import Environment, store_error
from streamsrv.store.index.index import Index
from streamsrv.store.index.writer import SLICE_INSTANCES, Writer
from streamsrv.store.rows import SegmentRow


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment(tmp_path / "index", read_only=False)
    yield opened
    opened.close()


class Gate:
    """Holds a thread that leads inside its transaction, so that what comes meanwhile shares the next one."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._entered, self._leave = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self.results: dict[int, Any] = {}

    def _wait(self, _: Batch) -> None:
        self._entered.set()
        assert self._leave.wait(10)

    def run(self, *requests: Callable[[Batch], Any], instances: int = 1, size: int = 0) -> list[Any]:
        """The results or exceptions of requests that wait together, in their order."""
        self._start(-1, self._wait, 1, 0)
        assert self._entered.wait(10)
        for number, request in enumerate(requests):
            self._start(number, request, instances, size)
        while len(self._writer._waiting) < len(requests):  # submitted, and in the queue
            threading.Event().wait(0.001)
        self._leave.set()
        for thread in self._threads:
            thread.join(10)
        return [self.results[number] for number in range(len(requests))]

    def _start(self, number: int, request: Callable[[Batch], Any], instances: int, size: int) -> None:
        def body() -> None:
            try:
                self.results[number] = self._writer.submit(request, instances=instances, size=size)
            except Exception as error:
                self.results[number] = error

        self._threads.append(threading.Thread(target=body))
        self._threads[-1].start()


def refusing(batch: Batch) -> None:
    raise StoreCorrupt("refused")


def failing_late(batch: Batch) -> None:
    batch.add_segment()
    batch.writing = True
    raise StoreCorrupt("found while writing")


def failing_below(batch: Batch) -> None:
    batch.add_segment()
    raise lmdb.MapFullError("full")


def surprising(batch: Batch) -> None:
    batch.add_segment()
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (refusing, StoreCorrupt),
        (failing_late, StoreCorrupt),
        (failing_below, InsufficientStorage),
        (surprising, ZeroDivisionError),
    ],
)
def test_neighbours_are_not_harmed(
    environment: Environment, fault: Callable[[Batch], Any], expected: type[Exception]
) -> None:
    writer = Writer(environment)
    results = Gate(writer).run(Batch.add_segment, fault, Batch.add_segment)
    writer.close()
    assert sorted(result for result in results if isinstance(result, int)) == [1, 2]
    assert [type(result) for result in results if not isinstance(result, int)] == [expected]


@pytest.mark.parametrize(
    ("instances", "size"), [(SLICE_INSTANCES, 0), (SLICE_INSTANCES // 2 + 1, 0), (1, 9 << 20)]
)
def test_slices_are_bounded(environment: Environment, instances: int, size: int) -> None:
    """Each of these is a transaction of its own."""
    seen: list[int] = []
    writer = Writer(environment)

    def note(batch: Batch) -> None:
        seen.append(id(batch))
        batch.add_segment()
        kept.append(batch)  # so that no id comes back

    kept: list[Batch] = []
    Gate(writer).run(note, note, note, instances=instances, size=size)
    writer.close()
    assert len(set(seen)) == 3


def test_small_requests_share_a_transaction(environment: Environment) -> None:
    seen: set[int] = set()
    kept: list[Batch] = []
    writer = Writer(environment)

    def note(batch: Batch) -> None:
        kept.append(batch)
        seen.add(id(batch))

    Gate(writer).run(*[note] * 20)
    writer.close()
    assert len(seen) == 1


def test_who_is_alone_commits_in_its_own_thread(environment: Environment) -> None:
    threads: list[int] = []
    writer = Writer(environment)
    for _ in range(3):
        writer.submit(lambda _: threads.append(threading.get_ident()))
    writer.close()
    assert threads == [threading.get_ident()] * 3


def test_what_waits_when_the_index_is_closed_is_committed(environment: Environment) -> None:
    writer = Writer(environment)
    gate = Gate(writer)
    closing = threading.Thread(target=writer.close)

    def last(batch: Batch) -> int:
        closing.start()
        return batch.add_segment()

    assert sorted(gate.run(last, Batch.add_segment)) == [1, 2]
    closing.join(10)
    with pytest.raises(StoreError, match="closed"):
        writer.submit(Batch.add_segment)


def test_a_full_map_is_insufficient_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and deletes go on, and so do stores that fit."""
    monkeypatch.setattr(index_environment, "MAP_SIZE", 1 << 20)
    index = Index.open(tmp_path)
    index.add_segment()
    index.commit([new_instance(("1.1", "1.2", "1.3"))], segment=1, committed_end=0)
    big = new_instance(("1.1", "1.2", "1.4"), 2, table=bytes(16 * 100_000))
    with pytest.raises(InsufficientStorage, match="no space"):
        index.commit([big], segment=1, committed_end=0)
    assert index.count("1.1") == 1
    index.commit([new_instance(("1.1", "1.2", "1.5"), 3)], segment=1, committed_end=0)
    assert index.delete(index.packed("1.1"), segment=1, committed_end=0, dead_bytes=0) == 2
    index.close()


def test_errors_store_error() -> None:
    assert isinstance(store_error(lmdb.DiskError("x"), "writing"), InsufficientStorage)
    assert isinstance(
        store_error(lmdb.Error("mdb_txn_commit: No space left on device"), "w"), InsufficientStorage
    )
    assert isinstance(store_error(lmdb.CorruptedError("x"), "reading"), StoreCorrupt)
    other = store_error(lmdb.ReadersFullError("x"), "reading")
    assert (type(other), "reading" in other.detail) == (StoreError, True)


STORE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from index_examples import new_instance
from streamsrv.store.index.index import Index
index = Index.open(Path(sys.argv[1]))
worker = sys.argv[3]
for number in range(40):
    key = ("1.1", f"1.{worker}", f"1.{worker}.{number}")
    index.commit([new_instance(key, int(worker) * 1000 + number)], segment=1, committed_end=0)
index.close()
"""


def test_several_processes_write(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.put_segment(SegmentRow(1))
    here = str(Path(__file__).parent)
    workers = [
        subprocess.Popen([sys.executable, "-c", STORE, str(tmp_path), here, str(number)])
        for number in range(1, 4)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert index.count("1.1") == 120
    assert [change.sequence for change in index.changes()] == list(range(1, 121))
    assert index.segments()[1].live == 120 * 900
    index.close()

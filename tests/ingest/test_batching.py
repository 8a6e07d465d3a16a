"""Short bodies stored together: one sync and one commit for all, an outcome for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from test_ingest import BOUNDARY, STUDY, body, part10

from streamsrv.errors import (
    BadRequest,
    ContentTooLarge,
    InsufficientStorage,
    MultipartError,
    StoreError,
)
from streamsrv.ingest import Ingest, IngestLimits, InstanceBatch, StoreOutcome, store_batch
from streamsrv.ingest.response import StoreResult
from streamsrv.store.fileops import Buffer, FileOps
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate
from streamsrv.store.segments.transaction import SegmentTransaction
from streamsrv.store.store import Store, StoreOptions

TYPE = f"multipart/related; boundary={BOUNDARY}"


class Counting(FileOps):
    """Counts syncs; fails them, or writes that hold a word, when told to."""

    def __init__(self) -> None:
        self.syncs = 0
        self.sync_error: OSError | None = None
        self.failing_sync = 0
        self.full_at = b"\0no such bytes\0"

    def sync(self, fd: int) -> None:
        self.syncs += 1
        if self.sync_error is not None:
            raise self.sync_error
        if self.syncs == self.failing_sync:
            raise OSError(5, "Input/output error")
        super().sync(fd)

    def write(self, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
        if any(self.full_at in bytes(piece) for piece in pieces):
            raise OSError(28, "No space left on device")
        return super().write(fd, pieces, offset, keep=keep)


@pytest.fixture
def disk() -> Counting:
    return Counting()


@pytest.fixture
def store(tmp_path: Path, disk: Counting) -> Iterator[Store]:
    with Store.open(tmp_path / "data", StoreOptions(min_free=0), fileops=disk) as opened:
        yield opened


def short(
    store: Store,
    payload: bytes,
    study: str | None = None,
    content_type: str = TYPE,
    limits: IngestLimits | None = None,
    policy: OnDuplicate = OnDuplicate.REFUSE,
) -> Ingest:
    made = Ingest(store, content_type=content_type, study=study, limits=limits, on_duplicate=policy)
    made.feed(bytearray(payload + b"what was in the buffer before"), len(payload), stays=True)
    return made


def stored(outcome: StoreOutcome) -> list[str]:
    assert isinstance(outcome, StoreResult)
    return [item.instance for item in outcome.stored]


def failures(outcome: StoreOutcome) -> list[int]:
    assert isinstance(outcome, StoreResult)
    return [item.failure_reason for item in outcome.failed]


def payloads(store: Store) -> list[bytes]:
    rows = store.lookup(STUDY)
    with store.open_segments({row.location.segment for row in rows}) as lease:
        return [lease.pread(*row.location) for row in rows]


def test_all_are_stored_by_one_sync_and_one_commit(store: Store, disk: Counting) -> None:
    store_batch(store, [short(store, body(part10("1.2.3.4.99")))])  # makes the segment
    files = [part10(f"1.2.3.4.{number}", pixels=bytes([number]) * 32) for number in range(4)]
    bodies = [short(store, body(files[0])), short(store, body(*files[1:3]))]
    bodies.append(short(store, files[3], content_type="application/dicom"))
    syncs, moment = disk.syncs, store.version()
    outcomes = store_batch(store, bodies)
    assert (disk.syncs - syncs, store.version() - moment) == (1, 1)
    assert [stored(each) for each in outcomes] == [["1.2.3.4.0"], ["1.2.3.4.1", "1.2.3.4.2"], ["1.2.3.4.3"]]
    assert payloads(store)[:4] == files


def test_each_is_refused_for_itself(store: Store) -> None:
    """And leaves nothing behind, wherever it stands among the others."""
    limits = IngestLimits(instance_bytes=5000)
    good = [part10(f"1.2.3.4.{number}") for number in range(3)]
    bodies = [
        short(store, body(part10("1.2.3.4.7"))[:-9]),
        short(store, body(good[0])),
        short(store, b"rubbish"),
        short(store, body(part10("1.2.3.4.8"), part10("1.2.3.4.9", pixels=bytes(9000))), limits=limits),
        short(store, body(b"not DICOM", good[1], b"nor this")),
        short(store, body(part10("1.2.3.4.6")), study="1.2.4"),
        short(store, body(good[2])),
        short(store, body(part10("1.2.3.4.5", pixels=bytes(9000))), limits=limits),
    ]
    outcomes = store_batch(store, bodies)
    errors = [type(each) for each in outcomes]
    assert errors == [
        *(MultipartError, StoreResult, MultipartError, ContentTooLarge),
        *(StoreResult, StoreResult, StoreResult, ContentTooLarge),
    ]
    assert failures(outcomes[4]) == [43264, 43264]
    assert (stored(outcomes[5]), len(failures(outcomes[5]))) == ([], 1)
    assert payloads(store) == good
    segment = store.index.segments()[1]
    path = store.layout.segment(1)
    assert path.stat().st_size == segment.committed_end
    assert path.read_bytes().count(b"1.2.3.4.8") == 0


def test_nobody_is_left(store: Store, disk: Counting) -> None:
    bodies = [short(store, b"rubbish"), short(store, body(b"not DICOM"))]
    outcomes = store_batch(store, bodies)
    assert isinstance(outcomes[0], BadRequest)
    assert (stored(outcomes[1]), failures(outcomes[1])) == ([], [43264])
    assert store.layout.segment(1).stat().st_size == FIRST_RECORD


@pytest.mark.parametrize("policy", OnDuplicate)
def test_equal_keys_are_decided_one_after_the_other(store: Store, policy: OnDuplicate) -> None:
    """As if the second had come after the first had been answered."""
    first, other = part10("1.2.3.4.1"), part10("1.2.3.4.1", pixels=b"\3\4" * 16)
    third = part10("1.2.3.4.2")
    bodies = [short(store, body(each), policy=policy) for each in (first, other, third, first)]
    outcomes = store_batch(store, bodies)
    assert [bool(stored(each)) for each in outcomes] == {
        OnDuplicate.REFUSE: [True, False, True, False],
        OnDuplicate.ACCEPT_IDENTICAL: [True, False, True, True],
        OnDuplicate.REPLACE: [True, True, True, True],
    }[policy]
    assert payloads(store) == [first, third]


@pytest.mark.parametrize("policy", OnDuplicate)
def test_within_a_body_the_first_wins(store: Store, policy: OnDuplicate) -> None:
    first, other = part10("1.2.3.4.1"), part10("1.2.3.4.1", pixels=b"\3\4" * 16)
    bodies = [short(store, body(*each), policy=policy) for each in ((first, other), (other, first))]
    outcomes = store_batch(store, bodies)
    assert (len(stored(outcomes[0])), len(failures(outcomes[0]))) == (1, 1)
    replaces, accepts = policy is OnDuplicate.REPLACE, policy is OnDuplicate.ACCEPT_IDENTICAL
    assert len(stored(outcomes[1])) == replaces + accepts
    assert payloads(store) == [other if replaces else first]


def test_a_body_stays_durable_if_the_next_slice_fails(store: Store, disk: Counting) -> None:
    """Of bodies with a key in common the second one is in a slice of its own."""
    store_batch(store, [short(store, body(part10("1.2.3.4.9")))])
    disk.failing_sync = disk.syncs + 2
    files = [part10("1.2.3.4.1", pixels=each * 32) for each in (b"a", b"b")]
    bodies = [short(store, body(each), policy=OnDuplicate.REPLACE) for each in files]
    outcomes = store_batch(store, bodies)
    assert stored(outcomes[0]) == ["1.2.3.4.1"]
    assert isinstance(outcomes[1], StoreError)
    assert payloads(store)[0] == part10("1.2.3.4.1", pixels=b"a" * 32)


def test_very_many_parts_fit_no_batch(store: Store) -> None:
    assert not short(store, body(*[b""] * 300)).fits_batch
    assert short(store, body(*[part10("1.2.3.4.1")] * 60)).fits_batch


def test_a_malformed_body_is_refused_when_it_has_been_received(store: Store) -> None:
    with pytest.raises(MultipartError):
        short(store, f"--{BOUNDARY}\r\nno header\r\n\r\n".encode())


def test_metadata_fit_no_batch(store: Store) -> None:
    content_type = 'multipart/related; type="application/dicom+json"; boundary=x'
    assert not Ingest(store, content_type=content_type).fits_batch


def test_a_write_that_fails_is_its_own_bodys(store: Store, disk: Counting) -> None:
    files = [part10(f"1.2.3.4.{number}") for number in range(3)]
    disk.full_at = b"1.2.3.4.1"
    bodies = [short(store, body(each)) for each in files]
    outcomes = store_batch(store, bodies)
    assert [stored(outcomes[0]), stored(outcomes[2])] == [["1.2.3.4.0"], ["1.2.3.4.2"]]
    assert isinstance(outcomes[1], InsufficientStorage)
    assert payloads(store) == [files[0], files[2]]


def test_a_sync_that_fails_has_failed_for_all(store: Store, disk: Counting) -> None:
    store_batch(store, [short(store, body(part10("1.2.3.4.9")))])
    disk.sync_error = OSError(5, "Input/output error")
    bodies = [short(store, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    outcomes = store_batch(store, bodies)
    assert [type(each) for each in outcomes] == [StoreError, StoreError]
    disk.sync_error = None
    assert len(store.lookup(STUDY)) == 1
    ingests = [short(store, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    again = store_batch(store, ingests)
    assert [stored(each) for each in again] == [["1.2.3.4.0"], ["1.2.3.4.1"]]


def test_a_store_that_cannot_be_begun_is_told_to_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> SegmentTransaction:
        raise InsufficientStorage("no space")

    monkeypatch.setattr(store, "begin", begin)
    bodies = [short(store, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    outcomes = store_batch(store, bodies)
    assert [type(each) for each in outcomes] == [InsufficientStorage, InsufficientStorage]


def test_nobody_is_forgotten_when_something_else_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def back_to(transaction: SegmentTransaction, end: int) -> None:
        raise OSError(5, "Input/output error")

    bodies = [short(store, body(part10("1.2.3.4.1")))]
    bodies += [short(store, b"rubbish"), short(store, body(part10("1.2.3.4.2")))]
    monkeypatch.setattr(SegmentTransaction, "back_to", back_to)
    outcomes = store_batch(store, bodies)
    assert [type(each) for each in outcomes] == [OSError, MultipartError, OSError]


def test_instances_that_come_one_after_the_other(store: Store) -> None:
    """Each has an outcome of its own. A source that fails leaves nothing."""
    limits = IngestLimits(instance_bytes=len(part10("1.2.3.4.1")) + 100)
    batch = InstanceBatch(store, lambda: Ingest(store, content_type="application/dicom", limits=limits))

    def broken() -> Iterator[bytes]:
        yield part10("1.2.3.4.5")[:200]
        raise OSError("the source ended")

    batch.take([part10("1.2.3.4.1")])
    batch.take([b"no DICOM"])
    with pytest.raises(OSError, match="the source ended"):
        batch.take(broken())
    batch.take([part10("1.2.3.4.2"), bytes(200)])
    batch.take([memoryview(part10("1.2.3.4.3"))[:150], part10("1.2.3.4.3")[150:]])
    batch.take([])
    batch.take([part10("1.2.3.4.1")])
    assert len(batch) == 6
    results = batch.commit()
    assert [stored(each) for each in results] == [["1.2.3.4.1"], [], [], ["1.2.3.4.3"], [], []]
    assert [failures(each) for each in results] == [[], [43264], [272], [], [], [45070]]
    assert sorted(payloads(store)) == sorted([part10("1.2.3.4.1"), part10("1.2.3.4.3")])


def test_instances_of_a_batch_that_is_given_up(store: Store) -> None:
    batch = InstanceBatch(store, lambda: Ingest(store, content_type="application/dicom"))
    batch.take([part10("1.2.3.4.1")])
    batch.abort()
    assert payloads(store) == []

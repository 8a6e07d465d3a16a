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
    UnsupportedMediaType,
)
from streamsrv.ingest import IngestLimits
from streamsrv.ingest.together import ShortBody, Together
from streamsrv.store.fileops import Buffer, FileOps
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate
from streamsrv.store.store import Store, StoreOptions
from streamsrv.store.transaction import Transaction

TYPE = f"multipart/related; boundary={BOUNDARY}"


class Counting(FileOps):
    """Counts syncs; fails them, or writes that hold a word, when told to."""

    def __init__(self) -> None:
        self.syncs = 0
        self.sync_error: OSError | None = None
        self.full_at = b"\0no such bytes\0"

    def sync(self, fd: int) -> None:
        self.syncs += 1
        if self.sync_error is not None:
            raise self.sync_error
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
    together: Together, payload: bytes, study: str | None = None, content_type: str = TYPE
) -> ShortBody:
    made = together.body(content_type, study)
    assert made is not None
    made.received(bytearray(payload + b"what was in the buffer before"), len(payload))
    return made


def stored(each: ShortBody) -> list[str]:
    assert each.error is None
    assert each.result is not None
    return [item.instance for item in each.result.stored]


def failures(each: ShortBody) -> list[int]:
    assert each.error is None
    assert each.result is not None
    return [item.failure_reason for item in each.result.failed]


def payloads(store: Store) -> list[bytes]:
    rows = store.lookup(STUDY)
    with store.open_segments({row.location.segment for row in rows}) as lease:
        return [lease.pread(*row.location) for row in rows]


def test_all_are_stored_by_one_sync_and_one_commit(store: Store, disk: Counting) -> None:
    together = Together(store)
    together.store([short(together, body(part10("1.2.3.4.99")))])  # makes the segment
    files = [part10(f"1.2.3.4.{number}", pixels=bytes([number]) * 32) for number in range(4)]
    bodies = [short(together, body(files[0])), short(together, body(*files[1:3]))]
    bodies.append(short(together, files[3], content_type="application/dicom"))
    syncs, moment = disk.syncs, store.moment()
    together.store(bodies)
    assert (disk.syncs - syncs, store.moment() - moment) == (1, 1)
    assert [stored(each) for each in bodies] == [["1.2.3.4.0"], ["1.2.3.4.1", "1.2.3.4.2"], ["1.2.3.4.3"]]
    assert payloads(store)[:4] == files


def test_each_is_refused_for_itself(store: Store) -> None:
    """And leaves nothing behind, wherever it stands among the others."""
    limits = IngestLimits(instance_bytes=5000)
    together = Together(store, limits=limits)
    good = [part10(f"1.2.3.4.{number}") for number in range(3)]
    bodies = [
        short(together, body(part10("1.2.3.4.7"))[:-9]),
        short(together, body(good[0])),
        short(together, b"rubbish"),
        short(together, body(part10("1.2.3.4.8"), part10("1.2.3.4.9", pixels=bytes(9000)))),
        short(together, body(b"not DICOM", good[1], b"nor this")),
        short(together, body(part10("1.2.3.4.6")), study="1.2.4"),
        short(together, body(good[2])),
        short(together, body(part10("1.2.3.4.5", pixels=bytes(9000)))),
    ]
    together.store(bodies)
    errors = [type(each.error) for each in bodies]
    assert errors == [
        *(MultipartError, type(None), MultipartError, ContentTooLarge),
        *(type(None), type(None), type(None), ContentTooLarge),
    ]
    assert failures(bodies[4]) == [43264, 43264]
    assert (stored(bodies[5]), len(failures(bodies[5]))) == ([], 1)
    assert payloads(store) == good
    segment = store.index.segments()[1]
    path = store.layout.segment(1)
    assert path.stat().st_size == segment.committed_end
    assert path.read_bytes().count(b"1.2.3.4.8") == 0


def test_nobody_is_left(store: Store, disk: Counting) -> None:
    together = Together(store)
    bodies = [short(together, b"rubbish"), short(together, body(b"not DICOM"))]
    together.store(bodies)
    assert isinstance(bodies[0].error, BadRequest)
    assert (stored(bodies[1]), failures(bodies[1])) == ([], [43264])
    assert store.layout.segment(1).stat().st_size == FIRST_RECORD


@pytest.mark.parametrize("policy", OnDuplicate)
def test_equal_keys_are_decided_one_after_the_other(store: Store, policy: OnDuplicate) -> None:
    """As if the second had come after the first had been answered."""
    together = Together(store, on_duplicate=policy)
    first, other = part10("1.2.3.4.1"), part10("1.2.3.4.1", pixels=b"\3\4" * 16)
    third = part10("1.2.3.4.2")
    bodies = [short(together, body(each)) for each in (first, other, third, first)]
    together.store(bodies)
    assert [bool(stored(each)) for each in bodies] == {
        OnDuplicate.REFUSE: [True, False, True, False],
        OnDuplicate.ACCEPT_IDENTICAL: [True, False, True, True],
        OnDuplicate.REPLACE: [True, True, True, True],
    }[policy]
    assert payloads(store) == [first, third]


def test_many_parts_are_left_to_others(store: Store) -> None:
    together = Together(store)
    assert short(together, body(*[b""] * 300)).long
    assert not short(together, body(*[part10("1.2.3.4.1")] * 60)).long


def test_a_malformed_body_is_refused_when_it_has_been_received(store: Store) -> None:
    with pytest.raises(MultipartError):
        short(Together(store), f"--{BOUNDARY}\r\nno header\r\n\r\n".encode())


def test_types_that_are_taken_alone_or_not_at_all(store: Store) -> None:
    together = Together(store)
    assert together.body('multipart/related; type="application/dicom+json"; boundary=x', None) is None
    for refused in (None, "text/plain", "multipart/related"):
        with pytest.raises(UnsupportedMediaType):
            together.body(refused, None)


def test_a_write_that_fails_is_its_own_bodys(store: Store, disk: Counting) -> None:
    together = Together(store)
    files = [part10(f"1.2.3.4.{number}") for number in range(3)]
    disk.full_at = b"1.2.3.4.1"
    bodies = [short(together, body(each)) for each in files]
    together.store(bodies)
    assert [stored(bodies[0]), stored(bodies[2])] == [["1.2.3.4.0"], ["1.2.3.4.2"]]
    assert isinstance(bodies[1].error, InsufficientStorage)
    assert payloads(store) == [files[0], files[2]]


def test_a_sync_that_fails_has_failed_for_all(store: Store, disk: Counting) -> None:
    together = Together(store)
    together.store([short(together, body(part10("1.2.3.4.9")))])
    disk.sync_error = OSError(5, "Input/output error")
    bodies = [short(together, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    together.store(bodies)
    assert [type(each.error) for each in bodies] == [StoreError, StoreError]
    disk.sync_error = None
    assert len(store.lookup(STUDY)) == 1
    again = [short(together, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    together.store(again)
    assert [stored(each) for each in again] == [["1.2.3.4.0"], ["1.2.3.4.1"]]


def test_a_store_that_cannot_be_begun_is_told_to_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> Transaction:
        raise InsufficientStorage("no space")

    monkeypatch.setattr(store, "begin", begin)
    together = Together(store)
    bodies = [short(together, body(part10(f"1.2.3.4.{number}"))) for number in range(2)]
    together.store(bodies)
    assert [type(each.error) for each in bodies] == [InsufficientStorage, InsufficientStorage]


def test_nobody_is_forgotten_when_something_else_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def back_to(transaction: Transaction, end: int) -> None:
        raise OSError(5, "Input/output error")

    together = Together(store)
    bodies = [short(together, body(part10("1.2.3.4.1")))]
    bodies += [short(together, b"rubbish"), short(together, body(part10("1.2.3.4.2")))]
    monkeypatch.setattr(Transaction, "back_to", back_to)
    together.store(bodies)
    assert [type(each.error) for each in bodies] == [OSError, MultipartError, OSError]

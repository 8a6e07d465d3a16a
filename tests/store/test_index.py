"""The index from outside: what was committed is found, what was deleted is not, and segments and changes keep
count."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_examples import new_instance, record_id

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import SegmentGone, StoreCorrupt, StoreError
from streamsrv.store.index import reading as index_reading
from streamsrv.store.index.index import Index
from streamsrv.store.rows import ChangeKind, InstanceKey, Location, NewInstance, SegmentRow


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(tmp_path / "index")
    assert opened.add_segment() == 1
    yield opened
    opened.close()


def commit(index: Index, *new: NewInstance, end: int = 0, dead: int = 0) -> None:
    index.commit(new, segment=1, committed_end=end, dead_bytes=dead)


A = InstanceKey("1.1", "1.1.1", "1.1.1.1")
B = InstanceKey("1.1", "1.1.1", "1.1.1.2")
C = InstanceKey("1.1", "1.1.2", "1.1.2.1")
D = InstanceKey("1.10", "1.1.1", "1.1.1.1")


def test_rows_come_back_equal(index: Index) -> None:
    new = new_instance(
        A, frame_kind=FrameKind.BITS, deflated=True, pixel_offset=1 << 40, frame_stride=(1 << 63) + 5
    )
    commit(index, new)
    assert index.existing([A, B]) == [new.row, None]
    assert index.lookup(*A) == [new.row]


def test_lookup_keeps_to_its_target(index: Index) -> None:
    """Study 1.1 is not the beginning of study 1.10."""
    rows = {key: new_instance(key, number) for number, key in enumerate((A, B, C, D))}
    commit(index, *rows.values())
    assert [row.key for row in index.lookup("1.1")] == [A, B, C]
    assert [row.key for row in index.lookup("1.1", "1.1.1")] == [A, B]
    assert [row.key for row in index.lookup("1.10")] == [D]
    assert index.lookup("1") == index.lookup("1.1", "1.1") == []
    assert index.lookup("1.1", "1.1.2", "1.1.1.1") == []
    assert (index.count("1.1"), index.count("1.1", "1.1.1"), index.count("1.2")) == (3, 2, 0)


def test_lookup_pages_by_key(index: Index) -> None:
    keys = [InstanceKey("1.1", f"1.1.{number % 3}", f"9.{number}") for number in range(50)]
    commit(index, *(new_instance(key, number) for number, key in enumerate(keys)))
    seen: list[InstanceKey] = []
    while page := index.lookup("1.1", after=seen[-1] if seen else None, limit=7):
        seen += [row.key for row in page]
    assert seen == sorted(keys)
    assert index.lookup(*keys[0], after=keys[0]) == []


def test_an_instance_with_entries_of_its_frame_table(index: Index) -> None:
    table = b"".join(struct.pack("<QQ", number * 10, number) for number in range(1500))
    many = new_instance(A, table=table, frame_kind=FrameKind.TABLE, number_of_frames=1500)
    commit(index, many, new_instance(B, 2, frame_kind=FrameKind.NATIVE))
    assert index.instance(A, [1499, 0, 1500]) == (index.lookup(*A)[0], [(14990, 1499), (0, 0)])
    assert index.instance(A) == (index.lookup(*A)[0], [])
    assert index.instance(B, [0]) == (index.lookup(*B)[0], [])
    assert index.instance(InstanceKey("1", "2", "3"), [0]) is None


def test_a_row_that_was_replaced_is_unpacked_anew(index: Index) -> None:
    commit(index, new_instance(A))
    found = index.instance(A)
    assert found is not None
    assert index.instance(A) == found
    index.commit([new_instance(A, 2)], segment=1, committed_end=0, replaced=[found[0]])
    again = index.instance(A)
    assert again is not None
    assert again[0].record_id != found[0].record_id
    assert again[0] == index.lookup(*A)[0]


def test_frame_entries_over_chunks(index: Index) -> None:
    table = b"".join(struct.pack("<QQ", number * 10, number) for number in range(5000))
    commit(index, new_instance(A, table=table), new_instance(B, 2, table=table[:160]))
    row = index.lookup(*A)[0]
    assert index.frame_entries(row, [4999, 0, 1023, 1024, 0]) == [
        (49990, 4999),
        (0, 0),
        (10230, 1023),
        (10240, 1024),
        (0, 0),
    ]
    with pytest.raises(StoreCorrupt, match="frame table"):
        index.frame_entries(index.lookup(*B)[0], [10])


def test_metadata_in_order_and_in_chunks(index: Index) -> None:
    texts = {A: b'{"a":1}', B: b'{"b":"' + b"x" * 700_000 + b'"}', C: b'{"c":1}'}
    commit(index, *(new_instance(key, number, text=text) for number, (key, text) in enumerate(texts.items())))
    rows = index.lookup("1.1")
    chunks = list(index.metadata(rows))
    assert max(map(len, chunks)) <= 256 * 1024
    assert b"".join(chunks) == b"".join(texts.values())
    assert list(index.metadata([])) == []


@pytest.mark.parametrize(("rows", "size"), [(1, 1 << 20), (2, 1 << 20), (256, 1), (256, 1 << 20)])
def test_short_metadata_are_read_together(
    index: Index, monkeypatch: pytest.MonkeyPatch, rows: int, size: int
) -> None:
    monkeypatch.setattr(index_reading, "SHORT_A_BATCH", rows)
    monkeypatch.setattr(index_reading, "SHORT_BYTES", size)
    lengths = [5, 9, 256 * 1024, 256 * 1024 + 1, 7, 600_000, 600_001, 5, 6, 7, 8]
    keys = [InstanceKey("1.1", "1.1.1", f"9.{number:02d}") for number in range(len(lengths))]
    texts = [(b'{"%02d' % number).ljust(length, b"x") for number, length in enumerate(lengths)]
    commit(
        index,
        *(
            new_instance(key, number, text=text)
            for number, (key, text) in enumerate(zip(keys, texts, strict=True))
        ),
    )
    assert b"".join(index.metadata(index.lookup("1.1"))) == b"".join(texts)
    assert list(index.metadata(index.lookup("1.1")[7:][::-1])) == texts[7:][::-1]


def test_one_stale_row_among_many_is_told(index: Index) -> None:
    keys = [InstanceKey("1.1", "1.1.1", f"9.{number}") for number in range(5)]
    commit(index, *(new_instance(key, number) for number, key in enumerate(keys)))
    rows = index.lookup("1.1")
    index.delete(index.packed("1.1")[2:3], segment=1, committed_end=0, dead_bytes=0)
    with pytest.raises(SegmentGone):
        list(index.metadata(rows))
    with pytest.raises(SegmentGone):
        list(index.metadata([*rows[:2], rows[3]._replace(record_id=bytes(16)), rows[4]]))


def test_metadata_of_more_instances_than_a_batch(index: Index) -> None:
    keys = [InstanceKey("1.1", "1.1.1", f"9.{number}") for number in range(150)]
    commit(
        index,
        *(
            new_instance(key, number, text=f'{{"{key.instance}":0}}'.encode())
            for number, key in enumerate(keys)
        ),
    )
    rows = index.lookup("1.1")
    assert list(index.metadata(rows)) == [f'{{"{row.key.instance}":0}}'.encode() for row in rows]


def test_bulk_values(index: Index) -> None:
    long_path = "/".join(["00480105/0"] * 60) + "/00282000"
    values = [
        BulkValue("7FE00010", "OW", 400, 500),
        BulkValue(long_path, "OB", 1 << 40, 7),
        BulkValue("00282000", "OB", 1, 2),
    ]
    commit(index, new_instance(A, bulk=values), new_instance(B, 2, bulk=values[:1]))
    assert index.bulk_value(A, long_path) == values[1]
    assert index.bulk_value(A, "7FE00010") == values[0]
    assert index.bulk_value(B, "00282000") is index.bulk_value(C, "7FE00010") is None
    listed = index.bulk_values(index.lookup(*A)[0])
    assert sorted(listed, key=repr) == sorted(values, key=repr)
    assert index.bulk_values(index.lookup(*A)[0], after=listed[0].path, limit=1) == listed[1:2]


def test_stale_rows_are_told(index: Index) -> None:
    old = new_instance(A, text=b'{"old":1}', table=bytes(16))
    commit(index, old)
    index.commit([new_instance(A, 2, text=b'{"new":1}')], segment=1, committed_end=0, replaced=[old.row])
    with pytest.raises(SegmentGone):
        list(index.metadata([old.row]))
    with pytest.raises(SegmentGone):
        index.frame_entries(old.row, [0])
    assert list(index.metadata(index.lookup(*A))) == [b'{"new":1}']


def test_nothing_is_stored_twice(index: Index) -> None:
    commit(index, new_instance(A))
    with pytest.raises(StoreCorrupt, match="already"):
        commit(index, new_instance(B, 2), new_instance(A, 3))
    with pytest.raises(StoreCorrupt, match="already"):
        index.commit([new_instance(A, 3)], segment=1, committed_end=0, replaced=[new_instance(A, 2).row])
    with pytest.raises(StoreCorrupt, match="twice"):
        commit(index, new_instance(B, 2), new_instance(B, 3))
    assert [row.record_id for row in index.lookup("1.1")] == [record_id(1)]
    assert index.statistics()["changes"] == 1


def test_malformed_keys_never_reach_the_index(index: Index) -> None:
    for key in (("1.1", "", "1"), ("1.1", "1\x00", "1"), ("1" * 65, "1", "1"), ("1.1", "x", "1")):
        with pytest.raises(StoreError, match="UID"):
            commit(index, new_instance(key))
    assert index.statistics()["instances"] == 0


def test_segments_keep_count(index: Index) -> None:
    commit(index, new_instance(A), new_instance(B, 2), end=2900, dead=77)
    assert index.segment(1) == SegmentRow(1, 2900, 1800, 77, False)
    assert index.add_segment() == 2
    index.commit(
        [new_instance(A, 5, location=Location(2, 64, 50))],
        segment=2,
        committed_end=200,
        replaced=index.lookup(*A),
    )
    assert index.segments() == {1: SegmentRow(1, 2900, 900, 977, False), 2: SegmentRow(2, 200, 50, 0, False)}
    assert index.delete(index.packed("1.1"), segment=2, committed_end=300, dead_bytes=11) == 2
    assert index.segments() == {1: SegmentRow(1, 2900, 0, 1877, False), 2: SegmentRow(2, 300, 0, 61, False)}
    index.seal(1)
    assert index.segments()[1].sealed
    index.drop_segment(1)
    assert index.segment(1) is None
    assert index.add_segment() == 3


def test_segments_that_are_not_there(index: Index) -> None:
    with pytest.raises(StoreCorrupt, match="segment 9"):
        index.commit([new_instance(A)], segment=9, committed_end=0)
    with pytest.raises(StoreCorrupt, match="segment 9"):
        index.seal(9)
    commit(index, new_instance(A))
    with pytest.raises(StoreError, match="still holds"):
        index.drop_segment(1)
    index.put_segment(SegmentRow(40, 10, 0, 10, True))
    assert index.segment(40) == SegmentRow(40, 10, 0, 10, True)
    assert index.add_segment() == 41


def test_delete_leaves_what_was_replaced_meanwhile(index: Index) -> None:
    commit(index, new_instance(A), new_instance(B, 2))
    stale = index.packed("1.1")
    index.commit([new_instance(A, 3)], segment=1, committed_end=0, replaced=index.lookup(*A))
    assert index.delete(stale, segment=1, committed_end=0, dead_bytes=0) == 1
    assert [row.record_id for row in index.lookup("1.1")] == [record_id(3)]
    assert index.delete(stale, segment=1, committed_end=0, dead_bytes=0) == 0


def test_delete_goes_where_an_instance_was_moved_to(index: Index) -> None:
    commit(index, new_instance(A), new_instance(B, 2))
    stale = index.packed("1.1")
    index.add_segment()
    index.relocate([(index.lookup(*A)[0], Location(2, 64, 900))], segment=2, committed_end=2000)
    assert index.delete(stale, segment=1, committed_end=0, dead_bytes=0) == 2
    assert index.segments()[2] == SegmentRow(2, 2000, 0, 900, False)


def test_a_page_ends_where_its_target_does(index: Index) -> None:
    keys = [InstanceKey(study, "1.1.1", f"9.{n:03}") for study in ("1.1", "1.10", "1.2") for n in range(130)]
    commit(index, *(new_instance(key, number) for number, key in enumerate(keys)))
    for study in ("1.1", "1.10", "1.2"):
        own = [key for key in keys if key.study == study]
        assert [row.key for row in index.lookup(study)] == own
        assert [row.key for row in index.lookup(study, after=own[3], limit=70)] == own[4:74]
        assert [row.key for row in index.lookup(study, after=own[100], limit=70)] == own[101:]
        assert index.lookup(study, limit=0) == []


def test_deleting_everything_leaves_no_row(index: Index) -> None:
    bulk = [BulkValue("7FE00010", "OW", 400, 500)]
    keys = (A, B, C, D)
    commit(
        index,
        *(new_instance(key, number, table=bytes(16 * 2000), bulk=bulk) for number, key in enumerate(keys)),
    )
    for key in keys:
        index.delete(index.packed(*key), segment=1, committed_end=0, dead_bytes=0)
    left = {
        name: count for name, count in index.statistics().items() if count and not name.startswith("bytes")
    }
    assert left == {"changes": 8, "segments": 1, "about": 7}


def test_relocate_is_compare_and_set(index: Index) -> None:
    commit(index, new_instance(A), new_instance(B, 2))
    a, b = index.lookup("1.1")
    index.add_segment()
    index.commit([new_instance(B, 3)], segment=1, committed_end=0, replaced=[b])
    moves = [(a, Location(2, 64, 900)), (b, Location(2, 1064, 900)), (new_instance(C).row, Location(2, 9, 9))]
    assert index.relocate(moves, segment=2, committed_end=2000) == [True, False, False]
    assert index.lookup(*A)[0].location == Location(2, 64, 900)
    assert index.lookup(*B)[0].location == Location(1, 3000, 900)
    assert index.segments()[2] == SegmentRow(2, 2000, live=900, dead=900 + 9)
    assert [row.key for row in index.instances_in({2})] == [A]
    assert list(index.metadata(index.lookup("1.1"))) == [b"{}", b"{}"]


def test_changes_are_in_commit_order(index: Index) -> None:
    commit(index, new_instance(B, 1), new_instance(A, 2))
    index.commit([new_instance(A, 3)], segment=1, committed_end=0, replaced=index.lookup(*A))
    index.delete(index.packed(*B), segment=1, committed_end=0, dead_bytes=0)
    changes = index.changes()
    assert [(change.sequence, change.kind, change.key) for change in changes] == [
        (1, ChangeKind.STORED, B),
        (2, ChangeKind.STORED, A),
        (3, ChangeKind.REPLACED, A),
        (4, ChangeKind.DELETED, B),
    ]
    assert [change.record_id for change in changes] == [record_id(number) for number in (1, 2, 3, 1)]
    assert index.changes(after=2, limit=1) == changes[2:3]
    assert index.changes(after=4) == []


def test_changes_of_instances_deleted_together(index: Index) -> None:
    """A page may begin and end among them."""
    commit(index, *(new_instance(InstanceKey("1.1", "1.2", f"1.3.{n}"), n) for n in range(1, 6)))
    index.delete(index.packed("1.1"), segment=1, committed_end=0, dead_bytes=0)
    changes = index.changes(5)
    assert [change.sequence for change in changes] == [6, 7, 8, 9, 10]
    assert [change.kind for change in changes] == [ChangeKind.DELETED] * 5
    assert [change.record_id for change in changes] == [record_id(number) for number in range(1, 6)]
    assert [index.changes(after, 2) for after in (5, 6, 9)] == [changes[:2], changes[1:3], changes[4:]]
    assert index.statistics()["changes"] == 6


@pytest.mark.parametrize("between", ["nothing", "a commit", "the same transaction"])
def test_a_delete_looks_again_if_anything_was_committed(index: Index, between: str) -> None:
    """Rows that were read before somebody else moved or replaced what they say are not believed."""
    index.add_segment()
    commit(index, new_instance(A, 1), new_instance(B, 2), end=2000)
    rows = index.packed("1.1")
    move = [(index.lookup(*A)[0], Location(2, 64, 900))]
    if between == "a commit":
        assert index.relocate(move, segment=2, committed_end=1000) == [True]
    if between == "the same transaction":
        index._writer.submit(
            lambda batch: (
                batch.relocate(move, 2, 1000),
                batch.delete(rows, 1, 2000, 0),
            )
        )
    else:
        assert index.delete(rows, segment=1, committed_end=2000, dead_bytes=0) == 2
    assert index.packed("1.1") == []
    dead = [1800, 0] if between == "nothing" else [1800, 900]
    assert [index.segments()[number].dead for number in (1, 2)] == dead
    assert [index.segments()[number].live for number in (1, 2)] == [0, 0]


def test_reopening_finds_everything(tmp_path: Path) -> None:
    first = Index.open(tmp_path)
    first.add_segment()
    commit(first, new_instance(A), end=1900)
    epoch = first.about()["epoch"]
    first.close()
    again = Index.open(tmp_path, read_only=True)
    assert [row.key for row in again.lookup("1.1")] == [A]
    assert again.about()["epoch"] == epoch
    with pytest.raises(StoreError, match="reading only"):
        again.seal(1)
    again.close()
    with pytest.raises(StoreError, match="closed"):
        first.seal(1)


def test_many_threads_share_transactions(index: Index) -> None:
    """Each request has its own answer, also when a neighbour in the same transaction is refused."""
    commit(index, new_instance(A))
    refused: list[int] = []

    def store(thread: int) -> None:
        for number in range(20):
            try:
                key = A if number == thread else InstanceKey("2", f"2.{thread}", f"2.{thread}.{number}")
                commit(index, new_instance(key, 100 + thread * 20 + number))
            except StoreCorrupt:
                refused.append(thread)

    threads = [threading.Thread(target=store, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refused) == list(range(16))
    assert index.count("2") == 16 * 19
    assert [change.sequence for change in index.changes()] == list(range(1, 16 * 19 + 2))

import os
import shutil

import pytest
from disks import FullDiskFileOps
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import InsufficientStorage, SegmentGone, StoreLocked
from streamsrv.store.locks import Locks
from streamsrv.store.maintenance import compact as compaction
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.info import info
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import OnDuplicate, SegmentRow
from streamsrv.store.segments.manifest import Slot, State
from streamsrv.store.segments.records import RecordKind, unpack_ids
from streamsrv.store.store import StoreOptions

SMALL = StoreOptions(segment_size=2000, min_free=0)  # five instances a segment


def keys(study, count=10):
    return [key_of(study, 1, instance) for instance in range(count)]


@pytest.fixture
def store(memory):
    """Study 1 in segments 1 and 2, study 2 in 3 and 4, five instances each."""
    with open_store(memory, options=SMALL) as store:
        for study in (1, 2):
            for half in (keys(study)[:5], keys(study)[5:]):
                put(store, *(payload_of(key, 300) for key in half))
        yield store


def contents(store):
    return {key: get(store, key) for study in (1, 2) for key in keys(study)}


def well(store):
    return [str(finding) for finding in check(store, derive)] == []


def after_reindex(store, memory):
    """What a reindex of a copy of the segments says."""
    copy = memory / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(store.layout.root, copy, ignore=shutil.ignore_patterns("index*", "manifest", "copy"))
    findings = reindex(copy, derive).findings
    # There is no manifest, so reindex cannot know that a compaction removed the segments.
    assert {finding.where.split()[0] for finding in findings} <= {"manifest", "segment", "segments"}
    assert all("/" not in finding.where and "byte" not in finding.where for finding in findings)
    with open_store(copy, options=SMALL) as other:
        assert well(other)
        return contents(other)


def tombstones(store):
    found = set()
    for segment in store.layout.segment_files():
        with store.open_segments([segment]) as lease:
            fd = lease.fd(segment)
            for step in store.form.walk(fd, segment, os.fstat(fd).st_size):
                if step.header.kind is RecordKind.TOMBSTONE:
                    found.update(unpack_ids(lease.pread(segment, step.payload, step.header.length)))
    return found


def test_nothing_to_do(store):
    before = list(store.layout.segment_files())
    report = compact(store)
    assert (report.segments, report.moved, report.busy, report.index_rewritten) == ([], 0, [], None)
    assert list(store.layout.segment_files()) == before


def test_mostly_dead_segments_go_and_the_living_move(store, memory):
    for key in keys(1)[:8]:
        store.delete(*key)
    before = contents(store)
    rows = {row.key: row for row in store.lookup("1.1")}
    report = compact(store)
    assert {1, 2} <= set(report.segments)
    assert report.moved == 2
    assert report.freed > 8 * 300
    assert contents(store) == before
    for row in store.lookup("1.1"):
        old = rows[row.key]
        assert (row.record_id, row.stored_at, row.digest) == (old.record_id, old.stored_at, old.digest)
        assert row.location.segment not in (1, 2)
    assert not {1, 2} & set(store.layout.segment_files())
    assert not {1, 2} & set(store.index.segments())
    assert well(store)
    assert after_reindex(store, memory) == before


def test_a_half_alive_segment_stays(store):
    for key in keys(1)[:2]:
        store.delete(*key)
    assert 1 not in compact(store).segments


def test_one_that_grows_is_left_alone_while_it_has_little_to_give(memory):
    with open_store(memory, options=StoreOptions(segment_size=1 << 20, min_free=0)) as store:
        put(store, payload_of(key_of(1)))
        store.delete("1.1")
        assert compact(store).segments == []
        store.segments.seal(1)
        assert compact(store).segments == [1]


def test_tombstones_are_kept_while_a_segment_can_hold_whom_they_kill(store, memory):
    """The tombstones of study 1 lie in the segment of study 2, whose compaction must not forget them."""
    dead = {row.record_id for row in store.lookup("1.1")[:2]}
    for key in keys(1)[:2]:
        store.delete(*key)
    for key in keys(2)[2:]:
        store.delete(*key)
    before = contents(store)
    last = max(store.layout.segment_files())
    report = compact(store)
    assert last in report.segments
    assert 1 not in report.segments
    assert dead <= tombstones(store)
    assert contents(store) == before
    assert well(store)
    assert after_reindex(store, memory) == before


def test_tombstones_go_when_nobody_needs_them(store, memory):
    for key in keys(1) + keys(2):
        store.delete(*key)
    while compact(store).segments:
        pass
    assert not tombstones(store) or all(row.live == 0 for row in store.index.segments().values())
    report = compact(store)
    assert report.segments == []
    assert set(after_reindex(store, memory).values()) == {None}
    assert sum(row.committed_end for row in store.index.segments().values()) < 2000


def test_what_a_replaced_record_dies_of_is_kept(store, memory):
    """The successor is deleted and compacted away; its victim's record is still in segment 1."""
    put(store, payload_of(keys(1)[0], 300, "r"), on_duplicate=OnDuplicate.REPLACE)
    store.delete(*keys(1)[0])
    for key in keys(2):
        store.delete(*key)
    before = contents(store)
    compact(store)
    assert 1 in store.layout.segment_files()
    assert contents(store) == before
    assert well(store)
    assert after_reindex(store, memory) == before


def test_a_replacement_moves_with_what_it_replaces(store, memory):
    for fill in "rs":
        put(store, payload_of(keys(1)[0], 300, fill), on_duplicate=OnDuplicate.REPLACE)
    for key in keys(2):
        store.delete(*key)
    before = contents(store)
    compact(store)
    assert contents(store) == before
    assert after_reindex(store, memory) == before


def test_where_a_header_is_damaged_all_tombstones_are_kept(store):
    for key in keys(2):
        store.delete(*key)
    compact(store)
    needed = tombstones(store)
    for key in keys(1)[:3]:
        store.delete(*key)
    dead = tombstones(store) - needed
    with store.layout.segment(1).open("r+b") as file:
        file.write(b"damaged!")
    for segment in list(store.layout.segment_files())[1:]:
        store.segments.seal(segment)
    for key in keys(1)[5:]:
        store.delete(*key)
    compact(store)
    assert dead <= tombstones(store)


def test_a_segment_that_is_written_to_is_busy(store):
    for key in keys(2):
        store.delete(*key)
    last = max(store.layout.segment_files())
    acquired = store.segments.acquire(tombstones=True)
    assert acquired.segment == last
    report = compact(store)
    assert report.busy == [last]
    acquired.release()
    assert last in compact(store).segments


def test_readers_keep_what_they_have_open(store):
    segment, offset, length = store.lookup(*keys(1)[0])[0].location
    lease = store.open_segments([segment])
    for key in keys(1)[1:]:
        store.delete(*key)
    assert segment in compact(store).segments
    assert lease.pread(segment, offset, length) == payload_of(keys(1)[0], 300)
    lease.release()
    with pytest.raises(SegmentGone):
        store.open_segments([segment])
    assert get(store, keys(1)[0]) == payload_of(keys(1)[0], 300)


def test_slices(store, monkeypatch):
    monkeypatch.setattr(compaction, "SLICE_INSTANCES", 2)
    before = contents(store)
    assert compact(store, everything=True).moved == 20
    assert contents(store) == before
    assert well(store)
    monkeypatch.setattr(compaction, "MOVED_BYTES", 1)
    assert compact(store, everything=True).moved == 20
    assert contents(store) == before
    assert well(store)


def test_what_changes_meanwhile_stays_as_it_became(store, memory, monkeypatch):
    """Instances are deleted and replaced between the copy and the swap."""
    monkeypatch.setattr(compaction, "MOSTLY_DEAD", -1.0)
    victim, other = keys(1)[0], keys(1)[1]

    def meanwhile(name):
        monkeypatch.setattr(compaction.failpoints, "hit", lambda name: None)
        store.delete(*victim)
        put(store, payload_of(other, 300, "r"), on_duplicate=OnDuplicate.REPLACE)

    monkeypatch.setattr(compaction.failpoints, "hit", meanwhile)
    compact(store)
    after = contents(store)
    assert (after[victim], after[other]) == (None, payload_of(other, 300, "r"))
    assert well(store)
    assert after_reindex(store, memory) == after


@pytest.mark.parametrize("passage", range(1, 6))
def test_a_crash_at_any_point_is_harmless(store, memory, monkeypatch, passage):
    class Died(BaseException):
        pass

    for key in keys(1)[:8] + keys(2)[3:]:
        store.delete(*key)
    before, passed = contents(store), 0

    def die(name):
        nonlocal passed
        passed += 1
        if passed == passage:
            shutil.copytree(store.layout.root, memory / "crashed")
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(compaction.failpoints, "hit", die)
        with pytest.raises(Died):
            compact(store)
    assert contents(store) == before
    crashed = memory / "crashed"
    with open_store(crashed, options=SMALL) as other:
        assert contents(other) == before
        assert well(other)
        assert after_reindex(other, memory) == before
        compact(other)
        assert contents(other) == before
        assert well(other)
        assert after_reindex(other, memory) == before


def test_a_row_without_its_file_is_dropped(store):
    store.delete("1.1")
    store.segments.seal(1)
    locks = Locks(store.manifest)
    locks.put(1, Slot(State.REMOVED, 0))
    locks.close()
    store.layout.segment(1).unlink()
    compact(store)
    assert 1 not in store.index.segments()


def test_one_compaction_at_a_time(store):
    locks = Locks(store.manifest)
    assert locks.try_lock_compaction()
    with pytest.raises(StoreLocked):
        compact(store)
    locks.close()
    compact(store)


def test_a_full_disk_stops_it_and_harms_nothing(memory):
    ops = FullDiskFileOps()
    with open_store(memory, options=SMALL, fileops=ops) as store:
        for key in keys(1):
            put(store, payload_of(key, 300))
        for key in keys(1)[:4]:
            store.delete(*key)
        before = contents(store)
        ops.room = 150
        with pytest.raises(InsufficientStorage):
            compact(store)
        assert contents(store) == before
        ops.room = None
        assert well(store)
        assert compact(store).segments
        assert contents(store) == before
        assert well(store)


def test_everything_leaves_no_dead_byte(store, memory):
    for key in keys(1)[:3]:
        store.delete(*key)
    before = contents(store)
    old = set(store.layout.segment_files())
    report = compact(store, everything=True)
    assert set(report.segments) == old
    assert report.index_rewritten
    assert contents(store) == before
    assert well(store)
    assert after_reindex(store, memory) == before
    bytes_on_disk = b"".join(path.read_bytes() for path in store.layout.segment_files().values())
    for key in keys(1)[:3]:
        assert payload_of(key, 300) not in bytes_on_disk
        assert b"\0".join(part.encode() for part in key) not in bytes_on_disk


def test_no_descriptor_is_kept(store):
    for key in keys(1):
        store.delete(*key)
    store.readers.forget()  # what was read stays open for a moment
    before = len(os.listdir("/proc/self/fd"))
    compact(store)
    store.readers.forget()
    assert len(os.listdir("/proc/self/fd")) == before


def test_info(store):
    told = info(store)
    assert told["store_id"] == store.store_id
    assert told["segments"] == len(store.index.segments())
    assert told["live"] == 20 * 300
    assert told["index"]["instances"] == 20
    assert told["bytes"] > told["live"] + told["dead"]


def test_beside_others_the_index_is_not_rewritten(store, monkeypatch):
    def refuse():
        raise StoreLocked("others")

    monkeypatch.setattr(store.index, "rewrite", refuse)
    report = compact(store, everything=True)
    assert (report.index_rewritten, report.moved) == (False, 20)


def test_many_tombstones_are_kept_in_several_records(store, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "SLICE_INSTANCES", 2)
    for key in keys(1)[:2] + keys(1)[5:7]:
        store.delete(*key)
    dead = tombstones(store)
    put(store, payload_of(key_of(3), 3000))
    last = max(store.layout.segment_files())
    store.segments.seal(last)
    store.delete("1.3")
    report = compact(store)
    assert 1 not in report.segments
    assert dead <= tombstones(store)


def test_a_living_record_with_a_damaged_header_moves_all_the_same(store):
    """Its header is made anew from the index, and check is content again."""
    victim = store.lookup(*keys(1)[0])[0].location
    with store.layout.segment(victim.segment).open("r+b") as file:
        file.write(b"damaged!")
    assert not well(store)
    compact(store, everything=True)
    assert get(store, keys(1)[0]) == payload_of(keys(1)[0], 300)
    assert well(store)


def test_a_segment_that_the_index_counts_wrongly_is_not_unlinked(store):
    """Something lives in it, says the index, and is not to be found: nothing is destroyed."""
    store.delete("1.1")
    row = store.index.segment(1)
    store.index.put_segment(SegmentRow(1, row.committed_end, 300, row.dead, True))
    report = compact(store)
    assert 1 in report.busy
    assert store.layout.segment(1).exists()


def test_a_segment_without_its_file_keeps_nothing_from_compaction(store):
    store.delete("1.2")
    put(store, payload_of(key_of(3)))
    store.layout.segment(1).unlink()
    assert {3, 4} <= set(compact(store).segments)


@pytest.fixture
def many(memory):
    """Sixty segments of five instances each, three of them dead; and ten in which nothing lives."""
    ops = FullDiskFileOps()
    with open_store(memory, options=SMALL, fileops=ops) as store:
        for study in range(1, 61):
            put(store, *(payload_of(key_of(study, 1, instance), 300) for instance in range(5)))
        for study in range(61, 71):
            put(store, *(payload_of(key_of(study, 1, instance), 300) for instance in range(5)))
        for study in range(1, 61):
            for instance in range(3):
                store.delete(*key_of(study, 1, instance))
        for study in range(61, 71):
            store.delete(f"1.{study}")
        yield store


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("most", "free", "walks"),
    [
        (512, None, 1),
        (7, None, 10),  # descriptors
        (512, 40_000, 4),  # a fourth of the free space is room for 16 victims with 600 living bytes each
        (512, 0, 60),  # one by one
    ],
)
def test_many_segments_take_few_walks_through_the_index(many, memory, monkeypatch, most, free, walks):
    monkeypatch.setattr(compaction, "GROUP_MOST", most)
    many.ops.free = free
    victims = [row.segment for row in many.index.segments().values() if row.live]
    counted, walk = [], many.index.instances_in

    def instances_in(segments):
        counted.append(len(segments))
        return walk(segments)

    monkeypatch.setattr(many.index, "instances_in", instances_in)
    report = compact(many)
    assert set(victims) <= set(report.segments)
    assert report.moved == 120
    assert walks <= len(counted) <= walks + 1 + (free == 0) * 10, counted
    many.ops.free = None
    assert report.segments[0] not in victims  # those that only free come first
    assert well(many)
    for study in range(1, 61):
        for instance in range(5):
            key = key_of(study, 1, instance)
            assert get(many, key) == (payload_of(key, 300) if instance > 2 else None)


def test_a_missing_segment_keeps_nothing_from_being_compacted(store):
    store.layout.segment(1).unlink()
    report = compact(store, everything=True)
    assert {2, 3, 4} <= set(report.segments)
    assert 1 in store.index.segments()

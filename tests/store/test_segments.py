import errno
import os
import shutil

import pytest
from disks import FullDiskFileOps, RecordingFileOps
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import InsufficientStorage, StoreCorrupt, StoreError
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments.segments import Segments
from streamsrv.store.store import StoreOptions


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path) as store:
        yield store


def length_of(store, segment):
    return store.layout.segment(segment).stat().st_size


def test_a_segment_is_acquired_by_one_writer_and_reused(store):
    first, second = store.segments.acquire(), store.segments.acquire()
    assert (first.segment, second.segment) == (1, 2)
    first.release()
    third = store.segments.acquire()
    assert third.segment == 1
    second.release()
    third.release()
    assert list(store.layout.segment_files()) == [1, 2]


def test_segments_of_other_processes_are_found(store):
    others = Segments(
        store.layout, store.manifest, store.index, store.form, store.ops, 1 << 20, store.reserve
    )
    mine, theirs = store.segments.acquire(), others.acquire()
    assert (mine.segment, theirs.segment) == (1, 2)
    theirs.release()
    store.segments._listed = 0.0
    again = store.segments.acquire()
    assert again.segment == 2
    again.release()
    mine.release()


def test_what_is_not_committed_is_cut_off(store):
    put(store, payload_of(key_of(1)))
    end = length_of(store, 1)
    acquired = store.segments.acquire()
    acquired.append([b"x" * 100])
    assert length_of(store, 1) == end + 100
    acquired.release()
    acquired.release()
    assert length_of(store, 1) == end


def test_what_a_dead_writer_left_is_cut_off_when_acquired(store):
    put(store, payload_of(key_of(1)))
    end = length_of(store, 1)
    with store.layout.segment(1).open("ab") as file:
        file.write(b"left over")
    acquired = store.segments.acquire()
    assert (acquired.segment, acquired.end, length_of(store, 1)) == (1, end, end)
    acquired.release()


def test_what_dead_writers_left_is_cut_off_when_a_store_is_opened(tmp_path):
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
        end = length_of(store, 1)
    with store.layout.segment(1).open("ab") as file:
        file.write(b"left over")
    with open_store(tmp_path) as store:
        assert length_of(store, 1) == end
        alive = store.segments.acquire()
        alive.append([b"x" * 50])
        store.segments.recover_all()
        assert length_of(store, 1) == end + 50
        alive.release()


def test_a_doubt_of_the_dead_is_settled_and_one_of_the_living_is_not(store):
    living, dying, own = (store.segments.acquire() for _ in range(3))
    for acquired in (living, dying):
        acquired.append([b"x" * 100])
        acquired.mark_dirty()
    dying.locks.close()  # as if its process had died
    os.close(dying.fd)
    store.segments.recover(own)
    assert (length_of(store, living.segment), length_of(store, dying.segment)) == (
        FIRST_RECORD + 100,
        FIRST_RECORD,
    )
    assert own.locks.dirty() == [living.segment]
    own.release()
    living.release()
    assert length_of(store, living.segment) == FIRST_RECORD


def test_a_full_segment_is_sealed_when_acquired(tmp_path):
    with open_store(tmp_path, options=StoreOptions(segment_size=1000, min_free=0)) as store:
        put(store, payload_of(key_of(1), 2000))
        put(store, payload_of(key_of(2), 100))
        rows = store.index.segments()
        assert (rows[1].sealed, rows[2].sealed) == (True, False)
        assert length_of(store, 1) > 2000


def test_a_full_segment_still_takes_tombstones(tmp_path):
    """Who deletes waits for no new segment: that takes two more commits, and two syncs."""
    with open_store(tmp_path, options=StoreOptions(segment_size=1000, min_free=0)) as store:
        put(store, payload_of(key_of(1), 2000))
        assert store.delete("1.1") == 1
        assert {row.segment: row.sealed for row in store.index.segments().values()} == {1: False}
        put(store, payload_of(key_of(2), 100))
        assert {row.segment: row.sealed for row in store.index.segments().values()} == {1: True, 2: False}
    assert reindex(tmp_path, derive).findings == []
    with open_store(tmp_path) as store:
        assert [row.key for row in store.lookup("1.2")] == [key_of(2)]
        assert not store.lookup("1.1")


def test_a_segment_shorter_than_committed_is_not_used(store):
    put(store, payload_of(key_of(1)))
    os.truncate(store.layout.segment(1), 10)
    acquired = store.segments.acquire()
    assert acquired.segment == 2
    acquired.release()
    assert length_of(store, 1) == 10


def test_a_missing_file_is_made_only_for_an_empty_segment(store):
    put(store, payload_of(key_of(1)))
    store.layout.segment(1).unlink()
    store.index.add_segment()
    store.segments.refresh()
    acquired = store.segments.acquire()
    assert acquired.segment == 2
    acquired.release()


def test_a_file_that_the_index_does_not_know_is_not_written_to(store):
    store.layout.segment(1).write_bytes(b"somebody's")
    with pytest.raises(StoreCorrupt, match="does not know"):
        store.segments.acquire()
    assert store.layout.segment(1).read_bytes() == b"somebody's"


def test_no_descriptor_is_kept(store):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        acquired = store.segments.acquire()
        acquired.append([b"x"])
        acquired.release()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_after_a_failed_sync_the_segment_is_sealed_and_never_synced_again(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(key_of(1)))
        ops.sync_error = errno.EIO
        acquired = store.segments.acquire()
        acquired.append([b"x" * 100])
        with pytest.raises(StoreError, match="Input/output error"):
            acquired.sync()
        ops.sync_error = None
        ops.syncs.clear()
        with pytest.raises(StoreError, match="could not be synced"):
            acquired.sync()
        acquired.release()
        assert store.index.segments()[1].sealed
        put(store, payload_of(key_of(2)))
        assert "00000001.seg" not in ops.syncs


def test_the_reserve(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops, options=StoreOptions(min_free=1000)) as store:
        ops.free = 999
        with pytest.raises(InsufficientStorage, match="1000 bytes"):
            store.segments.acquire(reserve=True)
        store.segments.acquire().release()
        ops.free = 1000
        store.segments.acquire(reserve=True).release()


def test_the_default_reserve(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops, options=StoreOptions()) as store:
        total = ops.space(tmp_path)[1]
        ops.free = min(1 << 30, total // 50) - 1
        with pytest.raises(InsufficientStorage):
            store.begin()
        ops.free += 1
        store.begin().abort()


def test_the_reserve_is_looked_at_while_a_body_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr("streamsrv.store.segments.segments.SPACE_CHECK", 1000)
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops, options=StoreOptions(min_free=1000)) as store:
        acquired = store.segments.acquire(reserve=True)
        ops.free = 10
        acquired.append([b"x" * 900])
        with pytest.raises(InsufficientStorage):
            acquired.append([b"x" * 200])
        acquired.release()


def test_a_full_disk_is_told_as_such(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(key_of(1)))
        end = length_of(store, 1)
        acquired = store.segments.acquire()
        ops.room = 30
        with pytest.raises(InsufficientStorage, match="full"):
            acquired.append([b"x" * 100])
        assert length_of(store, 1) == end + 30
        acquired.release()
        assert length_of(store, 1) == end


def test_an_older_index_destroys_nothing(tmp_path):
    """A copy of the index is brought back that does not know the last two requests."""
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
    shutil.copytree(tmp_path / "index", tmp_path / "older")
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(2)))
        put(store, payload_of(key_of(3)))
        end = length_of(store, 1)
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "older").rename(tmp_path / "index")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreCorrupt, match="run `streamsrv reindex`"):
        open_store(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    assert store.layout.segment(1).stat().st_size == end
    assert reindex(tmp_path, derive).instances == 3
    with open_store(tmp_path) as store:
        assert get(store, key_of(3)) == payload_of(key_of(3))


def test_what_others_sealed_or_dropped_is_passed_over(store):
    for segment in (1, 2, 3):
        assert store.index.add_segment() == segment
    store.segments.refresh()
    store.index.seal(1)
    store.index.drop_segment(2)
    acquired = store.segments.acquire()
    assert acquired.segment == 3
    acquired.release()
    assert store.segments._unsealed == [3]


def test_two_workers_make_a_segment_at_once(store, monkeypatch):
    """Another one has got hold of the new segment first: it is left to it."""
    add = store.index.add_segment
    others = []

    def add_and_lose():
        segment = add()
        if segment == 1:
            others.append(
                Segments(store.layout, store.manifest, store.index, store.form, store.ops, 99, store.reserve)
            )
            others.append(others[0].acquire())
        return segment

    monkeypatch.setattr(store.index, "add_segment", add_and_lose)
    acquired = store.segments.acquire()
    assert (others[1].segment, acquired.segment) == (1, 2)
    acquired.release()
    others[1].release()


def test_a_cut_that_fails_seals_the_segment(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(key_of(1)))
        with store.layout.segment(1).open("ab") as file:
            file.write(b"left over")
        ops.sync_error = errno.EIO
        with pytest.raises(StoreError, match="creating segment 2"):
            store.segments.acquire()
        assert all(row.sealed for row in store.index.segments().values())
        ops.sync_error = None
        acquired = store.segments.acquire()
        assert acquired.segment == 3
        acquired.release()


def test_a_name_that_may_not_be_durable_is_synced_again(tmp_path):
    with open_store(tmp_path) as store:
        assert store.index.add_segment() == 1
        store.layout.segment(1).touch()
    ops = RecordingFileOps(tmp_path)
    with open_store(tmp_path, fileops=ops) as store:
        store.segments.acquire().release()
    names = [(operation.kind, operation.path) for operation in ops.log if operation.kind != "make_folder"]
    segment, manifest = "segments/00000001.seg", "manifest"
    begin = names.index(("write", segment))
    assert names[begin : begin + 3] == [("write", segment), ("sync", segment), ("sync_folder", "segments")]
    assert ("sync", manifest) in names[begin:]


def test_requests_that_the_index_does_not_know_are_not_cut_off_later_either(store):
    """The index was exchanged under a running server."""
    put(store, payload_of(key_of(1)))
    row = store.index.segment(1)
    put(store, payload_of(key_of(2)))
    put(store, payload_of(key_of(3)))
    end = length_of(store, 1)
    store.index.put_segment(row)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreCorrupt, match="older one"):
        store.segments.acquire()
    assert length_of(store, 1) == end
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_file_can_be_made(tmp_path, monkeypatch):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        store.segments.acquire().release()

        def refuse(path):
            raise OSError(errno.ENOSPC, "full")

        held = store.segments.acquire()
        monkeypatch.setattr(ops, "create", refuse)
        with pytest.raises(InsufficientStorage):
            store.segments.acquire()
        held.release()


def test_a_header_that_cannot_be_written(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        acquired = store.segments.acquire()
        ops.room = 0
        with pytest.raises(InsufficientStorage):
            acquired.overwrite(b"x", 0)
        ops.room = None
        acquired.release()


def test_a_cut_that_fails_when_given_back_leaves_the_doubt(tmp_path, monkeypatch):
    """The next one who looks cuts it."""
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        own, acquired = store.segments.acquire(), store.segments.acquire()
        acquired.append([b"x" * 100])
        acquired.mark_dirty()

        def refuse(fd, length):
            raise OSError(errno.EIO, "broken")

        with monkeypatch.context() as patch:
            patch.setattr(ops, "truncate", refuse)
            acquired.release()
        assert own.locks.dirty() == [2]
        assert length_of(store, 2) == FIRST_RECORD + 100
        store.segments.recover(own)
        assert own.locks.dirty() == []
        assert length_of(store, 2) == FIRST_RECORD
        own.release()

import errno
import threading
import time

import pytest
from disks import FullDiskFileOps
from store_world import get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreError
from streamsrv.store.rows import FIRST_RECORD, ChangeKind, OnDuplicate
from streamsrv.store.segments import tombstones
from streamsrv.store.segments.records import HEADER, RecordKind, unpack_ids
from streamsrv.store.store import StoreOptions

KEYS = [key_of(1, series, instance) for series in (1, 2) for instance in (1, 2, 3)] + [key_of(2)]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path) as store:
        put(store, *(payload_of(key) for key in KEYS))
        yield store


def tombstones_of(store):
    with store.open_segments([1]) as lease:
        end = store.index.segment(1).committed_end
        for step in store.form.walk(lease.fd(1), 1, end):
            if step.header.kind is RecordKind.TOMBSTONE:
                yield unpack_ids(lease.pread(1, step.payload, step.header.length))


@pytest.mark.parametrize(
    ("target", "count"),
    [
        (KEYS[0], 1),
        (KEYS[0][:2], 3),
        (KEYS[0][:1], 6),
        (("1.9",), 0),
        (("1.2", "1.1.1"), 0),
        (("1.1", "1.1.1", "1.2.1.1"), 0),
    ],
)
def test_delete_at_three_levels(store, target, count):
    ids = [row.record_id for row in store.lookup(*target)]
    assert len(ids) == count
    assert store.delete(*target) == count
    assert store.delete(*target) == 0
    assert store.lookup(*target) == []
    gone = [key for key in KEYS if key[: len(target)] == target]
    assert [key for key in KEYS if get(store, key) is None] == gone
    assert list(tombstones_of(store)) == ([ids] if ids else [])


def test_bytes_live_and_dead(store):
    store.delete("1.1", "1.1.1")
    row = store.index.segment(1)
    assert row.live == 4 * 200
    assert row.dead == 3 * 200 + HEADER + 2 * 3 * 16 + 16
    used = FIRST_RECORD + row.live + row.dead + 7 * HEADER
    assert used == row.committed_end == store.layout.segment(1).stat().st_size


def test_changes_are_recorded(store):
    store.delete("1.2")
    change = store.changes()[-1]
    assert (change.kind, change.key) == (ChangeKind.DELETED, key_of(2))


def test_many_slices(store, monkeypatch):
    monkeypatch.setattr(tombstones, "SLICE_INSTANCES", 4)
    assert store.delete("1.1") == 6
    assert [len(ids) for ids in tombstones_of(store)] == [4, 2]
    assert store.lookup("1.1") == []


def test_a_study_that_somebody_stores_to(store, monkeypatch):
    """Then its instances are claimed one by one, a slice after the other."""
    monkeypatch.setattr(tombstones, "SLICE_INSTANCES", 2)
    other = store.segments.acquire()
    other.locks.lock([key_of(1, 9, 9)])
    assert store.delete("1.1", "1.1.2") == 3
    assert store.delete("1.1") == 3
    assert store.lookup("1.1") == []
    other.release()


def test_a_slice_that_another_has_deleted(store, monkeypatch):
    """What comes behind it is deleted all the same."""
    monkeypatch.setattr(tombstones, "SLICE_INSTANCES", 2)
    other = store.segments.acquire()
    other.locks.lock([KEYS[0]])
    deleted = []
    waiter = threading.Thread(target=lambda: deleted.append(store.delete("1.1")))
    waiter.start()
    time.sleep(0.1)
    assert deleted == []
    first = store.index.packed_rows(KEYS[:2])
    store.index.delete(first, segment=1, committed_end=0, dead_bytes=0)
    other.release()
    waiter.join(5)
    assert deleted == [4]
    assert store.lookup("1.1") == []


def test_the_uids_may_be_stored_again_at_once(store):
    store.delete("1.1")
    put(store, payload_of(KEYS[0], 900))
    assert get(store, KEYS[0]) == payload_of(KEYS[0], 900)
    assert len(store.lookup("1.1")) == 1


def test_deleting_goes_on_when_storing_is_refused(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops, options=StoreOptions(min_free=1000)) as store:
        put(store, payload_of(key_of(1)))
        ops.free = 10
        assert store.delete("1.1") == 1


def test_nothing_goes_when_its_tombstone_cannot_be_synced(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(KEYS[0]), payload_of(KEYS[1]))
        before = {name: list(store.index.dump(name)) for name in ("instances", "changes", "studies")}
        ops.sync_error = errno.EIO
        with pytest.raises(StoreError, match="syncing segment 1"):
            store.delete("1.1")
        assert {name: list(store.index.dump(name)) for name in before} == before
        assert store.index.segment(1).sealed
        ops.sync_error = None
        assert store.delete("1.1") == 2


def test_deletes_race_with_replacements(store):
    """Whatever comes last counts, and the two never leave a half."""
    key = KEYS[0]

    def replace():
        for _ in range(15):
            put(store, payload_of(key, 300, "r"), on_duplicate=OnDuplicate.REPLACE)

    def delete():
        for _ in range(15):
            store.delete(*key)

    threads = [threading.Thread(target=work) for work in (replace, delete)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get(store, key) in (None, payload_of(key, 300, "r"))
    store.delete(*key)
    rows = store.index.segments().values()
    assert sum(row.live for row in rows) == 6 * 200

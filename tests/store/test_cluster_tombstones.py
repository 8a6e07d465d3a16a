"""Tombstones of a cluster in its bucket: each deletion is there, also if a node or the bucket fails."""

import os
import tempfile

import pytest
from cluster_store import KEYS, begun, swept_twice
from store_world import add, derive, get, payload_of, put
from waiting import waited

from streamsrv.errors import BucketUnreachable, CommitConflict, Overloaded
from streamsrv.store import OnDuplicate, Outcome
from streamsrv.store import transaction as transactions
from streamsrv.store.maintenance.objects.check import check
from streamsrv.store.maintenance.objects.compact import compact, move
from streamsrv.store.maintenance.objects.scrub import check_segments
from streamsrv.store.maintenance.scrub import Pace
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.objects.layout import TOMBSTONES
from streamsrv.store.rows import NO_SEGMENT
from streamsrv.store.segments.records import RecordKind, unpack_ids


def buried(store):
    """The record ids of all tombstones in the bucket."""
    ids = set()
    for each in store.rooms.bucket.listed(TOMBSTONES):
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(store.rooms.bucket.content(each.key))
            for step in store.form.walk(file.fileno(), NO_SEGMENT, each.length):
                assert step.header.kind is RecordKind.TOMBSTONE
                ids |= set(unpack_ids(os.pread(file.fileno(), step.header.length, step.payload)))
    return ids


def record_id(store, key):
    return store.lookup(*key)[0].record_id


def fail(*_):
    raise BucketUnreachable("away")


def test_deleted_and_replaced_records_are_in_the_bucket(one, two):
    put(one, *map(payload_of, KEYS))
    dead = {record_id(one, key) for key in KEYS[:3]}
    two.delete(*KEYS[0])
    assert put(two, payload_of(KEYS[1], fill="y"), on_duplicate=OnDuplicate.REPLACE) == [Outcome.REPLACED]
    assert buried(one) == {each for each in dead if each != record_id(one, KEYS[2])}
    one.delete(*KEYS[2])
    assert buried(one) == dead
    assert one.rooms.tombstones.table.waiting(10, 0) == []


def test_a_deletion_holds_while_the_bucket_is_away(one, two, monkeypatch):
    put(one, *map(payload_of, KEYS))
    dead = {record_id(one, key) for key in KEYS[:2]}
    calls = []
    with monkeypatch.context() as gateway:
        gateway.setattr(one.rooms.bucket, "put", lambda *each: (calls.append(1), fail()))
        for key in KEYS[:2]:
            assert one.delete(*key) == 1
    assert len(calls) == 1  # the next requests do not wait
    assert (get(two, KEYS[0]), buried(two)) == (None, set())
    assert len(two.rooms.tombstones.table.waiting(10, 0)) == 2
    assert two.rooms.tombstones.write_all() == 0  # its node may still live
    assert two.rooms.tombstones.write_all(0) == 2
    assert buried(two) == dead


def test_the_sweeper_writes_what_a_dead_node_left(cluster, monkeypatch):
    one = cluster.node("a")
    put(one, payload_of(KEYS[0]))
    dead = {record_id(one, KEYS[0])}
    monkeypatch.setattr("streamsrv.store.cluster.tombstones.TombstoneWriter.write_own", lambda self: None)
    one.delete(*KEYS[0])
    assert buried(one) == set()
    cluster.sql("UPDATE tombstones SET made = now() - interval '1 hour', node = 'dead'")
    other = cluster.node("b", grace=0.1)
    waited(lambda: buried(other) == dead)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_record_that_is_deleted_while_it_is_copied(one, two, cluster, monkeypatch, size):
    """The copy has the id of the record, in an object that stays."""
    monkeypatch.setattr("streamsrv.store.maintenance.objects.compact.SLICE_INSTANCES", size)
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])
    dead = record_id(one, KEYS[0])

    def meanwhile(name):
        if name == "in-compaction":
            two.delete(*KEYS[0])

    with monkeypatch.context() as patch:
        patch.setattr("streamsrv.store.failpoints.hit", meanwhile)
        assert compact(one, True, 1 << 20).moved == 2
    one.rooms.tombstones.write_all(0)
    swept_twice(cluster, one)
    assert compact(one, False, 1 << 20).moved == 0
    assert buried(one) == {dead}  # the other records have gone with their object
    for key in KEYS[1:3]:
        one.delete(*key)
    swept_twice(cluster, one)
    compact(one, False, 1 << 20)
    assert buried(one) == set()
    assert cluster.sql("SELECT count(*) FROM tombstones") == "0"


def test_records_that_are_refused_after_their_object_is_complete(one, two, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 1)
    put(two, payload_of(KEYS[1], fill="y"))
    transaction, pairs = begun(one, *map(payload_of, KEYS[:2]))
    assert transaction.commit(pairs) == [Outcome.STORED, Outcome.DUPLICATE]
    assert buried(one) == {pairs[1][0].record_id}


def test_a_commit_that_is_decided_again(one, two, monkeypatch):
    """The first instance has won, and is refused then."""
    transaction, pairs = begun(one, *map(payload_of, KEYS[:2]))
    commit = one.index.commit

    def overtaken(*arguments, **named):
        monkeypatch.undo()
        put(two, payload_of(KEYS[0], fill="y"))
        with pytest.raises(CommitConflict):
            commit(*arguments, **named)
        raise CommitConflict("meanwhile")

    monkeypatch.setattr(one.index, "commit", overtaken)
    assert transaction.commit(pairs) == [Outcome.DUPLICATE, Outcome.STORED]
    assert buried(one) == {pairs[0][0].record_id}


def test_a_record_that_was_refused_once_stays_so(one, two, monkeypatch):
    """Its tombstone is there already."""
    transaction, pairs = begun(one, *map(payload_of, KEYS[:2]))
    commit = one.index.commit
    meanwhile = [
        lambda: put(two, payload_of(KEYS[0], fill="y")),
        lambda: (put(two, payload_of(KEYS[1], fill="y")), two.delete(*KEYS[0])),
    ]

    def overtaken(*arguments, **named):
        if meanwhile:
            meanwhile.pop(0)()
        return commit(*arguments, **named)

    monkeypatch.setattr(one.index, "commit", overtaken)
    with pytest.raises(Overloaded):
        transaction.commit(pairs)
    assert get(one, KEYS[0]) is None


def test_a_copy_of_a_record_that_lives_has_no_tombstone(one, two, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 1)
    put(two, payload_of(KEYS[1]))
    (row,) = two.lookup(*KEYS[1])
    transaction, pairs = begun(one, payload_of(KEYS[0]))
    pairs.append(add(transaction, payload_of(KEYS[1]), original=row))
    assert transaction.commit(pairs) == [Outcome.STORED, Outcome.IDENTICAL]
    assert one.rooms.tombstones.table.waiting(10, 0) == []
    assert buried(one) == set()


def test_a_tombstone_stays_while_an_older_object_lists_its_record(one, cluster):
    """For example that of a record whose damage has healed."""
    put(one, *map(payload_of, KEYS[:2]))
    (row,) = one.lookup(*KEYS[0])
    ((_, key, length),) = one.rooms.table.find([row.location.segment])
    move(one, [row], StoredObject(key, length))
    one.delete(*KEYS[0])
    for left in ({row.record_id}, set()):
        swept_twice(cluster, one)
        compact(one, False, 1 << 20)
        assert buried(one) == left
        one.delete(*KEYS[1])


def test_tombstones_that_the_bucket_has_lost(one, two):
    """For example by a rule of its life cycle."""
    put(one, *map(payload_of, KEYS))
    dead = {record_id(one, key) for key in KEYS[:2]}
    for key in KEYS[:2]:
        one.delete(*key)
    keys = [each.key for each in one.rooms.bucket.listed(TOMBSTONES)]
    one.rooms.bucket.remove(keys[0])
    (found,) = check(two, derive)
    assert (found.severity, found.where) == ("error", keys[0])
    assert "deleted instances return" in found.what
    (found,) = check_segments(two, Pace(0))
    assert (found.severity, found.where) == ("error", keys[0])
    assert "it is written again" in found.what
    assert buried(one) == dead
    assert list(check(one, derive)) == list(check_segments(one, Pace(0))) == []


def test_nothing_is_buried_that_lives(one, two):
    """Copies of a compaction have the ids of their originals."""
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])
    before = buried(one)
    assert compact(two, True, 1 << 20).moved == 3
    two.rooms.tombstones.write_all(0)
    assert buried(one) == before

"""Objects that are lost or decay: what readers get, what `check --segments` finds, and how it heals."""

import threading
from types import SimpleNamespace

import pytest
from cluster_store import KEYS, begun, flip, key_in_bucket
from store_world import derive, get, open_store, payload_of, put

from streamsrv.companions.forwarding import StoredInstance
from streamsrv.errors import InstanceDamaged, SegmentGone, StoreError
from streamsrv.plans.selection import Selection
from streamsrv.store import OnDuplicate, Outcome
from streamsrv.store.maintenance.moving.copying import InstanceCopier
from streamsrv.store.maintenance.moving.verification import damage_in
from streamsrv.store.maintenance.objects import scrub
from streamsrv.store.maintenance.objects.check import check
from streamsrv.store.maintenance.objects.compact import compact
from streamsrv.store.maintenance.objects.reading import copy_of
from streamsrv.store.maintenance.objects.scrub import check_segments
from streamsrv.store.maintenance.scrub import Pace
from streamsrv.tools.outgoing.store_source import StoreSource


def scrubbed(store):
    return [str(each) for each in check_segments(store, Pace(0))]


def names(store):
    return [record.key for record in store.index.damage()]


def require_whole(store, key):
    (row,) = store.lookup(*key)
    with store.open_segments([row.location.segment]) as lease:
        store.require_whole(row, lease)


def test_whole_objects(one, two):
    put(one, *map(payload_of, KEYS))
    two.delete(*KEYS[0])
    put(two, payload_of(KEYS[1], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    assert scrubbed(two) == []


def test_a_lost_object_is_registered_until_it_is_back(one, two):
    put(one, *map(payload_of, KEYS[:2]))
    put(one, payload_of(KEYS[2]))
    segment, key, content = key_in_bucket(one, KEYS[0])
    one.rooms.bucket.remove(key)
    assert scrubbed(two) == [f"error: segment {segment}: its object is not in the bucket"]
    assert sorted(names(two)) == KEYS[:2]
    assert scrubbed(two) == [f"error: segment {segment}: its object is not in the bucket"]
    one.rooms.bucket.put(key, content)
    assert scrubbed(two) == []
    assert names(two) == []
    assert one.lookup(*KEYS[0])[0].location.segment == segment
    assert get(one, KEYS[0]) == payload_of(KEYS[0])


def test_objects_are_read_together_and_told_in_order(one, monkeypatch):
    for key in KEYS[:2]:
        put(one, payload_of(key))
        segment, offset, _ = one.lookup(*key)[0].location
        flip(one, segment, offset + 150)
    (first, last), read = (key_in_bucket(one, key)[1] for key in KEYS[:2]), threading.Event()

    def copied(bucket, key, *others):
        assert key != first or read.wait(30)  # the other one is read meanwhile
        file = copy_of(bucket, key, *others)
        if key == last:
            read.set()
        return file

    monkeypatch.setattr(scrub, "copy_of", copied)
    said = scrubbed(one)
    assert [name for line in said for name in KEYS if "/".join(name) in line] == KEYS[:2]


def test_a_reader_registers_a_lost_object(one, two):
    put(one, *map(payload_of, KEYS[:2]))
    _, key, _ = key_in_bucket(one, KEYS[0])
    selection = Selection(one, *KEYS[0])
    error = selection.loss(SegmentGone("the object is not in the bucket"))
    assert (type(error), names(one)) == (SegmentGone, [])
    one.rooms.bucket.remove(key)
    error = selection.loss(SegmentGone("the object is not in the bucket"))
    assert (type(error), error.sop_instance) == (InstanceDamaged, KEYS[0].instance)
    assert "its object is not in the bucket" in error.detail
    assert names(two) == KEYS[:1]
    with pytest.raises(InstanceDamaged):
        Selection(two, *KEYS[0]).require_undamaged()
    selection.release()


def test_readers_tell_that_an_object_is_lost(one):
    """Export, forwarding and move, which read whole instances."""
    put(one, payload_of(KEYS[0]))
    (row,) = one.lookup(*KEYS[0])
    one.rooms.bucket.remove(key_in_bucket(one, KEYS[0])[1])
    said = "its object is not in the bucket"
    item = SimpleNamespace(key=KEYS[0])
    with pytest.raises(InstanceDamaged, match=said):
        StoreSource(one, (), ()).fetch(item, "", lambda: None, lambda piece: None)
    with pytest.raises(InstanceDamaged, match=said):
        StoredInstance(one, row).send(None, None)
    assert damage_in(one, row) == said
    copier = InstanceCopier(one, one, derive, None)
    transaction = one.begin()
    assert copier._taken(transaction, row) is None
    transaction.abort()
    assert copier.reasons == {KEYS[0]: said}


def test_an_instance_that_was_moved_is_not_lost(one, two):
    """A reader whose row is old meets an object that was removed after the grace."""
    put(one, *map(payload_of, KEYS))
    selection = Selection(one, *KEYS[0])
    _, key, _ = key_in_bucket(one, KEYS[0])
    two.delete(*KEYS[1])
    assert compact(two, True, 1 << 20).moved == 3
    one.rooms.bucket.remove(key)
    gone = SegmentGone("gone")
    assert selection.loss(gone) is gone
    assert names(one) == []
    selection.release()


def test_wrong_bytes_are_found_and_heal_at_a_new_place(one, two):
    """The cache of a node may have the wrong bytes."""
    put(one, *map(payload_of, KEYS[:2]))
    segment, offset, _ = one.lookup(*KEYS[0])[0].location
    _, key, content = key_in_bucket(one, KEYS[0])
    flip(one, segment, offset + 150)
    assert get(two, KEYS[0]) != payload_of(KEYS[0])
    with pytest.raises(InstanceDamaged, match="its checksum is not that of its arrival"):
        require_whole(two, KEYS[0])
    require_whole(two, KEYS[1])
    assert names(one) == KEYS[:1]
    found = scrubbed(one)
    assert [line.split(":")[0] for line in found] == ["note", "error"]
    assert f"{'/'.join(KEYS[0])}, segment {segment}, byte {offset}" in found[1]
    one.rooms.bucket.put(key, content)
    assert scrubbed(one) == []
    assert names(one) == []
    assert one.lookup(*KEYS[0])[0].location.segment != segment
    assert [get(two, each) for each in KEYS[:2]] == list(map(payload_of, KEYS[:2]))


def test_an_instance_is_stored_again(one, two):
    put(one, *map(payload_of, KEYS[:2]))
    segment, offset, _ = one.lookup(*KEYS[0])[0].location
    flip(one, segment, offset + 150)
    scrubbed(one)
    assert put(two, payload_of(KEYS[0])) == [Outcome.REPLACED]
    assert names(one) == []
    assert get(one, KEYS[0]) == payload_of(KEYS[0])
    assert [line.split(":")[0] for line in scrubbed(one)] == ["note"]


@pytest.mark.parametrize("length", [0, 300])
def test_tools_go_on_beside_an_object_that_was_cut(one, two, memory, length):
    put(one, *map(payload_of, KEYS[:2]))
    put(one, *map(payload_of, KEYS[2:]))
    for key in (KEYS[1], KEYS[3]):
        one.delete(*key)
    (row,) = one.lookup(*KEYS[0])
    segment, key, content = key_in_bucket(one, KEYS[0])
    one.rooms.bucket.put(key, content[:length])
    assert any(f"segment {segment}: an object ends" in str(each) for each in check(two, derive))
    assert damage_in(two, row) == "its object ends before it"
    assert any("its object ends before it" in each for each in scrubbed(two))
    assert names(two) == KEYS[:1]
    two.index.forget_damage([row.record_id])
    report = SimpleNamespace(add=lambda *_: None, count_bytes=lambda _: None)
    with open_store(memory / "target") as target:
        copier = InstanceCopier(one, target, derive, report)
        copier.copy(one.lookup("1.1"))
        assert "an object ends" in copier.reasons[KEYS[0]]
        assert [each.key for each in target.lookup("1.1")] == [KEYS[2]]
    assert compact(two, True, 1 << 20).moved == 1
    assert names(two) == KEYS[:1]
    two.index.forget_damage([row.record_id])
    assert put(two, payload_of(KEYS[0])) == [Outcome.REPLACED]
    assert get(one, KEYS[0]) == payload_of(KEYS[0])


def test_wrong_bytes_of_a_cache_alone_are_not_registered(one, two):
    put(one, payload_of(KEYS[0]))
    segment, offset, _ = one.lookup(*KEYS[0])[0].location
    _, key, content = key_in_bucket(one, KEYS[0])
    flip(one, segment, offset + 150)
    get(two, KEYS[0])  # into its cache
    one.rooms.bucket.put(key, content)
    with pytest.raises(StoreError, match="remove the folder of the cache"):
        require_whole(two, KEYS[0])
    assert names(one) == []
    require_whole(one, KEYS[0])


@pytest.mark.parametrize("place", ["header", "entry", "seal"])
def test_damage_beside_the_instances(one, place):
    """The header of a record is in front of it, and in an entry of the trailer."""
    put(one, *map(payload_of, KEYS[:3]))
    segment, offset, _ = one.lookup(*KEYS[1])[0].location
    _, _, content = key_in_bucket(one, KEYS[0])
    at = {"header": offset - 50, "entry": len(content) - 104 - 112 - 50, "seal": len(content) - 50}[place]
    flip(one, segment, at)
    found = scrubbed(one)
    assert bool(found) == (place == "seal"), found
    assert names(one) == []


def test_an_object_that_was_cut(one):
    put(one, *map(payload_of, KEYS[:3]))
    rows = sorted(one.lookup("1.1"), key=lambda row: row.location.offset)
    _, key, content = key_in_bucket(one, KEYS[0])
    one.rooms.bucket.put(key, content[: rows[1].location.offset + 20])
    found = "\n".join(scrubbed(one))
    assert f"its object ends here, not at {len(content)}" in found
    assert "its object ends before it" in found
    assert sorted(names(one)) == sorted(row.key for row in rows[1:])
    one.rooms.bucket.put(key, content)
    assert scrubbed(one) == []
    assert names(one) == []


def test_objects_that_go_meanwhile_are_passed_over(one, two, cluster):
    put(one, payload_of(KEYS[0]))
    _, key, _ = key_in_bucket(one, KEYS[0])
    find = one.rooms.table.complete()
    two.delete(*KEYS[0])
    one.rooms.bucket.remove(key)
    one.rooms.table.complete = lambda: find
    transaction, _ = begun(one, payload_of(KEYS[1]))
    assert scrubbed(one) == []
    transaction.abort()

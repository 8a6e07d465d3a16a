"""A database that is lost, or older than its bucket, is filled from the bucket."""

import itertools
import subprocess
import threading

import pytest
from cluster_store import KEYS, begun, flip, is_in_bucket, key_in_bucket, swept, swept_twice
from database_server import USER, programs
from object_world import fresh_key
from store_world import derive, get, key_of, payload_of, put
from waiting import waited

from streamsrv.errors import IndexUnreachable, StoreError, StoreLocked, WrongStore
from streamsrv.store import ChangeKind, OnDuplicate, Store
from streamsrv.store.maintenance.objects.check import check
from streamsrv.store.maintenance.objects.compact import compact
from streamsrv.store.maintenance.objects.reindex import LOSS, reindex
from streamsrv.store.maintenance.objects.scrub import check_segments
from streamsrv.store.maintenance.scrub import Pace
from streamsrv.store.objects.bucket import opened
from streamsrv.store.postgresql import cluster_row


@pytest.fixture
def lose(cluster, database_server):
    """Ends the nodes, and loses the database."""

    def act():
        cluster.end()
        database_server.sql(f"DROP SCHEMA {cluster.name} CASCADE; CREATE SCHEMA {cluster.name}")

    return act


def filled(cluster, *expected):
    """Runs a reindex, with these findings; returns a node."""
    report = reindex(cluster.folder / "verbs", cluster.options, derive)
    texts = [str(each) for each in report.findings if each.what != LOSS]
    assert len(texts) == len(expected), texts
    assert all(any(part in text for text in texts) for part in expected), texts
    node = cluster.node("after")
    assert report.instances == node.index.statistics()["instances"]
    return node


def findings(store):
    return [str(each) for each in check(store, derive)]


def dead(store):
    """The bytes of each object that have no living instance."""
    return {segment: row.dead for segment, row in store.index.segments().items()}


def test_a_lost_database_is_made_again(cluster, one, two, lose):
    put(one, *map(payload_of, KEYS))
    put(two, payload_of(key_of(2)), payload_of(key_of(2, 1, 2)))
    one.delete(*KEYS[0])
    put(two, payload_of(KEYS[1], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    put(one, payload_of(KEYS[0], fill="z"))  # again, and deleted again
    one.delete(*KEYS[0])
    epoch, rows, wasted = one.index.about()["epoch"], one.lookup("1.1"), dead(one)
    lose()
    report = reindex(cluster.folder / "verbs", cluster.options, derive)
    assert [(each.severity, each.what) for each in report.findings] == [("note", LOSS)]
    after = cluster.node("c")
    assert (report.instances, report.segments) == (5, 4)
    assert after.lookup("1.1") == rows
    assert [get(after, key) for key in KEYS[:2]] == [None, payload_of(KEYS[1], fill="y")]
    assert findings(after) == []
    assert dead(after) == wasted
    assert sum(wasted.values()) > 0
    assert after.index.about()["epoch"] != epoch
    assert {change.kind for change in after.changes()} == {ChangeKind.STORED}
    # Nodes go on; numbers of objects are not given again.
    put(after, payload_of(KEYS[0]))
    assert after.lookup(*KEYS[0])[0].location.segment > max(row.location.segment for row in rows)
    with pytest.raises(StoreLocked, match="nodes or verbs have this database open"):
        reindex(cluster.folder / "verbs", cluster.options, derive)


def test_compacted_objects(cluster, one, lose):
    """Copies have the ids of their originals, whose object may still be there."""
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])
    assert compact(one, True, 1 << 20).moved == 3
    lose()
    after = filled(cluster)
    assert [get(after, key) for key in KEYS] == [*map(payload_of, KEYS[:3]), None]
    assert findings(after) == []
    assert sorted(cluster.states()) == ["complete", "condemned"]
    assert swept(after) == 0  # it stays for some days
    cluster.pass_time()
    swept(after)
    assert [get(after, key) for key in KEYS[:3]] == list(map(payload_of, KEYS[:3]))


def test_a_tombstone_stays_while_a_copy_of_before_is_there(cluster, one, lose):
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])
    compact(one, True, 1 << 20)
    lose()
    after = filled(cluster)
    segment = after.lookup(*KEYS[0])[0].location.segment
    after.delete("1.1")
    for _ in range(2):
        cluster.sql(f"UPDATE objects SET until = now() WHERE segment = {segment}")
        assert swept(after) == 1
    compact(after, False, 1 << 20)
    assert cluster.sql("SELECT count(*) FROM tombstones") == "2"
    swept_twice(cluster, after)
    compact(after, False, 1 << 20)
    assert cluster.sql("SELECT count(*) FROM tombstones") == "0"


@pytest.mark.parametrize("lost", [True, False])
def test_an_object_that_a_late_request_brought_back(cluster, one, lose, lost):
    """Its instances stay deleted, also after a compaction that removes tombstones."""
    put(one, *map(payload_of, KEYS[:2]))
    _, key, content = key_in_bucket(one, KEYS[0])
    one.delete("1.1")
    cluster.pass_time()
    assert swept(one) == 1
    compact(one, False, 1 << 20)
    one.rooms.bucket.put(key, content)
    if lost:
        lose()
    cluster.end()
    after = filled(cluster)
    assert after.lookup("1.1") == findings(after) == []
    swept_twice(cluster, after)
    assert not is_in_bucket(after, 0, key)


def test_tombstones_of_a_lost_database_stay_until_their_objects_are_gone(cluster, one, lose):
    put(one, *map(payload_of, KEYS[:2]))
    put(one, payload_of(KEYS[2]))
    for key in (KEYS[0], KEYS[2]):
        one.delete(*key)
    lose()
    after = filled(cluster)
    tombstones = after.rooms.tombstones
    assert cluster.sql("SELECT segments FROM tombstones ORDER BY segments").split() == ["{1}", "{2}"]
    lost = sorted(tombstones.table.keys())[0]
    after.rooms.bucket.remove(lost)
    assert [each.where for each in check(after, derive)] == [lost]
    list(check_segments(after, Pace(0)))
    assert findings(after) == []
    assert tombstones.remove_idle() == 0
    swept_twice(cluster, after)  # the object without a living instance goes
    assert (tombstones.remove_idle(), len(tombstones.table.keys())) == (1, 1)
    after.delete(*KEYS[1])
    swept_twice(cluster, after)
    assert (tombstones.remove_idle(), tombstones.table.keys()) == (2, set())


def test_damage_is_named(cluster, one, lose):
    put(one, *map(payload_of, KEYS[:2]))
    put(one, payload_of(KEYS[2]))
    segment, offset, _ = one.lookup(*KEYS[0])[0].location
    flip(one, segment, offset + 150)
    other, start, _ = one.lookup(*KEYS[2])[0].location
    flip(one, other, start + 2)
    lose()
    after = filled(cluster, f"it is that of instance {'/'.join(KEYS[0])}", "it is not in the index")
    assert [record.key for record in after.index.damage()] == [KEYS[0]]
    assert get(after, KEYS[1]) == payload_of(KEYS[1])
    assert cluster.states() == ["complete"]  # nothing removes the other object


def test_damaged_tombstones_are_named(cluster, one, lose):
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[0])
    (tombstone,) = one.rooms.bucket.listed("deleted/")
    content = bytearray(one.rooms.bucket.content(tombstone.key))
    content[100] ^= 1
    one.rooms.bucket.put(tombstone.key, bytes(content))
    lose()
    after = filled(cluster, "deleted instances may be among the others")
    assert get(after, KEYS[0]) == payload_of(KEYS[0])


def test_two_records_that_no_tombstone_names(cluster, one, two, lose):
    """One of them was never acknowledged: its node was stopped before its commit."""
    transaction, pairs = begun(one, payload_of(KEYS[0], fill="old"))
    transaction._writer.complete([pairs[0][0]])
    put(two, payload_of(KEYS[0], fill="new"))
    lose()
    after = filled(cluster, "stored twice, and no tombstone names either record")
    assert get(after, KEYS[0]) == payload_of(KEYS[0], fill="new")
    assert findings(after) == []


def test_a_run_that_broke_off_goes_on(cluster, one, lose, monkeypatch):
    for number, key in enumerate(KEYS):
        put(one, payload_of(key), payload_of(key_of(2, 1, number)))
    one.delete(*KEYS[0])
    wasted = dead(one)
    lose()
    monkeypatch.setattr("streamsrv.store.maintenance.objects.reindex.SLICE_INSTANCES", 1)
    for _ in range(2):
        seen = []

        def breaking(record, seen=seen):
            seen.append(record)
            if len(seen) == 3:
                raise RuntimeError("ended")
            return derive(record)

        with pytest.raises(RuntimeError):
            reindex(cluster.folder / "verbs", cluster.options, breaking)
        with pytest.raises(StoreError, match="or has broken off: run it to its end"):
            cluster.node("meanwhile")
    after = filled(cluster)
    assert [get(after, key) for key in KEYS] == [None, *map(payload_of, KEYS[1:])]
    assert len(after.lookup("1.2")) == 4
    assert findings(after) == []
    assert dead(after) == wasted


def test_a_run_that_was_killed_when_it_had_made_the_tables(cluster, one, lose, monkeypatch):
    put(one, payload_of(KEYS[0]))
    lose()
    found = cluster_row.found

    def killed(*arguments):
        found(*arguments)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(cluster_row, "found", killed)
        with pytest.raises(RuntimeError):
            reindex(cluster.folder / "verbs", cluster.options, derive)
    with pytest.raises(StoreError, match="or has broken off"):
        cluster.node("meanwhile")
    assert get(filled(cluster), KEYS[0]) == payload_of(KEYS[0])


def test_a_node_that_ran_before_opens_no_database_that_is_half_filled(cluster, one):
    one.rooms.table._connections._close_free()
    cluster.sql("UPDATE cluster SET filling = 'lost'")
    with pytest.raises(IndexUnreachable, match="or has broken off"):
        one.rooms.table.counts()
    cluster.sql("UPDATE cluster SET filling = ''")
    assert one.rooms.table.counts() == {}


def test_a_session_that_ends_later_than_its_node_is_awaited(cluster, one):
    """The server notices later that a process has ended."""
    put(one, payload_of(KEYS[0]))
    lingering = one.rooms.table._connections.take()
    cluster.end()
    later = threading.Timer(0.3, lingering.close)
    later.start()
    assert get(filled(cluster), KEYS[0]) == payload_of(KEYS[0])
    later.join()


def test_buckets_and_databases_that_do_not_fit(cluster, one, database_server, lose):
    with pytest.raises(StoreLocked):
        reindex(cluster.folder / "verbs", cluster.options, derive)
    other = cluster.node(
        "z", index=database_server.url(f"{cluster.name}_z"), segments=f"{cluster.options.segments}/z"
    )
    cluster.end()
    assert other.store_id != one.store_id
    changed = cluster.options_with(segments=f"{cluster.options.segments}/z")
    with pytest.raises(WrongStore, match="and the database has store"):
        reindex(cluster.folder / "verbs", changed, derive)
    changed = cluster.options_with(segments=f"{cluster.options.segments}/empty")
    with pytest.raises(StoreError, match=r"the bucket has no store\.toml, which has the secret"):
        reindex(cluster.folder / "verbs", changed, derive)
    bucket = opened(cluster.options.segments)
    bucket.put("segments/readme", b"x")
    bucket.put(fresh_key(77), b"no object of this store")
    lose()
    filled(cluster, "it is no object of a store: left out", "no object of a segment is so short")


# An older database


@pytest.fixture
def dump(cluster, database_server):
    """`dump()` copies the tables; `dump.load()` puts the copy in their place."""
    where = ("-h", str(database_server.folder), "-U", USER)

    class Dump:
        def __call__(self):
            command = [str(programs() / "pg_dump"), *where, "-d", "postgres", "-n", cluster.name]
            self._text = subprocess.run(command, check=True, capture_output=True).stdout

        def load(self):
            database_server.sql(f"DROP SCHEMA {cluster.name} CASCADE")
            self._load("postgres")

        def _load(self, name):
            command = [str(programs() / "psql"), *where, "-d", name, "-q", "-v", "ON_ERROR_STOP=1"]
            subprocess.run(command, check=True, input=self._text, stdout=subprocess.DEVNULL)

        def load_beside(self):
            """The URL of another database that has the copy."""
            database_server.sql("CREATE DATABASE drill")
            self._load("drill")
            return cluster.options.index.replace("/postgres?", "/drill?")

    return Dump()


def test_a_restored_database_gets_what_happened_since(cluster, one, two, dump):
    put(one, *map(payload_of, KEYS))
    put(one, *(payload_of(key_of(3, 1, number)) for number in range(3)))
    transaction, pairs = begun(two, payload_of(key_of(4)))  # an intent in the dump
    dump()
    epoch = one.index.about()["epoch"]
    transaction.commit(pairs)
    one.delete(*KEYS[0])
    put(two, payload_of(KEYS[1], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    put(two, payload_of(key_of(2)))
    one.delete(*key_of(3, 1, 0))
    assert compact(two, True, 1 << 20).moved > 0
    cluster.pass_time()
    swept(one)
    rows, wasted = [one.lookup(f"1.{study}") for study in (1, 2, 3, 4)], dead(one)
    cluster.end()
    dump.load()
    after = filled(cluster)
    assert dead(after) == wasted
    assert [after.lookup(f"1.{study}") for study in (1, 2, 3, 4)] == rows
    assert findings(after) == []
    assert after.index.about()["epoch"] != epoch
    assert get(after, key_of(4)) == payload_of(key_of(4))


def test_an_upload_and_a_compaction_whose_commits_the_dump_has_in_part(cluster, one, two, dump, monkeypatch):
    for module in ("transaction", "maintenance.objects.compact"):
        monkeypatch.setattr(f"streamsrv.store.{module}.SLICE_INSTANCES", 1)
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[0])
    transaction, pairs = begun(two, *(payload_of(key_of(2, 1, number)) for number in range(3)))
    outcomes = transaction.committing(pairs)
    next(outcomes)
    relocate, moved = type(one.index).relocate, []

    def relocating(index, moves, **where):
        if len(moved) == 1:
            dump()
        moved.append(relocate(index, moves, **where))
        return moved[-1]

    monkeypatch.setattr(type(one.index), "relocate", relocating)
    assert compact(one, True, 1 << 20).moved == len(moved) == 3
    monkeypatch.setattr(type(one.index), "relocate", relocate)
    assert len([*outcomes]) == 2
    cluster.pass_time()
    assert swept(one) == 1
    rows = [one.lookup(f"1.{study}") for study in (1, 2)]
    cluster.end()
    dump.load()
    after = filled(cluster)
    assert [after.lookup(f"1.{study}") for study in (1, 2)] == rows
    assert findings(after) == []


def test_objects_that_were_whole_long_before_the_dump_are_not_read(cluster, one, dump, monkeypatch):
    put(one, *map(payload_of, KEYS))
    dump()
    cluster.end()
    dump.load()
    monkeypatch.setattr("streamsrv.store.maintenance.objects.reindex.COMMITTING", -3_600)
    derived = []
    assert reindex(cluster.folder / "verbs", cluster.options, derived.append).instances == len(KEYS)
    assert derived == []


def test_objects_that_are_lost_are_named(cluster, one, dump):
    put(one, *map(payload_of, KEYS))
    segment, key, _ = key_in_bucket(one, KEYS[0])
    dump()
    one.rooms.bucket.remove(key)
    cluster.end()
    dump.load()
    after = filled(cluster, f"segment {segment}: its object is not in the bucket")
    assert sorted(record.key for record in after.index.damage()) == KEYS


def test_an_object_whose_number_was_given_twice(cluster, one, dump):
    """Nodes ran on a database that was set back."""
    dump()
    put(one, payload_of(KEYS[0]))
    cluster.end()
    dump.load()
    back = cluster.node("b")
    put(back, payload_of(KEYS[1]))
    cluster.end()
    after = filled(cluster, "another object is segment 1, too: `streamsrv salvage` reads it")
    assert [get(after, key) for key in KEYS[:2]] == [None, payload_of(KEYS[1])]


def test_a_drill_with_a_dump_that_was_made_under_load(cluster, one, two, dump, database_server):
    """Two nodes store, replace and delete while the database is dumped. The dump is restored into another
    database, and the bucket is later than it."""
    acknowledged, deleted, gone, end = set(), set(), set(), threading.Event()

    def work(store, study):
        for number in itertools.count():
            key = key_of(study, 1, number)
            put(store, payload_of(key))
            acknowledged.add(key)
            if number % 3 == 2:
                put(store, payload_of(key, fill="y"), on_duplicate=OnDuplicate.REPLACE)
                old = key_of(study, 1, number - 1)
                deleted.add(old)
                store.delete(*old)
                gone.add(old)
            if end.is_set():
                return

    threads = [threading.Thread(target=work, args=pair) for pair in ((one, 5), (two, 6))]
    for thread in threads:
        thread.start()
    waited(lambda: len(acknowledged) > 8)
    before, gone_before = set(acknowledged), set(gone)
    dump()
    count = len(acknowledged)
    waited(lambda: len(acknowledged) > count + 8)
    end.set()
    for thread in threads:
        thread.join()
    cluster.end()
    options = cluster.options_with(index=dump.load_beside())
    with Store.open(cluster.folder / "drill", options) as drill:
        there = {row.key for study in (5, 6) for row in drill.lookup(f"1.{study}")}
        assert before - deleted <= there
        assert not there & gone_before
        assert findings(drill) == []
        assert all(get(drill, key) for key in there)
    report = reindex(cluster.folder / "verbs", options, derive)
    assert report.findings == []
    with Store.open(cluster.folder / "drill", options) as drill:
        assert {row.key for study in (5, 6) for row in drill.lookup(f"1.{study}")} == acknowledged - deleted
        assert findings(drill) == []
    database_server.sql("DROP DATABASE drill")

"""Nodes of one store over PostgreSQL and a bucket: their races, what a sweeper removes, wrong settings."""

import threading

import pytest
from cluster_store import KEYS, begun, flip, is_in_bucket, key_in_bucket, swept
from store_world import derive, get, key_of, payload_of, put
from waiting import waited

from streamsrv.errors import (
    BucketUnreachable,
    CommitConflict,
    InstanceDamaged,
    Overloaded,
    SegmentGone,
    StoreError,
    StoreLocked,
    UploadExpired,
    WrongStore,
)
from streamsrv.query.rules import rule_of
from streamsrv.store import OnDuplicate, Outcome, Store, StoreOptions
from streamsrv.store import transaction as transactions
from streamsrv.store.cluster import identity
from streamsrv.store.cluster.leases import IntentKeeper
from streamsrv.store.cluster.places import ObjectPlaces
from streamsrv.store.cluster.sweeper import Sweeper, sweep
from streamsrv.store.folder import Layout
from streamsrv.store.maintenance.objects.check import check
from streamsrv.store.maintenance.objects.compact import compact
from streamsrv.store.maintenance.objects.info import info
from streamsrv.store.objects.bucket import opened
from streamsrv.store.postgresql.object_table import ClaimedObject

STORED, DUPLICATE, IDENTICAL, REPLACED, UNAUTHORIZED = Outcome


def before_commit(store, monkeypatch, act):
    """`act` is called once, when the next commit of this node has been decided."""
    commit, acts = store.index.commit, [act]

    def slow(*arguments, **named):
        if acts:
            acts.pop()()
        return commit(*arguments, **named)

    monkeypatch.setattr(store.index, "commit", slow)


# Two nodes


def test_a_node_serves_the_instances_of_another_one(one, two):
    put(one, payload_of(KEYS[0]))
    assert get(two, KEYS[0]) == payload_of(KEYS[0])
    assert two.delete(*KEYS[0]) == 1
    assert get(one, KEYS[0]) is None
    assert (one.store_id, one.secret) == (two.store_id, two.secret)


def test_of_two_nodes_that_store_one_instance_one_wins(one, two):
    outcomes, start = {}, threading.Barrier(2)

    def write(store, fill):
        transaction, pairs = begun(store, *(payload_of(key, fill=fill) for key in KEYS))
        start.wait()
        outcomes[fill] = transaction.commit(pairs)

    threads = [threading.Thread(target=write, args=pair) for pair in ((one, "x"), (two, "y"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == [[STORED] * 4, [DUPLICATE] * 4]
    winner = "x" if outcomes["x"][0] is STORED else "y"
    for store in (one, two):
        assert [get(store, key) for key in KEYS] == [payload_of(key, fill=winner) for key in KEYS]


@pytest.mark.parametrize(
    ("policy", "fill", "outcome"),
    [
        (OnDuplicate.REFUSE, "x", DUPLICATE),
        (OnDuplicate.ACCEPT_IDENTICAL, "x", IDENTICAL),
        (OnDuplicate.REPLACE, "y", REPLACED),
    ],
)
def test_a_decision_that_was_overtaken_is_made_again(one, two, cluster, monkeypatch, policy, fill, outcome):
    transaction, pairs = begun(one, payload_of(KEYS[0], fill=fill), payload_of(KEYS[1]))
    before_commit(one, monkeypatch, lambda: put(two, payload_of(KEYS[0])))
    assert transaction.commit(pairs, policy) == [outcome, STORED]
    assert get(two, KEYS[0]) == payload_of(KEYS[0], fill=fill if outcome is REPLACED else "x")
    assert get(two, KEYS[1]) == payload_of(KEYS[1])


def test_an_instance_that_goes_while_it_is_replaced(one, two, monkeypatch):
    put(one, payload_of(KEYS[0]))
    transaction, pairs = begun(one, payload_of(KEYS[0], fill="y"))
    before_commit(one, monkeypatch, lambda: two.delete(*KEYS[0]))
    assert transaction.commit(pairs, OnDuplicate.REPLACE) == [STORED]
    assert get(two, KEYS[0]) == payload_of(KEYS[0], fill="y")


def test_an_instance_that_is_replaced_while_it_is_deleted(one, two, monkeypatch):
    put(one, *map(payload_of, KEYS[:2]))
    delete, acts = one.index.delete, [1]

    def slow(rows, **named):
        if acts:
            acts.pop()
            put(two, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
        return delete(rows, **named)

    monkeypatch.setattr(one.index, "delete", slow)
    assert one.delete("1.1") == 2
    assert two.lookup("1.1") == []


def test_a_slice_that_is_always_overtaken_ends(one, monkeypatch):
    def conflict(*_, **__):
        raise CommitConflict("meanwhile")

    monkeypatch.setattr(one.index, "commit", conflict)
    transaction, pairs = begun(one, payload_of(KEYS[0]))
    with pytest.raises(StoreError.__base__, match="at the same time") as caught:
        transaction.commit(pairs)
    assert caught.value.status == 503


def test_an_instance_that_was_stored_by_a_sender_of_another_rule_meanwhile(one, two, monkeypatch):
    """It would be replaced by one that may not see it."""

    def other_sender():
        transaction, [(record, new)] = begun(two, payload_of(KEYS[0]))
        new.attributes["00100020"]["Value"] = ["P2"]
        transaction.commit([(record, new)])

    view = one.restricted(rule_of(["PatientID=P1.1"]))
    transaction, pairs = begun(view, payload_of(KEYS[0], fill="y"))
    before_commit(one, monkeypatch, other_sender)
    assert transaction.commit(pairs, OnDuplicate.REPLACE) == [UNAUTHORIZED]
    assert get(two, KEYS[0]) == payload_of(KEYS[0])


# Objects


def test_a_record_that_was_refused_at_first_and_wins_later(one, two, cluster, monkeypatch):
    """Its object was complete before another sender overtook the decision, and its trailer has it not."""
    put(two, payload_of(KEYS[0], fill="old"))

    def overtake():
        two.delete(*KEYS[0])
        put(two, payload_of(KEYS[1], fill="other"))

    transaction, pairs = begun(one, payload_of(KEYS[0]), payload_of(KEYS[1]))
    before_commit(one, monkeypatch, overtake)
    with pytest.raises(Overloaded):
        transaction.commit(pairs)
    assert (get(two, KEYS[0]), get(two, KEYS[1])) == (None, payload_of(KEYS[1], fill="other"))
    assert findings(one) == []


def test_an_object_without_instances_is_removed_after_the_grace(one, two, cluster):
    put(one, *map(payload_of, KEYS[:2]))
    segment = one.lookup(*KEYS[0])[0].location.segment
    ((_, key, length),) = one.rooms.table.find([segment])
    assert one.rooms.bucket.length(key) == length
    two.delete(*KEYS[0])
    assert cluster.states() == ["complete"]
    two.delete(*KEYS[1])
    assert cluster.states() == ["condemned"]
    assert one.index.segments() == {}
    assert swept(one) == 0
    assert is_in_bucket(one, segment, key)
    cluster.pass_time()
    assert swept(two) == 1
    assert swept(two) == 0
    assert not is_in_bucket(one, segment, key)
    assert cluster.states() == ["swept"]
    with pytest.raises(SegmentGone):
        cluster.node("c").open_segments([segment])


def test_an_object_that_a_late_request_brings_back_is_removed_again(one, cluster):
    """Its PUT was repeated, and the gateway carries out the first one when the object has been removed."""
    put(one, payload_of(KEYS[0]))
    segment, key, content = key_in_bucket(one, KEYS[0])
    one.delete("1.1")
    cluster.pass_time()
    assert swept(one) == 1
    one.rooms.bucket.put(key, content)
    compact(one, False, 1 << 20)
    assert cluster.sql("SELECT count(*) FROM tombstones") == "1"  # for a `reindex` that finds it
    cluster.pass_time()
    assert swept(one) == 1
    assert not is_in_bucket(one, segment, key)
    assert cluster.states() == []


def test_replacing_condemns_the_old_object(one, cluster):
    put(one, payload_of(KEYS[0]))
    put(one, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    assert cluster.states() == ["condemned", "complete"]
    cluster.pass_time()
    swept(one)
    assert get(one, KEYS[0]) == payload_of(KEYS[0], fill="y")


def test_an_object_stays_that_gets_its_next_slice_after_it_was_emptied(one, two, cluster, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 1)
    transaction, pairs = begun(one, *map(payload_of, KEYS[:2]))
    outcomes = transaction.committing(pairs)
    assert next(outcomes) is STORED
    two.delete(*KEYS[0])
    assert cluster.states() == ["condemned"]
    assert list(outcomes) == [STORED]
    assert cluster.states() == ["complete"]
    cluster.pass_time()
    assert swept(two) == 0
    assert get(two, KEYS[1]) == payload_of(KEYS[1])


def test_an_object_that_was_removed_gets_no_further_slice(one, two, cluster, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 1)
    transaction, pairs = begun(one, *map(payload_of, KEYS[:2]))
    outcomes = transaction.committing(pairs)
    assert next(outcomes) is STORED
    two.delete(*KEYS[0])
    cluster.pass_time()
    assert swept(two) == 1
    with pytest.raises(UploadExpired):
        next(outcomes)
    assert one.lookup("1.1") == []


def test_transactions_that_end_otherwise_leave_nothing(one, cluster):
    transaction, _ = begun(one, payload_of(KEYS[0]))
    transaction.abort()
    assert put(one, payload_of(KEYS[0])) == [STORED]
    assert put(one, payload_of(KEYS[0], fill="y")) == [DUPLICATE]
    assert cluster.states() == ["complete"]


def test_an_upload_that_was_aborted_is_removed(one, cluster):
    transaction, _ = begun(one, payload_of(KEYS[0], size=20 << 20))
    transaction.sync_so_far()
    transaction.abort()
    assert cluster.states() == ["intent"]
    assert swept(one) == 1
    assert cluster.states() == ["swept"]
    assert put(one, payload_of(KEYS[0])) == [STORED]


def test_a_node_that_slept_cannot_commit(one, two, cluster):
    """Its intent is swept before it wakes up, once before the object is complete and once after."""
    transaction, pairs = begun(one, payload_of(KEYS[0]))
    cluster.pass_time()
    assert swept(two) == 1
    with pytest.raises(UploadExpired) as caught:
        transaction.commit(pairs)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    assert one.lookup("1.1") == one.changes() == []
    (segment,) = map(int, cluster.sql("SELECT segment FROM objects").split())
    key = cluster.sql("SELECT key FROM objects")
    assert not is_in_bucket(one, segment, key)
    one.rooms.bucket.put(key, b"the node completed it later")
    cluster.pass_time()
    assert swept(two) == 1
    assert not is_in_bucket(one, segment, key)
    assert cluster.states() == []
    assert put(one, payload_of(KEYS[0])) == [STORED]


def test_a_sweeper_that_died_is_followed_by_another_one(one, two, cluster):
    put(one, payload_of(KEYS[0]))
    one.delete("1.1")
    cluster.pass_time()
    (claimed,) = one.rooms.table.claim(100, 300)
    assert (claimed.was, cluster.states()) == ("condemned", ["removing"])
    assert swept(two) == 0
    cluster.pass_time()
    assert swept(two) == 1
    one.rooms.table.removed(claimed.segment)
    assert cluster.states() == ["swept"]


def test_objects_that_cannot_be_removed_are_due_again_soon(one, two, cluster, monkeypatch):
    """Each time they wait longer; then another sweeper may remove them."""
    for key in KEYS[:2]:
        put(one, payload_of(key))
    one.delete("1.1")
    cluster.pass_time()

    def fail(key):
        raise BucketUnreachable("away")

    left = "SELECT bool_and(until > now() + interval '6 s' AND until < now() + interval '8 s') FROM objects"
    with monkeypatch.context() as gateway:
        gateway.setattr(one.rooms.bucket, "remove", fail)
        with pytest.raises(BucketUnreachable):
            sweep(one.rooms.table, one.rooms.bucket, 7.5)
    assert cluster.states() == ["removing", "removing"]
    assert cluster.sql(left) == "t"
    assert swept(two) == 0
    cluster.pass_time()
    assert swept(two) == 2
    assert cluster.states() == ["swept", "swept"]


def test_a_sweeper_waits_longer_after_each_failure():
    """It writes tombstones all the same."""
    waits, written = [], []

    class Away:
        def claim(self, most, seconds):
            return [ClaimedObject(1, "key", "condemned")] if len(waits) < 4 else []

        def put_off(self, segments, seconds):
            waits.append(seconds)

        def remove(self, key):
            raise BucketUnreachable("away")

        def write_all(self):
            written.append(len(waits))

    away = Away()
    sweeper = Sweeper(away, away, away, 0.01)
    waited(lambda: len(waits) == 4)
    sweeper.close()
    for wait, most in zip(waits, (5, 30, 300, 300), strict=True):
        assert most / 2 <= wait <= most
    assert written[:4] == [0, 1, 2, 3]


def test_an_upload_is_removed_twice_also_if_its_sweeper_died(one, two, cluster):
    transaction, pairs = begun(one, payload_of(KEYS[0]))
    cluster.pass_time()
    one.rooms.table.claim(100, 300)
    cluster.pass_time()
    assert (swept(two), cluster.states()) == (1, ["swept"])
    with pytest.raises(UploadExpired):
        transaction.commit(pairs)
    cluster.pass_time()
    assert (swept(two), cluster.states()) == (1, [])


def test_intents_are_renewed_while_they_are_held(cluster):
    store = cluster.node("a", upload_lease=0.2)
    transaction, _ = begun(store, payload_of(KEYS[0]))
    until = "SELECT until FROM objects"
    first = cluster.sql(until)
    waited(lambda: cluster.sql(until) != first)
    assert cluster.states() == ["intent"]
    transaction.abort()
    assert cluster.states() == []


def test_the_sweeper_of_a_node_needs_no_call(cluster):
    store = cluster.node("a", grace=0.1)
    put(store, payload_of(KEYS[0]))
    store.delete("1.1")
    waited(lambda: cluster.states() == ["swept"])


def test_a_keeper_goes_on_after_an_error():
    class Away:
        calls = 0

        def renew(self, segments, seconds):
            self.calls += 1
            raise BucketUnreachable("away")

    table = Away()
    keeper = IntentKeeper(table, 0.01)
    keeper.hold(1)
    waited(lambda: table.calls > 1)
    keeper.close()


def test_a_bucket_that_fails_while_an_object_ends(one, cluster, monkeypatch):
    def fail(*_):
        raise BucketUnreachable("the gateway does not answer")

    transaction, pairs = begun(one, payload_of(KEYS[0]))
    with monkeypatch.context() as patch:
        patch.setattr(transaction._writer, "complete", fail)
        with pytest.raises(BucketUnreachable):
            transaction.commit(pairs)
    assert one.lookup("1.1") == []
    assert put(one, payload_of(KEYS[0])) == [STORED]


def test_places_are_forgotten_when_a_connection_failed():
    class SetBack:
        failures, key, asked = 0, "one", 0

        def find(self, segments):
            self.asked += 1
            return [(segment, self.key, 5) for segment in segments]

    table = SetBack()
    places = ObjectPlaces(table)
    for _ in range(2):
        assert [place.key for place in places.find([1, 2]).values()] == ["one", "one"]
    assert table.asked == 1
    table.failures, table.key = 1, "two"
    assert places.find([2])[2].key == "two"


# Which store it is


def test_an_instance_stays_if_the_gateway_finds_nothing(one, two, cluster, monkeypatch):
    """It is replaced if its object alone is gone."""
    put(one, payload_of(KEYS[0]))
    nothing = opened(f"{cluster.options.segments}/nothing")
    with monkeypatch.context() as gateway:
        gateway.setattr(two.rooms.bucket, "_reading", nothing._reading)
        with pytest.raises(BucketUnreachable, match=r"not even store\.toml"):
            put(two, payload_of(KEYS[0], fill="y"))
    assert get(one, KEYS[0]) == payload_of(KEYS[0])
    ((_, key, _),) = one.rooms.table.find([one.lookup(*KEYS[0])[0].location.segment])
    one.rooms.bucket.remove(key)
    assert put(two, payload_of(KEYS[0], fill="y")) == [REPLACED]


def test_a_node_joins_the_store_of_its_bucket_and_database(one, cluster, memory):
    assert cluster.node("c").store_id == one.store_id
    assert not (memory / "a" / "store.toml").exists()


def refusal(cluster, **options):
    with pytest.raises(StoreError) as caught:
        cluster.node("of-another", **options)
    return caught.value


def test_stores_that_do_not_belong_together_are_refused(one, cluster, database_server):
    empty = database_server.url(f"{cluster.name}_empty")
    error = refusal(cluster, index=empty)
    assert isinstance(error, WrongStore)
    assert f"the bucket has store {one.store_id}, and this database is empty: nothing was chang" in str(error)
    error = refusal(cluster, segments=f"{cluster.options.segments}/empty")
    assert f"this database has store {one.store_id}, and the bucket has no store.toml" in str(error)
    other = cluster.node("z", index=empty, segments=f"{cluster.options.segments}/other")
    error = refusal(cluster, segments=f"{cluster.options.segments}/other")
    assert f"the bucket has store {other.store_id}, and the database has store {one.store_id}" in str(error)
    put(one, payload_of(KEYS[0]))
    assert get(one, KEYS[0])


def test_two_clusters_on_one_bucket_are_found_while_they_run(one, cluster):
    one.probe()
    one.rooms.bucket.put("store.toml", one.identity.text().replace(one.store_id, "other").encode())
    one._bucket_probed = 0
    with pytest.raises(StoreError, match="checksum is wrong"):
        one.probe()
    one.rooms.bucket.remove("store.toml")
    with pytest.raises(WrongStore, match=r"no store\.toml any more"):
        one.probe()


def test_a_founding_that_broke_off_goes_on(cluster, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("streamsrv.store.objects.bucket.Bucket.put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cluster.node("a")
    with pytest.raises(StoreError, match="the bucket has no store: start a node once"):
        Store.open(Layout(cluster.folder / "r").root, cluster.options, read_only=True)
    put(cluster.node("a"), payload_of(KEYS[0]))
    assert get(cluster.node("b"), KEYS[0]) == payload_of(KEYS[0])


def test_a_store_that_another_node_founds_at_the_same_time(cluster, monkeypatch):
    """Between the two looks of the first one, into the bucket and into the database."""
    look, others = identity.in_bucket, []

    def looked(bucket):
        known = look(bucket)
        if not others:
            others.append(None)
            others.append(cluster.node("b"))
        return known

    monkeypatch.setattr(identity, "in_bucket", looked)
    assert cluster.node("a").store_id == others[1].store_id


def test_settings_that_are_wrong_get_a_sentence(cluster, memory, database_server, monkeypatch):
    assert "give `--index` too" in str(refusal(cluster, index=""))
    assert "is not a URL like s3://" in str(refusal(cluster, segments="http://archive/x"))
    other = refusal(cluster, segments="s3://of-another-owner/x")
    assert "refuses the credentials" in str(other)
    folder = Store.open(memory / "own", StoreOptions(min_free=0))
    folder.close()
    with pytest.raises(StoreError, match="holds a store with segments of its own"):
        cluster.node("own")
    local = database_server.url(f"{cluster.name}_local")
    Store.open(memory / "local", StoreOptions(min_free=0, index=local)).close()
    error = refusal(cluster, index=local, segments=f"{cluster.options.segments}/new")
    assert "has the index of a store whose segments are in a folder" in str(error)
    with pytest.raises(StoreError, match="start a node once, which makes the store"):
        Store.open(memory / "r", cluster.options, read_only=True)
    cluster.node("a").close()
    with pytest.raises(WrongStore, match="whose segments are in a bucket: nothing was changed"):
        Store.open(memory / "local", StoreOptions(min_free=0, index=cluster.options.index))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "the gateway does not answer. AWS_ENDPOINT_URL names it" in str(refusal(cluster))


# Check, compaction, info


def findings(store):
    return [str(each) for each in check(store, derive)]


def test_a_check_reads_every_object(one, two, cluster):
    put(one, *map(payload_of, KEYS[:2]))
    put(two, *map(payload_of, KEYS[2:]), payload_of(KEYS[0]))
    two.delete(*KEYS[3])
    put(one, payload_of(KEYS[2], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    assert findings(one) == []
    segment, offset, _ = one.lookup(*KEYS[1])[0].location
    key = flip(one, segment, offset + 150)
    assert findings(two) == [
        f"error: segment {segment}, byte {offset}: payload of 200 bytes: "
        "its checksum is not that of its arrival"
    ]
    one.delete(*KEYS[1])
    (note,) = findings(two)
    assert note.startswith(f"note: segment {segment}, byte {offset}")
    one.rooms.bucket.remove(key)
    assert findings(two) == [f"error: segment {segment}: its object is not in the bucket"]


def test_a_check_compares_the_tables(one, cluster):
    put(one, payload_of(KEYS[0]))
    put(one, payload_of(KEYS[1]))
    cluster.sql("UPDATE objects SET length = length + 1 WHERE segment = 1")
    cluster.sql("UPDATE objects SET state = 'intent', until = now() + interval '1 day' WHERE segment = 2")
    cluster.sql("INSERT INTO objects VALUES (77, 'other', 5, 'complete', 'x')")
    found = "\n".join(findings(one))
    assert "segment 1: the index has" in found
    assert "segment 2: the table of objects does not have it" in found
    assert "segment 77: no instance lives in its object, which is not condemned" in found


def test_a_compaction_moves_living_records(one, two, cluster):
    big = [payload_of(key, size=100_000) for key in KEYS]
    put(one, *big)
    put(two, payload_of(key_of(2)))
    before = one.lookup("1.1")
    for key in KEYS[1:]:
        two.delete(*key)
    report = compact(two, False, 1 << 20)
    assert (report.objects, report.made, report.moved) == (1, 1, 1)
    assert report.freed > 300_000
    assert cluster.states() == ["condemned", "complete", "complete"]
    cluster.pass_time()
    swept(one)
    assert get(one, KEYS[0]) == big[0]
    (row,) = one.lookup("1.1")
    assert (row.record_id, row.stored_at, row.digest) == before[0][2:5]
    assert row.location.segment != before[0].location.segment
    assert findings(one) == []
    assert compact(two, False, 1 << 20).moved == 0


def test_a_compaction_of_everything_fills_several_objects(one, cluster):
    for key in KEYS:
        other = payload_of(key_of(2, 1, key.instance[-1]), size=5_000)
        put(one, payload_of(key, size=5_000), other)
    one.delete("1.2")
    report = compact(one, True, 8_000)
    assert (report.objects, report.made, report.moved) == (4, 2, 4)
    assert [get(one, key) for key in KEYS] == [payload_of(key, size=5_000) for key in KEYS]
    assert findings(one) == []


def test_a_record_that_changes_while_it_is_moved(one, two, cluster, monkeypatch):
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])

    def meanwhile(name):
        if name == "in-compaction" and get(two, KEYS[0]) == payload_of(KEYS[0]):
            put(two, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
            two.delete(*KEYS[1])

    with monkeypatch.context() as patch:
        patch.setattr("streamsrv.store.failpoints.hit", meanwhile)
        assert compact(one, True, 1 << 20).moved == 1
    assert get(one, KEYS[0]) == payload_of(KEYS[0], fill="y")
    assert [get(one, key) for key in KEYS[1:]] == [None, payload_of(KEYS[2]), None]
    assert findings(one) == []


def test_a_damaged_record_moves_and_stays_damaged(one, cluster):
    put(one, *map(payload_of, KEYS))
    one.delete(*KEYS[3])
    segment, offset, _ = one.lookup(*KEYS[0])[0].location
    flip(one, segment, offset + 150)
    assert compact(one, True, 1 << 20).damaged_instances == 1
    (row,) = one.lookup(*KEYS[0])
    assert row.location.segment != segment
    assert [each.key for each in one.damaged_among([row.record_id])] == [KEYS[0]]
    with one.open_segments([row.location.segment]) as lease, pytest.raises(InstanceDamaged):
        one.require_whole(row, lease)


def test_one_compaction_at_a_time(one, two):
    with one.rooms.table.excluding_compactions():
        for call in (lambda: compact(two, False, 1), lambda: findings(two)):
            with pytest.raises(StoreLocked):
                call()
    assert compact(two, False, 1).moved == 0


def test_info(one, cluster):
    put(one, *map(payload_of, KEYS))
    put(one, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    transaction, _ = begun(one, payload_of(KEYS[0]))
    found = info(one)
    transaction.abort()
    assert found["objects"]["complete"]["number"] == 2
    assert found["objects"]["uploads under way"] == {"number": 1, "bytes": 0}
    assert (found["live"], found["dead"], found["problems"]) == (800, 200, [])
    cluster.sql("UPDATE tombstones SET key = NULL, made = now() - interval '1 hour'")
    assert info(one)["problems"] == ["1 deletions are not noted in the bucket, the oldest for 3600 s"]
    one.rooms.bucket.remove("store.toml")
    one._bucket_probed = 0
    assert "no store.toml" in info(one)["problems"][0]

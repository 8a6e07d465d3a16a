"""The calls of Store and Transaction, as docs/store-contract.md promises them."""

import threading

import pytest
from store_world import add, get, key_of, payload_of, put

from streamsrv.errors import Forbidden, InstanceDamaged, SegmentGone, StoreError
from streamsrv.query.attributes import BY_TAG, Level
from streamsrv.query.conditions import query_of
from streamsrv.query.rules import any_of, rule_of
from streamsrv.store import ChangeKind, OnDuplicate, Outcome
from streamsrv.store.index.answers import level_attributes

STORED, DUPLICATE, IDENTICAL, REPLACED, UNAUTHORIZED = Outcome
KEYS = [key_of(1, series, instance) for series in (1, 2) for instance in (1, 2, 3)]


def test_an_acknowledged_instance_is_visible_to_every_process(store, other):
    before = other.version()
    assert other.lookup("1.1") == []
    assert put(store, *map(payload_of, KEYS)) == [STORED] * 6
    assert [row.key for row in other.lookup("1.1")] == KEYS
    assert other.version() != before
    assert other.version() == store.version()


def test_an_aborted_transaction_leaves_nothing(store, other):
    transaction = store.begin()
    add(transaction, payload_of(KEYS[0]))
    transaction.abort()
    transaction.abort()
    assert other.lookup("1.1") == other.changes() == []
    assert put(store, payload_of(KEYS[0])) == [STORED]


def test_an_acknowledged_instance_survives_a_new_opening(engine, memory):
    first = engine(memory).open()
    put(first, payload_of(KEYS[0]))
    first.close()
    first.close()
    with engine(memory).open() as second:
        assert get(second, KEYS[0]) == payload_of(KEYS[0])


@pytest.mark.parametrize(
    ("policy", "fill", "outcome"),
    [
        (OnDuplicate.REFUSE, "x", DUPLICATE),
        (OnDuplicate.ACCEPT_IDENTICAL, "x", IDENTICAL),
        (OnDuplicate.ACCEPT_IDENTICAL, "y", DUPLICATE),
        (OnDuplicate.REPLACE, "y", REPLACED),
    ],
)
def test_a_second_instance_of_a_key(store, other, policy, fill, outcome):
    put(store, payload_of(KEYS[0]))
    assert put(store, payload_of(KEYS[0], fill=fill), on_duplicate=policy) == [outcome]
    assert get(store, KEYS[0]) == payload_of(KEYS[0], fill=fill if outcome is REPLACED else "x")
    assert other.lookup("1.1") == store.lookup("1.1")


def test_the_first_of_equal_keys_in_a_body_wins(store):
    assert put(store, payload_of(KEYS[0]), payload_of(KEYS[0], fill="y")) == [STORED, DUPLICATE]
    assert get(store, KEYS[0]) == payload_of(KEYS[0])


def test_bodies_of_one_transaction_see_each_other_as_stored(store):
    transaction = store.begin()
    pairs = [add(transaction, payload_of(KEYS[0]))]
    transaction.open_body()
    pairs.append(add(transaction, payload_of(KEYS[0], fill="y")))
    outcomes = transaction.committing(pairs, OnDuplicate.REPLACE)
    assert next(outcomes) is STORED
    assert get(store, KEYS[0]) == payload_of(KEYS[0])
    assert list(outcomes) == [REPLACED]
    assert get(store, KEYS[0]) == payload_of(KEYS[0], fill="y")


def test_of_two_writers_of_a_key_one_wins(store):
    outcomes, start = [], threading.Barrier(4)

    def write(number):
        transaction = store.begin()
        pair = add(transaction, payload_of(KEYS[0], fill=str(number)))
        start.wait()
        outcomes.extend(transaction.commit([pair]))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [STORED, DUPLICATE, DUPLICATE, DUPLICATE]
    assert len(store.lookup("1.1")) == 1


def test_records_can_be_read_dropped_and_taken_back_before_the_commit(store):
    transaction = store.begin()
    kept = add(transaction, payload_of(KEYS[0]))
    assert kept[0].pread(0, 1000) == payload_of(KEYS[0])
    dropped, _ = add(transaction, payload_of(KEYS[1]))
    transaction.drop_record(dropped)
    end = transaction.end
    transaction.open_record()
    transaction.gather(b"a")
    assert transaction.gathered[1] > 1
    transaction.write([b"bc"])
    assert transaction.received().pread(0, 10) == b"abc"
    transaction.back_to(end)
    assert transaction.unsynced > 0
    transaction.sync_so_far()
    assert transaction.unsynced == 0
    assert transaction.commit([kept]) == [STORED]
    assert [row.key for row in store.lookup("1.1")] == KEYS[:1]
    assert get(store, KEYS[0]) == payload_of(KEYS[0])


def test_a_copy_has_the_id_and_the_time_of_its_original_and_is_stored_once(store, other):
    put(store, payload_of(KEYS[0]))
    (row,) = store.lookup(*KEYS[0])
    original = row._replace(record_id=b"r" * 16, stored_at=1234)
    for outcome in (STORED, IDENTICAL):
        transaction = store.begin()
        pairs = [add(transaction, payload_of(KEYS[1]), original=original)]
        pairs.append(add(transaction, payload_of(KEYS[2])))
        assert transaction.commit(pairs, OnDuplicate.REPLACE)[0] is outcome
    (copy,), (new,) = other.lookup(*KEYS[1]), other.lookup(*KEYS[2])
    assert (copy.record_id, copy.stored_at) == (original.record_id, 1234)
    assert new.record_id != copy.record_id
    assert new.stored_at > row.stored_at
    assert get(store, KEYS[1]) == payload_of(KEYS[1])


def test_an_open_record_cannot_be_committed(store):
    transaction = store.begin()
    transaction.open_record()
    with pytest.raises(StoreError):
        transaction.commit([])


@pytest.mark.parametrize("target", [KEYS[0], KEYS[0][:2], KEYS[0][:1]])
def test_a_delete_is_done_when_it_returns(store, other, target):
    put(store, *map(payload_of, KEYS))
    below = [key for key in KEYS if key[: len(target)] == tuple(target)]
    assert store.delete(*target) == len(below)
    assert store.delete(*target) == 0
    for view in (store, other):
        assert [row.key for row in view.lookup("1.1")] == [key for key in KEYS if key not in below]
        assert view.index.count("1.1") == len(KEYS) - len(below)
    assert [change.key for change in store.changes() if change.kind is ChangeKind.DELETED] == below
    assert put(store, payload_of(below[0], fill="y")) == [STORED]
    assert get(store, below[0]) == payload_of(below[0], fill="y")


def test_a_lease_keeps_the_bytes(store):
    put(store, payload_of(KEYS[0]))
    segment, offset, length = store.lookup(*KEYS[0])[0].location
    lease = store.open_segments([segment])
    store.delete(*KEYS[0])
    assert lease.pread(segment, offset, length) == payload_of(KEYS[0])
    lease.release()
    lease.release()
    with pytest.raises(SegmentGone):
        store.open_segments([segment + 1_000])


def test_changed_bytes_are_registered_and_refused(store, other):
    put(store, payload_of(KEYS[0]))
    (row,) = store.lookup(*KEYS[0])
    with store.open_segments([row.location.segment]) as lease:
        store.require_whole(row, lease)
        wrong = row._replace(digest=bytes(20), location=row.location._replace(length=100))
        with pytest.raises(InstanceDamaged):
            store.require_whole(wrong, lease)
    assert [record.record_id for record in other.damaged_among([row.record_id])] == [row.record_id]
    found = other.instance(KEYS[0])
    assert found is not None
    assert found[0].damaged


def test_instances_with_their_bytes_are_not_lost(store, other):
    put(store, *map(payload_of, KEYS[:2]))
    assert store.lost_among(store.lookup("1.1")) == other.lost_among(other.lookup("1.1")) == []
    assert store.index.damage() == []


def test_a_read_only_store_refuses_to_write(store, other):
    put(store, payload_of(KEYS[0]))
    with pytest.raises(Forbidden):
        other.begin()
    with pytest.raises(Forbidden):
        other.delete("1.1")
    assert len(other.lookup("1.1")) == 1


def test_the_reading_calls_are_those_of_the_index(store, other):
    put(store, *map(payload_of, KEYS))
    row = store.lookup(*KEYS[0])[0]
    other.probe()
    assert other.packed("1.1", None) == store.index.packed("1.1")
    assert other.instance(KEYS[0], (0,)) == store.index.instance(KEYS[0], (0,))
    assert other.frame_entries(row, [0]) == [(100, 100)]
    assert other.short_metadata(store.index.packed(*KEYS[0])) == [other.metadata([row])]
    assert other.bulk_value(KEYS[0], "7FE00010") is not None
    assert other.bulk_value(KEYS[0], "00020010") is None
    assert [change.key for change in other.changes(limit=10)] == KEYS
    assert other.first_change() == 1
    assert other.damaged_among([row.record_id]) == []


def test_a_restricted_view_is_as_if_the_others_were_not_there(store):
    hidden, shown = KEYS[0], key_of(2)
    put(store, payload_of(hidden), payload_of(shown))
    view = store.restricted(rule_of(["PatientID=P1.2"]))
    whole, index = store.index, view.index
    row, packed = store.lookup(*hidden)[0], store.packed(*hidden)
    assert view.lookup("1.1") == view.packed(*hidden) == index.packed_rows([hidden]) == []
    assert (view.instance(hidden), view.bulk_value(hidden, "7FE00010"), index.count("1.1")) == (None, None, 0)
    assert index.existing([hidden, shown]) == [None, store.lookup(*shown)[0]]
    for level in Level:
        assert [hit.study for hit in index.search(query_of(level, None, None, []))] == [shown.study]
        assert index.total(query_of(level, None, None, [])) == 1
        assert index.total(query_of(level, hidden.study, None, [])) in (0, None)
    assert (index.counts, whole.counts) == (True, True)
    assert index.listed(BY_TAG["00100020"], "P1.1", 9) == []
    assert [study for study, _ in index.listed(BY_TAG["00100020"], "P1.2", 9)] == [shown.study]
    assert [change.key for change in view.changes()] == [shown]
    assert view.delete("1.1") == 0
    assert whole.lookup("1.1") == [row]
    assert view.delete(*shown) == 1
    assert store.packed(*hidden) == packed
    assert view.version() == store.version()


def test_an_instance_that_its_sender_would_not_see_is_refused(store):
    view = store.restricted(rule_of(["PatientID=P1.2"]))
    new = payload_of(key_of(2))
    assert put(view, payload_of(KEYS[0]), new) == [UNAUTHORIZED, STORED]
    assert put(view, payload_of(KEYS[0]), new, on_duplicate=OnDuplicate.REPLACE) == [UNAUTHORIZED, REPLACED]
    assert store.lookup("1.1") == []
    mixed = [(view.rule, key_of(2), b"{}"), (None, key_of(2), b"{}")]
    assert store.index.outside(mixed) == [True, False]
    either = any_of([rule_of(["AccessionNumber=1"]), rule_of(["AccessionNumber=2"])])
    texts = [b'{"00080050":{"vr":"SH","Value":["%d"]}}' % number for number in (1, 2, 3, 1)]
    assert store.index.outside([(either, key_of(3), text) for text in texts]) == [False, False, True, False]
    put(store, payload_of(key_of(3)))
    assert store.index.outside([(either, key_of(3), texts[0])]) == [True]


def put_with(store, patient, date, *keys):
    transaction = store.begin()
    pairs = [add(transaction, payload_of(key)) for key in keys]
    for _, new in pairs:
        new.attributes["00100020"] = {"vr": "LO", "Value": [patient]}
        new.attributes["00080020"] = {"vr": "DA", "Value": [date]}
    assert transaction.commit(pairs) == [STORED] * len(keys)


def test_a_view_sees_its_part_of_a_study(store, other):
    ours, theirs = [key_of(1, 1, 1)], [key_of(1, 1, 2), key_of(1, 2, 1)]
    put_with(store, "A", "20240102", *ours)
    put_with(store, "B", "20200101", *theirs)
    put_with(store, "B", "20220101", key_of(2))
    everything = query_of(Level.STUDY, None, None, [])
    for patient, dates, keys in (("A", ["20240102"], ours), ("B", ["20220101", "20200101"], theirs)):
        view = store.restricted(rule_of([f"PatientID={patient}"]))
        assert view.lookup("1.1") == [row for row in store.lookup("1.1") if row.key in keys]
        assert [view.instance(key) is not None for key in ours + theirs] == [
            key in keys for key in ours + theirs
        ]
        for _ in range(2):  # the second time with everything that the first one has remembered
            studies = list(view.index.search(everything))
            assert [level_attributes(hit.study_row)["00080020"]["Value"] for hit in studies] == [
                [date] for date in dates
            ]
            assert studies[-1].study_row.instances == view.index.count("1.1") == len(keys)
            for condition in (
                ("PatientID", patient),
                ("StudyDate", dates[-1]),
                ("StudyDate", f"-{dates[-1]}"),
            ):
                query = query_of(Level.INSTANCE, None, None, [condition])
                found = [hit.instance for hit in view.index.search(query) if hit.study == "1.1"]
                assert found == [key.instance for key in keys]
                assert list(view.index.search(query_of(Level.STUDY, None, None, [condition])))
        assert [change.key for change in view.changes() if change.key.study == "1.1"] == keys
    assert [hit.study_row.instances for hit in store.index.search(everything)] == [1, 3]
    listed = [(study, row.instances) for study, row in view.index.listed(BY_TAG["00100020"], "B", 9)]
    assert sorted(listed) == [("1.1", 2), ("1.2", 1)]
    assert view.delete("1.1") == 2
    assert [row.key for row in other.lookup("1.1")] == ours
    assert not any(term[0] & 0x10 for term, _ in store.index.dump("attributes"))


def test_a_body_may_have_an_own_policy(store):
    put(store, payload_of(KEYS[0]))
    transaction = store.begin()
    transaction.open_body(None, OnDuplicate.REFUSE)
    pair = add(transaction, payload_of(KEYS[0], fill="y"))
    assert transaction.commit([pair], OnDuplicate.REPLACE) == [DUPLICATE]

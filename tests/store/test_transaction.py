import errno
import os
import threading

import pytest
from disks import FullDiskFileOps
from store_world import add, derive, describe, get, key_of, open_store, payload_of, put

from streamsrv.errors import InsufficientStorage, StoreCorrupt, StoreError
from streamsrv.store import transaction as transactions
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate, Outcome
from streamsrv.store.segments.records import HEADER, PayloadDigest, RecordKind
from streamsrv.store.segments.segments import SegmentWriter

STORED, DUPLICATE, IDENTICAL, REPLACED, UNAUTHORIZED = Outcome


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path) as store:
        yield store


def kinds(store, segment=1):
    """The kinds of the records of a segment up to its end, PENDING ones included."""
    with store.open_segments([segment]) as lease:
        fd = lease.fd(segment)
        return [step.header.kind for step in store.form.walk(fd, segment, os.fstat(fd).st_size)]


def length_of(store, segment=1):
    return store.layout.segment(segment).stat().st_size


# Storing


def test_what_was_committed_is_found_and_equal(tmp_path):
    payloads = {key_of(1, 1, n): payload_of(key_of(1, 1, n), 300 + n) for n in range(5)}
    with open_store(tmp_path) as store:
        assert put(store, *payloads.values()) == [STORED] * 5
        assert {key: get(store, key) for key in payloads} == payloads
        assert kinds(store) == [RecordKind.INSTANCE] * 5
    with open_store(tmp_path) as store:
        assert {key: get(store, key) for key in payloads} == payloads


def test_a_record_can_be_read_in_place_before_the_commit(store):
    payload = payload_of(key_of(1), 1000)
    transaction = store.begin()
    record, _ = add(transaction, payload)
    assert record.pread(0, 2000) == payload
    assert record.pread(990, 5) == payload[990:995]
    assert record.pread(990, 50) == payload[990:]
    assert record.pread(1000, 1) == record.pread(2000, 1) == b""
    assert (record.number, record.location.length, len(record.record_id)) == (1, 1000, 16)
    transaction.abort()
    with pytest.raises(StoreError, match="has ended"):
        record.pread(0, 1)


def test_an_aborted_transaction_leaves_nothing(store):
    put(store, payload_of(key_of(1)))
    end = length_of(store)
    transaction = store.begin()
    add(transaction, payload_of(key_of(2)))
    transaction.open_record()
    transaction.write([b"half"])
    transaction.abort()
    transaction.abort()
    assert length_of(store) == end
    assert get(store, key_of(2)) is None


def test_an_empty_record(store):
    transaction = store.begin()
    transaction.open_record()
    record = transaction.close_record()
    assert (record.location.length, record.pread(0, 5)) == (0, b"")
    transaction.abort()


def test_records_open_and_close_in_turn(store):
    transaction = store.begin()
    with pytest.raises(StoreError, match="no record"):
        transaction.close_record()
    transaction.open_record()
    with pytest.raises(StoreError, match="open already"):
        transaction.open_record()
    with pytest.raises(StoreError, match="still open"):
        transaction.commit([])
    assert length_of(store) == FIRST_RECORD


def test_a_transaction_of_nothing(store):
    transaction = store.begin()
    assert transaction.commit([]) == []
    assert length_of(store) == FIRST_RECORD


def test_record_ids_and_times_are_all_different(store):
    transaction = store.begin()
    records = [add(transaction, payload_of(key_of(1, 1, n)))[0] for n in range(50)]
    transaction.abort()
    assert len({record.record_id for record in records}) == 50
    assert [record.stored_at for record in records] == sorted({record.stored_at for record in records})


def test_syncing_while_receiving(store):
    transaction = store.begin()
    transaction.open_record()
    transaction.write([b"x" * 1000])
    assert transaction.unsynced == 1000 + HEADER
    thread = threading.Thread(target=transaction.sync_so_far)
    thread.start()
    thread.join()
    assert transaction.unsynced == 0
    transaction.abort()
    transaction.sync_so_far()


def test_many_slices(store, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 3)
    payloads = [payload_of(key_of(1, 1, n)) for n in range(10)]
    put(store, payloads[4])
    assert put(store, *payloads) == [STORED] * 4 + [DUPLICATE] + [STORED] * 5
    assert [get(store, key_of(1, 1, n)) for n in range(10)] == payloads
    assert kinds(store).count(RecordKind.VOID) == 1


def test_slices_by_size(store, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_BYTES", 3_200)
    transaction = store.begin()
    pairs = [add(transaction, payload_of(key_of(1, 1, n))) for n in range(5)]
    assert [len(portion) for portion in transactions.slices(iter(pairs))] == [2, 2, 1]
    transaction.abort()


# Records that are not wanted


def test_dropped_at_the_end_costs_nothing(store):
    transaction = store.begin()
    first = add(transaction, payload_of(key_of(1)))
    end = length_of(store)
    for _ in range(3):
        second, _ = add(transaction, payload_of(key_of(2)))
        transaction.drop_record(second)
    assert length_of(store) <= end + second.location.length + HEADER
    third = add(transaction, payload_of(key_of(3), 900))
    assert transaction.commit([first, third]) == [STORED, STORED]
    assert kinds(store) == [RecordKind.INSTANCE, RecordKind.INSTANCE]
    assert get(store, key_of(3)) == payload_of(key_of(3), 900)


def test_dropped_in_between_becomes_void(store):
    transaction = store.begin()
    pairs = [add(transaction, payload_of(key_of(n))) for n in range(6)]
    for number in (1, 2, 4):
        transaction.drop_record(pairs[number][0])
    assert transaction.commit([pairs[0], pairs[3], pairs[5]]) == [STORED] * 3
    assert kinds(store) == [
        RecordKind.INSTANCE,
        RecordKind.VOID,
        RecordKind.INSTANCE,
        RecordKind.VOID,
        RecordKind.INSTANCE,
    ]
    row = store.index.segment(1)
    assert row.dead == 3 * (200 + HEADER)
    assert FIRST_RECORD + row.live + row.dead + 3 * HEADER == row.committed_end == length_of(store)


def test_dropped_while_another_is_open(store):
    transaction = store.begin()
    first, _ = add(transaction, payload_of(key_of(1)))
    transaction.open_record()
    transaction.write([payload_of(key_of(2))])
    transaction.drop_record(first)
    record = transaction.close_record()
    assert transaction.commit([(record, describe(record))]) == [STORED]
    assert kinds(store) == [RecordKind.VOID, RecordKind.INSTANCE]


def test_a_million_refused_parts_weigh_nothing(store):
    transaction = store.begin()
    for _ in range(20):
        records = []
        for _ in range(50):
            transaction.open_record()
            records.append(transaction.close_record())
        transaction.open_record()  # the next part has begun when the ended ones are looked at
        for record in records:
            transaction.drop_record(record)
        transaction.drop_record(transaction.close_record())
    assert len(transaction._lost) <= 20
    transaction.abort()


# Duplicates


def test_a_duplicate_is_refused_and_costs_nothing(store):
    put(store, payload_of(key_of(1)))
    end = length_of(store)
    assert put(store, payload_of(key_of(1), fill="y")) == [DUPLICATE]
    assert get(store, key_of(1)) == payload_of(key_of(1))
    assert length_of(store) == end


@pytest.mark.parametrize("policy", OnDuplicate)
def test_within_a_request_the_first_wins(store, policy):
    first, second = payload_of(key_of(1)), payload_of(key_of(1), fill="y")
    outcomes = put(store, first, second, payload_of(key_of(2)), second, on_duplicate=policy)
    assert outcomes == [STORED, DUPLICATE, STORED, DUPLICATE]
    assert get(store, key_of(1)) == first
    assert kinds(store) == [RecordKind.INSTANCE, RecordKind.VOID, RecordKind.INSTANCE]


@pytest.mark.parametrize("policy", OnDuplicate)
def test_within_a_request_the_first_wins_across_slices(store, policy, monkeypatch):
    monkeypatch.setattr(transactions, "SLICE_INSTANCES", 1)
    first, second = payload_of(key_of(1)), payload_of(key_of(1), fill="y")
    assert put(store, first, second, on_duplicate=policy) == [STORED, DUPLICATE]
    assert get(store, key_of(1)) == first


def test_identical_is_accepted_if_every_byte_is(store, monkeypatch):
    monkeypatch.setattr(transactions, "COMPARE_WINDOW", 64)
    policy = OnDuplicate.ACCEPT_IDENTICAL
    one, other = payload_of(key_of(1), 300), payload_of(key_of(1), 300, "y")
    assert put(store, one, on_duplicate=policy) == [STORED]
    assert put(store, one, on_duplicate=policy) == [IDENTICAL]
    assert put(store, other, on_duplicate=policy) == [DUPLICATE]
    assert put(store, one[:-1], on_duplicate=policy) == [DUPLICATE]
    two = payload_of(key_of(2))
    assert put(store, two, two, on_duplicate=policy) == [STORED, IDENTICAL]


def test_digests_alone_do_not_make_instances_identical(store, monkeypatch):
    monkeypatch.setattr(PayloadDigest, "digest", lambda self: bytes(20))
    put(store, payload_of(key_of(1)))
    other = payload_of(key_of(1), fill="y")
    assert put(store, other, on_duplicate=OnDuplicate.ACCEPT_IDENTICAL) == [DUPLICATE]


def test_replace(store):
    put(store, payload_of(key_of(1)))
    old = store.lookup(*key_of(1))[0]
    again = payload_of(key_of(1), 500, "y")
    assert put(store, again, on_duplicate=OnDuplicate.REPLACE) == [REPLACED]
    assert get(store, key_of(1)) == again
    with store.open_segments([1]) as lease:
        steps = list(store.form.walk(lease.fd(1), 1, length_of(store)))
    assert steps[1].header.replaced == old.record_id
    assert store.index.segment(1).live == 500


def test_of_racing_requests_one_wins(store):
    keys = [key_of(1, 1, n) for n in range(30)]
    outcomes = {}

    def race(name):
        payloads = [payload_of(key, fill=name) for key in keys]
        outcomes[name] = put(store, *(payloads if name < "c" else payloads[::-1]))

    threads = [threading.Thread(target=race, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, key in enumerate(keys):
        results = {name: outcomes[name][number if name < "c" else -1 - number] for name in "abcd"}
        assert sorted(results.values()) == [STORED] + [DUPLICATE] * 3
        (winner,) = (name for name, result in results.items() if result is STORED)
        assert get(store, key) == payload_of(key, fill=winner)
    alive = [kind for segment in store.layout.segment_files() for kind in kinds(store, segment)]
    assert alive.count(RecordKind.INSTANCE) == len(keys)


# Failures


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_fails_the_request_and_seals_the_segment_unless_the_disk_is_full(tmp_path, code):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(key_of(1)))
        ops.sync_error = code
        with pytest.raises(InsufficientStorage if code == errno.ENOSPC else StoreError):
            put(store, payload_of(key_of(2)))
        ops.sync_error = None
        assert get(store, key_of(2)) is None
        assert store.index.segment(1).sealed == (code == errno.EIO)
        assert put(store, payload_of(key_of(2))) == [STORED]
        assert get(store, key_of(1)) == payload_of(key_of(1))
        assert kinds(store) == [RecordKind.INSTANCE]


def test_a_full_disk(tmp_path):
    ops = FullDiskFileOps()
    with open_store(tmp_path, fileops=ops) as store:
        put(store, payload_of(key_of(1)))
        ops.room = 100
        with pytest.raises(InsufficientStorage):
            put(store, payload_of(key_of(2)))
        assert get(store, key_of(1)) == payload_of(key_of(1))
        ops.room = None
        assert put(store, payload_of(key_of(2))) == [STORED]


def test_an_index_that_refuses_leaves_nothing_valid(store, monkeypatch):
    def refuse(*_, **__):
        raise StoreCorrupt("refused")

    with monkeypatch.context() as patch:
        patch.setattr(store.index, "commit", refuse)
        with pytest.raises(StoreCorrupt):
            put(store, payload_of(key_of(1)))
    assert length_of(store) == FIRST_RECORD
    assert put(store, payload_of(key_of(1))) == [STORED]


def test_an_index_that_committed_and_then_failed_keeps_its_records(store, monkeypatch):
    commit = store.index.commit

    def late(*args, **options):
        commit(*args, **options)
        raise StoreError("after all")

    with monkeypatch.context() as patch:
        patch.setattr(store.index, "commit", late)
        with pytest.raises(StoreError, match="after all"):
            put(store, payload_of(key_of(1)))
    assert get(store, key_of(1)) == payload_of(key_of(1))
    assert put(store, payload_of(key_of(2))) == [STORED]
    assert get(store, key_of(1)) == payload_of(key_of(1))


class Died(BaseException):
    """The process is gone: its descriptors are closed, nothing else happens."""


@pytest.fixture
def dying_at(monkeypatch):
    """Storing these payloads dies at a point."""

    def vanish(acquired):
        if acquired.fd >= 0:
            os.close(acquired.fd)
            acquired.locks.close()
        acquired.fd = -1

    def die_at(point, store, *payloads):
        def die(name):
            if name == point:
                raise Died

        with monkeypatch.context() as patch:
            patch.setattr("streamsrv.store.failpoints.hit", die)
            patch.setattr(SegmentWriter, "release", vanish)
            with pytest.raises(Died):
                put(store, *payloads)

    return die_at


@pytest.mark.parametrize("point", ["before-data-sync", "after-data-sync"])
def test_what_a_dead_writer_made_valid_never_returns(tmp_path, dying_at, point):
    """Its key is stored again, and deleted, before anybody acquires the segment that it left."""
    with open_store(tmp_path) as store:
        another = store.begin()  # in segment 1; the dead one is in 2
        dying_at(point, store, payload_of(key_of(1)), payload_of(key_of(2)))
        assert kinds(store, 2) == [RecordKind.INSTANCE] * 2
        assert another.commit([add(another, payload_of(key_of(1), 500))]) == [STORED]
        assert kinds(store, 2) == []
        assert kinds(store, 1) == [RecordKind.INSTANCE]
        store.delete("1.1")
    assert reindex(tmp_path, derive).instances == 0


def test_a_delete_settles_too(store, dying_at):
    put(store, payload_of(key_of(1)))
    own = store.segments.acquire()
    dying_at("after-data-sync", store, payload_of(key_of(1, 1, 2)))
    own.release()
    assert store.delete("1.1") == 1
    assert [len(kinds(store, segment)) for segment in (1, 2)] == [2, 0]

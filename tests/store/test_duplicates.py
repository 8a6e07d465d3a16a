"""An instance that is stored again: refused if its stored bytes are whole, taken if they are damaged."""

import errno
import os

import pytest
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.store import transaction as transactions
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import ChangeKind, OnDuplicate, Outcome
from streamsrv.store.segments.verifying import damaged_record

STORED, DUPLICATE, IDENTICAL, REPLACED, UNAUTHORIZED = Outcome
KEYS = [key_of(1, 1, instance) for instance in (1, 2, 3)]
KEY = KEYS[1]


@pytest.fixture
def store(memory):
    with open_store(memory) as store:
        put(store, *map(payload_of, KEYS))
        yield store


def flip(store, key, at=150, mask=1):
    segment, offset, _ = store.lookup(*key)[0].location
    with store.layout.segment(segment).open("r+b") as file:
        file.seek(offset + at)
        (byte,) = file.read(1)
        file.seek(offset + at)
        file.write(bytes([byte ^ mask]))


def told(store):
    return [str(finding) for finding in check(store, derive)]


@pytest.mark.parametrize("policy", OnDuplicate)
@pytest.mark.parametrize("fill", ["x", "y"])
@pytest.mark.parametrize("registered", [False, True])
def test_a_damaged_instance_is_taken_again_in_every_mode(store, memory, policy, fill, registered):
    flip(store, KEY)
    if registered:
        store.index.register_damage([damaged_record(store.lookup(*KEY)[0], "a reason")])
    assert told(store)[0].startswith("error: segment 1, byte")
    again = payload_of(KEY, fill=fill)
    expected = [DUPLICATE, REPLACED] if policy is not OnDuplicate.REPLACE else [REPLACED, REPLACED]
    if policy is OnDuplicate.ACCEPT_IDENTICAL:
        expected[0] = IDENTICAL
    assert put(store, payload_of(KEYS[0]), again, on_duplicate=policy) == expected
    assert get(store, KEY) == again
    assert store.index.damage() == []
    assert store.index.changes()[-1].kind is ChangeKind.REPLACED
    (line,) = told(store)
    assert line.startswith("note: segment 1, byte")
    assert line.endswith("it was deleted or stored again")
    assert put(store, again, on_duplicate=OnDuplicate.REFUSE) == [DUPLICATE]
    store.close()
    reindex(memory, derive)
    with open_store(memory) as rebuilt:
        assert get(rebuilt, KEY) == again
        assert [finding for finding in told(rebuilt) if finding.startswith("error")] == []
        compact(rebuilt, everything=True)
        assert told(rebuilt) == []
        assert get(rebuilt, KEY) == again


def test_a_damaged_instance_may_be_deleted(store):
    flip(store, KEY)
    store.delete(*KEY)
    (line,) = told(store)
    assert line.startswith("note:")
    assert put(store, payload_of(KEY)) == [STORED]
    assert get(store, KEY) == payload_of(KEY)


@pytest.mark.parametrize("policy", [OnDuplicate.REFUSE, OnDuplicate.ACCEPT_IDENTICAL])
def test_an_instance_whose_segment_is_missing_or_short_is_taken_again(store, policy):
    path = store.layout.segment(1)
    store.index.seal(1)
    store.segments.refresh()
    offset = store.lookup(*KEY)[0].location.offset
    os.truncate(path, offset + 20)
    assert put(store, payload_of(KEY), on_duplicate=policy) == [REPLACED]
    assert put(store, payload_of(KEYS[0], fill="y"), on_duplicate=policy) == [DUPLICATE]
    path.unlink()
    store.readers.forget()
    assert put(store, payload_of(KEYS[0], fill="y"), on_duplicate=policy) == [REPLACED]
    assert get(store, KEYS[0]) == payload_of(KEYS[0], fill="y")


def test_an_index_row_with_a_wrong_digest_does_not_make_its_bytes_wrong(store, monkeypatch):
    """The header of the record decides."""
    real = store.index.existing

    def existing(keys):
        return [row and row._replace(digest=bytes(20)) for row in real(keys)]

    monkeypatch.setattr(store.index, "existing", existing)
    assert put(store, payload_of(KEY, fill="y")) == [DUPLICATE]
    assert get(store, KEY) == payload_of(KEY)


def test_bytes_that_cannot_be_read_now_stay_unless_they_are_registered(store, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(transactions, "damage_of", fail)
    assert put(store, payload_of(KEY, fill="y")) == [DUPLICATE]
    assert f"instance {'/'.join(KEY)} cannot be read: Input/output error" in caplog.text
    store.index.register_damage([damaged_record(store.lookup(*KEY)[0], "it cannot be read")])
    assert put(store, payload_of(KEY, fill="y")) == [REPLACED]
    assert f"damaged, and stored again: instance {'/'.join(KEY)}, segment 1, byte" in caplog.text


def test_two_records_of_one_damaged_instance_in_a_request(store, monkeypatch):
    """The first takes its place; the second is its duplicate, in the same slice or in a later one."""
    for slice_length in (1000, 1):
        monkeypatch.setattr("streamsrv.store.transaction.SLICE_INSTANCES", slice_length)
        flip(store, KEY)
        first, second = payload_of(KEY, fill="y"), payload_of(KEY, fill="z")
        assert put(store, first, second) == [REPLACED, DUPLICATE]
        assert get(store, KEY) == first

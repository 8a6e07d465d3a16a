"""The register of damaged records."""

import subprocess
import sys

import pytest
from store_world import OPTIONS, get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.damage import DamagedRecord, pack_damaged, unpack_damaged
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.rows import Location, OnDuplicate
from streamsrv.store.store import Store

KEYS = [key_of(1, 1, instance) for instance in (1, 2, 3)]


@pytest.fixture
def store(memory):
    with open_store(memory) as store:
        put(store, *map(payload_of, KEYS))
        yield store


def record_of(store, key):
    row = store.lookup(*key)[0]
    return DamagedRecord(row.record_id, key, row.location, "its checksum is wrong", 1_700_000_000_000_000)


def test_a_row_is_read_as_it_was_written():
    keyless = DamagedRecord(b"r" * 16, None, Location(1, 2, 3), "no header", 4)
    for record in (keyless, keyless._replace(key=KEYS[0], reason="é \0 two")):
        assert unpack_damaged(record.record_id, pack_damaged(record)) == record
        with pytest.raises(StoreCorrupt, match=f"damage, record {record.record_id.hex()}: its checksum"):
            unpack_damaged(record.record_id, pack_damaged(record)[:-1] + b"?")


def flags(store):
    return [store.instance(key)[0].damaged for key in KEYS]


def test_what_is_registered_is_known_from_its_commit_on(store):
    before, ids = store.version(), [store.lookup(*key)[0].record_id for key in KEYS]
    assert (flags(store), store.damaged_among(ids)) == ([False] * 3, [])
    found = [record_of(store, key) for key in KEYS[:2]]
    assert store.index.register_damage(found) == [True, True]
    assert store.version() != before
    assert (flags(store), store.damaged_among(ids)) == ([True, True, False], found)
    assert sorted(store.index.damage()) == sorted(found)
    first = store.index.damage(limit=1)
    assert sorted(first + store.index.damage(after=first[-1].record_id)) == sorted(found)
    assert store.index.register_damage(found) == [False, False]
    assert store.index.forget_damage([*ids[1:], b"unknown" * 2]) == 1
    assert (flags(store), store.damaged_among(ids)) == ([True, False, False], found[:1])


OTHER_PROCESS = """
import sys
from pathlib import Path
from streamsrv.store.rows import InstanceKey
from streamsrv.store.store import Store

with Store.open(Path(sys.argv[1]), read_only=True) as store:
    for _ in sys.stdin:
        row, _ = store.instance(InstanceKey(*sys.argv[2:]))
        print(row.damaged, flush=True)
"""


def test_another_process_that_has_the_index_open_knows_it_at_once(store, memory):
    command = [sys.executable, "-c", OTHER_PROCESS, str(memory), *KEYS[0]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def ask():
            print("?", file=other.stdin, flush=True)
            return other.stdout.readline().strip()

        assert ask() == "False"
        found = record_of(store, KEYS[0])
        store.index.register_damage([found])
        assert ask() == "True"
        store.index.forget_damage([found.record_id])
        assert ask() == "False"
        other.stdin.close()


def test_only_a_record_that_is_there_can_be_damaged(store):
    gone, replaced = record_of(store, KEYS[0]), record_of(store, KEYS[1])
    store.delete(*KEYS[0])
    put(store, payload_of(KEYS[1], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    keyless = record_of(store, KEYS[2])._replace(key=None)
    assert store.index.register_damage([gone, replaced, keyless]) == [False, False, True]
    assert store.index.damage() == [keyless]
    assert store.instance(KEYS[1])[0].damaged is False


def test_what_replaces_or_deletes_a_damaged_record_takes_it_from_the_register(store):
    store.index.register_damage([record_of(store, key) for key in KEYS])
    put(store, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    store.delete(*KEYS[1])
    assert [record.key for record in store.index.damage()] == [KEYS[2]]
    assert get(store, KEYS[0]) == payload_of(KEYS[0], fill="y")


def test_compaction_moves_a_registered_record(store):
    store.index.register_damage([record_of(store, KEYS[2])])
    before = store.lookup(*KEYS[2])[0].location
    compact(store, everything=True)
    (record,) = store.index.damage()
    assert record.location == store.lookup(*KEYS[2])[0].location != before
    assert store.instance(KEYS[2])[0].damaged


def test_the_register_outlives_its_process(store, memory):
    found = record_of(store, KEYS[0])
    store.index.register_damage([found])
    store.close()
    with Store.open(memory, OPTIONS) as again:
        assert again.index.damage() == [found]
        assert again.damaged_among([found.record_id]) == [found]

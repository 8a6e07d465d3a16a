import gc
import os
import random
import subprocess
import sys
import threading

import pytest
from store_world import HEAD, derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import Forbidden, SegmentGone, StoreCorrupt, StoreError, StoreLocked
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import OnDuplicate, Outcome
from streamsrv.store.store import Store, StoreOptions


def test_opening_makes_a_store(tmp_path):
    folder = tmp_path / "deep" / "data"
    with open_store(folder) as store:
        store_id, secret = store.store_id, store.secret
    with open_store(folder) as store:
        assert (store.store_id, store.secret) == (store_id, secret)
    store.close()
    assert (folder / "store.toml").stat().st_mode & 0o777 == 0o600


def test_reading_forwards_to_the_index(tmp_path):
    with open_store(tmp_path) as store:
        put(store, *(payload_of(key_of(1, 1, n), 300) for n in range(5)))
        rows = store.lookup("1.1", "1.1.1")
        assert [row.key for row in rows] == [key_of(1, 1, n) for n in range(5)]
        assert store.lookup("1.1", after=rows[2].key, limit=1) == [rows[3]]
        assert store.frame_entries(rows[0], [0]) == [(100, 200)]
        assert b"".join(store.metadata(rows[:2])).count(b'"n"') == 2
        assert store.bulk_value(rows[0].key, "7FE00010").length == 200
        assert store.bulk_value(rows[0].key, "00000000") is None
        assert [change.sequence for change in store.changes(2, 2)] == [3, 4]


def test_read_only(tmp_path):
    with pytest.raises(StoreError, match="not the folder of a store"):
        open_store(tmp_path / "nothing", read_only=True)
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
    with open_store(tmp_path, read_only=True) as store:
        assert get(store, key_of(1)) == payload_of(key_of(1))
        with pytest.raises(Forbidden):
            store.begin()
        with pytest.raises(Forbidden):
            store.delete("1.1")


def test_exclusive(tmp_path):
    with open_store(tmp_path, exclusive=True):
        with pytest.raises(StoreLocked, match="stop it first"):
            open_store(tmp_path, exclusive=True)
        with pytest.raises(StoreLocked):
            Store.lock(tmp_path)
    with Store.lock(tmp_path), open_store(tmp_path):
        pass
    with Store.lock(tmp_path, shared=True), Store.lock(tmp_path, shared=True), pytest.raises(StoreLocked):
        Store.lock(tmp_path)


def test_without_its_index_a_store_is_not_opened(tmp_path):
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
    (tmp_path / "index").rename(tmp_path / "lost")
    with pytest.raises(StoreCorrupt, match="streamsrv reindex"):
        open_store(tmp_path)
    assert not (tmp_path / "index").exists()


def test_what_fails_to_open_keeps_nothing_locked(tmp_path):
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
    (tmp_path / "index").rename(tmp_path / "lost")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreCorrupt):
        open_store(tmp_path, exclusive=True)
    assert len(os.listdir("/proc/self/fd")) == before
    Store.lock(tmp_path).close()


OTHER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from store_world import key_of, open_store, payload_of, put
with open_store(Path(sys.argv[1])) as store:
    for number in range(25):
        outcomes = put(store, payload_of(key_of(number), 300, sys.argv[2]))
        print(int(outcomes[0]), flush=True)
"""


def test_of_racing_processes_one_wins(tmp_path):
    with open_store(tmp_path):
        pass
    script = OTHER.format(tests=os.path.dirname(__file__))
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), fill],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for fill in "ab"
    ]
    outcomes = [
        [Outcome(int(line)) for line in worker.communicate(timeout=60)[0].split()] for worker in workers
    ]
    with open_store(tmp_path) as store:
        for number, (a, b) in enumerate(zip(*outcomes, strict=True)):
            assert sorted([a, b]) == [Outcome.STORED, Outcome.DUPLICATE]
            winner = "a" if a is Outcome.STORED else "b"
            assert get(store, key_of(number)) == payload_of(key_of(number), 300, winner)
        assert [str(finding) for finding in check(store, derive)] == []


def test_nothing_leaks(memory):
    """Descriptors and threads, over all that a store does. Those of tests before may end meanwhile."""

    def work():
        with open_store(memory) as store:
            put(store, *(payload_of(key_of(1, 1, n)) for n in range(3)))
            put(store, payload_of(key_of(1, 1, 0)))
            put(store, payload_of(key_of(1, 1, 0)), on_duplicate=OnDuplicate.ACCEPT_IDENTICAL)
            put(store, payload_of(key_of(1, 1, 1), 500), on_duplicate=OnDuplicate.REPLACE)
            get(store, key_of(1, 1, 2))
            with pytest.raises(SegmentGone):
                store.open_segments([1, 77])
            store.delete("1.1", "1.1.1", "1.1.1.2")
            list(check(store, derive))
            store.segments.seal(min(store.index.segments()))
            compact(store)
            compact(store, everything=True)
            store.begin().abort()
            store.delete("1.1")
        reindex(memory, derive)

    work()
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        work()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads


class Model:
    """What a store should hold: a dictionary. Both are told the same."""

    def __init__(self, folder, seed):
        self.folder = folder
        self.choice = random.Random(seed)
        self.options = StoreOptions(segment_size=self.choice.choice([500, 3000, 20000]), min_free=0)
        self.store = open_store(folder, options=self.options)
        self.content = {}

    def some_key(self):
        return key_of(*(self.choice.randint(1, 3) for _ in range(3)))

    def some_payload(self, key):
        return payload_of(key, self.choice.choice([120, 300, 1500]), self.choice.choice("abc"))

    def do_store(self):
        policy = self.choice.choice(list(OnDuplicate))
        payloads = [self.some_payload(self.some_key()) for _ in range(self.choice.randint(1, 6))]
        seen = set()
        expected = []
        for payload in payloads:
            key = self.key_in(payload)
            old = self.content.get(key)
            if old is None:
                outcome = Outcome.STORED
            elif policy is OnDuplicate.ACCEPT_IDENTICAL and old == payload:
                outcome = Outcome.IDENTICAL
            elif policy is OnDuplicate.REPLACE and key not in seen:
                outcome = Outcome.REPLACED
            else:
                outcome = Outcome.DUPLICATE
            expected.append(outcome)
            if outcome in (Outcome.STORED, Outcome.REPLACED):
                self.content[key] = payload
                seen.add(key)
        assert put(self.store, *payloads, on_duplicate=policy) == expected

    @staticmethod
    def key_in(payload):
        return type(key_of(1))(*payload[len(HEAD) :].split(b"\n")[0].decode().split(" "))

    def do_delete(self):
        target = self.some_key()[: self.choice.choice([1, 2, 3, 3, 3])]
        gone = [key for key in self.content if key[: len(target)] == target]
        assert self.store.delete(*target) == len(gone)
        for key in gone:
            del self.content[key]

    def do_abort(self):
        transaction = self.store.begin()
        transaction.open_record()
        transaction.write([self.some_payload(self.some_key())[:100]])
        transaction.abort()

    def do_compact(self):
        compact(self.store, everything=self.choice.random() < 0.3)

    def do_reopen(self):
        self.store.close()
        self.store = open_store(self.folder, options=self.options)

    def do_reindex(self):
        self.store.close()
        assert reindex(self.folder, derive).findings == []
        self.store = open_store(self.folder, options=self.options)

    def do_look(self):
        target = self.some_key()[: self.choice.randint(1, 3)]
        found = {row.key: row.location.length for row in self.store.lookup(*target)}
        assert found == {
            key: len(payload) for key, payload in self.content.items() if key[: len(target)] == target
        }

    def do_check(self):
        assert [str(finding) for finding in check(self.store, derive)] == []
        for study in range(1, 4):
            for row in self.store.lookup(f"1.{study}"):
                assert get(self.store, row.key) == self.content[row.key]
        assert self.store.index.statistics()["instances"] == len(self.content)


OPERATIONS = {
    "do_store": 10,
    "do_delete": 4,
    "do_abort": 1,
    "do_compact": 2,
    "do_reopen": 1,
    "do_reindex": 1,
    "do_look": 4,
    "do_check": 1,
}


@pytest.mark.parametrize("run", range(4))
def test_random_operations_against_a_model(memory, run):
    seed = run if run < 2 else random.randrange(2**32)
    print("seed", seed)
    model = Model(memory, seed)
    for _ in range(60):
        name = model.choice.choices(list(OPERATIONS), OPERATIONS.values())[0]
        getattr(model, name)()
    model.do_check()
    model.store.close()

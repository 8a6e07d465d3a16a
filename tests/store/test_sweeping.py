"""Between the commit that a deletion is answered after and the one that sweeps behind it."""

import threading

import pytest
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import InsufficientStorage, StoreCorrupt
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import query_of
from streamsrv.store.index import batch as index_batch
from streamsrv.store.index.index import Index
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import Outcome
from streamsrv.store.sweeping import Sweeper

PATIENCE = 30.0
KEYS = [key_of(1, series, instance) for series in (1, 2) for instance in (1, 2, 3)]
OTHER = key_of(2)
UNSEEN = ("uids", "metadata", "frames", "bulk")


@pytest.fixture
def store(memory):
    with open_store(memory) as store:
        put(store, *(payload_of(key) for key in [*KEYS, OTHER]))
        yield store


def counts(store):
    statistics = store.index.statistics()
    return {name: statistics[name] for name in ("instances", "leaving", *UNSEEN)}


def well(store):
    return [str(finding) for finding in check(store, derive)] == []


def found(store, level, **named):
    query = query_of(level, None, None, list(named.items()))
    return [(hit.study, hit.series, hit.instance) for hit in store.index.search(query)]


def test_what_was_deleted_is_seen_by_nobody_and_then_gone(store):
    before = counts(store)
    assert store.delete("1.1") == 6
    assert counts(store) == before | {"instances": 1, "leaving": 1, "uids": before["uids"] - 2}
    assert (store.lookup("1.1"), store.index.count("1.1"), get(store, KEYS[0])) == ([], 0, None)
    for level in Level:
        assert found(store, level, SOPInstanceUID=KEYS[0].instance) == []
        assert found(store, level, SeriesInstanceUID=KEYS[0].series) == []
        assert found(store, level, PatientID="P1") == []
    assert store.delete("1.1") == 0
    assert [change.key for change in store.changes(7)] == KEYS
    assert well(store)
    store.sweep()
    assert counts(store) == {name: 0 if name == "leaving" else 1 for name in counts(store)} | {"uids": 2}
    assert get(store, OTHER) == payload_of(OTHER)
    assert well(store)


@pytest.mark.parametrize("again", [KEYS, KEYS[1:4]], ids=["all", "some"])
def test_what_is_stored_again_before_the_sweep_stays(store, again):
    store.delete("1.1")
    assert set(put(store, *(payload_of(key, 300, "n") for key in again))) == {Outcome.STORED}
    for _ in range(2):
        assert [row.key for row in store.lookup("1.1")] == again
        assert [get(store, key) for key in again] == [payload_of(key, 300, "n") for key in again]
        assert len(list(store.metadata(store.lookup("1.1")))) == len(again)
        assert found(store, Level.INSTANCE, SOPInstanceUID=again[0].instance) == [tuple(again[0])]
        assert well(store)
        store.sweep()
    assert counts(store)["instances"] == counts(store)["frames"] == len(again) + 1


def test_deleted_stored_and_deleted_again_before_the_sweep(store):
    for fill in "abc":
        store.delete("1.1")
        put(store, *(payload_of(key, 300, fill) for key in KEYS))
    assert counts(store)["leaving"] == 3
    store.sweep()
    assert [get(store, key) for key in KEYS] == [payload_of(key, 300, "c") for key in KEYS]
    assert well(store)
    store.delete("1.1")
    store.sweep()
    assert counts(store)["uids"] == 2


def test_one_that_shares_its_uid_stays(store):
    """Split studies share SOP Instance UIDs: the entry of the other one is its own."""
    twin = KEYS[0]._replace(study="1.9")
    put(store, payload_of(twin))
    store.delete("1.1")
    store.sweep()
    assert found(store, Level.INSTANCE, SOPInstanceUID=twin.instance) == [tuple(twin)]
    assert well(store)


def test_compaction_and_reindex_before_the_sweep(store, memory):
    store.delete("1.1")
    compact(store)
    assert counts(store)["leaving"] == 1
    assert well(store)
    report = compact(store, everything=True)  # nothing that was deleted may be left in the index
    assert report.index_rewritten
    assert counts(store)["leaving"] == 0
    store.close()
    assert reindex(store.layout.root, derive).findings == []
    with open_store(store.layout.root) as again:
        assert (again.lookup("1.1"), get(again, OTHER)) == ([], payload_of(OTHER))


def test_short_deletions_are_swept_together_and_long_ones_one_by_one(store, monkeypatch):
    monkeypatch.setattr(index_batch, "SWEPT", 3)
    for key in KEYS:
        store.delete(*key)
    moment = store.moment()
    store.sweep()
    assert store.moment() == moment + 2
    assert well(store)


def test_opening_and_closing_a_store_sweep(store, monkeypatch):
    store.delete("1.1", "1.1.1")
    store.close()
    with open_store(store.layout.root, read_only=True) as reader:
        assert counts(reader)["leaving"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Index, "sweep", lambda index: None)
        with open_store(store.layout.root) as other:
            other.delete("1.1")
    with open_store(store.layout.root, read_only=True) as reader:
        assert counts(reader)["leaving"] == 1
    with open_store(store.layout.root) as other:
        assert counts(other)["leaving"] == 0


def test_a_sweep_that_fails_keeps_nobody_from_opening_or_closing(store, monkeypatch, caplog):
    def full(index):
        raise InsufficientStorage("no space left while writing to the index")

    store.delete("1.1")
    monkeypatch.setattr(Index, "sweep", full)
    store.close()
    with open_store(store.layout.root) as other:
        assert (counts(other)["leaving"], other.lookup("1.1")) == (1, [])
    assert caplog.text.count("is not swept from the index: no space left") == 3


def test_the_sweeper_sweeps_when_it_was_told_and_again_after_a_failure(caplog):
    told, swept = threading.Semaphore(0), []

    def sweep():
        swept.append(len(swept))
        told.release()
        if len(swept) == 1:
            raise StoreCorrupt("a row cannot be read")

    sweeper = Sweeper(sweep, pause=0.001)
    assert swept == []
    for _ in range(2):
        sweeper.tell()
        assert told.acquire(timeout=PATIENCE)
    sweeper.close()
    sweeper.close()
    sweeper.tell()
    assert (swept, caplog.text.count("a row cannot be read")) == ([0, 1], 1)


def test_a_sweeper_that_is_closed_leaves_the_rest_to_the_store():
    swept = threading.Event()
    sweeper = Sweeper(swept.set, pause=PATIENCE)
    sweeper.tell()
    sweeper.close()
    assert not swept.is_set()

"""The log of changes is bounded: old changes go, a few with each commit, and their absence can be known."""

import itertools
import json
import time

import pytest
from index_examples import new_instance
from kill_world import verb
from small_client import Client, file_of, key_of

from streamsrv.store.index.audit import Audit
from streamsrv.store.index.batch import FORGET_EVERY, FORGET_ROWS
from streamsrv.store.index.environment import DATABASES
from streamsrv.store.index.index import Index

KEPT = 3000


class StoredChanges:
    """An index to which instances are stored and deleted, a hundred at a time."""

    def __init__(self, index):
        self.index = index
        self.segment = index.add_segment()
        self.keys = []
        self._numbers = itertools.count(1)
        self._end = 0

    def store(self, count, each=100):
        for _ in range(count // each):
            numbers = [next(self._numbers) for _ in range(each)]
            new = [new_instance(("1.2", "1.2.3", f"1.2.3.{100_000 + number}"), number) for number in numbers]
            self.keys += [one.row.key for one in new]
            self._end += 1_000_000
            self.index.commit(new, segment=self.segment, committed_end=self._end)

    def delete(self, keys):
        rows = self.index.packed_rows(sorted(keys))
        return self.index.delete(rows, segment=self.segment, committed_end=self._end, dead_bytes=0)


@pytest.fixture
def stored(tmp_path):
    index = Index.open(tmp_path / "index", keep_changes=KEPT)
    yield StoredChanges(index)
    index.close()


def changes_of(index):
    return index.statistics()["changes"]


def test_the_log_is_bounded(stored):
    index = stored.index
    stored.store(10_000)
    assert KEPT <= changes_of(index) <= KEPT + FORGET_EVERY + 100
    first = index.first_change()
    assert first == index.changes(0, 1)[0].sequence > 5_000
    last = 10_000
    assert [change.sequence for change in index.changes(first - 1, 10_000)] == list(range(first, last + 1))
    # A reader that stopped at 5,000 sees that it has missed some.
    assert index.changes(5_000, 1)[0].sequence != 5_001
    assert index.first_change() > 5_001


def test_a_commit_removes_a_bounded_number(tmp_path):
    """The bound may be set on an index that has kept all of them."""
    index = Index.open(tmp_path / "index")
    stored = StoredChanges(index)
    stored.store(7_000, each=1000)
    index.close()
    bounded = Index.open(tmp_path / "index", keep_changes=1)
    stored.index = bounded
    left = [changes_of(bounded)]
    while left[-1] > FORGET_EVERY + 100:
        stored.store(100)
        left.append(changes_of(bounded))
    removed = [before + 100 - after for before, after in itertools.pairwise(left)]
    assert max(removed) == FORGET_ROWS
    assert bounded.changes(0, 100_000)[-1].sequence == 7_000 + 100 * len(removed)  # the last one stays
    bounded.close()


def test_check_knows_a_bounded_log_from_a_damaged_one(stored, tmp_path):
    index = stored.index
    stored.store(8_000)

    def found():
        audit = Audit(index, tmp_path / f"scratch-{time.monotonic_ns()}")
        try:
            return [(each.database, each.row) for each in [*audit._gaps(), *audit.sums()]]
        finally:
            audit.close()

    assert index.first_change() > 1
    assert found() == []
    environment = index._environment
    with environment.lmdb.begin(write=True) as transaction:
        cursor = transaction.cursor(db=environment.handles["changes"])
        assert cursor.first()
        lost = int.from_bytes(cursor.key(), "big")
        cursor.delete()
    assert found() == [("changes", f"change {lost}")]
    assert "first_change" in index.about()
    assert "changes" in DATABASES


@pytest.mark.no_cover
def test_a_server_bounds_its_log_and_reindex_begins_a_new_one(server_factory):
    server = server_factory("--keep-changes", "500", workers=1)
    client = Client(server.origin)
    try:
        for hundred in range(11):
            keys = [key_of(1, 1, 100 * hundred + number) for number in range(100)]
            assert client.store([file_of(key, 1, 300) for key in keys]).status == 200
    finally:
        client.close()
        assert server.end() == 0
    data = ("--data", str(server.data))
    told = json.loads(verb("info", *data, "--json")[1])
    assert told["about"]["first_change"] == "601"
    assert told["index"]["changes"] == 500
    assert verb("check", *data) == (0, "all is well\n")
    assert verb("reindex", *data)[0] == 0
    told = json.loads(verb("info", *data, "--json")[1])
    assert (told["about"]["first_change"], told["index"]["changes"]) == ("1", 1100)
    assert verb("check", *data) == (0, "all is well\n")

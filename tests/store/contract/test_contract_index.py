"""The calls of Index, as docs/store-contract.md promises them; and that this suite makes every call."""

import ast
from pathlib import Path

import pytest
from store_world import key_of, learn, payload_of, put

from streamsrv.dicom.instance import FrameKind
from streamsrv.errors import ContentTooLarge, SegmentGone, StoreCorrupt, StoreError
from streamsrv.query.attributes import BY_TAG, Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.query.values import normal_forms
from streamsrv.store import (
    ChangeKind,
    DamagedRecord,
    Index,
    Location,
    OnDuplicate,
    Store,
    Transaction,
    unpacked,
)

KEYS = [key_of(study, series, instance) for study in (1, 2) for series in (1, 2) for instance in (1, 2)]
# Calls of one engine's maintenance, and of its opening.
OF_THE_ENGINE = {"open", "lock", "scrubs", "dump", "read_all", "all_rows", "readable_segments", "rewrite"}


@pytest.fixture
def index(store):
    put(store, *map(payload_of, KEYS))
    return store.index


@pytest.fixture
def view(index, other):
    """The index as another process sees it."""
    return other.index


def query(level, study=None, series=None, **named):
    return query_of(level, study, series, list(named.items()))


# Reading


def test_rows_of_keys(index, view):
    rows = view.existing([KEYS[0], key_of(9), KEYS[3]])
    assert [row and row.key for row in rows] == [KEYS[0], None, KEYS[3]]
    assert view.packed_rows([KEYS[0], key_of(9)]) == view.packed(*KEYS[0])
    assert view.instance(key_of(9)) is None
    row, entries = view.instance(KEYS[0], (0, 7))
    assert row == rows[0]
    assert row.frame_kind is FrameKind.TABLE
    assert entries == [(100, 100)]


def test_pages_are_in_key_order_and_continue_behind_a_key(index, view):
    assert [row.key for row in view.rows()] == KEYS
    first = view.lookup("1.1", limit=2)
    index.delete(index.packed(*KEYS[2]), segment=1, committed_end=0, dead_bytes=0)
    rest = view.lookup("1.1", after=first[-1].key)
    assert [row.key for row in first + rest] == [KEYS[0], KEYS[1], KEYS[3]]
    assert [row.key for row in view.rows(after=KEYS[5])] == KEYS[6:]
    assert list(map(unpacked, view.page(after=KEYS[5]))) == view.rows(after=KEYS[5])
    assert view.packed(*KEYS[0], after=KEYS[0]) == []
    segments = {row.location.segment for row in view.rows()}
    assert list(view.instances_in(segments)) == view.rows()
    assert list(view.instances_in({999})) == []


def test_studies_and_series(index, view):
    assert (view.count("1.1"), view.count("1.1", "1.1.2"), view.count("1.9")) == (4, 2, 0)
    assert [index.total(query(level)) for level in Level] == [2, 4, 8]
    assert index.total(query(Level.STUDY, PatientID="P1.1")) is None
    assert index.least(query(Level.STUDY)) == 0
    ((study, row),) = index.listed(BY_TAG["00100020"], normal_forms("LO", "P1.1")[0], 1) or [("", None)]
    assert (study, row.instances) == ("1.1", 4)
    assert index.listed(BY_TAG["00100020"], "P9", 1) == []
    assert index.listed(BY_TAG["00080020"], "20240102", 1) is None


def test_values_of_a_row_that_has_gone(index, view):
    (row,) = view.lookup(*KEYS[0])
    packed = view.packed(*KEYS[0])
    (text,) = view.metadata([row])
    assert view.short_metadata(packed) == [[text]]
    assert view.frame_entries(row, [0]) == [(100, 100)]
    assert [value.path for value in view.bulk_values(row)] == ["7FE00010"]
    assert view.bulk_value(KEYS[0], "7FE00010") == view.bulk_values(row)[0]
    index.delete(packed, segment=1, committed_end=0, dead_bytes=0)
    assert view.short_metadata(packed) is None
    assert view.bulk_value(KEYS[0], "7FE00010") is None
    for reading in (
        view.bulk_values,
        lambda row: view.frame_entries(row, [0]),
        lambda row: list(view.metadata([row])),
    ):
        with pytest.raises(SegmentGone):
            reading(row)


def test_a_search_is_ordered_and_charged(index):
    assert [hit.study for hit in index.search(query(Level.STUDY))] == ["1.1", "1.2"]
    assert [hit.series for hit in index.search(query(Level.SERIES, "1.2"))] == ["1.2.1", "1.2.2"]
    searching = index.searching(query(Level.SERIES, "1.2"), Budget())
    assert [hit.series for hit in searching.hits()] == ["1.2.1", "1.2.2"]
    assert searching.total in (None, 2)
    assert [hit.instance for hit in index.search(query(Level.INSTANCE, PatientID="P1.1"))] == [
        key.instance for key in KEYS[:4]
    ]
    with pytest.raises(ContentTooLarge):
        list(index.search(query(Level.INSTANCE), Budget(rows=3)))


def test_changes_have_no_gap(store, index, view):
    put(store, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    store.delete("1.2")
    changes = view.changes()
    assert [change.sequence for change in changes] == list(range(1, 14))
    assert [change.kind for change in changes[8:]] == [ChangeKind.REPLACED] + [ChangeKind.DELETED] * 4
    assert view.changes(after=3, limit=2) == changes[3:5]
    assert view.latest_change() == changes[-1]
    times = [change.at for change in changes]
    assert times == sorted(times)
    for at in {0, *times, times[-1] + 1}:
        assert view.changes_before(at) == max((each.sequence for each in changes if each.at < at), default=0)
    assert view.first_change() == 1
    assert set(view.about()) >= {"epoch", "first_change", "store"}
    assert view.statistics()["instances"] == 4
    view.probe()


def test_equal_versions_mean_equal_content(index, view):
    version = view.version()
    assert (view.version(), index.version()) == (version, version)
    index.delete(index.packed(*KEYS[0]), segment=1, committed_end=0, dead_bytes=0)
    assert view.version() != version


# Writing


def test_a_version_at_hand_has_seen_each_removal(store, index, view):
    assert index.version_at_hand() in (None, index.version())
    for key in KEYS[:6]:
        view.version()
        assert store.delete(*key) == 1
        assert view.version_at_hand() in (None, view.version())
    view.version()
    with index.removing():
        assert view.version_at_hand() in (None, view.version())
        assert [store.delete(*key) for key in KEYS[6:]] == [1, 1]
    assert view.version_at_hand() in (None, view.version())


def test_a_commit_stores_all_or_none(index, view):
    old = view.existing(KEYS[:1])
    again = [entry(KEYS[0]), entry(key_of(9))]
    with pytest.raises(StoreCorrupt):
        index.commit(again, segment=1, committed_end=0)
    assert view.existing([KEYS[0], key_of(9)]) == [old[0], None]
    index.commit(again, segment=1, committed_end=0, replaced=old)
    assert [row is not None for row in view.existing([KEYS[0], key_of(9)])] == [True, True]


def entry(key):
    """A new record of `key`."""
    payload = payload_of(key)
    facts = {
        "location": Location(1, 64, len(payload)),
        "record_id": key.instance.encode().ljust(16, b"-"),
        "stored_at": 1,
        "digest": bytes(20),
    }
    return learn(lambda at, length: payload[at : at + length], facts)


def test_a_delete_counts_the_records_that_were_still_there(store, index, view):
    rows = index.packed("1.1")
    put(store, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    assert index.delete(rows, segment=1, committed_end=0, dead_bytes=0) == 3
    assert [row.key for row in view.lookup("1.1")] == KEYS[:1]
    assert index.delete(rows, segment=1, committed_end=0, dead_bytes=0) == 0


def test_a_record_moves_only_from_where_it_is(index, view):
    (row,) = index.lookup(*KEYS[0])
    segment = index.add_segment()
    assert segment not in (1, index.add_segment())
    to = Location(segment, 64, row.location.length)
    assert index.relocate([(row, to)], segment=segment, committed_end=300) == [True]
    assert index.relocate([(row, to)], segment=segment, committed_end=300) == [False]
    assert view.lookup(*KEYS[0])[0].location == to
    assert (view.segment(segment).live, view.segments()[segment].committed_end) == (200, 300)


def test_segments(index, view):
    first = index.add_segment()
    assert index.add_segment() > first
    assert view.segment(first).empty
    index.seal(first, committed_end=200, dead_bytes=136)
    row = view.segment(first)
    assert (row.sealed, row.committed_end, row.dead) == (True, 200, 136)
    index.drop_segment(first)
    assert view.segment(first) is None
    with pytest.raises(StoreError):
        index.drop_segment(view.rows()[0].location.segment)
    index.put_segment(row)
    assert view.segment(first) == row
    assert index.add_segment() > first + 1


def test_the_register_of_damage(index, view):
    (row,) = view.lookup(*KEYS[0])
    record = DamagedRecord(row.record_id, KEYS[0], row.location, "a reason", 1)
    gone = DamagedRecord(b"g" * 16, key_of(9), row.location, "a reason", 1)
    assert index.register_damage([record, gone]) == [True, False]
    assert index.register_damage([record]) == [False]
    assert view.damage() == view.damaged_among([row.record_id, b"g" * 16]) == [record]
    assert view.damage(after=row.record_id) == []
    assert view.instance(KEYS[0])[0].damaged
    assert index.forget_damage([row.record_id]) == 1
    assert view.damage() == []


def test_a_note_is_a_row_about_the_index(index, view):
    before = view.about()
    index.note("move", "a note")
    assert view.about() == before | {"move": "a note"}
    for _ in range(2):
        index.note("move", "")
        assert view.about() == before


def test_catching_up_changes_nothing_where_no_writer_died(index, view):
    version = view.version()
    index.catch_up()
    assert view.version() == version


def test_a_closed_index_refuses_to_write(engine, memory):
    store = engine(memory).open()
    assert not store.index.read_only
    store.close()
    with pytest.raises(StoreError):
        store.index.add_segment()


# The whole


def public(cls):
    names = {name for base in cls.__mro__[:-1] for name in vars(base) if not name.startswith("_")}
    return names - OF_THE_ENGINE


@pytest.mark.parametrize("cls", [Store, Transaction, Index])
def test_every_call_is_made_and_documented(cls):
    here = Path(__file__).parent
    called = {
        node.attr
        for path in [*here.glob("test_*.py"), here.parent / "store_world.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    page = (here.parents[2] / "docs" / "store-contract.md").read_text(encoding="utf-8")
    assert public(cls) - called == set()
    assert {name for name in public(cls) if f"`{name}`" not in page} <= {"read_only", "close"}

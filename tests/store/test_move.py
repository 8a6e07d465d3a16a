"""Moving a store to another one: what arrives, what happens meanwhile, what is named."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from seaweed import BUCKET, variables
from store_world import OPTIONS, derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreError, StreamsrvError
from streamsrv.store import OnDuplicate, Store
from streamsrv.store.maintenance.backup import back_up
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.moving import mover as movers
from streamsrv.store.maintenance.moving.copying import BEFORE_THE_MOVE
from streamsrv.store.maintenance.moving.mover import Mover
from streamsrv.store.maintenance.reindex import reindex

KEYS = [key_of(study, series, number) for study in (1, 2, 3) for series in (1, 2) for number in (1, 2)]
MOVING = replace(OPTIONS, moving=True)
EQUAL = ("variants", "studies", "series", "attributes", "uids")


class Report:
    def __init__(self):
        self.counts = dict.fromkeys(("instances", "copied", "deleted", "verified"), 0)
        self.faults = []

    def add(self, name, count=1):
        self.counts[name] += count

    def count_bytes(self, count):
        pass

    def fail(self, text):
        self.faults.append(text)


@pytest.fixture
def source(memory):
    with open_store(memory / "source") as store:
        yield store


@pytest.fixture
def target(memory):
    with open_store(memory / "target", options=MOVING) as store:
        yield store


@pytest.fixture(params=["folder", "bucket"])
def any_target(request, memory, monkeypatch):
    if request.param == "folder":
        yield request.getfixturevalue("target")
        return
    bucket, name = request.getfixturevalue("object_store"), f"move_{memory.name}"
    for variable, value in variables(bucket.endpoint).items():
        monkeypatch.setenv(variable, value)
    place = {
        "index": request.getfixturevalue("database_server").url(name),
        "segments": f"s3://{BUCKET}/{name}",
    }
    with Store.open(memory / "node", replace(MOVING, cache_size=64 << 20, **place)) as store:
        yield store


def moving(source, target, report=None):
    mover = Mover(source, target, derive, report or Report(), parallel=2, show=lambda: None)
    return closing(mover)


def moved(source, target, *, end=False):
    """A run; what it counted, named and returned."""
    report = Report()
    with moving(source, target, report) as mover:
        mover.copy()
        mover.verify()
        lacks = mover.compare() + mover.name_damaged()
        if end:
            mover.end()
    return report, lacks


def rows_in(index):
    """The rows of an index that do not depend on the places of records."""
    found = {name: list(index.dump(name)) for name in EQUAL}
    found["instances"] = [(key, value[20:]) for key, value in index.dump("instances")]
    return found


def are_equal(source, target):
    rows = rows_in(source.index) == rows_in(target.index)
    return rows and all(get(source, key) == get(target, key) for key in KEYS)


def test_everything_arrives_with_its_id_and_its_time(source, target, memory):
    for portion in (KEYS[:5], KEYS[5:]):
        put(source, *map(payload_of, portion))
    put(source, payload_of(KEYS[1], 5000, "y"), on_duplicate=OnDuplicate.REPLACE)
    source.delete(*KEYS[0])
    report, lacks = moved(source, target, end=True)
    assert (report.faults, lacks) == ([], 0)
    assert report.counts == {"instances": 11, "copied": 11, "deleted": 0, "verified": 11}
    assert are_equal(source, target)
    assert list(check(target, derive)) == []
    target.close()
    assert reindex(memory / "target", derive).findings == []
    with open_store(memory / "target") as again:
        assert are_equal(source, again)
        assert put(again, payload_of(KEYS[0])) == [0]


def test_a_second_run_brings_what_is_new_and_reads_it_once(source, any_target):
    target = any_target
    put(source, *map(payload_of, KEYS[:6]))
    assert moved(source, target)[0].counts["copied"] == 6
    put(source, *map(payload_of, KEYS[6:]))
    put(source, payload_of(KEYS[0], fill="y"), on_duplicate=OnDuplicate.REPLACE)
    source.delete(*KEYS[1])
    source.delete(KEYS[4].study)
    report, lacks = moved(source, target)
    assert (report.faults, lacks) == ([], 0)
    assert report.counts == {"instances": 7, "copied": 5, "deleted": 3, "verified": 5}
    assert are_equal(source, target)


def test_changes_of_the_source_meanwhile(source, any_target, monkeypatch):
    target = any_target
    put(source, *map(payload_of, KEYS[:8]))
    monkeypatch.setattr(movers, "PORTION_BYTES", 1)
    acts = [
        lambda: put(source, payload_of(KEYS[9])),
        lambda: source.delete(*KEYS[0]),
        lambda: source.delete(KEYS[5].study),
        lambda: put(source, payload_of(KEYS[2], fill="y"), on_duplicate=OnDuplicate.REPLACE),
        lambda: put(source, payload_of(KEYS[5], fill="z")),
    ]
    report = Report()
    with moving(source, target, report) as mover:
        copy = mover._copier.copy

        def acting(rows):
            if acts:
                acts.pop(0)()
            copy(rows)

        monkeypatch.setattr(mover._copier, "copy", acting)
        mover.copy()
        mover.verify()
        assert (mover.compare(), acts) == (0, [])
        put(source, payload_of(KEYS[10]))
        with pytest.raises(StreamsrvError, match="written to meanwhile"):
            mover.end()
        mover.catch_up()
        mover.end()
    assert report.faults == []
    assert are_equal(source, target)


def test_a_damaged_instance_is_named_and_all_others_arrive(source, target, memory):
    put(source, *map(payload_of, KEYS))
    location = source.lookup(*KEYS[3])[0].location
    with source.layout.segment(location.segment).open("r+b") as file:
        file.seek(location.offset + 150)
        file.write(b"\x00")
    report, lacks = moved(source, target, end=True)
    assert report.faults == [f"{'/'.join(KEYS[3])}: damaged, {BEFORE_THE_MOVE}"]
    assert (lacks, report.counts["copied"]) == (0, 12)
    assert all(get(source, key) == get(target, key) for key in KEYS)
    assert [each.key for each in target.index.damage()] == [KEYS[3]]
    target.close()
    with open_store(memory / "target") as again:
        assert put(again, payload_of(KEYS[3], fill="y"))[0].name == "REPLACED"


def test_damage_is_registered_also_if_the_move_was_killed_before(source, any_target):
    target = any_target
    put(source, *map(payload_of, KEYS))
    location = source.lookup(*KEYS[3])[0].location
    with source.layout.segment(location.segment).open("r+b") as file:
        file.seek(location.offset + 150)
        file.write(b"\x00")
    with moving(source, target) as mover:
        mover.copy()
    target.index.forget_damage([source.lookup(*KEYS[3])[0].record_id])
    report, lacks = moved(source, target)
    assert (len(report.faults), lacks) == (1, 0)
    assert BEFORE_THE_MOVE in report.faults[0]


def test_bytes_that_are_wrong_in_the_target_alone_prevent_the_end(source, target):
    put(source, *map(payload_of, KEYS))
    with moving(source, target) as mover:
        mover.copy()
    location = target.lookup(*KEYS[3])[0].location
    with target.layout.segment(location.segment).open("r+b") as file:
        file.seek(location.offset + 150)
        file.write(b"\x00")
    report, lacks = moved(source, target)
    assert (len(report.faults), lacks) == (1, 1)
    assert report.faults[0].startswith("/".join(KEYS[3]))


def test_an_instance_whose_segment_is_missing(source, target):
    put(source, *map(payload_of, KEYS[:4]))
    source.segments.seal_growing(1, waiting=True)
    put(source, *map(payload_of, KEYS[4:]))
    source.readers.forget()
    source.layout.segment(1).unlink()
    for _ in range(2):
        report, lacks = moved(source, target)
        assert (lacks, report.counts["instances"]) == (4, 8)
        assert report.faults == [f"{'/'.join(key)}: the file of its segment is missing" for key in KEYS[:4]]
    assert source.delete(KEYS[0].study) == 4
    assert moved(source, target, end=True)[1] == 0


def test_changes_that_are_gone_or_counted_anew(source, target, memory):
    put(source, *map(payload_of, KEYS))
    moved(source, target)
    source.delete(*KEYS[0])
    source.delete(KEYS[4].study)
    source.close()
    reindex(memory / "source", derive)
    with open_store(memory / "source") as again:
        report, lacks = moved(again, target)
        assert (report.faults, lacks, report.counts["deleted"]) == ([], 0, 5)
        assert are_equal(again, target)


def test_a_source_that_was_set_back(source, target):
    put(source, *map(payload_of, KEYS[:6]))
    moved(source, target)
    state = json.loads(target.index.about()["move"])
    source.delete(*KEYS[0])
    target.index.note("move", json.dumps(state | {"position": 1000}))
    report, lacks = moved(source, target, end=True)
    assert (report.faults, lacks, report.counts["deleted"]) == ([], 0, 1)
    assert are_equal(source, target)


def test_targets_that_are_refused(source, target, memory):
    put(source, payload_of(KEYS[0]))
    with pytest.raises(StoreError, match="the same store"), moving(source, source):
        pass
    with open_store(memory / "other") as other:
        put(other, payload_of(KEYS[1]))
        with pytest.raises(StoreError, match="has, or had, instances of its own"), moving(source, other):
            pass
        moved(source, target)
        with pytest.raises(StoreError, match=f"a move of store {source.store_id}"), moving(other, target):
            pass
        target.index.note("move", "[]")
        with pytest.raises(StoreError, match="cannot be read"), moving(source, target):
            pass


def test_nothing_else_writes_to_the_target_before_the_end(source, target, memory):
    put(source, payload_of(KEYS[0]))
    moved(source, target)
    assert json.loads(target.index.about()["move"])["source"] == source.store_id
    target.close()
    with pytest.raises(StoreError, match="a move that has not ended"):
        open_store(memory / "target")
    with pytest.raises(StoreError, match="a move that has not ended"):
        reindex(memory / "target", derive)
    with open_store(memory / "target", read_only=True) as only_read:
        assert get(only_read, KEYS[0]) == payload_of(KEYS[0])
        with pytest.raises(StoreError, match="a move that has not ended"):
            back_up(only_read, memory / "backup", lambda _: None, lambda *_: None)
        with (
            open_store(memory / "next", options=MOVING) as following,
            pytest.raises(StoreError, match="a move that has not ended"),
            moving(only_read, following),
        ):
            pass
    with open_store(memory / "target", options=MOVING) as again:
        moved(source, again, end=True)
    with Store.open(memory / "target", OPTIONS) as released:
        assert put(released, payload_of(KEYS[1])) == [0]

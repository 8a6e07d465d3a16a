"""Studies and series follow their instances: random stores, replacements and deletions against a model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from index_examples import element, name, new_instance
from index_model import SERIES_TAGS, STUDY_TAGS, Model

from streamsrv.dicom.instance import JsonDataset
from streamsrv.query.attributes import BY_TAG, NEWEST, Level, StudyOrder
from streamsrv.query.conditions import Query, query_of
from streamsrv.query.rules import facts_of, rule_of
from streamsrv.store.index.answers import level_attributes
from streamsrv.store.index.index import Index
from streamsrv.store.rows import InstanceKey, NewInstance

A = InstanceKey("1.1", "1.1.1", "1.1.1.1")
B = InstanceKey("1.1", "1.1.1", "1.1.1.2")
C = InstanceKey("1.1", "1.1.2", "1.1.2.1")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(tmp_path / "index")
    opened.add_segment()
    yield opened
    opened.close()


def study(index: Index, uid: str = "1.1") -> JsonDataset:
    (hit,) = index.search(Query(Level.STUDY, uid))
    return level_attributes(hit.study_row)


def series(index: Index, uid: str) -> JsonDataset:
    (hit,) = index.search(Query(Level.SERIES, "1.1", uid))
    assert hit.series_row is not None
    return level_attributes(hit.series_row)


def store(index: Index, key: InstanceKey, number: int, **facts: JsonDataset) -> None:
    old = [row for row in index.existing([key]) if row]
    new = new_instance(key, number, facts.get("attributes"))
    index.commit([new], segment=1, committed_end=0, replaced=old)


def delete(index: Index, *keys: InstanceKey) -> None:
    rows = index.packed_rows(sorted(keys))
    assert index.delete(rows, segment=1, committed_end=0, dead_bytes=0) == len(keys)


def test_the_latest_stored_wins_and_empty_erases_nothing(index: Index) -> None:
    store(index, A, 1, attributes={"00100010": name("First"), "00081030": element("LO", "one")})
    store(index, B, 2, attributes={"00100010": name("Second"), "00081030": element("LO")})
    store(index, C, 3, attributes={"00100010": element("PN"), "00080060": element("CS", "MR")})
    assert study(index)["00100010"] == name("Second")
    assert study(index)["00081030"] == element("LO", "one")
    assert study(index)["00080061"] == element("CS", "CT", "MR")


def test_the_time_of_storing_counts_and_not_the_order_of_commits(index: Index) -> None:
    """A rebuild meets the records in another order and must say the same."""
    store(index, A, 5, attributes={"00100010": name("Late")})
    store(index, B, 2, attributes={"00100010": name("Early"), "00200010": element("SH", "X")})
    assert study(index)["00100010"] == name("Late")
    assert study(index)["00200010"] == element("SH", "X")


def test_a_delete_recomputes_from_the_survivors(index: Index) -> None:
    store(index, A, 1, attributes={"00100010": name("First"), "0008103E": element("LO", "a")})
    store(index, B, 2, attributes={"00100010": name("Second"), "0008103E": element("LO", "b")})
    store(index, C, 3, attributes={"00080060": element("CS", "MR"), "00100010": element("PN")})
    delete(index, B)
    assert study(index)["00100010"] == name("First")
    assert series(index, "1.1.1")["0008103E"] == element("LO", "a")
    delete(index, C)
    assert study(index)["00080061"] == element("CS", "CT")
    assert study(index)["00201206"] == element("IS", 1)
    delete(index, A)
    assert list(index.search(Query(Level.STUDY))) == []


def test_the_latest_of_equal_ones_is_found_again(index: Index) -> None:
    """A and C agree; without C the later B wins over A."""
    store(index, A, 1, attributes={"00100010": name("Same")})
    store(index, B, 2, attributes={"00100010": name("Other")})
    store(index, InstanceKey("1.1", "1.1.1", "1.1.1.3"), 3, attributes={"00100010": name("Same")})
    assert study(index)["00100010"] == name("Same")
    delete(index, InstanceKey("1.1", "1.1.1", "1.1.1.3"))
    assert study(index)["00100010"] == name("Other")


def test_required_attributes_are_returned_without_a_value(index: Index) -> None:
    store(index, A, 1, attributes={"00080050": element("SH"), "00100020": element("LO", " ")})
    assert study(index)["00080050"] == {"vr": "SH"}
    assert study(index)["00100020"] == {"vr": "LO"}
    assert "00081030" not in study(index)


def test_many_in_one_commit_are_one_study(index: Index) -> None:
    keys = [InstanceKey("1.1", f"1.1.{number % 4}", f"9.{number}") for number in range(400)]
    index.commit([new_instance(key, number) for number, key in enumerate(keys)], segment=1, committed_end=0)
    assert study(index)["00201208"] == element("IS", 400)
    assert study(index)["00201206"] == element("IS", 4)
    assert series(index, "1.1.3")["00201209"] == element("IS", 100)
    assert index.statistics()["variants"] == 4


def test_values_that_are_too_long_are_left_out(index: Index) -> None:
    store(
        index, A, 1, attributes={"00081030": element("LO", "x" * 5000), "00104000": element("LT", "y" * 1000)}
    )
    assert "00081030" not in study(index)
    assert study(index)["00104000"] == element("LT", "y" * 1000)


def test_of_sequences_only_searchable_items_are_kept(index: Index) -> None:
    item = {"00400009": element("SH", "S1"), "00401001": element("SH", "R1"), "00400007": element("LO", "x")}
    store(index, A, 1, attributes={"00400275": element("SQ", item, {})})
    kept = {tag: item[tag] for tag in ("00400009", "00401001")}
    assert series(index, "1.1.1")["00400275"] == element("SQ", kept, {})


UIDS = [
    InstanceKey(f"1.{a}", f"1.{a}.{b}", f"1.{a}.{b}.{c}") for a in (1, 2) for b in (1, 2) for c in (1, 2, 3)
]
NAMES = (element("PN"), name("Doe^Jane"), name("Roe^Richard"))
DATES = (element("DA"), element("DA", "20240131"), element("DA", "19990101"), element("DA", "nonsense"))
MODALITIES = (element("CS"), element("CS", "CT"), element("CS", "MR"))
TEXTS = (element("LO"), element("LO", "one"), element("LO", "two"))


def random_attributes(random_numbers: random.Random) -> JsonDataset:
    return {
        "00100010": random_numbers.choice(NAMES),
        "00080020": random_numbers.choice(DATES),
        "00080060": random_numbers.choice(MODALITIES),
        "0008103E": random_numbers.choice(TEXTS),
        "00081030": random_numbers.choice(TEXTS),
    }


def agrees(index: Index, model: Model) -> None:
    found = list(index.search(Query(Level.STUDY)))
    expected_order = sorted(
        {key.study for key in model.instances},
        key=lambda uid: (model.text(uid, None, "00080020").replace("nonsense", ""), [-ord(c) for c in uid]),
        reverse=True,
    )
    assert [hit.study for hit in found] == expected_order
    for hit in found:
        attributes = level_attributes(hit.study_row)
        kept = {tag: attributes[tag] for tag in STUDY_TAGS if attributes.get(tag, {}).get("Value")}
        assert kept == model.attributes(hit.study)
        assert attributes["00080061"].get("Value", []) == model.modalities(hit.study)
        assert attributes["00201206"]["Value"] == [len(model.series(hit.study))]
        assert attributes["00201208"]["Value"] == [len(model.under(hit.study))]
    for hit in index.search(Query(Level.SERIES)):
        assert hit.series is not None
        assert hit.series_row is not None
        attributes = level_attributes(hit.series_row)
        kept = {tag: attributes[tag] for tag in SERIES_TAGS if attributes.get(tag, {}).get("Value")}
        assert kept == model.attributes(hit.study, hit.series)
        assert attributes["00201209"]["Value"] == [len(model.under(hit.study, hit.series))]
    keys = [row.key for study in model.studies() for row in index.lookup(study)]
    assert sorted(keys) == sorted(model.instances)


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(12))
def test_random_operations_agree_with_the_model(index: Index, seed: int) -> None:
    numbers, model = random.Random(seed), Model()
    times = list(range(1, 300))
    numbers.shuffle(times)
    for step in range(60):
        keys = numbers.sample(UIDS, numbers.randint(1, 4))
        if numbers.random() < 0.4:
            there = [key for key in keys if key in model.instances]
            delete(index, *there)
            for key in there:
                model.delete(key)
        else:
            new = [new_instance(key, times.pop(), random_attributes(numbers)) for key in keys]
            old = [row for row in index.existing(keys) if row]
            index.commit(new, segment=1, committed_end=0, replaced=old)
            model.store(*new)
        if numbers.random() < 0.2:
            assert index.statistics()["uids"] == len({(k.study, k.series) for k in model.instances}) + len(
                model.instances
            )
        if step % 5 == 4:
            agrees(index, model)
    delete(index, *model.instances)
    left = {key: count for key, count in index.statistics().items() if count and not key.startswith("bytes")}
    assert set(left) == {"changes", "segments", "about"}


RULES = ("StudyDate=20200101-", "ModalitiesInStudy=CT", "PatientID=P1")
CONDITIONS = (
    *((), (("StudyDate", "20240131"),), (("StudyDate", "-20101231"),), (("PatientName", "Doe*"),)),
    *((("ModalitiesInStudy", "MR"),), (("PatientID", "P2"),), (("Modality", "CT"),)),
    *((("StudyInstanceUID", "1.1,1.3"),), (("SeriesInstanceUID", "1.1.1,1.2.2"),)),
    (("SOPInstanceUID", "1.1.1.1,1.1.1.2,1.2.2.1"),),
)
ORDERS = [
    NEWEST,
    *(StudyOrder(BY_TAG[tag], down) for tag in ("00100010", "00080020") for down in (False, True)),
]


def told(index: Index, query: Query) -> tuple[object, ...]:
    hits = [
        (
            (
                hit.study,
                hit.study_row.answer,
                hit.study_row.more,
                hit.study_row.instances,
                hit.study_row.series,
            ),
            (hit.series, hit.series_row and (hit.series_row.answer, hit.series_row.instances)),
            (hit.instance, hit.instance_row and hit.instance_row[8:]),
        )
        for hit in index.search(query)
    ]
    return (hits, index.total(query, 128)) if query.order is NEWEST else (hits,)


@pytest.mark.no_cover
@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("most", [100, 2, 0])
def test_a_view_agrees_with_an_index_of_its_instances(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, most: int
) -> None:
    """While few studies are visible, or many; also the rows of the whole agree with an index made again."""
    monkeypatch.setattr("streamsrv.store.index.few_studies.RuleMemory.most", most)
    numbers, stored, rule = random.Random(most), dict[InstanceKey, NewInstance](), rule_of([text])
    keys = [
        InstanceKey(f"1.{a}", f"1.{a}.{b}", f"1.{a}.{b}.{c}")
        for a in range(1, 6)
        for b in (1, 2)
        for c in (1, 2)
    ]
    view, times = index.restricted(rule), iter(numbers.sample(range(1, 999), 200))
    for step in range(16):
        chosen = numbers.sample(keys, numbers.randint(1, 6))
        if step % 4 == 3:
            delete(index, *(key for key in chosen if key in stored))
            stored = {key: new for key, new in stored.items() if key not in chosen}
        else:
            new = [new_instance(key, next(times), random_attributes(numbers)) for key in chosen]
            for each in new:
                each.attributes["00100020"] = element("LO", numbers.choice(["P1", "P2"]))
            old = [row for row in index.existing(chosen) if row]
            index.commit(new, segment=1, committed_end=0, replaced=old)
            stored |= {each.row.key: each for each in new}
        if step % 3 == 2:
            visible = [
                new for key, new in stored.items() if rule.accepts(key.study, facts_of(new.attributes))
            ]
            compare(index, stored.values(), tmp_path / f"all{step}", rows=True)
            compare(view, visible, tmp_path / f"visible{step}")


def compare(index: Index, instances: Iterable[NewInstance], folder: Path, *, rows: bool = False) -> None:
    made = Index.open(folder)
    made.add_segment()
    made.commit(list(instances), segment=1, committed_end=0)
    for database in ("attributes", "studies", "series", "variants") if rows else ():
        assert list(index.dump(database)) == list(made.dump(database))
    for level, conditions, order in itertools.product(Level, CONDITIONS, ORDERS):
        if not conditions or order is NEWEST:
            query = replace(query_of(level, None, None, conditions), order=order)
            found, expected = told(index, query), told(made, query)
            assert found[0] == expected[0], (level, conditions, order)
            assert found[1:] in (expected[1:], (None,)), (level, conditions)
    made.close()

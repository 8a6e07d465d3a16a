"""Searches against a model that looks at everything: exact, wildcard, range, UIDs, and all of them together,
at each level."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from index_examples import element, name, new_instance
from index_model import Model

from streamsrv.errors import BadRequest, ContentTooLarge, StoreCorrupt
from streamsrv.query.attributes import NEWEST, Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import MomentCondition, Query, path_of, query_of
from streamsrv.store.index import lists as index_lists
from streamsrv.store.index import ordered as index_order
from streamsrv.store.index import walk as index_search
from streamsrv.store.index.environment import Environment
from streamsrv.store.index.index import Index
from streamsrv.store.rows import InstanceKey, NewInstance

NAMES = ("Doe^Jane", "Doe^John", "Roe^Richard", "Müller^Jörg", "Doe", "Poe^Edgar^Allan")
PATIENTS = ("P1", "P2", "p1", "P10", "100%_")
DATES = ("20240131", "20240201", "20240301", "19991231", "")
MODALITIES = ("CT", "MR", "SM", "")
MAKERS = ("Acme", "Bolt")


def populate(seed: int) -> Model:
    numbers, model = random.Random(seed), Model()
    for study in range(40):
        common = {
            "00100010": name(numbers.choice(NAMES)),
            "00100020": element("LO", numbers.choice(PATIENTS)),
            "00080020": element("DA", *filter(None, [numbers.choice(DATES)])),
            "00080030": element("TM", numbers.choice(("1015", "230000"))),
        }
        for series in range(numbers.randint(1, 3)):
            modality = numbers.choice(MODALITIES)
            for instance in range(numbers.randint(1, 3)):
                key = InstanceKey(f"1.{study}", f"1.{study}.{series}", f"9.{study}.{series}.{instance}")
                maker = numbers.choice(MAKERS)
                attributes = common | {
                    "00080060": element("CS", *filter(None, [modality])),
                    "00200013": element("IS", instance),
                }
                private = f'"0009{series:04}":{{"vr":"IS","Value":[{instance}]}}'
                text = f'{{"00187004":{{"vr":"CS","Value":["{maker}"]}},{private}}}'
                new = new_instance(key, len(model.instances) + 1, attributes, text=text.encode())
                model.store(new)
    return model


MODEL = populate(7)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    opened = Index.open(tmp_path_factory.mktemp("index"))
    opened.add_segment()
    opened.commit(list(MODEL.instances.values()), segment=1, committed_end=0)
    yield opened
    opened.close()


def keys_found(index: Index, query: Query) -> list[tuple[str, ...]]:
    depth = query.level + 1
    return [(hit.study, hit.series or "", hit.instance or "")[:depth] for hit in index.search(query)]


Decides = Callable[[NewInstance], bool]


def expected(level: Level, decides: Decides) -> list[tuple[str, ...]]:
    found = {key[: level + 1] for key, new in MODEL.instances.items() if decides(new)}
    dates = {key.study: cached_text(key.study, None, "00080020") for key in MODEL.instances}
    return sorted(sorted(found), key=lambda key: dates[key[0]], reverse=True)


@functools.cache
def cached_text(study: str, series: str | None, tag: str) -> str:
    return MODEL.text(study, series, tag)


@functools.cache
def modalities(study: str) -> list[str]:
    return MODEL.modalities(study)


def text_of(new: NewInstance, tag: str) -> str:
    level = None if tag[:4] == "0010" or tag in ("00080020", "00080030") else new.row.key.series
    return cached_text(new.row.key.study, level, tag)


def glob(pattern: str, text: str, flags: int = 0) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text, flags) is not None


CONDITIONS: list[tuple[str, str, Decides]] = [
    ("PatientID", "P1", lambda new: text_of(new, "00100020") == "P1"),
    ("00100020", "P*", lambda new: glob("P*", text_of(new, "00100020"))),
    ("PatientID", "*1*", lambda new: glob("*1*", text_of(new, "00100020"))),
    ("PatientID", "100%_", lambda new: text_of(new, "00100020") == "100%_"),
    ("PatientName", "doe*", lambda new: glob("doe*", text_of(new, "00100010"), re.I)),
    ("PatientName", "*JÖRG", lambda new: glob("*JÖRG", text_of(new, "00100010"), re.I)),
    ("PatientName", "doe^jane", lambda new: text_of(new, "00100010") == "Doe^Jane"),
    ("StudyDate", "20240131", lambda new: text_of(new, "00080020") == "20240131"),
    ("StudyDate", "20240131-20240201", lambda new: text_of(new, "00080020") in ("20240131", "20240201")),
    ("StudyDate", "20240201-", lambda new: text_of(new, "00080020") >= "20240201"),
    ("StudyDate", "-20240131", lambda new: "" < text_of(new, "00080020") <= "20240131"),
    ("StudyDate", "", lambda new: True),
    ("StudyTime", "2300", lambda new: text_of(new, "00080030") == "230000"),
    ("Modality", "CT", lambda new: text_of(new, "00080060") == "CT"),
    ("Modality", "CT,MR", lambda new: text_of(new, "00080060") in ("CT", "MR")),
    ("ModalitiesInStudy", "SM", lambda new: "SM" in modalities(new.row.key.study)),
    ("InstanceNumber", "1", lambda new: new.attributes["00200013"]["Value"] == [1]),
    ("DetectorType", "Acme", lambda new: b"Acme" in text_in(new)),
    ("00090001", "1", lambda new: b'"00090001":{"vr":"IS","Value":[1]}' in text_in(new)),
    ("StudyInstanceUID", "1.3,1.5", lambda new: new.row.key.study in ("1.3", "1.5")),
    ("SeriesInstanceUID", "1.3.0\\1.7.1", lambda new: new.row.key.series in ("1.3.0", "1.7.1")),
    ("SOPInstanceUID", "9.3.0.0", lambda new: new.row.key.instance == "9.3.0.0"),
    ("SOPClassUID", "1.2.3", lambda new: False),
]


def text_in(new: NewInstance) -> bytes:
    return b"".join(map(zstandard.decompress, new.metadata))


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: f"{condition[0]}={condition[1]}")
def test_one_condition(index: Index, level: Level, condition: tuple[str, str, Decides]) -> None:
    parameter, value, decides = condition
    query = query_of(level, None, None, [(parameter, value)])
    assert keys_found(index, query) == expected(level, decides)


@given(
    st.lists(st.sampled_from(CONDITIONS), min_size=2, max_size=3, unique_by=lambda row: path_of(row[0])),
    st.sampled_from(Level),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_conditions_together(index: Index, conditions: list[tuple[str, str, Decides]], level: Level) -> None:
    query = query_of(level, None, None, [condition[:2] for condition in conditions])
    assert keys_found(index, query) == expected(level, lambda new: all(row[2](new) for row in conditions))


@given(st.sampled_from(("PatientID", "PatientName")), st.text("P1doeJ^*?", min_size=1, max_size=5))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_any_wildcard(index: Index, parameter: str, pattern: str) -> None:
    tag, flags = ("00100020", 0) if parameter == "PatientID" else ("00100010", re.I)
    query = query_of(Level.STUDY, None, None, [(parameter, pattern)])
    whole = expected(Level.STUDY, lambda new: glob(pattern, text_of(new, tag), flags))
    found = keys_found(index, query)
    # Names may match component by component too.
    assert set(found) >= set(whole) if "^" in pattern else found == whole


@given(st.sampled_from(DATES[:4]), st.sampled_from(DATES[:4]))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_any_range(index: Index, low: str, high: str) -> None:
    query = query_of(Level.STUDY, None, None, [("StudyDate", f"{low}-{high}")])
    assert keys_found(index, query) == expected(
        Level.STUDY, lambda new: low <= text_of(new, "00080020") <= high
    )


def test_targets(index: Index) -> None:
    under = [key for key in MODEL.instances if key.study == "1.3"]
    assert keys_found(index, Query(Level.INSTANCE, "1.3")) == sorted(under)
    assert keys_found(index, Query(Level.INSTANCE, "1.3", "1.3.0")) == [
        key for key in sorted(under) if key.series == "1.3.0"
    ]
    assert keys_found(index, Query(Level.SERIES, "1.3")) == [("1.3", uid) for uid in MODEL.series("1.3")]
    assert (
        keys_found(index, Query(Level.SERIES, "7.7"))
        == keys_found(index, Query(Level.INSTANCE, "1.3", "1.4.0"))
        == []
    )
    elsewhere = query_of(Level.SERIES, "1.3", None, [("StudyInstanceUID", "1.4")])
    assert keys_found(index, elsewhere) == []


def test_pages_and_small_lists_change_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers when every batch is tiny and every list is too long."""
    queries = [query_of(level, None, None, [row[:2]]) for level in Level for row in CONDITIONS]
    before = [keys_found(index, query) for query in queries]
    monkeypatch.setattr(index_search, "CANDIDATES", 2)
    monkeypatch.setattr(index_search, "FEW", 2)
    monkeypatch.setattr(index_lists, "ROWS_A_BATCH", 3)
    monkeypatch.setattr(index_order, "ROWS_A_BATCH", 3)
    monkeypatch.setattr(index_lists, "FIRST_KEYS", 1)
    monkeypatch.setattr(Environment, "keys_at_once", 2)
    assert [keys_found(index, query) for query in queries] == before
    known = []
    for query, found in zip(queries, before, strict=True):
        search = index.searching(query.page(1, NEWEST, None), Budget())
        assert next(search.hits(), None) is not None or not found
        known += [(search.total, len(found))] if search.total is not None else []
    assert known
    assert all(total == found for total, found in known)


def test_dates_and_times_make_one_condition(index: Index) -> None:
    pair = [("StudyDate", "20240131-20240201"), ("StudyTime", "2200-2300")]
    query = query_of(Level.STUDY, None, None, pair)
    assert isinstance(query.conditions[0], MomentCondition)

    def decides(new: NewInstance) -> bool:
        moment = text_of(new, "00080020") + text_of(new, "00080030").ljust(6, "0")
        return "20240131220000" <= moment <= "20240201230059"

    assert keys_found(index, query) == expected(Level.STUDY, decides)


def test_totals(index: Index) -> None:
    assert index.total(Query(Level.STUDY)) == 40
    assert index.total(Query(Level.INSTANCE)) == len(MODEL.instances)
    assert index.total(Query(Level.SERIES, "1.3")) == len(MODEL.series("1.3"))
    assert index.total(Query(Level.INSTANCE, "1.3", "1.3.0")) == len(MODEL.under("1.3", "1.3.0"))
    assert index.total(Query(Level.SERIES, "7.7")) == index.total(Query(Level.INSTANCE, "7.7")) == 0
    assert index.total(query_of(Level.STUDY, None, None, [("PatientID", "P1")])) is None


def test_a_search_that_costs_too_much_ends_in_words(index: Index) -> None:
    query = query_of(Level.INSTANCE, None, None, [("DetectorType", "Nobody")])
    with pytest.raises(ContentTooLarge, match="narrow it"):
        list(index.search(query, Budget(metadata=1000)))
    with pytest.raises(ContentTooLarge, match="narrow it"):
        list(index.search(Query(Level.STUDY), Budget(rows=10)))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ([("PatientNane", "x")], "'PatientNane' is not an attribute"),
        ([("PatientID", "a"), ("00100020", "b")], "given twice"),
        ([("PixelData", "x")], "cannot be matched"),
        ([("RetrieveURL", "x")], "cannot be matched"),
        ([("RequestAttributesSequence", "x")], "sequence"),
        ([("RequestAttributesSequence.Nothing", "x")], "not an attribute"),
        ([(".".join(["00400275"] * 20), "x")], "not an attribute"),
    ],
)
def test_parameters_that_are_wrong(parameters: list[tuple[str, str]], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        query_of(Level.STUDY, None, None, parameters)


def test_the_same_uid_key_twice_is_a_list() -> None:
    query = query_of(Level.STUDY, None, None, [("StudyInstanceUID", "1.1"), ("0020000d", "1.2")])
    assert query.uids == {Level.STUDY: frozenset(("1.1", "1.2"))}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_walking_while_studies_go(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted behind or before the walk changes nothing for the others."""
    monkeypatch.setattr(index_order, "ROWS_A_BATCH", size)
    index = Index.open(tmp_path)
    index.add_segment()
    keys = [InstanceKey(f"1.{number}", "1.2", f"1.{number}") for number in range(12)]
    dates = [{"00080020": element("DA", f"202401{number // 4 + 1:02}")} for number in range(12)]
    new = [new_instance(key, number, dates[number]) for number, key in enumerate(keys)]
    index.commit(new, segment=1, committed_end=0)
    order = [hit.study for hit in index.search(Query(Level.STUDY))]
    seen = []
    for number, hit in enumerate(index.search(Query(Level.STUDY))):
        seen.append(hit.study)
        if number % 2 == 0:
            index.delete(index.packed(hit.study), segment=1, committed_end=0, dead_bytes=0)
    assert seen == order
    assert [hit.study for hit in index.search(Query(Level.STUDY))] == order[1::2]
    index.close()


def test_an_empty_index(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    for row in CONDITIONS:
        assert keys_found(index, query_of(Level.STUDY, None, None, [row[:2]])) == []
    index.close()


def test_damage_is_told(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    broken = new_instance(("1.1", "1.2", "1.3"), 1, text=b'{"00187004":{')
    torn = new_instance(("1.1", "1.2", "1.4"), 2)
    torn.metadata = [b"nonsense"]
    for new in (broken, torn):
        index.commit([new], segment=1, committed_end=0)
        query = query_of(Level.INSTANCE, None, None, [("DetectorType", "x")])
        with pytest.raises(StoreCorrupt, match="reindex"):
            list(index.search(query))
        index.delete(index.packed("1.1"), segment=1, committed_end=0, dead_bytes=0)
    index.close()


def test_private_attributes_by_the_vr_that_is_stored(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    text = b'{"00091001":{"vr":"IS","Value":[7]},"00091002":{"vr":"LO","Value":["seven"]}}'
    index.commit([new_instance(("1.1", "1.2", "1.3"), text=text)], segment=1, committed_end=0)
    for value, tag, matches in (
        ("07", "00091001", 1),
        ("x", "00091001", 0),
        ("s*n", "00091002", 1),
        ("*", "00091009", 1),
    ):
        assert len(keys_found(index, query_of(Level.STUDY, None, None, [(tag, value)]))) == matches
    index.close()


def test_nested_attributes(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    request = element("SQ", {"00400009": element("SH", "S1"), "00401001": element("SH", "R1")})
    text = b'{"00400260":{"vr":"SQ","Value":[{},{"00080100":{"vr":"SH","Value":["T1"]}}]}}'
    index.commit(
        [new_instance(("1.1", "1.2", "1.3"), 1, {"00400275": request}, text=text)], segment=1, committed_end=0
    )
    for value, matches in (("S1", True), ("R1", False)):
        query = query_of(
            Level.SERIES, None, None, [("RequestAttributesSequence.ScheduledProcedureStepID", value)]
        )
        assert bool(keys_found(index, query)) is matches
        query = query_of(
            Level.STUDY, None, None, [("00400275.RequestedProcedureID", value.replace("S", "*"))]
        )
        assert keys_found(index, query) == [("1.1",)]  # *1 and R1
        query = query_of(Level.STUDY, None, None, [("00400260.CodeValue", value.replace("S", "T"))])
        assert bool(keys_found(index, query)) is matches
    index.close()

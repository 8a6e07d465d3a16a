"""The short way of a search by one value says what the long one says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_world import Holder, ask, body_of, element, instance, patient

from streamsrv.errors import BadRequest
from streamsrv.query.budget import BRIEF_PORTION
from streamsrv.search import answers
from streamsrv.store.index.index import Index

LONG = "L" * 320  # longer than what a list holds of it
PATIENTS = (
    ["P1"] * 3 + ["P2"] * BRIEF_PORTION + ["P3"] * (BRIEF_PORTION + 1) + [LONG + "a", LONG + "b", "ä b"]
)

EXACT = [
    "PatientID=P1",
    "PatientID=P2",
    "PatientID=%20P1%20",
    "PatientID=p1",
    "PatientID=P1,P2",
    "PatientID=nobody",
    f"PatientID={LONG}a",
    f"PatientID={LONG}b",
    f"PatientID={LONG}c",
    "PatientID=%C3%A4%20b",
    "00100020=P1",
    "AccessionNumber=AP1",
]
OTHERS = [
    "PatientID=P3",
    "PatientID=P*",
    "PatientID=",
    "PatientID=P1&PatientSex=F",
    "PatientID=P1&limit=2",
    "PatientID=P1&limit=0",
    "PatientID=P1&includefield=PatientAge",
    "PatientID=P1&nonsense=1",
    "PatientName=Jane",
    "StudyDate=20240101",
    "StudyInstanceUID=1.1",
    "ModalitiesInStudy=CT",
    "SeriesDescription=thorax",
    "PatientAge=7",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    index.commit(
        [
            instance(
                (f"1.{number}", f"1.{number}.0", f"1.{number}.0.0"),
                number + 1,
                patient("Doe^Jane", who, f"202401{1 + number * 7 % 28:02d}" if number % 5 else "")
                | {"00080060": element("CS", "CT"), "00081030": element("LO", 'with "quotes" \\ and ä')},
            )
            for number, who in enumerate(PATIENTS)
        ],
        segment=1,
        committed_end=0,
    )
    yield Holder(index)
    index.close()


def both(world: Holder, monkeypatch: pytest.MonkeyPatch, query: str) -> tuple[bool, object, object]:
    """Whether the exact lookup was used, and the answers with it and without."""
    taken: list[bool] = []
    exact_matches = answers.exact_matches

    def watched(*given: Any) -> list[bytes] | None:
        found = exact_matches(*given)
        taken.append(found is not None)
        return found

    found = []
    for way in (watched, lambda *_: None):
        monkeypatch.setattr(answers, "exact_matches", way)
        answer = ask(world, f"/studies?{query}")
        found.append((answer.status, answer.headers, body_of(answer)))
    return taken[0], *found


@pytest.mark.parametrize("query", EXACT)
def test_both_ways_say_the_same(world: Holder, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    taken, short, long = both(world, monkeypatch, query)
    assert taken
    assert short == long


@pytest.mark.parametrize("query", OTHERS)
def test_all_else_is_searched_for(world: Holder, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    taken, short, long = both(world, monkeypatch, query)
    assert not taken
    assert short == long


def test_what_is_found_is_not_empty(world: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"PatientID=P1": 3, f"PatientID={LONG}a": 1, "AccessionNumber=AP1": 3}
    for query, count in sizes.items():
        _, (status, headers, _), _ = both(world, monkeypatch, query)
        assert (status, dict(headers)["X-Total-Count"]) == (200, str(count))


def test_a_value_that_is_too_long_is_refused_either_way(world: Holder) -> None:
    with pytest.raises(BadRequest, match="PatientID is longer"):
        ask(world, "/studies?PatientID=" + "x" * 5000)


def test_what_was_deleted_is_not_found(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    index.commit([instance(("1.1", "1.2", "1.3"), 1, patient("Doe", "P1", ""))], segment=1, committed_end=0)
    assert ask(Holder(index), "/studies?PatientID=P1").status == 200
    index.delete(index.packed("1.1"), segment=1, committed_end=0, dead_bytes=0)
    assert ask(Holder(index), "/studies?PatientID=P1").status == 204
    index.close()

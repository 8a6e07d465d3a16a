"""Order and pages of search results: whatever arrives between two pages, nothing is missed and nothing comes
twice."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_world import BASE, Holder, ask, body_of, element, header, instance, patient, results, values

from streamsrv.errors import BadRequest
from streamsrv.store.index.index import Index
from streamsrv.store.rows import NewInstance

UIDS = ("0020000D", "0020000E", "00080018")


def next_page(answer: Any) -> str | None:
    """The URL of the Link header, below the version."""
    links = header(answer, "Link")
    if not links:
        return None
    url, relation = links[0].split(">; ")
    assert relation == 'rel="next"'
    assert url.startswith(f"<{BASE}/")
    parts = urlsplit(url[1:])
    return f"{parts.path.removeprefix('/v2')}?{parts.query}"


def pages(store: Holder, url: str | None) -> Iterator[list[dict[str, Any]]]:
    while url:
        answer = ask(store, url)
        yield json.loads(body_of(answer) or b"[]")
        url = next_page(answer)


def identities(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [tuple(each[tag]["Value"][0] for tag in UIDS if tag in each) for each in found]


QUERIES = (
    "/studies?",
    "/studies?PatientName=*oe*&StudyDate=20230101-",
    "/studies?Modality=CT",
    "/studies?StudyInstanceUID=1.0,1.1,1.2",
    "/series?",
    "/series?Modality=CT,MR",
    "/studies/1.1/series?",
    "/instances?",
    "/instances?InstanceNumber=2",
    "/instances?DetectorType=detector*",
    "/studies/1.1/instances?",
    "/studies/1.1/series/1.1.0/instances?",
    "/instances?SOPInstanceUID=1.1.0.0,1.1.0.1,1.2.1.2,1.0.0.0",
)
ORDERS = ("", "&orderby=-StudyDate", "&orderby=PatientName", "&orderby=StudyTime,-StudyInstanceUID")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_pages_together_are_the_whole(store: Holder, query: str, order: str, limit: int) -> None:
    whole = results(store, f"{query}{order}")
    parts = list(pages(store, f"{query}&limit={limit}{order}"))
    assert [each for part in parts for each in part] == whole
    assert all(len(part) == limit for part in parts[:-1])


def test_the_offset_counts_once(store: Holder) -> None:
    parts = list(pages(store, "/instances?limit=4&offset=3&includefield=PatientName"))
    whole = [each for part in parts for each in part]
    assert identities(whole) == identities(results(store, "/instances"))[3:]
    assert all("00100010" in each for part in parts for each in part)
    empty = ask(store, "/instances?limit=4&offset=300")
    assert (empty.status, header(empty, "Link")) == (204, [])
    assert header(ask(store, "/instances?limit=0"), "Link") == []


@pytest.mark.parametrize(
    ("url", "tag", "expected"),
    [
        ("/studies?orderby=PatientName", "00100010", ["Doe^Jane", "Poe^Eva", "Roe^Max"]),
        ("/studies?orderby=-00100010", "00100010", ["Roe^Max", "Poe^Eva", "Doe^Jane"]),
        ("/studies?orderby=StudyDate", "00080020", ["20230505", "20240131", "20240202"]),
        ("/studies?orderby=-NumberOfStudyRelatedInstances,PatientID", "00201208", [6, 6, 3]),
        ("/studies?orderby=EthnicGroup,-StudyInstanceUID", "0020000D", ["1.2", "1.1", "1.0"]),
        ("/series?orderby=-Modality&orderby=-SeriesInstanceUID", "0020000E", "1.2.1 1.1.1 1.2.0 1.1.0 1.0.0"),
        ("/studies/1.1/series/1.1.0/instances?orderby=-InstanceNumber", "00200013", [3, 2, 1]),
        ("/studies/1.1/series/1.1.0/instances?orderby=-SOPInstanceUID", "00200013", [3, 2, 1]),
    ],
)
def test_orderby(store: Holder, url: str, tag: str, expected: Any) -> None:
    found = values(results(store, url), tag)
    names = [value["Alphabetic"] if isinstance(value, dict) else value for value in found]
    assert names == (expected.split() if isinstance(expected, str) else expected)
    assert header(ask(store, url), "X-Total-Count") == [str(len(names))]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("orderby=Nonsense", "Nonsense"),
        ("orderby=Modality", "below"),
        ("orderby=RetrieveURL", "RetrieveURL"),
        ("orderby=SliceThickness", "SliceThickness"),
        ("orderby=" + ",".join(["PatientID"] * 9), "at most 8"),
        ("orderby=PatientID,StudyDate&offset=10001", "offset"),
        ("after=nonsense", "after"),
        ("after=%C3%BC", "after"),
        ("after=" + base64.urlsafe_b64encode(b"[]").decode(), "after"),
        ("after=" + base64.urlsafe_b64encode(b'["-00080020",[["x"]],["1.1"]]').decode(), "after"),
        ("after=" + base64.urlsafe_b64encode(b'["-00080020",[""],["1.1","1.2"]]').decode(), "after"),
        ("after=" + base64.urlsafe_b64encode(b'["-00080020",[""],["1/1"]]').decode(), "after"),
        ("after=" + base64.urlsafe_b64encode(b'["-00080020",[1],["1.1"]]').decode(), "after"),
        ("orderby=PatientID&after=" + base64.urlsafe_b64encode(b'["00100020",[5],["1"]]').decode(), "after"),
    ],
)
def test_what_is_no_order_and_no_cursor(store: Holder, query: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        ask(store, f"/studies?{query}")


def test_a_cursor_counts_for_its_own_order_and_level(store: Holder) -> None:
    page = next_page(ask(store, "/studies?limit=1"))
    assert page is not None
    cursor = page.partition("after=")[2]
    for elsewhere in (f"/series?after={cursor}", f"/studies?orderby=PatientID&after={cursor}"):
        with pytest.raises(BadRequest, match="after"):
            ask(store, elsewhere)
    # Another search may go on from there: it is a place, whether or not anything is at it.
    assert values(results(store, f"/studies?PatientID=P*&after={cursor}"), "0020000D") == ["1.0", "1.2"]


def test_empty_values_come_last(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    dates = {"1.1": "", "1.2": "20240101", "1.3": "", "1.4": "19990101"}
    for number, (study, date) in enumerate(dates.items()):
        index.commit(
            [instance((study, "1", "2"), number, patient("A", "P", date))], segment=1, committed_end=0
        )
    holder = Holder(index)
    for order, expected in (("", "1.2 1.4 1.1 1.3"), ("&orderby=StudyDate", "1.4 1.2 1.1 1.3")):
        found = [part for page in pages(holder, f"/studies?limit=1{order}") for part in page]
        assert values(found, "0020000D") == expected.split()
    index.close()


class Clinic:
    """Studies that arrive and go between two pages."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.index = Index.open(folder)
        self.index.add_segment()
        self.stored = 0
        self.present: set[str] = set()
        self.arrive(30)

    def arrive(self, studies: int = 1) -> None:
        new = [each for _ in range(studies) for each in self._study()]
        self.index.commit(new, segment=1, committed_end=0)

    def _study(self) -> Iterator[NewInstance]:
        study = f"1.{self.numbers.randrange(10**6)}"
        date = self.numbers.choice(("20240101", "20240102", "20240103", ""))
        for series in range(2):
            self.stored += 1
            key = (study, f"{study}.{series}", f"{study}.{series}.1")
            yield instance(key, self.stored, patient(self.numbers.choice("ABC"), "P", date))
        self.present.add(study)

    def go(self) -> None:
        study = self.numbers.choice(sorted(self.present))
        self.index.delete(self.index.packed(study), segment=1, committed_end=0, dead_bytes=0)
        self.present.discard(study)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "query", ["/studies?", "/series?", "/instances?PatientID=P", "/studies?PatientName=*"]
)
@pytest.mark.parametrize("order", ["", "&orderby=PatientName", "&orderby=-PatientName,StudyDate"])
@given(seed=st.integers(0, 10**6), limit=st.integers(2, 9))
@settings(max_examples=2, derandomize=True, deadline=None)
def test_nothing_is_missed_or_repeated_while_studies_come_and_go(
    tmp_path_factory: pytest.TempPathFactory, query: str, order: str, seed: int, limit: int
) -> None:
    clinic = Clinic(tmp_path_factory.mktemp("clinic"), seed)
    holder, always, seen = Holder(clinic.index), set(clinic.present), []
    for page in pages(holder, f"{query}&limit={limit}{order}"):
        seen += identities(page)
        clinic.arrive()
        clinic.go()
        always &= clinic.present
    assert len(seen) == len(set(seen))
    of_each = 1 if query.startswith("/studies") else 2
    for study in always:
        assert len([key for key in seen if key[0] == study]) == of_each
    clinic.index.close()


@pytest.mark.parametrize("url", ["/studies?limit=6&offset=1", "/series?limit=11"])
def test_a_page_that_is_streamed_ends_at_its_cursor(tmp_path: Path, url: str) -> None:
    """It is found twice. Instances that arrive between the two searches are not on it."""
    clinic = Clinic(tmp_path, 3)
    holder = Holder(clinic.index)
    seen: list[tuple[str, ...]] = []
    following: str | None = url
    skipped = set(identities(results(holder, "/studies?limit=1"))) if "offset" in url else set()
    always = set(clinic.present)
    while following:
        answer = ask(holder.searches(kept=2), following)
        assert answer.length is None or len(answer.plan) == 1  # type: ignore[arg-type]  # a tuple here
        clinic.arrive(5)
        seen += identities(json.loads(body_of(answer)))
        following = next_page(answer)
    assert len(seen) == len(set(seen))
    assert {key[0] for key in seen} >= always - {key[0] for key in skipped}
    clinic.index.close()


def test_nested_fields_are_returned_alone(tmp_path: Path) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    items = [
        {
            "00400009": element("SH", f"S{number}"),
            "00401001": element("SH", "R"),
            "00321060": element("LO", "head"),
            "00400008": element("SQ", {"00080100": element("SH", "C"), "00080104": element("LO", "meaning")}),
        }
        for number in (1, 2)
    ]
    attributes = patient("A", "P", "20240101") | {
        "00400275": element("SQ", *items),
        "00082112": element("SQ", {"00081150": element("UI", "1.2"), "00081155": element("UI", "1.3")}),
    }
    index.commit([instance(("1.1", "1.2", "1.3"), 1, attributes)], segment=1, committed_end=0)
    holder = Holder(index)

    def found(url: str, tag: str) -> Any:
        return results(holder, url)[0].get(tag)

    below = "/studies/1.1/series/1.2/instances"
    # A sequence that nothing is known of, one that the index keeps a part of, and items of items.
    assert found(f"{below}?includefield=SourceImageSequence.ReferencedSOPClassUID", "00082112") == element(
        "SQ", {"00081150": element("UI", "1.2")}
    )
    assert found(f"{below}?includefield=00082112", "00082112") == attributes["00082112"]
    assert found(f"{below}?includefield=00400275.00400009", "00400275") == element(
        "SQ", {"00400009": element("SH", "S1")}, {"00400009": element("SH", "S2")}
    )
    assert found(f"{below}?00400275.00400009=S2", "00400275") == element(
        "SQ", {"00400009": element("SH", "S1")}, {"00400009": element("SH", "S2")}
    )
    deep = "RequestAttributesSequence.ScheduledProtocolCodeSequence.CodeValue"
    code = {"00400008": element("SQ", {"00080100": element("SH", "C")})}
    assert found(f"{below}?includefield={deep}", "00400275") == element("SQ", code, code)
    # What the answer of a series holds of it anyway stays.
    kept = [{"00400009": item["00400009"], "00401001": item["00401001"]} for item in items]
    assert found("/series", "00400275") == element("SQ", *kept)
    assert found(f"/series?includefield={deep}", "00400275") == element("SQ", *[each | code for each in kept])
    assert found("/series?includefield=RequestAttributesSequence", "00400275") == attributes["00400275"]
    assert found("/instances?includefield=all", "00400275") == attributes["00400275"]
    assert found(f"/series?includefield=00400275,{deep}", "00400275") == attributes["00400275"]
    index.close()

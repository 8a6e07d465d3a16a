"""The number of results that remain behind a page (PS3.18 8.3.4.4.1): exact where lists or a few further rows
tell it, else the least number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from search_world import Holder, ask, element, header, instance, patient, results

from streamsrv.store.index.index import Index

STUDIES = 300


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    """Every third study has a series of MR beside that of CT."""
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    new = []
    for study in range(STUDIES):
        for series, modality in enumerate(("CT", "MR") if study % 3 == 0 else ("CT",)):
            date = f"20{study % 20:02d}01{study % 28 + 1:02d}"
            attributes = patient(f"Name{study % 150}^A", f"P{study % 2}", date) | {
                "00080060": element("CS", modality),
                "00080090": element("PN", {"Alphabetic": "R\u00e9f^A" if study % 2 else "Ref^A"}),
                "00187004": element("CS", "detector"),
                "00200011": element("IS", series + 1),
            }
            key = (f"1.{study}", f"1.{study}.{series}", f"1.{study}.{series}.0")
            new.append(instance(key, len(new) + 1, attributes))
    index.commit(new, segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def warning(archive: Holder, url: str) -> tuple[str, list[str]]:
    """What remains, and the total."""
    answer = ask(archive, url)
    (text,) = header(answer, "Warning")
    begin, end = '299 streamsrv "There are ', ' additional results that can be requested"'
    assert text.startswith(begin)
    assert text.endswith(end)
    return text[len(begin) : -len(end)], header(answer, "X-Total-Count")


@pytest.mark.parametrize(
    ("url", "remaining"),
    [
        # One list
        ("/studies?ModalitiesInStudy=MR&limit=10", 90),
        ("/studies?ModalitiesInStudy=CT&limit=10&offset=20", 270),
        ("/studies?PatientID=P0&limit=1", 149),
        ("/series?Modality=MR&limit=10", 90),
        ("/series?SeriesNumber=1&limit=10", 290),
        # Days
        ("/studies?StudyDate=20050101-&limit=10", 215),
        ("/studies?StudyDate=20050101-20081231&limit=10", 50),
        ("/studies?StudyTime=1015&limit=10", 290),
        # Few rows
        ("/studies?StudyDate=20050101-20081231&ModalitiesInStudy=MR&limit=10", 10),
        ("/studies?StudyTime=1015&PatientID=P1&ModalitiesInStudy=MR&limit=40", 10),
        ("/studies?ModalitiesInStudy=CT%5CMR&multiplevaluematching=true&limit=90", 10),
        ("/studies?ModalitiesInStudy=MR,XA&limit=98", 2),
        ("/studies?PatientName=name12^a&limit=1", 1),
        ("/studies?Modality=MR&PatientID=P0&limit=45", 5),
        ("/instances?StudyInstanceUID=1.0,1.3,1.6&limit=2", 4),
        # No condition, another order
        ("/studies?limit=10", 290),
        ("/studies?orderby=PatientName&limit=10", 290),
        ("/studies?PatientName=name*&orderby=PatientID,StudyID&limit=10", 290),
    ],
)
def test_the_number_of_results_behind_a_page(archive: Holder, url: str, remaining: int) -> None:
    count = len(results(archive, url))
    skipped = 20 if "offset" in url else 0
    assert warning(archive, url) == (str(remaining), [str(skipped + count + remaining)])
    everything = url.replace("&offset=20", "").replace(f"limit={count}", "limit=5000")
    assert len(results(archive, everything)) == skipped + count + remaining


@pytest.mark.parametrize(
    "url",
    [
        "/studies?PatientName=name*&limit=10",
        "/studies?ReferringPhysicianName=ref*&limit=10",  # its list has names without accents
        "/studies?Modality=CT&limit=10",
        "/instances?Modality=CT&limit=10",
        "/studies?DetectorType=detector&limit=10",  # in the metadata
    ],
)
def test_the_least_number_where_it_would_take_long(archive: Holder, url: str) -> None:
    remaining, total = warning(archive, url)
    assert total == []
    word, _, number = remaining.rpartition(" ")
    assert word == "at least"
    there = len(results(archive, url.replace("limit=10", "limit=5000"))) - 10
    assert 1 <= int(number) <= there
    assert (int(number) > 1) is ("Detector" not in url)


def test_each_page_names_a_number(archive: Holder) -> None:
    """Behind a cursor only few rows are counted; the last page says the rest exactly."""
    url, seen = "/studies?PatientID=P1&limit=40", []
    for _ in itertools.repeat(None):
        answer = ask(archive, url)
        seen += [header(answer, "Warning")]
        links = header(answer, "Link")
        if not links:
            break
        url = "/studies" + quote(links[0][links[0].index("?") : links[0].index(">")], safe="?&=,")
    numbers = [each[0].split('"')[1] if each else "" for each in seen]
    assert [text.removeprefix("There are ").partition(" additional")[0] for text in numbers] == [
        "110",
        "at least 41",
        "30",
        "",
    ]


def test_a_deleted_study_is_not_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    attributes = patient("A", "P", "20240101") | {"00080060": element("CS", "CT")}
    new = [instance((f"1.{at}", f"1.{at}.1", f"1.{at}.1.1"), at, attributes) for at in range(1, 6)]
    index.commit(new, segment=1, committed_end=0)
    holder = Holder(index)
    assert warning(holder, "/studies?ModalitiesInStudy=CT&limit=1") == ("4", ["5"])
    index.delete(index.packed("1.2"), segment=1, committed_end=0, dead_bytes=0)
    assert warning(holder, "/studies?ModalitiesInStudy=CT&limit=1") == ("3", ["4"])
    index.close()

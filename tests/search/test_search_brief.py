"""Searches in the loop: those that look at a few rows are answered there, all others say so early."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

import pytest
from search_world import Holder, ask, body_of, brief, element, instance, patient, request_of

from streamsrv.query.budget import BRIEF_PORTION, BRIEF_ROWS, BriefBudget
from streamsrv.search import answers
from streamsrv.store.index import metadata_blobs
from streamsrv.store.index import reading as index_reading
from streamsrv.store.index import walk as index_search
from streamsrv.store.index.environment import ReadTransaction
from streamsrv.store.index.index import Index
from streamsrv.store.index.rows import LevelRow
from streamsrv.store.rows import NewInstance
from streamsrv.wire.answers import Answer, Deferred
from streamsrv.wire.resources import target_of

STUDIES = 600

BRIEF = [
    "/studies?PatientID=P7",
    "/studies?AccessionNumber=AP7",
    "/studies?PatientID=nobody",
    "/studies?limit=20",
    "/studies?PatientName=Name7^*",
    "/studies?Modality=MR",
    "/studies?PatientID=P7&includefield=SeriesDescription,PatientAge",
    "/studies?StudyInstanceUID=1.7",
    "/studies?SeriesInstanceUID=1.7.0",
    "/studies/1.7/series",
    "/studies/1.7/instances",
    "/studies/1.7/series/1.7.0/instances",
    "/series?PatientID=P7",
    "/instances?PatientID=P7&SOPClassUID=1.2.840.10008.5.1.4.1.1.2",
]
LONG = [
    "/studies",
    "/studies?limit=100",
    "/series",
    "/instances",
    "/studies?Modality=CT",
    "/studies?PatientName=*ame*&limit=700",
    "/studies?PatientName=*nothing*",
    "/studies?PatientName=nothing&fuzzymatching=true",
    "/studies?PatientBirthDate=19700101",
    "/studies?orderby=PatientName",
    "/instances?DetectorType=nothing",
    "/instances?PatientID=P7&includefield=DetectorType",
    "/instances?includefield=all&limit=1",
    "/studies?limit=40&includefield=EthnicGroup",
    "/studies?PatientID=" + ",".join(f"P{number}" for number in range(200)),
    "/studies?StudyInstanceUID=" + ",".join(f"1.{number}" for number in range(100)),
    "/studies?InstanceNumber=99",
]


def archive() -> Iterator[NewInstance]:
    for study in range(STUDIES):
        date = f"2024{study % 12 + 1:02d}{study % 28 + 1:02d}"
        attributes = patient(f"Name{study}^Jane", f"P{study}", date) | {
            "00080060": element("CS", "CT"),
            "0008103E": element("LO", "thorax"),
        }
        for at in range(3):
            key = (f"1.{study}", f"1.{study}.0", f"1.{study}.0.{at}")
            yield instance(key, 3 * study + at + 1, attributes)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    index.commit(list(archive()), segment=1, committed_end=0)
    yield Holder(index)
    index.close()


class Counted:
    """Rows and transactions of searches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.transactions = self.texts = 0
        unpack, begin, names = LevelRow.unpack, ReadTransaction.__enter__, metadata_blobs.names_any

        def unpacking(value: bytes) -> LevelRow:
            self.rows += 1
            return unpack(value)

        def beginning(reading: ReadTransaction) -> object:
            self.transactions += 1
            return begin(reading)

        def read(pieces: Iterable[bytes], tags: Collection[str]) -> bool:
            self.texts += 1
            return names(pieces, tags)

        for module in (index_search, index_reading):
            monkeypatch.setattr(module.LevelRow, "unpack", staticmethod(unpacking))
        monkeypatch.setattr(ReadTransaction, "__enter__", beginning)
        monkeypatch.setattr(metadata_blobs, "names_any", read)


@pytest.mark.parametrize("url", BRIEF)
def test_a_brief_search_is_answered_in_the_loop(large: Holder, url: str) -> None:
    searches = large.searches()
    short = brief(searches, url)
    assert isinstance(short, Answer)
    request = request_of(url, {})
    long = large.searches()._long(request, target_of(request.path))
    assert (short.status, short.headers, body_of(short)) == (long.status, long.headers, body_of(long))


@pytest.mark.parametrize("url", LONG)
def test_a_long_search_is_given_up_early(large: Holder, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    assert isinstance(brief(large.searches(), url), Deferred)
    assert counted.rows <= 2 * BRIEF_ROWS + BRIEF_PORTION
    assert counted.transactions <= 2 * BRIEF_ROWS
    assert counted.texts == 0


def test_a_long_search_is_answered_in_the_loop_from_the_cache(large: Holder) -> None:
    searches = large.searches()
    ask(searches, "/studies?limit=100")
    assert isinstance(brief(searches, "/studies?limit=100"), Answer)


def test_a_long_page_is_compressed_in_a_thread(large: Holder) -> None:
    searches = large.searches()
    ask(searches, "/studies?limit=100")
    for header in ("gzip", "zstd;q=0.5"):
        found = brief(searches, "/studies?limit=100", **{"accept-encoding": header})
        assert isinstance(found, Deferred)
        assert isinstance(found.compute(), Answer)
    for url, header in (("/studies?PatientID=P1", "gzip"), ("/studies?limit=100", "gzip;q=0")):
        assert isinstance(brief(searches, url, **{"accept-encoding": header}), Answer)


def test_xml_of_many_is_made_in_a_thread(large: Holder) -> None:
    xml = 'multipart/related; type="application/dicom+xml"'
    assert isinstance(brief(large.searches(), "/studies?PatientID=P1", accept=xml), Answer)
    assert isinstance(brief(large.searches(), "/studies?limit=20", accept=xml), Deferred)


def test_a_page_fault_ends_a_brief_search(large: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = itertools.chain([1, 1], itertools.repeat(2))
    monkeypatch.setattr(answers, "BriefBudget", lambda rows: BriefBudget(rows, faults=lambda: next(faults)))
    assert isinstance(brief(large.searches(), "/studies?limit=20"), Deferred)


def test_it_is_no_longer_than_the_setting_allows(large: Holder) -> None:
    assert isinstance(brief(large.searches(rows=5), "/studies?limit=20"), Deferred)

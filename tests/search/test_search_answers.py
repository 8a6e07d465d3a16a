"""Search transactions, from a request to an answer, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from search_world import BASE, CT, Holder, ask, body_of, element, header, instance, patient, results, values

from streamsrv.errors import BadRequest, ContentTooLarge, NotAcceptable
from streamsrv.search import attributes
from streamsrv.store.index.index import Index


def test_studies(store: Holder) -> None:
    found = results(store, "/studies")
    assert values(found, "0020000D") == ["1.1", "1.0", "1.2"]  # newest first
    assert found[1] == {
        "00080005": element("CS", "ISO_IR 192"),
        "00080020": element("DA", "20240131"),
        "00080030": element("TM", "101500"),
        "00080050": element("SH", "AP0"),
        "00080056": element("CS", "ONLINE"),
        "00080061": element("CS", "CT"),
        "00080090": {"vr": "PN"},
        "00081030": element("LO", "study of Doe^Jane"),
        "00081190": element("UR", f"{BASE}/studies/1.0"),
        "00100010": element("PN", {"Alphabetic": "Doe^Jane"}),
        "00100020": element("LO", "P0"),
        "00100030": element("DA", "19700101"),
        "00100040": {"vr": "CS"},
        "0020000D": element("UI", "1.0"),
        "00200010": {"vr": "SH"},
        "00201206": element("IS", 1),
        "00201208": element("IS", 3),
    }


def test_series_of_a_study(store: Holder) -> None:
    found = results(store, "/studies/1.1/series")
    assert values(found, "0020000E") == ["1.1.0", "1.1.1"]
    assert values(found, "00081190") == [f"{BASE}/studies/1.1/series/1.1.{number}" for number in (0, 1)]
    assert values(found, "00080060") == ["CT", "MR"]
    assert values(found, "00201209") == [3, 3]
    assert "00100010" not in found[0]


def test_instances_of_a_series(store: Holder) -> None:
    found = results(store, "/studies/1.1/series/1.1.0/instances")
    assert len(found) == 3
    assert found[2] == {
        "00080005": element("CS", "ISO_IR 192"),
        "00080016": element("UI", CT),
        "00080018": element("UI", "1.1.0.2"),
        "00080056": element("CS", "ONLINE"),
        "00081190": element("UR", f"{BASE}/studies/1.1/series/1.1.0/instances/1.1.0.2"),
        "00083002": element("UI", "1.2.840.10008.1.2.1"),
        "0020000D": element("UI", "1.1"),
        "0020000E": element("UI", "1.1.0"),
        "00200013": element("IS", 3),
        "00280010": element("US", 16),
        "00280011": element("US", 17),
        "00280100": element("US", 8),
    }


def test_levels_that_the_path_does_not_name_are_in_the_answer(store: Holder) -> None:
    series = results(store, "/series?Modality=MR")
    assert values(series, "00100020") == ["P1", "P2"]
    assert values(series, "00081190")[0] == f"{BASE}/studies/1.1/series/1.1.1"
    below = results(store, "/studies/1.1/instances?SeriesInstanceUID=1.1.1")
    assert values(below, "00080018") == ["1.1.1.0", "1.1.1.1", "1.1.1.2"]
    assert values(below, "00080060") == ["MR"] * 3
    assert "00100020" not in below[0]
    everywhere = results(store, "/instances?SOPInstanceUID=1.1.1.1")
    assert [values(everywhere, tag) for tag in ("00100020", "00080060", "00200013")] == [["P1"], ["MR"], [2]]


@pytest.mark.parametrize(
    "query",
    [
        "PatientID=P1",
        "00100020=P1",
        "PatientName=ROE^MAX",
        "PatientName=roe*",
        "AccessionNumber=AP1",
        "StudyInstanceUID=1.1",
        "StudyInstanceUID=1.1,1.77",
        "StudyDate=20240202",
        "StudyDate=20240201-20240301",
        "StudyDescription=*Roe*",
        "SeriesInstanceUID=1.1.1",
        "SOPInstanceUID=1.1.0.0&PatientID=P1",
        "Modality=MR&StudyDate=20240101-",
        "Modality=MR&PatientName=",
        "DetectorType=detector%202&PatientID=P1",
        "PatientID=P1&fuzzymatching=true&PatientName=ma",
    ],
)
def test_what_finds_one_study(store: Holder, query: str) -> None:
    found = values(results(store, f"/studies?{query}"), "0020000D")
    assert found[:1] == ["1.1"]
    assert len(found) == (2 if query == "Modality=MR&PatientName=" else 1)


def test_what_viewers_ask(store: Holder) -> None:
    """The requests of OHIF's study list, its filters, and a study being opened."""
    tail = "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060%2C00080090%2C00100030"
    found = results(store, f"/studies?{tail}")
    for tag in ("00081030", "00080061", "00100030", "00201206", "00201208"):
        assert len(values(found, tag)) == 3
    assert all("00080090" in each for each in found)
    filters = (
        "PatientName=*ro*&00100020=*P*&AccessionNumber=*A*&StudyDescription=*s*&ModalitiesInStudy=CT"
        "&StudyDate=20240101-20240301"
    )
    assert values(results(store, f"/studies?{filters}&{tail}"), "0020000D") == ["1.1"]
    assert values(results(store, f"/studies?{tail}&StudyInstanceUID=1.2"), "0020000D") == ["1.2"]
    assert values(results(store, "/studies?00100020=P2&limit=101"), "0020000D") == ["1.2"]
    series = results(store, "/studies/1.2/series?includefield=00080021,00080031,0008103E,00200011")
    assert values(series, "00080021") == ["20230505"] * 2
    assert values(series, "00200011") == [1, 2]
    assert results(store, "/studies/1.2/series?Modality=SM") == []


def test_matched_attributes_are_returned(store: Holder) -> None:
    (found,) = results(
        store, "/instances?PatientID=P1&Modality=MR&DetectorType=detector%201&SOPClassUID=" + CT
    )
    assert found["00080060"] == element("CS", "MR")
    assert found["00187004"] == element("CS", "detector 1")
    assert found["00080016"] == element("UI", CT)
    assert results(store, "/studies?EthnicGroup=group&limit=1")[0]["00102160"] == element("SH", "group")


def test_includefield(store: Holder) -> None:
    url = "/studies/1.1/series/1.1.0/instances"
    (found, *_) = results(store, f"{url}?includefield=PatientName,00187004&includefield=ProtocolName")
    assert found["00100010"] == element("PN", {"Alphabetic": "Roe^Max"})
    assert found["00187004"] == element("CS", "detector 0")
    assert found["00181030"] == element("LO", "protocol")
    (everything, *_) = results(store, f"{url}?includefield=all")
    assert everything["7FE00010"]["BulkDataURI"] == f"{BASE}{url}/1.1.0.0/bulkdata/7FE00010"
    assert everything["00081190"] == found["00081190"]
    assert "00102160" not in results(store, "/studies")[0]
    assert results(store, "/studies?includefield=all")[0]["00102160"] == element("SH", "group")
    assert results(store, "/series?includefield=ALL")[0]["00181030"] == element("LO", "protocol")
    assert "00280008" not in results(store, "/instances?includefield=NumberOfFrames")[0]
    assert "00187777" not in results(store, "/instances?includefield=00187777")[0]


def test_limit_and_offset(store: Holder) -> None:
    assert values(results(store, "/studies?limit=2"), "0020000D") == ["1.1", "1.0"]
    assert values(results(store, "/studies?limit=2&offset=2"), "0020000D") == ["1.2"]
    assert results(store, "/studies?offset=3") == results(store, "/studies?limit=0") == []
    cut = ask(store, "/studies?limit=2")
    assert header(cut, "X-Total-Count") == ["3"]
    assert header(cut, "Warning") == ['299 streamsrv "There are 1 additional results that can be requested"']
    assert header(ask(store, "/studies"), "Warning") == []
    assert header(ask(store, "/instances?Modality=CT"), "X-Total-Count") == ["9"]


def test_a_limit_over_the_most_is_lowered(store: Holder) -> None:
    limited = store.searches(default=1, most=2)
    lowered = ask(limited, "/studies?limit=100")
    assert len(json.loads(body_of(lowered))) == 2
    assert "lowered to 2" in header(lowered, "Warning")[0]
    assert len(json.loads(body_of(ask(limited, "/studies")))) == 1


def test_warnings_for_what_is_unknown(store: Holder) -> None:
    found = ask(store, '/studies?includefield=Nonsense,x"y&sortby=PatientID')
    texts = header(found, "Warning")
    assert [name in text for name, text in zip(("Nonsense", "given", "sortby"), texts, strict=True)] == [
        True
    ] * 3
    assert all(text.count('"') == 2 for text in texts)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("PatientNane=x", "PatientNane"),
        ("patientid=P1", "patientid"),
        ("limit=many", "limit"),
        ("limit=-1", "limit"),
        ("offset=1.5", "offset"),
        ("fuzzymatching=maybe", "fuzzymatching"),
        ("StudyDate=yesterday", "StudyDate"),
        ("StudyInstanceUID=1.2.x", "StudyInstanceUID"),
        ("RequestAttributesSequence.Nope=1", "RequestAttributesSequence.Nope"),
    ],
)
def test_bad_requests_name_the_parameter(store: Holder, query: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        ask(store, f"/studies?{query}")


def test_nothing_found(store: Holder) -> None:
    for url in (
        "/studies?PatientID=nobody",
        "/studies/7.7/series",
        "/studies/1.1/series/1.2.0/instances",
        "/series?Modality=XA",
    ):
        answer = ask(store, url)
        assert (answer.status, answer.length, list(answer.plan)) == (204, 0, [])
        assert header(answer, "Content-Type") == []


def test_media_types(store: Holder) -> None:
    for accept, expected in (
        ("*/*", "application/dicom+json"),
        ("application/json", "application/json"),
        ("application/dicom+json", "application/dicom+json"),
    ):
        assert header(ask(store, "/studies", accept=accept), "Content-Type") == [expected]
    assert header(ask(store, "/studies?accept=application/json", accept="text/html"), "Content-Type") == [
        "application/json"
    ]
    with pytest.raises(NotAcceptable):
        ask(store, "/studies", accept="image/png")


def test_long_answers_are_streamed(store: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = (
        "/studies",
        "/instances",
        "/studies/1.1/series/1.1.0/instances",
        "/instances?Modality=CT&limit=5&offset=2",
    )
    whole = [body_of(ask(store, url)) for url in urls]
    monkeypatch.setattr(attributes, "PAGE", 2)
    for url, expected in zip(urls, whole, strict=True):
        answer = ask(store.searches(kept=1), url)
        assert answer.length is None
        assert body_of(answer) == expected


def test_everything_deleted_before_it_was_sent(store: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask(store.searches(kept=1), "/studies")
    monkeypatch.setattr(Index, "search", lambda *_: iter(()))
    assert body_of(answer) == b"[]"


def test_searches_that_are_too_broad(store: Holder) -> None:
    with pytest.raises(ContentTooLarge, match="narrow"):
        ask(store.searches(metadata=1000), "/studies?DetectorType=none")


def test_values_cannot_plant_slots_or_break_out(tmp_path: Any) -> None:
    index = Index.open(tmp_path)
    index.add_segment()
    name = 'A\x00\x01\x02\x03\x04"\\'
    index.commit(
        [instance(("1.1", "1.2", "1.3"), 1, patient(name, "P", "20240131"))], segment=1, committed_end=0
    )
    (found,) = results(Holder(index), "/studies?includefield=EthnicGroup")
    assert found["00100010"] == element("PN", {"Alphabetic": name})
    assert results(Holder(index), "/studies")[0]["00100010"] == element("PN", {"Alphabetic": name})
    index.close()

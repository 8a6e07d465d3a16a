"""Every attribute that a search must match (PS3.18 Tables 10.6.1-3 to 10.6.1-5), at every level, by every
kind of matching that its VR has (PS3.4 C.2.2.2). The table here is written down from the standard, not taken
from the code."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import pytest
from search_world import BASE, CT, Holder, ask, body_of, element, header, instance, results, values

from streamsrv.errors import BadRequest, ContentTooLarge
from streamsrv.query.attributes import QUERY_ATTRIBUTES
from streamsrv.store.index.index import Index
from streamsrv.wire.answers import Request, resolved
from streamsrv.wire.resources import parse_query, target_of

STUDY, SERIES, INSTANCE = "/studies", "/series", "/instances"
# Level, tag, keyword, value of the one that is sought, and queries that find it alone.
REQUIRED = [
    (STUDY, "00080020", "StudyDate", ("DA", "20240131"), "20240131 20240131- 20240130-20240201"),
    (STUDY, "00080030", "StudyTime", ("TM", "101500"), "101500 1015 10 1000-1100 -1016 101500.000-101501"),
    (STUDY, "00080050", "AccessionNumber", ("SH", "A 77"), "A%2077 A+77 A* *77 A?7?"),
    (STUDY, "00080061", "ModalitiesInStudy", ("CS", "MR"), "MR M? *R MR,XA MR%5CXA"),
    (STUDY, "00080090", "ReferringPhysicianName", ("PN", "Ref^Anna"), "Ref^Anna REF^ANNA ref* *ann* R?f^A*"),
    (STUDY, "00100010", "PatientName", ("PN", "Doe^Jane"), "Doe^Jane doe^jane doe* *jane d*^j*"),
    (STUDY, "00100020", "PatientID", ("LO", "P_1%"), "P_1%25 P_* *_1* P?1?"),
    (STUDY, "0020000D", "StudyInstanceUID", ("UI", "1.1"), "1.1 1.1,7.7 7.7%5C1.1"),
    (STUDY, "00200010", "StudyID", ("SH", "S1"), "S1 S* *1 S?"),
    (SERIES, "00080060", "Modality", ("CS", "MR"), "MR M? MR,XA"),
    (SERIES, "0020000E", "SeriesInstanceUID", ("UI", "1.1.1"), "1.1.1 1.1.1,7.7"),
    (SERIES, "00200011", "SeriesNumber", ("IS", 5), "5 05"),
    (SERIES, "00400244", "PerformedProcedureStepStartDate", ("DA", "20240131"), "20240131 20240131-20240201"),
    (SERIES, "00400245", "PerformedProcedureStepStartTime", ("TM", "1015"), "1015 1000-1016"),
    (SERIES, "00400275.00400009", "ScheduledProcedureStepID", ("SH", "SPS1"), "SPS1 SPS* *1"),
    (SERIES, "00400275.00401001", "RequestedProcedureID", ("SH", "RP1"), "RP1 R*1"),
    (INSTANCE, "00080016", "SOPClassUID", ("UI", CT + ".9"), f"{CT}.9 {CT}.9,7.7"),
    (INSTANCE, "00080018", "SOPInstanceUID", ("UI", "1.1.1.1"), "1.1.1.1 1.1.1.1,7.7"),
    (INSTANCE, "00200013", "InstanceNumber", ("IS", 11), "11 011"),
]
OTHER = {"DA": "20200101", "TM": "235959", "PN": "Roe^Max", "IS": 77, "CS": "CT", "SH": "X", "LO": "Y"}
COMPUTED = {"0020000D", "0020000E", "00080016", "00080018", "00080061"}


def dataset(number: int) -> dict[str, Any]:
    """The first instance has the values that are sought, the others none of them."""
    attributes: dict[str, Any] = {}
    for _, tag, _, (vr, sought), _ in REQUIRED:
        if tag in COMPUTED:
            continue
        value = sought if number == 0 else OTHER[vr]
        outer, _, inner = tag.partition(".")
        held = element(vr, {"Alphabetic": value} if vr == "PN" else value)
        if inner:
            items = attributes.setdefault(outer, element("SQ", {}))
            items["Value"][0][inner] = held
        else:
            attributes[outer] = held
    return attributes


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    new = [
        instance((f"1.{number}", f"1.{number}.1", f"1.{number}.1.1"), number, dataset(number - 1))
        for number in (1, 2, 3)
    ]
    new[0].row = new[0].row._replace(sop_class_uid=f"{CT}.9")
    names = (
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"},
        "Müller^Jörg",
    )
    for number, name in enumerate(names, 8):
        held = element("PN", name if isinstance(name, dict) else {"Alphabetic": name})
        new.append(instance((f"2.{number}", "2.1", f"2.{number}"), number, {"00100010": held}))
    index.commit(new, segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def studies(clinic: Holder, path: str, query: str) -> list[str]:
    """Asked as a client writes it, percent-encoded."""
    target = target_of(f"/v2{path}")
    request = Request("GET", f"/v2{path}", parse_query(query), {}, BASE, 2)
    body = body_of(resolved(clinic.searches().answer(request, target)))
    return values(json.loads(body or b"[]"), "0020000D")


KEYS = [
    pytest.param(level, name, query, id=f"{level}?{name}={query}")
    for level, tag, keyword, _, queries in REQUIRED
    for query in queries.split()
    for name in (tag, f"RequestAttributesSequence.{keyword}" if "." in tag else keyword)
]


@pytest.mark.parametrize(("level", "name", "query"), KEYS)
def test_every_required_attribute_is_matched(clinic: Holder, level: str, name: str, query: str) -> None:
    for path in (STUDY, SERIES, INSTANCE)[(STUDY, SERIES, INSTANCE).index(level) :]:
        assert studies(clinic, path, f"{name}={query}") == ["1.1"]
    # A study matches on what is below it too.
    assert studies(clinic, STUDY, f"{name}={query}") == ["1.1"]


@pytest.mark.parametrize(
    ("level", "tag", "keyword", "sought", "queries"), REQUIRED, ids=lambda each: str(each)[:30]
)
def test_every_required_attribute_is_returned(
    clinic: Holder, level: str, tag: str, keyword: str, sought: tuple[str, Any], queries: str
) -> None:
    """Also where nothing was asked for, and where it has no value (but for what series may leave away)."""
    vr, value = sought
    expected = element(vr, {"Alphabetic": value} if vr == "PN" else value)
    found = {each["0020000D"]["Value"][0]: each for each in results(clinic, level)}
    outer, _, inner = tag.partition(".")
    if tag not in COMPUTED:
        held = found["1.1"][outer]["Value"][0][inner] if inner else found["1.1"][outer]
        assert held == expected
        assert inner or outer[:4] == "0040" or outer in found["2.8"]
    else:
        assert found["1.1"][outer]["vr"] == vr


def test_universal_matching_finds_all_and_returns_the_attribute(clinic: Holder) -> None:
    for level, tag, _, _, _ in REQUIRED:
        for value in ("", "*"):
            if value and tag in ("00080020", "00080030", "00400244", "00400245"):
                continue
            assert len(studies(clinic, level, f"{tag}={value}")) == 5


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("PatientName=山田*", ["2.8"]),
        ("PatientName=%E5%B1%B1%E7%94%B0%5E%E5%A4%AA%E9%83%8E", ["2.8"]),
        ("PatientName==山田*", ["2.8"]),
        ("PatientName==%3Dやまだ*", ["2.8"]),
        ("PatientName=M%C3%BCller*", ["2.9"]),
        ("PatientName=M%C3%9CLLER%5Ej%C3%B6rg", ["2.9"]),
        ("PatientName=Mueller*", []),
        ("PatientName=Muller*", []),
        ("PatientName=muller&fuzzymatching=true", ["2.9"]),
        ("PatientName=jorg+mull&fuzzymatching=true", ["2.9"]),
        ("PatientName=TAROU%20yama&fuzzymatching=true", ["2.8"]),
        ("PatientName=太&fuzzymatching=true", ["2.8"]),
        ("PatientName=たろう&fuzzymatching=true", ["2.8"]),
        ("PatientName=amada&fuzzymatching=true", []),
        ("PatientName=doe&fuzzymatching=TRUE", ["1.1"]),
        ("PatientID=P%5F1%25", ["1.1"]),
        ("PatientID=P%2A", ["1.1"]),  # encoded or not, it is a wildcard
        ("PatientID=p_1%25", []),
        ("PatientID=%25", []),
        ("PatientID=P_", []),
        ("PatientID=____", []),
        ("StudyDate=20240131-&StudyTime=1015-", ["1.1"]),
        ("StudyDate=20240130-20240131&StudyTime=2300-1016", ["1.1"]),  # from one moment to another
        ("StudyDate=20240130-20240131&StudyTime=1000-1014", []),
        ("StudyDate=20240131&StudyTime=2300-2359", []),
        ("SOPInstanceUID=1.1.1.1&PatientName=roe*", []),
    ],
)
def test_names_moments_and_encodings(clinic: Holder, query: str, expected: list[str]) -> None:
    encoded = query.encode().decode("latin-1")  # as a request line is read
    assert studies(clinic, STUDY, encoded) == expected


@pytest.mark.parametrize("query", ["PatientID=%zz", "PatientID=%", "PatientName=%FF", "Pati%00entID=1"])
def test_what_is_not_percent_encoding_or_no_attribute(clinic: Holder, query: str) -> None:
    with pytest.raises(BadRequest):
        studies(clinic, STUDY, query)


def test_the_code_marks_the_same_attributes_as_required() -> None:
    tags = {tag for _, tag, _, _, _ in REQUIRED}
    assert {row.tag for row in QUERY_ATTRIBUTES if row.required} == tags


def test_budgets_are_limits_of_the_service(clinic: Holder) -> None:
    with pytest.raises(ContentTooLarge, match="narrow"):
        ask(clinic.searches(metadata=100), "/instances?SliceThickness=1")
    with pytest.raises(ContentTooLarge, match="narrow"):
        ask(clinic.searches(rows=2), "/instances")


# -- dicom+xml

NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


def documents(content_type: str, body: bytes) -> list[ElementTree.Element]:
    assert content_type.startswith('multipart/related; type="application/dicom+xml"; boundary=')
    delimiter = b"\r\n--" + content_type.rpartition("=")[2].strip('"').encode()
    first, *parts, last = (b"\r\n" + body).split(delimiter)
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, payload = part.partition(b"\r\n\r\n")
        assert b"Content-Type: application/dicom+xml" in head
        found.append(ElementTree.fromstring(payload))
    return found


@pytest.mark.parametrize(
    "url", ["/studies?includefield=00400275", "/series", "/instances?limit=3&includefield=all"]
)
@pytest.mark.parametrize("kept", [1, 500])
def test_results_as_native_models(clinic: Holder, url: str, kept: int) -> None:
    answer = ask(clinic.searches(kept=kept), url, accept='multipart/related; type="application/dicom+xml"')
    found = documents(header(answer, "Content-Type")[0], body_of(answer))
    expected = results(clinic, url)
    assert len(found) == len(expected)
    for model, dataset in zip(found, expected, strict=True):
        assert [each.get("tag") for each in model.findall(f"{NATIVE}DicomAttribute")] == list(dataset)
        (uid,) = model.findall(f"{NATIVE}DicomAttribute[@keyword='StudyInstanceUID']/{NATIVE}Value")
        assert uid.text == dataset["0020000D"]["Value"][0]


def test_nothing_found_has_no_body_whatever_is_asked_for(clinic: Holder) -> None:
    answer = ask(
        clinic, "/studies?PatientID=nobody", accept='multipart/related; type="application/dicom+xml"'
    )
    assert (answer.status, body_of(answer)) == (204, b"")


def test_a_search_can_be_asked_whether_it_has_changed(clinic: Holder) -> None:
    first = ask(clinic, "/studies?PatientName=doe*")
    (etag,) = header(first, "ETag")
    again = ask(clinic, "/studies?PatientName=doe*", **{"if-none-match": etag})
    assert (again.status, body_of(again)) == (304, b"")
    assert header(ask(clinic, "/studies?PatientName=roe*"), "ETag") != [etag]
    as_json = ask(clinic, "/studies?PatientName=doe*", accept="application/json")
    assert header(as_json, "ETag") != [etag]
    part = ask(clinic, "/studies?PatientName=doe*", range="bytes=0-0")
    assert (part.status, body_of(part)) == (206, b"[")

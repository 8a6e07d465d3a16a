"""The kinds of matching that a request has to ask for: empty values (PS3.18 8.3.4.5, PS3.4 C.2.2.2.7) and
several values (PS3.18 8.3.4.6, PS3.4 C.2.2.2.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from search_world import CT, Holder, ask, element, instance, results, values

from streamsrv.errors import BadRequest
from streamsrv.store.index.index import Index

# Of each study: date, attributes, and modalities of its series. Study 1.0 has all values.
FULL: dict[str, Any] = {
    "00080050": element("SH", "A"),
    "00080008": element("CS", "ORIGINAL", "PRIMARY", "AXIAL"),
    "00081030": element("LO", "thorax, abdomen"),
    "00081060": element("PN", {"Alphabetic": "Ree^Ann"}, {"Alphabetic": "Lee^Bo"}),
    "00081080": element("LO", "A, B", "C"),
    "00100010": element("PN", {"Alphabetic": "Doe^Jane"}),
    "00100020": element("LO", "P0"),
    "00180015": element("CS", "CHEST"),
    "00181050": element("DS", 0.5),
    "00200013": element("IS", 1),
    "00204000": element("LT", "a comment"),
    "00080005": element("CS", "ISO_IR 192"),
    "00291010": element("LO", "private"),
    "00400275": element("SQ", {"00400009": element("SH", "S"), "00321060": element("LO", "D")}),
    "00081140": element("SQ", {"00081155": element("UI", "1.2")}),
}
BARE: dict[str, Any] = {
    "00080050": {"vr": "SH"},
    "00080008": element("CS", None),
    "00081060": {"vr": "PN"},
    "00100010": element("PN", {"Alphabetic": " "}),
    "00100020": element("LO", ""),
    "00204000": {"vr": "LT", "BulkDataURI": "\0/bulkdata/00204000"},
    "00291010": element("LO", None),
    "00400275": element("SQ", {"00400009": element("SH", "S")}, {"00400009": {"vr": "SH"}}),
}
STUDIES = [
    ("20240101", FULL, ("CT", "PT")),
    ("", BARE, ("CT", "")),
    ("not a date", {}, ("PT",)),
    ("20230101", FULL | {"00080008": element("CS", "DERIVED", "PRIMARY")}, ("CT",)),
]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    new = []
    for study, (date, attributes, modalities) in enumerate(STUDIES):
        for series, modality in enumerate(modalities):
            held = attributes | {"00080016": element("UI", CT)}
            held |= {"00080020": element("DA", date)} if date else {}
            held |= {"00080060": element("CS", modality)} if modality else {"00080060": {"vr": "CS"}}
            key = (f"1.{study}", f"1.{study}.{series}", f"1.{study}.{series}.1")
            new.append(instance(key, len(new) + 1, dict(sorted(held.items()))))
    index.commit(new, segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def studies(clinic: Holder, query: str, path: str = "/studies") -> list[str]:
    return sorted(set(values(results(clinic, f"{path}?{query}"), "0020000D")))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        # Of studies, of series, in the table and not
        ("AccessionNumber", ["1.1", "1.2"]),
        ("PatientName", ["1.1", "1.2"]),
        ("00100020", ["1.1", "1.2"]),
        ("StudyDate", ["1.1"]),
        ("StudyTime", ["1.0", "1.1", "1.2", "1.3"]),
        ("StudyDescription", ["1.1", "1.2"]),
        ("NameOfPhysiciansReadingStudy", ["1.1", "1.2"]),
        ("ModalitiesInStudy", []),
        ("StudyInstanceUID", []),
        ("SeriesInstanceUID", []),
        ("SOPInstanceUID", []),
        ("Modality", ["1.1"]),
        ("SeriesNumber", ["1.0", "1.1", "1.2", "1.3"]),
        ("BodyPartExamined", ["1.1", "1.2"]),
        # Of instances
        ("InstanceNumber", ["1.1", "1.2"]),
        ("SOPClassUID", []),
        ("Rows", ["1.0", "1.1", "1.2", "1.3"]),
        ("ImageType", ["1.1", "1.2"]),
        ("SpatialResolution", ["1.1", "1.2"]),
        ("00291010", ["1.1", "1.2"]),
        ("ImageComments", ["1.2"]),  # bulk data is a value
        # Sequences: an item without the value, or no item
        ("RequestAttributesSequence", ["1.2"]),
        ("RequestAttributesSequence.ScheduledProcedureStepID", ["1.1", "1.2"]),
        ("RequestAttributesSequence.RequestedProcedureDescription", ["1.1", "1.2"]),
        ("ReferencedImageSequence", ["1.1", "1.2"]),
    ],
)
@pytest.mark.parametrize("path", ["/studies", "/instances"])
def test_two_quotation_marks_match_no_value(clinic: Holder, path: str, name: str, found: list[str]) -> None:
    assert studies(clinic, f"{name}=%22%22&emptyvaluematching=true", path) == found


def test_empty_values_beside_other_conditions(clinic: Holder) -> None:
    empty = "emptyvaluematching=true"
    assert studies(clinic, f'PatientID=""&Modality=PT&{empty}') == ["1.2"]
    assert studies(clinic, f'{empty}&StudyDate=""&AccessionNumber=""') == ["1.1"]
    assert studies(clinic, f'{empty}&AccessionNumber=""&StudyDate=20240101-') == []
    assert studies(clinic, f'{empty}&StudyDate=20240101-&StudyTime=""') == ["1.0"]
    assert studies(clinic, f"{empty}&AccessionNumber=") == ["1.0", "1.1", "1.2", "1.3"]
    assert studies(clinic, f'{empty}&PatientName=""&fuzzymatching=true') == ["1.1", "1.2"]
    (found,) = results(clinic, f'/studies?{empty}&AccessionNumber=""&Modality=CT')
    assert found["00080050"] == {"vr": "SH"}


@pytest.mark.parametrize("path", ["/studies", "/instances"])
def test_text_without_case_has_to_be_asked_for(clinic: Holder, path: str) -> None:
    """By a list, by rows, and by metadata."""
    step = "RequestAttributesSequence.ScheduledProcedureStepID"
    for name, stored, asked in (
        ("PatientID", "P0", "p*"),
        (step, "S", "s"),
        ("ImageComments", "a comment", "A C*"),
    ):
        assert studies(clinic, f"{name}={asked}", path) == []
        assert studies(clinic, f"{name}={asked}&ignorecase=false", path) == []
        found = studies(clinic, f"{name}={asked}&ignorecase=true", path)
        assert found == studies(clinic, f"{name}={stored}", path) != []


@pytest.mark.parametrize("asked", ["", "&emptyvaluematching=false"])
def test_empty_values_have_to_be_asked_for(clinic: Holder, asked: str) -> None:
    assert studies(clinic, f'PatientID=""{asked}') == []
    assert studies(clinic, f"PatientID={asked}") == ["1.0", "1.1", "1.2", "1.3"]
    with pytest.raises(BadRequest, match="InstanceNumber is not a number"):
        studies(clinic, f'InstanceNumber=""{asked}')


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ModalitiesInStudy=CT%5CPT", ["1.0"]),
        ("ModalitiesInStudy=PT,CT", ["1.0"]),
        ("ModalitiesInStudy=CT%5CCT", ["1.0", "1.1", "1.3"]),
        ("ModalitiesInStudy=CT%5CMR", []),
        ("ModalitiesInStudy=C*", ["1.0", "1.1", "1.3"]),
        ("ImageType=PRIMARY%5CORIGINAL", ["1.0"]),
        ("ImageType=PRIMARY", ["1.0", "1.3"]),
        ("AdmittingDiagnosesDescription=C%5CA,%20B", ["1.0", "1.3"]),
        ("AdmittingDiagnosesDescription=A%5CB", []),
        ("NameOfPhysiciansReadingStudy=lee%5Ebo%5Cree%5Eann", ["1.0", "1.3"]),
        ("NameOfPhysiciansReadingStudy=bo%5Cann&fuzzymatching=true", ["1.0", "1.3"]),
        ("NameOfPhysiciansReadingStudy=bo%5Cx&fuzzymatching=true", []),
        # These have one value: nothing changes for them, nor for lists of UIDs.
        ("Modality=CT%5CPT", ["1.0", "1.1", "1.2", "1.3"]),
        ("StudyDescription=thorax,%20abdomen", ["1.0", "1.3"]),
        ("StudyInstanceUID=1.0%5C1.1", ["1.0", "1.1"]),
    ],
)
@pytest.mark.parametrize("path", ["/studies", "/instances"])
def test_several_values_all_match(clinic: Holder, path: str, query: str, found: list[str]) -> None:
    assert studies(clinic, f"{query}&multiplevaluematching=true", path) == found


@pytest.mark.parametrize("asked", ["", "&multiplevaluematching=false"])
def test_several_values_have_to_be_asked_for(clinic: Holder, asked: str) -> None:
    assert studies(clinic, f"ModalitiesInStudy=PT%5CMR{asked}") == ["1.0", "1.2"]
    assert studies(clinic, f"AdmittingDiagnosesDescription=C%5CA,%20B{asked}") == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("emptyvaluematching=1", "emptyvaluematching must be true or false"),
        ("multiplevaluematching=", "multiplevaluematching must be true or false"),
        ("multiplevaluematching=true&ImageType=A%5CB*", "ImageType have no wildcards"),
        ("multiplevaluematching=true&ImageType=A%5C", "values of ImageType is empty"),
        (
            'multiplevaluematching=true&emptyvaluematching=true&ImageType=A%5C""',
            "values of ImageType is empty",
        ),
        ('emptyvaluematching=true&PixelData=""', "PixelData cannot be matched"),
    ],
)
def test_wrong_values_are_refused(clinic: Holder, query: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        ask(clinic, f"/studies?{query}")

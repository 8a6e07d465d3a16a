"""Attributes and levels: results hold no attribute of a level below them (PS3.18 10.6.3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from highdicom import _standard_utils as standard
from pydicom.datadict import tag_for_keyword
from search_world import CT, Holder, ask, element, header, instance, patient, results, values

from streamsrv.query.attributes import Level
from streamsrv.query.levels import level_of
from streamsrv.store.index.index import Index

LITTLE = "1.2.840.10008.1.2.1"


def warnings(store: Holder, url: str) -> list[str]:
    return [text.split('"')[1] for text in header(ask(store, url), "Warning")]


@pytest.mark.parametrize(
    ("url", "name", "tag"),
    [
        ("/studies", "SeriesDescription", "0008103E"),
        ("/studies", "Modality", "00080060"),
        ("/studies", "ProtocolName", "00181030"),
        ("/studies", "SeriesInstanceUID", "0020000E"),
        ("/studies", "Rows", "00280010"),
        ("/studies", "DetectorType", "00187004"),
        ("/studies", "TransferSyntaxUID", "00020010"),
        ("/series", "SOPClassUID", "00080016"),
        ("/series", "InstanceNumber", "00200013"),
        ("/studies/1.1/series", "00187004", "00187004"),
        ("/studies", "RequestAttributesSequence.ScheduledProcedureStepID", "00400275"),
    ],
)
def test_an_attribute_of_a_lower_level_is_not_returned(store: Holder, url: str, name: str, tag: str) -> None:
    found = results(store, f"{url}?includefield={name}")
    assert found
    assert not any(tag in each for each in found)
    ignored = f"the includefield {name} is of a level below the results and was ignored"
    assert warnings(store, f"{url}?includefield={name}") == [ignored]
    assert not any(tag in each for each in results(store, f"{url}?includefield=all"))


@pytest.mark.parametrize("query", ["Modality=MR", "DetectorType=detector%201", f"SOPClassUID={CT}", "Rows="])
def test_neither_is_a_matched_one(store: Holder, query: str) -> None:
    plain = {each["0020000D"]["Value"][0]: each for each in results(store, "/studies")}
    found = results(store, f"/studies?{query}")
    assert found
    assert found == [plain[uid] for uid in values(found, "0020000D")]
    assert warnings(store, f"/studies?{query}") == []


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("animals"))
    index.add_segment()
    attributes = patient("Rex", "R", "20240131") | {
        "00100212": element("UC", "strain"),
        "00102201": element("LO", "Canis lupus"),
        "00181020": element("LO", "5.0"),
        "00181050": element("DS", 0.5),
        "00185100": element("CS", "HFS"),
        "00290010": element("LO", "creator"),
        "00291010": element("LO", "private"),
        "00291011": element("LO", "another"),
    }
    index.commit([instance(("1.1", "1.2", "1.3"), 1, attributes)], segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def test_an_attribute_that_is_not_indexed_has_a_level_too(animals: Holder) -> None:
    """Private attributes have none: all results may hold them."""
    fields = "includefield=StrainDescription,00102201,SoftwareVersions,PatientPosition,00291010,ImageType"
    study, series, single = (
        results(animals, f"/{name}?{fields}")[0] for name in ("studies", "series", "instances")
    )
    tags = ("00100212", "00102201", "00181020", "00185100", "00291010")
    assert [tag in study for tag in tags] == [True, True, False, False, True]
    assert [tag in series for tag in tags] == [tag in single for tag in tags] == [True] * 5
    assert len(warnings(animals, f"/studies?{fields}")) == 3
    assert len(warnings(animals, f"/series?{fields}")) == 1


@pytest.mark.parametrize("query", ["includefield=00291010", "00291010=private"])
@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_a_private_attribute_comes_with_its_creator(animals: Holder, level: str, query: str) -> None:
    (found,) = results(animals, f"/{level}?{query}")
    private = {tag: each for tag, each in found.items() if tag[:4] == "0029"}
    assert private == {"00290010": element("LO", "creator"), "00291010": element("LO", "private")}


def test_levels_are_those_of_the_modules() -> None:
    """Compared with the tables of PS3.3 that highdicom has."""
    modules, entities = standard.get_module_attribute_map(), {}
    for definition in standard.get_iod_module_map().values():
        for each in definition:
            for attribute in modules.get(each["key"], ()):
                if not attribute["path"] and (tag := tag_for_keyword(attribute["keyword"])):
                    entities.setdefault(f"{tag:08X}", set()).add(each["ie"])
    study, series = {"Patient", "Study"}, {"Series", "Equipment", "Frame of Reference"}
    # Of every level, of a module for whole archives, and retired attributes of visits and requests.
    known = {"00080005", "00080201", "00080056", "00081190"}
    for tag, found in entities.items():
        level = level_of((tag,))
        assert level is not None
        if tag in known or tag[:4] in ("0010", "0012", "0032", "0038"):
            continue
        expected = Level.STUDY if found & study else Level.SERIES if found & series else Level.INSTANCE
        assert level is expected, tag
    assert len(entities) > 1500


def test_the_transfer_syntax_by_the_tag_of_the_file_meta_information(store: Holder) -> None:
    """Clients of Google's service ask for (0002,0010) and read it."""
    url = "/studies/1.1/series/1.1.0/instances"
    for fields in ("00020010", "TransferSyntaxUID", "00020010,DetectorType", "00020010,PatientID,all"):
        found = results(store, f"{url}?includefield={fields}")
        assert [each["00020010"] for each in found] == [element("UI", LITTLE)] * 3
        assert values(found, "00083002") == [LITTLE] * 3
        assert warnings(store, f"{url}?includefield={fields}") == []
    assert "00020010" not in results(store, url)[0]
    for name in ("TransferSyntaxUID", "00020010", "AvailableTransferSyntaxUID"):
        assert len(results(store, f"/instances?{name}={LITTLE}")) == 15
        assert results(store, f"/instances?{name}=1.2.3") == []
    assert results(store, f"/instances?00020010={LITTLE}")[0]["00020010"] == element("UI", LITTLE)

"""Rules of access as values: how they are written, and which facts meet them."""

from __future__ import annotations

import json

import pytest

from streamsrv.errors import RuleError
from streamsrv.query.rules import FACTS, Facts, Rule, any_of, facts_of, limited_to, rule_from, rule_of


def facts(**changes: list[str]) -> Facts:
    """Those of one CT instance of hospital A; keywords by their last word."""
    tags = {"patient": "00100020", "institution": "00080080", "physician": "00080090", "date": "00080020"}
    found = {tag: [""] for tag in FACTS}
    found |= {"00100020": ["P1"], "00080080": ["A-Nord"], "00080020": ["20240229"], "00080060": ["CT"]}
    return found | {tags.get(name, "00080060"): values for name, values in changes.items()}


@pytest.mark.parametrize(
    ("conditions", "shown", "hidden"),
    [
        (["InstitutionName=A*"], facts(), facts(institution=["B"])),
        (["InstitutionName=A*"], facts(institution=["A", "Ax"]), facts(institution=["A", "B"])),
        (["00080080=A-Nord"], facts(), facts(institution=[""])),
        (["PatientID=P?"], facts(), facts(patient=["P11"])),
        (["StudyDate=20240101-20241231"], facts(), facts(date=["20250101"])),
        (["StudyDate=-20240301"], facts(), facts(date=[""])),
        (["ModalitiesInStudy=CT,SR"], facts(modality=["CT", "SR"]), facts(modality=["CT", "MR"])),
        (["ReferringPhysicianName=dr^who"], facts(physician=["Dr^Who=博士"]), facts(physician=["Dr^No"])),
        (["InstitutionName=A*", "PatientID=P1"], facts(), facts(patient=["P2"])),
        (["StudyInstanceUID=1.2,1.3"], facts(), None),
    ],
)
def test_every_value_has_to_meet_every_condition(
    conditions: list[str], shown: Facts, hidden: Facts | None
) -> None:
    rule = rule_of(conditions)
    assert rule.accepts("1.2", shown)
    assert not (rule.accepts("1.2", hidden) if hidden else rule.accepts("1.4", shown))


def test_alternatives_are_not_mixed() -> None:
    """One alternative holds for all instances, not one for each."""
    both = any_of([rule_of(["InstitutionName=A"]), rule_of(["InstitutionName=B"])])
    assert both.accepts("1.2", facts(institution=["A"]))
    assert both.accepts("1.2", facts(institution=["B"]))
    assert not both.accepts("1.2", facts(institution=["A", "B"]))


def test_a_rule_without_alternatives_shows_nothing() -> None:
    for rule in (Rule(), rule_of([]), rule_from([]), any_of([])):
        assert not rule.accepts("1.2", facts())


def test_a_rule_is_the_same_in_every_spelling() -> None:
    first = rule_of(["InstitutionName=A*", "PatientID=P1"], ["1.2", "1.3"])
    again = rule_from(
        {"00100020": " P1 ", "StudyInstanceUID": "1.2,1.3", "InstitutionName": "A*"},
    )
    assert first == again
    assert len({first, again}) == 1
    assert rule_from(json.loads(json.dumps(first.document))) == first
    assert rule_from("PatientID=P1") == rule_of(["PatientID=P1"])
    assert rule_from(["PatientID=P1", {"PatientID": "P2"}]).document == [
        {"PatientID": "P1"},
        {"PatientID": "P2"},
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("InstitutionName=", "would show every study"),
        ("InstitutionName=*", "would show every study"),
        ("ReferringPhysicianName=^", "would show every study"),
        ("PatientName=Doe", "'PatientName' in a rule is not one of PatientID"),
        ("institutionname=A", "is not one of"),
        ("InstitutionName", "not of the form"),
        ("StudyDate=yesterday", "StudyDate is neither a date"),
        ("StudyInstanceUID=1.2,x", "not a UID"),
        ({}, "1 to 16"),
        ({"PatientID": ["P1"]}, "a mapping of attributes to texts"),
        ({"PatientID": "P1", "00100020": "P2"}, "twice"),
        (None, "a mapping of attributes to texts"),
        ([f"PatientID=P{number}" for number in range(65)], "at most 64"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(value: object, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        rule_from(value)


def test_the_facts_of_an_instance() -> None:
    found = facts_of(
        {
            "00080080": {"vr": "LO", "Value": ["A ", "B"]},
            "00080090": {"vr": "PN", "Value": [{"Alphabetic": "Dr^Who", "Ideographic": "博士"}]},
            "00100020": {"vr": "LO"},
            "00080060": {"vr": "CS", "Value": ["CT"]},
        }
    )
    assert found == {
        "00080080": ["A", "B"],
        "00080090": ["Dr^Who=博士"],
        "00100020": [""],
        "00080050": [""],
        "00080020": [""],
        "00080060": ["CT"],
    }


def test_a_rule_is_limited_to_one_study() -> None:
    assert limited_to(None, "1.2") == rule_of([], ["1.2"])
    assert limited_to(rule_of(["InstitutionName=A*"]), "1.2") == rule_of(["InstitutionName=A*"], ["1.2"])
    assert limited_to(rule_of(["PatientID=P"], ["1.2", "1.3"]), "1.3") == rule_of(["PatientID=P"], ["1.3"])
    assert limited_to(rule_of([], ["1.2"]), "1.3") == Rule()
    several = any_of([rule_of(["PatientID=P"]), rule_of([], ["1.2"])])
    assert limited_to(several, "1.4") == rule_of(["PatientID=P"], ["1.4"])


@pytest.mark.parametrize("facts", [{}, {"00080080": []}, {"00080080": [""]}])
def test_an_instance_without_a_value_meets_no_condition(facts: Facts) -> None:
    assert not rule_of(["InstitutionName=A*"]).accepts("1.2", facts)

"""Claims of a token as rights and a rule (the setting oidc_roles)."""

import pytest

from streamsrv.config import SettingsError
from streamsrv.query.rules import Rule, any_of, rule_from, rule_of
from streamsrv.web.access.principal import NO_RIGHTS, Right
from streamsrv.web.access.roles import Roles, values_at

SEARCH, READ, STORE, DELETE = Right.SEARCH, Right.READ, Right.STORE, Right.DELETE
PATHS = ("roles", "realm_access.roles", "resource_access.dicom.web.roles", "groups", "scope")


def grant(claims, *entries):
    return Roles(entries, PATHS).grant(claims)


@pytest.mark.parametrize(
    "claims",
    [
        {"realm_access": {"roles": ["offline_access", "reader"]}},  # Keycloak
        {"resource_access": {"dicom.web": {"roles": ["reader"]}}},
        {"roles": ["reader"]},  # Entra
        {"groups": ["reader"]},
        {"scope": "openid reader profile"},
        {"roles": "reader"},
    ],
)
def test_roles_are_found_at_their_paths(claims):
    assert grant(claims, "reader -> search read") == (SEARCH | READ, None)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"roles": None},
        {"roles": ["readers", 7, ["reader"]]},
        {"roles": {"reader": 1}},
        {"realm_access": ["reader"]},
    ],
)
def test_a_token_without_the_role_has_no_rights(claims):
    assert grant(claims, "reader -> search read") == (NO_RIGHTS, None)


def test_a_claim_may_have_dots_in_its_name():
    claims = {"https://clinic.example/roles": ["a"], "x": {"y.z": {"v": 1}}}
    assert values_at(claims, "https://clinic.example/roles") == ["a"]
    assert values_at(claims, "x.y.z.v") == [1]
    assert values_at(claims, "x.y.v") == []


def test_rights_of_several_roles_add_up():
    entries = ("* -> search", "reader -> read", "sender -> store", "root -> delete")
    assert grant({"roles": ["reader", "sender"]}, *entries) == (SEARCH | READ | STORE, None)


def test_rules_of_several_roles_add_up_with_their_common_rights():
    entries = ("a -> search read where InstitutionName=A*", "b -> search read delete where InstitutionName=B")
    a, b = rule_of(["InstitutionName=A*"]), rule_of(["InstitutionName=B"])
    assert grant({"roles": ["a"]}, *entries) == (SEARCH | READ, a)
    assert grant({"roles": ["b"]}, *entries) == (SEARCH | READ | DELETE, b)
    assert grant({"roles": ["a", "b"]}, *entries) == (SEARCH | READ, any_of([a, b]))


def test_a_role_without_a_rule_does_not_lift_that_of_another():
    entries = ("sender -> store", "a -> search read where InstitutionName=A and ModalitiesInStudy=CT")
    rule = rule_of(["InstitutionName=A", "ModalitiesInStudy=CT"])
    assert grant({"roles": ["a", "sender"]}, *entries) == (SEARCH | READ | STORE, rule)


def test_conditions_hold_values_of_claims():
    entry = "* -> search read where InstitutionName={clinic.names} and ModalitiesInStudy=CT"
    rule = any_of(rule_of([f"InstitutionName={name}", "ModalitiesInStudy=CT"]) for name in ("A and B", "C"))
    assert grant({"clinic": {"names": ["A and B", "C"]}}, entry) == (SEARCH | READ, rule)


@pytest.mark.parametrize("value", [None, [], "", " ", "A*", "?", "A\\B", "A,B", 7, ["A", "*"], {"a": "A"}])
def test_an_entry_with_a_missing_or_wild_claim_shows_no_study(value):
    entry = "* -> search read where InstitutionName={clinic}"
    claims = {} if value is None else {"clinic": value}
    assert grant(claims, entry) == (NO_RIGHTS, Rule())
    assert grant(claims, entry, "* -> store") == (STORE, Rule())


def test_a_claim_may_be_a_whole_rule():
    found = grant(
        {"studies": [{"PatientID": "1", "ModalitiesInStudy": "CT"}, "PatientID=2"]},
        "* -> read where {studies}",
    )
    assert found == (READ, rule_from([{"PatientID": "1", "ModalitiesInStudy": "CT"}, "PatientID=2"]))
    assert grant({"studies": "everything"}, "* -> read where {studies}") == (NO_RIGHTS, Rule())


def test_too_many_values_give_no_rights():
    assert grant({"ids": [str(each) for each in range(65)]}, "* -> read where PatientID={ids}") == (
        NO_RIGHTS,
        Rule(),
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("reader: read", "form"),
        ("reader ->", "no right"),
        ("reader -> look", "'look' is no right"),
        ("reader -> read where", "'where' is no right"),
        ("reader -> read where Institution=A", "'Institution'"),
        ("reader -> read where Institution={a}", "'Institution'"),
        ("reader -> read where InstitutionName=*", "every study"),
        ("reader -> read where {a} and PatientID=1", "alone"),
        ("reader -> read where PatientID={a}{b}", "one claim"),
    ],
)
def test_entries_that_are_refused(entry, reason):
    with pytest.raises(SettingsError, match=reason):
        Roles([entry], PATHS)

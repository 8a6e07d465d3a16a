"""The packages that streamsrv installs: their bounds, licences and advisories."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import lmdb
import pytest
from audit_packages import report
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
TEXT = PYPROJECT.read_text()
REQUIREMENTS = {
    requirement.name: requirement
    for requirement in map(Requirement, tomllib.loads(TEXT)["project"]["dependencies"])
}


@pytest.mark.parametrize("name", ["imagecodecs", "lmdb", "tornado"])
def test_a_package_whose_insides_count_has_an_upper_bound(name):
    """A file format, libraries of a wheel and private names may change with the next version."""
    assert any(bound.operator == "<" for bound in REQUIREMENTS[name].specifier)
    newest = "999"
    assert newest not in REQUIREMENTS[name].specifier
    assert importlib.metadata.version(name) in REQUIREMENTS[name].specifier


def test_the_index_has_the_format_of_lmdb_0_9():
    assert lmdb.version()[:2] == (0, 9)


def test_the_licence_of_orjson_is_stated_as_it_is():
    stated = importlib.metadata.metadata("orjson")["License-Expression"]
    (line,) = (line for line in TEXT.splitlines() if '"orjson' in line)
    assert stated.lower() in line.lower(), stated


def installed(names):
    """Every distribution that the wheel installs here, with its requirements."""
    found, left = {}, [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        wanted = map(Requirement, found[name].requires or ())
        needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
        left += [canonicalize_name(each.name) for each in needed]
    return found


INSTALLED = installed(REQUIREMENTS)
# Licences that a hospital and a distribution can take without a question.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL-2\.0|HPND|OLDAP|OpenLDAP|Unlicense|Zlib|CC0", re.I
)
RESTRICTIVE = re.compile(r"(?<!L)\bGPL|GPLv|AGPL|GNU General Public|proprietary|non-?commercial", re.I)


def licence_of(distribution):
    """Its expression, its field, or its classifiers."""
    metadata = distribution.metadata
    classifiers = [each for each in metadata.get_all("Classifier", ()) if each.startswith("License ::")]
    return metadata["License-Expression"] or " ".join([metadata["License"] or "", *classifiers])[:500]


@pytest.mark.parametrize("name", sorted(INSTALLED))
def test_each_package_is_permissive(name):
    licence = licence_of(INSTALLED[name])
    assert PERMISSIVE.search(licence), licence
    assert not RESTRICTIVE.search(licence), licence


@pytest.mark.parametrize("name", sorted(REQUIREMENTS))
def test_each_package_has_a_least_version_and_is_within_its_bounds(name):
    specifier = REQUIREMENTS[name].specifier
    assert any(bound.operator in (">=", "~=", "==") for bound in specifier)
    assert specifier.contains(importlib.metadata.version(name), prereleases=True)


def audited(*vulnerable, skipped=()):
    found = [{"name": name, "version": "1", "vulns": list(vulns)} for name, *vulns in vulnerable]
    missing = [{"name": name, "skip_reason": "not found"} for name in (*skipped, "streamsrv")]
    return {"dependencies": [*found, *missing]}


ADVISORY = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2", "3"]}


@pytest.mark.parametrize(
    ("found", "exceptions", "status", "lines"),
    [
        (audited(("a",), ("b",)), {}, 0, ["2 of 2 packages were compared with advisories"]),
        (
            audited(("a", ADVISORY), skipped=("b",)),
            {},
            1,
            ["a 1: PYSEC-1 (fixed in 2, 3)", "1 of 2 packages were compared with advisories"],
        ),
        (
            audited(("a", ADVISORY)),
            {"CVE-1": "not called"},
            0,
            ["a 1: PYSEC-1 (accepted: not called)", "1 of 1 packages were compared with advisories"],
        ),
        (
            audited(("a",)),
            {"CVE-1": "not called"},
            0,
            ["CVE-1 is accepted, and concerns no package", "1 of 1 packages were compared with advisories"],
        ),
        (
            audited(skipped=("a", "b")),
            {},
            0,
            [
                "0 of 2 packages were compared with advisories",
                "the package index has no advisories: compare the list of components with a source of them",
            ],
        ),
    ],
)
def test_advisories(found, exceptions, status, lines):
    assert report(found, exceptions) == (status, lines)

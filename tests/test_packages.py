"""The packages that streamsrv installs: their bounds and licences in pyproject.toml."""

import importlib.metadata
import tomllib
from pathlib import Path

import lmdb
import pytest
from packaging.requirements import Requirement

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

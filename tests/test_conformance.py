"""The tables of documents equal those of the code."""

import re

import pytest
from conformance_tables import DOCS, PAGES, TABLES, filled, tables_of

TEXTS = {name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}
WRITTEN = {name: text for page in TEXTS.values() for name, text in tables_of(page).items()}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_the_code(name):
    """`python tests/conformance_tables.py` writes them."""
    assert WRITTEN[name] == TABLES[name]()


def test_every_table_of_a_page_is_known():
    assert set(WRITTEN) == set(TABLES)
    assert all(filled(page) == page for page in TEXTS.values())


def test_nothing_is_refused_in_a_table():
    page = TEXTS["conformance.md"]
    cells = {cell.strip().lower() for cell in re.findall(r"(?<=\|)[^|\n]*(?=\|)", page)}
    assert not cells & {"no", "n", "none", "not supported", "-"}

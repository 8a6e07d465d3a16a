"""Normal forms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.query.values import (
    NORMAL_BYTES,
    cut,
    date_form,
    datetime_span,
    fold,
    normal_forms,
    number_form,
    time_span,
    trim_name,
)


@pytest.mark.parametrize(
    ("vr", "value", "forms"),
    [
        ("PN", {"Alphabetic": "MÜLLER^Jörg^^^"}, ["muller^jorg"]),
        (
            "PN",
            {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": ""},
            ["yamada^tarou", "山田^太郎"],
        ),
        ("PN", "a^b=c", ["a^b", "c"]),
        ("PN", 7, []),
        ("DA", "20240131", ["20240131"]),
        ("DA", "2024.01.31", ["20240131"]),
        ("DA", "20241331", []),
        ("TM", "10", ["100000000000"]),
        ("TM", "10:15:30.5", ["101530500000"]),
        ("TM", "2500", []),
        ("DT", "2024", ["20240101000000000000"]),
        ("DT", "20240131120000+0100", ["20240131110000000000"]),
        ("DT", "yesterday", []),
        ("IS", 7, ["7"]),
        ("IS", "007", ["7"]),
        ("DS", 1.5, ["1.5"]),
        ("DS", "1.50", ["1.5"]),
        ("DS", "x", []),
        ("LO", " P1 ", ["P1"]),
        ("LO", "", []),
        ("LO", None, []),
    ],
)
def test_forms(vr: str, value: object, forms: list[str]) -> None:
    assert normal_forms(vr, value) == forms


def test_spans_of_what_a_value_may_mean() -> None:
    assert time_span("1015") == ("101500000000", "101559999999")
    assert time_span("101530.25") == ("101530250000", "101530259999")
    assert datetime_span("2024") == ("20240101000000000000", "20241231235959999999")
    assert datetime_span("202402-0500") == ("20240201050000000000", "20240301045959999999")
    assert datetime_span("00010101000000+0100") is None
    assert date_form("20240100") is None


def test_numbers_that_are_none() -> None:
    assert number_form("nan") is number_form("inf") is number_form("") is number_form(None) is None
    assert number_form("1e3") == "1000"


@given(st.text(max_size=8), st.text(max_size=8))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_folding_keeps_prefixes(start: str, rest: str) -> None:
    """An inverted list is entered at the folded beginning of a pattern."""
    # A mark that composes with what is before it changes that; the pattern then ends inside a character.
    if fold(start) + fold(rest) == fold(start + rest):
        assert fold(start + rest).startswith(fold(start))
    assert fold(fold(start)) == fold(start)
    assert fold(start.upper()) == fold(start.lower()) or "ı" in start


@given(st.text(max_size=400))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_cut_forms_fit_into_a_key(text: str) -> None:
    assert len(cut(text)) <= NORMAL_BYTES
    assert text.encode("utf-8", "surrogatepass").startswith(cut(text))


def test_names_are_trimmed_by_component() -> None:
    assert trim_name(" Doe ^ Jane ^^") == "Doe^Jane"

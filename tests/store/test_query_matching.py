"""Matchers against stored values, and their probes against the lists that they enter."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_examples import element, name

from streamsrv.errors import BadRequest
from streamsrv.query.matching import (
    Glob,
    Matcher,
    MatchingOptions,
    Moments,
    OneOf,
    Probe,
    Range,
    Universal,
    matcher_of,
)
from streamsrv.query.values import NORMAL_BYTES, cut, normal_forms, whole_name


def accepted_by(probe: Probe, key: bytes) -> bool:
    if probe.exact:
        return key == probe.low
    inside = key >= probe.low and (key <= probe.high or key.startswith(probe.high))
    text = key.lower() if probe.caseless else key
    if len(key) >= NORMAL_BYTES - 3:  # a form that may have been cut
        return inside
    inside = inside and probe.needle in text and probe.other in text
    return inside and (probe.accepts is None or bool(probe.accepts(key.decode())))


def found(matcher: Matcher, vr: str, value: Any) -> bool:
    """Whether a value matches; what matches must be offered by the list too."""
    matches = matcher.matches([element(vr, value)])
    if matches:
        forms = [*normal_forms(vr, value), *([whole_name(value)] if vr == "PN" else [])]
        keys = [cut(form) for form in forms]
        assert any(accepted_by(probe, key) for probe in matcher.probes() for key in keys)
    return matches


@pytest.mark.parametrize(
    ("vr", "asked", "value", "matches"),
    [
        ("LO", "P1", "P1", True),
        ("LO", "P1", " P1 ", True),
        ("LO", "p1", "P1", False),
        ("LO", "P*", "P1", True),
        ("LO", "P?", "P12", False),
        ("LO", "*1*", "P12", True),
        ("LO", "100%_", "100%_", True),
        ("LO", "100%_", "100xx", False),
        ("LO", "[P]1", "P1", False),
        ("LO", "A,B", "A,B", True),
        ("LO", "A,B", "A", False),
        ("CS", "CT,MR", "MR", True),
        ("CS", "CT\\MR", "MR", True),
        ("CS", "C*", "CT", True),
        ("UI", "1.2, 1.3", "1.3", True),
        ("UI", "1.2\\1.3", "1.2", True),
        ("UI", "1.2", "1.20", False),
        ("IS", "7", 7, True),
        ("IS", "007", 7, True),
        ("IS", "7", "7", True),
        ("US", "512", 512, True),
        ("DS", "1.5", 1.50, True),
        ("PN", "doe^jane", {"Alphabetic": "DOE^Jane"}, True),
        ("PN", "Doe^Jane", {"Alphabetic": "Doe^Jane^^^"}, True),
        ("PN", "Doe^Jane^^", {"Alphabetic": "Doe ^ Jane"}, True),
        ("PN", "Doe", {"Alphabetic": "Doe^Jane"}, False),
        ("PN", "Doe*", {"Alphabetic": "Doe^Jane"}, True),
        ("PN", "Doe^*", {"Alphabetic": "Doe"}, True),
        ("PN", "*jane*", {"Alphabetic": "Doe^Jane"}, True),
        ("PN", "D*^J*", {"Alphabetic": "Doe^Jane^M"}, True),
        ("PN", "D?e^J*", {"Alphabetic": "Doe^Jane"}, True),
        ("PN", "山田*", {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}, True),
        ("PN", "=山田*", {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}, True),
        ("PN", "Suzuki=山田*", {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}, False),
        ("PN", "Muller", {"Alphabetic": "Müller"}, False),
        ("PN", "MÜLLER", {"Alphabetic": "Müller"}, True),
        ("PN", "Stra*", {"Alphabetic": "Straße"}, True),
        ("PN", "STRASSE", {"Alphabetic": "Straße"}, True),
        ("DA", "20240131", "20240131", True),
        ("DA", "20240101-20240201", "20240131", True),
        ("DA", "20240101-", "20240131", True),
        ("DA", "-20240130", "20240131", False),
        ("DA", "20240131", "nonsense", False),
        ("TM", "1015", "101530", True),
        ("TM", "1000-1015", "101530", True),
        ("TM", "101530-", "1015", False),
        ("DT", "2024", "20240131101500", True),
        ("DT", "20240131-0500", "20240131101500", True),
        ("DT", "20240131-20240201", "20240131101500", True),
        ("DT", "-20240130", "20240131", False),
    ],
)
def test_values(vr: str, asked: str, value: Any, matches: bool) -> None:
    assert found(matcher_of("key", vr, asked), vr, value) is matches


@pytest.mark.parametrize(
    ("asked", "value", "matches"),
    [
        ("muller", "Müller^Jörg", True),
        ("jorg mul", "Müller^Jörg", True),
        ("JÖRG", "Müller^Jörg", True),
        ("ller", "Müller^Jörg", False),
        ("*ller*", "Müller^Jörg", True),
        ("mull^x", "Müller^Jörg", False),
        ("  ", "Müller", True),
        ("smith", "van der Smithen^A", True),
    ],
)
def test_fuzzy_names(asked: str, value: str, matches: bool) -> None:
    assert found(matcher_of("PatientName", "PN", asked, FUZZY), "PN", {"Alphabetic": value}) is matches


def test_fuzzy_words_may_be_in_several_groups() -> None:
    value = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}
    assert found(matcher_of("PatientName", "PN", "yama 山", FUZZY), "PN", value)


def test_empty_and_star_match_everything() -> None:
    for vr in ("LO", "PN", "DA", "SQ", "UI", "IS"):
        for asked in ("", "*", " ** "):
            assert matcher_of("key", vr, asked) == Universal()


@pytest.mark.parametrize(
    ("vr", "asked", "sentence"),
    [
        ("DA", "2024", "key is neither a date"),
        ("DA", "-", "date"),
        ("DA", "20240101-x", "date"),
        ("TM", "99", "time"),
        ("UI", "1.2.x", "not a UID"),
        ("UI", "1.2,,1.3", "not a UID"),
        ("IS", "seven", "not a number"),
        ("SQ", "x", "sequence"),
        ("LO", "x" * 5000, "longer"),
    ],
)
def test_values_that_cannot_be_asked_for(vr: str, asked: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        matcher_of("key", vr, asked)


def test_dates_and_times_together() -> None:
    dates, times = matcher_of("d", "DA", "20240131-20240202"), matcher_of("t", "TM", "1200-1000")
    assert isinstance(dates, Range)
    assert isinstance(times, Range)
    moments = Moments.of(dates, times)
    expected = {
        ("20240131", "115959"): False,
        ("20240131", "1200"): True,
        ("20240201", "030000"): True,
        ("20240202", "100059"): True,
        ("20240202", "1001"): False,
        ("20240202", ""): True,
    }
    for (date, time), matches in expected.items():
        assert moments.accepts([element("DA", date)], [element("TM", time)] if time else []) is matches
    assert not moments.accepts([], [element("TM", "1200")])
    open_end = Moments.of(dates, Range("TM", "", "\uffff"))
    assert open_end.accepts([element("DA", "20240202")], [element("TM", "235959")])


FUZZY, CASELESS = MatchingOptions(fuzzy=True), MatchingOptions(caseless=True)
ALPHABET = st.text("aB*?^. é", max_size=8)


@given(ALPHABET, st.text("aB^. é", max_size=8))
@settings(max_examples=250, derandomize=True, deadline=None)
def test_globs_agree_with_regular_expressions(pattern: str, text: str) -> None:
    expected = "".join({"*": ".*", "?": "."}.get(one, re.escape(one)) for one in pattern)
    assert Glob(pattern).matches(text) is (re.fullmatch(expected, text, re.DOTALL) is not None)
    if Glob(pattern).matches(text):
        assert text.startswith(Glob(pattern).start)


def test_no_pattern_takes_long() -> None:
    assert not Glob("*a" * 2000 + "b").matches("a" * 100_000)


@given(st.text("aAbé^=*? ß", max_size=6), st.text("aAbé^=ß ", max_size=6), st.booleans())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_lists_offer_every_name_that_matches(asked: str, value: str, fuzzy: bool) -> None:
    matcher = matcher_of("PatientName", "PN", asked, MatchingOptions(fuzzy))
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False))
    if not isinstance(matcher, Universal):
        found(matcher, "PN", groups)


@given(st.text("aAb^ ,*", max_size=6), st.text("aAbé^, ", max_size=8))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_fuzzy_names_are_matched_word_by_word(asked: str, value: str) -> None:
    matcher = matcher_of("PatientName", "PN", asked, FUZZY)
    if isinstance(matcher, Universal):
        return
    words = re.split(r"[\s^=,]+", value.lower().replace("é", "e"))
    patterns = [word.replace("*", ".*") for word in re.split(r"[\s^=,]+", asked.lower()) if word.strip("*")]
    expected = all(any(re.match(pattern, word) for word in words) for pattern in patterns)
    assert matcher.matches([element("PN", {"Alphabetic": value})]) is expected


@given(st.text("aA*?1 ", max_size=6), st.text("aA1 ", max_size=6))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_lists_offer_every_text_that_matches(asked: str, value: str) -> None:
    matcher = matcher_of("StudyID", "SH", asked)
    if not isinstance(matcher, Universal):
        found(matcher, "SH", value)


@given(st.text("aAkK\u212aéÉßİ*?1 ", max_size=6), st.text("aAkK\u212aéÉßİ1 ", max_size=6))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_lists_offer_every_text_that_matches_without_case(asked: str, value: str) -> None:
    """With letters whose other case is longer, or ASCII while they are not: the Kelvin sign."""
    matcher = matcher_of("StudyID", "SH", asked, CASELESS)
    if isinstance(matcher, Universal):
        return
    if matcher_of("StudyID", "SH", asked).matches([element("SH", value)]):
        assert found(matcher, "SH", value)
    else:
        found(matcher, "SH", value)


@pytest.mark.parametrize(
    ("vr", "asked", "value", "matches"),
    [
        ("LO", "thorax", "THORAX", True),
        ("LO", "*RAX C?", "Thorax Ct", True),
        ("LO", "schädel", "SCHÄDEL", True),
        ("LO", "tho", "THORAX", False),
        ("UI", "1.2", "1.2", True),
        ("CS", "ct", "CT", False),
    ],
)
def test_text_without_case(vr: str, asked: str, value: str, matches: bool) -> None:
    assert found(matcher_of("key", vr, asked, CASELESS), vr, value) is matches


def test_long_values_are_found_behind_the_cut() -> None:
    value = "x" * 1000 + "end"
    assert found(matcher_of("key", "UC", value), "UC", value)
    assert found(matcher_of("key", "UC", "*end"), "UC", value)
    assert not found(matcher_of("key", "UC", value + "!"), "UC", value)
    assert found(matcher_of("key", "PN", "*END"), "PN", name(value)["Value"][0])


def test_lists_of_uids_are_probed_one_by_one() -> None:
    matcher = matcher_of("key", "UI", "1.2,1.1")
    assert matcher == OneOf("UI", frozenset(("1.1", "1.2")))
    assert matcher.probes() == [Probe(b"1.1", exact=True), Probe(b"1.2", exact=True)]


@pytest.mark.parametrize(
    ("vr", "asked", "needle", "other"),
    [
        ("LO", "*sawi*", b"sawi", b""),
        ("LO", "a*bcd?ef*", b"bcd", b"ef"),
        ("PN", "*Doe^*", b"doe", b""),
        ("PN", "Doe^*^M\u00fcller*", b"muller", b"doe"),
        ("PN", "* ^?*x", b"x", b""),
    ],
)
def test_what_every_match_must_hold(vr: str, asked: str, needle: bytes, other: bytes) -> None:
    (probe,) = matcher_of("x", vr, asked).probes()
    assert (probe.needle, probe.other) == (needle, other)
    (fuzzy,) = matcher_of("x", "PN", "M\u00dcll Jo", FUZZY).probes()
    assert (fuzzy.needle, fuzzy.other) == (b"mull", b"jo")

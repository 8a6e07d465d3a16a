"""Compares the value of a query with stored values (PS3.4 C.2.2.2, PS3.18 8.3.4.1).

Strategy: `matcher_of` turns the text of a query parameter into a matcher, by the VR. `matches` decides on the
elements of a stored row. `probes` names the ranges of a sorted list of normal forms (values.py) that hold all
matches. They may hold more, because forms are cut and folded.

    Universal   an empty value, or `*`: everything matches, and the attribute is returned
    OneOf       UIDs and codes (lists by comma or backslash), numbers, text: equal to one of them
    Wildcard    `*` and `?` in text
    Caseless    text, with wildcards, without case, if the request asks for this matching
    Name        person names without case: each component, or the whole; each component group
    FuzzyName   each word of the query begins a word of the name, without case and accents
    Range       dates and times, each end open or closed; a single value is the range that it may mean
    Empty       two quotation marks: no value, if the request asks for this matching
    AllOf       several values: all of them, if the request asks for this matching

A sequence as a whole has universal and empty value matching only (PS3.4 C.2.2.2.6).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamsrv.dicom.instance import JsonElement
from streamsrv.errors import BadRequest
from streamsrv.query.values import (
    NORMAL_BYTES,
    NUMBER_VRS,
    cut,
    date_form,
    datetime_span,
    fold,
    is_empty,
    name_groups,
    normal_forms,
    number_form,
    time_span,
    trim_name,
)

_UID = re.compile(r"[0-9.]{1,64}")
# A word of a name ends at blanks, component and group delimiters, commas.
_WORD_ENDS = re.compile(r"[\s^=,]+")
# In place of a value.
_BULK = frozenset(("BulkDataURI", "InlineBinary"))
_LONGEST = 4096  # of a query value: longer than any value that can be matched


@dataclass(frozen=True, slots=True)
class Glob:
    """A wildcard pattern: `*` is any number of characters, `?` exactly one (PS3.4 C.2.2.2.4).

    The pieces between the stars are found from left to right, each at its first place, the last at the end.
    That is exact, and linear in the length of the text for each piece. Only pieces with `?` are compiled to
    regular expressions, because that takes longer than matching many texts.
    """

    text: str
    parts: tuple[str, ...] = field(init=False, compare=False, repr=False)
    pieces: tuple[re.Pattern[str], ...] = field(init=False, compare=False, repr=False)  # none without a `?`

    def __post_init__(self) -> None:
        parts = re.sub(r"\*+", "*", self.text).split("*")
        with_marks = parts if "?" in self.text else []
        escaped = ["".join("." if one == "?" else re.escape(one) for one in part) for part in with_marks]
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "pieces", tuple(re.compile(part, re.DOTALL) for part in escaped))

    @property
    def start(self) -> str:
        """The begin of every matching text."""
        return re.split(r"[*?]", self.text, maxsplit=1)[0]

    @property
    def literal(self) -> bool:
        return self.start == self.text

    def matches(self, text: str) -> bool:
        if self.pieces:
            return self._matches_patterns(text)
        first, *middle = self.parts
        if not middle:
            return text == first
        last = middle.pop()
        at, end = len(first), len(text) - len(last)
        if end < at or not text.startswith(first) or not text.endswith(last):
            return False
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    def _matches_patterns(self, text: str) -> bool:
        first, *middle = self.pieces
        if not middle:
            return first.fullmatch(text) is not None
        last = middle.pop()
        at, end = len(self.parts[0]), len(text) - len(self.parts[-1])
        if end < at or not first.match(text) or not last.match(text, end):
            return False
        for piece in middle:
            found = piece.search(text, at, end)
            if found is None:
                return False
            at = found.end()
        return True


@dataclass(frozen=True, slots=True)
class Probe:
    """The forms from `low` up to and including all that begin with `high`, if `accepts` accepts them. Each
    contains `needle`: this test costs a tenth of `accepts`. It contains `other`, too. If `caseless`, the form
    with its ASCII letters in lower case contains them. These tests are for whole forms: one that was cut may
    match."""

    low: bytes = b""
    high: bytes = b""
    accepts: Callable[[str], bool] | None = None
    exact: bool = False  # only `low` itself
    needle: bytes = b""
    other: bytes = b""
    caseless: bool = False

    @property
    def scans(self) -> bool:
        """Whether all forms of the list must be read."""
        return not self.low and not self.high and not self.exact


@dataclass(frozen=True, slots=True)
class MatchingOptions:
    """The kinds of matching that a request asks for (PS3.18 8.3.4.2, 8.3.4.5, 8.3.4.6). `caseless` is an
    extension."""

    fuzzy: bool = False
    empty: bool = False
    multiple: bool = False
    caseless: bool = False


NO_OPTIONS = MatchingOptions()


class Matcher(Protocol):
    def matches(self, elements: Iterable[JsonElement]) -> bool: ...

    def probes(self) -> list[Probe]: ...


def _values(elements: Iterable[JsonElement]) -> Iterable[Any]:
    return (value for element in elements for value in element.get("Value", ()) if value is not None)


@dataclass(frozen=True, slots=True)
class Universal:
    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return True

    def probes(self) -> list[Probe]:
        return [Probe()]


@dataclass(frozen=True, slots=True)
class Empty:
    """No value (PS3.4 C.2.2.2.7): the attribute is absent or has zero length, in one of the items of a
    sequence, or there is no item. A value that the VR does not allow is a value."""

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        found = list(elements)
        return not found or any(is_empty(each) and _BULK.isdisjoint(each) for each in found)

    def probes(self) -> list[Probe]:
        """Only the list of study dates has an entry for studies without value, before all others."""
        return [Probe(high=b"\0")]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Each matcher finds a value in the same element (PS3.4 C.2.2.2.8)."""

    matchers: tuple[Matcher, ...]

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(all(each.matches([element]) for each in self.matchers) for element in elements)

    def probes(self) -> list[Probe]:
        return self.matchers[0].probes()


@dataclass(frozen=True, slots=True)
class OneOf:
    vr: str
    forms: frozenset[str]

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(form in self.forms for value in _values(elements) for form in normal_forms(self.vr, value))

    def probes(self) -> list[Probe]:
        return [_exactly(form) for form in sorted(self.forms)]


@dataclass(frozen=True, slots=True)
class Wildcard:
    glob: Glob

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        texts = (value if isinstance(value, str) else str(value) for value in _values(elements))
        return any(self.glob.matches(text.strip()) for text in texts)

    def probes(self) -> list[Probe]:
        start = cut(self.glob.start)
        needle, other = _needles(self.glob.text)
        return [Probe(start, start, self.glob.matches, needle=needle, other=other)]


def without_case(text: str) -> str:
    """Text with its letters in lower case. A letter stays if its lower case is longer, or if only one of both
    is ASCII: so ASCII text is found in the bytes of a form."""
    if text.isascii():
        return text.lower()
    lower = ((one, one.lower()) for one in text)
    return "".join(low if len(low) == 1 and low.isascii() == one.isascii() else one for one, low in lower)


@dataclass(frozen=True, slots=True)
class Caseless:
    """`glob` is a pattern without case."""

    glob: Glob

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        texts = (value if isinstance(value, str) else str(value) for value in _values(elements))
        return any(self._accepts(text.strip()) for text in texts)

    def _accepts(self, form: str) -> bool:
        return self.glob.matches(without_case(form))

    def probes(self) -> list[Probe]:
        needle, other = [each if each.isascii() else b"" for each in _needles(self.glob.text)]
        return [Probe(accepts=self._accepts, needle=needle, other=other, caseless=True)]


def _folded_case(text: str) -> str:
    return trim_name(unicodedata.normalize("NFC", text).casefold())


@dataclass(frozen=True, slots=True)
class _ComponentGroup:
    """One component group. It matches as a whole, `*` reaching over components, or component by component,
    `*` standing for an empty one too."""

    whole: Glob
    components: tuple[Glob, ...]

    @classmethod
    def of(cls, asked: str) -> _ComponentGroup:
        return cls(Glob(asked), tuple(map(Glob, asked.split("^"))))

    def matches(self, group: str) -> bool:
        if self.whole.matches(group):
            return True
        asked, parts = self.components, group.split("^")
        if len(asked) == 1 or len(asked) < len(parts):
            return False
        padded = parts + [""] * (len(asked) - len(parts))
        return all(one.matches(part) for one, part in zip(asked, padded, strict=True))


@dataclass(frozen=True, slots=True)
class Name:
    """`groups` are those of the query, None for empty ones. A single one may match any group of the stored
    name (PS3.5 6.2.1). `listed` is the folded first one, for lists."""

    groups: tuple[_ComponentGroup | None, ...]
    listed: _ComponentGroup

    @classmethod
    def of(cls, text: str) -> Name:
        asked = text.split("=")
        first = next(group for group in asked if group.strip("^ "))
        # Folding changes the number of characters: `?` may stand for several of them here.
        listed = _ComponentGroup.of(trim_name(fold(first)).replace("?", "*"))
        return cls(
            tuple(_ComponentGroup.of(_folded_case(each)) if each.strip("^ ") else None for each in asked),
            listed,
        )

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(self._matches(name_groups(value)) for value in _values(elements))

    def _matches(self, groups: list[str]) -> bool:
        forms = [_folded_case(group) for group in groups]
        if len(self.groups) == 1:
            return any(form and asked.matches(form) for asked in self.groups if asked for form in forms)
        padded = zip(self.groups, [*forms, "", "", ""], strict=False)
        return all(asked is None or bool(form and asked.matches(form)) for asked, form in padded)

    def probes(self) -> list[Probe]:
        whole = self.listed.whole
        if whole.literal:
            return [_exactly(whole.text)]
        start = cut(whole.start.rstrip("^ "))
        needle, other = _needles(whole.text)
        return [Probe(start, start, self.listed.matches, needle=needle, other=other)]


@dataclass(frozen=True, slots=True)
class FuzzyName:
    """`begins` finds the begins of all words in a name; None if a word has wildcards of its own."""

    words: tuple[Glob, ...]
    begins: re.Pattern[str] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        plain = all(glob.start + "*" == glob.text for glob in self.words)
        patterns = [rf"(?=(?:.*[\s^=,])?{re.escape(glob.start)})" for glob in self.words]
        object.__setattr__(self, "begins", re.compile("".join(patterns), re.DOTALL) if plain else None)

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(self._accepts(" ".join(map(fold, name_groups(value)))) for value in _values(elements))

    def _accepts(self, form: str) -> bool:
        if self.begins is not None:
            return self.begins.match(form) is not None
        words = _WORD_ENDS.split(form)
        return all(any(glob.matches(word) for word in words) for glob in self.words)

    def probes(self) -> list[Probe]:
        """The list has the whole name, if the words may be in several groups."""
        needle, other = _needles("*".join(glob.text for glob in self.words))
        return [Probe(accepts=self._accepts, needle=needle, other=other)]


@dataclass(frozen=True, slots=True)
class Range:
    """Includes both ends. "" and "\\uffff" stand for open ends."""

    vr: str
    low: str
    high: str
    single: bool = False  # written as one value

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(
            self.low <= form <= self.high
            for value in _values(elements)
            for form in normal_forms(self.vr, value)
        )

    def probes(self) -> list[Probe]:
        return [Probe(cut(self.low) or b"\0", cut(self.high))]


def is_certain(matcher: Matcher) -> bool:
    """Whether the only probe of a matcher finds matches only: its forms are neither folded nor cut."""
    if isinstance(matcher, OneOf):
        return len(matcher.forms) == 1 and max(map(len, matcher.forms)) * 4 < NORMAL_BYTES
    return isinstance(matcher, Range)


def _exactly(form: str) -> Probe:
    return Probe(cut(form), exact=True)


def _needles(pattern: str) -> tuple[bytes, bytes]:
    """Returns the two longest texts that every matching form contains: between wildcards and delimiters,
    because empty components may be missing."""
    parts = sorted(re.split(r"[*?^\s]+", pattern), key=len, reverse=True)
    needle, other = [each.encode("utf-8", "surrogatepass") for each in (*parts, "")[:2]]
    return needle, other


# -- from the text of a query parameter

_Span = Callable[[str], tuple[str, str] | None]


def _date_span(text: str) -> tuple[str, str] | None:
    form = date_form(text)
    return (form, form) if form else None


_SPANS: dict[str, _Span] = {"DA": _date_span, "TM": time_span, "DT": datetime_span}
# Wildcards are literal in these (PS3.4 C.2.2.2.4).
_NO_WILDCARDS = NUMBER_VRS | {"DA", "TM", "DT", "UI", "SQ", "UR", "AT"}
# Case is part of the value in these only (PS3.5 6.2).
_CASED = frozenset(("AE", "LO", "LT", "SH", "ST", "UC", "UT"))
_LISTS = frozenset(("UI", "CS"))  # their values contain neither a comma nor a backslash
_NO_COMMAS = frozenset(("AS", "AT", "CS"))
# Attributes with one of these may have to match several values (PS3.4 C.2.2.2.8).
MULTIPLE_VRS = frozenset(("AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"))
NO_VALUE = '""'


def matcher_of(name: str, vr: str, text: str, options: MatchingOptions = NO_OPTIONS) -> Matcher:
    """Raises BadRequest, which names the parameter `name`. The caller decides about several values."""
    text = text.strip()
    if len(text) > _LONGEST:
        raise BadRequest(f"the value of {name} is longer than {_LONGEST} characters")
    if not text.strip("*^= " if vr == "PN" else "*"):
        return Universal()
    if vr == "SQ":
        raise BadRequest(f"{name} is a sequence: name an attribute of its items ({name}.attribute)")
    if vr in _SPANS:
        return _range(name, vr, text)
    if vr == "PN":
        return _fuzzy(text) if options.fuzzy else Name.of(text)
    if options.caseless and vr in _CASED:
        return Caseless(Glob(without_case(text)))
    if ("*" in text or "?" in text) and vr not in _NO_WILDCARDS:
        return Wildcard(Glob(text))
    return _one_of(name, vr, text)


def matcher_of_all(name: str, vr: str, text: str, options: MatchingOptions) -> Matcher:
    """As `matcher_of`, for an attribute of several values that all have to match."""
    parts = [part.strip() for part in re.split(r"[,\\]" if vr in _NO_COMMAS else r"\\", text)]
    if len(parts) == 1:
        return matcher_of(name, vr, text, options)
    if not all(parts) or NO_VALUE in parts:
        raise BadRequest(f"one of the several values of {name} is empty")
    if any("*" in part or "?" in part for part in parts):
        raise BadRequest(f"the several values of {name} have no wildcards (PS3.4 C.2.2.2.8)")
    return AllOf(tuple(matcher_of(name, vr, part, options) for part in dict.fromkeys(parts)))


def _one_of(name: str, vr: str, text: str) -> OneOf:
    parts = [part.strip() for part in re.split(r"[,\\]", text)] if vr in _LISTS else [text]
    if vr == "UI":
        wrong = [part for part in parts if not _UID.fullmatch(part)]
    elif vr in NUMBER_VRS:
        wrong = [part for part in parts if number_form(part) is None]
    else:
        wrong = []
    if wrong:
        raise BadRequest(f"the value of {name} is not {'a UID' if vr == 'UI' else 'a number'}")
    return OneOf(vr, frozenset(form for part in parts for form in normal_forms(vr, part)))


def _fuzzy(text: str) -> Matcher:
    words = [word for word in _WORD_ENDS.split(fold(text)) if word.strip("*")]
    return FuzzyName(tuple(Glob(word + "*") for word in words)) if words else Universal()


def _range(name: str, vr: str, text: str) -> Range:
    span = _SPANS[vr]
    # A single value first: the offset of a DT may look like the end of a range, as in "2024-0500".
    single = span(text)
    if single is not None:
        return Range(vr, *single, single=True)
    for at in (found.start() for found in re.finditer("-", text)):
        low, high = span(text[:at]), span(text[at + 1 :])
        if (low or not text[:at].strip()) and (high or not text[at + 1 :].strip()) and (low or high):
            return Range(vr, low[0] if low else "", high[1] if high else "\uffff")
    raise BadRequest(f"the value of {name} is neither a {_WORDS[vr]} nor a range of them")


_WORDS = {"DA": "date (YYYYMMDD)", "TM": "time (HHMMSS)", "DT": "date time (YYYYMMDDHHMMSS)"}


@dataclass(frozen=True, slots=True)
class Moments:
    """A combined date and time range, from the first moment of the first day to the last moment of the last
    day (PS3.4 C.2.2.2.5.4)."""

    low: str
    high: str

    @classmethod
    def of(cls, dates: Range, times: Range) -> Moments:
        low = dates.low + (times.low if dates.low else "")
        high = dates.high + times.high if dates.high != "\uffff" else dates.high
        return cls(low, high)

    def accepts(self, dates: Iterable[JsonElement], times: Iterable[JsonElement]) -> bool:
        days = [form for value in _values(dates) for form in normal_forms("DA", value)]
        hours = [form for value in _values(times) for form in normal_forms("TM", value)] or ["0" * 12]
        return any(self.low <= day + hour <= self.high for day in days for hour in hours)

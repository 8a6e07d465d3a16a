"""How a value of a query is compared with stored ones (PS3.4 C.2.2.2, PS3.18 8.3.4.1).

Strategy: `matcher_of` turns the text of a query parameter into one of a few matchers, chosen by the VR
through a table. A matcher does two things. `matches` decides, on the elements of a stored row. `probes` says
where in a sorted list of normal forms (`query_values`) everything that matches must be; it may say too much,
because forms are cut and folded, never too little.

    Universal   an empty value, or `*`: everything matches, and the attribute is returned
    OneOf       UIDs and codes (lists by comma or backslash), numbers, text: equal to one of them
    Wildcard    `*` and `?` in text
    Name        person names: case does not count, components one by one or the whole; each component group
    FuzzyName   every word of the query begins a word of the name; case and accents do not count
    Range       dates and times, each end open or closed; a single value is the range of what it may mean
    Present     a sequence as a whole: there or not cannot be asked, only universal matching (PS3.4 C.2.2.2.6)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from streamsrv.dicom.instance import JsonElement
from streamsrv.errors import BadRequest
from streamsrv.query.glob import Glob
from streamsrv.query.values import (
    NORMAL_BYTES,
    NUMBER_VRS,
    cut,
    date_form,
    datetime_span,
    fold,
    name_groups,
    normal_forms,
    number_form,
    time_span,
    trim_name,
)

_UID = re.compile(r"[0-9.]{1,64}")
# A word of a name ends at blanks, component and group delimiters, commas.
_WORD_ENDS = re.compile(r"[\s^=,]+")
_LONGEST = 4096  # of a query value: longer than any value that can be matched


@dataclass(frozen=True, slots=True)
class Probe:
    """Forms from `low` up to and including all that begin with `high`; of these the ones that `accepts`. Each
    holds `needle`, unless it was cut: looking for that costs a tenth of asking."""

    low: bytes = b""
    high: bytes = b""
    accepts: Callable[[str], bool] | None = None
    exact: bool = False  # nothing but `low` itself
    needle: bytes = b""

    @property
    def scans(self) -> bool:
        """Whether all forms there are must be looked at."""
        return not self.low and not self.high and not self.exact


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
        return [Probe(start, start, _unless_cut(self.glob.matches), needle=_needle(self.glob.text))]


def _folded_case(text: str) -> str:
    return trim_name(unicodedata.normalize("NFC", text).casefold())


@dataclass(frozen=True, slots=True)
class _Group:
    """One component group: as a whole, where `*` reaches over components; or component by component, where
    `*` stands for an empty one too."""

    whole: Glob
    components: tuple[Glob, ...]

    @classmethod
    def of(cls, asked: str) -> _Group:
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
    """`groups` as in the query, None for empty ones; with one alone it may match any group of the stored name
    (PS3.5 6.2.1). `listed` is the first of them as lists are probed with it."""

    groups: tuple[_Group | None, ...]
    listed: _Group

    @classmethod
    def of(cls, text: str) -> Name:
        asked = text.split("=")
        first = next(group for group in asked if group.strip("^ "))
        # Folding changes the number of characters, so that `?` may stand for several of them here.
        listed = _Group.of(trim_name(fold(first)).replace("?", "*"))
        return cls(
            tuple(_Group.of(_folded_case(each)) if each.strip("^ ") else None for each in asked), listed
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
        return [Probe(start, start, _unless_cut(self.listed.matches), needle=_needle(whole.text))]


@dataclass(frozen=True, slots=True)
class FuzzyName:
    words: tuple[Glob, ...]

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(self._accepts(" ".join(map(fold, name_groups(value)))) for value in _values(elements))

    def _accepts(self, form: str) -> bool:
        words = _WORD_ENDS.split(form)
        return all(any(glob.matches(word) for word in words) for glob in self.words)

    def probes(self) -> list[Probe]:
        # The words may be spread over the groups, which are apart in the list: the first word decides there.
        first = self.words[:1]
        needle = _needle(first[0].text) if first else b""
        return [Probe(b"", b"", _unless_cut(FuzzyName(first)._accepts), needle=needle)]


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends belong to it. "" and "\\uffff" stand for open ends."""

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


def _exactly(form: str) -> Probe:
    return Probe(cut(form), exact=True)


def _needle(pattern: str) -> bytes:
    """The longest run of characters that every form which matches must hold: between wildcards, and between
    what components end with, because empty ones may be missing."""
    return max(re.split(r"[*?^\s]+", pattern), key=len).encode("utf-8", "surrogatepass")


def _unless_cut(accepts: Callable[[str], bool]) -> Callable[[str], bool]:
    """What a list holds of a long form does not tell whether the whole would match."""

    def decides(form: str) -> bool:
        # Four bytes a character at most, and one character may have been cut apart.
        long = len(form) * 4 >= NORMAL_BYTES - 3 and len(form.encode("utf-8", "replace")) >= NORMAL_BYTES - 3
        return long or accepts(form)

    return decides


# -- from the text of a query parameter

_Span = Callable[[str], tuple[str, str] | None]


def _date_span(text: str) -> tuple[str, str] | None:
    form = date_form(text)
    return (form, form) if form else None


_SPANS: dict[str, _Span] = {"DA": _date_span, "TM": time_span, "DT": datetime_span}
# Wildcards are literal there (PS3.4 C.2.2.2.4).
_NO_WILDCARDS = NUMBER_VRS | {"DA", "TM", "DT", "UI", "SQ", "UR", "AT"}
_LISTS = frozenset(("UI", "CS"))  # neither a comma nor a backslash can be in a value of these


def matcher_of(name: str, vr: str, text: str, *, fuzzy: bool = False) -> Matcher:
    """`name` is the parameter, for the sentence of a BadRequest."""
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
        return _fuzzy(text) if fuzzy else Name.of(text)
    if ("*" in text or "?" in text) and vr not in _NO_WILDCARDS:
        return Wildcard(Glob(text))
    return _one_of(name, vr, text)


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
    # A single value first: the offset of a DT may look like the end of a range ("2024-0500").
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
    """A date and a time range together: from the first moment of the first day to the last of the last
    (PS3.4 C.2.2.2.5.4), not each for itself."""

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

"""The order of results, and cursors between pages.

Strategy: every result has a sort key, made of the values that it is ordered by and of its UIDs, so no two are
equal. A cursor is the key of the last result of a page; the next page begins after it. While instances come
and go, a result whose values stay is on exactly one page. A result whose values change moves: if it crosses
the cursor, it is missed or comes again.

Rules
- The default is the native order of the index: newest StudyDate first, then by UID. A page then costs as much
  as it holds. Any other order reads everything that matches, within the budget of the search.
- Results without a value come last, ascending or descending. The first of several values counts, of a person
  name the first group without case and accents, of a long text the first LONGEST characters.
- A cursor is opaque. It holds values of its result only, and is checked like any other input.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest
from streamsrv.query.attributes import BY_TAG, Level, Position
from streamsrv.query.conditions import UID_LEVELS, path_of
from streamsrv.query.values import NUMBER_VRS, normal_forms
from streamsrv.store import Hit, instance_attributes, level_attributes, study_date

MOST_TERMS = 8
LONGEST = 100
_NATIVE = "-00080020"

Value = str | float | None
SortKey = tuple[tuple[Any, ...], ...]

_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"(?:[0-9]{8})?")


@dataclass(frozen=True, slots=True)
class _Term:
    tag: str
    vr: str
    level: Level
    descending: bool

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.tag}"

    def value(self, attributes: JsonDataset) -> Value:
        values = [value for value in attributes.get(self.tag, {}).get("Value", ()) if value is not None]
        form = next((form for form in normal_forms(self.vr, values[0]) if form), None) if values else None
        if form is None:
            return None
        return float(form) if self.vr in NUMBER_VRS else form[:LONGEST]

    def key(self, value: Value) -> tuple[Any, ...]:
        if value is None:
            return (True,)
        return (False, _Descending(value) if self.descending else value)


@dataclass(frozen=True, slots=True)
class _Descending:
    value: str | float

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)  # type: ignore[operator]  # of one attribute: both text, or both numbers


@dataclass(frozen=True, slots=True)
class SortOrder:
    """Without terms the native order of the index."""

    level: Level
    terms: tuple[_Term, ...] = ()

    @property
    def is_native(self) -> bool:
        return not self.terms

    def key(self, hit: Hit) -> SortKey:
        return self._key(self._values(hit), _uids(hit, self.level))

    def cursor(self, hit: Hit) -> str:
        text = orjson.dumps([self._name, self._values(hit), _uids(hit, self.level)])
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    def position(self, cursor: str) -> Position:
        """Reads a cursor of the native order."""
        values, uids = self._read(cursor)
        if len(values) != 1 or not isinstance(values[0], str) or not _DATE.fullmatch(values[0]):
            raise _wrong()
        return Position(values[0], *uids)

    def key_of(self, cursor: str) -> SortKey:
        values, uids = self._read(cursor)
        kinds = [float if term.vr in NUMBER_VRS else str for term in self.terms]
        if len(values) != len(kinds) or not all(
            value is None or isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)
        ):
            raise _wrong()
        return self._key(values, uids)

    @property
    def _name(self) -> str:
        return ",".join(map(str, self.terms)) or _NATIVE

    def _values(self, hit: Hit) -> list[Value]:
        if self.is_native:
            return [study_date(hit.study_row)]
        attributes = {level: _attributes(hit, level) for level in {term.level for term in self.terms}}
        return [term.value(attributes[term.level]) for term in self.terms]

    def _key(self, values: Sequence[Value], uids: Sequence[str]) -> SortKey:
        terms = self.terms or (_Term("00080020", "DA", Level.STUDY, True),)
        known = (None if value == "" else value for value in values)
        keys = (term.key(value) for term, value in zip(terms, known, strict=True))
        return (*keys, tuple(uids))

    def _read(self, cursor: str) -> tuple[list[Value], list[str]]:
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            name, values, uids = orjson.loads(base64.b64decode(padded, b"-_", validate=True))
        except (UnicodeError, binascii.Error, ValueError, TypeError):
            raise _wrong() from None
        known = name == self._name and isinstance(values, list) and isinstance(uids, list)
        if not known or len(uids) != self.level + 1:
            raise _wrong()
        if not all(isinstance(uid, str) and _UID.fullmatch(uid) for uid in uids):
            raise _wrong()
        return values, uids


def order_of(names: Sequence[str], level: Level) -> SortOrder:
    """Raises BadRequest, which names the attribute."""
    if len(names) > MOST_TERMS:
        raise BadRequest(f"orderby takes at most {MOST_TERMS} attributes")
    terms = tuple(_term(name, level) for name in names)
    if [str(term) for term in terms] == [_NATIVE]:
        return SortOrder(level)
    return SortOrder(level, terms)


def _term(name: str, level: Level) -> _Term:
    descending = name.startswith("-")
    path = path_of(name.lstrip("+-"))
    row = BY_TAG.get(".".join(path)) if path else None
    if row is None or len(row.path) > 1 or row.vr in ("SQ", "UR"):
        raise BadRequest(f"{name[:80]!r} in orderby is not an attribute that results can be ordered by")
    found = UID_LEVELS.get(row.tag, row.level)
    if found > level:
        raise BadRequest(f"{name[:80]!r} in orderby is an attribute of a level below the results")
    return _Term(row.tag, row.vr, found, descending)


def _attributes(hit: Hit, level: Level) -> JsonDataset:
    attributes = _READ[level](hit)
    return attributes | {
        tag: {"vr": "UI", "Value": [uid]}
        for tag, uid in zip(UID_LEVELS, (hit.study, hit.series, hit.instance), strict=True)
        if uid
    }


_READ: dict[Level, Callable[[Hit], JsonDataset]] = {
    Level.STUDY: lambda hit: level_attributes(hit.study_row),
    Level.SERIES: lambda hit: level_attributes(hit.series_row) if hit.series_row else {},
    Level.INSTANCE: lambda hit: instance_attributes(hit.instance_row) if hit.instance_row else {},
}


def _uids(hit: Hit, level: Level) -> list[str]:
    return [uid or "" for uid in (hit.study, hit.series, hit.instance)[: level + 1]]


def _wrong() -> BadRequest:
    return BadRequest("after is no cursor of this search and order: take it from the Link header of a page")

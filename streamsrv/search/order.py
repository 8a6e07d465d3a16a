"""In which order results come, and where one page ends and the next begins.

Strategy: every result has a place, made of the values that it is ordered by and its UIDs, so no two have the
same. A cursor is the place of the last result of a page, and the next page is what lies behind that place.
Whatever arrives or goes meanwhile, a result whose values stay is on exactly one page. One whose values change
is at its new place: across the cursor it is missed or comes again. Where it stood before, no row tells.

Rules
- By default newest StudyDate first, then by UID: the order in which the index walks, so that a page costs
  what it holds. Any other order looks at everything that matches, within the budget of the search.
- Results without a value come last, ascending or descending. Of several values the first counts, of person
  names the first group without case and accents, of long texts the first LONGEST characters.
- A cursor is opaque, and holds nothing but values of the result that it stands for. It is checked like
  everything that comes from outside.
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
_DEFAULT = "-00080020"  # what the index walks by

Value = str | float | None
Place = tuple[tuple[Any, ...], ...]

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

    def placed(self, value: Value) -> tuple[Any, ...]:
        if value is None:
            return (True,)
        return (False, _Falling(value) if self.descending else value)


@dataclass(frozen=True, slots=True)
class _Falling:
    """A value that sorts the other way round."""

    value: str | float

    def __lt__(self, other: _Falling) -> bool:
        return bool(other.value < self.value)  # type: ignore[operator]  # of one attribute: both text, or both numbers


@dataclass(frozen=True, slots=True)
class Order:
    """Without terms the order of the index."""

    level: Level
    terms: tuple[_Term, ...] = ()

    @property
    def walked(self) -> bool:
        """Whether the index brings the results in this order by itself."""
        return not self.terms

    def place(self, hit: Hit) -> Place:
        return self._place(self._values(hit), _uids(hit, self.level))

    def cursor(self, hit: Hit) -> str:
        text = orjson.dumps([self._name, self._values(hit), _uids(hit, self.level)])
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    def position(self, cursor: str) -> Position:
        """For an order that the index walks."""
        values, uids = self._read(cursor)
        if len(values) != 1 or not isinstance(values[0], str) or not _DATE.fullmatch(values[0]):
            raise _wrong()
        return Position(values[0], *uids)

    def place_of(self, cursor: str) -> Place:
        values, uids = self._read(cursor)
        kinds = [float if term.vr in NUMBER_VRS else str for term in self.terms]
        if len(values) != len(kinds) or not all(
            value is None or isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)
        ):
            raise _wrong()
        return self._place(values, uids)

    @property
    def _name(self) -> str:
        return ",".join(map(str, self.terms)) or _DEFAULT

    def _values(self, hit: Hit) -> list[Value]:
        if self.walked:
            return [study_date(hit.study_row)]
        attributes = {level: _attributes(hit, level) for level in {term.level for term in self.terms}}
        return [term.value(attributes[term.level]) for term in self.terms]

    def _place(self, values: Sequence[Value], uids: Sequence[str]) -> Place:
        terms = self.terms or (_Term("00080020", "DA", Level.STUDY, True),)
        known = (None if value == "" else value for value in values)
        placed = (term.placed(value) for term, value in zip(terms, known, strict=True))
        return (*placed, tuple(uids))

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


def order_of(names: Sequence[str], level: Level) -> Order:
    """Raises BadRequest that names what cannot be sorted by."""
    if len(names) > MOST_TERMS:
        raise BadRequest(f"orderby takes at most {MOST_TERMS} attributes")
    terms = tuple(_term(name, level) for name in names)
    if [str(term) for term in terms] == [_DEFAULT]:
        return Order(level)
    return Order(level, terms)


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

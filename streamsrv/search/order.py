"""The order of results, and cursors between pages.

Strategy: every result has a sort key, made of the values that it is ordered by and of its UIDs, so no two are
equal. A cursor is the key of the last result of a page; the next page begins after it. While instances come
and go, a result whose values stay is on exactly one page. A result whose values change moves: if it crosses
the cursor, it is missed or comes again.

Rules
- The default is newest StudyDate first, then by UID. The index walks in this order, and in that of any other
  study attribute with an inverted list: a page then costs as much as it holds. Several attributes, and those
  without a list, need everything that matches, within the budget of the search.
- Results without a value come last, ascending or descending. The first of several values counts. A person
  name counts by its first group without case and accents, a long text by the part that a list holds.
- A cursor is opaque. It holds values of its result only, and is checked like any other input.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest
from streamsrv.query.attributes import BY_TAG, Level, Position, StudyOrder
from streamsrv.query.conditions import UID_LEVELS, path_of
from streamsrv.query.values import NUMBER_VRS, sort_value
from streamsrv.store import Hit, instance_attributes, reader_of

MOST_TERMS = 8
_NEWEST = "-00080020"

Value = str | float | None
SortKey = tuple[tuple[Any, ...], ...]

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class _Term:
    tag: str
    vr: str
    level: Level
    descending: bool = False
    _read: Callable[[Hit], JsonDataset] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_read", _reader(self.level, self.tag))

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.tag}"

    def value(self, hit: Hit) -> Value:
        if self.tag in UID_LEVELS:
            return (hit.study, hit.series, hit.instance)[self.level]
        form = sort_value(self.vr, self._read(hit).get(self.tag, {}))
        return float(form) if form and self.vr in NUMBER_VRS else form

    def holds(self, value: object) -> bool:
        """Whether it may be a value of a cursor."""
        return value is None or isinstance(value, float if self.vr in NUMBER_VRS else str)

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
    """Of results at a level, by one attribute at least. `walked` is the order of studies in which the index
    finds them so; None if they are sorted here."""

    level: Level
    terms: tuple[_Term, ...]
    walked: StudyOrder | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        first = self.terms[0]
        row = BY_TAG.get(first.tag) if len(self.terms) == 1 and first.level is Level.STUDY else None
        listed = row is not None and row.indexed and row.vr not in NUMBER_VRS
        object.__setattr__(self, "walked", StudyOrder(row, first.descending) if row and listed else None)

    def key(self, hit: Hit) -> SortKey:
        return self._key(self._values(hit), _uids(hit, self.level))

    def cursor(self, hit: Hit) -> str:
        text = orjson.dumps([self._name, self._values(hit), _uids(hit, self.level)])
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    def position(self, cursor: str) -> Position:
        """Reads a cursor, for a walk of the index."""
        (value,), uids = self._read(cursor)
        assert not isinstance(value, float)
        return Position(value, *uids)

    def key_of(self, cursor: str) -> SortKey:
        return self._key(*self._read(cursor))

    @property
    def _name(self) -> str:
        return ",".join(map(str, self.terms))

    def _values(self, hit: Hit) -> list[Value]:
        return [term.value(hit) for term in self.terms]

    def _key(self, values: Sequence[Value], uids: Sequence[str]) -> SortKey:
        keys = (term.key(value) for term, value in zip(self.terms, values, strict=True))
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
        if len(values) != len(self.terms) or not all(map(_Term.holds, self.terms, values)):
            raise _wrong()
        return values, uids


def order_of(names: Sequence[str], level: Level) -> SortOrder:
    """Raises BadRequest, which names the attribute."""
    if len(names) > MOST_TERMS:
        raise BadRequest(f"orderby takes at most {MOST_TERMS} attributes")
    return SortOrder(level, tuple(_term(name, level) for name in names or (_NEWEST,)))


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


def _reader(level: Level, tag: str) -> Callable[[Hit], JsonDataset]:
    """Reads an attribute of the row at a level."""
    if level is Level.INSTANCE:
        return lambda hit: instance_attributes(hit.instance_row) if hit.instance_row else {}
    read = reader_of(level, (tag,))
    if level is Level.STUDY:
        return lambda hit: read(hit.study_row)
    return lambda hit: read(hit.series_row) if hit.series_row else {}


def _uids(hit: Hit, level: Level) -> list[str]:
    return [uid or "" for uid in (hit.study, hit.series, hit.instance)[: level + 1]]


def _wrong() -> BadRequest:
    return BadRequest("after is no cursor of this search and order: take it from the Link header of a page")

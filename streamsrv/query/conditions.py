"""Turns the parameters of a search into a query: target and conditions.

Strategy: a parameter names an attribute by keyword, by tag, or by a path of both joined with dots. If the
attribute has a row in the table, the rows of its level decide the condition. Otherwise the metadata of
instances do, which costs more and is budgeted. A study matches conditions on series or instances if one of
them meets them all.

Rule: a name that looks like an attribute and is none is a 400, because ignoring it would match everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.dicom.tags import (
    AVAILABLE_TRANSFER_SYNTAX_UID,
    TRANSFER_SYNTAX_UID,
    holds_several,
    tag_of,
    vr_of,
)
from streamsrv.errors import BadRequest
from streamsrv.query.attributes import (
    BY_TAG,
    NEWEST,
    Level,
    Path,
    Position,
    QueryAttribute,
    StudyOrder,
    elements_at,
)
from streamsrv.query.levels import is_below
from streamsrv.query.matching import (
    MULTIPLE_VRS,
    NO_OPTIONS,
    NO_VALUE,
    AllOf,
    Empty,
    Matcher,
    MatchingOptions,
    Moments,
    OneOf,
    Probe,
    Range,
    Universal,
    is_certain,
    matcher_of,
    matcher_of_all,
)

UID_LEVELS = {"0020000D": Level.STUDY, "0020000E": Level.SERIES, "00080018": Level.INSTANCE}

# A date and its time: two ranges are a combined one (PS3.4 C.2.2.2.5.4).
_MOMENTS = {
    "00080020": "00080030",
    "00080021": "00080031",
    "00080022": "00080032",
    "00080023": "00080033",
    "00400244": "00400245",
}
_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW"))
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class ValueCondition:
    """`row` is None if the metadata decide. `tags` names the outermost elements that are read, and `values`
    those of which values are compared, not items."""

    path: Path
    row: QueryAttribute | None
    matcher: Matcher

    @property
    def tags(self) -> tuple[str, ...]:
        return self.path[:1]

    @property
    def values(self) -> tuple[str, ...]:
        return self.path if len(self.path) == 1 and not isinstance(self.matcher, Empty) else ()

    @property
    def listed(self) -> tuple[Condition, ...]:
        """Conditions whose inverted lists hold all matches: none if the attribute has no list, or if the list
        lacks them."""
        if self.row is None or not self.row.indexed or isinstance(self.matcher, Empty):
            return ()
        if isinstance(self.matcher, AllOf):
            return tuple(replace(self, matcher=each) for each in self.matcher.matchers)
        return (self,)

    @property
    def certain(self) -> bool:
        """Whether the entries of its list that the only probe finds are the matches, without a look at the
        rows."""
        return len(self.path) == 1 and bool(self.listed) and is_certain(self.matcher)

    def accepts(self, attributes: JsonDataset) -> bool:
        return self.matcher.matches(elements_at(attributes, self.path))

    def probes(self) -> list[Probe]:
        return self.matcher.probes()


@dataclass(frozen=True, slots=True)
class MomentCondition:
    """`row` is that of the date: its list bounds the days."""

    date: Path
    time: Path
    row: QueryAttribute | None
    moments: Moments
    days: Range

    @property
    def tags(self) -> tuple[str, ...]:
        return self.date[0], self.time[0]

    @property
    def values(self) -> tuple[str, ...]:
        return self.tags

    @property
    def listed(self) -> tuple[Condition, ...]:
        return (self,) if self.row is not None and self.row.indexed else ()

    @property
    def certain(self) -> bool:
        return False

    def accepts(self, attributes: JsonDataset) -> bool:
        return self.moments.accepts(elements_at(attributes, self.date), elements_at(attributes, self.time))

    def probes(self) -> list[Probe]:
        return self.days.probes()


@dataclass(frozen=True, slots=True)
class ByStoredVR:
    """Matches a private or unknown attribute by the VR of each stored element."""

    name: str
    text: str
    options: MatchingOptions

    def matches(self, elements: Iterable[JsonElement]) -> bool:
        return any(self._matches(element) for element in elements if element)

    def _matches(self, element: JsonElement) -> bool:
        try:
            return matcher_of(self.name, element["vr"], self.text, self.options).matches([element])
        except BadRequest:
            return False

    def probes(self) -> list[Probe]:
        return [Probe()]


Condition: TypeAlias = ValueCondition | MomentCondition


@dataclass(frozen=True, slots=True)
class Query:
    """`study` and `series` come from the path of the target, `uids` from parameters. `asked` holds the paths
    of the matching keys that answers return: not those of lower levels. `wanted` is the number of results
    that will be taken: it helps to choose the shorter way. Studies come in `order`. The search begins after
    `after`."""

    level: Level
    study: str | None = None
    series: str | None = None
    uids: dict[Level, frozenset[str]] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    asked: tuple[Path, ...] = ()
    wanted: int = 1 << 62
    order: StudyOrder = NEWEST
    after: Position | None = None

    def page(self, wanted: int, order: StudyOrder, after: Position | None) -> Query:
        return replace(self, wanted=wanted, order=order, after=after)

    @property
    def counted_by(self) -> Condition | None:
        """The only condition, if all entries of its list that its probe finds are matches, and no others."""
        if len(self.conditions) != 1 or self.uids or self.study is not None:
            return None
        condition = self.conditions[0]
        known = condition.certain and condition.row is not None and condition.row.level is self.level
        return condition if known else None


def path_of(name: str) -> Path | None:
    """Returns the path that a parameter names, or None if it names no attribute."""
    parts = name.split(".")
    if len(parts) > _DEEPEST:
        return None
    tags = [tag_of(part) for part in parts]
    return None if None in tags else tuple(tag for tag in tags if tag)


def query_of(
    level: Level,
    study: str | None,
    series: str | None,
    parameters: Sequence[tuple[str, str]],
    options: MatchingOptions = NO_OPTIONS,
) -> Query:
    """Raises BadRequest, which names the parameter."""
    values: dict[Path, tuple[str, str]] = {}
    for name, text in parameters:
        path = path_of(name)
        if path is None:
            raise BadRequest(f"{name[:80]!r} is not an attribute that can be matched")
        values[path] = (name, _joined(path, name, values.get(path), text))
    uids: dict[Level, frozenset[str]] = {}
    found: dict[Path, ValueCondition] = {}
    for path, (name, text) in values.items():
        # An extension: the file meta information is not in the index, but the instance row has its syntax.
        compared = (AVAILABLE_TRANSFER_SYNTAX_UID,) if path == (TRANSFER_SYNTAX_UID,) else path
        row = BY_TAG.get(".".join(compared))
        matcher = _matcher(path, row, name, text, options)
        if len(path) == 1 and path[0] in UID_LEVELS and isinstance(matcher, OneOf | Empty):
            # The UIDs of the three levels are never empty.
            uids[UID_LEVELS[path[0]]] = matcher.forms if isinstance(matcher, OneOf) else frozenset()
        elif not isinstance(matcher, Universal):
            found[path] = ValueCondition(compared, row, matcher)
    asked = tuple(path for path in values if not is_below(path, level))
    return Query(level, study, series, uids, _with_moments(found), asked)


def _joined(path: Path, name: str, before: tuple[str, str] | None, text: str) -> str:
    """Joins two values of one attribute to a list. Only UIDs allow it (PS3.18 8.3.4.1)."""
    if before is None:
        return text
    if vr_of(path[-1]) != "UI":
        raise BadRequest(f"{name} is given twice")
    return f"{before[1]},{text}"


def _matcher(
    path: Path, row: QueryAttribute | None, name: str, text: str, options: MatchingOptions
) -> Matcher:
    vr = row.vr if row else vr_of(path[-1])
    if text.strip() and (vr in _BINARY or (vr == "UR" and row)):
        raise BadRequest(f"{name} cannot be matched")
    if options.empty and text.strip() == NO_VALUE:
        return Empty()
    if vr is None or vr == "UN":
        return ByStoredVR(name, text, options) if text.strip("* ") else Universal()
    if options.multiple and vr in MULTIPLE_VRS and holds_several(path[-1]):
        return matcher_of_all(name, vr, text, options)
    return matcher_of(name, vr, text, options)


def _with_moments(found: dict[Path, ValueCondition]) -> tuple[Condition, ...]:
    """Combines pairs of a date and a time range."""
    conditions: dict[Path, Condition] = {**found}
    if len(found) < 2:
        return tuple(conditions.values())
    for date, time in _MOMENTS.items():
        days, hours = _range_in(found.get((date,))), _range_in(found.get((time,)))
        if days and hours:
            row, moments = found[(date,)].row, Moments.of(days, hours)
            conditions[(date,)] = MomentCondition((date,), (time,), row, moments, days)
            del conditions[(time,)]
    return tuple(conditions.values())


def _range_in(condition: ValueCondition | None) -> Range | None:
    matcher = condition.matcher if condition else None
    return matcher if isinstance(matcher, Range) and not matcher.single else None

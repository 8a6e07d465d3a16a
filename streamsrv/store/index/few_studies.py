"""The studies that a rule of access shows, or those that it hides: their counts, and their orders by
attributes. Each object is of one version of the index, and nothing changes it but a further order. Those of
the next version share its memory (store/shared_map.py). `RuleMemory` bounds that of all rules.

A rule may show a part of a study. Such a study is visible, with the counts and the places of its part."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from streamsrv.query.attributes import NEWEST, ORDERING, StudyOrder
from streamsrv.query.values import cut
from streamsrv.store.index.ordered import Place, value_reader
from streamsrv.store.index.rows import LevelRow, counts_in
from streamsrv.store.shared_map import SharedMap, SharedOrder, SortedEntry

# Orders that are kept beside that by study date.
ORDERS = 4
# Bytes of a study, of its place in a further order, and of an order without studies.
STUDY_BYTES, ORDER_BYTES, EMPTY_BYTES = 330, 150, 5_000
# Visible studies under a key that are remembered, if they are so many, and keys.
NOTED, MOST_NOTED = 1_000, 1_000
# Bytes that all rules of a process remember, if no setting says otherwise.
USUAL_MEMORY = 64 << 20


Numbers: TypeAlias = tuple[int, ...]


class FewInOrder:
    """Few studies by their places in the list of an attribute, as OrderedStudies reads it. A study without a
    sort value is under the empty form."""

    __slots__ = ("_entries", "_order", "_places", "count")

    def __init__(self, order: StudyOrder, places: Mapping[str, bytes]) -> None:
        """`places` has the key of each study (`place_of`)."""
        entries = {study: (key, study) for study, key in places.items()}
        self._order = order
        self._places: SharedMap[str, SortedEntry] = SharedMap(entries)
        self._entries = SharedOrder(entries.values(), counted=order.attribute.tag == ORDERING)
        self.count = self._entries.count

    def changed(self, rows: Iterable[tuple[str, LevelRow | None]]) -> FewInOrder:
        """The same with other rows of some studies, None for those that are gone."""
        places = [
            (study, (place_of(self._order, row), study) if row is not None else None) for study, row in rows
        ]
        gone = [entry for study, _ in places if (entry := self._places.get(study)) is not None]
        new = FewInOrder(self._order, {})
        new._places = self._places.changed(places)
        new._entries = self._entries.changed(gone, [entry for _, entry in places if entry is not None])
        new.count = new._entries.count
        return new

    def entries(
        self, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[SortedEntry]:
        """The keys and studies between two keys, from a place on."""
        first = (low,) if place is None else (place[0], place[1].decode())
        if not descending:
            yield from self._entries.between(first, (high + b"\0",))
            return
        if place is not None:
            yield from self._entries.between(first, (place[0] + b"\0",))
        yield from self._entries.backwards(low, high + b"\0" if place is None else place[0])


_reader = functools.lru_cache(maxsize=64)(value_reader)


def place_of(order: StudyOrder, row: LevelRow) -> bytes:
    """The key under which a study has its place in an order."""
    return order.start + cut(_reader(order)(row) or "")


class StudyRows(NamedTuple):
    """A study as it is stored and as a rule shows it, the same row if it shows all; None without
    instances."""

    study: str
    stored: LevelRow | None
    shown: LevelRow | None

    @property
    def part(self) -> LevelRow | None:
        """The visible part, if others are hidden."""
        return self.shown if self.shown is not self.stored else None

    def counted(self, *, hidden: bool) -> Numbers | None:
        """Series and instances, if the study belongs to the visible or to the hidden ones."""
        row = (self.stored if self.shown is None else None) if hidden else self.shown
        return (row.series, row.instances) if row is not None else None

    @property
    def withheld(self) -> Numbers | None:
        """The hidden series and instances of a study that is visible in part, and its stored series."""
        whole, part = self.stored, self.part
        if whole is None or part is None:
            return None
        return whole.series - part.series, whole.instances - part.instances, whole.series

    def listed(self, *, hidden: bool) -> LevelRow | None:
        """The row by whose values the study is in the orders of the visible, or of the hidden ones."""
        return (self.stored if self.shown is not self.stored else None) if hidden else self.shown


def rows_of(study: str, value: bytes | None, shown: bytes | None) -> StudyRows:
    """From the packed rows."""
    stored = LevelRow.unpack(value) if value is not None else None
    if shown is value or shown is None:
        return StudyRows(study, stored, stored if shown is not None else None)
    return StudyRows(study, stored, LevelRow.unpack(shown))


class FewStudies:
    """Of the studies that a rule shows, or that it hides (`hidden`), whichever are few. `counts` has the
    series and instances of each, `totals` the number of all visible studies, series and instances. `parts`
    has the hidden series and instances, and the stored series, of those that are visible in part."""

    __slots__ = (
        "_apart",
        "_part_sums",
        "_sums",
        "_visible",
        "counts",
        "hidden",
        "orders",
        "parts",
        "sequence",
        "totals",
        "version",
    )

    def __init__(
        self,
        version: int,
        sequence: int,
        counts: SharedMap[str, Numbers],
        parts: SharedMap[str, Numbers],
        orders: dict[str, FewInOrder],
        apart: FewInOrder | None,
        stored: tuple[int, int, int] | None,
        sums: tuple[Numbers, Numbers] | None = None,
    ) -> None:
        """`sequence` is that of the last change. `orders` are by the tag of their attribute. `stored` is the
        number of all studies, series and instances, if those in `counts` are hidden. Then `orders` have also
        `parts`, by their stored values, and `apart` has the places of parts in that by study date. `sums` are
        those of `counts` and `parts`, if they are known."""
        self.version = version
        self.sequence = sequence
        self.counts = counts
        self.parts = parts
        self.orders = orders
        self._apart = apart
        self.hidden = stored is not None
        self._sums, self._part_sums = sums or (_sums(counts.values(), 2), _sums(parts.values(), 3))
        self._visible: dict[bytes, tuple[int, int]] = {}  # by key: studies, and the sequence then
        (series, instances), (part_series, part_instances, _) = self._sums, self._part_sums
        self.totals = len(counts), series, instances
        if stored is not None:
            hidden = len(counts), series + part_series, instances + part_instances
            self.totals = stored[0] - hidden[0], stored[1] - hidden[1], stored[2] - hidden[2]

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        orders, studies = len(self.orders), len(self.counts) + len(self.parts)
        return studies * (STUDY_BYTES + ORDER_BYTES * (orders - 1)) + EMPTY_BYTES * (orders + self.hidden)

    def changed(
        self, version: int, sequence: int, rows: list[StudyRows], stored: tuple[int, int, int]
    ) -> FewStudies:
        """The same with other rows of some studies."""
        counted = [(each.study, each.counted(hidden=self.hidden)) for each in rows]
        withheld = [(each.study, each.withheld) for each in rows]
        listed = [(each.study, each.listed(hidden=self.hidden)) for each in rows]
        sums = _changed(self._sums, self.counts, counted), _changed(self._part_sums, self.parts, withheld)
        new = FewStudies(
            version,
            sequence,
            self.counts.changed(counted),
            self.parts.changed(withheld),
            {tag: each.changed(listed) for tag, each in list(self.orders.items())},
            self._apart and self._apart.changed([(each.study, each.part) for each in rows]),
            stored if self.hidden else None,
            sums,
        )
        new._visible = self._visible
        return new

    def visible(self, studies: Iterable[str]) -> list[str]:
        """Those of the studies that are visible."""
        return self.counts.among(studies, there=not self.hidden)

    def least(self, key: bytes, entries: int) -> int:
        """The number of visible entries at least under a key of the inverted lists, which has so many. A
        change of the index takes those of one study away at most."""
        hidden = max(len(self.counts), *self._sums) + self._part_sums[2]
        least = max(entries - hidden, 0) if self.hidden else 0
        visible, sequence = self._visible.get(key, (0, 0))
        return max(least, visible - abs(self.sequence - sequence))

    def note(self, key: bytes, visible: int) -> None:
        """Remembers that so many studies under a key are visible, if they are many."""
        if visible >= NOTED:
            if len(self._visible) >= MOST_NOTED:
                self._visible.clear()
            self._visible[key] = visible, self.sequence

    def on_date(self, key: bytes, entries: int) -> int:
        """The number of visible studies under a key of the list of study dates, which has so many entries."""
        known = self.orders[NEWEST.tag].count(key)
        if self._apart is None:
            return known
        return max(entries - known, 0) + self._apart.count(key)

    def keep(self, order: StudyOrder, found: FewInOrder) -> None:
        """Remembers one more order in place of the oldest one. That by study date always stays."""
        others = [tag for tag in self.orders if tag not in (NEWEST.tag, order.tag)]
        if len(others) >= ORDERS:
            self.orders.pop(others[0], None)
        self.orders[order.tag] = found


class Side:
    """The studies of a rule that are visible, or hidden: all, or none if they are more than `most`."""

    def __init__(self, most: int, *, hidden: bool = False) -> None:
        self.number = 0
        self.hidden = hidden
        self._most = most
        self._counts: dict[str, Numbers] = {}
        self._parts: dict[str, Numbers] = {}
        self._places: dict[str, bytes] = {}  # those of rows
        self._apart: dict[str, bytes] = {}  # those of parts

    def add(self, study: str, value: bytes | LevelRow) -> None:
        self.number += 1
        if self.number > self._most:
            return
        if isinstance(value, LevelRow):
            self._counts[study] = value.series, value.instances
            self._places[study] = place_of(NEWEST, value)
        else:
            self._counts[study] = counts_in(value)

    def add_part(self, rows: StudyRows) -> None:
        """A study that is visible in part."""
        self.number += 1
        if self.number > self._most or rows.part is None or rows.withheld is None:
            return
        self._parts[rows.study] = rows.withheld
        self._apart[rows.study] = place_of(NEWEST, rows.part)
        if not self.hidden:
            self._counts[rows.study] = rows.part.series, rows.part.instances

    def few(
        self,
        version: int,
        sequence: int,
        stored: tuple[int, int, int],
        dated: Callable[[Container[str]], dict[str, bytes]],
    ) -> FewStudies:
        """All of them. `stored` is the number of all studies, series and instances. `dated` finds the places
        of studies, as they are stored, in the order by study date."""
        studies = self._counts | self._parts if self.hidden else self._counts
        places = self._places if len(self._places) + len(self._apart) == len(studies) else dated(studies)
        orders = {NEWEST.tag: FewInOrder(NEWEST, places if self.hidden else places | self._apart)}
        apart = FewInOrder(NEWEST, self._apart) if self.hidden else None
        counts, parts = SharedMap(self._counts), SharedMap(self._parts)
        return FewStudies(version, sequence, counts, parts, orders, apart, stored if self.hidden else None)


def _sums(numbers: Iterable[Numbers], width: int) -> Numbers:
    """The sum of each of so many numbers."""
    several = list(numbers)
    return tuple(sum([each[place] for each in several]) for place in range(width))


def _changed(
    sums: Numbers, known: SharedMap[str, Numbers], changes: list[tuple[str, Numbers | None]]
) -> Numbers:
    """The sums after these changes."""
    gone = _sums((numbers for study, _ in changes if (numbers := known.get(study)) is not None), len(sums))
    more = _sums((numbers for _, numbers in changes if numbers is not None), len(sums))
    return tuple(one - old + new for one, old, new in zip(sums, gone, more, strict=True))


class Remembering(Protocol):
    """The remembered studies of a rule: their bytes, and the time of their last use."""

    used: float

    @property
    def size(self) -> int: ...

    def forget(self) -> None: ...


class RuleMemory:
    """The memory in which all rules of access of a process remember studies. Beyond `limit` bytes the rule
    that was used least recently forgets its studies, and finds them again when it is used. Thread-safe."""

    def __init__(self, limit: int = USUAL_MEMORY) -> None:
        self.limit = limit
        self._rules: weakref.WeakSet[Remembering] = weakref.WeakSet()
        self._turn = threading.Lock()

    @property
    def most(self) -> int:
        """The studies of one rule that are remembered at most: half of the memory."""
        return self.limit // 2 // STUDY_BYTES

    def grown(self, rule: Remembering) -> None:
        """Call it when a rule remembers more. It is never the one that forgets."""
        with self._turn:
            self._rules.add(rule)
            rules = sorted(self._rules, key=lambda each: each.used)
            total = sum(each.size for each in rules)
            for each in rules:
                if total <= self.limit:
                    break
                if each is not rule:
                    total -= each.size
                    each.forget()

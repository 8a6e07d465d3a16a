"""The studies that a rule of access shows, or those that it hides: their counts, and their orders by
attributes. Each object is of one version of the index, and nothing changes it but a further order. Those of
the next version share its memory (store/shared_map.py). `RuleMemory` bounds that of all rules."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from streamsrv.query.attributes import NEWEST, ORDERING, StudyOrder
from streamsrv.query.values import cut
from streamsrv.store.index.ordered import Place, value_reader
from streamsrv.store.index.rows import LevelRow
from streamsrv.store.shared_map import SharedMap, SharedOrder, SortedEntry

# Orders that are kept beside that by study date.
ORDERS = 4
# Bytes of a study, of its place in a further order, and of an order without studies.
STUDY_BYTES, ORDER_BYTES, EMPTY_BYTES = 330, 150, 5_000
# Visible studies under a key that are remembered, if they are so many, and keys.
NOTED, MOST_NOTED = 1_000, 1_000
# Bytes that all rules of a process remember, if no setting says otherwise.
USUAL_MEMORY = 64 << 20


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


class FewStudies:
    """Of the studies that a rule shows, or that it hides (`hidden`), whichever are few. `counts` has the
    series and instances of each, `totals` the number of all visible studies, series and instances."""

    __slots__ = ("_sums", "_visible", "counts", "hidden", "orders", "sequence", "totals", "version")

    def __init__(
        self,
        version: int,
        sequence: int,
        counts: SharedMap[str, tuple[int, int]],
        orders: dict[str, FewInOrder],
        stored: tuple[int, int, int] | None,
        sums: tuple[int, int] | None = None,
    ) -> None:
        """`sequence` is that of the last change. `orders` are by the tag of their attribute. `stored` is the
        number of all studies, series and instances, if those in `counts` are hidden. `sums` are the series
        and instances in `counts`, if they are known."""
        self.version = version
        self.sequence = sequence
        self.counts = counts
        self.orders = orders
        self.hidden = stored is not None
        series, instances = sums or _sums(counts.values())
        self._sums = len(counts), series, instances
        self._visible: dict[bytes, tuple[int, int]] = {}  # by key: studies, and the sequence then
        studies, more_series, more_instances = stored or (0, 0, 0)
        self.totals = self._sums
        if stored is not None:
            self.totals = studies - len(counts), more_series - series, more_instances - instances

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        orders = len(self.orders)
        return len(self.counts) * (STUDY_BYTES + ORDER_BYTES * (orders - 1)) + EMPTY_BYTES * orders

    def changed(
        self,
        version: int,
        sequence: int,
        rows: list[tuple[str, LevelRow | None]],
        stored: tuple[int, int, int],
    ) -> FewStudies:
        """The same with other rows of some studies, None for those that no longer belong to these."""
        changes = [(study, (row.series, row.instances) if row is not None else None) for study, row in rows]
        gone = _sums(known for study, _ in changes if (known := self.counts.get(study)) is not None)
        more = _sums(known for _, known in changes if known is not None)
        _, series, instances = self._sums
        sums = series - gone[0] + more[0], instances - gone[1] + more[1]
        orders = {tag: each.changed(rows) for tag, each in list(self.orders.items())}
        counts = self.counts.changed(changes)
        new = FewStudies(version, sequence, counts, orders, stored if self.hidden else None, sums)
        new._visible = self._visible
        return new

    def visible(self, studies: Iterable[str]) -> list[str]:
        """Those of the studies that are visible."""
        return self.counts.among(studies, there=not self.hidden)

    def least(self, key: bytes, entries: int) -> int:
        """The number of visible entries at least under a key of the inverted lists, which has so many. A
        change of the index takes those of one study away at most."""
        least = max(entries - max(self._sums), 0) if self.hidden else 0
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
        return max(entries - known, 0) if self.hidden else known

    def keep(self, order: StudyOrder, found: FewInOrder) -> None:
        """Remembers one more order in place of the oldest one. That by study date always stays."""
        others = [tag for tag in self.orders if tag not in (NEWEST.tag, order.tag)]
        if len(others) >= ORDERS:
            self.orders.pop(others[0], None)
        self.orders[order.tag] = found


def _sums(numbers: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Series and instances in all."""
    several = list(numbers)
    return sum([each[0] for each in several]), sum([each[1] for each in several])


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

"""The studies that a rule of access shows, or hides, if they are few: their counts, and their orders by
attributes. Each object is of one version of the index, and nothing changes it but a further order."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from streamsrv.query.attributes import NEWEST, StudyOrder
from streamsrv.query.values import cut
from streamsrv.store.index.ordered import Place, value_reader
from streamsrv.store.index.rows import LevelRow

# Orders that are kept, of 200 bytes a study each.
ORDERS = 4


class FewInOrder:
    """Few studies by their places in the list of an attribute, as OrderedStudies reads it. A study without a
    sort value is under the empty form."""

    __slots__ = ("_keys", "_order", "_places", "_studies")

    def __init__(self, order: StudyOrder, places: dict[str, bytes]) -> None:
        """`places` has the key of each study (`place_of`)."""
        self._order = order
        self._places = places
        self._studies: dict[bytes, list[str]] = {}
        for study in sorted(places):
            self._studies.setdefault(places[study], []).append(study)
        self._keys = sorted(self._studies)

    def changed(self, rows: Iterable[tuple[str, LevelRow | None]]) -> FewInOrder:
        """The same with other rows of some studies, None for those that are gone."""
        new = FewInOrder(self._order, {})
        new._places, new._studies, new._keys = dict(self._places), dict(self._studies), list(self._keys)
        for study, row in rows:
            before = new._places.pop(study, None)
            if before is not None:
                new._take_out(before, study)
            if row is not None:
                new._put(place_of(self._order, row), study)
        return new

    def _put(self, key: bytes, study: str) -> None:
        if key not in self._studies:
            bisect.insort(self._keys, key)
        self._studies[key] = sorted([*self._studies.get(key, ()), study])
        self._places[study] = key

    def _take_out(self, key: bytes, study: str) -> None:
        left = [each for each in self._studies[key] if each != study]
        if left:
            self._studies[key] = left
        else:
            del self._studies[key], self._keys[bisect.bisect_left(self._keys, key)]

    def count(self, key: bytes) -> int:
        """The number of studies under a key."""
        return len(self._studies.get(key, ()))

    def entries(
        self, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[tuple[bytes, str]]:
        """The keys and studies between two keys, from a place on."""
        if place is not None:
            low, high = (low, min(high, place[0])) if descending else (max(low, place[0]), high)
        within = range(bisect.bisect_left(self._keys, low), bisect.bisect_right(self._keys, high))
        for number in reversed(within) if descending else within:
            key = self._keys[number]
            studies = self._studies[key]
            first = bisect.bisect_left(studies, place[1].decode()) if place and place[0] == key else 0
            for each in range(first, len(studies)):
                yield key, studies[each]


def place_of(order: StudyOrder, row: LevelRow) -> bytes:
    """The key under which a study has its place in an order."""
    return order.start + cut(value_reader(order)(row) or "")


class FewStudies:
    """Of the studies that a rule shows, or that it hides (`hidden`), whichever are few. `counts` has the
    series and instances of each, `totals` the number of all visible studies, series and instances."""

    __slots__ = ("_sums", "counts", "hidden", "orders", "sequence", "totals", "version")

    def __init__(
        self,
        version: int,
        sequence: int,
        counts: dict[str, tuple[int, int]],
        orders: dict[str, FewInOrder],
        stored: tuple[int, int, int] | None,
    ) -> None:
        """`sequence` is that of the last change. `orders` are by the tag of their attribute. `stored` is the
        number of all studies, series and instances, if those in `counts` are hidden."""
        self.version = version
        self.sequence = sequence
        self.counts = counts
        self.orders = orders
        self.hidden = stored is not None
        series, instances = (sum([each[below] for each in counts.values()]) for below in (0, 1))
        self._sums = len(counts), series, instances
        studies, more_series, more_instances = stored or (0, 0, 0)
        self.totals = self._sums
        if stored is not None:
            self.totals = studies - len(counts), more_series - series, more_instances - instances

    def changed(
        self,
        version: int,
        sequence: int,
        rows: list[tuple[str, LevelRow | None]],
        stored: tuple[int, int, int],
    ) -> FewStudies:
        """The same with other rows of some studies, None for those that no longer belong to these."""
        counts = dict(self.counts)
        for study, row in rows:
            counts.pop(study, None)
            if row is not None:
                counts[study] = row.series, row.instances
        orders = {tag: each.changed(rows) for tag, each in list(self.orders.items())}
        return FewStudies(version, sequence, counts, orders, stored if self.hidden else None)

    def visible(self, studies: Iterable[str]) -> list[str]:
        """Those of the studies that are visible."""
        if self.hidden:
            return [study for study in studies if study not in self.counts]
        return list(filter(self.counts.__contains__, studies))

    def least(self, entries: int) -> int:
        """The number of visible entries at least, among so many of an inverted list."""
        return max(entries - max(self._sums), 0) if self.hidden else 0

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

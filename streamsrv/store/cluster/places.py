"""Where the object of a segment is. Places never change, so those that were found are kept.

Rule of this file: a database that was set back may give a number again, to another object. A connection fails
before such a row is read; then all places are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamsrv.bounded_cache import SizedCache
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.postgresql.object_table import ObjectTable

KEPT = 8 << 20  # bytes
PLACE_SIZE = 200  # bytes of a place in memory, about


class ObjectPlaces:
    def __init__(self, table: ObjectTable) -> None:
        self._table = table
        self._failures = table.failures
        self._known = _empty()

    def find(self, segments: Sequence[int]) -> Mapping[int, StoredObject]:
        """Those of the segments that have an object. Unknown ones are looked up together."""
        if self._failures != (failures := self._table.failures):
            self._failures, self._known = failures, _empty()
        known = self._known  # a place that is found now does not go into a later cache
        found = {segment: place for segment in segments if (place := known.get(segment)) is not None}
        missing = [segment for segment in segments if segment not in found]
        if missing:
            for segment, key, length in self._table.find(missing):
                found[segment] = place = StoredObject(key, length)
                known.put(segment, place)
        return found


def _empty() -> SizedCache[int, StoredObject]:
    return SizedCache(KEPT, lambda place: PLACE_SIZE)

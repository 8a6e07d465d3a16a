"""Maps and orders that never change. A changed copy shares all memory with its original but a bucket, or a
chunk, for each changed entry. So a change costs the same for any number of entries.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

BUCKETS, CHUNK = 256, 512

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
SortedEntry: TypeAlias = tuple[bytes, str]  # a key, and a study
Probe: TypeAlias = tuple[bytes] | SortedEntry  # before or at an entry


class SharedMap(Generic[Key, Value]):
    """A mapping."""

    __slots__ = ("_buckets", "_number")

    def __init__(self, values: Mapping[Key, Value]) -> None:
        self._number = len(values)
        nothing: Mapping[Key, Value] = {}
        self._buckets = [nothing] * BUCKETS
        filled: dict[int, dict[Key, Value]] = {}
        for key, value in values.items():
            filled.setdefault(hash(key) % BUCKETS, {})[key] = value
        for number, bucket in filled.items():
            self._buckets[number] = bucket

    def __len__(self) -> int:
        return self._number

    def __contains__(self, key: object) -> bool:
        return key in self._buckets[hash(key) % BUCKETS]

    def __iter__(self) -> Iterator[Key]:
        return (key for bucket in self._buckets for key in bucket)

    def values(self) -> Iterator[Value]:
        return (value for bucket in self._buckets for value in bucket.values())

    def get(self, key: Key) -> Value | None:
        return self._buckets[hash(key) % BUCKETS].get(key)

    def among(self, keys: Iterable[Key], *, there: bool) -> list[Key]:
        """Those of the keys that this map has, or that it has not."""
        buckets = self._buckets
        return [key for key in keys if (key in buckets[hash(key) % BUCKETS]) is there]

    def changed(self, changes: Iterable[tuple[Key, Value | None]]) -> SharedMap[Key, Value]:
        """The same with other values of some keys, None for those that are gone."""
        new: SharedMap[Key, Value] = SharedMap({})
        new._buckets = list(self._buckets)
        own: dict[int, dict[Key, Value]] = {}
        for key, value in changes:
            number = hash(key) % BUCKETS
            if number not in own:
                new._buckets[number] = own[number] = dict(new._buckets[number])
            if value is None:
                own[number].pop(key, None)
            else:
                own[number][key] = value
        grown = (len(bucket) - len(self._buckets[number]) for number, bucket in own.items())
        new._number = self._number + sum(grown)
        return new


class SharedOrder:
    """Studies in the order of keys, then of UIDs. If it is `counted`, `count` takes a single look-up."""

    __slots__ = ("_chunks", "_counts", "_firsts")

    def __init__(self, entries: Iterable[SortedEntry], *, counted: bool = False) -> None:
        ordered = sorted(entries)
        counts = Counter(key for key, _ in ordered) if counted else None
        self._counts: SharedMap[bytes, int] | None = None if counts is None else SharedMap(counts)
        self._chunks = [ordered[at : at + CHUNK] for at in range(0, len(ordered), CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]

    def changed(self, gone: Iterable[SortedEntry], new: Iterable[SortedEntry]) -> SharedOrder:
        """The same without some entries that it has, and with others."""
        gone, new, made = list(gone), list(new), SharedOrder(())
        if self._counts is not None:
            changes = Counter(key for key, _ in new)
            changes.subtract(key for key, _ in gone)
            numbers = ((key, (self._counts.get(key) or 0) + more) for key, more in changes.items())
            made._counts = self._counts.changed((key, number or None) for key, number in numbers)
        made._chunks, made._firsts = list(self._chunks), list(self._firsts)
        for entry in gone:
            number = made._chunk_of(entry)
            left = [each for each in made._chunks[number] if each != entry]
            made._replace(number, [left] if left else [])
        for entry in new:
            number = made._chunk_of(entry)
            chunk = list(made._chunks[number]) if made._chunks else []
            bisect.insort(chunk, entry)
            made._replace(number, [chunk] if len(chunk) <= 2 * CHUNK else [chunk[:CHUNK], chunk[CHUNK:]])
        return made

    def _replace(self, number: int, chunks: list[list[SortedEntry]]) -> None:
        self._chunks[number : number + 1] = chunks
        self._firsts[number : number + 1] = [chunk[0] for chunk in chunks]

    def count(self, key: bytes) -> int:
        """The number of studies under a key."""
        if self._counts is not None:
            return self._counts.get(key) or 0
        (first, begin), (last, end) = self._place((key,)), self._place((key + b"\0",))
        return sum(map(len, self._chunks[first:last])) - begin + end

    def between(self, first: Probe, end: Probe) -> Iterator[SortedEntry]:
        """The entries from `first` on and before `end`."""
        number, at = self._place(first)
        while number < len(self._chunks):
            chunk = self._chunks[number]
            stop = len(chunk) if chunk[-1] < end else bisect.bisect_left(chunk, end)
            yield from chunk[at:stop]
            if stop < len(chunk):
                return
            number, at = number + 1, 0

    def backwards(self, low: bytes, end: bytes) -> Iterator[SortedEntry]:
        """The entries from the key `low` on and before the key `end`: backwards by key, and forwards under
        each key."""
        number, stop = self._place((end,))
        while number or stop:
            if not stop:
                number -= 1
                stop = len(self._chunks[number])
            chunk, key = self._chunks[number], self._chunks[number][stop - 1][0]
            if key < low:
                return
            begin = stop - 1
            while begin and chunk[begin - 1][0] == key:
                begin -= 1
            if not begin and number and self._chunks[number - 1][-1][0] == key:  # it begins in another chunk
                yield from self.between((key,), (key + b"\0",))
                number, stop = self._place((key,))
            else:
                yield from chunk[begin:stop]
                stop = begin

    def _chunk_of(self, probe: Probe) -> int:
        """The last chunk that begins at or before the probe, else the first one."""
        return max(bisect.bisect_right(self._firsts, probe) - 1, 0)

    def _place(self, probe: Probe) -> tuple[int, int]:
        """Chunk and offset of the first entry that is not before the probe."""
        if not self._chunks:
            return 0, 0
        number = self._chunk_of(probe)
        at = bisect.bisect_left(self._chunks[number], probe)
        return (number, at) if at < len(self._chunks[number]) else (number + 1, 0)

"""Metadata texts that are kept together: those of instances that were stored one after the other.

    metadata    serial u64, chunk u32  -> a zstd frame: one chunk of the text of this serial, or
                serial u64, 0 u32      -> 0x00, count u8, count times length u32, zstd frame:
                                          the texts of so many serials from this one on

Strategy: the texts of a series repeat each other. Sixteen of a CT in one frame take as many bytes as one by
itself, are compressed in a tenth of the time and read in a fifth. The serials of a commit follow each other,
so the row of a text is the one with the greatest key that is not behind its own: nobody has to say where it
is.

Rules of this file
- Only short texts are kept together, so that reading one costs no more than reading some more.
- A text goes when its instance does: the row is written anew without it (its length is 0 then, so that the
  others keep their places), and deleted with its last one.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import accumulate, pairwise
from typing import NamedTuple

import zstandard

from streamsrv.bounded_cache import SizedCache
from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.environment import Cursor
from streamsrv.store.index.rows import chunk_key, with_sum, without_sum
from streamsrv.store.rows import METADATA_CHUNK

TEXTS_TOGETHER = 16
BYTES_TOGETHER = 128 << 10  # of text
MARKED = b"\0"  # a zstd frame begins with 0x28 (RFC 8878 3.1.1)
# Rows whose texts are remembered while many are read: those of a series may lie in any order.
ROWS_REMEMBERED = 32

_SERIAL = 8  # bytes of a key
_HEAD = struct.Struct("<xB")


class _Compressors(threading.local):
    """A compressor is used by one thread: two at once write over each other's memory."""

    def __init__(self) -> None:
        # Level 1: 10 us for a CT's 5.3 kB; higher levels save 8 % at twice the time.
        self.mine = zstandard.ZstdCompressor(level=1, write_content_size=True)


_compressors = _Compressors()


def compressed(text: bytes) -> bytes:
    """A zstd frame."""
    return _compressors.mine.compress(text)


# On the way into the index


class Together:
    """Texts in one row. Those that keep it share it."""

    __slots__ = ("count", "row")

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.count = len(texts)
        self.row = packed(texts)

    def of(self, places: Sequence[int]) -> bytes:
        """The row of some of them, in ascending order."""
        if len(places) == self.count:
            return self.row
        texts = Inflating().texts(self.row)
        chosen = [texts[place] for place in places]
        return packed(chosen) if len(chosen) > 1 else compressed(chosen[0])


class Place(NamedTuple):
    texts: Together
    number: int


def together(texts: Sequence[bytes]) -> list[Place | None]:
    """For each text where it is kept; None for one that is empty or has no neighbour."""
    found: list[Place | None] = []
    for portion in _portions(texts):
        if len(portion) > 1:
            kept = Together(portion)
            found += (Place(kept, number) for number in range(len(portion)))
        else:
            found.append(None)
    return found


def _portions(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = length = 0
    for at, text in enumerate(texts):
        full = at - start == TEXTS_TOGETHER or length + len(text) > BYTES_TOGETHER
        if at > start and (full or not text or not texts[start]):
            yield texts[start:at]
            start, length = at, 0
        length += len(text)
    if texts:
        yield texts[start:]


def packed(texts: Sequence[bytes]) -> bytes:
    lengths = struct.pack(f"<{len(texts)}I", *map(len, texts))
    return _HEAD.pack(len(texts)) + lengths + compressed(b"".join(texts))


# As they lie in the index

UNREADABLE = "stored metadata cannot be read: run check, then reindex"


class Run(NamedTuple):
    """Texts that stand one behind the other: so many of a row, from this one on."""

    value: bytes
    first: int
    many: int


def lengths_in(value: bytes) -> tuple[int, ...]:
    """Of the texts of a row, 0 for one that is gone. (1,) stands for a row that is a frame."""
    if value[:1] != MARKED:
        return (1,)
    try:
        return struct.unpack_from(f"<{value[1]}I", value, _HEAD.size)
    except (struct.error, IndexError) as error:
        raise StoreCorrupt(UNREADABLE) from error


class Texts(list[bytes]):
    """All that a row holds; `size` is about what it takes in memory, with the row."""

    size: int


class Inflating:
    """Texts of rows, one after the other. Used by one thread. What others may ask for is taken from `shared`,
    by its row, and put there."""

    def __init__(self, shared: SizedCache[bytes, Texts] | None = None) -> None:
        self._decompressor: zstandard.ZstdDecompressor | None = None
        self._known: dict[bytes, list[bytes]] = {}
        self._shared = shared

    def frame(self, frame: bytes) -> bytes:
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor()
        try:
            return self._decompressor.decompress(frame, max_output_size=METADATA_CHUNK)
        except zstandard.ZstdError as error:
            raise StoreCorrupt(UNREADABLE) from error

    def texts(self, value: bytes) -> list[bytes]:
        """All that a row holds."""
        if value[:1] != MARKED:
            return [self.frame(value)]
        lengths = lengths_in(value)
        whole = self.frame(value[_HEAD.size + 4 * len(lengths) :])
        if len(whole) != sum(lengths):
            raise StoreCorrupt(UNREADABLE)
        return [whole[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]

    def each(self, runs: Sequence[Run]) -> Iterator[list[bytes]]:
        """The texts of one run after the other. What is not asked for again is forgotten at once: its memory
        serves the next one."""
        left = Counter([run.value for run in runs])
        for value, first, many in runs:
            left[value] -= 1
            yield self._all(value, keep=left[value] > 0)[first : first + many]

    def _all(self, value: bytes, *, keep: bool) -> list[bytes]:
        texts = self._known.get(value) or self._shared_texts(value)
        if not keep or len(texts) == 1:
            self._known.pop(value, None)
        elif value not in self._known:
            if len(self._known) == ROWS_REMEMBERED:
                self._known.clear()
            self._known[value] = texts
        return texts

    def _shared_texts(self, value: bytes) -> list[bytes]:
        if self._shared is None or value[:1] != MARKED:
            return self.texts(value)
        shared = self._shared.get(value)
        if shared is None:
            shared = Texts(self.texts(value))
            shared.size = sum(map(len, shared)) + len(value)
            self._shared.put(value, shared)
        return shared

    def text(self, run: Run) -> bytes:
        """Of a run of one."""
        return self._all(run.value, keep=True)[run.first]


def find_texts(cursor: Cursor, serials: Sequence[int]) -> list[Run] | None:
    """For each serial in turn the row that holds its text; None if one is nowhere."""
    found: list[Run] = []
    at = first = end = 0
    value = b""
    lengths: Sequence[int] = ()
    while at < len(serials):
        serial = serials[at]
        if not first <= serial < end:
            if not _stand(cursor, serial):
                return None
            key, stored = cursor.item()
            value = without_sum("metadata", key, stored)
            first, chunk = numbers_in(key)
            lengths = lengths_in(value)
            end = first + len(lengths)
            if chunk or not first <= serial < end:
                return None
        run = Run(value, serial - first, _in_a_row(serials[at : at + end - serial]))
        if not all(lengths[run.first : run.first + run.many]):
            return None
        found.append(run)
        at += run.many
    return found


def _in_a_row(serials: Sequence[int]) -> int:
    """How many of these follow each other, from the first on."""
    expected = range(serials[0], serials[0] + len(serials))
    if list(serials) == list(expected):
        return len(serials)
    return next(number for number, serial in enumerate(expected) if serials[number] != serial)


def numbers_in(key: bytes) -> tuple[int, int]:
    """Serial and chunk."""
    return int.from_bytes(key[:_SERIAL], "big"), int.from_bytes(key[_SERIAL:], "big")


def _stand(cursor: Cursor, serial: int) -> bool:
    """On the row that begins with this serial, else on the one before it. Mostly it is the next."""
    wanted = chunk_key(serial, 0)
    if cursor.key() and cursor.next() and cursor.key() == wanted:
        return True
    return _seek(cursor, wanted)


def _seek(cursor: Cursor, wanted: bytes) -> bool:
    if cursor.set_range(wanted):
        return bool(cursor.key() == wanted or cursor.prev())
    return bool(cursor.last())


def remove_texts(cursor: Cursor, serials: Iterable[int]) -> None:
    """The texts of these serials, in ascending order."""
    waiting = deque(serials)
    while waiting:
        serial = waiting.popleft()
        wanted = chunk_key(serial, 0)
        if cursor.key() != wanted and not _seek(cursor, wanted):
            continue
        key, value = cursor.item()
        if value[:1] != MARKED:
            while cursor.key().startswith(wanted[:_SERIAL]):
                cursor.delete()
            continue
        first, gone = numbers_in(key)[0], {serial}
        end = first + len(lengths_in(value))
        while waiting and waiting[0] < end:
            gone.add(waiting.popleft())
        if serial < end:
            _remove_some(cursor, {one - first for one in gone})


def _remove_some(cursor: Cursor, gone: Set[int]) -> None:
    """Of the texts in the row that the cursor stands on."""
    key = cursor.key()
    value = without_sum("metadata", key, cursor.value())
    left = {number for number, length in enumerate(lengths_in(value)) if length} - gone
    if not left:
        cursor.delete()
        return
    texts = [text if number in left else b"" for number, text in enumerate(Inflating().texts(value))]
    cursor.put(key, with_sum(key, packed(texts)))


def texts_at(key: bytes, stored: bytes) -> Iterator[tuple[int, int]]:
    """Serial and chunk of each text, or part of one, that a row holds, whatever its checksum says."""
    first, chunk = numbers_in(key)
    try:
        lengths = lengths_in(stored)
    except StoreCorrupt:
        lengths = (1,)
    return ((first + number, chunk) for number, length in enumerate(lengths) if length)

"""Metadata texts of instances: rows that several texts share, and the texts that a search reads.

    metadata    serial u64, chunk u32  -> a zstd frame: one chunk of the text of this serial, or
                serial u64, 0 u32      -> 0x00, count u8, count times length u32, zstd frame:
                                          the texts of `count` serials from this one on

Strategy: the texts of a series repeat each other. Sixteen texts of a CT in one frame take as many bytes as a
text alone. They are compressed in a tenth of the time and read in a fifth. The serials of a commit follow
each other, so the row of a text is the last one whose key is not behind its own.

A search reads attributes that are not in index rows from these texts. The tag is looked for in the bytes of
the JSON. Most texts do not have it, and are not parsed. A short text with the tag is parsed whole. Of a long
text only the attribute is parsed, within the bytes that all searches of a worker may parse at once
(budget.Parsing).

Rules of this file
- Only short texts share a row, so that reading a text costs little more than before.
- A text is removed with its instance: the row is written again without it (its length is 0 then), and deleted
  with its last text.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import accumulate, pairwise
from typing import NamedTuple

import zstandard

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.text import elements_in, names_any
from streamsrv.errors import ContentTooLarge, StoreCorrupt
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Condition
from streamsrv.store.index.rows import chunk_key, json_object, number_key, with_sum, without_sum
from streamsrv.store.ordered_map import Cursor, OrderedMap
from streamsrv.store.rows import METADATA_CHUNK

TEXTS_TOGETHER = 16
BYTES_TOGETHER = 128 << 10  # of text
MARKED = b"\0"  # a zstd frame begins with 0x28 (RFC 8878 3.1.1)
# Rows whose texts are kept while many are read: a series may be in any order.
ROWS_KEPT = 32

_SERIAL = 8  # bytes of a key
_HEAD = struct.Struct("<xB")

SHORT = 64 << 10  # bytes of a text that is parsed whole: at most 2 MB of objects


class _Compressors(threading.local):
    """One compressor a thread: two threads in one write over each other's memory."""

    def __init__(self) -> None:
        # Level 1: 10 us for a CT's 5.3 kB; higher levels save 8 % at twice the time.
        self.mine = zstandard.ZstdCompressor(level=1, write_content_size=True)


_compressors = _Compressors()


def compressed(text: bytes) -> bytes:
    """A zstd frame."""
    return _compressors.mine.compress(text)


# On the way into the index


class SharedBlob:
    """The row of several texts, while they are on their way into the index."""

    __slots__ = ("count", "row")

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.count = len(texts)
        self.row = pack_blob(texts)

    def of(self, places: Sequence[int]) -> bytes:
        """The row of some of them, in ascending order."""
        if len(places) == self.count:
            return self.row
        texts = BlobReader().texts(self.row)
        chosen = [texts[place] for place in places]
        return pack_blob(chosen) if len(chosen) > 1 else compressed(chosen[0])


class BlobPlace(NamedTuple):
    texts: SharedBlob
    number: int


def share_blobs(texts: Sequence[bytes]) -> list[BlobPlace | None]:
    """The place of each text; None if it is empty or has no neighbour."""
    found: list[BlobPlace | None] = []
    for portion in _portions(texts):
        if len(portion) > 1:
            kept = SharedBlob(portion)
            found += (BlobPlace(kept, number) for number in range(len(portion)))
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


def pack_blob(texts: Sequence[bytes]) -> bytes:
    lengths = struct.pack(f"<{len(texts)}I", *map(len, texts))
    return _HEAD.pack(len(texts)) + lengths + compressed(b"".join(texts))


# In the index

UNREADABLE = "stored metadata cannot be read: run check, then reindex"


class BlobRange(NamedTuple):
    """`many` texts of a row, from the text `first` on."""

    value: bytes
    first: int
    many: int


def lengths_in(value: bytes) -> tuple[int, ...]:
    """The lengths of the texts of a row, 0 for a deleted text. A row with one frame gives (1,)."""
    if value[:1] != MARKED:
        return (1,)
    try:
        return struct.unpack_from(f"<{value[1]}I", value, _HEAD.size)
    except (struct.error, IndexError) as error:
        raise StoreCorrupt(UNREADABLE) from error


class BlobTexts(list[bytes]):
    """The texts of a row; `size` is about their memory and that of the row."""

    size: int


class Decompressors(threading.local):
    """`mine` is that of the thread. A new one takes 23 us, a short text 2 us."""

    def __init__(self) -> None:
        self.mine = zstandard.ZstdDecompressor()


class BlobReader:
    """Decompresses rows. Used by one thread; `shared` is a cache for all threads, keyed by row."""

    def __init__(
        self,
        shared: SizedCache[bytes, BlobTexts] | None = None,
        decompressors: Decompressors | None = None,
    ) -> None:
        self._decompressors = decompressors
        self._known: dict[bytes, list[bytes]] = {}
        self._shared = shared

    def frame(self, frame: bytes) -> bytes:
        if self._decompressors is None:  # most searches read no metadata
            self._decompressors = Decompressors()
        try:
            return self._decompressors.mine.decompress(frame, max_output_size=METADATA_CHUNK)
        except zstandard.ZstdError as error:
            raise StoreCorrupt(UNREADABLE) from error

    def texts(self, value: bytes) -> list[bytes]:
        """All texts of a row."""
        if value[:1] != MARKED:
            return [self.frame(value)]
        lengths = lengths_in(value)
        whole = self.frame(value[_HEAD.size + 4 * len(lengths) :])
        if len(whole) != sum(lengths):
            raise StoreCorrupt(UNREADABLE)
        return [whole[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]

    def each(self, ranges: Sequence[BlobRange]) -> Iterator[list[bytes]]:
        """The texts of each range in turn. A row that is not needed again is dropped at once, so that the
        next row uses its memory."""
        left = Counter([each.value for each in ranges])
        for value, first, many in ranges:
            left[value] -= 1
            yield self._all(value, keep=left[value] > 0)[first : first + many]

    def _all(self, value: bytes, *, keep: bool) -> list[bytes]:
        texts = self._known.get(value) or self._shared_texts(value)
        if not keep or len(texts) == 1:
            self._known.pop(value, None)
        elif value not in self._known:
            if len(self._known) == ROWS_KEPT:
                self._known.clear()
            self._known[value] = texts
        return texts

    def _shared_texts(self, value: bytes) -> list[bytes]:
        if self._shared is None or value[:1] != MARKED:
            return self.texts(value)
        shared = self._shared.get(value)
        if shared is None:
            shared = BlobTexts(self.texts(value))
            shared.size = sum(map(len, shared)) + len(value)
            self._shared.put(value, shared)
        return shared

    def text(self, run: BlobRange) -> bytes:
        """The text of a range of one."""
        return self._all(run.value, keep=True)[run.first]


def find_blobs(cursor: Cursor, serials: Sequence[int]) -> list[BlobRange] | None:
    """The ranges that hold the texts of the serials, in their order; None if a text is missing."""
    found: list[BlobRange] = []
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
        run = BlobRange(value, serial - first, _in_a_row(serials[at : at + end - serial]))
        if not all(lengths[run.first : run.first + run.many]):
            return None
        found.append(run)
        at += run.many
    return found


def _in_a_row(serials: Sequence[int]) -> int:
    """How many serials, from the first on, follow each other."""
    expected = range(serials[0], serials[0] + len(serials))
    if list(serials) == list(expected):
        return len(serials)
    return next(number for number, serial in enumerate(expected) if serials[number] != serial)


def numbers_in(key: bytes) -> tuple[int, int]:
    """Serial and chunk."""
    return int.from_bytes(key[:_SERIAL], "big"), int.from_bytes(key[_SERIAL:], "big")


def _stand(cursor: Cursor, serial: int) -> bool:
    """Move to the row that begins with this serial (usually the next row), else to the row before it."""
    wanted = chunk_key(serial, 0)
    if cursor.key() and cursor.next() and cursor.key() == wanted:
        return True
    return _seek(cursor, wanted)


def _seek(cursor: Cursor, wanted: bytes) -> bool:
    if cursor.set_range(wanted):
        return bool(cursor.key() == wanted or cursor.prev())
    return bool(cursor.last())


def remove_metadata(cursor: Cursor, serials: Iterable[int]) -> None:
    """Remove the texts of these serials, which are ascending."""
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
    """Remove texts from the row at the cursor."""
    key = cursor.key()
    value = without_sum("metadata", key, cursor.value())
    left = {number for number, length in enumerate(lengths_in(value)) if length} - gone
    if not left:
        cursor.delete()
        return
    texts = [text if number in left else b"" for number, text in enumerate(BlobReader().texts(value))]
    cursor.put(key, with_sum(key, pack_blob(texts)))


def texts_in_row(key: bytes, stored: bytes) -> Iterator[tuple[int, int]]:
    """Serial and chunk of each text, or part of one, of a row, even if its checksum is wrong."""
    first, chunk = numbers_in(key)
    try:
        lengths = lengths_in(stored)
    except StoreCorrupt:
        lengths = (1,)
    return ((first + number, chunk) for number, length in enumerate(lengths) if length)


@contextlib.contextmanager
def attributes_in(
    pieces: Callable[[], Iterable[bytes]],
    tags: Collection[str],
    parsing: Parsing,
    length: int,
    no_sequences: Collection[str] = (),
) -> Iterator[JsonDataset]:
    """During the block, the attributes with these tags at the top level of a text of `length` bytes, without
    its slots; sequences among `no_sequences` are left out. Raises ContentTooLarge if they are too long to
    parse, and Overloaded as `parsing` does."""
    found = elements_in(pieces(), tags, SHORT, no_sequences)
    if found is not None:
        yield _parsed(found)
        return
    with parsing.hold(length):
        found = elements_in(pieces(), tags, parsing.most, no_sequences)
        if found is None:
            raise ContentTooLarge(
                f"an instance has more than {parsing.most:,} bytes of metadata in "
                f"{', '.join(sorted(tags))}: narrow the search by a UID"
            )
        yield _parsed(found)


def _parsed(found: Mapping[str, bytes]) -> JsonDataset:
    return {tag: json_object(text.replace(b"\0", b"")) for tag, text in found.items()}


class SearchedMetadata:
    """The metadata that one search reads."""

    def __init__(
        self, environment: OrderedMap, budget: Budget, parsing: Parsing, conditions: Sequence[Condition]
    ) -> None:
        self._environment = environment
        self._handle = environment.handles["metadata"]
        self._budget = budget
        self._parsing = parsing
        self._conditions = conditions
        self._tags = frozenset(tag for condition in conditions for tag in condition.tags)
        through = {tag for each in conditions for tag in each.tags if tag not in each.values}
        self._values = self._tags - through
        self._texts = BlobReader()

    def accept(self, serial: int) -> bool:
        """Whether the metadata of the instance meet all conditions. Raises ContentTooLarge when the budget is
        spent."""
        if not self._conditions:
            return True
        if not self._budget.spend(metadata=1):
            return False
        first, frames = self._stored(serial)
        with self._parsing.turn() if frames else contextlib.nullcontext():
            return self._matches(first, frames)

    def _matches(self, first: Sequence[BlobRange], frames: Sequence[bytes]) -> bool:
        pieces = self._pieces(first, frames)
        if not frames:
            text = b"".join(pieces())
            if not names_any([text], self._tags):
                return self._decide({})
            if len(text) <= SHORT:
                return self._decide(json_object(text.replace(b"\0", b"")))
        elif not names_any(pieces(), self._tags):
            return self._decide({})
        length = (1 + len(frames)) * METADATA_CHUNK
        with attributes_in(pieces, self._tags, self._parsing, length, self._values) as found:
            return self._decide(found)

    def _decide(self, found: JsonDataset) -> bool:
        return all(condition.accepts(found) for condition in self._conditions)

    def _stored(self, serial: int) -> tuple[list[BlobRange], list[bytes]]:
        """The beginning of the text, and the compressed chunks that follow it."""
        start, frames = number_key(serial), []
        with self._environment.reading("searching metadata") as transaction:
            cursor = transaction.cursor(db=self._handle)
            first = find_blobs(cursor, [serial])
            more = cursor.set_range(chunk_key(serial, 1))
            while more and cursor.key().startswith(start):
                frames.append(without_sum("metadata", cursor.key(), cursor.value()))
                more = cursor.next()
        return first or [], frames

    def _pieces(self, first: Sequence[BlobRange], frames: Sequence[bytes]) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            for run in first:
                yield self._charged(self._texts.text(run))
            for frame in frames:
                yield self._charged(self._texts.frame(frame))

        return pieces

    def _charged(self, text: bytes) -> bytes:
        self._budget.spend(metadata=len(text))
        return text

"""Attributes that are not in index rows: a search reads them from the metadata of an instance.

Strategy: the tag is looked for in the bytes of the JSON text. Most texts do not have it, and are not parsed.
A short text with the tag is parsed whole. Of a long text only the attribute is parsed, within the bytes that
all searches of a worker may parse at once (budget.Parsing)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.text import elements_in, names_any
from streamsrv.errors import ContentTooLarge
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Condition
from streamsrv.store.index.environment import Environment
from streamsrv.store.index.metadata_blobs import BlobRange, BlobReader, find_blobs
from streamsrv.store.index.rows import chunk_key, json_object, number_key, without_sum
from streamsrv.store.rows import METADATA_CHUNK

SHORT = 64 << 10  # bytes of a text that is parsed whole: at most 2 MB of objects


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
        self, environment: Environment, budget: Budget, parsing: Parsing, conditions: Sequence[Condition]
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

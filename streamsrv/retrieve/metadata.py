"""Metadata of the instances of a target resource: a DICOM JSON array (PS3.18 10.4.1.2, Annex F).

Strategy: the text was made when the instance was stored, with one byte 0x00 wherever the instance's own URL
belongs. So the length of the answer is arithmetic over the rows, and making it is decompressing and one
`bytes.replace` a chunk. It goes out in pieces of some hundred kilobytes: while one is made the one before is
being sent, and the memory that they are made in is used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from streamsrv.errors import StoreCorrupt
from streamsrv.retrieve.selection import Selection
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire.resources import instance_url

ROWS_AT_ONCE = 256
# The first piece comes soon; each of the others costs a turn through a thread.
FIRST_PIECE = 64 << 10
PIECE = 384 << 10


def metadata_length(selection: Selection, base_url: str) -> int:
    around = len(instance_url(base_url, "", "", "")) - 1
    total = 2 + max(selection.count - 1, 0)
    for row in selection.rows():
        total += row.metadata_length
        if row.metadata_slots:
            total += row.metadata_slots * (around + sum(map(len, row.key)))
    return total


def metadata_text(store: Store, selection: Selection, base_url: str) -> Iterator[bytes]:
    return json_array(text for _, text in instance_texts(store, selection, base_url))


def json_array(texts: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """An array of what the texts are, in pieces."""
    waiting, length, enough = [b"["], 1, FIRST_PIECE
    for number, text in enumerate(texts):
        if number:
            waiting.append(b",")
        for chunk in text:
            waiting.append(chunk)
            length += len(chunk)
            if length >= enough:
                yield b"".join(waiting)
                waiting, length, enough = [], 0, PIECE
    waiting.append(b"]")
    yield b"".join(waiting)


def instance_texts(
    store: Store, selection: Selection, base_url: str
) -> Iterator[tuple[InstanceRow, Iterable[bytes]]]:
    """Each instance with the chunks of its JSON text, to be taken before the next one is."""
    rows = selection.rows()
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        chunks = store.metadata(batch)
        for row in batch:
            yield row, instance_text(chunks, row, instance_url(base_url, *row.key).encode())


def instance_text(chunks: Iterator[bytes], row: InstanceRow, url: bytes) -> Iterable[bytes]:
    """The chunks of one instance, with its URL in every slot. Chunks never span two instances."""
    first = next(chunks, b"")
    if len(first) == row.metadata_length:
        return (first.replace(b"\0", url),)
    return _several(chain((first,), chunks), row, url)


def _several(chunks: Iterator[bytes], row: InstanceRow, url: bytes) -> Iterator[bytes]:
    left = row.metadata_length
    while left > 0:
        chunk = next(chunks, b"")
        if not chunk or len(chunk) > left:
            raise StoreCorrupt(
                f"the metadata of an instance is not the {row.metadata_length} bytes that its row says"
            )
        left -= len(chunk)
        yield chunk.replace(b"\0", url)


def within(chunks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """The bytes [start, stop) of what the chunks hold."""
    at = 0
    for chunk in chunks:
        low, high = max(start - at, 0), min(stop - at, len(chunk))
        if low < high:
            yield chunk[low:high] if high - low < len(chunk) else chunk
        at += len(chunk)
        if at >= stop:
            return

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
from streamsrv.store.index_places import unpacked
from streamsrv.store.rows import SHORT_TEXT, InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire.resources import instance_url

ROWS_AT_ONCE = 256
# The first piece comes soon; each of the others costs a turn through a thread.
FIRST_PIECE = 64 << 10
PIECE = 384 << 10
WRONG = "the metadata of an instance is not the %d bytes that its row says"


def lengths(selection: Selection, base_url: str) -> tuple[int, int]:
    """Of all texts as they are kept, and of the array of them with URLs in it."""
    around = len(instance_url(base_url, "", "", "")) - 1
    kept = urls = 0
    for length, slots, uids in _facts(selection):
        kept += length
        urls += slots * (around + uids)
    return kept, kept + urls + 2 + max(selection.count - 1, 0)


def _facts(selection: Selection) -> Iterator[tuple[int, int, int]]:
    """Of each instance the length of its text, its slots, and the length of its UIDs."""
    found = selection.found
    if found is None:
        for row in selection.rows():
            yield row.metadata_length, row.metadata_slots, sum(map(len, row.key))
    else:
        for (length, slots), (key, _) in zip(found.metadata(), found.packed, strict=True):
            yield length, slots, len(key) - 2  # without what stands between them


def metadata_text(store: Store, selection: Selection, base_url: str) -> Iterator[bytes]:
    return json_array(texts(store, selection, base_url))


def texts(store: Store, selection: Selection, base_url: str) -> Iterator[Iterable[bytes]]:
    """The chunks of each instance's JSON text, to be taken before the next one is."""
    found = selection.found
    if found is None:
        yield from (text for _, text in instance_texts(store, selection.rows(), base_url))
        return
    for start in range(0, found.count, ROWS_AT_ONCE):
        chosen = slice(start, start + ROWS_AT_ONCE)
        rows, facts = found.packed[chosen], found.metadata()[chosen]
        # Many longer ones would be too much at once.
        kept = store.texts(rows) if max(facts)[0] <= SHORT_TEXT else None
        if kept is None:
            yield from (text for _, text in instance_texts(store, map(unpacked, rows), base_url))
            continue
        for (key, _), (length, slots), text in zip(rows, facts, kept, strict=True):
            if len(text) != length:
                raise StoreCorrupt(WRONG % length)
            yield (text.replace(b"\0", url_of(base_url, key)) if slots else text,)


def url_of(base_url: str, key: bytes) -> bytes:
    """Of an instance, by its packed key."""
    study, series, instance = key.split(b"\0")
    return b"%b/studies/%b/series/%b/instances/%b" % (base_url.encode(), study, series, instance)


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
    store: Store, instances: Iterable[InstanceRow], base_url: str
) -> Iterator[tuple[InstanceRow, Iterable[bytes]]]:
    """Each instance with the chunks of its JSON text, to be taken before the next one is."""
    rows = iter(instances)
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
            raise StoreCorrupt(WRONG % row.metadata_length)
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

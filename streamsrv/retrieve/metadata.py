"""Metadata of the instances of a target resource: a DICOM JSON array (PS3.18 10.4.1.2, Annex F).

Strategy: the text was made when the instance was stored, with one byte 0x00 wherever the instance's own URL
belongs. So the length of the answer is arithmetic over the rows, and making it is decompressing and one
`bytes.replace` a chunk. It goes out in pieces about as long as the texts that are kept together: such a piece
is made and sent within the processor's cache, and the next one in the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from streamsrv.errors import StoreCorrupt
from streamsrv.plans.selection import Selection
from streamsrv.store import SHORT_TEXT, InstanceRow, PackedRow, Store, unpacked
from streamsrv.wire.resources import instance_url

ROWS_AT_ONCE = 256
PIECE = 64 << 10
WRONG = "the metadata of an instance is not the %d bytes that its row says"


def lengths(selection: Selection, base_url: str) -> tuple[int, int]:
    """Of all texts as they are kept, and of the array of them with URLs in it."""
    # A URL takes the place of a byte; in the key of a row there are two more between its UIDs.
    around, found = len(instance_url(base_url, "", "", "")) - 1, selection.found
    kept = urls = 0
    if found is None:
        for row in selection.rows():
            kept += row.metadata_length
            urls += row.metadata_slots * (around + sum(map(len, row.key)))
    else:
        facts = found.metadata()
        kept = sum([length for length, _ in facts])
        urls = sum(
            [
                slots * (around - 2 + len(key))
                for (_, slots), (key, _) in zip(facts, found.packed, strict=True)
            ]
        )
    return kept, kept + urls + 2 + max(selection.count - 1, 0)


def metadata_text(store: Store, selection: Selection, base_url: str) -> Iterator[bytes]:
    return json_array(texts(store, selection, base_url))


def texts(store: Store, selection: Selection, base_url: str) -> Iterator[Iterable[bytes]]:
    """The chunks of each instance's JSON text, or of several with commas between them, to be taken before
    the next one is."""
    found = selection.found
    if found is None:
        yield from (text for _, text in instance_texts(store, selection.rows(), base_url))
        return
    for start in range(0, found.count, ROWS_AT_ONCE):
        chosen = slice(start, start + ROWS_AT_ONCE)
        rows, facts = found.packed[chosen], found.metadata()[chosen]
        # Many longer ones would be too much at once.
        kept = store.short_metadata(rows) if max(facts)[0] <= SHORT_TEXT else None
        if kept is None:
            yield from (text for _, text in instance_texts(store, map(unpacked, rows), base_url))
            continue
        urls, at = urls_of(base_url, rows), 0
        for some in kept:
            end = at + len(some)
            if list(map(len, some)) != [length for length, _ in facts[at:end]]:
                raise StoreCorrupt(WRONG % facts[at][0])
            pairs = zip(some, urls[at:end], strict=True)
            yield (b",".join([text.replace(b"\0", url) for text, url in pairs]),)
            at = end


def urls_of(base_url: str, rows: Iterable[PackedRow]) -> list[bytes]:
    """Of instances, by their packed keys."""
    found: list[bytes] = []
    known, before = None, b""
    for key, _ in rows:
        above, _, instance = key.rpartition(b"\0")
        if above != known:
            study, series = above.decode().split("\0")
            known, before = above, instance_url(base_url, study, series, "").encode()
        found.append(before + instance)
    return found


def json_array(texts: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """An array of what the texts are, in pieces."""
    waiting, length = [b"["], 1
    for number, text in enumerate(texts):
        if number:
            waiting.append(b",")
        for chunk in text:
            waiting.append(chunk)
            length += len(chunk)
            if length >= PIECE:
                yield b"".join(waiting)
                waiting, length = [], 0
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

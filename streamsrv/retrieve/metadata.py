"""Metadata answers: DICOM JSON or Native DICOM Models (PS3.18 10.4.1.2, 8.7.3, Annex F), whole or with
selected attributes, compressed or not.

Strategy: the JSON text of an instance is made when it is stored, with a byte 0x00 wherever its own URL
belongs. So the length of a JSON array is computed from the rows, and its text needs one `bytes.replace` a
chunk. The pieces are as long as the texts that are stored together: a piece is made and sent in the cache
of the processor. Any other body is made at once if its text is short, else while it is sent. Compressed
bodies and short texts stay in the cache of the pixel pool, by ETag: viewers request the metadata of a
series again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

import orjson

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.json.text import WHOLE
from streamsrv.dicom.nativexml import native_xml
from streamsrv.dicom.tags import TRANSFER_SYNTAX_UID
from streamsrv.errors import StoreCorrupt
from streamsrv.plans.field_filter import Fields, fields_of, lean_text, lean_whole
from streamsrv.plans.selection import Selection
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.turns import Turns
from streamsrv.store import SHORT_TEXT, InstanceRow, PackedRow, Store, unpacked
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, ByteStream, Literal, Piece
from streamsrv.wire.codings import IDENTITY, WORTH_CODING, check_charset, choose_coding, encoded
from streamsrv.wire.conditional import etag_of, evaluate, not_modified
from streamsrv.wire.mediatypes import DICOM_XML
from streamsrv.wire.multipart import PAYLOAD_END, boundary_from, closing, multipart_type, part_head
from streamsrv.wire.resources import instance_url

CACHING = (("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "private, no-cache"))
# A body whose text is up to this long is cut or compressed at once: the metadata of about 150 CT instances.
AT_ONCE = 1 << 20
# An array without a coding up to this long is one piece.
TEXT_AT_ONCE = 128 << 10
# The text of an instance up to this long is made in the loop.
INLINE = 16 << 10
# A compressed body up to this long is kept for the next request: 3,000 CT instances have 1 MB.
KEPT = 4 << 20
# Stands for an array that was requested once. It is kept at the second request: the pieces of an answer that
# is not kept share their memory, and fresh memory costs more than making the text.
REQUESTED = b"requested once".ljust(256)
ROWS_AT_ONCE = 256
PIECE = 64 << 10
WRONG = "the metadata of an instance is not the %d bytes that its row says"

Cache: TypeAlias = SizedCache[Hashable, bytes]
MakeBody: TypeAlias = Callable[[], Iterator[bytes]]  # the same bytes at each call


def metadata(retrieval: Retrieval) -> Answer | None:
    request, selection = retrieval.request, retrieval.selection
    check_charset(request)
    offer = accept.choose_json(retrieval.ranges(), accept.METADATA_OFFERS)
    fields = fields_of(request.query)
    length, whole = lengths(selection, request.base_url)
    coding = choose_coding(request.headers.get("accept-encoding")) if length >= WORTH_CODING else IDENTITY
    etag = etag_of([selection.digest], offer.media_type, request.base_url, fields.identity, coding)
    boundary = boundary_from(retrieval.store.secret, etag) if offer.multipart else b""
    content_type = multipart_type(boundary, offer.media_type) if offer.multipart else offer.media_type
    headers = [("Content-Type", content_type), *CACHING]
    headers += [("Content-Encoding", coding)] if coding else []
    headers += [("Warning", f'299 streamsrv "{text}"') for text in fields.warnings]
    if not_modified(request, etag):
        return evaluate(request, Answer(200, headers), etag)
    if retrieval.brief and (length > INLINE or fields.tree is not None or offer.multipart):
        return None
    body = body_of(retrieval, fields, offer.media_type, boundary)
    if coding:
        piece = compressed_piece(retrieval, body, coding, length <= AT_ONCE, etag)
    elif fields.tree is None and not offer.multipart:
        piece = text_piece(retrieval, etag, whole)
    else:
        piece = made_piece(body, length <= AT_ONCE, retrieval.turns)
    return evaluate(request, Answer(200, headers, (piece,), piece.length), etag)


# Bodies


def body_of(retrieval: Retrieval, fields: Fields, media_type: str, boundary: bytes) -> MakeBody:
    if media_type == DICOM_XML:
        return partial(xml_body, retrieval, fields, boundary)
    return partial(json_body, retrieval, fields)


def cut_texts(retrieval: Retrieval, fields: Fields) -> Iterator[tuple[InstanceRow, Iterable[bytes]]]:
    """Each instance with the selected attributes of its JSON text."""
    rows, base_url = retrieval.selection.rows(), retrieval.request.base_url
    for row, text in instance_texts(retrieval.store, rows, base_url):
        if fields.tree is None:
            yield row, text
            continue
        short = row.metadata_length <= WHOLE
        cut = iter([lean_whole(b"".join(text), fields.tree)]) if short else lean_text(text, fields.tree)
        yield row, with_syntax(row, cut) if TRANSFER_SYNTAX_UID in fields.tree else cut


def with_syntax(row: InstanceRow, text: Iterator[bytes]) -> Iterator[bytes]:
    """An extension: the file meta information is not in the metadata, but clients of another service ask for
    its transfer syntax. Its tag is the lowest, and a selection always has the UIDs."""
    element = orjson.dumps({TRANSFER_SYNTAX_UID: {"vr": "UI", "Value": [row.transfer_syntax]}})
    yield element[:-1] + b"," + next(text)[1:]
    yield from text


def json_body(retrieval: Retrieval, fields: Fields) -> Iterator[bytes]:
    if fields.tree is None:
        return metadata_text(retrieval.store, retrieval.selection, retrieval.request.base_url)
    return json_array(text for _, text in cut_texts(retrieval, fields))


def xml_body(retrieval: Retrieval, fields: Fields, boundary: bytes) -> Iterator[bytes]:
    """A part with a document for each instance."""
    for row, text in cut_texts(retrieval, fields):
        location = f"{instance_url(retrieval.request.base_url, *row.key)}/metadata"
        yield part_head(boundary, {"Content-Type": DICOM_XML, "Content-Location": location})
        yield from native_xml(text)
        yield PAYLOAD_END
    yield closing(boundary)


# Pieces


def made_piece(body: MakeBody, at_once: bool, turns: Turns) -> Piece:
    if at_once:
        return Literal(b"".join(body()))
    return ByteStream(lambda start, stop: turns.of(encoded(body(), IDENTITY)), None)


def text_piece(retrieval: Retrieval, etag: str, length: int) -> Piece:
    """The whole array. A long one is kept at the second request, one of a single piece at once. A very short
    one is never kept, because it is made as quickly."""
    key, cache = ("metadata", etag), retrieval.pool.cache
    kept = cache.get(key)
    if kept not in (None, REQUESTED):
        return Literal(kept)
    store, selection, base_url = retrieval.store, retrieval.selection, retrieval.request.base_url
    if length <= TEXT_AT_ONCE:
        piece = Literal(b"".join(metadata_text(store, selection, base_url)))
        if length > INLINE:
            cache.put(key, piece.payload)
        return piece
    if kept is None and length <= KEPT:
        cache.put(key, REQUESTED)

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        text, end = metadata_text(store, selection, base_url), length if stop is None else stop
        if kept is REQUESTED and end - start == length <= KEPT:
            return keeping(text, cache, key, length)
        return within(text, start, end)

    return ByteStream(chunks, length, quick=True)


def compressed_piece(retrieval: Retrieval, body: MakeBody, coding: str, at_once: bool, etag: str) -> Piece:
    """A kept body, or one that is made now or while it is sent."""
    key, cache, turns = ("metadata", etag), retrieval.pool.cache, retrieval.turns
    kept = cache.get(key)
    if kept is not None:
        return Literal(kept)
    if at_once:
        made = Literal(b"".join(encoded(body(), coding)))
        cache.put(key, made.payload)
        return made
    return ByteStream(lambda start, stop: turns.of(keeping(encoded(body(), coding), cache, key)), None)


def keeping(
    chunks: Iterable[bytes], cache: Cache, key: Hashable, total: int | None = None
) -> Iterator[bytes]:
    """The chunks, which are put into the cache after the last one. With `total` bytes they are put there
    before it, because the consumer stops at that length."""
    kept: list[bytes] = []
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length <= KEPT:
            kept.append(chunk)
        else:
            kept.clear()
        if length == total:
            cache.put(key, b"".join(kept))
        yield chunk
    if total is None and length <= KEPT:
        cache.put(key, b"".join(kept))


# JSON text


def lengths(selection: Selection, base_url: str) -> tuple[int, int]:
    """The length of all stored texts, and of the array of them with URLs."""
    # A URL replaces a byte; the key of a row has two more bytes between its UIDs.
    around, packed = len(instance_url(base_url, "", "", "")) - 1, selection.packed
    kept = urls = 0
    if packed is None:
        for row in selection.rows():
            kept += row.metadata_length
            urls += row.metadata_slots * (around + sum(map(len, row.key)))
    else:
        facts = packed.metadata()
        kept = sum([length for length, _ in facts])
        urls = sum(
            [
                slots * (around - 2 + len(key))
                for (_, slots), (key, _) in zip(facts, packed.packed, strict=True)
            ]
        )
    return kept, kept + urls + 2 + max(selection.count - 1, 0)


def metadata_text(store: Store, selection: Selection, base_url: str) -> Iterator[bytes]:
    return json_array(texts(store, selection, base_url))


def texts(store: Store, selection: Selection, base_url: str) -> Iterator[Iterable[bytes]]:
    """The chunks of the JSON text of each instance, or of several with commas between them. A text is
    consumed before the next one is taken."""
    packed = selection.packed
    if packed is None:
        yield from (text for _, text in instance_texts(store, selection.rows(), base_url))
        return
    for start in range(0, packed.count, ROWS_AT_ONCE):
        chosen = slice(start, start + ROWS_AT_ONCE)
        rows, facts = packed.packed[chosen], packed.metadata()[chosen]
        # Long texts would take too much memory at once.
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
    """The URLs of instances, by their packed keys."""
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
    """A JSON array of the texts, in pieces."""
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
    """Each instance with the chunks of its JSON text, which are consumed before the next instance is
    taken."""
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
    """The bytes [start, stop) of the chunks."""
    at = 0
    for chunk in chunks:
        low, high = max(start - at, 0), min(stop - at, len(chunk))
        if low < high:
            yield chunk[low:high] if high - low < len(chunk) else chunk
        at += len(chunk)
        if at >= stop:
            return

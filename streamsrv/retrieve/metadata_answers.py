"""Metadata as an answer: DICOM JSON or Native DICOM Models (PS3.18 10.4.1.2, 8.7.3), whole or lean,
compressed or not.

Strategy: the instances are a stream of (row, JSON text); `lean` cuts each text to what was asked for, an
envelope makes one body of them (a JSON array, or multipart with a document each), a coding compresses the
body. The length of the whole JSON array is arithmetic over rows; any other body is made at once if its text
is short, and while it is being sent if it is not. What was compressed is kept in the cache that pictures
share, by its ETag, and so is text that was made at once: viewers ask for the metadata of a series again and
again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Protocol

from streamsrv.dicom.json.text import WHOLE
from streamsrv.dicom.xml.writer import native_xml
from streamsrv.plans.field_filter import Fields, fields_of, lean_text, lean_whole
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.metadata import instance_texts, json_array, lengths, metadata_text, within
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Literal, Piece, Stream
from streamsrv.wire.codings import IDENTITY, WORTH_CODING, choose_coding, encoded
from streamsrv.wire.conditional import etag_of, evaluate, not_modified
from streamsrv.wire.mediatypes import DICOM_XML
from streamsrv.wire.multipart import boundary_from, closing, multipart_type, part_head
from streamsrv.wire.resources import instance_url

CACHING = (("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "private, no-cache"))
# A body whose text is up to this long is cut or compressed at once: the metadata of about 150 CT instances.
AT_ONCE = 1 << 20
# An array without a coding up to this long is one piece.
TEXT_AT_ONCE = 128 << 10
# The text of an instance up to this long is made in the loop.
INLINE = 16 << 10
# A compressed body up to this long is kept while it is being sent, for the next who asks: 3,000 CT instances
# have 1 MB.
KEPT = 4 << 20
# Stands for a whole array that was asked for once. It is kept when it is asked for again: the pieces of an
# answer that is not kept share their memory, and fresh memory costs more than making the text.
ASKED = b"asked for once".ljust(256)

Body = Callable[[], Iterator[bytes]]  # the same bytes at each call


class Cache(Protocol):
    def get(self, key: Hashable) -> bytes | None: ...
    def put(self, key: Hashable, value: bytes) -> None: ...


def metadata(retrieval: Retrieval) -> Answer:
    request, selection = retrieval.request, retrieval.selection
    offer = accept.choose_json(retrieval.ranges(), accept.METADATA_OFFERS)
    fields = fields_of(request.query)
    length, whole = lengths(selection, request.base_url)
    coding = choose_coding(request.headers.get("accept-encoding")) if length >= WORTH_CODING else IDENTITY
    etag = etag_of([selection.digest], offer.media_type, request.base_url, fields.identity, coding)
    boundary = boundary_from(retrieval.store.secret, etag)
    content_type = multipart_type(boundary, offer.media_type) if offer.multipart else offer.media_type
    headers = [("Content-Type", content_type), *CACHING]
    headers += [("Content-Encoding", coding)] if coding else []
    headers += [("Warning", f'299 streamsrv "{text}"') for text in fields.warnings]
    if not_modified(request, etag):
        return evaluate(request, Answer(200, headers), etag)
    if length > INLINE or fields.tree is not None or offer.multipart:
        retrieval.pool.must_not_block()
    body = body_of(retrieval, fields, offer.media_type, boundary)
    if coding:
        piece = compressed_piece(body, coding, length <= AT_ONCE, retrieval.pool.cache, etag)
    elif fields.tree is None and not offer.multipart:
        piece = text_piece(retrieval, etag, whole)
    else:
        piece = made_piece(body, length <= AT_ONCE)
    return evaluate(request, Answer(200, headers, (piece,), piece.length), etag)


# Bodies


def body_of(retrieval: Retrieval, fields: Fields, media_type: str, boundary: bytes) -> Body:
    if media_type == DICOM_XML:
        return partial(xml_body, retrieval, fields, boundary)
    return partial(json_body, retrieval, fields)


def cut_texts(retrieval: Retrieval, fields: Fields) -> Iterator[tuple[InstanceRow, Iterable[bytes]]]:
    """Each instance with its JSON text, cut to the fields."""
    rows, base_url = retrieval.selection.rows(), retrieval.request.base_url
    for row, text in instance_texts(retrieval.store, rows, base_url):
        if fields.tree is None:
            yield row, text
        elif row.metadata_length <= WHOLE:
            yield row, iter([lean_whole(b"".join(text), fields.tree)])
        else:
            yield row, lean_text(text, fields.tree)


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
    yield closing(boundary)


# Pieces


def made_piece(body: Body, at_once: bool) -> Piece:
    if at_once:
        return Literal(b"".join(body()))
    return Stream(lambda start, stop: encoded(body(), IDENTITY), None)


def text_piece(retrieval: Retrieval, etag: str, length: int) -> Piece:
    """The whole array. It is kept as it goes out for the second time, or if it is one piece; not if it is so
    short that making it costs little more."""
    key, cache = ("metadata", etag), retrieval.pool.cache
    kept = cache.get(key)
    if kept not in (None, ASKED):
        return Literal(kept)
    store, selection, base_url = retrieval.store, retrieval.selection, retrieval.request.base_url
    if length <= TEXT_AT_ONCE:
        piece = Literal(b"".join(metadata_text(store, selection, base_url)))
        if length > INLINE:
            cache.put(key, piece.payload)
        return piece
    if kept is None and length <= KEPT:
        cache.put(key, ASKED)

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        text, end = metadata_text(store, selection, base_url), length if stop is None else stop
        if kept is ASKED and end - start == length <= KEPT:
            return keeping(text, cache, key, length)
        return within(text, start, end)

    return Stream(chunks, length, quick=True)


def compressed_piece(body: Body, coding: str, at_once: bool, cache: Cache, etag: str) -> Piece:
    """From the cache, or made at once, or made while it is sent."""
    key = ("metadata", etag)
    kept = cache.get(key)
    if kept is not None:
        return Literal(kept)
    if at_once:
        made = Literal(b"".join(encoded(body(), coding)))
        cache.put(key, made.payload)
        return made
    return Stream(lambda start, stop: keeping(encoded(body(), coding), cache, key), None)


def keeping(
    chunks: Iterable[bytes], cache: Cache, key: Hashable, total: int | None = None
) -> Iterator[bytes]:
    """The chunks, put into the cache behind the last one; if they are known to have `total` bytes in all,
    before it: then nobody asks whether there are more."""
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

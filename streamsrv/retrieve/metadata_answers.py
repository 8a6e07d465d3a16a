"""Metadata as an answer: DICOM JSON or Native DICOM Models (PS3.18 10.4.1.2, 8.7.3), whole or lean,
compressed or not.

Strategy: the instances are a stream of (row, JSON text); `lean` cuts each text to what was asked for, an
envelope makes one body of them (a JSON array, or multipart with a document each), a coding compresses the
body. The whole JSON array has a length that is known beforehand; all else is made at once if it is short, and
while it is being sent if it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from streamsrv.dicom.nativexml import native_xml
from streamsrv.retrieve.answering import CACHING, Retrieval
from streamsrv.retrieve.metadata import AT_ONCE, instance_texts, metadata_piece
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Literal, Piece, Stream
from streamsrv.wire.conditional import etag_of, evaluate, not_modified
from streamsrv.wire.mediatypes import DICOM_XML
from streamsrv.wire.multipart import boundary_from, closing, multipart_type, part_head
from streamsrv.wire.resources import instance_url

Body = Callable[[], Iterator[bytes]]  # the same bytes at each call


def metadata(retrieval: Retrieval) -> Answer:
    request, selection, store = retrieval.request, retrieval.selection, retrieval.store
    offer = accept.choose_json(retrieval.ranges(), accept.METADATA_OFFERS)
    etag = etag_of([selection.digest], offer.media_type, request.base_url)
    boundary = boundary_from(store.secret, etag)
    content_type = multipart_type(boundary, offer.media_type) if offer.multipart else offer.media_type
    headers = [("Content-Type", content_type), *CACHING]
    if not_modified(request, etag):
        return evaluate(request, Answer(200, headers), etag)
    if offer.media_type == DICOM_XML:
        piece = body_piece(retrieval, partial(xml_body, retrieval, boundary))
    else:
        piece = metadata_piece(store, selection, request.base_url)
    return evaluate(request, Answer(200, headers, (piece,), piece.length), etag)


def body_piece(retrieval: Retrieval, body: Body) -> Piece:
    """A literal if the text that it is made of is short."""
    if sum(row.metadata_length for row in retrieval.selection.rows()) <= AT_ONCE:
        return Literal(b"".join(body()))
    return Stream(lambda start, stop: body(), None)


def xml_body(retrieval: Retrieval, boundary: bytes) -> Iterator[bytes]:
    """A part with a document for each instance."""
    base_url = retrieval.request.base_url
    for row, text in instance_texts(retrieval.store, retrieval.selection, base_url):
        location = f"{instance_url(base_url, *row.key)}/metadata"
        yield part_head(boundary, {"Content-Type": DICOM_XML, "Content-Location": location})
        yield from native_xml(text)
    yield closing(boundary)

"""Repr-Digest on request (RFC 9530): a digest of the whole representation, whatever range of it goes out.

Strategy: a request with Want-Repr-Digest has the stored bytes of its instance read twice, through a window:
to compare them with the digest of their arrival, and to compute the digest that is asked for. So the digest
never vouches for damaged bytes: they are InstanceDamaged. Nothing is remembered, for bytes that were whole a
moment ago may have changed since.

Rules of this file
- Single instances only: their Part 10 files, frames and bulk data, stored or made. Elsewhere the wish is
  ignored.
- It is also ignored where the length is not known, or where too much would have to be read before the answer
  begins.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace

from streamsrv.pixels.transcoding import piece_chunks
from streamsrv.retrieve.answering import Retrieval
from streamsrv.wire.answers import Answer, Request
from streamsrv.wire.resources import Kind

# Active algorithms of the registry "Hash Algorithms for HTTP Digest Fields"; of equal weights the first.
ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
# Bytes of the longest instance that is read for it. A frame is short, so it is not worth reading as much.
LONGEST = {Kind.INSTANCES: 4 << 30, Kind.FRAMES: 256 << 20, Kind.BULKDATA: 256 << 20}


def wanted(request: Request) -> str | None:
    """The algorithm that Want-Repr-Digest prefers (RFC 9530 4): a dictionary of weights from 0 to 10, 0 for
    not acceptable. Members that are malformed or not known are ignored."""
    field = request.headers.get("want-repr-digest")
    if field is None:
        return None
    weights: dict[str, int] = {}
    for member in field.split(","):
        name, _, value = member.partition(";")[0].strip().partition("=")
        if name in ALGORITHMS and value.isascii() and value.isdecimal() and len(value) <= 2:
            weights[name] = int(value)
    chosen = max(ALGORITHMS, key=lambda name: weights.get(name, 0))
    return chosen if 1 <= weights.get(chosen, 0) <= 10 else None


def field_of(retrieval: Retrieval, algorithm: str, make: Callable[[Retrieval], Answer]) -> str | None:
    """The value of Repr-Digest for the answer that `make` makes of the retrieval; None where there is none.
    Raises InstanceDamaged, and the errors of `make`; in the loop WouldBlock."""
    row, longest = retrieval.selection.one, LONGEST.get(retrieval.target.kind, 0)
    if row is None or row.location.length > longest:
        return None
    retrieval.pool.must_not_block()
    accept = {name: value for name, value in retrieval.request.headers.items() if name == "accept"}
    whole = make(replace(retrieval, request=replace(retrieval.request, method="GET", headers=accept)))
    if whole.length is None or whole.length > longest:
        return None
    retrieval.store.require_whole(row, retrieval.selection.lease)
    running = ALGORITHMS[algorithm]()
    for piece in whole.plan:
        for chunk in piece_chunks(retrieval.selection, piece):
            running.update(chunk)
    return f"{algorithm}=:{b64encode(running.digest()).decode('ascii')}:"

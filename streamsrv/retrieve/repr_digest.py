"""Repr-Digest on request (RFC 9530): a digest of the whole representation, for any range of it.

Strategy: for a request with Want-Repr-Digest the stored bytes of the instance are read twice, through a
window: to compare them with the digest of their arrival, and to compute the requested digest. So the digest
never vouches for damaged bytes. Nothing is cached, because bytes may become damaged at any time.

Rules of this file
- Only answers of single instances have a digest: Part 10 files, frames and bulk data, stored or transcoded.
- The header is ignored if the length of the answer is unknown, or if too much would have to be read first.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace

from streamsrv.pixels.transcoding import piece_chunks
from streamsrv.retrieve.answering import Planned, Retrieval
from streamsrv.wire.answers import Answer, Request, resolved
from streamsrv.wire.resources import Kind

# Active algorithms of the registry "Hash Algorithms for HTTP Digest Fields"; of equal weights the first.
ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
# Bytes of the longest instance that is read for a digest.
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


def with_digest(algorithm: str, plan: Callable[[Retrieval], Planned], retrieval: Retrieval) -> Answer | None:
    """The planned answer with Repr-Digest, if it has one. Blocking. Raises InstanceDamaged."""
    planned = plan(retrieval)
    if planned is None:
        return None
    built = resolved(planned)
    if built.status in (200, 206) and (digest := digest_of(retrieval, algorithm, plan)):
        built.headers = [*built.headers, ("Repr-Digest", digest)]
    return built


def digest_of(retrieval: Retrieval, algorithm: str, plan: Callable[[Retrieval], Planned]) -> str | None:
    """The value of Repr-Digest. None if too much would have to be read."""
    row, longest = retrieval.selection.one, LONGEST.get(retrieval.target.kind, 0)
    if row is None or row.location.length > longest:
        return None
    accept = {name: value for name, value in retrieval.request.headers.items() if name == "accept"}
    planned = plan(replace(retrieval, request=replace(retrieval.request, method="GET", headers=accept)))
    whole = None if planned is None else resolved(planned)
    if whole is None or whole.length is None or whole.length > longest:
        return None
    retrieval.store.require_whole(row, retrieval.selection.lease)
    running = ALGORITHMS[algorithm]()
    for piece in whole.plan:
        for chunk in piece_chunks(retrieval.selection, piece):
            running.update(chunk)
    if whole.release is not None:
        whole.release()
    return f"{algorithm}=:{b64encode(running.digest()).decode('ascii')}:"

"""Multipart answers as plans (RFC 2387, PS3.18 8.6.1.2): the heads of the parts are literals, their payloads
are pieces of any kind.

A representation has the same bytes each time, because viewers join ranges of it. The boundary comes from the
ETag and the secret of the store: it changes with the content, and no client can plant it in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from streamsrv.wire.answers import Literal, Piece
from streamsrv.wire.multipart import closing, part_head

# Answers of up to this many parts keep their plan. Longer ones make it twice: for the length, and while they
# are sent.
PARTS_KEPT = 2_048


@dataclass(frozen=True, slots=True)
class Part:
    media_type: str  # with its transfer-syntax parameter
    location: str  # Content-Location
    pieces: Iterable[Piece]


PartSource = Callable[[], Iterable[Part]]  # the same parts at each call


def multipart_plan(parts: PartSource, count: int, boundary: bytes) -> tuple[Iterable[Piece], int | None]:
    """The plan and its length (None if a piece's length is not known)."""
    if count <= PARTS_KEPT:
        kept = list(pieces_of(parts(), boundary))
        return kept, total_length(kept)
    return LazyPlan(parts, boundary), total_length(pieces_of(parts(), boundary))


@dataclass(frozen=True, slots=True)
class LazyPlan:
    """Makes its pieces on each iteration, so that a plan of 100,000 parts is never held."""

    parts: PartSource
    boundary: bytes

    def __iter__(self) -> Iterator[Piece]:
        return pieces_of(self.parts(), self.boundary)


def pieces_of(parts: Iterable[Part], boundary: bytes) -> Iterator[Piece]:
    for part in parts:
        headers = {"Content-Type": part.media_type, "Content-Location": part.location}
        yield Literal(part_head(boundary, headers))
        yield from part.pieces
    yield Literal(closing(boundary))


def total_length(pieces: Iterable[Piece]) -> int | None:
    total = 0
    for piece in pieces:
        if piece.length is None:
            return None
        total += piece.length
    return total

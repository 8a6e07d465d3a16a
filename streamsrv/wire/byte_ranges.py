"""Range requests (RFC 9110 14): the range that a request names, and the slice of a plan.

Rules
- A range counts only with GET, and if its If-Range is exactly the ETag: a date never is.
- Only one range of bytes counts. Other units, several ranges and invalid ones are ignored (14.2).
- A plan is sliced while it is iterated, because it may be long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from streamsrv.wire.answers import ByteStream, Literal, Piece, Request, Span

# int-range or suffix-range (RFC 9110 14.1.2), any length: int() takes 4,300 digits.
_RANGE = re.compile(r"([0-9]{1,4000})[ \t]*-[ \t]*([0-9]{1,4000})?|-[ \t]*([0-9]{1,4000})")


class ByteRange(NamedTuple):
    """`first` is None for the last `suffix` bytes; `last` is None for all bytes from the first."""

    first: int | None
    last: int | None
    suffix: int

    def within(self, length: int) -> tuple[int, int]:
        """[start, stop) in `length` bytes; empty or reversed if the range lies behind them."""
        if self.first is None:
            return max(length - self.suffix, 0), length
        return self.first, length if self.last is None else min(self.last + 1, length)


def range_of(request: Request, etag: str) -> ByteRange | None:
    """The range of bytes in the request, if there is one and its conditions are true."""
    unit, _, ranges = request.headers.get("range", "").partition("=")
    if request.method != "GET" or unit.strip().lower() != "bytes":
        return None
    if request.headers.get("if-range", etag).strip() != etag:
        return None
    found = _RANGE.fullmatch(ranges.strip(" \t,"))
    if found is None:
        return None
    first, last, suffix = (None if number is None else int(number) for number in found.groups())
    if first is not None and last is not None and last < first:
        return None  # invalid (RFC 9110 14.1.2)
    return ByteRange(first, last, suffix or 0)


# Plans


@dataclass(frozen=True, slots=True)
class SlicedPlan:
    """The bytes [start, stop) of a plan. It can be iterated as often as the plan."""

    plan: Iterable[Piece]
    start: int
    stop: int

    def __iter__(self) -> Iterator[Piece]:
        return slice_plan(self.plan, self.start, self.stop)


def slice_plan(plan: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    """Yields the pieces with the bytes [start, stop) of a plan, cut at both ends. Raises ValueError for a
    piece of unknown length."""
    at = 0
    for piece in plan:
        if at >= stop:
            return
        length = piece.length
        if length is None:
            raise ValueError("a plan with a piece of unknown length cannot be sliced")
        low, high = max(start - at, 0), min(stop - at, length)
        if low < high:
            yield piece if high - low == length else _cut(piece, low, high)
        at += length


def _cut(piece: Piece, low: int, high: int) -> Piece:
    match piece:
        case Literal(payload):
            return Literal(payload[low:high])
        case Span(segment, offset, _):
            return Span(segment, offset + low, high - low)
        case _:
            chunks = piece.chunks
            return ByteStream(
                lambda start, stop: chunks(low + start, high if stop is None else low + stop), high - low
            )

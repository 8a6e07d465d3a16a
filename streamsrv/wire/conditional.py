"""Conditional and range requests (RFC 9110 13 and 14): adds validators to an answer, evaluates the conditions
of its request, and slices its plan.

Rules
- ETags are strong: they depend on the ids of the records in the answer and on everything else that shapes
  the representation.
- If-Match comes first, or without it If-Unmodified-Since. If it is false the status is 412 (13.2.2).
  If-Match uses the strong comparison. An invalid date is ignored.
- Then comes If-None-Match with the weak comparison (13.1.2). Both accept lists and `*`.
- A range counts only with GET, for an answer of 200 with a known length, and if its If-Range is exactly the
  ETag: a date never is. It gives 206, also for a multipart answer; a range behind the end gives 416 (14.2).
- Only one range of bytes counts. Other units, several ranges and invalid ones are ignored (14.2).
- A plan is sliced while it is iterated, because it may be long.
- Last-Modified has whole seconds. It is sent only when no second change can happen in the same second, so
  that it is as exact as an ETag. If-Modified-Since counts only without If-None-Match.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

from streamsrv.errors import PreconditionFailed, RangeNotSatisfiable
from streamsrv.wire.answers import Answer, ByteStream, Literal, Piece, Request, Span

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


# entity-tag (RFC 9110 8.8.3)
_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# Headers of a 200 that a 304 has too (RFC 9110 15.4.5).
_KEPT_IN_304 = frozenset(
    ("cache-control", "content-location", "date", "etag", "expires", "last-modified", "vary")
)
_CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"))
# Seconds between a change and its Last-Modified: the second of the change, and one for clocks that differ.
SETTLED = 2


def etag_of(record_ids: Iterable[bytes], *representation: str) -> str:
    """A strong ETag, quoted. `representation` is everything else on which the bytes depend: media type,
    syntax, encoding, URL base."""
    digest = hashlib.blake2b(digest_size=16)
    for record_id in record_ids:
        digest.update(record_id)
    digest.update("\0".join(("", *representation)).encode("utf-8"))
    return f'"{digest.hexdigest()}"'


def not_modified(request: Request, etag: str) -> bool:
    """Returns whether the client has this representation. Call it before the answer is planned."""
    known = request.headers.get("if-none-match")
    if known is None or request.method not in ("GET", "HEAD"):
        return False
    return known.strip() == "*" or etag in _ETAG.findall(known)


def is_conditional(names: Iterable[str]) -> bool:
    """Returns whether these header names, in lower case, include a condition (RFC 9110 13.1)."""
    return not _CONDITIONS.isdisjoint(names)


def evaluate(request: Request, answer: Answer, etag: str) -> Answer:
    """Returns the answer with its validators: whole, as a 206, or as a 304. The plan of HEAD is empty,
    with the length of GET.

    Raises PreconditionFailed and RangeNotSatisfiable, and then calls `answer.release`.
    """
    if answer.status != 200:
        return answer
    if "if-match" in request.headers and not _matches(request.headers["if-match"], etag):
        raise _failed(answer, "none of the entity tags in If-Match is that of the representation")
    headers = [*answer.headers, ("ETag", etag)]
    if "if-none-match" in request.headers and not_modified(request, etag):
        return _unchanged(answer, headers)
    if answer.length is not None:
        headers.append(("Accept-Ranges", "bytes"))
    if request.method == "HEAD":
        return replace(answer, headers=headers, plan=())
    asked = range_of(request, etag) if "range" in request.headers else None
    if asked is None or answer.length is None:
        answer.headers = headers
        return answer
    start, stop = asked.within(answer.length)
    if start >= stop:
        if answer.release:
            answer.release()
        raise RangeNotSatisfiable("the range lies behind the end of the representation", answer.length)
    headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{answer.length}"))
    sliced = SlicedPlan(answer.plan, start, stop)
    return replace(answer, status=206, headers=headers, plan=sliced, length=stop - start)


def dated(request: Request, answer: Answer, changed: float, now: float) -> Answer:
    """Returns the answer with Last-Modified, or as a 304 if it is not modified since the date of the
    client. `changed` and `now` are seconds since 1970. Raises PreconditionFailed, as `evaluate` does."""
    if answer.status not in (200, 206, 304):
        return answer
    before = request.headers.get("if-unmodified-since")
    if before and "if-match" not in request.headers and 0 <= _seconds(before) < int(changed):
        raise _failed(answer, "the representation has been modified since the date in If-Unmodified-Since")
    if now - changed < SETTLED:
        return answer
    headers = [*answer.headers, ("Last-Modified", http_date(int(changed)))]
    since = request.headers.get("if-modified-since")
    # A date in the future comes from a time when the clock was wrong.
    known = since and "if-none-match" not in request.headers and int(changed) <= _seconds(since) <= now
    if known:
        return _unchanged(answer, headers)
    answer.headers = headers
    return answer


def _unchanged(answer: Answer, headers: list[tuple[str, str]]) -> Answer:
    kept = [(name, value) for name, value in headers if name.lower() in _KEPT_IN_304]
    return replace(answer, status=304, headers=kept, plan=(), length=0)


def _matches(known: str, etag: str) -> bool:
    return known.strip() == "*" or any(tag[0] == etag for tag in _ETAG.finditer(known))


def _failed(answer: Answer, detail: str) -> PreconditionFailed:
    if answer.release:
        answer.release()
    return PreconditionFailed(detail)


@lru_cache(maxsize=256)
def http_date(seconds: int) -> str:
    """IMF-fixdate (RFC 9110 5.6.7) of seconds since 1970."""
    return formatdate(seconds, usegmt=True)


def _seconds(date: str) -> float:
    """Seconds since 1970; -1 for an invalid date, which RFC 9110 13.1.3 ignores."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return -1

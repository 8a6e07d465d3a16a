"""Conditional and range requests (RFC 9110 13 and 14): one function from answer to answer, and the slice of a
plan.

Rules
- ETags are strong: they come from the ids of the records whose bytes go out and from everything else that
  shapes the representation.
- If-Match goes first, or in its absence If-Unmodified-Since: 412 where it does not hold (RFC 9110 13.2.2). It
  compares strongly. A date counts only where there is one.
- Then If-None-Match; it compares weakly (13.1.2). Both take lists and `*`.
- A range counts only with GET, for an answer of 200 whose length is known, and if its If-Range is exactly the
  ETag: a date never is.
- One range of bytes gives 206, multipart answers included; several give the whole answer; one that is all
  behind the end gives 416; what is no range of bytes is ignored (RFC 9110 14.2).
- Last-Modified has whole seconds. It goes out only when no second change can fall into the same one any more,
  so that it is as exact as an ETag; If-Modified-Since counts only where there is no If-None-Match.
- A plan is sliced while it is walked, never before: it may be made lazily, and long.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache

from streamsrv.errors import PreconditionFailed, RangeNotSatisfiable
from streamsrv.wire.answers import Answer, Request
from streamsrv.wire.byte_ranges import SlicedPlan, range_of

# entity-tag (RFC 9110 8.8.3)
_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# What a 304 carries of the headers of the 200 (RFC 9110 15.4.5).
_KEPT_IN_304 = frozenset(
    ("cache-control", "content-location", "date", "etag", "expires", "last-modified", "vary")
)
_CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"))
# Seconds after which a change is dated: its own second is over, and clocks may differ by one.
SETTLED = 2


def etag_of(record_ids: Iterable[bytes], *representation: str) -> str:
    """A strong ETag, quoted. `representation` is whatever else the bytes depend on: media type, syntax,
    encoding, URL base."""
    digest = hashlib.blake2b(digest_size=16)
    for record_id in record_ids:
        digest.update(record_id)
    digest.update("\0".join(("", *representation)).encode("utf-8"))
    return f'"{digest.hexdigest()}"'


def not_modified(request: Request, etag: str) -> bool:
    """The client has this representation already: worth asking before an answer is planned."""
    known = request.headers.get("if-none-match")
    if known is None or request.method not in ("GET", "HEAD"):
        return False
    return known.strip() == "*" or etag in _ETAG.findall(known)


def is_conditional(names: Iterable[str]) -> bool:
    """Whether headers of RFC 9110 13.1 are among these (in lower case), so that the answer may be none of
    what is asked for."""
    return not _CONDITIONS.isdisjoint(names)


def evaluate(request: Request, answer: Answer, etag: str) -> Answer:
    """The answer with its validators, cut to what the request's conditions and range leave of it. Takes
    `answer` over: its `release` goes along, or is called if PreconditionFailed or RangeNotSatisfiable is
    raised. For HEAD the plan is empty and the length kept."""
    if answer.status != 200:
        return answer
    if "if-match" in request.headers and not _matches(request.headers["if-match"], etag):
        raise _failed(answer, "none of the entity tags in If-Match is that of the representation")
    headers = [*answer.headers, ("ETag", etag)]
    if "if-none-match" in request.headers and not_modified(request, etag):
        kept = [(name, value) for name, value in headers if name.lower() in _KEPT_IN_304]
        return replace(answer, status=304, headers=kept, plan=(), length=0)
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
    """The answer with Last-Modified, or 304 if it has not been modified since the client's date. `changed`
    and `now` are seconds since 1970. Takes `answer` over, as `evaluate` does."""
    if answer.status not in (200, 206, 304):
        return answer
    before = request.headers.get("if-unmodified-since")
    if before and "if-match" not in request.headers and 0 <= _seconds(before) < int(changed):
        raise _failed(answer, "the representation has been modified since the date in If-Unmodified-Since")
    if now - changed < SETTLED:
        return answer
    headers = [*answer.headers, ("Last-Modified", http_date(int(changed)))]
    since = request.headers.get("if-modified-since")
    # A date in the future comes from a time when the clock was wrong: it says nothing.
    known = since and "if-none-match" not in request.headers and int(changed) <= _seconds(since) <= now
    if known:
        kept = [(name, value) for name, value in headers if name.lower() in _KEPT_IN_304]
        return replace(answer, status=304, headers=kept, plan=(), length=0)
    answer.headers = headers
    return answer


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
    """-1 for what is no date: RFC 9110 13.1.3 ignores it."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return -1

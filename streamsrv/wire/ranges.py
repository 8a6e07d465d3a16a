"""Acceptable media types (PS3.18 8.7.5, RFC 9110 12.5.1): an Accept header as ranges, and the vote of
ranges on offers.

Rules
- The `accept` query parameter beats the header; the header counts again if nothing in the parameter can be
  had (PS3.18 8.7.8.1).
- For each offer the most specific range speaks, and its q=0 excludes. Then: stored bytes before anything
  that has to be made, whatever the place and the q of the range that takes them; then the higher q; then
  the order of the client; then ours.
- A range that cannot be read, or that wants another character set than UTF-8, counts as absent.
- There are at most MAX_RANGES of them, counted by their commas before any is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from streamsrv.errors import BadRequest
from streamsrv.wire.mediatypes import MULTIPART, media_type_text, parse_media_type, split_list

ANY = "*/*"
# Clients have few headers and send them again and again; a longer one is read each time.
LONGEST_REMEMBERED = 512
# In one request. Each costs about 10 us, and is asked about every offer; clients send about 5.
MAX_RANGES = 64
# Names of earlier editions of PS3.18 that clients still use.
_ALIASES = {
    "image/dicom+jpeg": "image/jpeg",
    "image/dicom+rle": "image/dicom-rle",
    "image/x-dicom-rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/dicom+jpeg-ls": "image/jls",
    "image/dicom+jp2": "image/jp2",
    "image/dicom+jpx": "image/jpx",
    "video/mpeg2": "video/mpeg",
}


@dataclass(frozen=True, slots=True)
class AcceptableRange:
    """`multipart` is None for `*/*`, which takes either; `media_type` is then that of a part.
    `transfer_syntax` is "", "*" or a UID.
    """

    multipart: bool | None
    media_type: str
    transfer_syntax: str = ""
    quality: float = 1.0
    from_query: bool = False

    @property
    def specificity(self) -> tuple[bool, bool, bool, bool]:
        exact = not self.media_type.endswith("/*")
        return (
            self.media_type != ANY,
            exact,
            self.multipart is not None,
            self.transfer_syntax not in ("", "*"),
        )

    def covers(self, media_type: str) -> bool:
        if self.media_type.endswith("/*"):
            return self.media_type == ANY or media_type.startswith(self.media_type[:-1])
        return self.media_type == media_type


def parse_accept(header: str | None, query: Sequence[str] = ()) -> list[AcceptableRange]:
    """`query` are the decoded values of the `accept` query parameter. In the order of the client, those of
    the query first. Raises BadRequest for a long text of more than MAX_RANGES.
    """
    if not query and header is not None and len(header) <= LONGEST_REMEMBERED:
        return list(_remembered(header))
    if sum(text.count(",") for text in (header or "", *query)) >= MAX_RANGES:
        raise BadRequest(f"more than {MAX_RANGES} acceptable media types are listed")
    # A plus sign that was not encoded arrives as a blank: `accept=application/dicom+json`.
    mended = (re.sub(r"(?<=[a-z]) (?=[a-z])", "+", value) for value in query)
    asked = [(text, True) for value in mended for text in split_list(value)]
    asked += [(text, False) for text in split_list(header or "")]
    return [found for text, from_query in asked if (found := _range_of(text, from_query))]


@lru_cache(maxsize=256)
def _remembered(header: str) -> tuple[AcceptableRange, ...]:
    found = (_range_of(text, False) for text in split_list(header))
    return tuple(each for each in found if each)


def _range_of(text: str, from_query: bool) -> AcceptableRange | None:
    # `*` alone comes from Java's HttpURLConnection: "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2".
    media = parse_media_type(re.sub(r"^\*(?=[\s;]|$)", ANY, text))
    quality = _quality(media.parameters.get("q", "1")) if media else None
    if media is None or quality is None:
        return None
    if media.parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        return None
    syntax = media.parameters.get("transfer-syntax", "")
    if media.type not in (MULTIPART, "multipart/*"):
        multipart = None if media.type == ANY else False
        return AcceptableRange(multipart, canonical(media.type), syntax, quality, from_query)
    # Some clients put the parameters of the part into its quoted type.
    part = parse_media_type(media.parameters.get("type", ANY))
    if part is None:
        return None
    syntax = syntax or part.parameters.get("transfer-syntax", "")
    return AcceptableRange(True, canonical(part.type), syntax, quality, from_query)


def _quality(text: str) -> float | None:
    return float(text) if re.fullmatch(r"0?\.[0-9]{1,9}|[01]\.?|0\.0*|1\.0+", text) else None


def canonical(media_type: str) -> str:
    """In lower case, and by its present name."""
    return _ALIASES.get(media_type.lower(), media_type.lower())


# Offers


class Offer(NamedTuple):
    """One representation. `syntax` is empty where there is none to name."""

    media_type: str
    multipart: bool = False
    syntax: str = ""

    @property
    def content_type(self) -> str:
        """Of the single part, or of each part: with its transfer syntax."""
        return _content_type(self.media_type, self.syntax)

    def __str__(self) -> str:
        """As a client asks for it."""
        if not self.multipart:
            return self.content_type
        text = f'{MULTIPART}; type="{self.media_type}"'
        return f"{text}; transfer-syntax={self.syntax}" if self.syntax else text


@lru_cache(maxsize=256)
def _content_type(media_type: str, syntax: str) -> str:
    return media_type_text(media_type, {"transfer-syntax": syntax} if syntax else {})


def elect(
    ranges: Sequence[AcceptableRange],
    taken: Callable[[AcceptableRange], Iterable[Offer]],
    stored: str | None = None,
) -> Offer | None:
    """The offer with the best vote; None if no range takes any."""
    for from_query in (True, False):
        votes: dict[Offer, tuple[int, AcceptableRange]] = {}
        for place, asked in enumerate(ranges):
            if asked.from_query is from_query:
                for offer in taken(asked):
                    if offer not in votes or asked.specificity > votes[offer][1].specificity:
                        votes[offer] = place, asked
        ranked = [
            (offer.syntax != stored, -asked.quality, place, offer)
            for offer, (place, asked) in votes.items()
            if asked.quality > 0
        ]
        if ranked:
            return min(ranked, key=lambda vote: vote[:3])[3]
    return None

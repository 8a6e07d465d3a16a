"""Chooses the representation that an answer has (PS3.18 8.7.5, RFC 9110 12.5.1). Raises NotAcceptable,
which lists the representations that are available.

Strategy: the Accept header becomes acceptable ranges, and each range votes for an offer. The table RULES
says which offer a range takes for instances and frames.

Rules
- The query parameter `accept` has priority over the header. If it takes no offer, the header counts
  (PS3.18 8.7.8.1).
- For each offer the most specific range counts, and its q=0 excludes the offer. Stored bytes come before
  bytes that have to be made, for any order and q of the client. Then come the higher q, the order of the
  client, and the order of the offers.
- A malformed range is ignored. A range with another character set than UTF-8 takes nothing.
- A request has at most MAX_RANGES, counted by their commas before any is parsed.
- A single-part media type is for single items only (PS3.18 10.4.4). `multipart/related; type="*/*"` and
  `*/*` are accepted for any resource.
- `*/*` means the default of the resource, and so does a request without a range (8.7.7). For instances and
  frames it is Explicit VR Little Endian. Pixels that cannot be decoded then go out as stored.
- Instances in Implicit VR Little Endian and Explicit VR Big Endian do not go out as stored (PS3.18 8.7.3),
  unless a range names this syntax: an extension.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from streamsrv.errors import BadRequest, NotAcceptable
from streamsrv.wire.mediatypes import (
    DICOM,
    DICOM_JSON,
    DICOM_XML,
    JSON,
    MULTIPART,
    OCTETS,
    ZIP,
    media_type_text,
    parse_media_type,
    split_list,
)

ANY = "*/*"
# Characters. A client repeats a few short headers; a longer one is parsed each time.
LONGEST_REMEMBERED = 512
# In one request. Each costs about 10 us, and more for each offer; clients send about 5.
MAX_RANGES = 64
# Clients still use names of earlier editions of PS3.18. Names are in lower case, but for H265.
_ALIASES = {
    "image/dicom+jpeg": "image/jpeg",
    "image/dicom+rle": "image/dicom-rle",
    "image/x-dicom-rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/dicom+jpeg-ls": "image/jls",
    "image/dicom+jp2": "image/jp2",
    "image/dicom+jpx": "image/jpx",
    "video/mpeg": "video/mpeg2",
    "video/h265": "video/H265",
}

_PICTURES = ("image/", "video/")
PIXELS = "image/*, video/*"  # in RULES: each such media type, wildcards included
EXPLICIT = "1.2.840.10008.1.2.1"
_DICOM_UID = "1.2.840.10008.1.2."

# PS3.18 Tables 8.7.3-4 and 8.7.3-5: the syntaxes of a media type, its default first.
MEDIA_SYNTAXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        media_type: tuple(_DICOM_UID + suffix for suffix in suffixes.split())
        for media_type, suffixes in (
            (OCTETS, "1"),
            ("image/jpeg", "4.70 4.50 4.51 4.57"),
            ("image/dicom-rle", "5"),
            ("image/jls", "4.80 4.81"),
            ("image/jp2", "4.90 4.91"),
            ("image/jpx", "4.92 4.93"),
            ("image/jphc", "4.201 4.202 4.203"),
            ("image/jxl", "4.110 4.111 4.112"),
            ("video/mpeg2", "4.100 4.101"),
            ("video/mp4", "4.102 4.103 4.104 4.105 4.106"),
            ("video/H265", "4.107 4.108"),
        )
    }
)
_MEDIA_OF = {uid: media_type for media_type, uids in MEDIA_SYNTAXES.items() for uid in uids}
# Stored syntax -> syntax of the answer: for instances (PS3.18 8.7.3), and for frames. Some syntaxes have
# uncompressed frames, which go out as Explicit VR Little Endian.
INSTANCE_SENT_AS = {_DICOM_UID[:-1]: EXPLICIT, _DICOM_UID + "2": EXPLICIT}
FRAME_SENT_AS = {**INSTANCE_SENT_AS, _DICOM_UID + "1.99": EXPLICIT, _DICOM_UID + "1.98": EXPLICIT}


# Acceptable ranges


@dataclass(frozen=True, slots=True)
class AcceptableRange:
    """`multipart` is None for `*/*`, which takes both. `media_type` of a multipart range is that of a part.
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
    """The ranges in the order of the client. Those of `query`, the decoded values of the query parameter
    `accept`, come first. Raises BadRequest for more than MAX_RANGES.
    """
    if not query and header is not None and len(header) <= LONGEST_REMEMBERED:
        return list(_remembered(header))
    if sum(text.count(",") for text in (header or "", *query)) >= MAX_RANGES:
        raise BadRequest(f"more than {MAX_RANGES} acceptable media types are listed")
    # A plus sign that the client did not encode arrives as a blank: `accept=application/dicom+json`.
    corrected = (re.sub(r"(?<=[a-z]) (?=[a-z])", "+", value) for value in query)
    asked = [(text, True) for value in corrected for text in split_list(value)]
    asked += [(text, False) for text in split_list(header or "")]
    return [found for text, from_query in asked if (found := _range_of(text, from_query))]


@lru_cache(maxsize=256)
def _remembered(header: str) -> tuple[AcceptableRange, ...]:
    found = (_range_of(text, False) for text in split_list(header))
    return tuple(each for each in found if each)


def _range_of(text: str, from_query: bool) -> AcceptableRange | None:
    # Java's HttpURLConnection sends `*`: "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2".
    media = parse_media_type(re.sub(r"^\*(?=[\s;]|$)", ANY, text))
    quality = _quality(media.parameters.get("q", "1")) if media else None
    if media is None or quality is None:
        return None
    charset = media.parameters.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        return AcceptableRange(False, f"{media.type}; charset={charset}", "", quality, from_query)
    syntax = media.parameters.get("transfer-syntax", "")
    if media.type not in (MULTIPART, "multipart/*"):
        multipart = None if media.type == ANY else False
        return AcceptableRange(multipart, canonical(media.type), syntax, quality, from_query)
    # Some clients put the parameters of the part into the quoted type.
    part = parse_media_type(media.parameters.get("type", ANY))
    if part is None:
        return None
    syntax = syntax or part.parameters.get("transfer-syntax", "")
    return AcceptableRange(True, canonical(part.type), syntax, quality, from_query)


def _quality(text: str) -> float | None:
    return float(text) if re.fullmatch(r"0?\.[0-9]{1,9}|[01]\.?|0\.0*|1\.0+", text) else None


def canonical(media_type: str) -> str:
    """The current name, spelled as answers have it."""
    return _ALIASES.get(media_type.lower(), media_type.lower())


# Offers


class Offer(NamedTuple):
    """One representation. `syntax` is "" if it has no transfer syntax."""

    media_type: str
    multipart: bool = False
    syntax: str = ""

    @property
    def content_type(self) -> str:
        """Of the single part, or of each part, with its transfer syntax."""
        return _content_type(self.media_type, self.syntax)

    def __str__(self) -> str:
        """The range by which a client gets it."""
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
    """The offer with the best vote; None if no range takes an offer."""
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


# The decision table


class Resource(enum.StrEnum):
    """Several routes share one."""

    INSTANCES = "instances"
    FRAMES = "frames"


class Takes(enum.StrEnum):
    """The syntax that a range takes."""

    STORED = "as stored"
    UNCOMPRESSED = "Explicit VR Little Endian"
    OF_TYPE = "as stored if the stored syntax has this media type, else the default syntax of the media type"
    NAMED = "the named syntax: as stored if it is that, else transcoded"


# (resource, media type) -> the syntax that a range takes without a transfer syntax, with `*`, and with a UID.
RULES: Mapping[tuple[Resource, str], tuple[Takes, Takes, Takes]] = MappingProxyType(
    {
        (Resource.INSTANCES, DICOM): (Takes.UNCOMPRESSED, Takes.STORED, Takes.NAMED),
        (Resource.FRAMES, OCTETS): (Takes.UNCOMPRESSED, Takes.STORED, Takes.NAMED),
        (Resource.FRAMES, PIXELS): (Takes.OF_TYPE, Takes.OF_TYPE, Takes.NAMED),
    }
)


def _refused(offers: Iterable[Offer]) -> NotAcceptable:
    return NotAcceptable(
        "none of the acceptable media types can be sent for this resource", [str(offer) for offer in offers]
    )


# Datasets as text, images, bulk data

JSON_OFFERS = (Offer(DICOM_JSON), Offer(JSON))
METADATA_OFFERS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))
STORE_OFFERS = (*JSON_OFFERS, Offer(DICOM_XML))
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp", "image/jp2")
THUMBNAIL_TYPES = IMAGE_TYPES[:2]
# Of Structured Reports, and of encapsulated documents by the last number of their SOP class (PS3.4 B.5).
PAGE_TYPES = ("text/html", "text/plain", "text/xml")
DOCUMENT_TYPES = ("application/pdf", "text/xml", "model/stl", "model/obj", "model/mtl")
# Types that hold many frames in one part.
ANIMATED = frozenset(("image/gif",))


def choose_json(ranges: Sequence[AcceptableRange], offers: Sequence[Offer] = JSON_OFFERS) -> Offer:
    """For datasets as text: metadata, search results, store responses. Raises NotAcceptable."""
    return _choose(ranges, offers)


def choose_image(
    ranges: Sequence[AcceptableRange], media_types: Sequence[str] = IMAGE_TYPES, *, single: bool = True
) -> Offer:
    """For rendered resources and thumbnails. `media_types` are in the order of preference. Raises
    NotAcceptable."""
    alone = [Offer(media_type) for media_type in media_types if single or media_type in ANIMATED]
    parts = [Offer(media_type, multipart=True) for media_type in media_types]
    return _choose(ranges, alone + parts if single else parts + alone)


def choose_bulk(
    ranges: Sequence[AcceptableRange], media_types: Sequence[str] = (OCTETS,), *, single: bool = True
) -> Offer:
    """For values of attributes other than pixel data, which have no transfer syntax. Raises
    NotAcceptable."""
    parts = [Offer(media_type, multipart=True) for media_type in media_types]
    return _choose(ranges, parts + [Offer(media_type) for media_type in media_types if single])


def _choose(ranges: Sequence[AcceptableRange], offers: Sequence[Offer]) -> Offer:
    """Without any range the first offer."""

    def taken(asked: AcceptableRange) -> Iterator[Offer]:
        fitting = [offer for offer in offers if asked.covers(offer.media_type)]
        framed = [offer for offer in fitting if asked.multipart in (None, offer.multipart)]
        # `type="*/*"` is accepted also for a resource that never has parts.
        return iter(framed or (fitting if asked.media_type == ANY else ()))

    chosen = elect(ranges, taken) if ranges else offers[0]
    if chosen is None:
        raise _refused(offers)
    return chosen


# Instances and frames


_ANYTHING = (AcceptableRange(None, ANY),)


@dataclass(frozen=True, slots=True)
class _StoredForm:
    """The stored representation, and the syntaxes into which it can be transcoded."""

    resource: Resource
    syntax: str
    media_type: str
    transcodable: Collection[str]
    single: bool

    def offers(self, multipart: bool) -> Iterator[Offer]:
        yield self.offer(self.syntax, multipart)
        yield from (self.offer(syntax, multipart) for syntax in self.transcodable if syntax != self.syntax)

    def offer(self, syntax: str, multipart: bool) -> Offer:
        if self.resource is Resource.INSTANCES or syntax == self.syntax:
            return Offer(self.media_type, multipart, syntax)
        return Offer(_MEDIA_OF.get(syntax, OCTETS), multipart, syntax)

    def taken(self, asked: AcceptableRange) -> Iterator[Offer]:
        """The offer that a range takes, if it is available."""
        multipart = asked.multipart is not False
        if not multipart and not self.single:
            return
        form = ("", "*", asked.transfer_syntax).index(asked.transfer_syntax)
        rule = RULES.get((self.resource, self._type_form(asked)))
        syntax = self._syntax(rule[form], asked) if rule else ""
        if syntax and (syntax == self.syntax or syntax in self.transcodable):
            yield self.offer(syntax, multipart)

    def _type_form(self, asked: AcceptableRange) -> str:
        """The media type in RULES for that of `asked`."""
        default = DICOM if self.resource is Resource.INSTANCES else OCTETS
        if asked.covers(default):  # also as `*/*`
            return default
        return PIXELS if asked.media_type.startswith(_PICTURES) else asked.media_type

    def _syntax(self, takes: Takes, asked: AcceptableRange) -> str:
        match takes:
            case Takes.STORED:
                return self.syntax
            case Takes.UNCOMPRESSED:
                return EXPLICIT if EXPLICIT in self.transcodable else self.syntax
            case Takes.OF_TYPE:
                default = MEDIA_SYNTAXES.get(asked.media_type, ("",))[0]
                return self.syntax if asked.covers(canonical(self.media_type)) else default
            case _:  # Takes.NAMED
                return asked.transfer_syntax if self._allowed(asked) else ""

    def _allowed(self, asked: AcceptableRange) -> bool:
        """An image or video type allows only its own syntaxes; the general types allow all."""
        if not asked.media_type.startswith(_PICTURES):
            return True
        return asked.covers(canonical(self.offer(asked.transfer_syntax, multipart=True).media_type))

    def choose(self, ranges: Sequence[AcceptableRange]) -> Offer | None:
        return elect(ranges or _ANYTHING, self.taken, self.syntax)


def choose_frames(
    ranges: Sequence[AcceptableRange],
    stored: str,
    media_type: str,
    *,
    transcodable: Collection[str] = (),
    single: bool,
) -> Offer:
    """For frames and pixel data. Raises NotAcceptable.

    `stored` is the transfer syntax UID of the instance, `media_type` the media type of its frames.
    `transcodable` are the syntaxes into which they can be transcoded. `single`: the request is for one
    frame.
    """
    source = _StoredForm(Resource.FRAMES, FRAME_SENT_AS.get(stored, stored), media_type, transcodable, single)
    chosen = source.choose(ranges)
    if chosen is None:
        raise _refused([*source.offers(True), *(source.offers(False) if single else ())])
    return chosen


def _form_of_instances(ranges: Sequence[AcceptableRange], single: bool) -> str:
    """DICOM, OCTETS or ZIP: the form of a study, series or instance that the client prefers. A multipart
    range of a media type of bulk data asks for bulk data (PS3.18 Table 10.4.4-1, note 2)."""

    def taken(asked: AcceptableRange) -> Iterator[Offer]:
        if asked.covers(DICOM):
            if single or asked.multipart is not False:
                yield Offer(DICOM)
        elif asked.multipart and (asked.media_type == OCTETS or asked.media_type.startswith(_PICTURES)):
            yield Offer(OCTETS)
        elif asked.media_type == ZIP and not asked.multipart:
            yield Offer(ZIP)

    chosen = elect(ranges, taken)
    return DICOM if chosen is None else chosen.media_type


class InstancesChoice(NamedTuple):
    """`syntaxes` maps the stored transfer syntax to that of the answer. The form OCTETS is the bulk data of
    the instances, ZIP an archive of the stored files; these have no syntaxes."""

    multipart: bool
    syntaxes: dict[str, str]
    form: str = DICOM


def choose_instances(
    ranges: Sequence[AcceptableRange],
    stored: Iterable[str],
    *,
    transcodable: Mapping[str, Collection[str]] = MappingProxyType({}),
    single: bool,
) -> InstancesChoice:
    """For Part 10 instances. Raises NotAcceptable unless all of them are acceptable, because a client
    does not see that an instance is missing.

    `stored` are their transfer syntaxes (one if `single`). `transcodable` maps each to the syntaxes into
    which it can be transcoded.
    """
    form = _form_of_instances(ranges, single)
    if form != DICOM:
        return InstancesChoice(form != ZIP, {}, form)
    multipart, syntaxes = True, {}
    for syntax in stored:
        sent, possible = INSTANCE_SENT_AS.get(syntax, syntax), transcodable.get(syntax, ())
        if sent != syntax:
            possible = (*possible, syntax)
        source = _StoredForm(Resource.INSTANCES, sent, DICOM, possible, single)
        chosen = source.choose(ranges)
        if chosen is None:
            alone = source.offers(False) if single else ()
            raise _refused([*source.offers(True), *alone, Offer(OCTETS, multipart=True), Offer(ZIP)])
        multipart, syntaxes[syntax] = chosen.multipart, chosen.syntax
    return InstancesChoice(multipart, syntaxes)

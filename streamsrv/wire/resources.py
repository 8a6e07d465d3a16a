"""The resources of this service (PS3.18 10.1 and 8.2): the table of routes, the target of a path, and URLs.

Strategy: ROUTES is the whole table, which the documentation prints. A regular expression finds the
route of most paths, and a search in the table that of the others. Rules:
- A path is split at its slashes first. Then each segment is percent-decoded once, so an encoded slash
  does not split.
- One empty segment after the version and one after `studies` is accepted, because clients join a base URL
  that ends with a slash.
- A malformed UID, frame list or bulk data path gives 400 and the detail names it. A path without a route
  gives 404.
- GET implies HEAD. Each resource has OPTIONS.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from streamsrv.errors import BadRequest, MethodNotAllowed, NotFound, URITooLong

VERSIONS = (1, 2)

# PS3.5 6.2: 64 characters. Leading zeros in a component are invalid, but exist.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*\Z")
# Tags, with item numbers (from 0) between them.
_BULK = re.compile(r"[0-9A-Fa-f]{8}(?:/[0-9]{1,10}/[0-9A-Fa-f]{8})*\Z")
_FRAME = re.compile(r"0*([1-9][0-9]*)\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VERSION = re.compile(r"v([0-9]{1,4})\Z")

# Numbers in one frame list. Each costs an entry of the plan. A request line of 64 kB holds about as many.
MAX_FRAMES = 10_000
# Number of Frames is an IS, at most 2^31 - 1.
MAX_FRAME_DIGITS = 10
# Characters. The deepest stored sequence has 64 levels, each with tag and item number.
MAX_BULK_PATH = 64 * 20
# Parameters of one query; real ones have under 30.
MAX_PARAMETERS = 1_000


class Kind(enum.StrEnum):
    __hash__ = str.__hash__  # that of an enumeration is a function in Python

    SERVICE = "service"  # the base URL: its capabilities (PS3.18 8.9)
    SEARCH = "search"  # at /studies also store
    INSTANCES = "instances"
    METADATA = "metadata"
    FRAMES = "frames"
    RENDERED = "rendered"
    THUMBNAIL = "thumbnail"
    BULKDATA = "bulkdata"
    PIXELDATA = "pixeldata"
    WADO_URI = "wado"  # an instance by query parameters (PS3.18 9)
    CHANGEFEED = "changefeed"  # stored, replaced and deleted instances, in commit order
    LATEST = "latest"  # the last one of them
    EVENTS = "events"  # the same as server-sent events
    OPENAPI = "openapi"
    YAML = "yaml"
    SHARES = "shares"  # the share links of a study
    SHARE = "share"
    LIVE = "live"
    READY = "ready"
    SESSION = "session"  # of a browser: the sign-in
    ISSUER = "issuer"  # the way to an issuer and back

    PAGE = "page"  # the page at `/`, and its files
    VIEWER = "viewer"  # the web viewer that is installed in the folder of the store


class ResourceLevel(enum.IntEnum):
    """The level that a search lists; for other resources that of the last UID in the path."""

    NONE = 0
    STUDY = 1
    SERIES = 2
    INSTANCE = 3


class Route(NamedTuple):
    """One row. `methods` has neither HEAD nor OPTIONS. `representation` is the default of GET."""

    kind: Kind
    level: ResourceLevel
    template: str
    methods: tuple[str, ...]
    representation: str

    @property
    def allow(self) -> tuple[str, ...]:
        """For the Allow header."""
        head = ("HEAD",) if "GET" in self.methods else ()
        return (*self.methods, *head, "OPTIONS")


_INSTANCES = 'multipart/related; type="application/dicom"'
_OCTETS = 'multipart/related; type="application/octet-stream"'
_JSON = "application/dicom+json"
_JPEG = "image/jpeg"

_LEVELS = (
    (ResourceLevel.STUDY, "/studies/{study}"),
    (ResourceLevel.SERIES, "/studies/{study}/series/{series}"),
    (ResourceLevel.INSTANCE, "/studies/{study}/series/{series}/instances/{instance}"),
)
_SEARCHES = (
    (ResourceLevel.STUDY, "/studies"),
    (ResourceLevel.SERIES, "/series"),
    (ResourceLevel.INSTANCE, "/instances"),
    (ResourceLevel.SERIES, "/studies/{study}/series"),
    (ResourceLevel.INSTANCE, "/studies/{study}/instances"),
    (ResourceLevel.INSTANCE, "/studies/{study}/series/{series}/instances"),
)
# Resources below each of the three levels.
_BELOW = (
    (Kind.METADATA, "/metadata", _JSON),
    (Kind.RENDERED, "/rendered", _JPEG),
    (Kind.THUMBNAIL, "/thumbnail", _JPEG),
    (Kind.BULKDATA, "/bulkdata", _OCTETS),
    (Kind.PIXELDATA, "/pixeldata", _OCTETS),
)
# Resources below an instance only.
_BELOW_INSTANCE = (
    (Kind.FRAMES, "/frames/{frames}", _OCTETS),
    (Kind.RENDERED, "/frames/{frames}/rendered", _JPEG),
    (Kind.THUMBNAIL, "/frames/{frame}/thumbnail", _JPEG),
    (Kind.BULKDATA, "/bulkdata/{path}", _OCTETS),
)
_GET = ("GET",)


def _rows() -> Iterator[Route]:
    yield Route(Kind.SERVICE, ResourceLevel.NONE, "", _GET, "application/vnd.sun.wadl+xml")
    for level, template in _SEARCHES:
        yield Route(Kind.SEARCH, level, template, ("GET", "POST") if template == "/studies" else _GET, _JSON)
    for level, template in _LEVELS:
        methods = ("GET", "POST", "DELETE") if level is ResourceLevel.STUDY else ("GET", "DELETE")
        yield Route(Kind.INSTANCES, level, template, methods, _INSTANCES)
        for kind, below, representation in _BELOW:
            yield Route(kind, level, template + below, _GET, representation)
    for kind, below, representation in _BELOW_INSTANCE:
        yield Route(kind, ResourceLevel.INSTANCE, _LEVELS[-1][1] + below, _GET, representation)
    yield Route(Kind.CHANGEFEED, ResourceLevel.NONE, "/changefeed", _GET, "application/json")
    yield Route(Kind.LATEST, ResourceLevel.NONE, "/changefeed/latest", _GET, "application/json")
    yield Route(Kind.OPENAPI, ResourceLevel.NONE, "/openapi.json", _GET, "application/json")
    yield Route(Kind.YAML, ResourceLevel.NONE, "/api.yaml", _GET, "application/yaml")


# Below /v1 and /v2.
ROUTES: tuple[Route, ...] = tuple(_rows())
# Below /v1 and /v2, but no part of DICOMweb: its descriptions leave them out.
SHARING: tuple[Route, ...] = (
    Route(Kind.SHARES, ResourceLevel.STUDY, "/studies/{study}/shares", ("GET", "POST"), "application/json"),
    Route(Kind.SHARE, ResourceLevel.STUDY, "/studies/{study}/shares/{share}", ("DELETE",), "text/plain"),
)
# The same, for answers without an end.
FOLLOWING: tuple[Route, ...] = (Route(Kind.EVENTS, ResourceLevel.NONE, "/events", _GET, "text/event-stream"),)
# Below the root, without a version.
UNVERSIONED: tuple[Route, ...] = (
    Route(Kind.WADO_URI, ResourceLevel.INSTANCE, "/wado", _GET, _JPEG),
    Route(Kind.LIVE, ResourceLevel.NONE, "/health/live", _GET, "text/plain"),
    Route(Kind.READY, ResourceLevel.NONE, "/health/ready", _GET, "text/plain"),
)
# For browsers. They are no part of the service, so its descriptions leave them out.
PAGES: tuple[Route, ...] = (
    Route(Kind.SESSION, ResourceLevel.NONE, "/session", ("POST", "DELETE"), "application/json"),
    Route(Kind.ISSUER, ResourceLevel.NONE, "/session/{path}", _GET, "text/html"),
    Route(Kind.PAGE, ResourceLevel.NONE, "/", _GET, "text/html"),
    Route(Kind.PAGE, ResourceLevel.NONE, "/page/{path}", _GET, "text/html"),
    Route(Kind.VIEWER, ResourceLevel.NONE, "/viewer/{path}", _GET, "text/html"),
)


class Target(NamedTuple):
    """A target resource. `version` is the newest for those without a version. `frames` are the numbers of the
    path, from 1, in its order and with repeats. `bulk` is the path of a bulk value ("7FE00010",
    "00480105/0/00282000"). `file` is the path below the route of a page, decoded. `share`
    is the id of a share link."""

    route: Route
    version: int = VERSIONS[-1]
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    frames: tuple[int, ...] = ()
    bulk: str | None = None
    file: str = ""
    share: str = ""

    @property
    def kind(self) -> Kind:
        return self.route.kind

    @property
    def level(self) -> ResourceLevel:
        return self.route.level

    def check_method(self, method: str) -> None:
        """Raises MethodNotAllowed."""
        if method not in self.route.methods and method not in self.route.allow:
            raise MethodNotAllowed(f"this resource has no {method[:20]}", self.route.allow)


# A study, series, instance or frame, and at most one name below it: most paths.
_PLAIN_UID = "([0-9][0-9.]{0,63})"
_PLAIN = re.compile(
    rf"/v([{VERSIONS[0]}-{VERSIONS[-1]}])/studies/{_PLAIN_UID}(?:/series/{_PLAIN_UID}(?:/instances/{_PLAIN_UID}"
    rf"(?:/frames/([1-9][0-9]{{0,{MAX_FRAME_DIGITS - 1}}}))?)?)?((?:/[a-z]+)?)\Z"
)
_ABOVE = (_LEVELS[-1][1] + "/frames/{}", *(template for _, template in reversed(_LEVELS)))
# (how many of series, instance and frame are missing, name below) -> route
_PLAIN_ROUTES = {
    (missing, template[len(above) :]): route
    for missing, above in enumerate(_ABOVE)
    for route in ROUTES
    for template in [re.sub(r"{frames?}", "{}", route.template)]
    if re.fullmatch(re.escape(above) + "(/[a-z]+)?", template)
}


# Paths without variables.
_FIXED = {
    f"{prefix}{route.template}": Target(route, version)
    for prefix, version, routes in (
        *((f"/v{version}", version, (*ROUTES, *FOLLOWING)) for version in VERSIONS),
        ("", VERSIONS[-1], (*UNVERSIONED, *PAGES)),
    )
    for route in routes
    if "{" not in route.template
}


def target_of(path: str) -> Target:
    """The target of the path of a request, percent-encoded and without query. Raises NotFound, BadRequest
    and URITooLong."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed
    plain = _PLAIN.match(path)
    if plain is not None and ".." not in path and "./" not in path and path[-1] != ".":
        version, study, series, instance, frame, below = plain.groups()
        route = _PLAIN_ROUTES.get(((series is None) + (instance is None) + (frame is None), below))
        if route is not None:
            frames = (int(frame),) if frame else ()
            return Target(route, int(version), study, series, instance, frames)
    return target_in_table(path)


def target_in_table(path: str) -> Target:
    """As `target_of`, without the regular expression."""
    segments = [percent_decoded(segment) for segment in path.split("/")[1:]]
    if segments and (version := _VERSION.match(segments[0])):
        number = int(version[1])
        if number in VERSIONS:
            return _target(_without_empty(segments[1:]), number)
    elif found := _find((*UNVERSIONED, *PAGES), segments):
        return Target(found[0], file=found[1].get("path", ""))
    raise no_version()


def no_version() -> NotFound:
    supported = " and ".join(f"/v{version}" for version in VERSIONS)
    return NotFound(f"the path names no version of this service: supported are {supported}")


def _without_empty(segments: list[str]) -> list[str]:
    kept = segments[1:] if segments[:1] == [""] else segments
    if kept[:2] == ["studies", ""]:
        kept = ["studies", *kept[2:]]
    return kept


def _find(routes: Sequence[Route], segments: list[str]) -> tuple[Route, dict[str, str]] | None:
    """The route of a path, and the values of the variables in its template."""
    for route in routes:
        parts = route.template.split("/")[1:]
        rest = len(parts) - 1
        given = [*segments[:rest], "/".join(segments[rest:])] if parts[-1:] == ["{path}"] else segments
        pairs = list(zip(parts, given, strict=False))
        if len(parts) == len(given) and all(part == segment or part[:1] == "{" for part, segment in pairs):
            return route, {part[1:-1]: segment for part, segment in pairs if part[:1] == "{"}
    return None


def _target(segments: list[str], version: int) -> Target:
    found = _find((*ROUTES, *SHARING, *FOLLOWING), segments)
    if found is None:
        raise NotFound("this service has no such resource")
    route, values = found
    listed = values.get("frames", values.get("frame"))
    frames = frame_numbers(listed) if listed is not None else ()
    if len(frames) > 1 and route.kind is Kind.THUMBNAIL:
        raise BadRequest("a thumbnail has one frame")
    uids = {name: uid_of(values[name], name) for name in ("study", "series", "instance") if name in values}
    bulk = bulk_path(values["path"]) if "path" in values else None
    return Target(route, version, **uids, frames=frames, bulk=bulk, share=values.get("share", ""))


# The parts of a path


def uid_of(text: str, name: str) -> str:
    """Returns the UID if it is valid. Raises BadRequest."""
    if not _UID.match(text):
        raise BadRequest(f"the {name} UID {text[:80]!r} is not digits and dots of at most 64 characters")
    return text


def frame_numbers(text: str) -> tuple[int, ...]:
    """A comma list of frame numbers from 1, in its order and with repeats. Raises BadRequest, NotFound and
    URITooLong."""
    if text.count(",") >= MAX_FRAMES:
        raise URITooLong(f"a frame list may hold at most {MAX_FRAMES} numbers")
    return tuple(_frame_number(number) for number in text.split(","))


def _frame_number(text: str) -> int:
    number = _FRAME.match(text)
    if number is None:
        raise BadRequest(f"{text[:20]!r} in the frame list is not a whole number from 1")
    if len(number[1]) > MAX_FRAME_DIGITS:
        raise NotFound(f"no SOP instance has a frame {number[1][:20]}")
    return int(number[1])


def bulk_path(text: str) -> str:
    """The path of a bulk value with its tags in upper case. Raises BadRequest."""
    if len(text) > MAX_BULK_PATH or not _BULK.match(text):
        raise BadRequest(f"{text[:80]!r} is not a bulk data path: a tag of eight hex digits, or tag/item/tag")
    return text.upper()


def percent_decoded(text: str) -> str:
    """Decodes a piece of the request line as UTF-8. `text` is in ISO 8859-1 (RFC 9112 2.2). Raises
    BadRequest."""
    if "%" not in text and text.isascii():
        return text
    if _BAD_ESCAPE.search(text):
        raise BadRequest("the URL has a percent sign that does not begin an escape")
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode("utf-8")
    except UnicodeError:
        raise BadRequest("the URL is not UTF-8 after percent-decoding") from None


def parse_query(query: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a query in their order; `+` is a blank. Raises BadRequest and URITooLong."""
    if not query:
        return ()
    if query.count("&") >= MAX_PARAMETERS:
        raise URITooLong(f"a query may hold at most {MAX_PARAMETERS} parameters")
    pairs = (pair.partition("=") for pair in query.replace("+", " ").split("&") if pair)
    return tuple((percent_decoded(name), percent_decoded(value)) for name, _, value in pairs)


# URLs. `base` ends with the version and without a slash ("http://h:1/v2"). UIDs need no encoding.


def base_url(origin: str, version: int) -> str:
    """`origin` has scheme and host, and the path that a proxy adds."""
    return f"{origin.rstrip('/')}/v{version}"


def study_url(base: str, study: str) -> str:
    return f"{base}/studies/{study}"


def series_url(base: str, study: str, series: str) -> str:
    return f"{base}/studies/{study}/series/{series}"


def instance_url(base: str, study: str, series: str, instance: str) -> str:
    return f"{base}/studies/{study}/series/{series}/instances/{instance}"


def frame_url(base: str, study: str, series: str, instance: str, frame_number: int) -> str:
    return f"{instance_url(base, study, series, instance)}/frames/{frame_number}"


def bulk_url(base: str, study: str, series: str, instance: str, path: str) -> str:
    """For BulkDataURI and Content-Location of the value at `path`."""
    return f"{instance_url(base, study, series, instance)}/bulkdata/{path}"

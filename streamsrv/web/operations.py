"""The operations of this service: requests and their answers as values, from the table of routes and a few
tables beside it.

Strategy: the documents for machines (the capabilities of PS3.18 8.9, OpenAPI) are written from these values.
Tests compare them with a running server. A status that is not listed here is an error, of the server or of
this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamsrv.dicom.syntaxes import SYNTAXES
from streamsrv.events import FEED_PARAMETERS, MOST
from streamsrv.query.attributes import QUERY_ATTRIBUTES
from streamsrv.search.parameters import PARAMETERS
from streamsrv.wire.accept import DOCUMENT_TYPES, IMAGE_TYPES, MEDIA_SYNTAXES, PAGE_TYPES, THUMBNAIL_TYPES
from streamsrv.wire.mediatypes import DICOM, DICOM_JSON, DICOM_XML, JSON, MULTIPART, ZIP
from streamsrv.wire.problems import PROBLEM, TEXT
from streamsrv.wire.resources import ROUTES, UNVERSIONED, Kind, ResourceLevel, Route

WADL = "application/vnd.sun.wadl+xml"
YAML = "application/yaml"
_UID = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}


@dataclass(frozen=True, slots=True)
class Parameter:
    """`place` is path, query or header, `schema` a JSON schema."""

    name: str
    place: str
    text: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Operation:
    """`answers` has the media types of each status; an empty tuple means no body."""

    method: str
    route: Route
    summary: str
    parameters: tuple[Parameter, ...]
    takes: tuple[str, ...]
    answers: Mapping[int, tuple[str, ...]]


# -- parameters

_PATH = {
    "study": Parameter("study", "path", "Study Instance UID", _UID),
    "series": Parameter("series", "path", "Series Instance UID", _UID),
    "instance": Parameter("instance", "path", "SOP Instance UID", _UID),
    "frames": Parameter(
        "frames",
        "path",
        "frame numbers from 1; order and repeats are kept",
        {"type": "string", "pattern": "^[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*$"},
    ),
    "frame": Parameter(
        "frame", "path", "a frame number from 1", {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    ),
    "path": Parameter(
        "path",
        "path",
        "tags in hex, with item numbers from 0 between them; the slashes may be sent as they are",
        {"type": "string", "pattern": "^[0-9A-Fa-f]{8}(/[0-9]{1,10}/[0-9A-Fa-f]{8})*$"},
    ),
}
_ACCEPT = Parameter("accept", "query", PARAMETERS["accept"])
_UTF8 = {"type": "string", "enum": ["utf-8"]}
_CHARSET = Parameter("charset", "query", PARAMETERS["charset"], _UTF8)
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_SCHEMAS: dict[str, Mapping[str, Any]] = {
    "limit": _NUMBER,
    "offset": _NUMBER,
    "fuzzymatching": {"type": "boolean"},
    "charset": _UTF8,
    "emptyvaluematching": {"type": "boolean"},
    "multiplevaluematching": {"type": "boolean"},
    "ignorecase": {"type": "boolean"},
}
_SEARCH = tuple(
    Parameter(name, "query", text, _SCHEMAS.get(name, {"type": "string"}))
    for name, text in PARAMETERS.items()
)
_PICTURE = (
    Parameter("viewport", "query", "width,height, or width,height,left,top,width,height (PS3.18 8.3.5.1.3)"),
    Parameter("window", "query", "center,width,function: linear, linear-exact or sigmoid (8.3.5.1.4)"),
    Parameter("quality", "query", "of lossy pictures", {"type": "integer", "minimum": 1, "maximum": 100}),
    Parameter("iccprofile", "query", "no, yes or srgb (8.3.5.1.5)"),
    Parameter("annotation", "query", "patient, technique, or both with a comma (8.3.5.1.1)"),
)
_THUMBNAIL = _PICTURE[:1]
_FIELDS = (Parameter("includefield", "query", "only these attributes: keywords, tags, paths joined by dots"),)
_HEADERS = (
    Parameter("If-Match", "header", "answered with 412 unless the ETag is still one of these"),
    Parameter("If-None-Match", "header", "answered with 304 if the ETag is still the same"),
    Parameter("Range", "header", "one range of bytes"),
    Parameter("If-Range", "header", "the ETag for which the range is meant"),
)
_LINK = tuple(
    Parameter(name, "query", text)
    for name, text in (
        ("requestType", "WADO"),
        ("studyUID", "Study Instance UID"),
        ("seriesUID", "Series Instance UID"),
        ("objectUID", "SOP Instance UID"),
        ("contentType", "a list of media types"),
        ("charset", "acceptable character sets of text, UTF-8 among them"),
        ("transferSyntax", "a UID, for application/dicom"),
        ("frameNumber", "a frame number from 1"),
        ("rows", "the largest height of the picture"),
        ("columns", "the largest width of the picture"),
        ("region", "left,top,right,bottom, each from 0 to 1"),
        ("windowCenter", "with windowWidth"),
        ("windowWidth", "with windowCenter"),
        ("imageQuality", "of lossy pictures, from 1 to 100"),
        ("annotation", "patient, technique, or both with a comma"),
    )
)
_BOUNDS: dict[str, Mapping[str, Any]] = {
    "offset": _NUMBER,
    "limit": {"type": "integer", "minimum": 1, "maximum": max(MOST.values())},
    "startTime": {"type": "string", "format": "date-time"},
    "endTime": {"type": "string", "format": "date-time"},
    "includeMetadata": {"type": "boolean"},
}
_FEED = tuple(Parameter(name, "query", text, _BOUNDS[name]) for name, text in FEED_PARAMETERS.items())
_BY_KIND: dict[Kind, tuple[Parameter, ...]] = {
    Kind.METADATA: (*_FIELDS, _CHARSET),
    Kind.RENDERED: _PICTURE,
    Kind.THUMBNAIL: _THUMBNAIL,
    Kind.WADO_URI: _LINK,
    Kind.CHANGEFEED: (*_FEED, _CHARSET),
    Kind.LATEST: (_FEED[-1], _CHARSET),
}


def matching_keys(route: Route) -> Iterator[Parameter]:
    """The attributes that a search of this level must match; it matches all others too."""
    for row in QUERY_ATTRIBUTES:
        if row.required and row.level < route.level and "." not in row.tag:
            yield Parameter(row.keyword, "query", f"{row.tag}, {row.vr}")


# -- answers

_PIXELS = tuple(dict.fromkeys((*MEDIA_SYNTAXES, *(row.media_type for row in SYNTAXES.values()))))
_VIDEOS = tuple(name for name in _PIXELS if name.startswith("video/"))
_DOCUMENTS = tuple(dict.fromkeys((*PAGE_TYPES, *DOCUMENT_TYPES)))
_REPRESENTATIONS: dict[Kind, tuple[str, ...]] = {
    Kind.SEARCH: (DICOM_JSON, JSON, MULTIPART),
    Kind.INSTANCES: (MULTIPART, DICOM, ZIP),
    Kind.METADATA: (DICOM_JSON, JSON, MULTIPART),
    Kind.FRAMES: (MULTIPART, *_PIXELS),
    Kind.RENDERED: (*IMAGE_TYPES, MULTIPART, *_DOCUMENTS, *_VIDEOS),
    Kind.THUMBNAIL: (*THUMBNAIL_TYPES, MULTIPART),
    Kind.BULKDATA: (MULTIPART, *_PIXELS, *DOCUMENT_TYPES),
    Kind.PIXELDATA: (MULTIPART, *_PIXELS),
    Kind.WADO_URI: (DICOM, *IMAGE_TYPES, *_DOCUMENTS, *_VIDEOS),
    Kind.LIVE: (TEXT,),
    Kind.READY: (TEXT,),
    Kind.SERVICE: (WADL, JSON),
    Kind.CHANGEFEED: (JSON, DICOM_JSON),
    Kind.LATEST: (JSON, DICOM_JSON),
    Kind.OPENAPI: (JSON,),
    Kind.YAML: (YAML,),
}
_ERRORS = (PROBLEM, TEXT)
STORE_TYPES = (MULTIPART, DICOM)
RESPONSES = (DICOM_JSON, JSON, DICOM_XML)
# Of every operation, and of those of each method.
_ALWAYS = (400, 401, 403, 404, 413, 414, 429, 431, 500, 503)
_REFUSALS = {
    "GET": (406, 412, 416),
    "HEAD": (406, 412),
    "POST": (406, 408, 411, 412, 415, 507),
    "DELETE": (412, 507),
    "OPTIONS": (406,),
}
_NO_CONTENT = {"POST": (204,), "DELETE": (204,), "OPTIONS": (204,)}
_DESCRIBED = frozenset((Kind.LIVE, Kind.READY, Kind.OPENAPI, Kind.YAML))

_WORDS = {
    Kind.SERVICE: "the capabilities of the service",
    Kind.INSTANCES: "SOP instances",
    Kind.METADATA: "metadata",
    Kind.FRAMES: "frames",
    Kind.RENDERED: "pictures",
    Kind.THUMBNAIL: "a thumbnail",
    Kind.BULKDATA: "bulk data",
    Kind.PIXELDATA: "pixel data",
    Kind.WADO_URI: "an instance, or a picture of it (WADO-URI)",
    Kind.LIVE: "whether the process answers",
    Kind.READY: "whether requests are welcome",
    Kind.CHANGEFEED: "changes of the store in their order",
    Kind.LATEST: "the last change of the store",
    Kind.OPENAPI: "this description, as JSON",
    Kind.YAML: "this description, as YAML",
}
_VERBS = {
    "POST": "Store SOP instances",
    "DELETE": "Delete the SOP instances",
    "OPTIONS": "Capabilities of this resource and those below it; with Origin a CORS preflight",
}


def operations(route: Route) -> list[Operation]:
    """All that may be asked of a resource."""
    return [_operation(method, route) for method in route.allow]


def described_routes() -> Iterable[Route]:
    return (*ROUTES, *UNVERSIONED)


def _operation(method: str, route: Route) -> Operation:
    takes = STORE_TYPES if method == "POST" else ()
    return Operation(
        method,
        route,
        _summary(method, route),
        tuple(_parameters(method, route)),
        takes,
        _answers(method, route),
    )


def _summary(method: str, route: Route) -> str:
    if method in _VERBS:
        return _VERBS[method]
    verb = "Retrieve" if method == "GET" else "The headers of a GET:"
    if route.kind is Kind.SEARCH:
        lists = {ResourceLevel.STUDY: "studies", ResourceLevel.SERIES: "series"}
        found = lists.get(route.level, "SOP instances")
        return f"Search for {found}" if method == "GET" else f"{verb} search for {found}"
    return f"{verb} {_WORDS[route.kind]}"


def _parameters(method: str, route: Route) -> Iterator[Parameter]:
    for segment in route.template.split("/"):
        if segment.startswith("{"):
            yield _PATH[segment[1:-1]]
    if method not in ("GET", "HEAD") or route.kind in _DESCRIBED:
        return
    if route.kind is Kind.SEARCH:
        yield from matching_keys(route)
        yield from _SEARCH
    else:
        if route.kind is not Kind.WADO_URI:
            yield _ACCEPT
        yield from _BY_KIND.get(route.kind, ())
    if method == "GET":
        yield from _HEADERS


def _answers(method: str, route: Route) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = dict.fromkeys(_NO_CONTENT.get(method, ()), ())
    if method == "OPTIONS":
        found[200] = (WADL, JSON)
    elif method == "POST":
        found |= dict.fromkeys((200, 202, 409), RESPONSES)
    elif method in ("GET", "HEAD"):
        found |= _read(method, route)
    errors = dict.fromkeys((*_ALWAYS, *_REFUSALS[method]), _ERRORS)
    found |= {status: types for status, types in errors.items() if status not in found}
    if method == "HEAD":
        found = dict.fromkeys(found, ())
    if method == "POST":
        found[409] = (*RESPONSES, *_ERRORS)
    return dict(sorted(found.items()))


def _read(method: str, route: Route) -> dict[int, tuple[str, ...]]:
    types = _REPRESENTATIONS[route.kind]
    found: dict[int, tuple[str, ...]] = {200: types, 304: ()}
    if route.kind in (Kind.LIVE, Kind.READY):
        del found[304]
    elif method == "GET":
        found[206] = types
    if route.kind in (Kind.SEARCH, Kind.LATEST):
        found[204] = ()
    if route.kind is Kind.CHANGEFEED:
        found[410] = _ERRORS
    if route.kind is Kind.READY:
        found[503] = types
    return found

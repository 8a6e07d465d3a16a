"""The service as a document: OpenAPI 3.1 in JSON and YAML, and WADL.

The answer to OPTIONS is the capabilities description (PS3.18 8.9, Annex H), and so is the answer to GET of
the base URL. Its default, a WADL document, lists each resource at and below the target, with methods,
parameters and the media types of each status. A client that accepts JSON gets the OpenAPI document of the
whole service.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from streamsrv import __version__
from streamsrv.web.operations import WADL, YAML, Operation, Parameter, described_routes, operations
from streamsrv.wire.accept import AcceptableRange, Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, Literal, Request
from streamsrv.wire.codings import check_charset
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.mediatypes import DICOM_JSON, JSON
from streamsrv.wire.problems import PROBLEM
from streamsrv.wire.resources import ROUTES, UNVERSIONED, Kind, Route

OFFERS = (Offer(WADL), Offer(JSON))
# The resources that describe the service.
KINDS = frozenset((Kind.SERVICE, Kind.OPENAPI, Kind.YAML))
_CHANGES = {Kind.CHANGEFEED: "Changes", Kind.LATEST: "Change"}
_STYLES = {"path": "template", "query": "query", "header": "header"}

_REASONS = {
    200: "done",
    202: "some instances were not stored, or stored with a warning",
    204: "done, and nothing to say",
    206: "the range that was asked for",
    304: "the representation is the one that the client has",
    400: "a malformed UID, parameter or body; `detail` says which",
    401: "the request has no valid credentials; WWW-Authenticate lists the schemes",
    403: "a right is missing, this Host is not expected, or the server is read-only",
    404: "nothing there",
    406: "no acceptable representation; those that there are, are listed",
    408: "the body arrived too slowly",
    409: "nothing was stored",
    410: "the oldest changes are gone: `detail` says where those that are kept begin",
    411: "the length of the body is missing",
    412: "a precondition does not hold; nothing was done",
    413: "over a limit",
    414: "the URL is too long",
    415: "the media type or coding of the body is not supported; those that are, are listed",
    416: "the range lies outside the representation",
    429: "this client has its share: come again after Retry-After",
    431: "the headers are too long",
    500: "the server failed",
    503: "busy or not ready: come again after Retry-After",
    507: "the disk is nearly full",
}
_TEXT = {"type": "string"}
_STRINGS = {"type": "array", "items": _TEXT}
_ATTRIBUTE = {
    "type": "object",
    "required": ["vr"],
    "properties": {
        "vr": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "Value": {"type": "array"},
        "BulkDataURI": _TEXT,
        "InlineBinary": _TEXT,
    },
}
_DATASET = {
    "type": "object",
    "description": "DICOM JSON (PS3.18 Annex F)",
    "patternProperties": {"^[0-9A-F]{8}$": _ATTRIBUTE},
    "additionalProperties": False,
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "instance": {"type": "string", "description": "the request id"},
        "acceptable": _STRINGS,
        "supported": _STRINGS,
        "allow": _STRINGS,
        "offset": {"type": "integer"},
        "tag": _TEXT,
    },
}
_CHANGE = {
    "type": "object",
    "required": [
        *("sequence", "studyInstanceUid", "seriesInstanceUid", "sopInstanceUid"),
        *("action", "timestamp", "state"),
    ],
    "properties": {
        "sequence": {"type": "integer"},
        "studyInstanceUid": _TEXT,
        "seriesInstanceUid": _TEXT,
        "sopInstanceUid": _TEXT,
        "action": {"enum": ["create", "update", "delete"]},
        "timestamp": {"type": "string", "format": "date-time"},
        "state": {"enum": ["current", "replaced", "deleted"]},
        "metadata": {"$ref": "#/components/schemas/Dataset"},
    },
    "additionalProperties": False,
}
# None of them is needed by a server with auth = none.
_SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"basic": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key, or a token of the issuer"},
    "basic": {"type": "http", "scheme": "basic", "description": "the name of a key, and the key"},
}
_SCHEMAS = {
    "Dataset": _DATASET,
    "Change": _CHANGE,
    "Changes": {"type": "array", "items": {"$ref": "#/components/schemas/Change"}},
    "Datasets": {"type": "array", "items": {"$ref": "#/components/schemas/Dataset"}},
    "Problem": _PROBLEM,
}


def document(base: str) -> dict[str, Any]:
    """`base` is the URL of the service with its version."""
    routes = list(described_routes())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamsrv",
            "version": __version__,
            "summary": "DICOMweb (PS3.18): store, retrieve, search, delete",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base}],
        "paths": {route.template or "/": _path(base, route) for route in routes},
        "security": _SECURITY,
        "components": {"schemas": _SCHEMAS, "securitySchemes": _SCHEMES},
    }


def _path(base: str, route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {each.method.lower(): _described(each) for each in operations(route)}
    if route in UNVERSIONED:
        found["servers"] = [{"url": base.rpartition("/")[0]}]
    return found


def _described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [str(operation.route.kind)],
        "parameters": [_parameter(each) for each in operation.parameters],
        "responses": {
            str(status): {"description": _REASONS[status], **_content(types, status, operation)}
            for status, types in operation.answers.items()
        },
    }
    if operation.takes:
        body = {media_type: {"schema": _TEXT} for media_type in operation.takes}
        found["requestBody"] = {"required": True, "content": body}
    return found


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }


def _content(types: tuple[str, ...], status: int, operation: Operation) -> dict[str, Any]:
    if not types:
        return {}
    return {"content": {each: {"schema": _schema(each, status, operation)} for each in types}}


def _schema(media_type: str, status: int, operation: Operation) -> Mapping[str, Any]:
    if media_type == PROBLEM:
        return {"$ref": "#/components/schemas/Problem"}
    if operation.method == "GET" and status == 200 and operation.route.kind in _CHANGES:
        return {"$ref": f"#/components/schemas/{_CHANGES[operation.route.kind]}"}
    if media_type in (DICOM_JSON, JSON) and status != 206 and operation.route.kind not in KINDS:
        if operation.method == "GET":
            return {"$ref": "#/components/schemas/Datasets"}
        if operation.method == "POST":
            return {"$ref": "#/components/schemas/Dataset"}
    return {}


# Answers


def json_text(base: str) -> bytes:
    return json.dumps(document(base), indent=1).encode() + b"\n"


def answer(request: Request, route: Route) -> Answer:
    """The answer to GET of a route whose kind is in KINDS. The OpenAPI description as YAML is its JSON text,
    since JSON is YAML (YAML 1.2.2, 1.3). Raises NotAcceptable."""
    check_charset(request)
    if route.kind is Kind.SERVICE:
        accepted = tuple(value for name, value in request.query if name == "accept")
        ranges = parse_accept(request.headers.get("accept"), accepted)
        headers, body = _capabilities(request.base_url, route, ranges)
    else:
        body = json_text(request.base_url)
        media_type = YAML if route.kind is Kind.YAML else JSON
        headers = [("Content-Type", media_type), ("Cache-Control", "private, no-cache")]
    built = Answer(200, headers, (Literal(body),), len(body))
    return evaluate(request, built, etag_of((), body.decode()))


# WADL


def capabilities(base: str, target: Route | None, ranges: Sequence[AcceptableRange] = ()) -> Answer:
    """The capabilities description of `target` and the resources below it. None means the whole server
    (`OPTIONS *`). Raises NotAcceptable."""
    headers, text = _capabilities(base, target, ranges)
    if target is not None:
        headers.append(("Allow", ", ".join(target.allow)))
    return Answer(200, headers, (Literal(text),), len(text))


def _capabilities(
    base: str, target: Route | None, ranges: Sequence[AcceptableRange]
) -> tuple[list[tuple[str, str]], bytes]:
    offer = choose_json(ranges, OFFERS)
    below = target.template if target is not None else ""
    routes = [route for route in ROUTES if route.methods and is_below(route.template, below)]
    as_json = offer.media_type == JSON
    text = json_text(base) if as_json else "\n".join(_document(base, routes)).encode()
    kept = ("Cache-Control", "private, no-cache")
    return [("Content-Type", offer.media_type), ("Vary", "Accept"), kept], text


def is_below(template: str, above: str) -> bool:
    return template == above or template.startswith(above + "/")


def _document(base: str, routes: Sequence[Route]) -> Iterable[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield '<application xmlns="http://wadl.dev.java.net/2009/02" xmlns:xs="http://www.w3.org/2001/XMLSchema">'
    yield f"<resources base={quoteattr(base)}>"
    for route in routes:
        yield f"<resource path={quoteattr(route.template.lstrip('/'))}>"
        all_operations = operations(route)
        yield from (_param(each) for each in all_operations[0].parameters if each.place == "path")
        for operation in all_operations:
            if operation.method in route.methods:
                yield from _method(operation)
        yield "</resource>"
    yield "</resources>"
    yield "</application>"


def _method(operation: Operation) -> Iterator[str]:
    yield f'<method name="{operation.method}">'
    yield "<request>"
    yield from (_param(each) for each in operation.parameters if each.place != "path")
    yield from _representations(operation.takes)
    yield "</request>"
    for status, types in operation.answers.items():
        yield f'<response status="{status}">'
        yield from _representations(types)
        yield "</response>"
    yield "</method>"


def _representations(types: Iterable[str]) -> Iterator[str]:
    return (f"<representation mediaType={quoteattr(each)}/>" for each in types)


def _param(parameter: Parameter) -> str:
    kind = {"integer": "xs:integer", "boolean": "xs:boolean"}.get(parameter.schema["type"], "xs:string")
    required = ' required="true"' if parameter.place == "path" else ""
    return f'<param name="{parameter.name}" style="{_STYLES[parameter.place]}" type="{kind}"{required}/>'

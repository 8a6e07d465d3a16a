"""The capabilities description (PS3.18 8.9, Annex H): what OPTIONS tells of this service.

A WADL document, the default, lists every resource at and below the target with its methods, their parameters
and the media types of each status. Who asks for JSON gets the OpenAPI description of the whole service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import quoteattr

from streamsrv.web import openapi
from streamsrv.web.description import WADL, Operation, Parameter, operations
from streamsrv.wire.accept import AcceptableRange, Offer, choose_json
from streamsrv.wire.answers import Answer, Literal
from streamsrv.wire.mediatypes import JSON
from streamsrv.wire.resources import ROUTES, Route

OFFERS = (Offer(WADL), Offer(JSON))
_STYLES = {"path": "template", "query": "query", "header": "header"}


def describe(base: str, target: Route | None, ranges: Sequence[AcceptableRange] = ()) -> Answer:
    """`target` None means the server as a whole (`OPTIONS *`). Raises NotAcceptable."""
    offer = choose_json(ranges, OFFERS)
    below = target.template if target is not None else ""
    routes = [route for route in ROUTES if route.methods and is_below(route.template, below)]
    as_json = offer.media_type == JSON
    text = openapi.json_text(base) if as_json else "\n".join(_document(base, routes)).encode()
    headers = [("Content-Type", offer.media_type), ("Vary", "Accept"), ("Cache-Control", "no-cache")]
    if target is not None:
        headers.append(("Allow", ", ".join(target.allow)))
    return Answer(200, headers, (Literal(text),), len(text))


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

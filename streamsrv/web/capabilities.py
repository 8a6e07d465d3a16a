"""The capabilities description (PS3.18 8.9): what OPTIONS tells of this service, from the table of routes.

A WADL document (the default of PS3.18 8.9.3) lists every resource at and below the target with its methods
and the media type that a method answers with unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import quoteattr

from streamsrv.wire.answers import Answer, Literal
from streamsrv.wire.resources import ROUTES, Route

WADL = "application/vnd.sun.wadl+xml"


def describe(base: str, target: Route | None) -> Answer:
    """`target` None means the server as a whole (`OPTIONS *`)."""
    below = target.template if target is not None else ""
    routes = [route for route in ROUTES if route.methods and is_below(route.template, below)]
    text = "\n".join(_document(base, routes)).encode()
    headers = [("Content-Type", WADL)]
    if target is not None:
        headers.append(("Allow", ", ".join(target.allow)))
    return Answer(200, headers, (Literal(text),), len(text))


def is_below(template: str, above: str) -> bool:
    return template == above or template.startswith(above + "/")


def _document(base: str, routes: Sequence[Route]) -> Iterable[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield '<application xmlns="http://wadl.dev.java.net/2009/02">'
    yield f"<resources base={quoteattr(base)}>"
    for route in routes:
        yield f"<resource path={quoteattr(route.template.lstrip('/'))}>"
        yield from (_method(method, route) for method in route.methods)
        yield "</resource>"
    yield "</resources>"
    yield "</application>"


def _method(name: str, route: Route) -> str:
    if name == "GET":
        representation = f"<representation mediaType={quoteattr(route.representation)}/>"
        return f'<method name="GET"><response>{representation}</response></method>'
    return f'<method name="{name}"/>'

"""Structured Reports as pages: HTML, the same page as XML, and plain text, in pieces of about PIECE bytes.

The HTML page is well-formed XML too (XHTML), so `text/xml` gets the same page behind an XML declaration. It
has no script and no image, and its only style is STYLE, which the security policy allows by its digest. The
content of the report is escaped; control characters become U+FFFD.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from streamsrv.dicom.nativexml import escaped, quoted
from streamsrv.reports.content import UNDETERMINED, ContentItem, Report
from streamsrv.reports.wording import (
    Link,
    Places,
    facts_of,
    label_of,
    relationship_of,
    title_of,
    value_of,
)

PIECE = 64 << 10
LAST_HEADING = 6
INDENT = "  "
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111;background:#fff}"
    "h1{font-size:1.6em}h2{font-size:1.3em}h3,h4,h5,h6{font-size:1.1em}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em;padding:1em;background:#f2f4f6}"
    "dt{color:#555}dd{margin:0}p{margin:.3em 0;white-space:pre-wrap;overflow-wrap:anywhere}"
    "section,div{margin-left:1.2em}i{color:#555}"
)
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{b64encode(hashlib.sha256(STYLE.encode()).digest()).decode('ascii')}'"
)
"""The value of Content-Security-Policy for such a page."""

Address = Callable[[Link], str]  # the URL of an instance
XML_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
DOCTYPE = "<!DOCTYPE html>\n"


def html_page(report: Report, address: Address) -> Iterator[bytes]:
    return in_pieces(chain((DOCTYPE,), _page(report, address)))


def xml_page(report: Report, address: Address) -> Iterator[bytes]:
    return in_pieces(chain((XML_DECLARATION,), _page(report, address)))


def plain_page(report: Report, address: Address) -> Iterator[bytes]:
    return in_pieces(_plain(report, address))


def in_pieces(texts: Iterable[str]) -> Iterator[bytes]:
    waiting, length = list[str](), 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= PIECE:
            yield "".join(waiting).encode(errors="replace")
            waiting, length = [], 0
    yield "".join(waiting).encode(errors="replace")


# HTML


def _page(report: Report, address: Address) -> Iterator[str]:
    title = escaped(title_of(report))
    # Labels are English; the language of the report is that of its values.
    yield (
        f'<html xmlns="http://www.w3.org/1999/xhtml" lang="{report.language}" xml:lang="{report.language}">\n'
        f'<head><meta charset="utf-8"/><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"/><style>{STYLE}</style></head>\n'
        f'<body>\n<h1 id="i1">{title}</h1>\n<dl>\n'
    )
    for label, value in facts_of(report):
        yield f'<dt lang="en">{label}</dt><dd>{escaped(value)}</dd>\n'
    yield "</dl>\n<main>\n"
    open_items = list[str]()
    for one in report.items:
        while len(open_items) >= one.depth:
            yield open_items.pop()
        begin, end = _element(one, report.places, address)
        open_items.append(end)
        yield begin
    yield from reversed(open_items)
    yield "</main>\n</body>\n</html>\n"


def _element(one: ContentItem, places: Places, address: Address) -> tuple[str, str]:
    """The beginning and the end of the element of an item; its children stand between them."""
    label, name = escaped(label_of(one)), "i" + "-".join(map(str, one.path))
    relationship = relationship_of(one)
    how = f'{" " * bool(label)}<i lang="en">({relationship})</i>' if relationship else ""
    value = "".join(_piece(piece, address) for piece in value_of(one, places))
    if one.value_type == "CONTAINER" and not value:
        level = min(one.depth + 1, LAST_HEADING)
        return f'<section id="{name}"><h{level}>{label}{how}</h{level}>\n', "</section>\n"
    colon = ": " if (label or how) and value else ""
    return f'<div id="{name}"><p><b>{label}</b>{how}{colon}{value}</p>\n', "</div>\n"


def _piece(piece: str | Link, address: Address) -> str:
    if isinstance(piece, str):
        return escaped(piece)
    url = "#i" + "-".join(map(str, piece.path)) if piece.path else address(piece)
    return f'<a href="{quoted(url)}">{escaped(piece.shown)}</a>'


# Plain text


def _plain(report: Report, address: Address) -> Iterator[str]:
    title = title_of(report)
    yield f"{title}\n{'=' * min(len(title), 80)}\n\n"
    for label, value in facts_of(report):
        yield f"{label}: {_clean(value)}\n"
    if report.language != UNDETERMINED:
        yield f"Language: {report.language}\n"
    yield "\n"
    for one in report.items:
        indent = INDENT * (one.depth - 1)
        relationship = relationship_of(one)
        how = f"({relationship})" if relationship else ""
        pieces = value_of(one, report.places)
        value = "".join(piece if isinstance(piece, str) else _shown(piece, address) for piece in pieces)
        label = " ".join(filter(None, (label_of(one), how)))
        line = f"{label}: {value}" if label and value else label or value
        yield _clean(line).replace("\n", f"\n{indent}{INDENT}").join((indent, "\n"))


def _shown(link: Link, address: Address) -> str:
    return link.shown if link.path else f"{link.shown} <{address(link)}>"


def _clean(value: str) -> str:
    """Line ends of one kind, and no control characters."""
    lines = value.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(one if one in "\n\t" or one.isprintable() or one > "\x9f" else "\ufffd" for one in lines)

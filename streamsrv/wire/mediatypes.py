"""Media types and their parameters (RFC 9110 8.3.1 and 5.6.6), read tolerantly and written strictly.

Strategy: one regular expression for a parameter, one for a comma list, both linear in the length of the text.
Rules:
- Names are compared in lower case. A value is a token or a quoted string; quoted pairs are undone.
- Clients leave quotes away where the grammar wants them (`type=application/dicom`, `boundary=a=b`), so an
  unquoted value is everything up to the next semicolon. Blanks around `=` and `;`, and empty parameters (`;
  ;`), are tolerated.
- Of two parameters with one name the last counts: curl appends its own `boundary` after the one that the user
  gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
JSON = "application/json"
OCTETS = "application/octet-stream"
MULTIPART = "multipart/related"

# token (RFC 9110 5.6.2)
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"

_TYPE = re.compile(rf"[ \t]*({TOKEN}/{TOKEN})[ \t]*(?=;|$)")
# parameter = token BWS "=" BWS ( token / quoted-string ); the name may be missing altogether (empty
# parameter).
_PARAMETER = re.compile(
    rf";[ \t]*(?:({TOKEN})[ \t]*=[ \t]*"
    r'(?:"((?:[^"\\]|\\.)*)"[ \t]*|([^;"]*))|(?=;|$))(?=;|$)',
    re.DOTALL,
)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
# An element of a comma list: quoted strings hide their commas. An unterminated quote hides all the rest.
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|\\?$)|[^",])+', re.DOTALL)


# Of one media type; PS3.18 has five. With more it is none.
MAX_PARAMETERS = 32


class MediaType(NamedTuple):
    """`type` in lower case ("multipart/related"), parameter names too; values as they were given."""

    type: str
    parameters: Mapping[str, str]

    def __str__(self) -> str:
        return media_type_text(self.type, self.parameters)


def parse_media_type(text: str) -> MediaType | None:
    """None if it is not a media type. Wildcards (`*/*`) are media types to this function."""
    head = _TYPE.match(text)
    if head is None or text.count(";") > MAX_PARAMETERS:
        return None
    parameters: dict[str, str] = {}
    at, end = head.end(), len(text)
    while at < end:
        found = _PARAMETER.match(text, at)
        if found is None:
            return None
        name, quoted, bare = found.groups()
        if name is not None:
            parameters[name.lower()] = bare.strip() if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        at = found.end()
    return MediaType(head[1].lower(), parameters)


def split_list(text: str) -> list[str]:
    """The elements of a comma list (RFC 9110 5.6.1), stripped; empty ones are left out."""
    return [element for found in _ELEMENT.findall(text) if (element := found.strip())]


def media_type_text(media_type: str, parameters: Mapping[str, str]) -> str:
    """As it goes into a header: `multipart/related; type="application/dicom"; boundary=abc`, quoted where
    needed."""
    return "; ".join((media_type, *(f"{name}={_written(value)}" for name, value in parameters.items())))


def _written(value: str) -> str:
    if re.fullmatch(TOKEN, value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

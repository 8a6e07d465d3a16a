"""Media types and their parameters (RFC 9110 8.3.1 and 5.6.6): a tolerant reader and a strict writer.

Strategy: one regular expression for a parameter and one for a comma list, both linear in the length of
the text. Rules:
- Names are compared in lower case. A value is a token or a quoted string; quoted pairs are decoded.
- Clients omit quotes that the grammar requires (`type=application/dicom`, `boundary=a=b`), so an unquoted
  value ends at the next semicolon. Blanks around `=` and `;`, and empty parameters (`; ;`), are accepted.
- The last of several parameters with one name counts: curl appends its own `boundary` to that of the user.
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
ZIP = "application/zip"
MULTIPART = "multipart/related"

# token (RFC 9110 5.6.2)
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"

_TYPE = re.compile(rf"[ \t]*({TOKEN}/{TOKEN})[ \t]*(?=;|$)")
# parameter = token BWS "=" BWS ( token / quoted-string ), or an empty parameter
_PARAMETER = re.compile(
    rf";[ \t]*(?:({TOKEN})[ \t]*=[ \t]*"
    r'(?:"((?:[^"\\]|\\.)*)"[ \t]*|([^;"]*))|(?=;|$))(?=;|$)',
    re.DOTALL,
)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
# An element of a comma list. A quoted string may have commas; an unterminated one goes to the end.
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|\\?$)|[^",])+', re.DOTALL)


# Of one media type; PS3.18 has five. With more it is malformed.
MAX_PARAMETERS = 32


class MediaType(NamedTuple):
    """`type` ("multipart/related") and parameter names are lower case; values are as in the text."""

    type: str
    parameters: Mapping[str, str]

    def __str__(self) -> str:
        return media_type_text(self.type, self.parameters)


def parse_media_type(text: str) -> MediaType | None:
    """Returns None if it is not a media type. Wildcards (`*/*`) count as media types."""
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
    """The elements of a comma list (RFC 9110 5.6.1), stripped, without empty ones."""
    return [element for found in _ELEMENT.findall(text) if (element := found.strip())]


def media_type_text(media_type: str, parameters: Mapping[str, str]) -> str:
    """The header value: `multipart/related; type="application/dicom"; boundary=abc`."""
    return "; ".join((media_type, *(f"{name}={_written(value)}" for name, value in parameters.items())))


def _written(value: str) -> str:
    if re.fullmatch(TOKEN, value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

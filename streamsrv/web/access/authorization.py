"""The credentials of a request: its Authorization header (RFC 9110 11.6.2)."""

from __future__ import annotations

from typing import NamedTuple

from streamsrv.errors import BadRequest
from streamsrv.web.head import Head


class Authorization(NamedTuple):
    """`scheme` is lower case, because it is not case-sensitive (RFC 9110 11.1). Both are empty without
    credentials."""

    scheme: str
    value: str


def authorization_of(head: Head) -> Authorization:
    """Raises BadRequest for two Authorization headers: proxy and server might use different ones."""
    text = head.headers.get("authorization", "")
    # Values of headers with one name are joined by commas. Neither Bearer nor Basic has one.
    if "," in text:
        raise BadRequest("Authorization is one header with one scheme, Bearer or Basic")
    scheme, _, value = text.partition(" ")
    return Authorization(scheme.lower(), value.strip())

"""The hash chain of the audit trail: a line holds the digest of its text and of the line before.

    chain(n) = SHA-256(chain(n - 1) as 64 hex digits, line feed, the line n up to `,"chain":`)

The line before the first one has the chain GENESIS. A line that is removed, changed or moved breaks the chain
at the next line. The last lines are protected by the head of the trail (trail.py).
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

CHAIN = b',"chain":"'
_AFTER = b'"}\n'
_DIGITS = 64
_TAIL = len(CHAIN) + _DIGITS + len(_AFTER)


class ChainLink(NamedTuple):
    """The number of an entry, from 1, and its chain."""

    number: int
    chain: str


GENESIS = ChainLink(0, "0" * _DIGITS)


def digest(previous: str, text: bytes) -> str:
    return hashlib.sha256(previous.encode() + b"\n" + text).hexdigest()


def linked(previous: ChainLink, text: bytes) -> tuple[bytes, ChainLink]:
    """The line of an entry, and its link. `text` is a JSON object without its closing brace."""
    link = ChainLink(previous.number + 1, digest(previous.chain, text))
    return text + CHAIN + link.chain.encode() + _AFTER, link


def unlinked(line: bytes) -> tuple[bytes, str] | None:
    """Text and chain of a line with its line feed; None if the line has another form."""
    text, tail = line[:-_TAIL], line[-_TAIL:]
    chain = tail[len(CHAIN) : len(CHAIN) + _DIGITS]
    if tail != CHAIN + chain + _AFTER or not chain.isalnum():
        return None
    return text, chain.decode("ascii")


def parsed(text: bytes) -> tuple[dict[str, Any], str] | None:
    """The JSON object of a line, without its chain, and the chain; None if the line is no entry."""
    found = unlinked(text)
    if found is None:
        return None
    try:
        values = orjson.loads(found[0] + b"}")
    except ValueError:
        return None
    return (values, found[1]) if isinstance(values, dict) and isinstance(values.get("n"), int) else None

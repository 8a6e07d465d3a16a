"""Lists of UIDs as keys. A search by HTTP has a URL of limited length; an identifier may have thousands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from streamsrv.errors import BadRequest
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import UID_LEVELS, Query, query_of
from streamsrv.query.matching import NO_OPTIONS, MatchingOptions

_UID = re.compile(r"[0-9.]{1,64}")


def search_of(level: Level, keys: Iterable[tuple[str, str]], options: MatchingOptions = NO_OPTIONS) -> Query:
    """The search for keys of (name, text). Raises BadRequest, which names the key."""
    plain, uids = list[tuple[str, str]](), dict[Level, frozenset[str]]()
    for name, text in keys:
        if name in UID_LEVELS and text.strip("* "):
            uids[UID_LEVELS[name]] = _uids(name, text)
            text = ""
        plain.append((name, text))
    return replace(query_of(level, None, None, plain, options), uids=uids)


def _uids(name: str, text: str) -> frozenset[str]:
    found = frozenset(each.strip() for each in text.split("\\"))
    if not all(map(_UID.fullmatch, found)):
        raise BadRequest(f"the value of {name} is not a UID")
    return found

"""The client of a request as an identity: its name, rights and rule, and the time until which they hold."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import NamedTuple

from streamsrv.query.rules import Rule
from streamsrv.wire.resources import Kind


class Right(enum.Flag):
    """One right, or a set of them. The command line and files spell it in lower case."""

    SEARCH = enum.auto()
    READ = enum.auto()
    STORE = enum.auto()
    REPLACE = enum.auto()
    DELETE = enum.auto()
    SHARE = enum.auto()
    ADMIN = enum.auto()


NO_RIGHTS = Right(0)
ALL_RIGHTS = ~NO_RIGHTS
# A read-only server takes these from every principal.
CHANGING = Right.STORE | Right.REPLACE | Right.DELETE


class Principal(NamedTuple):
    """`name` is stable, and unique over all ways to authenticate: "key:NAME", "oidc:SUB@HOST". `rule` limits
    the visible studies; None shows all. `until` is the end in seconds of `time.time()`."""

    name: str
    rights: Right
    rule: Rule | None = None
    until: float = math.inf


# A request without credentials, for the resources that need none.
UNKNOWN = Principal("anonymous", NO_RIGHTS)


# Resources without data of patients: they answer without credentials.
OPEN = frozenset((Kind.LIVE, Kind.READY, Kind.SESSION, Kind.ISSUER, Kind.PAGE, Kind.VIEWER))
_SHARING = frozenset((Kind.SHARES, Kind.SHARE))
# The right for GET and HEAD of each kind. Without rights: any principal may read the description.
_READING = {
    **dict.fromkeys((*OPEN, Kind.SERVICE, Kind.OPENAPI, Kind.YAML), NO_RIGHTS),
    **dict.fromkeys((Kind.SEARCH, Kind.CHANGEFEED, Kind.LATEST, Kind.EVENTS), Right.SEARCH),
    **dict.fromkeys((Kind.INSTANCES, Kind.METADATA, Kind.FRAMES, Kind.RENDERED, Kind.THUMBNAIL), Right.READ),
    **dict.fromkeys((Kind.BULKDATA, Kind.PIXELDATA, Kind.WADO_URI), Right.READ),
}
_CHANGING = {"POST": Right.STORE, "DELETE": Right.DELETE}


def needed_rights(method: str, kind: Kind) -> Right:
    """The rights that a method of a resource needs. Raises KeyError for a kind without an entry, so that no
    new resource is open by mistake."""
    if method == "OPTIONS" or kind is Kind.SESSION:
        return NO_RIGHTS
    if kind in _SHARING:
        return Right.SHARE
    return _CHANGING.get(method) or _READING[kind]


def named_rights(rights: Right) -> list[str]:
    return [(right.name or "").lower() for right in Right if right in rights]


def rights_from(names: Iterable[str]) -> Right:
    """Raises ValueError for an unknown name."""
    rights = NO_RIGHTS
    for name in names:
        try:
            rights |= Right[name.strip().upper()]
        except KeyError:
            known = ", ".join(named_rights(ALL_RIGHTS))
            raise ValueError(f"{name.strip()!r} is no right; the rights are {known}") from None
    return rights

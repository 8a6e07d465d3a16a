"""The query parameters of the change feed.

Rules
- Names are compared without case, because clients of the other server write `includemetadata` too.
- A parameter that limits the changes is never ignored: version 1 refuses the times of version 2. Other
  unknown parameters are ignored with a warning.
- A time has a zone (RFC 3339). A `+` that was not percent-encoded arrives as a blank, and counts as a plus.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from streamsrv.errors import BadRequest

# By version of the service: the largest `limit`, and its default.
MOST = {1: 100, 2: 200}
_DEFAULT = {1: 10, 2: 100}

FEED_PARAMETERS = {
    "offset": "version 1: changes after this sequence. Version 2: the number of changes to skip",
    "limit": "the maximum number of changes of an answer",
    "startTime": "changes from this time on, with a zone; version 2",
    "endTime": "changes before this time, with a zone; version 2",
    "includeMetadata": "false: without the metadata of instances",
}
LATEST_PARAMETERS = frozenset(("includemetadata",))
_TIMES = frozenset(("starttime", "endtime"))
_NEGOTIATION = frozenset(("accept", "charset"))
_BOOLEAN = {"true": True, "false": False}
_HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_ZONE_AFTER_BLANK = re.compile(r" (?=[0-9]{2}:?[0-9]{2}\Z)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def feed_default(version: int) -> int:
    """The number of changes of an answer without `limit`."""
    return _DEFAULT[version]


@dataclass(slots=True)
class FeedParameters:
    """Times are in microseconds since 1970; None is no bound. `metadata` is None if the client names neither.
    `warnings` are sentences for Warning headers."""

    offset: int = 0
    limit: int = 0
    start: int | None = None
    end: int | None = None
    metadata: bool | None = None
    warnings: list[str] = field(default_factory=list)


def feed_parameters(pairs: Sequence[tuple[str, str]], version: int, *, latest: bool) -> FeedParameters:
    """Raises BadRequest, which names the parameter."""
    found = FeedParameters(limit=_DEFAULT[version])
    known = {name.lower(): name for name in FEED_PARAMETERS}
    seen: set[str] = set()
    for given, value in pairs:
        name = given.lower()
        if name in _NEGOTIATION:
            continue
        if name not in known or (latest and name not in LATEST_PARAMETERS):
            shown = given if _HARMLESS.fullmatch(given) else "given"
            found.warnings.append(f"the parameter {shown} is not supported and was ignored")
            continue
        if name in seen:
            raise BadRequest(f"the parameter {known[name]} is given twice")
        seen.add(name)
        _read(found, name, known[name], value.strip(), version)
    if found.start is not None and found.end is not None and found.start >= found.end:
        raise BadRequest("startTime must be before endTime")
    return found


def _read(found: FeedParameters, name: str, shown: str, value: str, version: int) -> None:
    if name in _TIMES and version == 1:
        raise BadRequest(f"{shown} is a parameter of version 2; version 1 counts by offset")
    if name == "offset":
        found.offset = _number(shown, value, 0, 10**18)
    elif name == "limit":
        found.limit = _number(shown, value, 1, MOST[version])
    elif name == "starttime":
        found.start = time_of(shown, value)
    elif name == "endtime":
        found.end = time_of(shown, value)
    else:
        found.metadata = _BOOLEAN.get(value.lower())
        if found.metadata is None:
            raise BadRequest(f"{shown} must be true or false")


def _number(name: str, value: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value) or not least <= int(value) <= most:
        raise BadRequest(f"{name} must be a whole number from {least} to {most}")
    return int(value)


def time_of(name: str, value: str) -> int:
    """Microseconds since 1970; a time before counts as 0. Raises BadRequest."""
    try:
        moment = datetime.fromisoformat(_ZONE_AFTER_BLANK.sub("+", value))
    except ValueError:
        raise BadRequest(f"{name} must be a time such as 2024-05-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise BadRequest(f"{name} has no zone: end it with Z, or with an offset such as +01:00")
    return max((moment - _EPOCH) // _MICROSECOND, 0)

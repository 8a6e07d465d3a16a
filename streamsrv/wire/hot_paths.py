"""Targets of paths that are asked for again and again: what `resources.target_of` says, remembered.

Strategy: a viewer walks through the frames of an instance, so of such a path the instance is remembered and
the number read each time; any other path is remembered whole. Only what is found is kept, never a refusal,
and no long path: the two caches hold about 2 MB at most.
"""

from __future__ import annotations

import re
from functools import lru_cache

from streamsrv.errors import RequestError
from streamsrv.wire import resources
from streamsrv.wire.resources import ROUTES, VERSIONS, Kind, Level, Target

# Three UIDs of full length make 230 characters.
LONGEST = 320
ENTRIES = 2048

_FRAMES = next(route for route in ROUTES if route.kind is Kind.FRAMES)
_NUMBER = re.compile(r"[1-9][0-9]{0,9}\Z")
# Such a path is what it says; any other one is looked at more closely.
_PLAIN_UID = r"((?=[0-9.]{1,64}(?:/|\Z))[0-9]+(?:\.[0-9]+)*)"
_PLAIN = re.compile(f"/v([1-9])/studies/{_PLAIN_UID}/series/{_PLAIN_UID}/instances/{_PLAIN_UID}")


def target_of(path: str) -> Target:
    """As `resources.target_of`, and raises the same."""
    if len(path) > LONGEST:
        return resources.target_of(path)
    above, _, number = path.partition("/frames/")
    if _NUMBER.match(number):
        instance = _instance_of(above)
        if instance is not None:
            return Target(_FRAMES, *instance, (int(number),))
    return _remembered(path)


_remembered = lru_cache(ENTRIES)(resources.target_of)


@lru_cache(ENTRIES)
def _instance_of(path: str) -> tuple[int, str | None, str | None, str | None] | None:
    """Version and UIDs, if it is the path of an instance."""
    plain = _PLAIN.fullmatch(path)
    if plain is not None and (version := int(plain[1])) in VERSIONS:
        return version, plain[2], plain[3], plain[4]
    try:
        found = resources.target_of(path)
    except RequestError:
        return None
    if found.kind is not Kind.INSTANCES or found.level is not Level.INSTANCE:
        return None
    return found.version, found.study, found.series, found.instance

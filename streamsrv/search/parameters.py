"""Reads the query string of a search (PS3.18 8.3.4).

Rules
- A name that looks like an attribute is one, or a 400 that names it: ignoring it would match everything.
  Keywords begin with a capital letter and tags are hex digits. No other parameter of the standard does.
- An unknown other parameter is ignored, with a warning. So is an includefield that is unknown, or of a level
  below the results.
- `orderby` and `after` are extensions. A wrong one is a 400, because clients would take a page in another
  order for the right one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from streamsrv.errors import BadRequest
from streamsrv.query.attributes import Level, Path, attributes_at
from streamsrv.query.conditions import path_of
from streamsrv.query.levels import is_below
from streamsrv.query.matching import NO_OPTIONS, MatchingOptions

_KEYWORD = re.compile(r"[A-Z0-9]|.*\.")
_LOWER = frozenset(row.keyword.lower() for level in Level for row in attributes_at(level))
_HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_BOOLEAN = {"true": True, "false": False}

# The parameters that are no attributes, with their description.
PARAMETERS = {
    "limit": "the maximum number of results of an answer",
    "offset": "the number of results to skip",
    "fuzzymatching": "true: every word of a name begins a word of a stored one, without case and accents",
    "includefield": "further attributes of the results: keywords, tags, paths joined by dots, or `all`",
    "emptyvaluematching": 'true: the value `""` matches attributes without value',
    "multiplevaluematching": "true: several values, with a backslash between them, all match",
    "ignorecase": "true: text matches without case. An extension",
    "orderby": "attributes to order results by; `-` before one: descending. An extension",
    "after": "the end of the page before, from its Link header. An extension",
    "accept": "acceptable media types; beats the Accept header",
    "charset": "acceptable character sets, UTF-8 among them; beats the Accept-Charset header",
}


# Read elsewhere (streamsrv/wire/accept.py, streamsrv/wire/codings.py).
NEGOTIATION = frozenset(("accept", "charset"))


@dataclass(frozen=True, slots=True)
class SearchLimits:
    default: int = 200
    most: int = 5000
    rows: int = 1_000_000  # read by one search: some seconds of one core
    metadata: int = 256 << 20  # bytes of JSON text read by one search: the same
    rate: int = 0  # rows a second of one client; 0: no limit
    kept: int = 500  # matches in memory, about 1 MB; an answer with more is streamed


@dataclass(slots=True)
class Parameters:
    """`warnings` are sentences for Warning headers. `orderby` names attributes, perhaps with a `-`."""

    level: Level  # of the results
    limit: int
    kept: int
    offset: int = 0
    options: MatchingOptions = NO_OPTIONS
    everything: bool = False  # includefield=all
    after: str = ""
    orderby: list[str] = field(default_factory=list)
    included: list[Path] = field(default_factory=list)
    matching: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parameters_of(pairs: Sequence[tuple[str, str]], level: Level, limits: SearchLimits) -> Parameters:
    """Raises BadRequest for a value that breaks the rules of its parameter."""
    found = Parameters(level, limits.default, limits.kept)
    for name, value in pairs:
        if read := _READERS.get(name):
            read(found, name, value)
        elif _names_attribute(name):
            found.matching.append((name, value))
        elif name not in NEGOTIATION:
            found.warnings.append(f"the parameter {_shown(name)} is not supported and was ignored")
    if found.limit > limits.most:
        found.warnings.append(f"the limit was lowered to {limits.most}")
        found.limit = limits.most
    return found


def _names_attribute(name: str) -> bool:
    """A keyword in lower case counts as an attribute, an unknown one."""
    return bool(_KEYWORD.match(name)) or path_of(name) is not None or name.lower() in _LOWER


def _number(found: Parameters, name: str, value: str) -> None:
    text = value.strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadRequest(f"{name} must be a whole number")
    setattr(found, name, int(text))


def _option(found: Parameters, name: str, value: str) -> None:
    known = _BOOLEAN.get(value.strip().lower())
    if known is None:
        raise BadRequest(f"{name} must be true or false")
    found.options = replace(found.options, **{_OPTIONS[name]: known})


def _include(found: Parameters, _: str, value: str) -> None:
    for name in (part.strip() for part in value.split(",")):
        path = path_of(name)
        if name.lower() == "all":
            found.everything = True
        elif path is not None and not is_below(path, found.level):
            found.included.append(path)
        elif path is not None:
            found.warnings.append(
                f"the includefield {_shown(name)} is of a level below the results and was ignored"
            )
        elif name:
            found.warnings.append(f"the includefield {_shown(name)} is unknown and was ignored")


def _order(found: Parameters, _: str, value: str) -> None:
    found.orderby += [name for part in value.split(",") if (name := part.strip())]


def _after(found: Parameters, _: str, value: str) -> None:
    found.after = value.strip()


_OPTIONS = {
    "fuzzymatching": "fuzzy",
    "emptyvaluematching": "empty",
    "multiplevaluematching": "multiple",
    "ignorecase": "caseless",
}
_READERS = {
    **dict.fromkeys(_OPTIONS, _option),
    "limit": _number,
    "offset": _number,
    "includefield": _include,
    "orderby": _order,
    "after": _after,
}


def _shown(name: str) -> str:
    """The client's text, if it is harmless in a header."""
    return name if _HARMLESS.fullmatch(name) else "given"

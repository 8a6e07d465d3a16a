"""Search transactions (PS3.18 10.6): six resources, one function from a request to an answer.

Strategy: the parameters become a query (`store.query_conditions`), the index walks to what matches
(`store.index_search`), and each match is already DICOM JSON there. Where nothing else is asked for, the texts
of a page go out as they are, with their slots filled; else they are read, joined and written again. All
matches are found before the status is decided. Up to KEPT of them are kept and answered as one literal; more
are found once more while the answer is being sent, so memory does not grow with the limit.

What an answer holds: the attributes of the level that the resource lists and of the levels above it that the
path does not name, every attribute that was matched, and those of `includefield`. An attribute of a level
below, or of none, comes from the series or instance that met the conditions, else from the first one.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest
from streamsrv.store.index import Index
from streamsrv.store.index_answers import expand, fill, fill_page
from streamsrv.store.index_lists import Budget
from streamsrv.store.index_rows import instance_answer, json_object
from streamsrv.store.index_search import Hit
from streamsrv.store.query import BY_TAG, Level, Path, Returned, attributes_at
from streamsrv.store.query_conditions import Query, path_of, query_of
from streamsrv.store.rows import InstanceKey
from streamsrv.wire.accept import choose_json, parse_accept
from streamsrv.wire.answers import Answer, Literal, Request, Stream
from streamsrv.wire.resources import Target

KEPT = 500  # matches in memory: about 1 MB
PAGE = 100  # matches rendered at once while streaming

_KEYWORD = re.compile(r"[A-Z0-9]|.*\.")
_SPEAKABLE = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_BOOLEAN = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class SearchLimits:
    default: int = 200
    most: int = 5000
    rows: int = 1_000_000  # looked at by one search: some seconds of one core
    metadata: int = 256 << 20  # bytes of JSON text read by one search, the same


class Indexed(Protocol):
    """What is needed of a store."""

    @property
    def index(self) -> Index: ...


@dataclass(slots=True)
class Parameters:
    """The query string, sorted out. `warnings` are sentences for Warning headers."""

    limit: int
    offset: int = 0
    fuzzy: bool = False
    everything: bool = False  # includefield=all
    included: list[Path] = field(default_factory=list)
    matching: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def answer(store: Indexed, request: Request, target: Target, limits: SearchLimits | None = None) -> Answer:
    limits = limits or SearchLimits()
    accepted = [value for name, value in request.query if name == "accept"]
    offer = choose_json(parse_accept(request.headers.get("accept"), accepted))
    parameters = parameters_of(request.query, limits)
    query = query_of(
        Level[target.level.name], target.study, target.series, parameters.matching, fuzzy=parameters.fuzzy
    )
    query = dataclasses.replace(query, wanted=parameters.offset + parameters.limit + 1)
    found = _Found(store.index, query, parameters, limits)
    headers = [("Vary", "Accept"), ("Cache-Control", "private, no-cache")]
    if found.total is not None:
        headers.append(("X-Total-Count", str(found.total)))
    headers += [("Warning", f'299 streamsrv "{text}"') for text in parameters.warnings + found.warnings()]
    if not found.count:
        return Answer(204, headers)
    headers.insert(0, ("Content-Type", offer.media_type))
    pages = _Rendering(store.index, query, parameters, request.base_url)
    if found.count <= KEPT and not pages.deep:
        body = b"[" + b",".join(pages.render(found.kept)) + b"]"
        return Answer(200, headers, (Literal(body),), len(body))
    return Answer(200, headers, (Stream(lambda start, stop: _chunks(found, pages), None),), None)


# -- parameters


def parameters_of(pairs: Sequence[tuple[str, str]], limits: SearchLimits) -> Parameters:
    """Raises BadRequest for values that break the rules of their parameter."""
    found = Parameters(limits.default)
    for name, value in pairs:
        if name in ("limit", "offset"):
            setattr(found, name, _number(name, value))
        elif name == "includefield":
            _include(found, value)
        elif name == "fuzzymatching":
            found.fuzzy = _boolean(name, value)
        elif _names_attribute(name):
            found.matching.append((name, value))
        elif name != "accept":
            found.warnings.append(f"the parameter {_said(name)} is not supported and was ignored")
    if found.limit > limits.most:
        found.warnings.append(f"the limit was lowered to {limits.most}")
        found.limit = limits.most
    return found


def _names_attribute(name: str) -> bool:
    """Keywords begin with a capital letter and tags are hex digits; no other parameter of the standard does.
    A keyword in lower case is an attribute too, and unknown: ignoring it would match everything."""
    return bool(_KEYWORD.match(name)) or path_of(name) is not None or name.lower() in _LOWER


_LOWER = frozenset(row.keyword.lower() for level in Level for row in attributes_at(level))


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value.strip()):
        raise BadRequest(f"{name} must be a whole number")
    return int(value)


def _boolean(name: str, value: str) -> bool:
    known = _BOOLEAN.get(value.strip().lower())
    if known is None:
        raise BadRequest(f"{name} must be true or false")
    return known


def _include(found: Parameters, value: str) -> None:
    for name in (part.strip() for part in value.split(",")):
        path = path_of(name)
        if name.lower() == "all":
            found.everything = True
        elif path is not None:
            found.included.append(path)
        elif name:
            found.warnings.append(f"the includefield {_said(name)} is unknown and was ignored")


def _said(name: str) -> str:
    """A client's word in a header: only if it is harmless there."""
    return name if _SPEAKABLE.fullmatch(name) else "given"


# -- matches


class _Found:
    """How many match, and the first of them."""

    def __init__(self, index: Index, query: Query, parameters: Parameters, limits: SearchLimits) -> None:
        self._index = index
        self._query = query
        self._first, self._limit = parameters.offset, parameters.limit
        hits = index.search(query, Budget(limits.rows, limits.metadata))
        page = itertools.islice(hits, self._first, self._first + self._limit)
        self.kept = list(itertools.islice(page, KEPT))
        self.count = len(self.kept) + sum(1 for _ in page)
        self.more = self.count == self._limit and next(hits, None) is not None
        self.total = index.total(query)
        if self.total is None and not self.more and (self.count or not self._first):
            self.total = self._first + self.count

    def hits(self) -> Iterator[Hit]:
        """Once more, if not all were kept. What the first walk could pay for, the second one can."""
        if self.count <= KEPT:
            return iter(self.kept)
        unlimited = Budget(1 << 62, 1 << 62)
        return itertools.islice(
            self._index.search(self._query, unlimited), self._first, self._first + self._limit
        )

    def warnings(self) -> list[str]:
        if not self.more:
            return []
        remaining = self.total - self._first - self.count if self.total else 0
        return [
            f"there are {remaining if remaining > 0 else 'further'} additional results that can be requested"
        ]


def _chunks(found: _Found, pages: _Rendering) -> Iterator[bytes]:
    hits, before = found.hits(), b"["
    while page := list(itertools.islice(hits, PAGE)):
        yield before + b",".join(pages.render(page))
        before = b","
    yield b"]" if before == b"," else b"[]"


# -- attributes of the matches


class _Rendering:
    def __init__(self, index: Index, query: Query, parameters: Parameters, base_url: str) -> None:
        self._index = index
        self._base_url = orjson.dumps(base_url)[1:-1]
        self._levels = _levels(query)
        self._level = query.level
        self._everything = parameters.everything
        given = {
            row.tag
            for level in self._levels
            for row in attributes_at(level)
            if row.returned is not Returned.ASKED
        }
        wanted = {path[0] for path in (*query.asked, *parameters.included)} - given
        # The highest level that has a row for it; what has none is in the metadata.
        self._elsewhere: dict[Level, set[str]] = {}
        for tag in wanted & BY_TAG.keys():
            self._elsewhere.setdefault(BY_TAG[tag].level, set()).add(tag)
        self._unknown = wanted - BY_TAG.keys()
        self.deep = bool(self._unknown) or (self._everything and query.level is Level.INSTANCE)
        self._last: dict[Level, tuple[tuple[str, str | None], tuple[JsonDataset, JsonDataset]]] = {}
        self._ready = not wanted and not self._everything and len(self._levels) == 1

    def render(self, hits: Iterable[Hit]) -> Iterator[bytes]:
        """JSON objects, or several of them separated by commas."""
        if not self._ready:
            return (orjson.dumps(self._joined(hit), option=orjson.OPT_SORT_KEYS) for hit in hits)
        if self._level is Level.INSTANCE:
            return (
                self._series_page(list(page))
                for _, page in itertools.groupby(hits, lambda hit: _key(hit)[:2])
            )
        rows = ((hit, hit.study_row if self._level is Level.STUDY else hit.series_row) for hit in hits)
        return (fill(row.answer, self._base_url, _key(hit)) for hit, row in rows if row)

    def _series_page(self, hits: list[Hit]) -> bytes:
        texts = (instance_answer(hit.instance_row or b"") for hit in hits)
        return fill_page(texts, (hit.instance or "" for hit in hits), self._base_url, _key(hits[0]))

    def _joined(self, hit: Hit) -> JsonDataset:
        joined: JsonDataset = {}
        for level in self._levels:
            joined.update(self._texts(hit, level)[0])
        if self._everything:
            for level in self._levels:
                joined.update(self._texts(hit, level)[1])
        for level, tags in self._elsewhere.items():
            source = self._down_to(hit, level)
            for found in self._texts(source, level) if source else ():
                joined.update(_only(found, tags))
        if self.deep:
            metadata = self._metadata(hit)
            joined = (metadata if self._everything else _only(metadata, self._unknown)) | joined
        return joined

    def _texts(self, hit: Hit, level: Level) -> tuple[JsonDataset, JsonDataset]:
        """What the row of a level says: what is always returned, and what only when asked for."""
        if level is Level.INSTANCE:
            return self._read(expand(instance_answer(hit.instance_row or b"")), hit), {}
        # Neighbours have the study and the series in common.
        key = (hit.study, hit.series if level is Level.SERIES else None)
        if level not in self._last or self._last[level][0] != key:
            row = hit.study_row if level is Level.STUDY else hit.series_row
            texts = (self._read(row.answer, hit), json_object(row.more)) if row else ({}, {})
            self._last[level] = (key, texts)
        return self._last[level][1]

    def _down_to(self, hit: Hit, level: Level) -> Hit | None:
        """The match, or the first series or instance below it that the match does not name yet."""
        has = Level.INSTANCE if hit.instance else Level.SERIES if hit.series else Level.STUDY
        if has >= level:
            return hit
        if level is Level.SERIES:
            first = self._index.first_series(hit.study)
            return Hit(hit.study, hit.study_row, *first) if first else None
        return next(self._index.search(Query(level, hit.study, hit.series)), None)

    def _metadata(self, hit: Hit) -> JsonDataset:
        rows = self._index.lookup(hit.study, hit.series, hit.instance, limit=1)
        text = b"".join(self._index.metadata(rows))
        key = rows[0].key if rows else _key(hit)
        url = f"/studies/{key.study}/series/{key.series}/instances/{key.instance}".encode()
        return json_object(text.replace(b"\0", self._base_url + url))

    def _read(self, text: bytes, hit: Hit) -> JsonDataset:
        return json_object(fill(text, self._base_url, _key(hit)))


def _only(found: JsonDataset, tags: Iterable[str]) -> JsonDataset:
    return {tag: found[tag] for tag in tags if tag in found}


def _levels(query: Query) -> list[Level]:
    """Those that the path does not name."""
    named = 2 if query.series is not None else 1 if query.study is not None else 0
    return [level for level in Level if named <= level <= query.level]


def _key(hit: Hit) -> InstanceKey:
    return InstanceKey(hit.study, hit.series or "", hit.instance or "")

"""The attributes of a match: joined from the rows of the index and from metadata.

Strategy: a row holds the attributes that its level always returns as ready DICOM JSON. If nothing else is
asked for, the texts of a page go out with their slots filled. Otherwise they are parsed, joined and written
again. A cache keeps the joined texts of studies and series.

Rules
- A match holds the attributes of its level, and those of the levels above, unless the path names them. It
  also holds the matched attributes and those of `includefield`, but none of a lower level.
- Of a path into a sequence only the named attributes are returned, in all items.
- An attribute without a row comes from the instance that met the conditions, else from the first one.
- With a private attribute comes its Private Creator (PS3.18 10.6.3.3.1, PS3.5 7.8.1).
- TransferSyntaxUID (0002,0010) is an extension: the value of AvailableTransferSyntaxUID.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import orjson

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.dicom.json.text import members
from streamsrv.dicom.tags import AVAILABLE_TRANSFER_SYNTAX_UID, TRANSFER_SYNTAX_UID
from streamsrv.query.attributes import BY_TAG, QUERY_ATTRIBUTES, Level, Path, Returned, attributes_at
from streamsrv.query.conditions import Query
from streamsrv.store import (
    LEVELS,
    SHORT,
    Hit,
    Index,
    InstanceKey,
    InstanceRow,
    attributes_in,
    expand,
    fill,
    fill_page,
    instance_answer,
    json_object,
)

PAGE = 100  # matches
CACHED_TEXTS = 1024  # of about 4 kB with their sources
CACHED_SHAPES = 256  # an application names the same attributes in each search

_SYNTAX: Path = (TRANSFER_SYNTAX_UID,)

# The wanted tags, each with those wanted of its items; None: the whole element.
Tree = dict[str, "Tree | None"]

# Of these sequences the index keeps only the attributes that have rows.
_PARTIAL = {row.path[0] for row in QUERY_ATTRIBUTES if len(row.path) > 1}


def tree_of(paths: Iterable[Path]) -> Tree:
    root: Tree = {}
    for path in sorted(set(paths), key=len):
        node: Tree | None = root
        for tag in path[:-1]:
            if node is not None:
                node = node.setdefault(tag, {})
        if node is not None:
            node[path[-1]] = None
    return root


def pruned(dataset: JsonDataset, tree: Tree) -> JsonDataset:
    return {tag: _pruned_element(dataset[tag], below) for tag, below in tree.items() if tag in dataset}


def _pruned_element(element: JsonElement, below: Tree | None) -> JsonElement:
    if below is None:
        return element
    items = [item for item in element.get("Value", ()) if isinstance(item, dict)]
    return {"vr": element["vr"], "Value": [pruned(item, below) for item in items]}


# The members of a row: those that are always returned, and the others.
Texts = tuple[bytes, bytes]
# Wanted paths of a row that is not part of the answer otherwise.
Part = tuple[tuple[Path, ...], Texts]


def joined(given: Iterable[bytes], elsewhere: Iterable[Part]) -> JsonDataset:
    found: JsonDataset = {}
    for text in given:
        found.update(json_object(text))
    for paths, texts in elsewhere:
        tree = tree_of(paths)
        for text in texts:
            found.update(pruned(json_object(text), tree))
    return found


@functools.lru_cache(maxsize=CACHED_TEXTS)
def joined_text(
    base_url: bytes, key: InstanceKey, given: tuple[bytes, ...], elsewhere: tuple[Part, ...]
) -> bytes:
    """From the texts of rows, whose slots are filled here. Cached: clients poll the first page, and few of
    its studies change between two requests."""
    filled = [fill(text, base_url, key) for text in given]
    parts = [(paths, (fill(answer, base_url, key), more)) for paths, (answer, more) in elsewhere]
    return orjson.dumps(joined(filled, parts), option=orjson.OPT_SORT_KEYS)


@functools.cache
def _given(levels: tuple[Level, ...]) -> frozenset[Path]:
    rows = [row for level in levels for row in attributes_at(level)]
    return frozenset(
        row.path for row in rows if row.returned is not Returned.ASKED and row.tag not in _PARTIAL
    )


def returned_anyway(path: Path, level: Level) -> bool:
    """Whether each result of this level holds the attribute."""
    return path in _given((level,))


def _creator_of(path: Path) -> Path:
    """The Private Creator (gggg,00xx) of the private attribute (gggg,xxee)."""
    tag = path[-1]
    return (*path[:-1], f"{tag[:4]}00{tag[4:6]}")


@functools.lru_cache(maxsize=CACHED_SHAPES)
def _sources(
    levels: tuple[Level, ...], wanted: tuple[Path, ...]
) -> tuple[Mapping[Level, tuple[Path, ...]], Tree]:
    """Returns the sources of wanted attributes that results of these levels lack: the highest level that has
    a row for each, and a tree of those that are in the metadata only."""
    elsewhere: dict[Level, list[Path]] = {}
    unknown: list[Path] = []
    creators = {_creator_of(path) for path in wanted if int(path[-1][3], 16) % 2}
    for path in sorted({*wanted, *creators} - _given(levels) - {_SYNTAX}):
        row = None if path[0] in _PARTIAL and len(path) == 1 else BY_TAG.get(".".join(path))
        (elsewhere.setdefault(row.level, []) if row else unknown).append(path)
    # Attributes of the same sequences that the result holds anyway.
    sequences = {path[0] for path in unknown}
    beside = [path for path in _given(levels) if len(path) > 1 and path[0] in sequences]
    return {level: tuple(paths) for level, paths in elsewhere.items()}, tree_of([*unknown, *beside])


class Attributes:
    """The datasets of one answer. `deep` ones need the metadata of one instance a match. `ready` ones are the
    texts of the rows."""

    def __init__(
        self, index: Index, query: Query, included: Sequence[Path], everything: bool, base_url: str
    ) -> None:
        self._index = index
        self._base_url = orjson.dumps(base_url)[1:-1]
        self._levels = _levels(query)
        self._level = query.level
        self._everything = everything
        wanted = (*query.asked, *included)
        self._with_syntax = _SYNTAX in wanted
        self._elsewhere, self._unknown = _sources(self._levels, wanted)
        self.deep = bool(self._unknown) or (everything and query.level is Level.INSTANCE)
        joins = self._elsewhere or self._unknown or everything or self._with_syntax
        self.ready = not joins and len(self._levels) == 1
        self._last: dict[Level, tuple[tuple[str, str | None], Texts]] = {}

    def texts(self, hits: Iterable[Hit]) -> Iterator[bytes]:
        """Yields JSON objects, or several of them separated by commas."""
        if not self.ready:
            return map(self._text, hits)
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

    def datasets(self, hits: Iterable[Hit]) -> Iterator[Iterator[bytes]]:
        """Yields JSON objects in pieces: `deep` ones one by one, others as a page with commas. A `deep` one
        may be as long as the metadata of an instance and is never held whole. Take all its pieces first."""
        if not self.deep:
            return (iter((b",".join(self.texts(page)),)) for page in _pages(hits))
        return map(self._deep_pieces, hits)

    def each(self, hits: Iterable[Hit]) -> Iterator[bytes]:
        """Yields the JSON object of each match. A `deep` one is held whole."""
        if self.ready and self._level is Level.INSTANCE:
            return (self._series_page([hit]) for hit in hits)
        return map(self._text, hits) if self.deep else self.texts(hits)

    def _text(self, hit: Hit) -> bytes:
        if self.deep:
            return b"".join(self._deep_pieces(hit))
        if self._level is not Level.INSTANCE:
            return joined_text(self._base_url, _key(hit), *self._rows(hit, _row_texts))
        return _sorted_text(self._joined(hit))

    def _joined(self, hit: Hit) -> JsonDataset:
        found = joined(*self._rows(hit, self._texts))
        if self._with_syntax:
            found[TRANSFER_SYNTAX_UID] = found[AVAILABLE_TRANSFER_SYNTAX_UID]
        return found

    def _rows(
        self, hit: Hit, texts_at: Callable[[Hit, Level], Texts]
    ) -> tuple[tuple[bytes, ...], tuple[Part, ...]]:
        texts = [texts_at(hit, level) for level in self._levels]
        given = tuple([answer for answer, _ in texts])
        if self._everything:
            given += tuple([more for _, more in texts])
        elsewhere = self._elsewhere.items()
        return given, tuple([(paths, texts_at(hit, level)) for level, paths in elsewhere])

    def _deep_pieces(self, hit: Hit) -> Iterator[bytes]:
        found = self._joined(hit)
        rows = self._index.lookup(hit.study, hit.series, hit.instance, limit=1)
        length = rows[0].metadata_length if rows else 0
        pieces = functools.partial(self._metadata, rows, _key(hit))
        if length <= SHORT:
            metadata = json_object(b"".join(pieces()))
            kept = metadata if self._everything else pruned(metadata, self._unknown)
            yield _sorted_text(_over(found, kept))
        elif self._everything:
            yield from merged(pieces(), found)
        else:
            with attributes_in(pieces, self._unknown, self._index.parsing, length) as metadata:
                text = _sorted_text(_over(found, pruned(metadata, self._unknown)))
            yield text

    def _texts(self, hit: Hit, level: Level) -> Texts:
        if level is Level.INSTANCE:
            return self._filled(expand(instance_answer(hit.instance_row or b"")), hit), b""
        # Consecutive matches share the study and the series.
        key = (hit.study, hit.series if level is Level.SERIES else None)
        if level not in self._last or self._last[level][0] != key:
            answer, more = _row_texts(hit, level)
            self._last[level] = key, (self._filled(answer, hit), more)
        return self._last[level][1]

    def _metadata(self, rows: Sequence[InstanceRow], named: InstanceKey) -> Iterator[bytes]:
        key = rows[0].key if rows else named
        url = self._base_url + f"/studies/{key.study}/series/{key.series}/instances/{key.instance}".encode()
        return (piece.replace(b"\0", url) for piece in self._index.metadata(rows))

    def _filled(self, text: bytes, hit: Hit) -> bytes:
        return fill(text, self._base_url, _key(hit))


def _over(rows: JsonDataset, metadata: JsonDataset) -> JsonDataset:
    """Joins both. The rows prevail, but for sequences of which they hold only a part."""
    return metadata | {tag: each for tag, each in rows.items() if tag not in _PARTIAL or tag not in metadata}


def _sorted_text(dataset: JsonDataset) -> bytes:
    return orjson.dumps(dataset, option=orjson.OPT_SORT_KEYS)


def merged(metadata: Iterable[bytes], rows: JsonDataset) -> Iterator[bytes]:
    """Yields the text of `_over` in pieces, without parsing the metadata."""
    waiting = sorted(rows.items(), reverse=True)
    before, comma, kept = "", b"{", False
    for tag, piece in members(metadata):
        if tag == before:
            if kept:
                yield piece
            continue
        while waiting and waiting[-1][0] < tag:
            yield comma + _sorted_text(dict([waiting.pop()]))[1:-1]
            comma = b","
        known = bool(waiting) and waiting[-1][0] == tag
        before, kept = tag, not known or tag in _PARTIAL
        if known and kept:
            waiting.pop()
        if kept:
            yield comma + b'"%b":' % tag.encode() + piece
            comma = b","
    for each in reversed(waiting):
        yield comma + _sorted_text(dict([each]))[1:-1]
        comma = b","
    yield b"}" if comma == b"," else b"{}"


def _pages(hits: Iterable[Hit]) -> Iterator[list[Hit]]:
    waiting = iter(hits)
    while page := list(itertools.islice(waiting, PAGE)):
        yield page


def _levels(query: Query) -> tuple[Level, ...]:
    """The levels down to that of the query which the path does not name."""
    named = 2 if query.series is not None else 1 if query.study is not None else 0
    return LEVELS[named : query.level + 1]


def _row_texts(hit: Hit, level: Level) -> Texts:
    """Those of a study or series, with slots."""
    row = hit.study_row if level is Level.STUDY else hit.series_row
    return (row.answer, row.more) if row else (b"", b"")


def _key(hit: Hit) -> InstanceKey:
    return InstanceKey(hit.study, hit.series or "", hit.instance or "")

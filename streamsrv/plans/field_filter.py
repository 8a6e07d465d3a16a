"""Metadata with selected attributes: those that `includefield` names, and the UIDs of each instance.

Strategy: the names become a tree of tags. The JSON text is read attribute by attribute, long sequences item
by item (json/text.py), and the elements in the tree are copied as they are. So the positions of 100,000
frames are selected from a long text without holding it.

Rules
- A name is a keyword or a tag in hex. Nested ones have dots
  (`SharedFunctionalGroupsSequence.PixelMeasuresSequence`). Names are lists or repeated. `all` means
  everything.
- A named sequence is sent whole. A sequence on the path to a name keeps all its items, so that their numbers
  stay right.
- An unknown name is ignored, and a Warning names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.query.conditions import path_of

# Tag -> tree of its items; empty: the whole element.
Tree = dict[str, Any]

UIDS = (tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID)
_SPEAKABLE = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Fields:
    """The selected attributes. `tree` is None for everything; `warnings` are texts of Warning headers."""

    tree: Tree | None = None
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A text that is equal for equal fields, in any order."""
        return "" if self.tree is None else orjson.dumps(self.tree, option=orjson.OPT_SORT_KEYS).decode()


def fields_of(query: Iterable[tuple[str, str]]) -> Fields:
    names = [name.strip() for key, value in query if key == "includefield" for name in value.split(",")]
    names = [name for name in names if name]
    if not names or "all" in (name.lower() for name in names):
        return Fields()
    tree: Tree = {tag: {} for tag in UIDS}
    warnings = []
    for name in names:
        path = path_of(name)
        if path is None:
            said = name if _SPEAKABLE.fullmatch(name) else "given"
            warnings.append(f"the includefield {said} is unknown and was ignored")
        else:
            _plant(tree, path)
    return Fields(tree, tuple(dict.fromkeys(warnings)))


def _plant(tree: Tree, path: tuple[str, ...]) -> None:
    """The name of a whole sequence has priority over names within it."""
    for place, tag in enumerate(path):
        known = tag in tree
        branch = tree.setdefault(tag, {})
        if place == len(path) - 1:
            branch.clear()
        elif known and not branch:
            return
        tree = branch


def lean_text(pieces: Iterable[bytes], tree: Tree) -> Iterator[bytes]:
    """The selected part of the dataset with this JSON text, in pieces."""
    return _dataset(JsonReader(pieces), tree)


def lean_whole(text: bytes, tree: Tree) -> bytes:
    """The selected part of a text that is parsed at once."""
    return orjson.dumps(selected(orjson.loads(text), tree))


def _dataset(reader: JsonReader, tree: Tree) -> Iterator[bytes]:
    """An empty tree selects all of it."""
    whole = reader.value()
    if whole is not LARGE:
        cut = tree and isinstance(whole, dict)
        yield orjson.dumps(selected(whole, tree)) if cut else reader.last.encode()
        return
    yield b"{"
    comma = b""
    for tag in reader.members():
        element = reader.value()
        if tree and tag not in tree:
            if element is LARGE:
                _skip(reader)
            continue
        yield b'%s"%s":' % (comma, tag.encode())
        comma = b","
        if element is not LARGE:
            yield orjson.dumps(_element(element, tree.get(tag, {})))
        else:
            yield from _long_element(reader, tree.get(tag, {}))
    yield b"}"


def _long_element(reader: JsonReader, tree: Tree) -> Iterator[bytes]:
    """A long sequence is read item by item; any other long element is copied."""
    yield b"{"
    for number, name in enumerate(reader.members()):
        yield b'%s"%s":' % (b"," * bool(number), name.encode())
        if reader.value() is not LARGE:
            yield reader.last.encode()
        elif name == "Value":
            yield b"["
            for place, _ in enumerate(reader.elements()):
                yield b"," * bool(place)
                yield from _dataset(reader, tree)
            yield b"]"
        else:
            yield reader.last.encode()
    yield b"}"


def _skip(reader: JsonReader) -> None:
    several: Iterator[Any] = reader.members() if reader.peek() == "{" else reader.elements()
    for _ in several:
        if reader.value() is LARGE:
            _skip(reader)


def selected(dataset: JsonDataset, tree: Tree) -> JsonDataset:
    return {tag: _element(element, tree[tag]) for tag, element in dataset.items() if tag in tree}


def _element(element: dict[str, Any], tree: Tree) -> dict[str, Any]:
    if not tree or element["vr"] != "SQ" or "Value" not in element:
        return element
    return {"vr": "SQ", "Value": [selected(item, tree) for item in element["Value"]]}

"""Identifiers of Query/Retrieve: the keys of a request, and the datasets of its answers (PS3.4 C.2.2.1,
C.4.1.1.3). Sans-IO.

Rules of this file
- A key is the text of a search parameter, so DIMSE and HTTP match alike.
- An answer is in the character sets that the request declares. Without any it is in ISO_IR 100. If these lack
  a character, it is in ISO_IR 192. If all text is ASCII, it declares none.
- A requested attribute without value comes back with zero length. No other attribute comes back.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from streamsrv.dicom.charsets import CharacterSets, character_sets_of
from streamsrv.dicom.elements import Elements
from streamsrv.dicom.explicit import LONGEST_SHORT, padding, whole_element
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.encoding import inline_bytes, value_bytes
from streamsrv.dicom.json.values import values
from streamsrv.dicom.json.writer import MetadataWriter
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dicom.tags import vr_of
from streamsrv.dicom.text_encoding import encoder_for
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import InstanceError, NotDicom
from streamsrv.query.attributes import Path
from streamsrv.search.attributes import Tree, pruned, tree_of

LONGEST_IDENTIFIER = 1 << 20  # bytes; a list of 10,000 UIDs has 650 kB
CHARACTER_SET, LEVEL, RETRIEVE_AET = "00080005", "00080052", "00080054"
# Elements of an identifier that are no keys: they say how to read it, or describe the server.
NO_KEYS = frozenset((CHARACTER_SET, LEVEL, RETRIEVE_AET))
UTF_8, LATIN_1 = ("ISO_IR 192",), ("ISO_IR 100",)
_LIMITS = ReadLimits(
    bulk_threshold=LONGEST_IDENTIFIER, text_threshold=LONGEST_IDENTIFIER, max_elements=200_000
)
# VRs in the Specific Character Set, with the delimiters of their values.
_TEXTS = {"LO": "\\", "SH": "\\", "UC": "\\", "PN": "\\^=", "LT": "", "ST": "", "UT": ""}
CACHED_MATCHES = 1024  # of a writer, with about 1,500 bytes each
_HEAD = struct.Struct("<HHI")
_SHORT_LENGTH, _LONG_LENGTH = struct.Struct("<H"), struct.Struct("<I")
# VRs of text with a length of 16 bits in Explicit VR.
_QUICK = frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI"])
_ITEM = 0xFFFE, 0xE000


class RequestKey(NamedTuple):
    """`text` is that of a search parameter; empty matches everything."""

    path: Path
    vr: str
    text: str

    @property
    def name(self) -> str:
        return ".".join(self.path)


class Identifier(NamedTuple):
    """`level` is empty if there is none. `sets` are the declared character sets."""

    level: str
    keys: tuple[RequestKey, ...]
    sets: CharacterSets | None

    def text(self, tag: str) -> str:
        return next((key.text for key in self.keys if key.path == (tag,)), "")


def identifier_of(content: bytes, syntax: str) -> Identifier:
    """Reads the dataset of a request. Raises NotDicom."""
    dataset = dataset_of(content, syntax)
    level = "".join(map(str, values(dataset, LEVEL)[:1])).strip()
    terms = tuple(str(each or "") for each in values(dataset, CHARACTER_SET))
    keys = tuple(_keys(dataset, ()))
    return Identifier(level, keys, character_sets_of(terms)[0] if terms else None)


def dataset_of(content: bytes, syntax: str) -> JsonDataset:
    """Reads a short dataset in Explicit or Implicit VR Little Endian. Raises NotDicom."""
    try:
        return _dataset(content, explicit=syntax == EXPLICIT_VR_LITTLE_ENDIAN)
    except InstanceError as error:
        raise NotDicom(error.detail) from None


def _dataset(content: bytes, *, explicit: bool) -> JsonDataset:
    window = ReadWindow(lambda offset, length: content[offset : offset + length], len(content))
    pieces: list[bytes] = []
    writer = MetadataWriter(pieces.append, frozenset(), {}, _LIMITS, little=True)
    elements = Elements(
        window,
        0,
        len(content),
        explicit=explicit,
        little=True,
        limits=_LIMITS,
        skip_fragments=_no_fragments,
    )
    writer.write(elements.events())
    found: JsonDataset = orjson.loads(b"".join(pieces))
    return found


def _no_fragments(tag: int, start: int, end: int, little: bool) -> int:
    raise NotDicom("an identifier has no fragments")


def _keys(dataset: Mapping[str, Any], above: Path) -> Iterator[RequestKey]:
    for tag, element in dataset.items():
        path, vr = (*above, tag), element["vr"]
        items = [item for item in values(dataset, tag) if isinstance(item, dict)] if vr == "SQ" else []
        if items and items[0]:
            yield from _keys(items[0], path)
        elif above or tag not in NO_KEYS:
            yield RequestKey(path, vr, _text(tag, vr, element))


def _text(tag: str, vr: str, element: Mapping[str, Any]) -> str:
    found = element.get("Value") or []
    creator = int(tag[3], 16) % 2 and tag[4:6] == "00"  # (gggg,00xx): it names a block, and is not compared
    if vr == "SQ" or creator or not found:
        return ""
    return value_bytes(tag, vr, found).decode()


def writer_of(identifier: Identifier, syntax: str, title: str) -> MatchWriter:
    """The writer of the answers to a request. `title` is the AE title of this server. Requests that ask for
    the same attributes have one writer: a workstation repeats its list."""
    keys = tuple((key.path, key.vr) for key in identifier.keys)
    return _writer(identifier.level, keys, identifier.sets, syntax, title)


@lru_cache(maxsize=8)
def _writer(
    level: str, keys: tuple[tuple[Path, str], ...], sets: CharacterSets | None, syntax: str, title: str
) -> MatchWriter:
    return MatchWriter(level, keys, sets, syntax, title)


class MatchWriter:
    """The datasets of the answers to requests with the same keys. `vr`s of absent attributes are those of the
    request."""

    def __init__(
        self,
        level: str,
        keys: Sequence[tuple[Path, str]],
        sets: CharacterSets | None,
        syntax: str,
        title: str,
    ) -> None:
        """`keys` are paths and VRs."""
        self._explicit = syntax == EXPLICIT_VR_LITTLE_ENDIAN
        self._tree: Tree = tree_of(path for path, _ in keys)
        vrs = {path[0]: vr if len(path) == 1 else "SQ" for path, vr in keys}
        self._ready = {
            LEVEL: self._of(LEVEL, "CS", level.encode()),
            RETRIEVE_AET: self._of(RETRIEVE_AET, "AE", title.encode()),
        }
        vrs |= {LEVEL: "CS", RETRIEVE_AET: "AE", CHARACTER_SET: "CS"}
        self._rows = [
            (tag, vr, self._of(tag, vr, b""), self._prefix(tag, vr)) for tag, vr in sorted(vrs.items())
        ]
        self._choices = tuple(dict.fromkeys((sets or LATIN_1, UTF_8)))
        self._length = (_SHORT_LENGTH if self._explicit else _LONG_LENGTH).pack
        # The dataset of a match that is a JSON object.
        self.dataset_of_text = lru_cache(maxsize=CACHED_MATCHES)(self._dataset_of_text)

    def _of(self, tag: str, vr: str, content: bytes) -> bytes:
        return element_of(int(tag, 16), vr, content, self._explicit)

    def _prefix(self, tag: str, vr: str) -> bytes:
        """The header of an element before its length; none if `_quick` does not write this VR."""
        if vr not in _QUICK:
            return b""
        return self._of(tag, vr, b"")[: -2 if self._explicit else -4]

    def _dataset_of_text(self, text: bytes) -> bytes:
        return self.dataset(orjson.loads(text))

    def dataset(self, found: JsonDataset) -> bytes:
        """The requested attributes of a match."""
        plain = self._encoded(found, None)
        if plain is not None:
            return plain
        for sets in self._choices:
            with contextlib.suppress(UnicodeEncodeError):
                return self._encoded(found, sets) or b""
        raise AssertionError("UTF-8 has every character")

    def _encoded(self, dataset: JsonDataset, sets: CharacterSets | None) -> bytes | None:
        """None if there is a character beyond ASCII and no set. Raises UnicodeEncodeError."""
        pieces = []
        for tag, vr, empty, prefix in self._rows:
            piece: bytes | None = self._ready.get(tag)
            if tag == CHARACTER_SET:
                piece = self._of(tag, vr, "\\".join(sets).encode()) if sets else b""
            elif piece is None and tag not in dataset:
                piece = empty
            elif piece is None:
                element = dataset[tag]
                if (below := self._tree.get(tag)) is not None:
                    element = pruned({tag: element}, {tag: below})[tag]
                piece = self._quick(vr, prefix, element, empty) or self._element(tag, element, sets)
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    def _quick(self, vr: str, prefix: bytes, element: Mapping[str, Any], empty: bytes) -> bytes | None:
        """An element with one value of ASCII: most of them, in a quarter of the time. None for others."""
        if len(element) == 1:
            return empty
        if not prefix or element["vr"] != vr or len(values := element.get("Value", ())) != 1:
            return None
        text = values[0]
        if isinstance(text, dict) and len(text) == 1:
            text = text.get("Alphabetic")
        elif type(text) is int and vr == "IS":
            text = str(text)
        if not isinstance(text, str) or len(text) > LONGEST_SHORT or not text.isascii():
            return None
        if len(text) % 2:
            text += "\0" if vr == "UI" else " "
        return prefix + self._length(len(text)) + text.encode()

    def _element(self, tag: str, element: Mapping[str, Any], sets: CharacterSets | None) -> bytes | None:
        vr = element["vr"]
        if vr == "UN" and not self._explicit:
            vr = vr_of(tag) or "UN"
        content = self._content(tag, vr, element, sets)
        if content is None:
            return None
        return element_of(int(tag, 16), vr, content, self._explicit)

    def _content(
        self, tag: str, vr: str, element: Mapping[str, Any], sets: CharacterSets | None
    ) -> bytes | None:
        if "InlineBinary" in element:
            return inline_bytes(tag, element["InlineBinary"])
        found = element.get("Value")
        if not found:
            return b""
        if vr == "SQ":
            return self._items(found, sets)
        content = value_bytes(tag, vr, found)
        if vr not in _TEXTS or content.isascii():
            return content
        return None if sets is None else encoder_for(sets, _TEXTS[vr])(content.decode())

    def _items(self, items: list[Any], sets: CharacterSets | None) -> bytes | None:
        pieces = []
        for item in items:
            elements = [self._element(tag, item[tag], sets) for tag in sorted(item)]
            if None in elements:
                return None
            pieces.append(item_of(b"".join(filter(None, elements))))
        return b"".join(pieces)


def element_of(tag: int, vr: str, content: bytes, explicit: bool) -> bytes:
    """An element, little endian. `content` gets its padding here."""
    if explicit:
        return whole_element(tag, vr, content)
    content += padding(vr, len(content))
    return _HEAD.pack(tag >> 16, tag & 0xFFFF, len(content)) + content


def item_of(content: bytes) -> bytes:
    """An item of a sequence, with its length."""
    return _HEAD.pack(*_ITEM, len(content)) + content

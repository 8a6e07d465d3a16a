"""Reads an encapsulated CDA document (HL7 Clinical Document Architecture, PS3.3 A.45.2) as a report.

Strategy: expat calls back for each tag. The title and the language stand before the body. A section becomes a
container, and each paragraph, list item, caption and table row of its narrative becomes a text below it. They
are handed on while the document is read, so none is kept.

Rules
- Entries for machines, pictures and bodies of other types are left out. A link is its text.
- The cells of a row are joined by bars, and the items of a list begin with a bullet.
- A text of over LONGEST characters is cut. So is a section deeper than MAX_DEPTH.
- A document type declaration is refused: its entities may grow without end.
- If the document is malformed, the page says so where it ends.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from xml.parsers import expat

from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.values import text
from streamsrv.reports.content import (
    UNDETERMINED,
    ContentItem,
    InstancePlace,
    Report,
    is_language,
)

NAMESPACE = "urn:hl7-org:v3"
LONGEST = 64 << 10
MAX_DEPTH, MOST_OPEN = 32, 200
DECLARATION = 256  # bytes of the start, in which the encoding is declared
_ENCODING = re.compile(rb"<\?xml[^>]*encoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']")
# Python also has codecs that are no character sets.
_CHARACTER_SETS = re.compile(rb"(?i:utf|us-ascii|ascii|iso|latin|windows|cp|gb|big5|shift|sjis|euc|koi8|tis)")
_BLANKS = re.compile(r"\s+")
BLOCKS = frozenset(("paragraph", "item", "caption", "tr", "text", "footnote"))
CELLS = frozenset(("td", "th"))
MALFORMED = "(the document ends here: it is not well-formed XML)"
FOREIGN = "(this part of the document is not text)"
BULLET, BAR = "• ", " | "


def read_cda(pieces: Iterable[bytes], head: JsonDataset) -> Report:
    """The report of a document; `head` is that of its instance."""
    reader = _CdaReader()
    items = reader.items(pieces)
    early = list(islice(items, 1))
    title = reader.title or text(head, "00420010") or "Document"
    named = {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": [title]}}]}
    places = dict[str, InstancePlace]()
    return Report({**head, "0040A043": named}, places, reader.language, chain(early, items))


def utf_8(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces as UTF-8, from the encoding that the first one declares. Expat knows few encodings."""
    source = iter(pieces)
    first = next(source, b"")
    declared = _ENCODING.search(first[:DECLARATION])
    name = declared[1].decode() if declared and _CHARACTER_SETS.match(declared[1]) else "utf-8-sig"
    try:
        decoder = codecs.getincrementaldecoder(name)("replace")
    except LookupError:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
    for piece in chain((first,), source):
        yield decoder.decode(piece).encode(errors="replace")
    yield decoder.decode(b"", final=True).encode(errors="replace")


class _CdaReader:
    """`title` and `language` are known when the first item is."""

    def __init__(self) -> None:
        self.title, self.language = "", UNDETERMINED
        self._ready = list[ContentItem]()
        self._tags = list[str]()  # open elements
        self._numbers = [0]  # of the last item in each open container
        self._sections = list[bool]()  # whether each open section is a container: it has a title
        self._words: list[str] | None = None  # of the open block
        self._length = 0
        self._parser = parser = expat.ParserCreate("utf-8", " ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse

    def items(self, pieces: Iterable[bytes]) -> Iterator[ContentItem]:
        try:
            for piece in utf_8(pieces):
                self._parser.Parse(piece, False)
                yield from self._taken()
            self._parser.Parse(b"", True)
        except expat.ExpatError:
            self._add("TEXT", "", MALFORMED)
        yield from self._taken()

    def _taken(self) -> list[ContentItem]:
        taken, self._ready = self._ready, []
        return taken

    def _refuse(self, *_: object) -> None:
        raise expat.ExpatError("a document type declaration")

    def _add(self, value_type: str, name: str, value: str = "") -> None:
        self._numbers[-1] += 1
        attributes: JsonDataset = {"0040A040": {"vr": "CS", "Value": [value_type]}}
        if name:
            attributes["0040A043"] = {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": [name]}}]}
        if value:
            attributes["0040A160"] = {"vr": "UT", "Value": [value]}
        self._ready.append(ContentItem(len(self._numbers), (1, *self._numbers), attributes))

    @property
    def _is_narrative(self) -> bool:
        return "text" in self._tags and "section" in self._tags and "entry" not in self._tags

    def _is_block(self, tag: str) -> bool:
        """A row of a table is one block."""
        return tag in BLOCKS and "tr" not in self._tags[:-1]

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, tag = name.rpartition(" ")
        above = self._tags[-1] if self._tags else ""
        if len(self._tags) >= MOST_OPEN:
            raise expat.ExpatError("too many open elements")
        self._tags.append(tag if space in (NAMESPACE, "") else "")
        if tag == "languageCode" and above == "ClinicalDocument" and is_language(attributes.get("code", "")):
            self.language = attributes["code"]
        elif tag == "section":
            self._sections.append(False)
        elif tag == "title" and above in ("ClinicalDocument", "section"):
            self._open()
        elif tag == "nonXMLBody":
            self._add("TEXT", "", FOREIGN)
        elif self._is_narrative:
            if self._is_block(tag) and self._words != [BULLET]:
                self._close()
                self._open(BULLET if tag == "item" else "")
            elif tag in CELLS and self._words:
                self._characters(BAR)
            elif tag == "br":
                self._characters("\n")

    def _end(self, name: str) -> None:
        tag = self._tags[-1]
        if tag == "title" and self._tags[-2:-1] in (["ClinicalDocument"], ["section"]):
            self._titled(self._value())
        elif self._is_narrative and self._is_block(tag):
            self._close()
        elif tag == "section" and self._sections.pop():
            self._numbers.pop()
        self._tags.pop()

    def _titled(self, title: str) -> None:
        if self._tags[-2] == "ClinicalDocument":
            self.title = title
        elif len(self._numbers) < MAX_DEPTH and not self._sections[-1]:
            self._add("CONTAINER", title)
            self._numbers.append(0)
            self._sections[-1] = True

    def _open(self, start: str = "") -> None:
        self._words, self._length = [start] if start else [], 0

    def _characters(self, given: str) -> None:
        if self._words is None and self._is_narrative:
            self._open()
        if self._words is not None and self._length < LONGEST:
            self._words.append(given)
            self._length += len(given)

    def _value(self) -> str:
        words, self._words = "".join(self._words or ())[:LONGEST], None
        return "\n".join(_BLANKS.sub(" ", line).strip() for line in words.split("\n"))

    def _close(self) -> None:
        value = self._value().strip(" \n|")
        if value.strip(BULLET):
            self._add("TEXT", "", value)

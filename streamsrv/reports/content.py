"""Reads a Structured Report (PS3.3 C.17.3, C.18) from its DICOM JSON, content item by content item.

Strategy: the attributes before the Content Sequence are the head of the document. The content items follow in
the order of the document, each with its depth, and none is kept. So a report of 100,000 items takes the
memory of its longest item.

Rules
- Another attribute than the Content Sequence that is much longer than WHOLE (json/text.py) is left out, and
  the item is marked as `cut`.
- An item that was read in pieces has the attributes behind its children in a second item below itself.
- The language is that of the content items that modify the root (TID 1210): a language (121049, DCM), and
  its country (121046, DCM).
- The places of referenced instances are in the sequences of evidence (C.17.2). At most REFERENCES bytes of
  each are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.text import LARGE, WHOLE, JsonReader
from streamsrv.dicom.json.values import item, text, values

CONTENT = "0040A730"
EVIDENCE = ("0040A375", "0040A385", "0040A525")  # current, pertinent, and identical documents
REFERENCES = 4 << 20  # characters; 20,000 references
MODIFIES = "HAS CONCEPT MOD"
# Items at the start of the content among which the language is looked for.
EARLY_ITEMS = 32
LANGUAGE, COUNTRY = ("121049", "DCM"), ("121046", "DCM")
UNDETERMINED = "und"  # BCP 47
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,4}\Z")
_COUNTRY = re.compile(r"[A-Za-z]{2}\Z")
_UID = re.compile(r"[0-9.]{1,64}\Z")
# Attributes of the head that are shown, and those of evidence.
HEAD = frozenset(
    (
        *("00080020", "00080023", "00080030", "00080033", "00080050", "00080080", "00080090", "00081030"),
        *("0008103E", "00100010", "00100020", "00100021", "00100030", "00100040", "00420010"),
        *("0040A043", "0040A073", "0040A078", "0040A491", "0040A492", "0040A493", "0040A496"),
        *EVIDENCE,
    )
)


class Code(NamedTuple):
    meaning: str
    value: str = ""
    scheme: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Code:
        """The code in an item of a code sequence (PS3.3 8.8)."""
        value = next(
            (found for tag in ("00080100", "00080119", "00080120") if (found := text(given, tag))), ""
        )
        return cls(text(given, "00080104") or value, value, text(given, "00080102"))


class ContentItem(NamedTuple):
    """`depth` is 1 below the root. `path` has the numbers of the item and its ancestors, the root's 1 first
    (C.18.9). `attributes` has no children. `cut`: a long attribute is left out."""

    depth: int
    path: tuple[int, ...]
    attributes: JsonDataset
    cut: bool = False

    @property
    def relationship(self) -> str:
        return text(self.attributes, "0040A010")

    @property
    def value_type(self) -> str:
        return text(self.attributes, "0040A040")

    @property
    def concept(self) -> Code:
        return Code.of(item(self.attributes, "0040A043"))


class InstancePlace(NamedTuple):
    study: str
    series: str


class Report(NamedTuple):
    """`places` has the study and series of referenced SOP instances. `items` is read once."""

    head: JsonDataset
    places: Mapping[str, InstancePlace]
    language: str
    items: Iterator[ContentItem]


def read_report(pieces: Iterable[bytes]) -> Report:
    """The report with the DICOM JSON text `pieces`."""
    reader, head = JsonReader(pieces), JsonDataset()
    items = _root(reader, head)
    early = list(islice(items, EARLY_ITEMS))
    places = {uid: place for tag in EVIDENCE for uid, place in _places(head.pop(tag, {}))}
    return Report(head, places, language_of(early), chain(early, items))


def _root(reader: JsonReader, head: JsonDataset) -> Iterator[ContentItem]:
    """Fills `head` before the first item."""
    whole = reader.value()
    if whole is not LARGE:
        head.update((tag, element) for tag, element in whole.items() if tag in HEAD)
        yield from _children(whole, 1, (1,))
        return
    for tag in reader.members():
        if tag == CONTENT:
            yield from _long_children(reader, 1, (1,))
        elif tag in HEAD:
            element = reader.value(REFERENCES if tag in EVIDENCE else WHOLE)
            if element is LARGE:
                reader.skip()
            else:
                head[tag] = element
        else:
            reader.skip()


def _children(dataset: JsonDataset, depth: int, path: tuple[int, ...]) -> Iterator[ContentItem]:
    for number, child in enumerate(values(dataset, CONTENT), 1):
        if isinstance(child, dict):
            yield from _item(child, depth, (*path, number))


def _item(given: JsonDataset, depth: int, path: tuple[int, ...]) -> Iterator[ContentItem]:
    yield ContentItem(depth, path, {tag: element for tag, element in given.items() if tag != CONTENT})
    yield from _children(given, depth + 1, path)


def _long_children(reader: JsonReader, depth: int, path: tuple[int, ...]) -> Iterator[ContentItem]:
    """The same for an element that is read in pieces."""
    element = reader.value()
    if element is not LARGE:
        yield from _children({CONTENT: element}, depth, path)
        return
    for name in reader.members():
        if name != "Value":
            reader.skip()
            continue
        for number, _ in enumerate(reader.elements(), 1):
            found = reader.value()
            if found is LARGE:
                yield from _long_item(reader, depth, (*path, number))
            elif isinstance(found, dict):
                yield from _item(found, depth, (*path, number))


def _long_item(reader: JsonReader, depth: int, path: tuple[int, ...]) -> Iterator[ContentItem]:
    attributes, cut, is_shown = JsonDataset(), False, False
    for tag in reader.members():
        if tag == CONTENT:
            yield ContentItem(depth, path, attributes, cut)
            attributes, cut, is_shown = {}, False, True
            yield from _long_children(reader, depth + 1, path)
        elif (element := reader.value()) is LARGE:
            reader.skip()
            cut = True
        else:
            attributes[tag] = element
    if not is_shown or attributes or cut:
        yield ContentItem(depth + is_shown, path, attributes, cut)


def _places(element: Mapping[str, Any]) -> Iterator[tuple[str, InstancePlace]]:
    for study in _items({"": element}, ""):
        for series in _items(study, "00081115"):
            place = InstancePlace(text(study, "0020000D"), text(series, "0020000E"))
            if all(map(is_uid, place)):
                for one in _items(series, "00081199"):
                    yield text(one, "00081155"), place


def _items(dataset: Mapping[str, Any], tag: str) -> Iterator[Mapping[str, Any]]:
    return (one for one in values(dataset, tag) if isinstance(one, dict))


def is_uid(given: str) -> bool:
    return bool(_UID.match(given))


def is_language(given: str) -> bool:
    return bool(_LANGUAGE.match(given))


def language_of(items: Iterable[ContentItem]) -> str:
    """The language tag (BCP 47) of the document; `und` if it does not say."""
    language = country = ""
    for one in items:
        code, concept = Code.of(item(one.attributes, "0040A168")), one.concept
        if one.relationship != MODIFIES or one.depth > 2:
            continue
        if (concept.value, concept.scheme) == LANGUAGE and is_language(code.value):
            language = language or code.value
        elif (concept.value, concept.scheme) == COUNTRY and _COUNTRY.match(code.value):
            country = country or code.value.upper()
    if language and country and "-" not in language:
        return f"{language}-{country}"
    return language or UNDETERMINED

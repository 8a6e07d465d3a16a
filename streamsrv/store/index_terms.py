"""The keys of the inverted lists: level, attribute, normal form.

Rules of this file: an attribute's number is its tag, or for a path the number that its row has in a digest of
the path. A normal form is cut (`query_values.cut`), so a list may offer too much and the stored row decides.
The study date has a list entry for every study, an empty one where there is no valid date: walking that list
backwards is the order in which studies are found.
"""

from __future__ import annotations

import zlib

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.store.query import Level, Path, QueryAttribute, attributes_at
from streamsrv.store.query_values import cut, normal_forms

ORDERING = "00080020"  # StudyDate

_INDEXED = {level: tuple(row for row in attributes_at(level) if row.indexed) for level in Level}
_MOST_TERMS = 256  # of one attribute of one study or series: further values are found by scanning


def term_prefix(row: QueryAttribute) -> bytes:
    number = int(row.tag, 16) if len(row.tag) == 8 else zlib.crc32(row.tag.encode()) | 0x8000_0000
    return bytes((row.level,)) + number.to_bytes(4, "big")


def term(row: QueryAttribute, form: str) -> bytes:
    return term_prefix(row) + cut(form)


def elements_at(attributes: JsonDataset, path: Path) -> list[JsonElement]:
    """Every element that the path names, through all items of the sequences on its way."""
    datasets = [attributes]
    for tag in path[:-1]:
        datasets = [
            item
            for each in datasets
            if tag in each
            for item in each[tag].get("Value", ())
            if isinstance(item, dict)
        ]
    return [each[path[-1]] for each in datasets if path[-1] in each]


def forms_of(row: QueryAttribute, attributes: JsonDataset) -> set[str]:
    values = [
        value
        for element in elements_at(attributes, row.path)
        for value in element.get("Value", ())[: 1 if row.tag == ORDERING else _MOST_TERMS]
    ]
    found = {form for value in values for form in normal_forms(row.vr, value)}
    return found or ({""} if row.tag == ORDERING else found)


def terms(level: Level, attributes: JsonDataset) -> set[bytes]:
    return {term(row, form) for row in _INDEXED[level] for form in forms_of(row, attributes)}

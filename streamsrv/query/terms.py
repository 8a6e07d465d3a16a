"""The keys of the inverted lists: level, attribute, normal form.

Rules
- The number of an attribute is its tag, or a digest of its path.
- A normal form is cut, so a list may hold false matches and the stored row decides.
- Every study has an entry in the list of study dates, an empty one if it has no valid date. Searches find
  studies in the reverse order of that list.
"""

from __future__ import annotations

import zlib

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.query.attributes import Level, Path, QueryAttribute, attributes_at
from streamsrv.query.values import cut, normal_forms

ORDERING = "00080020"  # StudyDate

_MOST_TERMS = 256  # of one attribute of one study or series; a scan finds further values


def term_prefix(row: QueryAttribute) -> bytes:
    number = int(row.tag, 16) if len(row.tag) == 8 else zlib.crc32(row.tag.encode()) | 0x8000_0000
    return bytes((row.level,)) + number.to_bytes(4, "big")


_INDEXED = {
    level: tuple((row, term_prefix(row)) for row in attributes_at(level) if row.indexed) for level in Level
}


def elements_at(attributes: JsonDataset, path: Path) -> list[JsonElement]:
    """Returns the elements at a path, in all items of its sequences."""
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
    if len(row.path) == 1:
        values = attributes.get(row.tag, {}).get("Value", ())
    else:
        elements = elements_at(attributes, row.path)
        values = [value for element in elements for value in element.get("Value", ())]
    if row.tag == ORDERING:
        values = values[:1]
    found = {form for value in values[:_MOST_TERMS] for form in normal_forms(row.vr, value)}
    return found or ({""} if row.tag == ORDERING else found)


def terms(level: Level, attributes: JsonDataset) -> set[bytes]:
    return {start + cut(form) for row, start in _INDEXED[level] for form in forms_of(row, attributes)}

"""Search answers as the index keeps them: DICOM JSON with slots for URLs and UIDs (PS3.18 F.2, 10.6.3).

Strategy: the answer of a study, series or instance is composed once, when it is stored. A search only fills
the slots, for a whole page of a series at once.

    0x00  base URL of the service        0x02  series instance UID
    0x01  study instance UID             0x03  SOP instance UID

JSON text holds no raw control character, so filling is exact. The phrases at the beginning of nearly every
instance's answer are single bytes too (PHRASES): they shrink 600 bytes an instance to 200.

Rules of this file: the members of each object are in ascending order (F.2.2). A value of a dataset enters an
answer only through `orjson.dumps`, which escapes control characters, so that no file can plant a slot.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable

import orjson

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.query.attributes import QUERY_ATTRIBUTES, Level, Returned, attributes_at
from streamsrv.query.rules import MODALITY, facts_of
from streamsrv.query.values import is_empty
from streamsrv.store.index.rows import (
    FACTS_BYTES,
    OTHER_FACTS_BYTES,
    VARIANT_BYTES,
    LevelRow,
    instance_answer,
    json_object,
)
from streamsrv.store.rows import InstanceKey, InstanceRow

# An attribute whose JSON is longer is left out of search: rows stay small, and LO, PN and SH are far shorter.
LONGEST_KEPT = 2048
MOST_ITEMS = 16  # of a kept sequence
SOP_CLASS = "00080016"
LONGEST_CACHED = 16 << 10  # bytes of the study and series attributes of an instance

Fragments = dict[str, bytes]  # tag -> its member of the object, `"00100010":{...}`


def _member(tag: str, element: JsonElement) -> bytes:
    return b'"' + tag.encode() + b'":' + orjson.dumps(element)


def _slot_member(tag: str, vr: str, value: bytes) -> bytes:
    return f'"{tag}":{{"vr":"{vr}","Value":["'.encode() + value + b'"]}'


_CHARSET = _slot_member("00080005", "CS", b"ISO_IR 192")
_ONLINE = _slot_member("00080056", "CS", b"ONLINE")
_URLS = {
    Level.STUDY: b"\0/studies/\1",
    Level.SERIES: b"\0/studies/\1/series/\2",
    Level.INSTANCE: b"\0/studies/\1/series/\2/instances/\3",
}
_UIDS = {"0020000D": b"\1", "0020000E": b"\2", "00080018": b"\3"}


def _fixed(level: Level) -> Fragments:
    """The members that are equal in every answer of a level."""
    fixed = {
        "00080005": _CHARSET,
        "00080056": _ONLINE,
        "00081190": _slot_member("00081190", "UR", _URLS[level]),
    }
    rows = {row.tag for row in attributes_at(level)}
    return fixed | {tag: _slot_member(tag, "UI", slot) for tag, slot in _UIDS.items() if tag in rows}


_FIXED = {level: _fixed(level) for level in Level}
_EMPTY = {
    level: {
        row.tag: _member(row.tag, {"vr": row.vr})
        for row in attributes_at(level)
        if row.returned is Returned.ALWAYS and not row.computed
    }
    for level in Level
}
# The tags that come from datasets, at each level; for sequences the tags kept of their items.
_KEPT = {
    level: {row.path[0]: row.vr for row in attributes_at(level) if not row.computed and len(row.path) == 1}
    for level in Level
}
_ABOVE = tuple({**_KEPT[Level.STUDY], **_KEPT[Level.SERIES]})
_ASKED = {
    level: frozenset(row.tag for row in attributes_at(level) if row.returned is Returned.ASKED)
    for level in Level
}
_OF_ITEMS: dict[str, tuple[str, ...]] = {
    outer: tuple(row.path[1] for row in QUERY_ATTRIBUTES if len(row.path) == 2 and row.path[0] == outer)
    for outer in {row.path[0] for row in QUERY_ATTRIBUTES if len(row.path) == 2}
}

# A text with an unusual SOP class or geometry holds fewer of them.
_PHRASES = (
    (b"\4", b"{" + _CHARSET + b',"00080016":{"vr":"UI","Value":["1.2.840.10008.5.1.4.1.1.'),
    (b"\5", b'"]},' + _FIXED[Level.INSTANCE]["00080018"] + b"," + _ONLINE + b","),
    (b"\6", _FIXED[Level.INSTANCE]["00081190"] + b',"00083002":{"vr":"UI","Value":["1.2.840.10008.1.2'),
    (b"\7", b'"]},' + _FIXED[Level.INSTANCE]["0020000D"] + b"," + _FIXED[Level.INSTANCE]["0020000E"] + b","),
    (b"\x0b", b'"00200013":{"vr":"IS","Value":['),
    (b"\x0c", b'"00280010":{"vr":"US","Value":['),
    (b"\x0e", b'"00280011":{"vr":"US","Value":['),
    (b"\x0f", b'"00280100":{"vr":"US","Value":['),
)
_CONTROLS = bytes(range(0x20))
BETWEEN = b"\x1f"  # separates the answers of a page while their phrases are expanded


def _keep(tag: str, element: JsonElement) -> JsonElement | None:
    values = element.get("Value", ())
    if len(values) == 1 and isinstance(values[0], int):
        return {"vr": element["vr"], "Value": values}
    if is_empty(element):
        return None
    wanted = _OF_ITEMS.get(tag)
    if wanted is not None:
        values = [{inner: item[inner] for inner in wanted if inner in item} for item in values[:MOST_ITEMS]]
    found = {"vr": element["vr"], "Value": values}
    return found if len(orjson.dumps(found)) <= LONGEST_KEPT else None


def kept(attributes: JsonDataset, levels: Iterable[Level]) -> JsonDataset:
    """The attributes of a dataset that searches use at these levels, without empty and overlong ones."""
    found: JsonDataset = {}
    for level in levels:
        for tag in _KEPT[level]:
            if tag in attributes and tag not in found:
                element = _keep(tag, attributes[tag])
                if element is not None:
                    found[tag] = element
    return found


def at_level(attributes: JsonDataset, level: Level) -> JsonDataset:
    names = _KEPT[level]
    return {tag: element for tag, element in attributes.items() if tag in names}


def variant_of(attributes: JsonDataset, sop_class: str) -> tuple[bytes, bytes]:
    """The study and series attributes of an instance, and its SOP class, as JSON in the order of the table;
    and its digest. This begins with a digest of the facts that rules of access compare."""
    # Instances come series by series, so the last results are kept.
    json_text = orjson.dumps([*map(attributes.get, _ABOVE), sop_class])
    return _variant_of(json_text) if len(json_text) <= LONGEST_CACHED else _variant_of.__wrapped__(json_text)


@functools.lru_cache(maxsize=256)
def _variant_of(json_text: bytes) -> tuple[bytes, bytes]:
    *elements, sop_class = orjson.loads(json_text)
    named = zip(_ABOVE, elements, strict=True)
    attributes = kept({tag: element for tag, element in named if element}, (Level.STUDY, Level.SERIES))
    attributes[SOP_CLASS] = {"vr": "UI", "Value": [sop_class]}
    text, facts = orjson.dumps(attributes), facts_of(attributes)
    modality = facts.pop(MODALITY)
    parts = (
        (orjson.dumps(facts), OTHER_FACTS_BYTES),
        (orjson.dumps(modality), FACTS_BYTES - OTHER_FACTS_BYTES),
        (text, VARIANT_BYTES - FACTS_BYTES),
    )
    return text, b"".join([hashlib.blake2b(part, digest_size=size).digest() for part, size in parts])


def compose(fragments: Fragments) -> bytes:
    return b"{" + b",".join([fragments[tag] for tag in sorted(fragments)]) + b"}"


def level_texts(level: Level, attributes: JsonDataset, computed: JsonDataset) -> tuple[bytes, bytes]:
    """The answer of a study or series, and the attributes that are returned only on request."""
    answer, more = dict(_EMPTY[level]), Fragments()
    for tag, element in {**attributes, **computed}.items():
        (more if tag in _ASKED[level] else answer)[tag] = _member(tag, element)
    return compose(answer | _FIXED[level]), compose(more) if more else b""


def instance_text(row: InstanceRow, attributes: JsonDataset) -> bytes:
    """The answer of an instance, with its phrases shrunk."""
    fragments = dict(_EMPTY[Level.INSTANCE])
    for tag, element in kept(attributes, (Level.INSTANCE,)).items():
        fragments[tag] = _member(tag, element)
    fragments["00080016"] = _member("00080016", {"vr": "UI", "Value": [row.sop_class_uid]})
    fragments["00083002"] = _member("00083002", {"vr": "UI", "Value": [row.transfer_syntax]})
    text = compose(fragments | _FIXED[Level.INSTANCE])
    for byte, phrase in _PHRASES:
        text = text.replace(phrase, byte)
    return text


def expand(text: bytes) -> bytes:
    """Expand the phrases of an instance's answer, or of several joined by BETWEEN. The slots stay."""
    for byte, phrase in _PHRASES:
        text = text.replace(byte, phrase)
    return text


def fill(text: bytes, base_url: bytes, key: InstanceKey) -> bytes:
    """`base_url` is the text between quotes in JSON."""
    for slot, value in ((b"\3", key.instance), (b"\2", key.series), (b"\1", key.study)):
        text = text.replace(slot, value.encode())
    return text.replace(b"\0", base_url)


def fill_page(texts: Iterable[bytes], instances: Iterable[str], base_url: bytes, key: InstanceKey) -> bytes:
    """The answers of many instances of one series (`key`), separated by commas."""
    expanded = expand(BETWEEN.join(texts)).split(BETWEEN)
    page = b",".join(
        [text.replace(b"\3", uid.encode()) for text, uid in zip(expanded, instances, strict=True)]
    )
    return fill(page, base_url, key)


def level_attributes(row: LevelRow) -> JsonDataset:
    """All attributes in the row of a study or series, also computed values. Slots are empty."""
    return json_object(_whole_text(row))


def reader_of(level: Level, tags: Iterable[str]) -> Callable[[LevelRow], JsonDataset]:
    """Like `level_attributes`, but for these attributes alone, which takes a quarter of the time."""
    text_of = texts_of(level, tags)
    return lambda row: json_object(text_of(row))


def texts_of(level: Level, tags: Iterable[str]) -> Callable[[LevelRow], bytes]:
    """Finds these attributes in the row of a study or series, and perhaps others: a JSON object."""
    return _texts_of(level, frozenset(tags))


def _whole_text(row: LevelRow) -> bytes:
    """Both texts as one JSON object. `more` may be empty, `answer` never is."""
    answer = row.answer.translate(None, _CONTROLS)
    return answer[:-1] + b"," + row.more[1:] if row.more else answer


@functools.lru_cache(maxsize=256)
def _texts_of(level: Level, wanted: frozenset[str]) -> Callable[[LevelRow], bytes]:
    if not wanted or not wanted.isdisjoint(_OF_ITEMS):  # items hold members of their own
        return _whole_text
    # A member ends before the next one, or at the end of the object: quotes in strings are escaped.
    names = "|".join(sorted(wanted)).encode()
    member = re.compile(rb'"(?:%b)":\{.*?\}(?=,"[0-9A-F]{8}":|\}\Z)' % names)

    def read(text: bytes) -> bytes:
        return b"{" + b",".join(member.findall(text)).translate(None, _CONTROLS) + b"}"

    asked = {tag in _ASKED[level] for tag in wanted}
    if asked == {True}:
        return lambda row: read(row.more)
    if asked == {False}:
        return lambda row: read(row.answer)
    return lambda row: read(_whole_text(row))


def instance_attributes(value: bytes) -> JsonDataset:
    """All attributes in the row of an instance."""
    return json_object(instance_json(value))


def instance_json(value: bytes) -> bytes:
    """The same as a JSON object."""
    return expand(instance_answer(value)).translate(None, _CONTROLS)


def dataset_attributes(level: Level, row: LevelRow) -> JsonDataset:
    """The attributes of a study or series that came from datasets."""
    names = _KEPT[level]
    return {tag: each for tag, each in level_attributes(row).items() if tag in names and "Value" in each}


def recounted(answer: bytes, before: JsonDataset, after: JsonDataset) -> bytes:
    """Replace the computed values in the answer of a study or series. The text of a member occurs once,
    because quotes in strings are escaped."""
    for tag, element in after.items():
        answer = answer.replace(_member(tag, before[tag]), _member(tag, element), 1)
    return answer

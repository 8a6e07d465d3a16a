"""A mould: what the instances of a series have in common, from the first element to Pixel Data, with holes
for the few values that differ.

Strategy: made of an instance that `Repeats` has just read. The next instance is *cast*: the bytes between the
holes are compared, the values in the holes converted, and both the JSON text and the SOPInstance put together
with what was made before. What does not fit is read in the usual way.

Rules
- A cast is what reading gives, or None. So a hole is an element at the top level whose VR nothing but itself
  decides, which decides nothing for others (character set, geometry), and whose value converts without a
  warning.
- A mould is used only if the instance that it was made of comes out of it unchanged.
- All ascends by tag, as the members of the text do: else values that happen to be equal would change places.
- Behind the last hole only Pixel Data may follow, to the end of the file.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from typing import NamedTuple

import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.checks import UID, broken_rule
from streamsrv.dicom.elements import Elements, Event
from streamsrv.dicom.instance import BulkValue, Frames, JsonDataset, JsonElement, SOPInstance
from streamsrv.dicom.json.writer import MetadataWriter
from streamsrv.dicom.levels import NOTED
from streamsrv.dicom.values import Converter
from streamsrv.dicom.window import Pread, ReadLimits, Window
from streamsrv.errors import NotDicom

# (the file, offset of the first item, size of the file) -> frames, and where the sequence delimiter begins.
# Raises NotDicom.
Layout = Callable[[Pread, int, int], tuple[Frames, int]]

LONGEST_TEXT = 128 * 1024
MOST_HOLES = 200
# How much longer than in the first instance all holes may be together.
SLACK = 1024
UIDS = (tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID, tags.SOP_INSTANCE_UID, tags.SOP_CLASS_UID)
# How the pixels are read.
GEOMETRY = (
    tags.SAMPLES_PER_PIXEL,
    tags.PHOTOMETRIC_INTERPRETATION,
    tags.PLANAR_CONFIGURATION,
    tags.NUMBER_OF_FRAMES,
    tags.ROWS,
    tags.COLUMNS,
    tags.BITS_ALLOCATED,
    tags.BITS_STORED,
    tags.HIGH_BIT,
    tags.PIXEL_REPRESENTATION,
)
# Values that decide how others, or the pixels, are read.
DECIDING = frozenset((tags.SPECIFIC_CHARACTER_SET, *GEOMETRY, *(f"{tag:08X}" for tag in NOTED)))
_UNDEFINED = b"\xff\xff\xff\xff"
_DELIMITER = 8  # bytes
_LENGTHS = {2: struct.Struct("<H").unpack_from, 4: struct.Struct("<I").unpack_from}


class Piece(NamedTuple):
    """Bytes that do not differ, and the members of the JSON object that they are; `key` is the first one's,
    "" without members."""

    raw: bytes
    key: str
    text: bytes


class Hole(NamedTuple):
    """An element whose value differs: the bytes of its tag and VR, and how its value is converted."""

    head: bytes
    key: str
    convert: Converter


class Track:
    """What one reading by runs met, in the order of the file."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start  # of all but `rest`
        self.parts: list[Piece | tuple[bytes, Event]] = []
        self.rest: list[Event] = []  # behind them; two at most, if there are more
        self.simple = True  # nothing else was met

    def hole(self, event: Event, elements: Elements) -> None:
        """The next element, of a short VR."""
        at = elements.position - elements.window.start
        head = elements.window.buffer[at : at + (6 if elements.levels[0].explicit else 4)]
        self.parts.append((head, event))

    def mould(
        self, window: Window, writer: MetadataWriter, instance: SOPInstance, layout: Layout, *, explicit: bool
    ) -> Mould | None:
        """None if something was met that no mould can have."""
        convert, parts = writer.converters, self._with_pixels(window, instance)
        if parts is None:
            return None
        made = [
            part if isinstance(part, Piece) else Hole(part[0], f"{part[1][0]:08X}", convert[part[1][1]])
            for part in parts
        ]
        length = self.end - self.start
        if not self.simple or not can_be_cast(made, instance, writer.extra):
            return None
        return Mould(made, writer.extra, instance, layout, writer.limits, explicit=explicit, length=length)

    def _with_pixels(self, window: Window, instance: SOPInstance) -> list[Piece | tuple[bytes, Event]] | None:
        """Pixel Data are a piece, too: their header, and what the JSON object has of them."""
        if not self.rest:
            return self.parts
        tag, vr, offset, _, value = self.rest[0]
        key = f"{tag:08X}"
        if len(self.rest) > 1 or value is not None or [each.path for each in instance.bulk] != [key]:
            return None
        header = window.bytes_at(self.end, offset - self.end)
        text = b'"%s":{"vr":"%s","BulkDataURI":"\0/bulkdata/%s"}' % (key.encode(), vr.encode(), key.encode())
        return [*self.parts, Piece(header, key, text)]


class Mould:
    """For files of the same `syntax`, little endian. Made by Track.mould."""

    def __init__(
        self,
        parts: list[Piece | Hole],
        extra: JsonDataset,
        instance: SOPInstance,
        layout: Layout,
        limits: ReadLimits,
        *,
        explicit: bool,
        length: int,
    ) -> None:
        """`parts` are `length` bytes; the header of Pixel Data is the last one, if they follow. `extra` has
        the members that are in no file."""
        self.syntax = ""  # what the file meta information has to say
        self._like = instance
        self._layout = layout
        self._word = 2 if explicit else 4  # bytes of a hole's length
        self._span = length + SLACK
        self._longest_value = limits.text_threshold
        self._longest_text = min(LONGEST_TEXT, limits.max_metadata)
        self._steps: list[tuple[bytes, Converter]] = []
        holes: list[str] = []
        texts = {key: orjson.dumps({key: element})[1:-1] for key, element in extra.items()}
        fixed = b""
        for part in parts:
            if isinstance(part, Piece):
                fixed += part.raw
                if part.key:
                    texts[part.key] = part.text
            else:
                self._steps.append((fixed + part.head, part.convert))
                holes.append(part.key)
                fixed = b""
        self._tail = fixed
        self._texts = _between(texts, holes)
        self._kept = [(key, number) for number, key in enumerate(holes) if key in instance.attributes]
        self._uids = [(place, holes.index(key)) for place, key in enumerate(UIDS) if key in holes]
        self._fragments = bool(instance.bulk) and _in_fragments(parts)

    def cast(self, pread: Pread, size: int, window: Window, start: int) -> tuple[SOPInstance, bytes] | None:
        """The instance whose dataset begins at `start`, and its JSON text; None if it does not fit."""
        found = self._compared(window, start)
        if found is None:
            return None
        elements, end = found
        uids, attributes = self._identity(elements), self._attributes(elements)
        pixels = self._pixels(pread, end, size)
        if uids is None or attributes is None or pixels is None:
            return None
        texts = self._texts.copy()
        texts[1::2] = map(orjson.dumps, elements)
        text = b"".join(texts)
        if len(text) > self._longest_text:
            return None
        return self._instance(start, uids, attributes, len(text), *pixels), text

    def _compared(self, window: Window, start: int) -> tuple[list[JsonElement], int] | None:
        """What is in the holes, and where the header ends."""
        window.load(start, self._span)
        buffer, at, word = window.buffer, start - window.start, self._word
        length_at = _LENGTHS[word]
        elements: list[JsonElement] = []
        try:
            for fixed, convert in self._steps:
                if not buffer.startswith(fixed, at):
                    return None
                begin = at + len(fixed) + word
                at = begin + length_at(buffer, begin - word)[0]
                if at - begin > self._longest_value:
                    return None
                elements.append(convert(buffer[begin:at]))
        except (ValueError, struct.error):
            return None
        # A value that goes on behind the window ends there: nothing begins behind it.
        if not buffer.startswith(self._tail, at) or at > len(buffer):
            return None
        return elements, window.start + at + len(self._tail)

    def _identity(self, elements: list[JsonElement]) -> list[str] | None:
        like = self._like
        uids = [like.study_uid, like.series_uid, like.instance_uid, like.sop_class_uid]
        for place, number in self._uids:
            uid = elements[number].get("Value", ("",))[0]
            if not UID.fullmatch(uid or ""):
                return None
            uids[place] = uid
        return uids

    def _attributes(self, elements: list[JsonElement]) -> JsonDataset | None:
        attributes = self._like.attributes.copy()
        for key, number in self._kept:
            attributes[key] = element = elements[number]
            if broken_rule(element):
                return None
        return attributes

    def _pixels(self, pread: Pread, at: int, size: int) -> tuple[Frames, list[BulkValue]] | None:
        """Pixel Data whose value begins at `at` and ends with the file."""
        like = self._like
        if not like.bulk:
            return (self._frames(like.frames.base), []) if at == size else None
        value = like.bulk[0]
        if self._fragments:
            try:
                frames, end = self._layout(pread, at, size)
            except NotDicom:
                return None  # whoever reads it says it better
            length, rest = end - at, _DELIMITER
        else:
            frames, length, rest = self._frames(at if like.frames.base else 0), value.length, 0
        if at + length + rest != size:
            return None
        return frames, [BulkValue(value.path, value.vr, at, length)]

    def _frames(self, base: int) -> Frames:
        like = self._like.frames
        return Frames(like.kind, like.number, base, like.stride, like.table)

    def _instance(
        self,
        start: int,
        uids: list[str],
        attributes: JsonDataset,
        length: int,
        frames: Frames,
        bulk: list[BulkValue],
    ) -> SOPInstance:
        like = self._like
        study, series, instance, sop_class = uids
        return SOPInstance(  # by position: this is for every instance
            study,
            series,
            instance,
            sop_class,
            like.transfer_syntax,
            start,
            False,
            bulk[0].offset if bulk else 0,
            bulk[0].length if bulk else 0,
            like.rows,
            like.columns,
            like.samples_per_pixel,
            like.bits_allocated,
            like.pixel_facts,
            frames,
            attributes,
            length,
            like.metadata_slots,
            bulk,
            like.warnings.copy(),
        )


def can_be_cast(parts: list[Piece | Hole], instance: SOPInstance, extra: JsonDataset) -> bool:
    holes = [part.key for part in parts if isinstance(part, Hole)]
    keys = [part.key for part in parts if part.key]
    return (
        isinstance(parts[0], Piece)  # which shows how the dataset is encoded
        and len(holes) <= MOST_HOLES
        and all(map(operator.lt, keys, keys[1:]))
        and DECIDING.isdisjoint(holes)
        and extra.keys().isdisjoint(holes)
        and all(key > tags.SPECIFIC_CHARACTER_SET and key[4:] != "0000" for key in holes)
        and not any(warning.tag in holes for warning in instance.warnings)
        and [value.offset for value in instance.bulk] == [instance.pixel_offset] * len(instance.bulk)
        and (not instance.frames.table or _in_fragments(parts))
        and not instance.deflated
    )


def _in_fragments(parts: list[Piece | Hole]) -> bool:
    """Whether the last of them is the header of a value of undefined length (PS3.5 A.4)."""
    last = parts[-1]
    return isinstance(last, Piece) and last.raw.endswith(_UNDEFINED)


def _between(texts: dict[str, bytes], holes: list[str]) -> list[bytes]:
    """The JSON object as texts and places for the elements of holes, in turns."""
    found = [b"{"]
    for key in sorted([*texts, *holes]):
        if len(found) > 1 or len(found[0]) > 1:
            found[-1] += b","
        if key in texts:
            found[-1] += texts[key]
        else:
            found[-1] += b'"%s":' % key.encode()
            found += b"", b""
    found[-1] += b"}"
    return found

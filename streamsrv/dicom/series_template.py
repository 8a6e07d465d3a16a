"""Reads the instances of a series with a template, in front of the plain reader (part10.py).

Strategy: the headers of a series differ in a dozen of a hundred elements. `learned` compares two headers
that the plain reader has read. Elements that differ become *variable fields* of a template. All others
are fixed bytes with fixed JSON text. A match compares the fixed bytes and converts only the variable
fields.

Rules
- For any bytes a match equals plain reading. If the template does not fit, the plain reader reads.
- A variable field is a top-level element with a 16-bit length in explicit VR, a sequence, or a bulk value.
  Its VR depends only on its own bytes or its tag. No other element depends on its value (character set,
  private creators), nor do the pixels (geometry). Its value converts without a warning.
- The plain reader reads a sequence that varies. It has no more elements than that of the example.
- Each bulk value is a variable field, because its offset varies. An instance with nested ones has no
  template.
- The values of group lengths and of file meta elements are ignored.
- The tags of the dataset ascend (PS3.5 7.1), as the members of the JSON object do (PS3.18 F.2.2).
- Only Pixel Data may follow the last element, up to the end of the file.
- A template is used only if the instance from which it was learned matches with the same result.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from operator import lt
from typing import NamedTuple, cast

import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.charsets import character_sets_of
from streamsrv.dicom.elements import BINARY_VRS, NOTED, PIXEL_REPRESENTATION, SHORT_VRS, Elements, Event
from streamsrv.dicom.frames import Encapsulated
from streamsrv.dicom.instance import BulkValue, FrameLayout, JsonDataset, JsonElement, SOPInstance
from streamsrv.dicom.json.text import members
from streamsrv.dicom.json.writer import OVERHEAD, SPILL, MetadataWriter
from streamsrv.dicom.part10 import (
    GEOMETRY,
    PREAMBLE,
    PREFIX,
    TRANSFER_SYNTAX_UID,
    UIDS,
    encoding_of,
    read_file_meta,
    read_instance,
)
from streamsrv.dicom.syntaxes import lookup
from streamsrv.dicom.tags import vr_of_number
from streamsrv.dicom.values import UID, Converter, broken_rule, converters_for
from streamsrv.dicom.window import Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError

LONGEST_HEADER = 256 * 1024  # bytes
LONGEST_TEXT = 128 * 1024  # bytes of JSON text
MOST_FIELDS = 200
# Bytes that the variable fields may have more than those of the example, and that bulk values may have more.
SLACK, BULK_SLACK = 1024, 16 * 1024
# Learning costs as much as reading an instance, so a series that never matches rarely tries it.
FIRST_TRIES = 8
READS_A_TRY = 16

_CHARACTER_SET = int(tags.SPECIFIC_CHARACTER_SET, 16)
_DECIDING = frozenset((*(int(tag, 16) for tag in GEOMETRY), *NOTED))
_ADDED = frozenset((int(tags.RETRIEVE_URL, 16), int(tags.AVAILABLE_TRANSFER_SYNTAX_UID, 16)))
_SHORT = frozenset(SHORT_VRS.values())
_VARYING_BULK = BINARY_VRS - {"UN"}
_UNDEFINED = b"\xff\xff\xff\xff"  # the length of a value in fragments (PS3.5 A.4)
_DELIMITER = 8  # bytes of a sequence delimiter
_NO_PIXELS = BulkValue("", "", 0, 0)
_LENGTHS = {2: struct.Struct("<H").unpack_from, 4: struct.Struct("<I").unpack_from}


class SeriesReader:
    """Reads one instance after the other, in one thread, with the same `keep` and `limits`. `matches`
    counts the instances that matched a template."""

    def __init__(self) -> None:
        self.matches = 0
        self._reads = self._tries = 0
        self._example: HeaderExample | None = None  # of the last instance that the plain reader read
        self._template: HeaderTemplate | None = None

    def read(
        self,
        pread: Pread,
        size: int,
        *,
        keep: frozenset[str],
        emit: Callable[[bytes], None],
        limits: ReadLimits,
    ) -> SOPInstance:
        """As `read_instance`. Instances share the elements of `attributes`, which must not change."""
        self._reads += 1
        found = self._template.match(pread, size) if self._template else None
        if found is not None:
            self.matches += 1
            emit(found[1])
            return found[0]
        texts: list[bytes] = []

        def collect(piece: bytes) -> None:
            if not texts:  # a longer text has no template
                texts.append(piece)
            emit(piece)

        instance = read_instance(pread, size, keep=keep, emit=collect, limits=limits)
        self._learn(pread, size, instance, texts[0], limits)
        return instance

    def _learn(self, pread: Pread, size: int, instance: SOPInstance, text: bytes, limits: ReadLimits) -> None:
        before, now = self._example, example_of(pread, size, instance, text, limits)
        if now is None:
            return
        self._example = now
        if before is None or self._tries > FIRST_TRIES + self._reads // READS_A_TRY:
            return
        self._tries += 1
        template = learned(before, now, self._template, limits)
        if template and template.match(pread, size) == (instance, text):
            self._template = template


class HeaderElement(NamedTuple):
    """A top-level element. `head` is its tag, VR and length, `events` the number of its events."""

    tag: int
    vr: str
    head: bytes
    value: bytes
    events: int
    is_bulk: bool


class HeaderExample:
    """A header that the plain reader has read: all bytes before the value of Pixel Data, or the whole
    file."""

    def __init__(self, header: bytes, size: int, instance: SOPInstance, text: bytes) -> None:
        self.header = header
        self.size = size
        self.instance = instance
        self.text = text
        self.explicit = True
        self.elements: list[HeaderElement] = []
        self.first = 0  # the index of the first element of the dataset; file meta elements come before
        self._pending = len(header)  # upper bound of the estimate of MetadataWriter

    def parse(self, limits: ReadLimits) -> bool:
        """Finds the elements. Returns False if no template can have them."""
        if self.elements:
            return True
        window = ReadWindow(self._pread, self.size)
        meta = read_file_meta(window, self.size, limits)
        encoding = encoding_of(meta, window)
        if not encoding.little:
            return False
        self.explicit = encoding.explicit
        elements = self._top_level(PREAMBLE + len(PREFIX), meta.end, True, limits)
        self.first = len(elements)
        elements += self._top_level(meta.end, self.size, encoding.explicit, limits)
        order = [element.tag for element in elements[self.first :]]
        raw = b"".join([element.head + element.value for element in elements])
        # Warnings depend on the place where a text spills (json/writer.py), so no match may spill.
        short = self._pending + SLACK < SPILL
        ascending = all(map(lt, order, order[1:]))
        if ascending and short and raw == self.header[PREAMBLE + len(PREFIX) :]:
            self.elements = elements
        return bool(self.elements)

    def _pread(self, offset: int, length: int) -> bytes:
        return self.header[offset : offset + length]

    def _top_level(self, start: int, end: int, explicit: bool, limits: ReadLimits) -> list[HeaderElement]:
        """The top-level elements from `start` to `end`, or to the end of the header."""
        elements = Elements(
            ReadWindow(self._pread, end),
            start,
            end,
            explicit=explicit,
            little=True,
            limits=limits,
            skip_fragments=lambda *given: end - _DELIMITER,
        )
        header, found = self.header, list[HeaderElement]()
        opened: list[Event] = []  # the events of one element
        for event in elements.events():
            opened.append(event)
            if len(elements.levels) > 1:
                continue
            _, _, offset, length, value = event
            tag, vr, at, _, _ = opened[0]
            stop = elements.position if value is None else offset + length
            is_bulk = value is None and vr != "SQ"
            self._pending += OVERHEAD * len(opened) - len(header[at:stop]) * is_bulk
            found.append(HeaderElement(tag, vr, header[start:at], header[at:stop], len(opened), is_bulk))
            start, opened = stop, []
            if start >= len(header):
                break
        return found

    def texts(self) -> dict[str, bytes]:
        """The JSON text of each member of the dataset."""
        found: dict[str, bytes] = {}
        for tag, text in members([self.text]):
            found[tag] = found.get(tag, b"") + text
        return found

    @property
    def bulk(self) -> set[int]:
        """The indices of the bulk values but that of Pixel Data, which is the last element."""
        last = len(self.elements) - bool(self.instance.pixel_offset)
        return {place for place in range(last) if self.elements[place].is_bulk}

    def length_bytes(self, place: int) -> int:
        """Size of the length field of an element that can be a variable field; 0 if it cannot be one."""
        tag, vr, head, _, _, is_bulk = self.elements[place]
        is_meta, is_group_length = place < self.first, not tag & 0xFFFF and vr == "UL"
        is_short, is_private = vr in _SHORT, tag >> 16 & 1
        if is_bulk != (vr in _VARYING_BULK) or not (is_short or is_bulk or vr == "SQ"):
            return 0
        if is_meta or self.explicit:
            says_vr = len(head) == (8 if is_short else 12) and head[4:6] == vr.encode()
            width = 2 if is_short else 4
            width *= says_vr and (is_meta or not is_private or tag & 0xFFFF > 0xFF)
        else:  # the length of the first element shows how the dataset is encoded
            width = 4 * (vr_of_number(tag) == vr and not is_private and len(head) == 8 and place > self.first)
        if is_meta:
            return width if is_short and tag != TRANSFER_SYNTAX_UID else 0
        ordinary = tag > _CHARACTER_SET and tag not in _DECIDING and tag not in _ADDED
        return width if ordinary or is_group_length else 0


def example_of(
    pread: Pread, size: int, instance: SOPInstance, text: bytes, limits: ReadLimits
) -> HeaderExample | None:
    """Returns None for a kind of instance that no template can match."""
    end = instance.pixel_offset or size
    last = [value.offset for value in instance.bulk if value.path >= "7FE0"]
    nested = any("/" in value.path for value in instance.bulk)
    if instance.deflated or nested or last != [end] * bool(instance.pixel_offset):
        return None
    if end > LONGEST_HEADER or len(text) != instance.metadata_length:
        return None
    header = pread(0, end)
    in_fragments = header.endswith(_UNDEFINED)
    if instance.pixel_offset:
        end += instance.pixel_length + _DELIMITER * in_fragments
        if end != size or (instance.frames.table and not in_fragments):
            return None
    return HeaderExample(header, size, instance, text)


def learned(
    one: HeaderExample, other: HeaderExample, former: HeaderTemplate | None, limits: ReadLimits
) -> HeaderTemplate | None:
    """Makes a template of two examples. Variable fields of a `former` template with the same elements stay
    variable. Returns None if the examples have other elements, or differ in one that cannot vary."""
    if not (one.parse(limits) and other.parse(limits)) or one.explicit != other.explicit:
        return None
    shape = [(tag, vr) for tag, vr, *_ in other.elements]
    if [(tag, vr) for tag, vr, *_ in one.elements] != shape:
        return None
    pairs = zip(one.elements, other.elements, strict=True)
    variable = {place for place, (before, now) in enumerate(pairs) if before != now} | other.bulk
    if former and former.shape == shape:
        variable |= former.variable
    if len(variable) > MOST_FIELDS or not all(
        one.length_bytes(place) and other.length_bytes(place) for place in variable
    ):
        return None
    return HeaderTemplate(other, shape, variable, limits)


# (buffer, offset of the value, its length) -> JSON element or bulk value, and its end. Raises ValueError and
# InstanceError.
Take = Callable[[bytes, int, int], tuple[JsonElement | BulkValue, int]]


def bulk_taker(key: str, vr: str, threshold: int) -> Take:
    def take(buffer: bytes, begin: int, length: int) -> tuple[BulkValue, int]:
        if not threshold < length < LONGEST_HEADER:
            raise ValueError("not a bulk value")
        return BulkValue(key, vr, PREAMBLE + begin, length), begin + length

    return take


def sequence_taker(example: HeaderExample, place: int, limits: ReadLimits) -> Take:
    """Reads a sequence with the plain reader, in the character set and with the Pixel Representation of the
    example."""
    tag, _, head, _, most, _ = example.elements[place]
    values = {each.tag: each for each in example.elements if each.vr != "SQ"}
    charset, signed = values.get(_CHARACTER_SET), values.get(PIXEL_REPRESENTATION)

    def events(elements: Elements) -> Iterator[Event]:
        if charset:
            yield charset.tag, charset.vr, 0, len(charset.value), charset.value
        for number, event in enumerate(elements.events(), 1):
            if number > most:
                raise ValueError("more elements than in the example")
            yield event
            if len(elements.levels) == 1:
                return

    def take(buffer: bytes, begin: int, length: int) -> tuple[JsonElement, int]:
        elements = Elements(
            ReadWindow(lambda offset, length: buffer[offset : offset + length], len(buffer)),
            begin - len(head),
            len(buffer),
            explicit=example.explicit,
            little=True,
            limits=limits,
            skip_fragments=lambda *given: len(buffer),  # fragments are bulk, and refused below
        )
        elements.levels[0].notes[PIXEL_REPRESENTATION] = signed.value if signed else b""
        texts: list[bytes] = []
        writer = MetadataWriter(texts.append, frozenset(), {}, limits, True)
        writer.write(events(elements))
        if writer.warnings or writer.bulk:
            raise ValueError("a sequence with warnings or bulk values")
        _, text = b"".join(texts).split(b'"%08X":' % tag, 1)
        return cast(JsonElement, orjson.Fragment(text[:-1])), elements.position

    return take


class HeaderPart:
    """Alternating fixed bytes and variable fields: the file meta information, or the dataset."""

    def __init__(self, opening: bytes) -> None:
        # Fixed bytes before a length, size of the length field, and a converter or Take (none: ignored).
        self.fields: list[tuple[bytes, int, Converter | None, Take | None]] = []
        self.tail = opening  # fixed bytes behind the last field

    def vary(self, head: bytes, length_bytes: int, convert: Converter | None, take: Take | None) -> None:
        self.fields.append((self.tail + head[:-length_bytes], length_bytes, convert, take))
        self.tail = b""

    def compare(self, buffer: bytes, at: int, longest: int) -> tuple[list[JsonElement], list[BulkValue], int]:
        """The converted values and the bulk values of the part that begins at `at`, and its end. Raises
        ValueError, struct.error and InstanceError if it does not fit, or a value is invalid."""
        elements, bulk = list[JsonElement](), list[BulkValue]()
        for fixed, width, convert, take in self.fields:
            begin = at + len(fixed) + width
            if not buffer.startswith(fixed, at):
                raise ValueError("other fixed bytes")
            length = _LENGTHS[width](buffer, begin - width)[0]
            if take is not None:
                element, at = take(buffer, begin, length)
                if isinstance(element, BulkValue):
                    bulk.append(element)
                else:
                    elements.append(element)
                continue
            at = begin + length
            if length > longest:
                raise ValueError("a longer value than a field may have")
            if convert is not None:
                elements.append(convert(buffer[begin:at]))
        # Also false if `at` lies behind the buffer and the tail is empty.
        if not buffer.startswith(self.tail, at):
            raise ValueError("other fixed bytes")
        return elements, bulk, at + len(self.tail)


class HeaderTemplate:
    """Matches headers like `example`. The elements with an index in `variable` may have other values."""

    def __init__(
        self, example: HeaderExample, shape: list[tuple[int, str]], variable: set[int], limits: ReadLimits
    ) -> None:
        self.shape = shape
        self.variable = variable
        self._like = like = example.instance
        self._own_uids = [like.study_uid, like.series_uid, like.instance_uid, like.sop_class_uid]
        self._image = like.rows, like.columns, like.samples_per_pixel, like.bits_allocated, like.pixel_facts
        self._limits = limits
        self._longest_text = min(LONGEST_TEXT, limits.max_metadata)
        bulk_bytes = sum(len(example.elements[place].value) for place in example.bulk)
        self._longest = len(example.header) - PREAMBLE - bulk_bytes + SLACK  # without bulk values
        self._span = self._longest + bulk_bytes + BULK_SLACK * bool(bulk_bytes)
        texts = example.texts()
        element = orjson.loads(texts.get(tags.SPECIFIC_CHARACTER_SET, b"{}"))
        sets, _ = character_sets_of(tuple(str(term or "") for term in element.get("Value", ())))
        convert = converters_for(sets, little=True)
        self._meta, self._dataset = HeaderPart(PREFIX), HeaderPart(b"")
        keys: list[str] = []
        for place, (tag, vr, head, value, _, is_bulk) in enumerate(example.elements):
            part, key = self._meta if place < example.first else self._dataset, f"{tag:08X}"
            if place not in variable:
                part.tail += head + value
            elif is_bulk:
                part.vary(head, 4, None, bulk_taker(key, vr, limits.bulk_threshold))
            elif part is self._meta or not tag & 0xFFFF:
                part.vary(head, example.length_bytes(place), None, None)
            else:
                take = sequence_taker(example, place, limits) if vr == "SQ" else None
                part.vary(head, example.length_bytes(place), convert.get(vr), take)
                keys.append(key)
        self._texts = _between(texts, keys)
        self._kept = [(key, number) for number, key in enumerate(keys) if key in like.attributes]
        self._uids = [(place, keys.index(key)) for place, key in enumerate(UIDS) if key in keys]
        self._in_fragments = bool(like.pixel_offset) and self._dataset.tail.endswith(_UNDEFINED)
        number = orjson.loads(texts.get(tags.NUMBER_OF_FRAMES, b"{}")).get("Value", [None])[0]
        self._number = number if isinstance(number, int) and number > 0 else None

    def match(self, pread: Pread, size: int) -> tuple[SOPInstance, bytes] | None:
        """The instance and its JSON text; None if it does not fit."""
        buffer, longest = pread(PREAMBLE, self._span), self._limits.text_threshold
        try:
            _, _, start = self._meta.compare(buffer, 0, longest)
            elements, bulk, end = self._dataset.compare(buffer, start, longest)
            if end - sum([value.length for value in bulk]) > self._longest:
                return None
            study, series, instance, sop_class = self._identity(elements)
            attributes = self._attributes(elements)
            frames = self._pixels(pread, PREAMBLE + end, size, bulk)
        except (ValueError, struct.error, InstanceError):
            return None
        texts = self._texts.copy()
        texts[1::2] = map(orjson.dumps, elements)
        text = b"".join(texts)
        if len(text) > self._longest_text:
            return None
        like = self._like
        pixels = bulk[-1] if like.pixel_offset else _NO_PIXELS
        return SOPInstance(  # by position: this runs for every instance
            study,
            series,
            instance,
            sop_class,
            like.transfer_syntax,
            PREAMBLE + start,
            False,
            pixels.offset,
            pixels.length,
            *self._image,
            frames,
            attributes,
            len(text),
            like.metadata_slots,
            bulk,
            like.warnings.copy(),
        ), text

    def _identity(self, elements: list[JsonElement]) -> list[str]:
        uids = self._own_uids.copy()
        for place, number in self._uids:
            uid = elements[number].get("Value", ("",))[0]
            if not UID.fullmatch(uid or ""):
                raise ValueError("not a UID")
            uids[place] = uid
        return uids

    def _attributes(self, elements: list[JsonElement]) -> JsonDataset:
        attributes = self._like.attributes.copy()
        for key, number in self._kept:
            element = elements[number]
            if isinstance(element, orjson.Fragment):
                element = orjson.loads(orjson.dumps(element))
            attributes[key] = element
            if broken_rule(element):
                raise ValueError("a value with a warning")
        return attributes

    def _pixels(self, pread: Pread, at: int, size: int, bulk: list[BulkValue]) -> FrameLayout:
        """The frames of Pixel Data that begin at `at` and end with the file. Adds their value to `bulk`."""
        like, frames, end = self._like, self._like.frames, at
        if self._in_fragments:
            video = lookup(like.transfer_syntax).media_type.startswith("video/")
            pixels = Encapsulated(pread, at, size, self._number, self._limits.max_fragments, video)
            frames, delimiter = pixels.layout()
            end, length = delimiter + _DELIMITER, delimiter - at
        else:
            base, length = at if frames.base else 0, like.pixel_length
            frames, end = (
                FrameLayout(frames.kind, frames.number, base, frames.stride, frames.table),
                at + length,
            )
        if end != size:
            raise ValueError("another length")
        if like.pixel_offset:
            bulk.append(BulkValue(like.bulk[-1].path, like.bulk[-1].vr, at, length))
        return frames


def _between(texts: dict[str, bytes], keys: list[str]) -> list[bytes]:
    """The JSON object as alternating fixed texts and places for the elements of `keys`."""
    found = [b"{"]
    for number, (key, text) in enumerate(texts.items()):
        found[-1] += b"," * (number > 0)
        if key in keys:
            found[-1] += b'"%s":' % key.encode()
            found += b"", b""
        else:
            found[-1] += b'"%s":%s' % (key.encode(), text)
    found[-1] += b"}"
    return found

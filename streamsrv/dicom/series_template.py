"""Reads the instances of a series with a template, in front of the plain reader (part10.py).

Strategy: the headers of a series differ in a dozen of a hundred elements. `learned` compares two headers
that the plain reader has read. Elements that differ become *variable fields* of a template. All others
are fixed bytes with fixed JSON text. A match compares the fixed bytes and converts only the variable
fields.

Rules
- For any bytes a match equals plain reading. If the template does not fit, the plain reader reads.
- A variable field is a top-level element with a 16-bit length in explicit VR. Its VR depends only on its
  own bytes or its tag. No other element depends on its value (character set, private creators), nor do
  the pixels (geometry). Its value converts without a warning.
- The values of group lengths and of file meta elements are ignored.
- The tags of the dataset ascend (PS3.5 7.1), as the members of the JSON object do (PS3.18 F.2.2).
- Only Pixel Data may follow the last element, up to the end of the file.
- A template is used only if the instance from which it was learned matches with the same result.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import lt
from typing import NamedTuple

import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.charsets import codecs_of
from streamsrv.dicom.checks import UID, broken_rule
from streamsrv.dicom.elements import NOTED, SHORT_VRS, Elements
from streamsrv.dicom.filemeta import PREAMBLE, PREFIX, TRANSFER_SYNTAX_UID, encoding_of, read_file_meta
from streamsrv.dicom.frames import Encapsulated
from streamsrv.dicom.instance import BulkValue, FrameLayout, JsonDataset, JsonElement, SOPInstance
from streamsrv.dicom.json.members import members
from streamsrv.dicom.json.writer import OVERHEAD, SPILL
from streamsrv.dicom.part10 import GEOMETRY, UIDS, read_instance
from streamsrv.dicom.syntaxes import lookup
from streamsrv.dicom.tags import vr_of_number
from streamsrv.dicom.values import Converter, converters_for
from streamsrv.dicom.window import Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError

LONGEST_HEADER = 64 * 1024  # bytes; longer headers mostly hold values that differ
LONGEST_TEXT = 128 * 1024  # bytes of JSON text
MOST_FIELDS = 200
SLACK = 1024  # bytes that the variable fields may have more than those of the example.
# Learning costs as much as reading an instance, so a series that never matches rarely tries it.
FIRST_TRIES = 8
READS_A_TRY = 16

_CHARACTER_SET = int(tags.SPECIFIC_CHARACTER_SET, 16)
_DECIDING = frozenset((*(int(tag, 16) for tag in GEOMETRY), *NOTED))
_ADDED = frozenset((int(tags.RETRIEVE_URL, 16), int(tags.AVAILABLE_TRANSFER_SYNTAX_UID, 16)))
_SHORT = frozenset(SHORT_VRS.values())
_UNDEFINED = b"\xff\xff\xff\xff"  # the length of a value in fragments (PS3.5 A.4)
_DELIMITER = 8  # bytes of a sequence delimiter
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
            if len(texts) < 2:  # a longer text has no template
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
    """A top-level element. `head` is its tag, VR and length."""

    tag: int
    vr: str
    head: bytes
    value: bytes


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
        opened: tuple[int, str, int] | None = None  # tag, VR and value offset
        for tag, vr, offset, length, value in elements.events():
            self._pending += OVERHEAD
            opened = opened or (tag, vr, offset)
            if len(elements.levels) > 1:
                continue
            tag, vr, at = opened
            stop = elements.position if value is None else offset + length
            found.append(HeaderElement(tag, vr, header[start:at], header[at:stop]))
            start, opened = stop, None
            if start >= len(header):
                break
        return found

    def texts(self) -> dict[str, bytes]:
        """The JSON text of each member of the dataset."""
        found: dict[str, bytes] = {}
        for tag, text in members([self.text]):
            found[tag] = found.get(tag, b"") + text
        return found

    def length_bytes(self, place: int) -> int:
        """Size of the length field of an element that can be a variable field; 0 if it cannot be one."""
        tag, vr, head, _ = self.elements[place]
        is_meta, is_group_length = place < self.first, not tag & 0xFFFF and vr == "UL"
        if is_meta or self.explicit:
            says_vr = len(head) == 8 and head[4:6] == vr.encode() and vr in _SHORT
            width = 2 if says_vr and (is_meta or not tag >> 16 & 1 or tag & 0xFFFF > 0xFF) else 0
        else:  # the length of the first element shows how the dataset is encoded
            known = vr_of_number(tag) == vr and vr in _SHORT and not tag >> 16 & 1
            width = 4 if known and len(head) == 8 and place > self.first else 0
        if is_meta:
            return width if tag != TRANSFER_SYNTAX_UID else 0
        ordinary = tag > _CHARACTER_SET and tag not in _DECIDING and tag not in _ADDED
        return width if ordinary or is_group_length else 0


def example_of(
    pread: Pread, size: int, instance: SOPInstance, text: bytes, limits: ReadLimits
) -> HeaderExample | None:
    """Returns None for a kind of instance that no template can match."""
    end = instance.pixel_offset or size
    only_pixels = [value.offset for value in instance.bulk] == [end] * len(instance.bulk)
    if instance.deflated or not only_pixels or end > LONGEST_HEADER or len(text) != instance.metadata_length:
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
    variable = {place for place, (before, now) in enumerate(pairs) if before != now}
    if former and former.shape == shape:
        variable |= former.variable
    if len(variable) > MOST_FIELDS or not all(
        one.length_bytes(place) and other.length_bytes(place) for place in variable
    ):
        return None
    return HeaderTemplate(other, shape, variable, limits)


class HeaderPart:
    """Alternating fixed bytes and variable fields: the file meta information, or the dataset."""

    def __init__(self, opening: bytes) -> None:
        # Fixed bytes before a length, size of the length field, converter of the value (None: ignored).
        self.fields: list[tuple[bytes, int, Converter | None]] = []
        self.tail = opening  # fixed bytes behind the last field

    def vary(self, head: bytes, length_bytes: int, convert: Converter | None) -> None:
        self.fields.append((self.tail + head[:-length_bytes], length_bytes, convert))
        self.tail = b""

    def compare(self, buffer: bytes, at: int, longest: int) -> tuple[list[JsonElement], int] | None:
        """The converted values of the part that begins at `at`, and its end; None if it does not fit.
        Raises ValueError and struct.error for a value that breaks the rules of its VR."""
        elements: list[JsonElement] = []
        for fixed, width, convert in self.fields:
            if not buffer.startswith(fixed, at):
                return None
            begin = at + len(fixed) + width
            at = begin + _LENGTHS[width](buffer, begin - width)[0]
            if at - begin > longest:
                return None
            if convert is not None:
                elements.append(convert(buffer[begin:at]))
        # Also false if `at` lies behind the buffer and the tail is empty.
        return (elements, at + len(self.tail)) if buffer.startswith(self.tail, at) else None


class HeaderTemplate:
    """Matches headers like `example`. The elements with an index in `variable` may have other values."""

    def __init__(
        self, example: HeaderExample, shape: list[tuple[int, str]], variable: set[int], limits: ReadLimits
    ) -> None:
        self.shape = shape
        self.variable = variable
        self._like = example.instance
        self._limits = limits
        self._longest_text = min(LONGEST_TEXT, limits.max_metadata)
        self._span = len(example.header) - PREAMBLE + SLACK
        texts = example.texts()
        element = orjson.loads(texts.get(tags.SPECIFIC_CHARACTER_SET, b"{}"))
        codecs, _ = codecs_of(tuple(str(term or "") for term in element.get("Value", ())))
        convert = converters_for(codecs, little=True)
        self._meta, self._dataset = HeaderPart(PREFIX), HeaderPart(b"")
        keys: list[str] = []
        for place, (tag, vr, head, value) in enumerate(example.elements):
            part = self._meta if place < example.first else self._dataset
            if place not in variable:
                part.tail += head + value
            elif part is self._meta or not tag & 0xFFFF:
                part.vary(head, example.length_bytes(place), None)
            else:
                part.vary(head, example.length_bytes(place), convert[vr])
                keys.append(f"{tag:08X}")
        self._texts = _between(texts, keys)
        self._kept = [(key, number) for number, key in enumerate(keys) if key in self._like.attributes]
        self._uids = [(place, keys.index(key)) for place, key in enumerate(UIDS) if key in keys]
        self._in_fragments = bool(self._like.bulk) and self._dataset.tail.endswith(_UNDEFINED)
        number = orjson.loads(texts.get(tags.NUMBER_OF_FRAMES, b"{}")).get("Value", [None])[0]
        self._number = number if isinstance(number, int) and number > 0 else None

    def match(self, pread: Pread, size: int) -> tuple[SOPInstance, bytes] | None:
        """The instance and its JSON text; None if it does not fit."""
        buffer, longest = pread(PREAMBLE, self._span), self._limits.text_threshold
        try:
            meta = self._meta.compare(buffer, 0, longest)
            found = self._dataset.compare(buffer, meta[1], longest) if meta else None
        except (ValueError, struct.error):
            return None
        if meta is None or found is None:
            return None
        elements, end = found
        uids, attributes = self._identity(elements), self._attributes(elements)
        pixels = self._pixels(pread, PREAMBLE + end, size)
        if uids is None or attributes is None or pixels is None:
            return None
        texts = self._texts.copy()
        texts[1::2] = map(orjson.dumps, elements)
        text = b"".join(texts)
        if len(text) > self._longest_text:
            return None
        return self._instance(PREAMBLE + meta[1], uids, attributes, len(text), *pixels), text

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

    def _pixels(self, pread: Pread, at: int, size: int) -> tuple[FrameLayout, list[BulkValue]] | None:
        """The frames and the value of Pixel Data that begin at `at` and end with the file."""
        like = self._like
        if not like.bulk:
            return (self._frames(0), []) if at == size else None
        value = like.bulk[0]
        if self._in_fragments:
            video = lookup(like.transfer_syntax).media_type.startswith("video/")
            pixels = Encapsulated(pread, at, size, self._number, self._limits.max_fragments, video)
            try:
                frames, delimiter = pixels.layout()
            except InstanceError:
                return None  # the plain reader raises it again, with the tag
            end, length = delimiter + _DELIMITER, delimiter - at
        else:
            frames, length = self._frames(at if like.frames.base else 0), value.length
            end = at + length
        return (frames, [BulkValue(value.path, value.vr, at, length)]) if end == size else None

    def _frames(self, base: int) -> FrameLayout:
        like = self._like.frames
        return FrameLayout(like.kind, like.number, base, like.stride, like.table)

    def _instance(
        self,
        start: int,
        uids: list[str],
        attributes: JsonDataset,
        length: int,
        frames: FrameLayout,
        bulk: list[BulkValue],
    ) -> SOPInstance:
        like = self._like
        study, series, instance, sop_class = uids
        return SOPInstance(  # by position: this runs for every instance
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

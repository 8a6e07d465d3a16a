"""Reads one Part 10 file in place: file meta information, dataset, frames (PS3.10 section 7, PS3.5).

Strategy: elements.py reads the dataset once, and json/writer.py writes its DICOM JSON at the same time.
frames.py finds the frames when the reader meets Pixel Data. Values above the bulk threshold are skipped. In
memory are only a window, the open containers and the attributes that the caller keeps.

Rules:
- Any bytes give a SOPInstance, NotDicom or InstanceRefused, and nothing else. After an error the emitted
  text is invalid.
- The file meta information (7.1) ends at the first element of another group, because its group length is
  often wrong or missing. The group length counts only before a deflated dataset, whose first bytes may look
  like group 0002.
- The first element of the dataset shows whether it is explicit or implicit VR. The transfer syntax is
  only a hint, as for pydicom.
- The UIDs come from the dataset, never from the file meta information.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from streamsrv.dicom import tags
from streamsrv.dicom.elements import LONG_VRS, SHORT_VRS, Elements
from streamsrv.dicom.frames import Encapsulated, Geometry, native_frames, scan_items, whole_value
from streamsrv.dicom.instance import BulkValue, FrameKind, FrameLayout, JsonDataset, SOPInstance, facts_in
from streamsrv.dicom.json.writer import SLOT, MetadataWriter, plain
from streamsrv.dicom.syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    lookup,
)
from streamsrv.dicom.values import UID, broken_rule, well_formed_uid
from streamsrv.dicom.window import UNKNOWN_END, Inflater, Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom

__all__ = ["Pread", "ReadLimits", "encoding_of", "open_dataset", "read_file_meta", "read_instance"]

PREAMBLE = 128
PREFIX = b"DICM"
GROUP_LENGTH = 0x00020000
TRANSFER_SYNTAX_UID = 0x00020010
_GROUP = b"\2\0"
MOST_ELEMENTS = 1_000  # all of them are held; PS3.10 Table 7.1-1 has about twenty


@dataclass(slots=True)
class FileMeta:
    """`elements` are (tag, VR, value), without values above the bulk threshold. The dataset begins at
    `end`. `syntax` is "" if the transfer syntax is missing."""

    elements: list[tuple[int, str, bytes]]
    end: int
    syntax: str


@dataclass(slots=True)
class Encoding:
    """The encoding of a dataset as detected. `syntax` is the transfer syntax to record. `warning`
    describes an error of the file meta information."""

    syntax: str
    explicit: bool
    little: bool
    deflated: bool
    warning: str = ""


def read_file_meta(window: ReadWindow, size: int, limits: ReadLimits) -> FileMeta:
    """Raises NotDicom and InstanceRefused."""
    if window.bytes_at(PREAMBLE, 4) != PREFIX:
        reason = "not a DICOM Part 10 file"
        if lacks_preamble(window) or bare_encoding(window, size):
            reason = "a dataset without preamble or file meta information; `dcmconv` or `streamsrv store "
            reason += "--add-meta` writes them"
        raise NotDicom(f"no DICM prefix: {reason}", offset=PREAMBLE)
    meta = FileMeta([], PREAMBLE + 4, "")
    if window.bytes_at(meta.end, 2) != _GROUP:
        return meta
    # Some writers have implicit VR here; pydicom reads it too.
    explicit = window.bytes_at(meta.end + 4, 2).isalpha()
    elements = Elements(
        window, meta.end, size, explicit=explicit, little=True, limits=limits, skip_fragments=_no_fragments
    )
    counted = 0
    for tag, vr, offset, length, value in elements.events():
        if vr in ("SQ", ""):
            raise NotDicom("a sequence in the file meta information", offset=offset, tag=f"{tag:08X}")
        meta.end = offset + length
        if value is not None:
            if len(meta.elements) == MOST_ELEMENTS:
                raise InstanceRefused(
                    f"more than {MOST_ELEMENTS:,} elements in the file meta information", offset=offset
                )
            meta.elements.append((tag, vr, value))
        if tag == GROUP_LENGTH and length == 4 and value:
            counted = meta.end + int.from_bytes(value, "little")
        elif tag == TRANSFER_SYNTAX_UID and length:
            meta.syntax = _syntax(value, offset)
        at = meta.end - window.start
        group = window.buffer[at : at + 2] if at + 2 <= len(window.buffer) else window.bytes_at(meta.end, 2)
        if group != _GROUP or (meta.end == counted and lookup(meta.syntax).deflated):
            break
    return meta


def _syntax(value: bytes | None, offset: int) -> str:
    """The transfer syntax UID without padding. Header fields of answers contain it, so it must be a UID.
    Raises NotDicom."""
    syntax = value.decode("latin-1").strip(" \0") if value is not None else "too long"
    if syntax and not UID.fullmatch(syntax):
        raise NotDicom(
            "the Transfer Syntax UID is malformed: digits and dots, at most 64",
            offset=offset,
            tag=f"{TRANSFER_SYNTAX_UID:08X}",
        )
    return syntax


def _no_fragments(tag: int, start: int, end: int, little: bool) -> int:
    raise NotDicom("undefined length in the file meta information", offset=start, tag=f"{tag:08X}")


def encoding_of(meta: FileMeta, window: ReadWindow) -> Encoding:
    """The encoding of the dataset at `meta.end`. A deflated dataset is not checked."""
    row = lookup(meta.syntax)
    if meta.syntax and row.deflated:
        return Encoding(meta.syntax, True, True, True)
    head = window.bytes_at(meta.end, 6)
    vr = head[4:6]
    known = vr in SHORT_VRS or vr in LONG_VRS
    if not meta.syntax:
        return _guessed(head, known)
    if row.explicit_vr and len(vr) == 2 and not (vr.isalpha() and vr.isupper()):
        # The other syntaxes say more than explicit VR, so they stay.
        syntax = IMPLICIT_VR_LITTLE_ENDIAN if meta.syntax == EXPLICIT_VR_LITTLE_ENDIAN else meta.syntax
        return Encoding(syntax, False, row.little_endian, False, "the dataset is implicit VR")
    if not row.explicit_vr and known:
        # Stays implicit: such an instance is always encoded again before it is sent, and its file meta
        # information is then correct.
        return Encoding(meta.syntax, True, True, False, "the dataset is explicit VR")
    return Encoding(meta.syntax, row.explicit_vr, row.little_endian, False)


def _guessed(head: bytes, explicit: bool) -> Encoding:
    """The encoding of a file without a transfer syntax. The group of the first element is small, which
    shows the byte order."""
    little = not explicit or int.from_bytes(head[:2], "little") < 0x0400
    syntax, name = IMPLICIT_VR_LITTLE_ENDIAN, "implicit VR little endian"
    if explicit and little:
        syntax, name = EXPLICIT_VR_LITTLE_ENDIAN, "explicit VR little endian"
    elif explicit:
        syntax, name = EXPLICIT_VR_BIG_ENDIAN, "explicit VR big endian"
    return Encoding(syntax, explicit, little, False, f"missing, taken for {name}")


def lacks_preamble(window: ReadWindow) -> bool:
    """Returns whether the DICM prefix or the file meta information is at byte 0."""
    head = window.bytes_at(0, 6)
    return head.startswith(PREFIX) or (head[:2] == _GROUP and (head[4:] in SHORT_VRS or head[4:] in LONG_VRS))


def bare_encoding(window: ReadWindow, size: int) -> Encoding | None:
    """The encoding of a dataset at byte 0; None if no element of its first group is there. That is group
    0008, which has the SOP Class UID."""
    head = window.bytes_at(0, 8)
    explicit = head[4:6] in SHORT_VRS or head[4:6] in LONG_VRS
    encoding = _guessed(head, explicit)
    order: Literal["little", "big"] = "little" if encoding.little else "big"
    group, length = int.from_bytes(head[:2], order), int.from_bytes(head[4:8], order)
    return encoding if group == 0x0008 and (explicit or length <= size) else None


UIDS = (tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID, tags.SOP_INSTANCE_UID, tags.SOP_CLASS_UID)
# Attributes that decide how the pixels are read.
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
# Tags of pixel data -> bits a sample, 0 for those of Bits Allocated (PS3.3 C.7.6.24, C.7.6.25).
_PIXELS = {tags.PIXEL_DATA: 0, tags.FLOAT_PIXEL_DATA: 32, tags.DOUBLE_FLOAT_PIXEL_DATA: 64}
_FACTS = frozenset((*UIDS, *GEOMETRY, *_PIXELS))
_NEVER_SENT = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)  # PS3.18 8.7.3


def open_dataset(
    pread: Pread, size: int, start: int, encoding: Encoding, limits: ReadLimits
) -> tuple[Pread, int, int]:
    """Returns the pread of a dataset, and where the dataset begins and ends in its offsets."""
    if encoding.deflated:
        return Inflater(pread, start, size, limits.max_inflated).pread, 0, UNKNOWN_END
    return pread, start, size


def read_instance(
    pread: Pread,
    size: int,
    *,
    keep: frozenset[str],
    emit: Callable[[bytes], None],
    limits: ReadLimits,
) -> SOPInstance:
    """Reads the Part 10 file of `size` bytes. `emit` gets its DICOM JSON, with slots, in pieces of at most
    256 kB. `attributes` of the result holds the tags of `keep` that are there, but no sequence that exceeds
    the memory limit. Raises NotDicom and InstanceRefused."""
    window = ReadWindow(pread, size)
    meta = read_file_meta(window, size, limits)
    encoding = encoding_of(meta, window)
    dataset, start, end = open_dataset(pread, size, meta.end, encoding, limits)
    if encoding.deflated:
        window = ReadWindow(dataset, end)
    reader = _Reader(dataset, encoding, keep, emit, limits)
    reader.read(window, start, end)
    return reader.instance(keep, start)


class _Reader:
    """One reading of one dataset."""

    def __init__(
        self,
        pread: Pread,
        encoding: Encoding,
        keep: frozenset[str],
        emit: Callable[[bytes], None],
        limits: ReadLimits,
    ) -> None:
        self._pread = pread
        self._encoding = encoding
        self._limits = limits
        self._frames: FrameLayout | None = None
        available = EXPLICIT_VR_LITTLE_ENDIAN if encoding.syntax in _NEVER_SENT else encoding.syntax
        extra: JsonDataset = {
            tags.RETRIEVE_URL: {"vr": "UR", "Value": [SLOT]},
            tags.AVAILABLE_TRANSFER_SYNTAX_UID: {"vr": "UI", "Value": [available]},
        }
        self.writer = MetadataWriter(emit, keep | _FACTS, extra, limits, encoding.little)
        if encoding.warning:
            self.writer.warn(tags.TRANSFER_SYNTAX_UID, encoding.warning)

    def read(self, window: ReadWindow, start: int, end: int) -> None:
        encoding = self._encoding
        self._elements = Elements(
            window,
            start,
            end,
            explicit=encoding.explicit,
            little=encoding.little,
            limits=self._limits,
            skip_fragments=self._skip_fragments,
        )
        self.writer.write(self._elements.events())

    def _skip_fragments(self, tag: int, start: int, end: int, little: bool) -> int:
        """Returns the end of the fragments at `start`. Finds the frames if these are the Pixel Data of the
        instance."""
        if f"{tag:08X}" not in _PIXELS or len(self._elements.levels) > 1:
            return scan_items(self._pread, start, end, self._limits.max_fragments, little=little).end
        pixels = Encapsulated(
            self._pread,
            start,
            end,
            self._number_of_frames(),
            self._limits.max_fragments,
            single=lookup(self._encoding.syntax).media_type.startswith("video/"),
            extended=self._extended_offset_table(),
            seekable=not self._encoding.deflated,
            little=little,
        )
        self._frames, delimiter = pixels.layout()
        return delimiter

    def _extended_offset_table(self) -> tuple[bytes, bytes] | None:
        found = {value.path: value for value in self.writer.bulk}
        tables = [found.get(tags.EXTENDED_OFFSET_TABLE), found.get(tags.EXTENDED_OFFSET_TABLE_LENGTHS)]
        limit = 8 * self._limits.max_fragments
        values = [
            self._pread(table.offset, table.length) for table in tables if table and table.length <= limit
        ]
        return (values[0], values[1]) if len(values) == 2 and not self._encoding.deflated else None

    def _value(self, key: str) -> Any:
        element = self.writer.element(key)
        values = element.get("Value") if element else None
        return values[0] if values else None

    def _unsigned(self, key: str) -> int:
        """A US attribute of the image; 0 if it is missing or invalid."""
        value = self._value(key)
        return value if isinstance(value, int) and 0 < value < 0x10000 else 0

    def _number_of_frames(self) -> int | None:
        value = self._value(tags.NUMBER_OF_FRAMES)
        return value if isinstance(value, int) and value > 0 else None

    def _uid(self, key: str) -> str:
        value = self._value(key)
        if isinstance(value, str) and UID.fullmatch(value):
            return value
        return well_formed_uid(key, value.strip(" \0") if isinstance(value, str) else "")

    def _pixel_data(self) -> tuple[str, BulkValue | None] | None:
        """The tag of the pixel data element, and its value unless that is empty."""
        for key in _PIXELS:
            if self.writer.element(key):
                return key, next((value for value in self.writer.bulk if value.path == key), None)
        return None

    def _layout(self, geometry: Geometry, key: str, value: BulkValue | None) -> FrameLayout:
        if value is None:
            return FrameLayout(FrameKind.EMPTY)
        if self._frames is not None:
            return self._frames
        if lookup(self._encoding.syntax).encapsulated and lookup(self._encoding.syntax).name != "Unknown":
            # Without fragments several frames cannot be told apart.
            self.writer.warn(key, "compressed Pixel Data of defined length")
            one = geometry.number in (None, 1)
            return whole_value(value.offset, value.length) if one else FrameLayout(FrameKind.EMPTY)
        return native_frames(geometry, value.offset, value.length)

    def instance(self, keep: frozenset[str], start: int) -> SOPInstance:
        writer = self.writer
        study, series, instance, sop_class = map(self._uid, UIDS)
        pixels = self._pixel_data()
        geometry = Geometry(
            self._unsigned(tags.ROWS),
            self._unsigned(tags.COLUMNS),
            self._unsigned(tags.SAMPLES_PER_PIXEL) or 1,
            (_PIXELS[pixels[0]] if pixels else 0) or self._unsigned(tags.BITS_ALLOCATED),
            str(self._value(tags.PHOTOMETRIC_INTERPRETATION) or "").strip(),
            self._number_of_frames(),
        )
        frames = self._layout(geometry, *pixels) if pixels else FrameLayout()
        attributes = {key: plain(writer.kept[key]) for key in sorted(keep & writer.kept.keys())}
        for key, element in attributes.items():
            if reason := broken_rule(element):
                writer.warn(key, reason)
        value = pixels[1] if pixels else None
        return SOPInstance(
            study_uid=study,
            series_uid=series,
            instance_uid=instance,
            sop_class_uid=sop_class,
            transfer_syntax=self._encoding.syntax,
            dataset_offset=start,
            deflated=self._encoding.deflated,
            pixel_offset=value.offset if value else 0,
            pixel_length=value.length if value else 0,
            rows=geometry.rows,
            columns=geometry.columns,
            samples_per_pixel=geometry.samples_per_pixel,
            bits_allocated=geometry.bits_allocated,
            pixel_facts=facts_in(writer.element),
            frames=frames,
            attributes=attributes,
            metadata_length=writer.length,
            metadata_slots=writer.slots,
            bulk=writer.bulk,
            warnings=writer.warnings,
        )

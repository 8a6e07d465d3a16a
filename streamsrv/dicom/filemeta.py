"""Reads the preamble, the prefix and the file meta information of a Part 10 file (PS3.10 7.1), and
detects the encoding of the dataset.

Rules:
- The file meta information ends at the first element of another group, because its group length is often
  wrong or missing. The group length counts only before a deflated dataset, whose first bytes may look like
  group 0002.
- The first element of the dataset shows whether it is explicit or implicit VR. The transfer syntax is
  only a hint, as for pydicom.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamsrv.dicom.checks import UID
from streamsrv.dicom.elements import LONG_VRS, SHORT_VRS, Elements
from streamsrv.dicom.syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    lookup,
)
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom

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
        raise NotDicom("no DICM prefix: not a DICOM Part 10 file", offset=PREAMBLE)
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

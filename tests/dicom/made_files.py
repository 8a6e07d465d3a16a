"""Part 10 files for the tests of this room: pydicom's own, and small ones made byte by byte."""

import base64
import io
import os
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import orjson
import pydicom
from pydicom.data import get_charset_files, get_testdata_files

from streamsrv.dicom.explicit import CHUNK, Swap
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.dicom.values import swapped

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4.50"
VIDEO = "1.2.840.10008.1.2.4.102"

SHORT = {
    vr for row in ("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US",) for vr in row.split()
}
UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD


@cache
def pydicom_paths():
    """Every DICOM-like file of pydicom and pydicom-data on this disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {*get_testdata_files(), *get_charset_files("*.dcm")}
    ignored = {".json", ".txt", ".dump", ".gz", ".icc", ".zip"}
    return sorted(Path(name) for name in names if os.path.isfile(name) and Path(name).suffix not in ignored)


def readable_paths():
    """Those with a DICM prefix."""
    return [path for path in pydicom_paths() if path.read_bytes()[128:132] == b"DICM"]


def pread_of(content):
    return lambda offset, length: content[offset : offset + length]


def read(content, keep=frozenset(), limits=None, pieces=None):
    """(SOPInstance, DICOM JSON as a dict whose slots are "<slot>")."""
    emitted = [] if pieces is None else pieces
    instance = read_instance(
        pread_of(content),
        len(content),
        keep=frozenset(keep),
        emit=emitted.append,
        limits=limits or ReadLimits(),
    )
    text = b"".join(emitted)
    assert len(text) == instance.metadata_length
    assert text.count(b"\0") == instance.metadata_slots
    return instance, orjson.loads(text.replace(b"\0", b"<slot>"))


def piece_length(piece):
    return len(piece) if isinstance(piece, bytes) else piece.length


def piece_bytes(pread, piece):
    """The bytes of a piece of a file encoded anew, CHUNK at a time."""
    if isinstance(piece, bytes):
        yield piece
        return
    end = piece.offset + piece.length
    width = piece.width if isinstance(piece, Swap) else 1
    for at in range(piece.offset, end, CHUNK):
        yield swapped(pread(at, min(CHUNK, end - at)), width)


def pydicom_read(content, force=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(content), force=force)


# --- byte by byte ---


def element(tag, vr, value=b"", syntax=EXPLICIT, length=None):
    """One element; `length` may lie."""
    order = ">" if syntax == BIG else "<"
    length = len(value) if length is None else length
    group, number = tag >> 16, tag & 0xFFFF
    if syntax == IMPLICIT:
        return struct.pack("<HHI", group, number, length) + value
    if vr in SHORT:
        return struct.pack(order + "HH2sH", group, number, vr.encode(), length) + value
    return struct.pack(order + "HH2sHI", group, number, vr.encode(), 0, length) + value


def item(content, undefined=False, order="<", length=None):
    head = struct.pack(order + "HHI", 0xFFFE, 0xE000, UNDEFINED if undefined else len(content))
    if length is not None:
        head = struct.pack(order + "HHI", 0xFFFE, 0xE000, length)
    return head + content + (delimiter(ITEM_END, order) if undefined else b"")


def delimiter(tag, order="<"):
    return struct.pack(order + "HHI", tag >> 16, tag & 0xFFFF, 0)


def sequence(tag, items, syntax=EXPLICIT, undefined=False, vr="SQ"):
    order = ">" if syntax == BIG else "<"
    content = b"".join(items)
    if undefined:
        return element(tag, vr, content, syntax, UNDEFINED) + delimiter(SEQUENCE_END, order)
    return element(tag, vr, content, syntax)


def identity(syntax=EXPLICIT, sop_class="1.2.3", instance="1.2.4", study="1.2.5", series="1.2.6"):
    """The four UIDs that every instance needs, in tag order."""
    values = ((0x00080016, sop_class), (0x00080018, instance), (0x0020000D, study), (0x0020000E, series))
    return b"".join(element(tag, "UI", padded(value), syntax) for tag, value in values if value is not None)


def padded(text, pad=b"\0"):
    value = text if isinstance(text, bytes) else text.encode()
    return value + pad * (len(value) % 2)


def part10(dataset, syntax=EXPLICIT, meta=b"", group_length=None):
    """`meta` stands behind the transfer syntax; `group_length` replaces the true one, False leaves it out."""
    body = element(0x00020010, "UI", padded(syntax)) + meta if syntax else meta
    counted = len(body) if group_length is None else group_length
    head = b"" if counted is False else element(0x00020000, "UL", struct.pack("<I", counted))
    if syntax == DEFLATED:
        squeezer = zlib.compressobj(wbits=-15)
        dataset = squeezer.compress(dataset) + squeezer.flush()
    return bytes(128) + b"DICM" + head + body + dataset


def image(rows=2, columns=3, bits=8, samples=1, frames=None, photometric="MONOCHROME2", syntax=EXPLICIT):
    """Identity and image attributes without pixel data; NumberOfFrames as text."""
    order = ">" if syntax == BIG else "<"

    def us(tag, value):
        return element(tag, "US", struct.pack(order + "H", value), syntax)

    parts = [
        identity(syntax),
        us(0x00280002, samples),
        element(0x00280004, "CS", padded(photometric, b" "), syntax),
        element(0x00280008, "IS", padded(str(frames), b" "), syntax) if frames is not None else b"",
        us(0x00280010, rows),
        us(0x00280011, columns),
        us(0x00280100, bits),
    ]
    return b"".join(parts)


def fragments(values, basic=b"", end=True):
    """The value of encapsulated Pixel Data: basic offset table, fragments, delimiter."""
    return item(basic) + b"".join(item(value) for value in values) + (delimiter(SEQUENCE_END) if end else b"")


def encapsulated(values, frames=None, syntax=JPEG, basic=b"", before=b"", after=b""):
    """An instance with fragments; `before` and `after` stand around Pixel Data."""
    pixels = element(0x7FE00010, "OB", fragments(values, basic), length=UNDEFINED)
    return part10(image(frames=frames) + before + pixels + after, syntax)


def with_identity(content, missing):
    """The file with the identity attributes of `missing` behind its dataset, encoded as the dataset is."""
    dataset = pydicom_read(content)
    syntax = IMPLICIT if dataset.original_encoding[0] else EXPLICIT if dataset.original_encoding[1] else BIG
    return content + b"".join(element(tag, "UI", b"1.2.3.99", syntax) for tag in sorted(missing))


def bulk_bytes(content, value):
    return content[value.offset : value.offset + value.length]


def inline(vr, value):
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode()}

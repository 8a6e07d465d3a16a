"""Part 10 instances in another transfer syntax: the dataset encoded anew, with what it says of its pixels
changed to what they now are, and the frames made while they are sent.

What changes (PS3.3 C.7.6.3, C.7.6.1.1.5; PS3.5 A.4): Photometric Interpretation and Planar Configuration as
the codec left them; Lossy Image Compression, its ratio and method are added when pixels lost something on
their way; Pixel Data; extended offset tables go, because the new fragments lie elsewhere. The SOP Instance
UID stays: the pixels mean the same (lossless), and where they were compressed with loss on request the
dataset says so. The basic offset table is empty, as PS3.5 A.4 allows: the lengths of frames are not known
before they are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from struct import Struct

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.explicit import Changes, Here, changed_pieces
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.errors import NotAcceptable
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.payloads import as_piece, reader
from streamsrv.retrieve.pixels import metadata_of
from streamsrv.retrieve.rendered import has_frames
from streamsrv.retrieve.transcoding import AT_ONCE, Transcoder, transcoder
from streamsrv.store.rows import InstanceRow
from streamsrv.wire.answers import Literal, Piece, Stream

PIXEL_DATA = 0x7FE00010
OFFSET_TABLES = (0x7FE00001, 0x7FE00002)
METHODS = {  # PS3.3 C.7.6.1.1.5.1
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
    "1.2.840.10008.1.2.4.112": "ISO_18181_1",
}
_element = Struct("<HH2sHI").pack
_item = Struct("<HHI").pack
UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = _item(0xFFFE, 0xE0DD, 0)
# Native pixel data of explicit VR has 32 bits of length (PS3.5 A.2); longer ones go out compressed only.
LONGEST_NATIVE = 0xFFFFFFFE


def transcoded_instance(retrieval: Retrieval, row: InstanceRow, syntax: str) -> Sequence[Piece]:
    """The Part 10 file of an instance in `syntax`. Its first frame is made at once: it says what the pixels
    now are, and that they can be decoded at all."""
    selection = retrieval.selection
    if not has_frames(row):
        return without_pixels(retrieval, row)
    made = transcoder(retrieval.store, selection, row, retrieval.pool, syntax)
    frame, info = made.first()
    changes = pixel_changes(metadata_of(retrieval.store, row), made, info, len(frame))
    pieces: list[Piece] = []
    for piece in changed_pieces(reader(selection, row), row.location.length, Changes(syntax, changes)):
        if isinstance(piece, Here):
            pieces += pixel_data(made, info)
        else:
            pieces.append(as_piece(selection, row, piece))
    return pieces


def without_pixels(retrieval: Retrieval, row: InstanceRow) -> Sequence[Piece]:
    """An instance without pixel data has nothing to transcode: it goes out as it is, in Explicit VR Little
    Endian."""
    changes = Changes(EXPLICIT_VR_LITTLE_ENDIAN, {})
    made = changed_pieces(reader(retrieval.selection, row), row.location.length, changes)
    return [as_piece(retrieval.selection, row, piece) for piece in made if not isinstance(piece, Here)]


def pixel_changes(
    dataset: JsonDataset, made: Transcoder, info: FrameInfo, first_length: int
) -> Mapping[int, tuple[str, bytes] | Here | None]:
    changes: dict[int, tuple[str, bytes] | Here | None] = dict.fromkeys(OFFSET_TABLES)
    changes[0x00280004] = ("CS", info.photometric_interpretation.encode())
    if info.samples_per_pixel > 1:
        changes[0x00280006] = ("US", info.planar_configuration.to_bytes(2, "little"))
    if (info.bits_stored, info.high_bit) != (made.info.bits_stored, made.info.high_bit):
        changes[0x00280101] = ("US", info.bits_stored.to_bytes(2, "little"))
        changes[0x00280102] = ("US", info.high_bit.to_bytes(2, "little"))
    if registry.SYNTAXES[made.target].lossy and made.target in METHODS:
        ratio = made.decoded_length / max(first_length, 1)
        changes[0x00282110] = ("CS", b"01")
        changes[0x00282112] = ("DS", appended(dataset, "00282112", f"{ratio:.2f}"))
        changes[0x00282114] = ("CS", appended(dataset, "00282114", METHODS[made.target]))
    changes[PIXEL_DATA] = Here(PIXEL_DATA)
    return changes


def appended(dataset: JsonDataset, tag: str, value: str) -> bytes:
    """Ratios and methods list each lossy step in its order (C.7.6.1.1.5.2)."""
    before = [str(one) for one in dataset.get(tag, {}).get("Value", ()) if one is not None]
    return "\\".join([*before, value]).encode()


def pixel_data(made: Transcoder, info: FrameInfo) -> list[Piece]:
    number = made.row.number_of_frames
    if made.target == EXPLICIT_VR_LITTLE_ENDIAN:
        return native_pixel_data(made, info, number)
    head = _element(0x7FE0, 0x0010, b"OB", 0, UNDEFINED) + _item(0xFFFE, 0xE000, 0)
    if number * made.decoded_length <= AT_ONCE:
        return [Literal(head + b"".join(items(made, number)) + SEQUENCE_END)]
    return [Literal(head), Stream(partial(item_chunks, made, number), None), Literal(SEQUENCE_END)]


def native_pixel_data(made: Transcoder, info: FrameInfo, number: int) -> list[Piece]:
    length = number * made.decoded_length
    padding = length % 2
    if length + padding > LONGEST_NATIVE:
        raise NotAcceptable("uncompressed, its pixel data would be longer than 4 GB", ("transfer-syntax=*",))
    vr = b"OW" if info.bits_allocated > 8 else b"OB"
    head = _element(0x7FE0, 0x0010, vr, 0, length + padding)
    return [Literal(head), Stream(partial(native_chunks, made, number), length), Literal(bytes(padding))]


def items(made: Transcoder, number: int) -> Iterator[bytes]:
    """Each frame as one fragment of even length (PS3.5 A.4)."""
    for frame in made.all(range(number)):
        odd = len(frame) % 2
        yield _item(0xFFFE, 0xE000, len(frame) + odd) + frame + bytes(odd)


def item_chunks(made: Transcoder, number: int, start: int, stop: int | None) -> Iterator[bytes]:
    return items(made, number)


def native_chunks(made: Transcoder, number: int, start: int, stop: int | None) -> Iterator[bytes]:
    """The bytes [start, stop) of all frames back to back; frames before `start` are not made."""
    length = made.decoded_length
    end = number * length if stop is None else stop
    at = start - start % length
    for frame in made.all(range(at // length, number)):
        if at >= end:
            return
        yield frame[max(start - at, 0) : end - at]
        at += length

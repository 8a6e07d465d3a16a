"""Part 10 instances in another transfer syntax: the dataset with changed attributes of its pixels, and the
frames, which are transcoded while they are sent.

Changes (PS3.3 C.7.6.3, C.7.6.1.1.5; PS3.5 A.4):
- Photometric Interpretation and Planar Configuration are those of the codec.
- Lossy Image Compression, its ratio and method are added if pixels lose information. They are also added if
  the stored syntax is lossy and the dataset does not say so.
- Extended offset tables are removed, because the new fragments lie elsewhere. The basic table is present if
  the frames are made before the answer begins, else it is empty (A.4 allows it).
- An icon that is compressed in the stored syntax is removed.
The SOP Instance UID stays: the pixels mean the same, or the dataset says that they were compressed with loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from struct import Struct

import numpy as np

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.explicit import Changes, Here, changed_pieces
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.values import values
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import NotAcceptable
from streamsrv.pixels.description import ICON_IMAGES
from streamsrv.pixels.transcoding import AT_ONCE, Transcoder
from streamsrv.plans.payloads import as_piece, reader
from streamsrv.retrieve.frames import FirstFrames
from streamsrv.wire.answers import ByteStream, Literal, Piece

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
# Stored in one of these, pixels have lost information, even if the dataset does not say so.
ALWAYS_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.111")
_element = Struct("<HH2sHI").pack
_item = Struct("<HHI").pack
UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = _item(0xFFFE, 0xE0DD, 0)
# Native pixel data of explicit VR has a length of 32 bits (PS3.5 A.2); longer ones are sent compressed only.
LONGEST_NATIVE = 0xFFFFFFFE

Change = tuple[str, bytes] | Here | None


@dataclass(frozen=True, slots=True)
class TranscodedInstance:
    """An instance whose first frames are transcoded. `info` describes the pixels of the result."""

    made: Transcoder
    frames: Sequence[bytes]
    info: FrameInfo

    @property
    def number(self) -> int:
        return self.made.row.number_of_frames

    def batches(self) -> Iterator[list[bytes]]:
        return self.made.batches(range(self.number), self.frames)


def transcoded(first: FirstFrames) -> TranscodedInstance:
    assert first.made is not None
    info = first.results[0][1] or first.made.info
    return TranscodedInstance(first.made, first.made.made(first.results), info)


def instance_pieces(instance: TranscodedInstance) -> list[Piece]:
    """The Part 10 file of an instance."""
    row, selection = instance.made.row, instance.made.selection
    changes = Changes(instance.made.target, pixel_changes(instance))
    pieces: list[Piece] = []
    for piece in changed_pieces(reader(selection, row), row.location.length, changes):
        if isinstance(piece, Here):
            pieces += pixel_data(instance)
        else:
            pieces.append(as_piece(selection, row, piece))
    return pieces


def pixel_changes(instance: TranscodedInstance) -> Mapping[int, Change]:
    made, info = instance.made, instance.info
    dataset = made.pool.descriptions.of(made.store, made.row).dataset
    changes: dict[int, Change] = dict.fromkeys(OFFSET_TABLES)
    changes[0x00280004] = ("CS", info.photometric_interpretation.encode())
    if info.samples_per_pixel > 1:
        changes[0x00280006] = ("US", info.planar_configuration.to_bytes(2, "little"))
    if (info.bits_stored, info.high_bit) != (made.info.bits_stored, made.info.high_bit):
        changes[0x00280101] = ("US", info.bits_stored.to_bytes(2, "little"))
        changes[0x00280102] = ("US", info.high_bit.to_bytes(2, "little"))
    changes |= loss(instance, dataset)
    if ICON_IMAGES in dataset and icon_is_compressed(made):
        changes[int(ICON_IMAGES, 16)] = None
    changes[PIXEL_DATA] = Here(PIXEL_DATA)
    return changes


def loss(instance: TranscodedInstance, dataset: JsonDataset) -> dict[int, Change]:
    """The attributes of lossy compression (C.7.6.1.1.5): ratios and methods list the steps in order."""
    made, changes = instance.made, dict[int, Change]()
    stored = made.row.transfer_syntax
    if made.target in METHODS and (stored, made.target) not in registry.DIRECT:
        ratio = made.decoded_length / max(len(instance.frames[0]), 1)
        changes[0x00282112] = ("DS", appended(dataset, "00282112", f"{ratio:.2f}"))
        changes[0x00282114] = ("CS", appended(dataset, "00282114", METHODS[made.target]))
    if changes or stored in ALWAYS_LOSSY:
        changes[0x00282110] = ("CS", b"01")
    return changes


def appended(dataset: JsonDataset, tag: str, value: str) -> bytes:
    before = [str(one) for one in values(dataset, tag) if one is not None]
    return "\\".join([*before, value]).encode()


def icon_is_compressed(made: Transcoder) -> bool:
    """The pixel data of an icon may be encapsulated like those of the image. A native syntax cannot hold
    them."""
    value = made.store.bulk_value(made.row.key, f"{ICON_IMAGES}/0/7FE00010")
    if value is None or not lookup(made.row.transfer_syntax).encapsulated:
        return False
    return made.selection.pread(made.row, value.offset - 4, 4) == UNDEFINED.to_bytes(4, "little")


# Pixel data


def pixel_data(instance: TranscodedInstance) -> list[Piece]:
    if instance.made.native:
        return native_pixel_data(instance)
    if instance.number * instance.made.decoded_length <= AT_ONCE:
        return [Literal(whole_pixel_data([frame for batch in instance.batches() for frame in batch]))]
    return [Literal(opening(b"")), ByteStream(partial(item_chunks, instance), None), Literal(SEQUENCE_END)]


def opening(offsets: bytes) -> bytes:
    """The head of encapsulated pixel data with its basic offset table."""
    head = _element(0x7FE0, 0x0010, b"OB", 0, UNDEFINED)
    return head + _item(0xFFFE, 0xE000, len(offsets)) + offsets


def whole_pixel_data(frames: Sequence[bytes]) -> bytes:
    items = [fragment(frame) for frame in frames]
    offsets = accumulate((len(one) for one in items[:-1]), initial=0)
    table = np.fromiter(offsets, "<u4", len(items)).tobytes()
    return b"".join((opening(table), *items, SEQUENCE_END))


def fragment(frame: bytes) -> bytes:
    """A frame as one item of even length (PS3.5 A.4)."""
    odd = len(frame) % 2
    return _item(0xFFFE, 0xE000, len(frame) + odd) + frame + bytes(odd)


def item_chunks(instance: TranscodedInstance, start: int, stop: int | None) -> Iterator[bytes]:
    for batch in instance.batches():
        yield b"".join(map(fragment, batch))


def native_pixel_data(instance: TranscodedInstance) -> list[Piece]:
    length = native_length(instance)
    length += length % 2
    if length > LONGEST_NATIVE:
        raise NotAcceptable("uncompressed, its pixel data would be longer than 4 GB", ())
    vr = b"OW" if instance.info.bits_allocated > 8 else b"OB"
    return [Literal(_element(0x7FE0, 0x0010, vr, 0, length)), *native_value(instance)]


def native_value(instance: TranscodedInstance) -> list[Piece]:
    """Decoded frames back to back, and a byte of padding after an odd length."""
    length = native_length(instance)
    padding = bytes(length % 2)
    if length <= AT_ONCE:
        return [Literal(b"".join((*native_chunks(instance, 0, None), padding)))]
    return [ByteStream(partial(native_chunks, instance), length), Literal(padding)]


def loose_bits(instance: TranscodedInstance) -> int:
    """Bits of each frame if frames of 1-bit pixels do not end at a byte; else 0."""
    info = instance.info
    bits = info.rows * info.columns
    return bits if info.bits_allocated == 1 and bits % 8 and instance.number > 1 else 0


def native_length(instance: TranscodedInstance) -> int:
    bits = loose_bits(instance)
    return (instance.number * bits + 7) // 8 if bits else instance.number * instance.made.decoded_length


def native_chunks(instance: TranscodedInstance, start: int, stop: int | None) -> Iterator[bytes]:
    """The bytes [start, stop) of all frames back to back. Frames before `start` are not transcoded."""
    end = native_length(instance) if stop is None else stop
    if loose_bits(instance):
        yield from cut(packed(instance.batches(), loose_bits(instance)), start, end)
        return
    length = instance.made.decoded_length
    first = start // length
    done = instance.frames[first:]
    frames = instance.made.batches(range(first, min(-(-end // length), instance.number)), done)
    yield from cut(map(b"".join, frames), start - first * length, end - first * length)


def packed(batches: Iterator[list[bytes]], bits: int) -> Iterator[bytes]:
    """Frames of 1-bit pixels without a gap between them (PS3.5 8.1.1: a frame may begin inside a byte)."""
    rest = np.empty(0, np.uint8)
    for batch in batches:
        frames = [np.unpackbits(np.frombuffer(one, np.uint8), bitorder="little")[:bits] for one in batch]
        loose = np.concatenate([rest, *frames])
        even = len(loose) - len(loose) % 8
        yield np.packbits(loose[:even], bitorder="little").tobytes()
        rest = loose[even:]
    yield np.packbits(rest, bitorder="little").tobytes()


def cut(chunks: Iterator[bytes], start: int, stop: int) -> Iterator[bytes]:
    at = 0
    for chunk in chunks:
        part = chunk[max(start - at, 0) : max(stop - at, 0)]
        at += len(chunk)
        if part or not chunk:  # an empty chunk says that nothing is ready
            yield part
        if at >= stop:
            return

"""The first bits of JPEG XL codestreams, bare and in boxes."""

import struct

import pytest
from frame_makers import BASELINE, JXL, JXL_JPEG, JXL_LOSSY, picture_like

from framecodecs.coders.jpeg_xl import CONTAINER, read_jpegxl_header
from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo
from framecodecs.registry import encode, transcode

SIDES = [(1, 1), (8, 8), (64, 64), (64, 80), (33, 47), (256, 256), (300, 400), (480, 640), (513, 1000)]


@pytest.mark.parametrize(("rows", "columns"), SIDES)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_sizes_and_depths(rows, columns, bits):
    info = FrameInfo(rows, columns, 1, 8 if bits == 8 else 16, bits, bits - 1)
    header = read_jpegxl_header(encode(picture_like(info), JXL, info)[0])
    assert (header.rows, header.columns, header.components, header.precision) == (rows, columns, 1, bits)
    assert not header.recompressed


@pytest.mark.parametrize("uid", [JXL, JXL_LOSSY])
def test_colour(uid):
    info = FrameInfo(40, 50, 3, photometric_interpretation="RGB")
    header = read_jpegxl_header(encode(picture_like(info), uid, info)[0])
    assert (header.components, header.precision, header.xyb) == (3, 8, uid == JXL_LOSSY)


def test_packed_jpeg_is_recognised():
    info = FrameInfo(40, 50, 3, photometric_interpretation="RGB")
    jpeg, coded = encode(picture_like(info), BASELINE, info)
    packed, _ = transcode(jpeg, BASELINE, JXL_JPEG, coded)
    header = read_jpegxl_header(packed)
    assert (header.rows, header.columns, header.recompressed) == (40, 50, True)
    assert header.end == len(packed)
    assert read_jpegxl_header(packed + b"\0").end == len(packed)


def bits_of(*fields: tuple[int, int]) -> bytes:
    """(value, count) pairs, lowest bit first, behind the signature."""
    value = at = 0
    for number, count in fields:
        value |= number << at
        at += count
    return b"\xff\x0a" + value.to_bytes(at // 8 + 8, "little")


SMALL = ((1, 1), (0, 5), (1, 3))  # 8 x 8
REFUSED = {
    "turned": (*SMALL, (0, 1), (1, 1), (3, 3)),
    "preview": (*SMALL, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1)),
    "animation": (*SMALL, (0, 1), (1, 1), (0, 3), (1, 1), *SMALL, (0, 1), (1, 1)),
    "floating": (*SMALL, (0, 1), (0, 1), (1, 1)),
    "extra channels": (*SMALL, (0, 1), (0, 1), (0, 1), (0, 2), (0, 1), (1, 2)),
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_no_dataset_can_say_is_refused(fields):
    with pytest.raises(CodestreamError):
        read_jpegxl_header(bits_of(*fields))


def test_all_defaults_mean_colour_of_8_bits():
    header = read_jpegxl_header(bits_of(*SMALL, (1, 1)))
    assert (header.rows, header.columns, header.precision, header.components) == (8, 8, 8, 3)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\x0a",
        b"\xff\x0b" + bytes(60),
        CONTAINER,
        CONTAINER + struct.pack(">I4s", 100, b"jxlc") + b"\xff\x0a",
        CONTAINER + struct.pack(">I4s", 4, b"jxlc"),
        CONTAINER + bytes(8),
    ],
)
def test_malformed_beginnings_are_refused(frame):
    with pytest.raises(CodestreamError):
        read_jpegxl_header(frame)


def test_a_codestream_in_partial_boxes():
    info = FrameInfo(33, 47)
    bare, _ = encode(picture_like(info), JXL, info)
    first = struct.pack(">I4sI", 12 + 3, b"jxlp", 0) + bare[:3]
    last = struct.pack(">I4sI", 0, b"jxlp", 1 | 1 << 31) + bare[3:]
    assert read_jpegxl_header(CONTAINER + first + last).columns == 47

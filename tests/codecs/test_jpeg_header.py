"""JPEG and JPEG-LS headers: read whole, and refused wherever they are cut or altered."""

import struct

import pytest
from frame_makers import BASELINE, GREY_8, GREY_12, JPEG_LS, LOSSLESS, NEAR, RGB_8, picture_like

from framecodecs.errors import CodestreamError
from framecodecs.headers.jpeg_header import BASELINE as SOF0
from framecodecs.headers.jpeg_header import JPEG_LS as SOF55
from framecodecs.headers.jpeg_header import LOSSLESS as SOF3
from framecodecs.headers.jpeg_header import MAX_SCANS, MAX_SEGMENTS, read_jpeg_header
from framecodecs.registry import encode


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame_header(marker: int = 0xC0, rows: int = 2, columns: int = 3, ids: bytes = b"\x01") -> bytes:
    components = b"".join(bytes([name, 0x11, 0]) for name in ids)
    return segment(marker, struct.pack(">BHHB", 8, rows, columns, len(ids)) + components)


SCAN = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + b"\x12\xff\x00\x34"
SMALL = b"\xff\xd8" + frame_header() + SCAN + b"\xff\xd9"


def coded(uid, info):
    return encode(picture_like(info), uid, info)[0]


@pytest.mark.parametrize(
    ("uid", "info", "process", "precision"),
    [
        (BASELINE, GREY_8, SOF0, 8),
        (BASELINE, RGB_8, SOF0, 8),
        (LOSSLESS, GREY_12, SOF3, 12),
        (JPEG_LS, GREY_12, SOF55, 12),
        (JPEG_LS, RGB_8, SOF55, 8),
    ],
)
def test_what_encoders_write(uid, info, process, precision):
    frame = coded(uid, info)
    header = read_jpeg_header(frame)
    assert (header.process, header.precision, header.components) == (
        process,
        precision,
        info.samples_per_pixel,
    )
    assert (header.rows, header.columns, header.end) == (64, 80, len(frame))


def test_padding_is_not_part_of_the_codestream():
    header = read_jpeg_header(SMALL + b"\0")
    assert header.codestream(SMALL + b"\0") == SMALL


def test_near_is_read():
    assert read_jpeg_header(coded(NEAR, GREY_8)).near == 2


def test_colour_marks():
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01")
    jfif = segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")
    header = read_jpeg_header(b"\xff\xd8" + adobe + jfif + SMALL[2:])
    assert (header.adobe, header.jfif, header.component_ids) == (1, True, b"\x01")
    short = read_jpeg_header(b"\xff\xd8" + segment(0xEE, b"Adobe\0") + SMALL[2:])
    assert (short.adobe, short.jfif) == (None, False)


@pytest.mark.parametrize("uid", [BASELINE, LOSSLESS, JPEG_LS])
def test_every_truncation_is_noticed(uid):
    frame = coded(uid, GREY_8)
    for end in range(len(frame)):
        with pytest.raises(CodestreamError):
            read_jpeg_header(frame[:end])


MALFORMED = {
    "no SOI": b"\xff\xd9" + SMALL[2:],
    "two frame headers": b"\xff\xd8" + frame_header() + SMALL[2:],
    "no frame header": b"\xff\xd8" + SCAN + b"\xff\xd9",
    "no scan": b"\xff\xd8" + frame_header() + b"\xff\xd9",
    "hierarchical": b"\xff\xd8" + segment(0xDE, bytes(9)) + SMALL[2:],
    "height afterwards": SMALL[:-2] + segment(0xDC, b"\0\x02") + b"\xff\xd9",
    "picture in picture": b"\xff\xd8" + segment(0xD8, b"") + SMALL[2:],
    "length 1": b"\xff\xd8\xff\xe0\0\x01" + SMALL[2:],
    "components do not fit": b"\xff\xd8" + segment(0xC0, bytes([8, 0, 1, 0, 1, 2, 1, 17, 0])) + SMALL[2:],
    "no marker": b"\xff\xd8\0" + SMALL[2:],
    "scan header too short": b"\xff\xd8" + frame_header() + segment(0xDA, b"\x01") + b"\xff\xd9",
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_headers_are_refused(frame):
    with pytest.raises(CodestreamError):
        read_jpeg_header(frame)


def test_scans_and_segments_are_bounded():
    with pytest.raises(CodestreamError, match="scan"):
        read_jpeg_header(SMALL[:-2] + SCAN * MAX_SCANS + b"\xff\xd9")
    with pytest.raises(CodestreamError, match="segment"):
        read_jpeg_header(b"\xff\xd8" + segment(0xFE, b"") * (MAX_SEGMENTS + 1) + SMALL[2:])


def test_several_scans_are_walked():
    header = read_jpeg_header(SMALL[:-2] + SCAN + segment(0xC4, bytes(17)) + SCAN + b"\xff\xd9")
    assert header.end == len(SMALL) + 2 * len(SCAN) + 21

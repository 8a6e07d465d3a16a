"""The 64 bytes before RLE segments."""

import struct

import pytest
from frame_makers import GREY_8, GREY_12, RGB_8, RLE, picture_like

from framecodecs.errors import CodestreamError
from framecodecs.headers.codestream import read_rle_header
from framecodecs.registry import encode


def header(*numbers: int, length: int = 4000) -> bytes:
    return struct.pack("<16I", *numbers, *[0] * (16 - len(numbers))) + bytes(length)


@pytest.mark.parametrize("info", [GREY_8, GREY_12, RGB_8])
def test_what_the_encoder_writes(info):
    frame, _ = encode(picture_like(info), RLE, info)
    assert read_rle_header(frame, info).components == info.samples_per_pixel


MALFORMED = {
    "no header": bytes(63),
    "too few segments": header(1, 64),
    "too many segments": header(3, 64, 500, 900),
    "first not at 64": header(2, 65, 1000),
    "falling": header(2, 64, 60),
    "outside": header(2, 64, 9000),
    "no room for the pixels": header(2, 64, 1000, length=940),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_headers_are_refused(frame):
    with pytest.raises(CodestreamError):
        read_rle_header(frame, GREY_12)

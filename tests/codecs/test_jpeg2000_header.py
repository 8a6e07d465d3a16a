"""JPEG 2000 and HTJ2K headers: read whole, and refused wherever they are cut or altered."""

import struct

import pytest
from frame_makers import (
    GREY_8,
    GREY_12,
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    RGB_8,
    RPCL,
    SIGNED_16,
    picture_like,
)

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.jpeg2000_header import read_jpeg2000_header
from framecodecs.registry import encode

SIZ_BODY = 6  # SOC, SIZ, length


def coded(uid, info):
    return encode(picture_like(info), uid, info)[0]


GREY = coded(J2K, GREY_8)


def altered(offset: int, form: str, value: int, frame: bytes = GREY) -> bytes:
    """The codestream with one number of its SIZ segment replaced."""
    changed = bytearray(frame)
    struct.pack_into(form, changed, SIZ_BODY + offset, value)
    return bytes(changed)


@pytest.mark.parametrize("uid", [J2K, HTJ2K])
@pytest.mark.parametrize("info", [GREY_8, GREY_12, SIGNED_16, RGB_8])
def test_what_encoders_write(uid, info):
    frame = coded(uid, info)
    header = read_jpeg2000_header(frame)
    assert (header.rows, header.columns, header.components) == (64, 80, info.samples_per_pixel)
    assert (header.precision, header.signed) == (info.bits_stored, bool(info.pixel_representation))
    assert (header.end, header.tiles, header.reversible) == (len(frame), 1, True)
    assert header.transform == (info is RGB_8)
    assert header.high_throughput == (uid == HTJ2K)


def test_lossy_is_not_reversible():
    assert not read_jpeg2000_header(coded(J2K_LOSSY, GREY_8)).reversible


@pytest.mark.parametrize(("side", "levels"), [(30, 1), (64, 1), (128, 1), (129, 2), (512, 3), (1000, 4)])
def test_rpcl_has_what_the_standard_asks(side, levels):
    """Progression, TLM, a base resolution of 64 or less, and one tile-part a resolution (PS3.5 10.18)."""
    header = read_jpeg2000_header(coded(RPCL, FrameInfo(side, 40)))
    assert (header.progression, header.tile_part_lengths, header.levels) == ("RPCL", True, levels)
    assert -(-side >> levels) <= 64


def test_padding_is_not_part_of_the_codestream():
    assert read_jpeg2000_header(GREY + b"\0").codestream(GREY + b"\0") == GREY


def test_a_codestream_in_boxes_is_found():
    def box(kind, body):
        return struct.pack(">I4s", 8 + len(body), kind) + body

    wrapped = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 ") + box(b"jp2c", GREY)
    header = read_jpeg2000_header(wrapped)
    assert header.codestream(wrapped) == GREY
    endless = box(b"jP  ", b"\r\n\x87\n") + struct.pack(">I4s", 0, b"jp2c") + GREY
    assert read_jpeg2000_header(endless).codestream(endless) == GREY
    long = box(b"jP  ", b"\r\n\x87\n") + struct.pack(">I4sQ", 1, b"jp2c", 16 + len(GREY)) + GREY
    assert read_jpeg2000_header(long).codestream(long) == GREY
    for hollow in (box(b"jP  ", b"\r\n\x87\n"), box(b"jP  ", b"") + struct.pack(">I4s", 3, b"ftyp") + GREY):
        with pytest.raises(CodestreamError, match="no codestream"):
            read_jpeg2000_header(hollow)


@pytest.mark.parametrize("uid", [J2K, HTJ2K, RPCL])
def test_every_truncation_is_noticed(uid):
    frame = coded(uid, GREY_8)
    for end in range(len(frame)):
        with pytest.raises(CodestreamError):
            read_jpeg2000_header(frame[:end])


MALFORMED = {
    "no SOC": b"\xff\x4e" + GREY[2:],
    "too few components": altered(34, ">H", 2),
    "subsampled": altered(37, ">B", 2),
    "tiles of no width": altered(18, ">I", 0),
    "tile before the image": altered(26, ">I", 5),
    "image starts behind its end": altered(10, ">I", 500),
    "tiles by the thousand": altered(18, ">I", 1, altered(22, ">I", 1)),
    "two sizes": GREY[:2] + GREY[2:49] + GREY[2:],
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_sizes_are_refused(frame):
    with pytest.raises(CodestreamError):
        read_jpeg2000_header(frame)


def coding_style(offset: int, value: bytes) -> bytes:
    at = GREY.index(b"\xff\x52") + 4 + offset
    return GREY[:at] + value + GREY[at + len(value) :]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (1, b"\x05"),  # progression 5
        (2, b"\0\0"),  # no layers
        (5, b"\x21"),  # 33 decompositions
        (6, b"\x09"),  # code-blocks of 2,048
        (6, b"\x05\x05"),  # code-blocks of 128 x 128
        (0, b"\x01"),  # precincts that are not there
    ],
)
def test_malformed_coding_styles_are_refused(offset, value):
    with pytest.raises(CodestreamError, match="COD"):
        read_jpeg2000_header(coding_style(offset, value))


def test_packets_are_bounded():
    """Layers, resolutions and tiles multiply before a byte of the picture is read."""
    many = coding_style(2, b"\xff\xff")
    assert read_jpeg2000_header(many).layers == 65535
    with pytest.raises(CodestreamError, match="packets"):
        read_jpeg2000_header(altered(18, ">I", 8, altered(22, ">I", 8, many)))


def test_missing_and_foreign_tiles():
    at = GREY.index(b"\xff\x90")
    foreign = GREY[: at + 4] + b"\0\x07" + GREY[at + 6 :]
    with pytest.raises(CodestreamError, match="out of range"):
        read_jpeg2000_header(foreign)
    halved = altered(18, ">I", 40)
    with pytest.raises(CodestreamError, match="1 of 2 tiles"):
        read_jpeg2000_header(halved)


def test_a_tile_part_of_unknown_length_ends_at_eoc():
    at = GREY.index(b"\xff\x90") + 6
    endless = GREY[:at] + bytes(4) + GREY[at + 4 :]
    assert read_jpeg2000_header(endless + b"\0").end == len(GREY)
    with pytest.raises(CodestreamError, match="tile-part"):
        read_jpeg2000_header(endless[:-2])


def test_headers_without_end():
    comment = b"\xff\x64\0\x04\0\0"
    at = GREY.index(b"\xff\x52")
    with pytest.raises(CodestreamError, match="too many segments"):
        read_jpeg2000_header(GREY[:at] + comment * 1001 + GREY[at:])
    with pytest.raises(CodestreamError, match="no marker segment"):
        read_jpeg2000_header(GREY[:at] + b"\x12\x34" + GREY[at:])


def quantizer(frame: bytes, offset: int, value: bytes) -> bytes:
    at = frame.index(b"\xff\x5c") + 4 + offset
    return frame[:at] + value + frame[at + len(value) :]


def test_exponents_that_crash_a_decoder_are_refused():
    frame = coded(HTJ2K_LOSSY, GREY_8)
    with pytest.raises(CodestreamError, match="bit-planes"):
        read_jpeg2000_header(quantizer(frame, 1, b"\xff"))
    assert read_jpeg2000_header(quantizer(coded(HTJ2K, GREY_8), 1, b"\xf8")).reversible
    with pytest.raises(CodestreamError, match="QCD is malformed"):
        read_jpeg2000_header(quantizer(GREY, 0, b"\x43"))
    with pytest.raises(CodestreamError, match="QCD is malformed"):
        read_jpeg2000_header(quantizer(GREY, 0, b"\x42"))


def test_a_main_header_without_coding_style():
    at = GREY.index(b"\xff\x52")
    with pytest.raises(CodestreamError, match="no COD"):
        read_jpeg2000_header(GREY[:at] + GREY[at + 14 :])

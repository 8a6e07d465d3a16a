"""The table of transfer syntaxes, row by row, and the traps that each codec sets."""

from dataclasses import replace

import numpy as np
import pytest
from frame_makers import (
    BASELINE,
    BIG,
    DEFLATED_FRAME,
    EXTENDED,
    GREY_8,
    GREY_12,
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    JXL,
    JXL_JPEG,
    JXL_LOSSY,
    LITTLE,
    LOSSLESS,
    NEAR,
    RGB_8,
    RLE,
    RPCL,
    SIGNED_16,
    as_array,
    file_named,
    info_of,
    noise,
    picture_like,
)
from pydicom import dcmread

from framecodecs import libraries, registry
from framecodecs.coders import jpeg
from framecodecs.errors import CodestreamError, DecodeError, EncodeError, MemoryExceeded, Unsupported
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg2000_header import read_jpeg2000_header
from framecodecs.headers.jpeg_header import read_jpeg_header
from framecodecs.registry import SYNTAXES, decode, encode, transcodable, transcode

ROWS = pytest.mark.parametrize("row", SYNTAXES.values(), ids=lambda row: row.name)
LOSSLESS_SYNTAXES = [LITTLE, DEFLATED_FRAME, RLE, LOSSLESS, JPEG_LS, J2K, HTJ2K, RPCL, JXL]
# Largest and mean error of a picture at default quality, in grey levels of 8 bits.
LOSSY_SYNTAXES = {
    BASELINE: (12, 2),
    EXTENDED: (12, 2),
    NEAR: (2, 2),
    J2K_LOSSY: (12, 2),
    HTJ2K_LOSSY: (12, 2),
    JXL_LOSSY: (12, 2),
}
YBR = replace(RGB_8, photometric_interpretation="YBR_FULL")
PALETTE = replace(GREY_8, photometric_interpretation="PALETTE COLOR")


@ROWS
def test_rows_name_libraries_that_are_known(row):
    assert row.uid in SYNTAXES
    assert "/" in row.media_type
    assert {*row.decode_libraries, *row.encode_libraries} <= set(libraries.LIBRARIES)


@ROWS
def test_every_library_named_is_free_and_not_gpl(row):
    for name in row.decode_libraries + row.encode_libraries:
        assert "GPL" not in libraries.LIBRARIES[name].licence


@ROWS
def test_a_row_can_do_what_it_says(row):
    """Each row with an encoder, by each of its libraries, is read by each of its decoders."""
    info = next((i for i in (GREY_8, GREY_12) if transcodable(LITTLE, row.uid, i)), None)
    assert (info is None) == (not row.encode_libraries)
    if info is None:
        return
    frame = picture_like(info)
    for encoder in row.encode_libraries:
        coded, now = encode(frame, row.uid, info, library=encoder)
        for decoder in row.decode_libraries:
            back, after = decode(coded, row.uid, now, library=decoder)
            assert after == info
            assert row.lossy or back == frame


@ROWS
def test_rows_without_a_decoder_pass_through(row):
    if row.decode_libraries:
        return
    with pytest.raises(Unsupported, match="passed through"):
        decode(b"\0\0\x01", row.uid, GREY_8)
    assert not transcodable(row.uid, LITTLE)
    assert transcodable(row.uid, row.uid)
    assert transcode(b"\0\0\x01", row.uid, row.uid, GREY_8)[0] == b"\0\0\x01"


def test_unknown_syntaxes():
    with pytest.raises(Unsupported, match=r"1\.2\.3"):
        decode(b"", "1.2.3", GREY_8)
    assert not transcodable("1.2.3", LITTLE)
    assert not transcodable(LITTLE, "1.2.3")


def test_big_endian_is_read_and_never_written():
    with pytest.raises(Unsupported):
        encode(noise(GREY_8), BIG, GREY_8)
    assert not transcodable(LITTLE, BIG)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_big_endian_samples_are_turned(bits):
    info = FrameInfo(3, 5, 1, bits, bits, bits - 1)
    frame = np.arange(15).astype(f">u{bits // 8}").tobytes()
    back, _ = decode(frame, BIG, info)
    assert as_array(back, info).ravel().tolist() == list(range(15))


def test_big_endian_words_hold_bytes_in_pairs():
    info = FrameInfo(1, 4)
    assert decode(b"badc", BIG, info, words=True)[0] == b"abcd"
    assert decode(b"abcd", BIG, info)[0] == b"abcd"


class Missing:
    """The registry with only some libraries installed."""

    def __init__(self, monkeypatch, *present):
        chosen = {libraries.BUILT_IN, *present}
        monkeypatch.setattr(libraries, "available", lambda package: package in chosen)
        monkeypatch.setattr(registry, "available", lambda package: package in chosen)


@pytest.mark.parametrize("uid", [RLE, J2K, J2K_LOSSY])
@pytest.mark.parametrize("info", [GREY_12, SIGNED_16, RGB_8])
def test_rle_and_jpeg_2000_need_no_imagecodecs(monkeypatch, uid, info):
    Missing(monkeypatch, "pylibjpeg-rle", "pylibjpeg-openjpeg")
    frame = picture_like(info)
    coded, now = encode(frame, uid, info)
    back, after = decode(coded, uid, now)
    assert after == info
    assert back == frame or SYNTAXES[uid].lossy


def test_jpeg_lossless_is_written_without_any_library(monkeypatch):
    Missing(monkeypatch)
    coded, now = encode(noise(GREY_8), LOSSLESS, GREY_8)
    monkeypatch.undo()
    assert decode(coded, LOSSLESS, now) == (noise(GREY_8), GREY_8)


@pytest.mark.parametrize("uid", [BASELINE, JPEG_LS, JXL])
def test_what_is_missing_is_named(monkeypatch, uid):
    coded, now = encode(noise(GREY_8), uid, GREY_8)
    Missing(monkeypatch)
    with pytest.raises(Unsupported, match="pip install imagecodecs") as caught:
        decode(coded, uid, now)
    assert caught.value.hint == "pip install imagecodecs"
    with pytest.raises(Unsupported, match="pip install"):
        encode(noise(GREY_8), uid, GREY_8)
    assert not transcodable(uid, LITTLE)
    assert not transcodable(LITTLE, uid)
    assert not transcodable(BASELINE, JXL_JPEG)


def test_a_library_that_does_not_load_is_unsupported():
    with pytest.raises(Unsupported, match="pip install imagecodecs"):
        libraries.load("imagecodecs", "imagecodecs.nothing_of_this_name")


@pytest.mark.parametrize(
    "thrown", [RuntimeError("x"), type("PanicException", (BaseException,), {})("x"), OSError(5, "x")]
)
def test_whatever_a_library_throws_becomes_our_error(thrown):
    with pytest.raises(DecodeError, match=type(thrown).__name__), libraries.guarded(DecodeError, "codec"):
        raise thrown


def test_being_interrupted_is_no_codec_error():
    with pytest.raises(KeyboardInterrupt), libraries.guarded(EncodeError, "codec"):
        raise KeyboardInterrupt


# Signs, depths, colours.


@pytest.mark.parametrize("uid", [u for u in LOSSLESS_SYNTAXES if u != JXL])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_pixels_come_back(uid, bits):
    info = FrameInfo(33, 47, 1, 8 if bits == 8 else 16, bits, bits - 1, 1)
    frame = noise(info)
    coded, now = encode(frame, uid, info)
    assert decode(coded, uid, now) == (frame, info)


@pytest.mark.parametrize(
    ("uid", "reader"),
    [
        (LOSSLESS, read_jpeg_header),
        (JPEG_LS, read_jpeg_header),
        (J2K, read_jpeg2000_header),
        (HTJ2K, read_jpeg2000_header),
        (J2K_LOSSY, read_jpeg2000_header),
        (HTJ2K_LOSSY, read_jpeg2000_header),
    ],
)
@pytest.mark.parametrize("bits", [5, 8, 9, 12, 15, 16])
def test_codestreams_say_bits_stored_not_bits_allocated(uid, reader, bits):
    info = FrameInfo(40, 40, 1, 16, bits, bits - 1)
    assert reader(encode(picture_like(info), uid, info)[0]).precision == bits


@pytest.mark.parametrize("uid", [RLE, LOSSLESS, JPEG_LS, J2K, HTJ2K, JXL])
def test_planes_go_in_and_pixels_come_out(uid):
    planar = replace(RGB_8, planar_configuration=1)
    frame = noise(planar)
    coded, now = encode(frame, uid, planar)
    back, after = decode(coded, uid, now)
    assert after == RGB_8
    assert as_array(back, RGB_8)[..., 2].tobytes() == frame[2 * 64 * 80 :]


@pytest.mark.parametrize(
    ("uid", "given", "coded_as", "decoded_as"),
    [
        (BASELINE, "RGB", "YBR_FULL_422", "RGB"),
        (BASELINE, "YBR_FULL", "YBR_FULL_422", "RGB"),
        (J2K, "RGB", "YBR_RCT", "RGB"),
        (J2K_LOSSY, "RGB", "YBR_ICT", "RGB"),
        (J2K, "YBR_FULL", "YBR_FULL", "YBR_FULL"),
        (HTJ2K, "RGB", "YBR_RCT", "RGB"),
        (HTJ2K_LOSSY, "RGB", "YBR_ICT", "RGB"),
        (HTJ2K, "YBR_FULL", "YBR_FULL", "YBR_FULL"),
        (LOSSLESS, "RGB", "RGB", "RGB"),
        (LOSSLESS, "YBR_FULL", "YBR_FULL", "YBR_FULL"),
        (JPEG_LS, "YBR_FULL", "YBR_FULL", "YBR_FULL"),
        (RLE, "YBR_FULL", "YBR_FULL", "YBR_FULL"),
        (JXL, "RGB", "RGB", "RGB"),
        (JXL_LOSSY, "RGB", "XYB", "RGB"),
    ],
)
def test_what_colours_are_called(uid, given, coded_as, decoded_as):
    info = replace(RGB_8, photometric_interpretation=given)
    coded, now = encode(picture_like(info), uid, info)
    assert now.photometric_interpretation == coded_as
    assert decode(coded, uid, now)[1].photometric_interpretation == decoded_as


@pytest.mark.parametrize("uid", [J2K, J2K_LOSSY, HTJ2K, HTJ2K_LOSSY])
def test_only_rgb_is_transformed(uid):
    for info, transformed in ((RGB_8, True), (YBR, False)):
        assert read_jpeg2000_header(encode(picture_like(info), uid, info)[0]).transform == transformed


def test_full_chroma_on_request():
    coded, now = encode(picture_like(RGB_8), BASELINE, RGB_8, options=EncodeOptions(chroma="444"))
    assert now.photometric_interpretation == "YBR_FULL"
    assert decode(coded, BASELINE, now)[1] == RGB_8


@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES)
def test_shared_chrominance_is_spread_before_encoding(uid):
    info = replace(RGB_8, photometric_interpretation="YBR_FULL_422")
    frame = np.random.default_rng(3).integers(0, 256, info.frame_length).astype(np.uint8).tobytes()
    if uid == JXL:
        with pytest.raises(Unsupported, match="YBR_FULL_422"):
            encode(frame, uid, info)
        return
    coded, now = encode(frame, uid, info)
    back, after = decode(coded, uid, now)
    assert after.photometric_interpretation == "YBR_FULL"
    assert back == decode(frame, LITTLE, info)[0]


@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES)
def test_palette_indices_pass_unchanged(uid):
    frame = noise(PALETTE)
    coded, now = encode(frame, uid, PALETTE)
    assert decode(coded, uid, now) == (frame, PALETTE)


@pytest.mark.parametrize("uid", LOSSY_SYNTAXES)
def test_palette_indices_are_never_approximated(uid):
    with pytest.raises(Unsupported, match="PALETTE COLOR"):
        encode(noise(PALETTE), uid, PALETTE)
    assert not transcodable(LITTLE, uid, PALETTE)


@pytest.mark.parametrize("uid", [BASELINE, EXTENDED, NEAR, JXL, JXL_LOSSY])
def test_what_has_no_sign_refuses_signed_pixels(uid):
    with pytest.raises(Unsupported):
        encode(noise(SIGNED_16), uid, SIGNED_16)


def test_rows_know_what_they_cannot_hold():
    wide = FrameInfo(8, 8, 1, 32, 32, 31)
    floating = FrameInfo(8, 8, 1, 32, 32, 31, floating=True)
    assert transcodable(LITTLE, RLE, wide)
    assert not transcodable(LITTLE, J2K, wide)
    assert not transcodable(LITTLE, RLE, floating)
    assert transcodable(LITTLE, LITTLE, floating)
    assert not transcodable(LITTLE, BASELINE, GREY_12)
    assert transcodable(LITTLE, EXTENDED, GREY_12)
    assert transcodable(J2K, BASELINE, replace(RGB_8, photometric_interpretation="YBR_RCT"))
    with pytest.raises(CodestreamError, match="floating"):
        decode(bytes(256), RLE, floating)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("uid", [LITTLE, DEFLATED_FRAME, RLE])
def test_wide_samples(uid, bits):
    info = FrameInfo(16, 12, 1, bits, bits, bits - 1)
    frame = np.random.default_rng(4).integers(0, 256, info.frame_length).astype(np.uint8).tobytes()
    coded, now = encode(frame, uid, info)
    assert decode(coded, uid, now) == (frame, info)


@pytest.mark.parametrize("uid", [LITTLE, DEFLATED_FRAME, J2K, HTJ2K, RPCL])
@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (64, 200), (512, 512)])
def test_one_bit_pixels(uid, shape):
    """512 x 512 of noise overflowed OpenJPEG's buffer."""
    info = FrameInfo(*shape, 1, 1, 1, 0)
    frame = noise(info)
    coded, now = encode(frame, uid, info)
    assert decode(coded, uid, now) == (frame, info)


def test_rubbish_above_the_high_bit_is_kept_where_bits_are_copied():
    """Overlays of old files live there: native, RLE and deflated frames keep them, codecs do not see them."""
    frame = np.full((64, 80), 0xF123, "<u2").tobytes()
    for uid in (LITTLE, DEFLATED_FRAME, RLE):
        coded, now = encode(frame, uid, GREY_12)
        assert decode(coded, uid, now)[0] == frame
    for uid in (LOSSLESS, JPEG_LS, J2K, HTJ2K, JXL):
        coded, now = encode(frame, uid, GREY_12)
        assert set(as_array(decode(coded, uid, now)[0], GREY_12).ravel()) == {0x123}


@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES + list(LOSSY_SYNTAXES))
def test_padding_bytes_do_no_harm(uid):
    info = replace(GREY_8, rows=63, columns=79)
    coded, now = encode(picture_like(info) + b"\0", uid, info)
    if uid == DEFLATED_FRAME:
        assert decode(coded + b"\0", uid, now)[1] == info
        return
    assert decode(coded + b"\0", uid, now) == decode(coded, uid, now)


@pytest.mark.parametrize(("uid", "bounds"), LOSSY_SYNTAXES.items())
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("signed", [0, 1])
def test_lossy_stays_near(uid, bounds, bits, signed):
    info = FrameInfo(100, 120, 1, 8 if bits == 8 else 16, bits, bits - 1, signed)
    if not transcodable(LITTLE, uid, info):
        with pytest.raises(Unsupported):
            encode(noise(info), uid, info)
        return
    frame = picture_like(info)
    coded, now = encode(frame, uid, info)
    back, after = decode(coded, uid, now)
    error = np.abs(as_array(back, info).astype(int) - as_array(frame, info)) / 2 ** (bits - 8)
    largest, mean = bounds
    assert after == info
    assert error.max() <= largest
    assert error.mean() <= mean
    assert len(coded) < len(frame) / 2


@pytest.mark.parametrize("uid", [BASELINE, J2K_LOSSY, HTJ2K_LOSSY, JXL_LOSSY])
def test_quality_costs_bytes(uid):
    frame = picture_like(RGB_8)
    sizes = [len(encode(frame, uid, RGB_8, options=EncodeOptions(quality=q))[0]) for q in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("near", [1, 5])
def test_near_is_the_largest_error(near):
    frame = picture_like(GREY_12)
    coded, now = encode(frame, NEAR, GREY_12, options=EncodeOptions(near=near))
    error = np.abs(as_array(decode(coded, NEAR, now)[0], GREY_12).astype(int) - as_array(frame, GREY_12))
    assert error.max() == near


@pytest.mark.parametrize("options", [{"quality": 0}, {"near": 0}, {"chroma": "420"}, {"effort": 10}])
def test_options_out_of_range(options):
    with pytest.raises(EncodeError):
        EncodeOptions(**options)


def test_jpeg_into_jpeg_xl_and_back_is_the_same_file():
    coded, now = encode(picture_like(RGB_8), BASELINE, RGB_8)
    packed, info = transcode(coded, BASELINE, JXL_JPEG, now)
    assert len(packed) < len(coded)
    assert info == now
    assert transcode(packed, JXL_JPEG, BASELINE, info) == (coded, now)
    pixels, after = decode(packed, JXL_JPEG, info)
    assert after == RGB_8
    assert (
        np.abs(as_array(pixels, RGB_8).astype(int) - as_array(decode(coded, BASELINE, now)[0], RGB_8)).max()
        < 24
    )


def test_transcoding_goes_through_pixels():
    coded, now = encode(picture_like(GREY_12), J2K, GREY_12)
    other, after = transcode(coded, J2K, RPCL, now)
    assert decode(other, RPCL, after)[0] == picture_like(GREY_12)


# Headers against datasets.


@pytest.mark.parametrize("uid", [BASELINE, LOSSLESS, JPEG_LS, J2K, HTJ2K, JXL])
@pytest.mark.parametrize(
    "change",
    [
        {"rows": 65},
        {"columns": 79},
        {"samples_per_pixel": 3, "photometric_interpretation": "RGB"},
        {"bits_allocated": 1, "bits_stored": 1, "high_bit": 0},
    ],
    ids=["rows", "columns", "samples", "depth"],
)
def test_a_codestream_that_contradicts_the_dataset_is_refused(uid, change):
    coded, now = encode(noise(GREY_8), uid, GREY_8)
    with pytest.raises(CodestreamError):
        decode(coded, uid, replace(now, **change))


@pytest.mark.parametrize("uid", [BASELINE, LOSSLESS, JPEG_LS, HTJ2K, J2K])
def test_a_codestream_of_another_kind_is_refused(uid):
    other = JPEG_LS if uid != JPEG_LS else LOSSLESS
    coded, now = encode(noise(GREY_8), other, GREY_8)
    with pytest.raises(CodestreamError):
        decode(coded, uid, now)
    plain, now = encode(noise(GREY_8), J2K, GREY_8)
    if uid != J2K:
        with pytest.raises(CodestreamError):
            decode(plain, uid, now)


@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES[1:] + list(LOSSY_SYNTAXES))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_half_a_codestream_is_an_error(uid, share):
    coded, now = encode(picture_like(GREY_8), uid, GREY_8)
    with pytest.raises((CodestreamError, DecodeError)):
        decode(coded[: int(len(coded) * share)], uid, now)


def test_a_deflated_frame_may_not_be_larger_than_it_says():
    coded, _ = encode(bytes(10**6), DEFLATED_FRAME, replace(GREY_8, rows=1000, columns=1000))
    with pytest.raises(CodestreamError, match="longer"):
        decode(coded, DEFLATED_FRAME, GREY_8)


def test_colour_marks_decide_what_a_jpeg_is():
    coded, now = encode(picture_like(RGB_8), BASELINE, RGB_8)
    rgb = replace(now, photometric_interpretation="RGB")
    assert jpeg.coded_colour(read_jpeg_header(coded), rgb) == "YCBCR"
    unmarked = read_jpeg_header(coded[:2] + coded[coded.index(b"\xff\xdb") :])
    assert jpeg.coded_colour(unmarked, now) == "YCBCR"
    assert jpeg.coded_colour(unmarked, rgb) == "RGB"


def test_small_frames_go_through_the_next_library():
    """pyjpegls has no room for the headers of a pixel, OpenJPEG's wrapper wants 32 rows."""
    info = FrameInfo(1, 1, 1, 16, 12, 11)
    for uid, error in ((JPEG_LS, 0), (NEAR, 2), (J2K, 0)):
        coded, now = encode(noise(info), uid, info)
        frame, found = decode(coded, uid, now)
        assert found == info
        values = (int.from_bytes(each, "little") for each in (frame, noise(info)))
        assert abs(next(values) - next(values)) <= error


@pytest.mark.parametrize("library", SYNTAXES[JPEG_LS].decode_libraries)
@pytest.mark.parametrize("interleave", [0, 1, 2])
def test_jpeg_ls_by_component_line_and_sample(library, interleave):
    """Other encoders put one component after another, or line after line."""
    frame = picture_like(RGB_8)
    given = as_array(frame, RGB_8)
    source = np.moveaxis(given, -1, 0).tobytes() if interleave == 0 else frame
    coded = libraries.load("pyjpegls").encode_buffer(source, 64, 80, 3, 8, 0, interleave)
    assert decode(bytes(coded), JPEG_LS, RGB_8, library=library) == (frame, RGB_8)


def with_depth(frame: bytes, bits: int) -> bytes:
    changed = bytearray(frame)
    changed[42] = bits - 1
    return bytes(changed)


def test_depths_beyond_what_libraries_hold():
    wide = FrameInfo(64, 80, 1, 32, 32, 31)
    coded, _ = encode(picture_like(GREY_8), HTJ2K_LOSSY, GREY_8)
    with pytest.raises(CodestreamError, match="32 bits"):
        decode(with_depth(coded, 32), HTJ2K_LOSSY, wide)
    plain, _ = encode(picture_like(GREY_8), J2K, GREY_8)
    with pytest.raises(CodestreamError, match="32 bits"):
        decode(with_depth(plain, 32), J2K, wide, library="pylibjpeg-openjpeg")


def test_running_out_of_memory_is_told():
    with pytest.raises(MemoryExceeded), libraries.guarded(DecodeError, "codec"):
        raise MemoryError


def test_a_library_that_gives_too_little_is_noticed(monkeypatch):
    coded, now = encode(picture_like(GREY_8), RLE, GREY_8)
    monkeypatch.setattr("rle.rle.decode_frame", lambda *arguments: b"short")
    with pytest.raises(DecodeError, match="5 bytes"):
        decode(coded, RLE, now)


def test_first_kilobytes_of_rpcl_hold_small_pictures():
    """A real CT: each tile-part adds a resolution, and the first two lie in 32 kB."""
    dataset = dcmread(file_named("693_UNCR.dcm"))
    info = info_of(dataset)
    coded, _ = encode(dataset.PixelData, RPCL, info)
    levels = read_jpeg2000_header(coded).levels
    at, ends = coded.index(b"\xff\x90"), []
    while coded[at : at + 2] == b"\xff\x90":
        at += int.from_bytes(coded[at + 6 : at + 10], "big")
        ends.append(at)
    assert len(ends) == levels + 1
    assert ends[1] < 32_768
    decoder = libraries.load("imagecodecs").htj2k_decode
    for step, end in enumerate(ends):
        small = decoder(coded[:end], planar=False, skipres=levels - step)
        assert small.shape == (64 << step, 64 << step)
        assert np.array_equal(small, decoder(coded, planar=False, skipres=levels - step))


def test_what_is_lost_does_not_turn_white_to_black():
    """JPEG knows 12 bits above 8, and a lossy one gives back numbers that these pixels do not have."""
    info = FrameInfo(64, 64, 1, 16, 10, 9)
    y, x = np.mgrid[:64, :64]
    values = np.where((x // 3 + y // 5) % 2, 1023, 0).astype("<u2")
    coded, _ = registry.encode(values.tobytes(), EXTENDED, info, options=EncodeOptions(quality=50))
    assert libraries.load("imagecodecs").jpeg8_decode(coded).max() > 1023
    decoded = np.frombuffer(registry.decode(coded, EXTENDED, info)[0], "<u2")
    assert decoded.max() == 1023
    assert abs(decoded.astype(int) - values.ravel()).mean() < 60

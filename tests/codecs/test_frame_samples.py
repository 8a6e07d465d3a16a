"""Bytes to arrays and back: packing, planes, chrominance, signs."""

from dataclasses import replace

import numpy as np
import pytest
from frame_makers import GREY_12, RGB_8, noise

from framecodecs import samples
from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo
from framecodecs.samples import Decoded


def test_a_short_frame_is_refused_and_padding_dropped():
    frame = noise(GREY_12)
    assert samples.exact_frame(frame + b"\0", GREY_12) == frame
    with pytest.raises(CodestreamError, match="10239 bytes"):
        samples.exact_frame(frame[:-1], GREY_12)


def test_one_bit_pixels_begin_in_the_lowest_bit():
    info = FrameInfo(1, 10, 1, 1, 1, 0)
    assert samples.to_array(b"\x05\x02", info).tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 1]]


def test_planes_become_pixels():
    info = FrameInfo(1, 2, 3, planar_configuration=1, photometric_interpretation="RGB")
    frame, now = samples.native(b"RrGgBb", info)
    assert (frame, now.planar_configuration) == (b"RGBrgb", 0)


def test_shared_chrominance_is_repeated():
    info = FrameInfo(1, 3, 3, photometric_interpretation="YBR_FULL_422")
    frame, now = samples.native(bytes([1, 2, 100, 200, 3, 0, 50, 60]), info)
    assert frame == bytes([1, 100, 200, 2, 100, 200, 3, 50, 60])
    assert now.photometric_interpretation == "YBR_FULL"


def test_values_are_extended_from_bits_stored_whatever_lies_above():
    info = FrameInfo(1, 3, 1, 16, 12, 11, 1)
    frame = np.array([0x0FFF, 0xF7FF, 0x8800], "<u2").tobytes()
    assert samples.to_array(frame, info).tolist() == [[-1, 2047, -2048]]


def test_unsigned_values_lose_what_lies_above_the_high_bit():
    info = FrameInfo(1, 2, 1, 16, 12, 11)
    assert samples.to_array(np.array([0xFABC, 0x1001], "<u2").tobytes(), info).tolist() == [[0xABC, 1]]


def test_what_has_nothing_to_lose_is_not_copied():
    info = FrameInfo(1, 2, 1, 16, 12, 11)
    frame = np.array([0xFFF, 1], "<u2").tobytes()
    array = samples.to_array(frame, info)
    assert array.tolist() == [[0xFFF, 1]]
    assert np.shares_memory(array, np.frombuffer(frame, "<u2"))
    signed = np.array([-1, 1], "<i2")
    assert samples.unsigned(signed, 16).tolist() == [0xFFFF, 1]
    assert np.shares_memory(samples.unsigned(signed, 16), signed)
    assert samples.unsigned(signed, 12).tolist() == [0xFFF, 1]


def test_a_high_bit_that_is_not_the_lowest_possible_shifts():
    info = FrameInfo(1, 1, 1, 16, 12, 15)
    assert samples.to_array(np.array([0xABC0], "<u2").tobytes(), info).tolist() == [[0xABC]]
    assert samples.stored_low(info).high_bit == 11


@pytest.mark.parametrize(
    ("stored", "precision", "signed", "representation", "expected"),
    [
        (0x0FFF, 12, False, 1, -1),  # JPEG lossless of signed pixels
        (0xFFFF, 16, False, 1, -1),  # the encoder took the whole container
        (-1, 12, True, 0, 0x0FFF),  # JPEG 2000 with a sign that the dataset denies
        (-1, 16, True, 1, -1),
        (0x0FFF, 12, False, 0, 0x0FFF),
    ],
)
def test_the_dataset_decides_about_the_sign(stored, precision, signed, representation, expected):
    info = FrameInfo(1, 1, 1, 16, 12, 11, representation)
    array = np.array([[stored]], "<i2" if signed else "<u2")
    frame, _ = samples.to_frame(Decoded(array, precision, signed, "MONOCHROME2"), info)
    assert np.frombuffer(frame, info.sample_type).tolist() == [expected]


def test_a_denied_sign_of_whole_bytes():
    array = np.array([[-1, 127]], np.int8)
    info = FrameInfo(1, 2)
    assert samples.to_frame(Decoded(array, 8, True, "MONOCHROME2"), info)[0] == b"\xff\x7f"


def test_what_was_decoded_must_have_the_shape_of_the_dataset():
    with pytest.raises(CodestreamError, match="decoded to"):
        samples.to_frame(Decoded(np.zeros((2, 2), np.uint8), 8, False, "RGB"), RGB_8)


def test_floating_samples_keep_their_bits():
    info = FrameInfo(1, 2, 1, 32, 32, 31, floating=True)
    frame = np.array([1.5, -np.inf], "<f4").tobytes()
    assert samples.to_array(frame, info).tolist() == [[1.5, -np.inf]]
    assert samples.native(frame, info) == (frame, info)


def test_encoding_always_sees_interleaved_pixels():
    planar = replace(RGB_8, planar_configuration=1)
    frame = noise(planar)
    array = samples.to_array(frame, planar)
    assert array.flags.c_contiguous
    assert array[..., 1].tobytes() == frame[64 * 80 : 2 * 64 * 80]

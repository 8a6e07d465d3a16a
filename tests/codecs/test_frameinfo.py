"""FrameInfo: valid attributes of a frame, and their meaning in bytes."""

from dataclasses import replace

import numpy as np
import pytest
from frame_makers import GREY_12, RGB_8, SIGNED_16

from framecodecs.errors import GeometryError
from framecodecs.frameinfo import FrameInfo

IMPOSSIBLE = {
    "no rows": {"rows": 0},
    "too many columns": {"columns": 65536},
    "unknown colour": {"photometric_interpretation": "PURPLE"},
    "samples against colour": {"samples_per_pixel": 3},
    "12 bits allocated": {"bits_allocated": 12},
    "more stored than allocated": {"bits_stored": 17},
    "high bit below": {"high_bit": 10},
    "high bit above": {"high_bit": 16},
    "sign of 2": {"pixel_representation": 2},
    "planes of 2": {"planar_configuration": 2},
    "over 2 GiB": {"rows": 65535, "columns": 65535},
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_frames_are_refused(change):
    with pytest.raises(GeometryError):
        replace(GREY_12, **change)


def test_colour_of_one_bit_is_refused():
    with pytest.raises(GeometryError, match="3 samples"):
        FrameInfo(8, 8, 3, 1, 1, 0, photometric_interpretation="RGB")


@pytest.mark.parametrize(
    ("info", "length"),
    [
        (GREY_12, 64 * 80 * 2),
        (RGB_8, 64 * 80 * 3),
        (FrameInfo(3, 3, 1, 1, 1, 0), 2),
        (FrameInfo(10, 10, 3, photometric_interpretation="YBR_FULL_422"), 200),
        (FrameInfo(10, 9, 3, photometric_interpretation="YBR_FULL_422"), 200),
        (FrameInfo(4, 4, 1, 64, 64, 63, floating=True), 128),
    ],
)
def test_length_of_a_native_frame(info, length):
    assert info.frame_length == length


def test_types():
    assert SIGNED_16.sample_type == np.dtype("<i2")
    assert SIGNED_16.container == np.dtype("<u2")
    assert FrameInfo(1, 1, 1, 32, 32, 31, floating=True).sample_type == np.dtype("<f4")
    assert FrameInfo(1, 1, 1, 1, 1, 0).sample_type == np.dtype("u1")
    assert (GREY_12.shape, RGB_8.shape) == ((64, 80), (64, 80, 3))


def test_renaming_a_colour_also_says_interleaved():
    planar = replace(RGB_8, planar_configuration=1)
    assert planar.with_colour("RGB") == RGB_8
    assert RGB_8.with_colour("RGB") is RGB_8


def test_cached_properties_change_no_value():
    used, other = replace(GREY_12, rows=65), replace(GREY_12, rows=65)
    assert (used.frame_length, used.container, used.sample_type) == (65 * 80 * 2, "<u2", "<u2")
    assert used == other
    assert hash(used) == hash(other)

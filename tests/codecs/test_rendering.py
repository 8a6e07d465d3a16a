"""Stored pixels to displayable ones: exact where the standard says a formula, by eye-proof properties
elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from frame_makers import GREY_8, GREY_12, RGB_8, SIGNED_16, as_array, noise, picture_like
from pydicom.pixels import convert_color_space

from framecodecs.errors import RenderingError
from framecodecs.frameinfo import FrameInfo
from framecodecs.rendering.rendering import Lut, Palette, Rendering, Window, displayable, ybr_to_rgb

CT_WINDOW = Rendering(1.0, -1024.0, window=Window(40, 400))


def naive(values, window, slope=1.0, intercept=0.0):
    """The formula of C.11.2.1.2.1, a pixel at a time."""
    out = []
    for value in values.ravel():
        x = value * slope + intercept
        c, w = window.center - 0.5, window.width - 1
        y = 0 if x <= c - w / 2 else 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255
        out.append(int(np.floor(y + 0.5)))
    return np.array(out).reshape(values.shape)


@pytest.mark.parametrize("info", [GREY_12, SIGNED_16, replace(GREY_12, pixel_representation=1)])
def test_a_windowed_picture_is_the_formula(info):
    frame = noise(info)
    shown = displayable(frame, info, CT_WINDOW)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, naive(as_array(frame, info), CT_WINDOW.window, 1.0, -1024.0))


def test_looking_up_and_computing_give_the_same():
    """Large frames go through a table of every value, small ones are computed."""
    large = FrameInfo(300, 300, 1, 16, 16, 15, 1)
    frame = noise(large)
    whole = displayable(frame, large, CT_WINDOW)
    strip = FrameInfo(1, 300, 1, 16, 16, 15, 1)
    rows = [displayable(frame[600 * y : 600 * (y + 1)], strip, CT_WINDOW)[0] for y in range(300)]
    assert np.array_equal(whole, np.stack(rows))


def test_monochrome1_and_inverse_turn_light_to_dark():
    frame = noise(GREY_8)
    plain = displayable(frame, GREY_8)
    turned = displayable(frame, replace(GREY_8, photometric_interpretation="MONOCHROME1"))
    assert np.array_equal(plain, 255 - turned)
    assert np.array_equal(displayable(frame, GREY_8, Rendering(inverse=True)), turned)


def test_bytes_without_a_window_are_shown_as_they_are():
    frame = noise(GREY_8)
    assert displayable(frame, GREY_8).tobytes() == frame


def test_few_bits_fill_the_range():
    info = FrameInfo(1, 4, 1, 8, 2, 1)
    assert displayable(bytes([0, 1, 2, 3]), info).tolist() == [[0, 85, 170, 255]]


def test_one_bit_is_black_and_white():
    info = FrameInfo(1, 8, 1, 1, 1, 0)
    assert displayable(b"\x05", info).tolist() == [[255, 0, 255, 0, 0, 0, 0, 0]]


def test_deep_pixels_without_a_window_go_from_least_to_most_without_padding():
    frame = np.array([[-2000, 100, 200, 300]], "<i2").tobytes()
    info = FrameInfo(1, 4, 1, 16, 16, 15, 1)
    assert displayable(frame, info).tolist() == [[0, 233, 244, 255]]
    assert displayable(frame, info, Rendering(padding=(-2000, -2000))).tolist() == [[0, 0, 128, 255]]


def test_a_flat_frame_has_no_range_and_is_still_drawn():
    info = FrameInfo(4, 4, 1, 16, 16, 15)
    assert displayable(bytes(32), info).shape == (4, 4)
    assert displayable(bytes(32), info, Rendering(padding=(0, 0))).shape == (4, 4)


@pytest.mark.parametrize("bits", [32, 64])
def test_floating_pixels(bits):
    info = FrameInfo(1, 3, 1, bits, bits, bits - 1, floating=True)
    frame = np.array([0.25, 0.5, 0.75], f"<f{bits // 8}").tobytes()
    assert displayable(frame, info).tolist() == [[0, 128, 255]]
    nothing = np.full(3, np.nan, f"<f{bits // 8}").tobytes()
    with pytest.raises(RenderingError), np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        displayable(nothing, info)


def test_32_bit_integers():
    info = FrameInfo(1, 3, 1, 32, 32, 31)
    frame = np.array([0, 2**31, 2**32 - 1], "<u4").tobytes()
    assert displayable(frame, info).tolist() == [[0, 128, 255]]


def test_a_voi_table_wins_nothing_over_a_window_and_scales_to_bytes():
    info = FrameInfo(1, 3, 1, 16, 12, 11)
    frame = np.array([0, 1, 2], "<u2").tobytes()
    table = Lut.of(0, [0, 512, 1023], 10)
    assert displayable(frame, info, Rendering(voi_lut=table)).tolist() == [[0, 128, 255]]
    both = Rendering(voi_lut=table, window=Window(1, 2, "LINEAR_EXACT"))
    assert displayable(frame, info, both).tolist() == [[0, 128, 255]]


def test_sigmoid_is_half_at_its_centre():
    info = FrameInfo(1, 3, 1, 16, 12, 11)
    frame = np.array([0, 1000, 4000], "<u2").tobytes()
    shown = displayable(frame, info, Rendering(window=Window(1000, 400, "SIGMOID")))
    assert shown.tolist() == [[0, 128, 255]]


def test_ybr_equals_pydicom():
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), axis=-1).astype(np.uint8).reshape(-1, 52, 3)
    assert np.array_equal(ybr_to_rgb(every), convert_color_space(every, "YBR_FULL", "RGB"))


def test_colours():
    frame = noise(RGB_8)
    assert displayable(frame, RGB_8).tobytes() == frame
    ybr = replace(RGB_8, photometric_interpretation="YBR_FULL")
    assert np.array_equal(displayable(frame, ybr), ybr_to_rgb(as_array(frame, ybr)))
    planar = replace(RGB_8, planar_configuration=1)
    assert displayable(frame, planar)[..., 0].tobytes() == frame[: 64 * 80]


def test_colours_of_16_bits_keep_their_upper_part():
    info = FrameInfo(1, 1, 3, 16, 12, 11, photometric_interpretation="RGB")
    frame = np.array([0, 2048, 4095], "<u2").tobytes()
    assert displayable(frame, info).tolist() == [[[0, 128, 255]]]


def test_palette_colours():
    info = FrameInfo(1, 3, photometric_interpretation="PALETTE COLOR")
    ramp = Lut.of(0, range(0, 65536, 256), 16)
    flat = Lut.of(0, [7], 8)
    shown = displayable(bytes([0, 128, 255]), info, Rendering(palette=Palette(ramp, flat, flat)))
    assert shown.tolist() == [[[0, 7, 7], [128, 7, 7], [255, 7, 7]]]
    with pytest.raises(RenderingError, match="palette"):
        displayable(bytes(3), info)


def test_frames_with_another_window_are_not_taken_from_the_kept_table():
    frame = picture_like(GREY_12)
    dark = displayable(frame, GREY_12, Rendering(window=Window(3500, 100)))
    light = displayable(frame, GREY_12, Rendering(window=Window(500, 100)))
    assert dark.mean() < 100 < light.mean()

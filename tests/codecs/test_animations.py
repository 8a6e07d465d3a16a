"""Animated GIF from blocks, held against the animations that Pillow writes and reads."""

import io

import numpy as np
import pytest
from frame_makers import GREY_8, LITTLE, RGB_8, picture_like
from PIL import Image, ImageSequence

from framecodecs.errors import EncodeError
from framecodecs.rendering import pictures
from framecodecs.rendering.pictures import (
    GIF_CLOSING,
    PictureRequest,
    Viewport,
    gif_block,
    gif_opening,
    picture_file,
)
from framecodecs.rendering.rendering import displayable


def animation(pictures, milliseconds=100):
    rows, columns = pictures[0].shape[:2]
    blocks = [gif_block(picture_file(one, "image/gif"), milliseconds) for one in pictures]
    return b"".join((gif_opening(columns, rows), *blocks, GIF_CLOSING))


def by_pillow(pictures, milliseconds=100):
    out = io.BytesIO()
    first, *others = map(Image.fromarray, pictures)
    first.save(out, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return out.getvalue()


def frames_of(content):
    opened = Image.open(io.BytesIO(content))
    return [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(opened)]


def pictures_of(info, count=5):
    return [displayable(picture_like(info, seed), info) for seed in range(count)]


@pytest.mark.parametrize("info", [GREY_8, RGB_8], ids=["grey", "colour"])
def test_it_shows_the_frames_that_pillow_shows(info):
    given = pictures_of(info)
    ours, theirs = animation(given), by_pillow(given)
    opened, reference = Image.open(io.BytesIO(ours)), Image.open(io.BytesIO(theirs))
    assert (
        (opened.n_frames, opened.size) == (reference.n_frames, reference.size) == (5, given[0].shape[1::-1])
    )
    assert (opened.info["duration"], opened.info["loop"]) == (100, 0)
    for drawn, expected, picture in zip(frames_of(ours), frames_of(theirs), given, strict=True):
        if info is GREY_8:
            assert np.array_equal(drawn, expected)
        else:
            # A palette for each frame: not farther from the pixels than Pillow's own choice.
            assert np.abs(drawn - picture).mean() <= np.abs(expected - picture).mean() + 2


def test_equal_frames_are_frames():
    (one,) = pictures_of(GREY_8, 1)
    assert Image.open(io.BytesIO(animation([one, one, one]))).n_frames == 3
    assert Image.open(io.BytesIO(animation([one]))).n_frames == 1


@pytest.mark.parametrize(("given", "shown"), [(0, 20), (1, 20), (40, 40), (333, 330), (1e9, 655_350)])
def test_times(given, shown):
    content = animation(pictures_of(GREY_8, 2), given)
    assert Image.open(io.BytesIO(content)).info["duration"] == shown


def test_from_a_frame_to_a_block():
    frame = picture_like(GREY_8)
    request = PictureRequest(media_type="image/gif", viewport=Viewport(40, 32), milliseconds=50)
    block = pictures.animated(frame, LITTLE, GREY_8, request)
    content = gif_opening(40, 32) + block + GIF_CLOSING
    opened = Image.open(io.BytesIO(content))
    assert (opened.size, opened.info["duration"]) == ((40, 32), 50)


def test_what_is_no_picture_is_refused():
    whole = picture_file(pictures_of(GREY_8, 1)[0], "image/gif")
    for wrong in (b"", b"GIF89a", whole[:500], whole[:-1], b"PNG" + whole[3:], whole[:13] + b"\x3b"):
        with pytest.raises(EncodeError):
            gif_block(wrong, 40)

"""Files for browsers: decoded again by Pillow and looked at pixel by pixel."""

import datetime
import io
from dataclasses import replace

import numpy as np
import pytest
from frame_makers import BASELINE, GREY_8, GREY_12, J2K, LITTLE, RGB_8, RPCL, picture_like
from PIL import Image, ImageCms

from framecodecs.errors import EncodeError, RenderingError, Unsupported
from framecodecs.registry import encode
from framecodecs.rendering import pictures
from framecodecs.rendering.pictures import PictureRequest, Viewport, fitted, picture_file
from framecodecs.rendering.rendering import Rendering, Window, displayable

GREY = displayable(picture_like(GREY_8), GREY_8)
COLOUR = displayable(picture_like(RGB_8), RGB_8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("media_type", pictures.FORMATS)
def test_every_format_opens_again(media_type, picture):
    image = opened(picture_file(picture, media_type))
    assert Image.MIME[image.format] == media_type
    assert image.size == (80, 64)
    back = np.asarray(image.convert("RGB" if picture.ndim == 3 else "L")).astype(int)
    if media_type == "image/png" or (media_type == "image/gif" and picture.ndim == 2):
        assert np.array_equal(back, picture)
    else:
        assert np.abs(back - picture).mean() < 8


def test_quality_costs_bytes():
    sizes = [len(picture_file(GREY, "image/jpeg", quality=quality)) for quality in (10, 50, 90, 100)]
    assert sizes == sorted(set(sizes))


def test_other_types_are_refused():
    with pytest.raises(Unsupported, match="image/tiff"):
        picture_file(GREY, "image/tiff")


def test_profiles_go_in_where_there_is_a_place():
    profile = pictures.srgb_profile()
    for media_type in pictures.FORMATS:
        image = opened(picture_file(COLOUR, media_type, icc_profile=profile))
        assert (image.info.get("icc_profile") == profile) == (media_type in pictures.ICC_FORMATS)


def test_conversion_to_srgb_of_srgb_changes_nothing():
    same = pictures.to_srgb(COLOUR, pictures.srgb_profile())
    assert np.abs(same.astype(int) - COLOUR).max() <= 1


def test_a_broken_profile_is_an_error():
    with pytest.raises(EncodeError, match="ICC"):
        pictures.to_srgb(COLOUR, b"not a profile")


@pytest.mark.parametrize(
    ("viewport", "size"),
    [
        (Viewport(40, 32), (40, 32)),
        (Viewport(40, 40), (40, 32)),
        (Viewport(800, 32), (40, 32)),
        (Viewport(160, 160), (160, 128)),
        (Viewport(160, 160, enlarge=False), (80, 64)),
        (Viewport(80, 64), (80, 64)),
        (Viewport(1, 1), (1, 1)),
        (Viewport(50, 50, (10, 10, 20, 20)), (50, 50)),
    ],
)
@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colour"])
def test_viewports_keep_proportions(viewport, size, picture):
    rows, columns = fitted(picture, viewport).shape[:2]
    assert (columns, rows) == size


def test_regions_and_turning_over():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert fitted(picture, Viewport(2, 1, (1, 2, 2, 1))).tolist() == [[9, 10]]
    assert fitted(picture, Viewport(4, 3, (0, 0, -4, 3))).tolist() == picture[:, ::-1].tolist()
    assert fitted(picture, Viewport(4, 3, (0, 0, 4, -3))).tolist() == picture[::-1].tolist()
    assert fitted(picture, Viewport(2, 3, (2, 0, 9, 3))).tolist() == picture[:, 2:].tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Viewport(0, 5),
        lambda: Viewport(5, 10**6),
        lambda: Viewport(5, 5, (0, 0, 0, 5)),
        lambda: Viewport(5, 5, (-1, 0, 5, 5)),
        lambda: fitted(GREY, Viewport(5, 5, (80, 0, 5, 5))),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(RenderingError):
        make()


@pytest.mark.parametrize("uid", [J2K, RPCL])
def test_from_codestream_to_picture(uid):
    coded, now = encode(picture_like(GREY_12), uid, GREY_12)
    request = PictureRequest(Rendering(window=Window(2048, 4096)), media_type="image/png")
    image = opened(pictures.rendered(coded, uid, now, request))
    expected = displayable(picture_like(GREY_12), GREY_12, request.rendering)
    assert np.array_equal(np.asarray(image), expected)


def test_colour_from_jpeg_with_a_profile():
    coded, now = encode(picture_like(RGB_8), BASELINE, RGB_8)
    profile = pictures.srgb_profile()
    request = PictureRequest(media_type="image/png", icc_profile=profile)
    assert opened(pictures.rendered(coded, BASELINE, now, request)).info["icc_profile"] == profile
    converted = opened(pictures.rendered(coded, BASELINE, now, replace(request, convert_to_srgb=True)))
    assert converted.mode == "RGB"
    assert "icc_profile" in converted.info


def test_grey_pictures_carry_no_colour_profile():
    request = PictureRequest(
        media_type="image/png", icc_profile=pictures.srgb_profile(), convert_to_srgb=True
    )
    assert "icc_profile" not in opened(pictures.rendered(picture_like(GREY_8), LITTLE, GREY_8, request)).info


@pytest.mark.parametrize("shape", [(1, 1), (40, 33), (40, 33, 3)])
@pytest.mark.parametrize("profile", [None, b"any"])
def test_png_is_exact_by_either_library(shape, profile, monkeypatch):
    picture = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    made = [pictures.picture_file(picture, "image/png", icc_profile=profile)]
    monkeypatch.setattr(pictures, "available", lambda package: False)
    made.append(pictures.picture_file(picture, "image/png", icc_profile=profile))
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(one))), picture) for one in made)


@pytest.mark.parametrize(
    ("viewport", "rows", "columns"),
    [
        (None, 7, 9),
        (Viewport(40, 32), 7, 9),
        (Viewport(5, 1000), 7, 9),
        (Viewport(50, 50, (2, 3, 100, -100)), 7, 9),
        (Viewport(50, 50, enlarge=False), 7, 9),
        (Viewport(3, 3, enlarge=False), 7, 9),
    ],
)
def test_the_size_of_a_picture_is_known_before_it_is_made(viewport, rows, columns):
    picture = np.zeros((rows, columns), np.uint8)
    made = picture if viewport is None else fitted(picture, viewport)
    assert pictures.picture_size(viewport, rows, columns) == (made.shape[1], made.shape[0])


def test_a_region_outside_the_frame_has_a_size():
    assert pictures.picture_size(Viewport(50, 50, (20, 30, 5, 5)), 7, 9) == (50, 50)


def test_the_palette_of_a_large_colour_picture_is_chosen_by_a_sample():
    """Noise in 1 million pixels: Pillow's own choice takes over ten times as long."""
    large = np.random.default_rng(1).integers(0, 255, (1024, 1024, 3), np.uint8)
    drawn = np.asarray(opened(picture_file(large, "image/gif")).convert("RGB"), int)
    assert np.abs(drawn - large).mean() < 25
    few = np.zeros((1024, 1024, 3), np.uint8)
    few[:512, :, 0], few[512:, :, 1] = 200, 90
    assert np.array_equal(np.asarray(opened(picture_file(few, "image/gif")).convert("RGB")), few)


def test_the_profile_of_srgb_has_no_time():
    """The pictures of one request are the same bytes at any time, because their ETag is."""
    made = ImageCms.ImageCmsProfile(io.BytesIO(pictures.srgb_profile())).profile
    assert made.creation_date == datetime.datetime(2000, 1, 1)
    assert made.profile_description == "sRGB built-in"

"""Text in pictures: its place, its contrast on any background, and characters that its font lacks."""

import numpy as np
import pytest

from framecodecs.rendering.lettering import Notes, annotated, drawable

NOTES = Notes(("Doe, Jane Q", "ID P0012345", "born 1960-02-29  F"), ("CT  Thorax", "120 kV  slice 1 mm"))


def changed(picture, notes=NOTES):
    """Where the picture is another one."""
    made = annotated(picture, notes)
    assert made.shape == picture.shape
    assert made.dtype == np.uint8
    different = made != picture
    return made, different if picture.ndim == 2 else different.any(-1)


@pytest.mark.parametrize("shape", [(512, 512), (512, 512, 3), (256, 1024), (1024, 256, 3), (2000, 1500)])
def test_notes_stand_in_their_corners(shape):
    picture = np.full(shape, 128, np.uint8)
    _, where = changed(picture)
    rows, columns = shape[:2]
    assert where[: rows // 3, : columns // 2].any()
    assert where[-rows // 3 :, : columns // 2].any()
    assert not where[rows // 3 : -rows // 3].any()


def test_without_notes_it_is_the_same_picture():
    picture = np.zeros((40, 40), np.uint8)
    assert annotated(picture, Notes()) is picture
    assert annotated(picture, Notes(("",), ())) is picture


@pytest.mark.parametrize("background", [0, 60, 128, 200, 255])
def test_letters_are_legible_on_any_background(background):
    """White with a black edge: on white the edge is seen, on black the letters."""
    made, where = changed(np.full((512, 512), background, np.uint8))
    written = made[where]
    assert max(int(written.max()) - background, background - int(written.min())) > 120
    for contrast in (written > 200, written < 80):
        assert background in (0, 255) or contrast.sum() > 100


def test_only_lines_that_were_asked_for():
    _, where = changed(np.full((512, 512), 90, np.uint8), Notes((), ("CT",)))
    assert not where[:400].any()
    assert where[400:].any()


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (300, 8), (30, 30, 3), (64, 64)])
def test_small_pictures_hold_what_fits(shape):
    made, _ = changed(np.full(shape, 10, np.uint8))
    assert made.shape == shape


def test_letters_grow_with_the_picture():
    heights = []
    for side in (256, 1024, 4096):
        _, where = changed(np.full((side, side), 128, np.uint8), Notes(("X",)))
        heights.append(np.flatnonzero(where.any(1)).size)
    assert heights[0] < heights[1] < heights[2] < 120


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("Müller, Zoë", "Muller, Zoe"),
        ("Łukasz Żółć", "Lukasz Zolc"),
        ("Strauß Ærø", "Strauss AEro"),
        ("Nguyễn", "Nguyen"),
        ("山田", "??"),
        ("Иван 1", "???? 1"),
        ("a\nb\x7f", "a?b?"),
        ("x" * 500, "x" * 200),
    ],
)
def test_letters_that_the_font_lacks(given, written):
    assert drawable(given) == written

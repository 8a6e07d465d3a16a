"""Fonts of annotations: which files are found, and letters of other scripts, drawn by a confined process."""

import io
import unicodedata

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from frame_makers import LITTLE
from PIL import Image, ImageFont

from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages
from framecodecs.pool.pool import FramePool, PoolLimits
from framecodecs.rendering import lettering
from framecodecs.rendering.fonts import (
    PACKAGED,
    NoFont,
    check_font,
    find_fonts,
    font_folders,
    has_cjk,
    path_of,
)
from framecodecs.rendering.lettering import Notes, annotated, drawable, runs_of
from framecodecs.rendering.pictures import PictureRequest

(CJK,) = (font for font in find_fonts(()) if font.endswith(PACKAGED))  # of the extra `cjk`
FONTS = (CJK,)
CHINESE, MISSING = "王小东", "\U0010ffff" * 3
GREY = FrameInfo(256, 256)
NAME = Notes((f"Wang, XiaoDong\t{CHINESE}",), (), FONTS)


def small_font(path, text):
    """A font of boxes for the letters of `text` alone."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = {ord(letter): f"u{ord(letter):04X}" for letter in sorted(set(text))}
    box, empty, order = pen.glyph(), TTGlyphPen(None).glyph(), [".notdef", *names.values()]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: empty if name == ".notdef" else box for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Small", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def letters(text, fonts=FONTS):
    """A picture with one line of text, on black."""
    return annotated(np.zeros((256, 256), np.uint8), Notes((text,), (), fonts))


def test_chinese_letters_are_drawn_and_are_no_boxes():
    drawn = letters(CHINESE)
    face = ImageFont.truetype(CJK, 10, index=2)
    assert face.getname()[0] == "Noto Sans CJK SC"
    box = face.getmask("\U0010ffff")
    for letter in CHINESE:
        glyph = face.getmask(letter)
        assert (glyph.size, bytes(glyph)) != (box.size, bytes(box))
    assert len({letters(letter).tobytes() for letter in (*CHINESE, "?", "山", "한", "あ")}) == 7
    assert not np.array_equal(drawn, letters("???"))
    assert np.array_equal(letters(MISSING), letters("???"))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("Müller, Zoë", "Müller, Zoë"),
        ("Mu\u0308ller", "Müller"),
        (CHINESE, CHINESE),
        ("山田 太郎 한국어 Иван", "山田 太郎 한국어 Иван"),
        ("นาย", "???"),  # Thai is in another font
        ("a\tIván", "a  Iván"),
        ("a\tนาย\t王", "a  王"),
        ("a\nb\u202e王", "a?b?王"),
        ("", ""),
    ],
)
def test_letters_that_fonts_have(given, written):
    assert drawable(given, FONTS) == written


def test_without_a_font_the_second_group_of_a_name_is_left_out():
    assert drawable(NAME.upper[0]) == "Wang, XiaoDong"
    assert drawable(NAME.upper[0], FONTS) == f"Wang, XiaoDong  {CHINESE}"
    assert np.array_equal(letters(NAME.upper[0], ()), letters("Wang, XiaoDong", ()))
    assert np.array_equal(letters("王", ("/no/such/font.ttf",)), letters("?", ()))


def test_a_line_is_in_one_font_if_that_has_its_letters(tmp_path):
    assert runs_of("Doe 1", FONTS) == [("", "Doe 1")]
    assert runs_of("Wang 王", FONTS) == [(CJK, "Wang 王")]
    thai = small_font(tmp_path / "thai.ttf", "กข")
    assert runs_of("ก王 ข", (thai, CJK)) == [(thai, "ก"), (CJK, "王"), ("", " "), (thai, "ข")]
    assert not np.array_equal(letters("ก王", (thai, CJK)), letters("?王", (thai, CJK)))


def test_right_to_left_letters_need_a_shaper(monkeypatch, tmp_path):
    font = (small_font(tmp_path / "hebrew.ttf", "שלום Жक"),)
    for is_there, written in ((True, "שלום Жक"), (False, "???? Ж?")):
        monkeypatch.setattr(lettering, "_is_shaped", lambda is_there=is_there: is_there)
        lettering._has.cache_clear()
        assert drawable("שלום Жक", font) == written
    lettering._has.cache_clear()


def test_a_confined_process_draws_them():
    frame = bytes(GREY.frame_length)
    request = PictureRequest(media_type="image/png", notes=NAME)
    with FramePool(1, PoolLimits(fonts=FONTS)) as pool:
        for side in (256, 1024, 2048):
            info = FrameInfo(side, side)
            frame = bytes(info.frame_length)
            task = pool.submit(messages.render_frames, [frame], LITTLE, info, request)
            ((content, _),) = task.result(60)
            shown = np.asarray(Image.open(io.BytesIO(content)))
            assert np.array_equal(shown, annotated(np.zeros((side, side), np.uint8), NAME))
            assert not np.array_equal(shown, annotated(np.zeros((side, side), np.uint8), Notes(NAME.upper)))


# Files


@pytest.fixture
def without_package(monkeypatch):
    monkeypatch.setattr("framecodecs.rendering.fonts._packaged", lambda: None)


def test_known_fonts_are_found_in_order(tmp_path, without_package):
    for name in ("a/uming.ttc", "a/b/NotoSansCJK-Regular.ttc", "c/FreeSans.ttf", "c/Comic.ttf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"OTTO")
    folders = [tmp_path / "none", tmp_path / "a", tmp_path / "c"]
    found = find_fonts(folders)
    assert found == (str(tmp_path / "c/FreeSans.ttf"), str(tmp_path / "a/b/NotoSansCJK-Regular.ttc"))
    assert has_cjk(found)
    assert not has_cjk(find_fonts(folders[2:]))
    (tmp_path / "c/NotoSansThai-Regular.ttf").write_bytes(b"")
    assert find_fonts(folders)[2:] == (str(tmp_path / "c/NotoSansThai-Regular.ttf"),)


def test_the_folders_are_those_of_fontconfig(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folders = [str(folder) for folder in font_folders()]
    assert folders[0] == str(tmp_path / "fonts")
    assert folders[-1] == "/usr/share/fonts"


@pytest.mark.parametrize(
    ("font", "found"),
    [("/a/b.ttc", ("/a/b.ttc", None)), ("/a/b.ttc#3", ("/a/b.ttc", 3)), ("/a#b.ttf", ("/a#b.ttf", None))],
)
def test_faces_of_collections(font, found):
    assert path_of(font) == found


def test_files_that_are_no_fonts(tmp_path):
    check_font(CJK)
    check_font(f"{CJK}#1")
    (tmp_path / "text.ttf").write_bytes(b"text")
    for name, words in (("text.ttf", "no TrueType"), ("none.ttf", "cannot be read"), ("", "cannot be read")):
        with pytest.raises(NoFont, match=words):
            check_font(str(tmp_path / name))


def test_a_named_face_has_other_shapes():
    assert unicodedata.name("直").startswith("CJK")
    assert not np.array_equal(letters("直", (f"{CJK}#0",)), letters("直", (f"{CJK}#2",)))
    assert np.array_equal(letters("直", (f"{CJK}#2",)), letters("直"))

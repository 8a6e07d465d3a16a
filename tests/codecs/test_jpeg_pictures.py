"""Stored JPEG as pictures: an unchanged frame equals the drawn one, and doubtful ones are drawn."""

import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from frame_makers import BASELINE, EXTENDED, GREY_8, dicom_files, frames_of, info_of, picture_like
from PIL import Image, ImageCms

from framecodecs.frameinfo import FrameInfo
from framecodecs.rendering import jpeg_pictures, pictures
from framecodecs.rendering.jpeg_pictures import LONGEST_HEAD, is_unchanged, picture_head, profile_parts
from framecodecs.rendering.pictures import PictureRequest
from framecodecs.rendering.rendering import AS_STORED, Lut, Rendering, Window

COLOUR = FrameInfo(64, 80, 3, photometric_interpretation="YBR_FULL_422")
RGB = FrameInfo(64, 80, 3, photometric_interpretation="RGB")


def array(info=COLOUR):
    return np.frombuffer(picture_like(info), "u1").reshape(info.shape)


def coded(info=COLOUR, **options):
    """By Pillow: with JFIF."""
    out = io.BytesIO()
    Image.fromarray(array(info)).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def head_of(frame, info=COLOUR):
    return picture_head(frame[:LONGEST_HEAD], frame[-8:], info)


def drawn(frame, info, syntax=BASELINE):
    """As the server draws it, without a second loss."""
    return Image.open(
        io.BytesIO(pictures.rendered(frame, syntax, info, PictureRequest(media_type="image/png")))
    )


def browsers(frame):
    """As libjpeg alone understands it."""
    return Image.open(io.BytesIO(frame))


def same(frame, info, syntax=BASELINE):
    one, other = (
        np.asarray(picture.convert("RGB"), int) for picture in (browsers(frame), drawn(frame, info, syntax))
    )
    return np.abs(one - other).max() <= 1


def segment(marker, body):
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def with_segment(frame, marker, body):
    """Behind JFIF, if that is there."""
    at = 20 if frame[2:4] == b"\xff\xe0" else 2
    return frame[:at] + segment(marker, body) + frame[at:]


def without_jfif(frame):
    assert frame[2:4] == b"\xff\xe0"
    return frame[:2] + frame[20:]


def frame_header(frame):
    return frame.index(b"\xff\xc0")


def four_components():
    out = io.BytesIO()
    Image.new("CMYK", (80, 64)).save(out, "JPEG")
    return out.getvalue()


def changed(frame, at, value):
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


def named(frame, header, ids):
    """Components in the frame header and in the scan."""
    scan = frame.index(b"\xff\xda")
    for number, one in enumerate(ids):
        frame = changed(changed(frame, header + 10 + 3 * number, one), scan + 5 + 2 * number, one)
    return frame


PLAIN = coded()
SHOWN = {
    "4:4:4": (PLAIN, COLOUR),
    "4:2:2": (coded(subsampling="4:2:2"), COLOUR),
    "4:2:0": (coded(subsampling="4:2:0"), COLOUR),
    "tall pairs": (imagecodecs.jpeg8_encode(array(), 90, subsampling="440"), COLOUR),
    "by another encoder": (imagecodecs.jpeg8_encode(array(), 90, subsampling="420"), COLOUR),
    "best Huffman tables": (coded(optimize=True), COLOUR),
    "restart markers": (coded(restart_marker_rows=1), COLOUR),
    "a comment": (coded(comment=b"a slide"), COLOUR),
    "no JFIF": (without_jfif(PLAIN), COLOUR),
    "Adobe says YCbCr": (with_segment(without_jfif(PLAIN), 0xEE, b"Adobe\0\x64\0\0\0\0\1"), COLOUR),
    "padded": (PLAIN + b"\0", COLOUR),
    "grey": (coded(GREY_8), GREY_8),
    "grey, quality 100": (coded(GREY_8, quality=100), GREY_8),
    "odd size": (coded(FrameInfo(33, 17)), FrameInfo(33, 17)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_as_it_stands(name):
    frame, info = SHOWN[name]
    found = head_of(frame, info)
    assert found is not None
    assert frame[: found.length].endswith(b"\0\x3f\0")
    assert not found.has_profile
    assert found.profile_at == (20 if frame[2:4] == b"\xff\xe0" else 2)
    assert same(frame, info)


def test_a_profile_of_its_own_is_noticed():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert head_of(coded(icc_profile=profile)).has_profile


AT = frame_header(PLAIN)  # marker, length, precision, rows, columns, count, then id, sampling, table each
ADOBE = b"Adobe\0\x64\0\0\0\0"
DRAWN = {
    "no codestream": b"\0" * 900,
    "nothing": b"",
    "no SOI": b"\xff\xd9" + PLAIN[2:],
    "progressive": coded(progressive=True),
    "extended process": changed(PLAIN, AT + 1, 0xC1),
    "12 bits": changed(PLAIN, AT + 4, 12),
    "other rows": changed(PLAIN, AT + 6, 63),
    "other columns": changed(PLAIN, AT + 8, 81),
    "no rows: DNL": changed(PLAIN, AT + 6, 0),
    "grey for colour": coded(GREY_8),
    "four components": four_components(),
    "RGB by Adobe": with_segment(without_jfif(PLAIN), 0xEE, ADOBE + b"\0"),
    "RGB by Adobe, with JFIF": with_segment(PLAIN, 0xEE, ADOBE + b"\0"),
    "YCCK by Adobe": with_segment(PLAIN, 0xEE, ADOBE + b"\2"),
    "Adobe twice": with_segment(with_segment(PLAIN, 0xEE, ADOBE + b"\1"), 0xEE, ADOBE + b"\1"),
    "a short Adobe marker": with_segment(PLAIN, 0xEE, b"Adobe\0\0"),
    "named R, G, B": named(PLAIN, AT, b"RGB"),
    "numbered otherwise": named(PLAIN, AT, b"\2\3\4"),
    "luminance of less detail": changed(changed(PLAIN, AT + 11, 0x11), AT + 14, 0x22),
    "Exif, which may turn it": with_segment(PLAIN, 0xE1, b"Exif\0\0" + b"\0" * 20),
    "another APP0": with_segment(without_jfif(PLAIN), 0xE0, b"AVI1\0\0\0"),
    "another APP2": with_segment(PLAIN, 0xE2, b"MPF\0" + b"\0" * 20),
    "half a profile": with_segment(PLAIN, 0xE2, b"ICC_PROFILE\0\1\2" + b"\0" * 20),
    "two profiles": with_segment(with_segment(PLAIN, 0xE2, b"ICC_PROFILE\0\1\1"), 0xE2, b"ICC_PROFILE\0\1\1"),
    "a profile longer than what is looked at": with_segment(PLAIN, 0xE2, b"ICC_PROFILE\0\1\1" + b"\0" * 5000),
    "a longer comment": with_segment(PLAIN, 0xFE, b" " * 5000),
    "arithmetic coding": with_segment(PLAIN, 0xCC, b"\0\0"),
    "two frame headers": with_segment(PLAIN, 0xC0, PLAIN[AT + 4 : AT + 19]),
    "a byte between segments": PLAIN[:20] + b"\0" + PLAIN[20:],
    "no EOI": PLAIN[:-2],
    "cut": PLAIN[: len(PLAIN) // 2],
    "cut in its head": PLAIN[:200],
    "more than padding behind EOI": PLAIN + b"rubbish!",
    "a length that leads nowhere": changed(PLAIN, 22, 0xFF),
    "a length of nothing": changed(changed(PLAIN, 22, 0), 23, 1),
    "quantization tables of 16 bits": changed(PLAIN, PLAIN.index(b"\xff\xdb") + 4, 0x10),
    "a quantization table that is not there": changed(PLAIN, AT + 12, 3),
    "a Huffman table that is not there": changed(PLAIN, PLAIN.index(b"\xff\xda") + 6, 0x11 ^ 0x22),
    "a Huffman table of no class": changed(PLAIN, PLAIN.index(b"\xff\xc4") + 4, 0x20),
    "one component a scan": changed(PLAIN, PLAIN.index(b"\xff\xda") + 4, 1),
    "a part of the spectrum": changed(PLAIN, PLAIN.index(b"\xff\xda") + 12, 5),
    "other components in the scan": changed(PLAIN, PLAIN.index(b"\xff\xda") + 5, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn(name):
    assert head_of(PLAIN) is not None
    assert head_of(DRAWN[name]) is None


def test_every_cut_head_is_refused():
    length = head_of(PLAIN).length
    assert all(picture_head(PLAIN[:at], PLAIN[-8:], COLOUR) is None for at in range(length))
    assert picture_head(PLAIN[:length], PLAIN[-8:], COLOUR) is not None


def test_altered_heads_are_refused_or_say_the_same():
    """Changes a byte at a time: a changed head is refused, or has the same size and colours."""
    length, random = head_of(PLAIN).length, np.random.default_rng(5)
    for at in range(length):
        frame = changed(PLAIN, at, int(random.integers(256)))
        found = head_of(frame)
        if found is None:
            continue
        opened = browsers(frame)
        assert (opened.size, opened.mode) == ((COLOUR.columns, COLOUR.rows), "RGB")


# Datasets


@pytest.mark.parametrize(
    ("info", "unchanged"),
    [
        (GREY_8, True),
        (FrameInfo(64, 80, photometric_interpretation="MONOCHROME1"), False),
        (FrameInfo(64, 80, photometric_interpretation="PALETTE COLOR"), False),
        (FrameInfo(64, 80, pixel_representation=1), False),
        (FrameInfo(64, 80, 1, 8, 7, 6), False),
        (FrameInfo(64, 80, 1, 16, 8, 7), False),
        (COLOUR, True),
        (FrameInfo(64, 80, 3, photometric_interpretation="YBR_FULL"), True),
        (RGB, False),
        (FrameInfo(64, 80, 3, photometric_interpretation="YBR_PARTIAL_422"), False),
        (FrameInfo(64, 80, 3, photometric_interpretation="YBR_ICT"), False),
        (FrameInfo(64, 80, 3, 16, 12, 11, photometric_interpretation="YBR_FULL"), False),
    ],
)
def test_datasets(info, unchanged):
    assert is_unchanged(info, AS_STORED) is unchanged


@pytest.mark.parametrize(
    ("rendering", "unchanged"),
    [
        (Rendering(window=Window(128, 256)), True),
        (Rendering(window=Window(127.5, 255, "LINEAR_EXACT")), True),
        (Rendering(padding=(0, 3)), True),
        (Rendering(slope=2.0), True),  # without a window all that there is fills the screen
        (Rendering(window=Window(127, 255)), False),
        (Rendering(window=Window(127.5, 255, "SIGMOID")), False),
        (Rendering(slope=2.0, window=Window(128, 256)), False),
        (Rendering(intercept=1.0, window=Window(128, 256)), False),
        (Rendering(inverse=True), False),
        (Rendering(voi_lut=Lut.of(0, range(256), 8)), True),
        (Rendering(voi_lut=Lut.of(0, [0, 255], 8)), False),
        (Rendering(modality_lut=Lut.of(0, [5] * 256, 8)), False),
    ],
)
def test_renderings(rendering, unchanged):
    assert is_unchanged(GREY_8, rendering) is unchanged
    values = np.arange(256, dtype="u1")
    image = pictures.displayable(values.tobytes(), FrameInfo(16, 16), rendering)
    assert np.array_equal(image.ravel(), values) is unchanged
    assert is_unchanged(COLOUR, rendering)  # grey values only


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pydicoms_files():
    """A frame that is sent unchanged looks the same when it is drawn; any other frame is drawn."""
    shown, others = set(), set()
    for path in dicom_files():
        try:
            dataset = pydicom.dcmread(path)
            syntax = dataset.file_meta.TransferSyntaxUID
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue
        if syntax not in (BASELINE, EXTENDED):
            continue
        info = info_of(dataset)
        for frame in frames_of(dataset, info, encapsulated=True)[:3]:
            if is_unchanged(info, AS_STORED) and head_of(frame, info):
                shown.add(path.name)
                assert same(frame, info, syntax), path.name
            else:
                others.add(path.name)
    assert not shown & others
    assert len(shown) >= 9
    assert {"SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "examples_ybr_color.dcm"} <= shown
    assert {"JPEG-lossy.dcm", "SC_rgb_jpeg.dcm", "SC_jpeg_no_color_transform.dcm"} <= others


# Colour profiles


@pytest.mark.parametrize("length", [1, 3144, 65_519, 65_520, 200_000])
def test_a_profile_is_put_in(length):
    profile = np.random.default_rng(length).bytes(length)
    at = head_of(PLAIN).profile_at
    added = b"".join(marker + profile[start : start + size] for marker, start, size in profile_parts(length))
    frame = PLAIN[:at] + added + PLAIN[at:]
    opened = browsers(frame)
    assert opened.info["icc_profile"] == profile
    assert "jfif" in opened.info
    assert np.array_equal(np.asarray(opened), np.asarray(browsers(PLAIN)))


def test_profiles_that_have_no_place():
    assert profile_parts(0) == []
    assert profile_parts(255 * 65_519)
    assert profile_parts(255 * 65_519 + 1) == []


def test_heads_are_judged_once():
    jpeg_pictures._judged.cache_clear()
    for _ in range(5):
        head_of(PLAIN)
    assert jpeg_pictures._judged.cache_info().misses == 1

"""Rendered resources and thumbnails without HTTP: what is drawn is what pydicom says, and who asks how gets
what."""

import io
import json
from contextlib import closing

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageCms
from pixel_world import (
    DEFLATED,
    JPEG_LS,
    KINDS,
    LITTLE,
    PALETTE,
    RLE,
    Kind,
    arrays_of,
    image,
    opened,
    stored_as,
)
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from retrieve_world import (
    POOL,
    SERIES,
    STUDY,
    ask,
    dataset_of,
    header,
    instance_path,
    keep,
    part10,
    parts_of,
    payload,
)

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool.pool import PoolLimits
from framecodecs.rendering.fonts import find_fonts
from framecodecs.rendering.lettering import Notes
from framecodecs.rendering.rendering import Window
from streamsrv.errors import BadRequest, NotAcceptable, NotFound, Overloaded
from streamsrv.pixels import description as pixels
from streamsrv.pixels import rendering as rendered
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.viewing import RenderingParameters, picture_request, rendering_parameters
from streamsrv.retrieve import pictures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ONE = instance_path("1.2.3.4.1")
LEVELS = [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", ONE]
GREY = Kind(rows=60, columns=80)


def stored(store, dataset, syntax=LITTLE, frames=None):
    keep(store, stored_as(dataset, syntax, frames))


def picture_of(content):
    opened_picture = Image.open(io.BytesIO(content))
    opened_picture.load()
    return opened_picture


def picture(store, path, accept="image/png"):
    answer = ask(store, path, accept=accept)
    assert header(answer, "content-type") == accept
    return picture_of(payload(answer))


def by_pydicom(dataset, values):
    """What pydicom draws, stretched to 8 bits."""
    shown = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(float)
    if "VOILUTSequence" in dataset:
        low, high = 0, (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    else:
        low, high = output_range(dataset)
    grey = (shown - low) / (high - low) * 255
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def output_range(dataset):
    """To which apply_voi_lut maps a window (its own rule: the range of the stored bits, rescaled)."""
    bits = dataset.BitsStored
    low, high = (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)
    )
    slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    if "ModalityLUTSequence" in dataset:
        return 0, (1 << dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if "RescaleSlope" in dataset:
        return low * slope + intercept, high * slope + intercept
    return low, high


def lut(first, entries, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return Sequence([item])


ROOT = np.round(np.sqrt(np.arange(4096) / 4095) * 65535)
SHOWN = {
    "window": {"WindowCenter": 2000, "WindowWidth": 900},
    "first of two windows": {"WindowCenter": [1500, 10], "WindowWidth": [3000, 20]},
    "exact": {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
    "rescaled": {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 3000, "WindowWidth": 4000},
    "VOI LUT": {"VOILUTSequence": lut(0, ROOT, 16)},
    "VOI LUT and window": {"VOILUTSequence": lut(0, ROOT, 16), "WindowCenter": 5, "WindowWidth": 9},
    "short VOI LUT": {"VOILUTSequence": lut(1000, ROOT[::4] // 64, 10)},
    "modality LUT": {"ModalityLUTSequence": lut(0, ROOT, 16), "WindowCenter": 30000, "WindowWidth": 50000},
}


@pytest.mark.parametrize("how", SHOWN)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_rendered_is_what_pydicom_draws(store, how, photometric):
    kind = Kind(photometric, rows=60, columns=80)
    arrays = arrays_of(kind, 1)
    dataset = image(kind, arrays, **SHOWN[how])
    stored(store, dataset)
    drawn = np.asarray(picture(store, f"{ONE}/rendered"), float)
    assert np.abs(drawn - by_pydicom(dataset, arrays[0])).max() <= 1
    assert np.unique(drawn).size > 10


def test_signed_pixels_compressed(store):
    kind = KINDS["signed 16"]
    arrays = arrays_of(kind, 1)
    dataset = image(kind, arrays, WindowCenter=-4000, WindowWidth=30000)
    expected = by_pydicom(dataset, arrays[0])
    stored(store, dataset, DEFLATED)
    drawn = np.asarray(picture(store, f"{ONE}/rendered"), float)
    assert np.abs(drawn - expected).max() <= 1


def test_a_window_of_the_query_wins(store):
    arrays = arrays_of(GREY, 1)
    stored(store, image(GREY, arrays, VOILUTSequence=lut(0, ROOT, 16), WindowCenter=5, WindowWidth=9))
    for function, name in (("linear", "LINEAR"), ("linear-exact", "LINEAR_EXACT"), ("sigmoid", "SIGMOID")):
        asked = image(GREY, arrays, WindowCenter=1800.5, WindowWidth=700, VOILUTFunction=name)
        drawn = np.asarray(picture(store, f"{ONE}/rendered?window=1800.5,700,{function}"), float)
        assert np.abs(drawn - by_pydicom(asked, arrays[0])).max() <= 1


def groups(**attributes):
    item = Dataset()
    for keyword, values in attributes.items():
        inner = Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(item, keyword, Sequence([inner]))
    return item


def enhanced(arrays):
    """A window a frame, one rescale for all."""
    dataset = image(GREY, arrays)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -100, "RescaleType": "HU"}
    dataset.SharedFunctionalGroupsSequence = [groups(PixelValueTransformationSequence=rescale)]
    dataset.PerFrameFunctionalGroupsSequence = [
        groups(FrameVOILUTSequence={"WindowCenter": 1000 + 300 * number, "WindowWidth": 500})
        for number in range(len(arrays))
    ]
    return dataset


@pytest.mark.parametrize("longest", [1, 4 << 20])
def test_windows_of_frames(store, monkeypatch, longest):
    monkeypatch.setattr(pixels, "WHOLE", longest)
    arrays = arrays_of(GREY, 4)
    stored(store, enhanced(arrays))
    flat = image(GREY, arrays, RescaleSlope=1, RescaleIntercept=-100)
    found = parts_of(ask(store, f"{ONE}/rendered", accept='multipart/related; type="image/png"'))
    assert len(found) == 4
    for number, (_, content) in enumerate(found):
        flat.WindowCenter, flat.WindowWidth = 1000 + 300 * number, 500
        drawn = np.asarray(picture_of(content), float)
        assert np.abs(drawn - by_pydicom(flat, arrays[number])).max() <= 1
    animation = picture(store, f"{ONE}/rendered", "image/gif")
    animation.seek(3)
    assert np.abs(np.asarray(animation.convert("L"), float) - drawn).max() <= 2


def test_one_inversion_is_enough(store):
    """MONOCHROME1 and Presentation LUT Shape INVERSE go together (PS3.3 C.8.11.3)."""
    arrays = arrays_of(GREY, 1)
    shown = {}
    for number, (photometric, shape) in enumerate(
        [
            ("MONOCHROME2", "IDENTITY"),
            ("MONOCHROME2", "INVERSE"),
            ("MONOCHROME1", "INVERSE"),
            ("MONOCHROME1", ""),
        ]
    ):
        kind = Kind(photometric, rows=60, columns=80)
        window = {"WindowCenter": 2000, "WindowWidth": 4000}
        stored(store, image(kind, arrays, f"1.2.3.4.{number}", PresentationLUTShape=shape, **window))
        shown[photometric, shape] = np.asarray(
            picture(store, f"{instance_path(f'1.2.3.4.{number}')}/rendered")
        )
    plain = shown.pop(("MONOCHROME2", "IDENTITY"))
    assert all(np.array_equal(255 - plain, inverse) for inverse in shown.values())


def test_palette(store):
    kind = KINDS["palette"]
    arrays = arrays_of(kind, 1)
    stored(store, image(kind, arrays))
    drawn = np.asarray(picture(store, f"{ONE}/rendered"))
    assert np.array_equal(drawn, np.stack([table[arrays[0]] >> 8 for table in PALETTE], -1))


@pytest.mark.parametrize("name", ["RGB", "RGB by plane", "YBR_FULL"])
def test_colours(store, name):
    kind = KINDS[name]
    arrays = arrays_of(kind, 1)
    stored(store, image(kind, arrays))
    drawn = np.asarray(picture(store, f"{ONE}/rendered"), float)
    rgb = arrays[0]
    if name == "YBR_FULL":
        rgb = pydicom.pixels.convert_color_space(rgb, "YBR_FULL", "RGB")
    assert np.abs(drawn - rgb).max() <= 1


def test_shared_chrominance(store):
    pairs = np.array([[[50, 60, 90, 200], [200, 210, 128, 128]]], "u1")
    dataset = image(Kind("YBR_FULL", 8, 8, rows=1, columns=4), np.zeros((1, 1, 4, 3), "u1"))
    dataset.PhotometricInterpretation, dataset.PixelData = "YBR_FULL_422", pairs.tobytes()
    stored(store, dataset)
    drawn = np.asarray(picture(store, f"{ONE}/rendered"), float)
    full = pairs[..., [[0, 2, 3], [1, 2, 3]]].reshape(1, 4, 3)
    assert np.abs(drawn - pydicom.pixels.convert_color_space(full, "YBR_FULL", "RGB")).max() <= 1


# Query parameters


def test_viewport(store):
    kind = KINDS["RGB"]
    arrays = arrays_of(kind, 1)
    stored(store, image(kind, arrays))
    assert picture(store, f"{ONE}/rendered?viewport=17,100").size == (17, 20)
    assert picture(store, f"{ONE}/rendered?viewport=340,400").size == (340, 400)
    part = np.asarray(picture(store, f"{ONE}/rendered?viewport=10,12,5,6,10,12"))
    assert np.array_equal(part, arrays[0][6:18, 5:15])
    turned = np.asarray(picture(store, f"{ONE}/rendered?viewport=10,12,5,6,-10,12"))
    assert np.array_equal(turned, part[:, ::-1])
    rest = np.asarray(picture(store, f"{ONE}/rendered?viewport=14,20,20,20,,"))
    assert np.array_equal(rest, arrays[0][20:, 20:])


def test_quality(store):
    stored(store, image(GREY, arrays_of(GREY, 1)))
    sizes = [
        len(payload(ask(store, f"{ONE}/rendered?quality={q}", accept="image/jpeg"))) for q in (5, 60, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("viewport=", "viewport"),
        ("viewport=1", "viewport"),
        ("viewport=1,2,3", "viewport"),
        ("viewport=0,5", "viewport"),
        ("viewport=5,99999", "viewport"),
        ("viewport=5,5,-1,0,5,5", "viewport"),
        ("viewport=5,5,0,0,0,5", "viewport"),
        ("viewport=a,b", "viewport"),
        ("viewport=1e99,1", "viewport"),
        ("viewport=,5", "viewport"),
        ("viewport=5.5,5", "viewport"),
        ("viewport=5,-5", "viewport"),
        ("viewport=5,1e1", "viewport"),
        ("window=", "window"),
        ("window=5", "window"),
        ("window=5,0,linear", "window"),
        ("window=nan,5,linear", "window"),
        ("window=5,5,cubic", "window"),
        ("window=5,5", "window"),
        ("window=5,5,", "window"),
        ("window=,5,linear", "window"),
        ("window=5,,linear", "window"),
        ("window=5,5,LINEAR", "window"),
        ("window=5,5,linear,1", "window"),
        (f"window={'9' * 400},5,linear", "window"),
        ("quality=0", "quality"),
        ("quality=101", "quality"),
        ("quality=high", "quality"),
        (f"quality={'9' * 6000}", "quality"),
        ("iccprofile=mine", "iccprofile"),
        ("annotation=", "annotation"),
        ("annotation=doctor", "annotation"),
        ("annotation=patient,,technique", "annotation"),
    ],
)
@pytest.mark.parametrize("resource", ["rendered", "thumbnail"])
def test_parameters_without_sense_are_named(store, query, named, resource):
    stored(store, image(GREY, arrays_of(GREY, 1)))
    with pytest.raises(BadRequest, match=f"parameter {named} "):
        ask(store, f"{ONE}/{resource}?{query}", accept="image/jpeg")


def test_a_region_outside_the_image(store):
    stored(store, image(GREY, arrays_of(GREY, 1)))
    with pytest.raises(BadRequest):
        ask(store, f"{ONE}/rendered?viewport=5,5,500,500,5,5", accept="image/jpeg")


def test_numbers_of_parameters():
    assert rendering_parameters((("window", ".5,+1e2,sigmoid"),)).window.width == 100
    assert rendering_parameters((("quality", "007"),)).quality == 7


def annotated_dataset(kind=GREY, frames=1):
    dataset = image(kind, arrays_of(kind, frames), NumberOfFrames=frames)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = "Yamada^Tarou^^Dr=山田^太郎", "P 17"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate = "19600229", "M", "20240131"
    dataset.StudyTime, dataset.StudyDescription = "101500.123", "Thorax"
    dataset.KVP, dataset.SliceThickness, dataset.SliceLocation = "120", "1.50", "-1250.5"
    dataset.SeriesNumber, dataset.InstanceNumber = "4", "12"
    dataset.WindowCenter, dataset.WindowWidth = [40, -600], [400, 1200]
    return dataset


def notes(store, dataset, kinds, index=0, **wished):
    stored(store, dataset)
    (row,) = store.lookup(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    description = pixels.description_of(store.metadata([row]), row.metadata_length)
    wishes = RenderingParameters(annotations=kinds, **wished)
    return picture_request(description, index, wishes, "image/png", lambda path: b"").notes


def test_annotations_say_who_and_how(store):
    made = notes(store, annotated_dataset(frames=3), ("patient", "technique"), 1)
    assert made.upper == (
        "Yamada, Tarou Dr\t山田 太郎",
        "ID P 17",
        "born 1960-02-29  M",
        "Study 2024-01-31  10:15  Thorax",
    )
    assert made.lower == (
        "OT",
        "Series 4  image 12  frame 2 of 3",
        "120 kV  slice 1.5 mm  at -1250.5 mm",
        "W 400  C 40",
    )


def test_annotations_name_the_window_that_is_shown(store):
    made = notes(store, annotated_dataset(), ("technique",), window=Window(50.5, 350, "LINEAR"))
    assert made.upper == ()
    assert made.lower[-1] == "W 350  C 50.5"


def test_what_is_absent_is_not_annotated(store):
    dataset = image(GREY, arrays_of(GREY, 1))
    dataset.PatientName = dataset.PatientID = None
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in dataset:
            delattr(dataset, keyword)
    assert notes(store, dataset, ("patient", "technique")) == Notes((), ("OT",))


def test_annotations_are_drawn_by_request_alone(store):
    stored(store, annotated_dataset(Kind(rows=200, columns=200)))
    plain = np.asarray(picture(store, f"{ONE}/rendered"))
    drawn = {
        query: np.asarray(picture(store, f"{ONE}/rendered?annotation={query}"))
        for query in ("patient", "technique", "technique,patient", "patient,technique")
    }
    above, below = (drawn[query] != plain for query in ("patient", "technique"))
    assert above[:100].any()
    assert not above[130:].any()
    assert below[100:].any()
    assert not below[:70].any()
    assert np.array_equal(drawn["technique,patient"], drawn["patient,technique"])
    tags = {
        header(ask(store, f"{ONE}/rendered{query}", accept="image/png"), "etag")
        for query in ("", "?annotation=patient", "?annotation=technique")
    }
    assert len(tags) == 3
    assert np.array_equal(np.asarray(picture(store, f"{ONE}/thumbnail?annotation=patient")), plain)


def test_the_fonts_are_part_of_the_entity_tag(store):
    stored(store, annotated_dataset(Kind(rows=200, columns=200)))
    (font,) = find_fonts(())
    found = []
    for fonts in ((), (font,)):
        with closing(PixelPool(1, PoolLimits(fonts=fonts))) as pool:
            answers = [
                ask(store, f"{ONE}/rendered{query}", accept="image/png", pool=pool)
                for query in ("", "?annotation=patient")
            ]
            found.append([(header(answer, "etag"), payload(answer)) for answer in answers])
    (plain, without), (same, written) = found
    assert plain == same
    assert without[0] != written[0]
    assert without[1] != written[1]


def test_icc_profile(store):
    kind = KINDS["RGB"]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    stored(store, image(kind, arrays_of(kind, 1)))
    stored(store, image(kind, arrays_of(kind, 1), "1.2.3.4.2", ICCProfile=profile))

    def profile_of(number, query):
        path = f"{instance_path(f'1.2.3.4.{number}')}/rendered{query}"
        return picture(store, path, "image/jpeg").info.get("icc_profile")

    assert profile_of(1, "") is None
    assert b"RGB XYZ" in profile_of(1, "?iccprofile=yes")
    assert profile_of(1, "?iccprofile=no") is None
    assert profile_of(2, "") == profile_of(2, "?iccprofile=yes") == profile
    assert profile_of(2, "?iccprofile=no") is None


@pytest.mark.parametrize("media_type", ["image/gif", "image/jp2", "image/png", "image/webp"])
def test_types_without_a_place_for_a_profile(store, media_type):
    """PS3.18 8.3.5.1.5"""
    kind = KINDS["RGB"]
    stored(store, image(kind, arrays_of(kind, 2)))
    has_place = media_type in ("image/png", "image/webp")
    for query in ("yes", "srgb"):
        for path in (f"{ONE}/frames/1/rendered", f"{ONE}/rendered", f"/studies/{STUDY}/rendered"):
            asked = media_type if "frames" in path else f'multipart/related; type="{media_type}"'
            if has_place:
                payload(ask(store, f"{path}?iccprofile={query}", accept=asked))
            else:
                with pytest.raises(BadRequest, match="parameter iccprofile "):
                    ask(store, f"{path}?iccprofile={query}", accept=asked)
    assert picture(store, f"{ONE}/frames/1/rendered?iccprofile=no", media_type).size == (34, 40)


def test_a_thumbnail_has_no_region(store):
    """PS3.18 8.3.5.1.3"""
    stored(store, image(GREY, arrays_of(GREY, 1)))
    for path in (f"{ONE}/thumbnail", f"/studies/{STUDY}/thumbnail"):
        with pytest.raises(BadRequest, match="parameter viewport "):
            ask(store, f"{path}?viewport=9,9,0,0,5,5", accept="image/jpeg")
        assert picture(store, f"{path}?viewport=20,20,,,,", "image/jpeg").size == (20, 15)


# Who asks for what


@pytest.mark.parametrize("level", LEVELS)
def test_several_frames_are_parts_in_order(store, level):
    arrays = arrays_of(GREY, 3)
    stored(store, image(GREY, arrays, WindowCenter=2000, WindowWidth=4000))
    found = parts_of(ask(store, f"{level}/rendered"))
    assert [headers["content-type"] for headers, _ in found] == ["image/jpeg"] * 3
    assert [headers["content-location"] for headers, _ in found] == [
        f"http://h/v2{ONE}/frames/{number}/rendered" for number in (1, 2, 3)
    ]
    for (_, content), values in zip(found, arrays, strict=True):
        assert np.abs(np.asarray(picture_of(content), float) - values / 4095 * 255).mean() < 4


def test_frame_lists_keep_order_and_repeats(store):
    stored(store, image(GREY, arrays_of(GREY, 3), WindowCenter=2000, WindowWidth=4000))
    several = parts_of(
        ask(store, f"{ONE}/frames/3,1,3/rendered", accept='multipart/related; type="image/png"')
    )
    alone = [payload(ask(store, f"{ONE}/frames/{n}/rendered", accept="image/png")) for n in (3, 1, 3)]
    assert [content for _, content in several] == alone
    assert alone[0] != alone[1]
    for path in ("frames/4/rendered", "frames/1,4/rendered", "frames/4/thumbnail"):
        with pytest.raises(NotFound):
            ask(store, f"{ONE}/{path}", accept="*/*")


def test_instances_without_pixels_are_left_out(store):
    report = dataset_of("1.2.3.4.2")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    keep(store, part10(report))
    for path in (
        f"/studies/{STUDY}/rendered",
        f"{instance_path('1.2.3.4.2')}/rendered",
        f"{LEVELS[1]}/thumbnail",
    ):
        with pytest.raises(NotAcceptable):
            ask(store, path)
    for path in ("frames/1/rendered", "frames/1/thumbnail"):
        with pytest.raises(NotFound):
            ask(store, f"{instance_path('1.2.3.4.2')}/{path}")
    stored(store, image(GREY, arrays_of(GREY, 1)))
    assert len(parts_of(ask(store, f"/studies/{STUDY}/rendered"))) == 1
    assert header(ask(store, f"/studies/{STUDY}/thumbnail"), "content-type") == "image/jpeg"


def test_animation(store):
    arrays = arrays_of(GREY, 6)
    stored(store, image(GREY, arrays, FrameTime=100, WindowCenter=2000, WindowWidth=4000))
    shown = picture(store, f"{ONE}/rendered", "image/gif")
    assert (shown.n_frames, shown.info["duration"], shown.info["loop"]) == (6, 100, 0)
    shown = picture(store, f"{ONE}/frames/2,5/rendered", "image/gif")
    assert shown.n_frames == 2


@pytest.mark.parametrize("odd", ["nan", "inf", "-inf", "1e400"])
def test_numbers_that_are_none_say_nothing(store, odd):
    """Neither in a loop's times nor in the way of a grey value."""
    arrays = arrays_of(GREY, 2)
    dataset = image(GREY, arrays, WindowCenter=2000, WindowWidth=4000)
    plain = image(GREY, arrays, "1.2.3.4.2", WindowCenter=2000, WindowWidth=4000)
    for keyword in (
        "FrameTime",
        "CineRate",
        "RecommendedDisplayFrameRate",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        dataset.add_new(keyword, "LO", odd)
    stored(store, dataset)
    stored(store, plain)
    shown = picture(store, f"{ONE}/rendered", "image/gif")
    assert (shown.n_frames, shown.info["duration"]) == (2, 40)
    drawn, expected = (
        np.asarray(picture(store, f"{instance_path(f'1.2.3.4.{number}')}/frames/1/rendered"))
        for number in (1, 2)
    )
    assert np.array_equal(drawn, expected)
    assert np.unique(drawn).size > 10


def test_several_instances_are_no_animation(store):
    stored(store, image(GREY, arrays_of(GREY, 2)))
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"/studies/{STUDY}/rendered", accept="image/gif")
    assert 'multipart/related; type="image/gif"' in refusal.value.acceptable
    assert len(parts_of(ask(store, f"/studies/{STUDY}/rendered", accept="image/gif, */*;q=0.1"))) == 2


def test_a_long_animation_is_shown_in_the_same_time(store, monkeypatch):
    monkeypatch.setattr(pictures, "ANIMATED_FRAMES", 3)
    stored(store, image(GREY, arrays_of(GREY, 12), FrameTime=50, WindowCenter=2000, WindowWidth=4000))
    shown = picture(store, f"{ONE}/rendered", "image/gif")
    assert (shown.n_frames, shown.info["duration"]) == (3, 200)
    assert pictures.spaced(range(10), 3) == [0, 3, 6]
    assert pictures.spaced(range(2), 3) == [0, 1]


LIMIT = 16 << 20


@pytest.mark.parametrize("resource", ["rendered", "thumbnail", "frames/2/rendered", "frames/2/thumbnail"])
def test_a_viewport_of_too_many_pixels_is_refused(store, resource):
    stored(store, image(Kind(rows=60, columns=60), arrays_of(Kind(rows=60, columns=60), 2)))
    for viewport in ("8000,8000", "4097,4097", "8000,8000,0,0,3,3"):
        if resource.endswith("thumbnail") and viewport.count(",") > 1:
            continue
        with pytest.raises(BadRequest, match=f"parameter viewport .*{LIMIT}"):
            ask(store, f"{ONE}/{resource}?viewport={viewport}", accept="image/jpeg")
    with pytest.raises(BadRequest, match=f"parameter viewport .*{4 * LIMIT}"):
        ask(store, f"{ONE}/rendered?viewport=8000,8000", accept="image/gif")


def test_a_study_is_refused_a_viewport_of_too_many_pixels_for_one_of_its_instances(store):
    """Proportions are kept, so that the same viewport may do for another one."""
    narrow, square = Kind(rows=60, columns=2), Kind(rows=60, columns=60)
    stored(store, image(narrow, arrays_of(narrow, 1)))
    assert len(parts_of(ask(store, f"/studies/{STUDY}/rendered?viewport=6000,6000"))) == 1
    stored(store, image(square, arrays_of(square, 1), "1.2.3.4.2"))
    with pytest.raises(BadRequest, match=f"parameter viewport .*6000 x 6000 .*{LIMIT}"):
        ask(store, f"/studies/{STUDY}/rendered?viewport=6000,6000")


def test_a_frame_that_is_larger_than_the_limit_is_drawn(store, monkeypatch):
    monkeypatch.setattr(POOL, "max_rendered_pixels", 1000)
    stored(store, image(GREY, arrays_of(GREY, 3), FrameTime=50))
    assert picture(store, f"{ONE}/frames/1/rendered").size == (80, 60)
    assert picture(store, f"{ONE}/frames/1/rendered?viewport=80,80").size == (80, 60)
    with pytest.raises(BadRequest, match="parameter viewport"):
        ask(store, f"{ONE}/frames/1/rendered?viewport=81,81", accept="image/png")
    shown = picture(store, f"{ONE}/rendered", "image/gif")
    assert (shown.n_frames, shown.size) == (1, (80, 60))
    shown = picture(store, f"{ONE}/rendered?viewport=40,40", "image/gif")
    assert (shown.n_frames, shown.size, shown.info["duration"]) == (3, (40, 30), 50)
    shown = picture(store, f"{ONE}/rendered?viewport=60,60", "image/gif")
    assert shown.n_frames == 1
    with pytest.raises(BadRequest, match=r"parameter viewport .*3 frames of 88 x 66 pixels"):
        ask(store, f"{ONE}/rendered?viewport=88,88", accept="image/gif")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{ONE}/rendered?accept=image/jpeg", 'multipart/related; type="application/octet-stream"'),
        (f"{ONE}/thumbnail?accept=image/jpeg", "image/jxl,image/avif,image/webp,*/*;q=0.8"),
        (f"{ONE}/thumbnail?viewport=256,256", "image/jpeg"),
        (f"{LEVELS[1]}/thumbnail?viewport=256,256", "image/jpeg"),
        (f"{ONE}/thumbnail", "image/avif,image/webp,image/apng,*/*;q=0.8"),
    ],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_what_viewers_ask_for(store, path, accept, frames):
    stored(store, image(GREY, arrays_of(GREY, frames)))
    answer = ask(store, path, accept=accept)
    assert (answer.status, header(answer, "content-type")) == (200, "image/jpeg")
    assert answer.length
    picture_of(payload(answer))


@pytest.mark.parametrize("path", [f"{level}/thumbnail" for level in LEVELS] + [f"{ONE}/frames/2/thumbnail"])
def test_thumbnails_are_small(store, path):
    kind = Kind(rows=500, columns=300)
    stored(store, image(kind, arrays_of(kind, 3)))
    assert picture(store, path, "image/jpeg").size == (120, 200)
    assert picture(store, f"{path}?viewport=64,64", "image/png").size == (38, 64)


def test_the_middle_stands_for_all(store):
    for number in range(1, 6):
        level = np.full((1, 60, 80), 700 * number, "u2")
        stored(store, image(GREY, level, f"1.2.3.4.{number}", WindowCenter=2048, WindowWidth=4096))
    drawn = np.asarray(picture(store, f"/studies/{STUDY}/thumbnail"))
    assert abs(int(drawn.mean()) - 2100 * 255 // 4095) <= 1


def test_a_slide_is_shown_by_its_overview(store):
    kind = Kind("RGB", 8, 8, rows=20, columns=20)
    for number, (flavour, level, frames) in enumerate(
        [("LABEL", 10, 1), ("VOLUME", 60, 4), ("VOLUME", 110, 1), ("THUMBNAIL", 160, 1), ("VOLUME", 210, 9)]
    ):
        dataset = image(kind, np.full((frames, 20, 20, 3), level, "u1"), f"1.2.3.4.{number}")
        dataset.SOPClassUID = rendered.WHOLE_SLIDE
        dataset.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
        stored(store, dataset)
    assert np.asarray(picture(store, f"{LEVELS[1]}/thumbnail")).mean() == 160
    store.delete(STUDY, SERIES, "1.2.3.4.3")
    assert np.asarray(picture(store, f"{LEVELS[1]}/thumbnail")).mean() == 110


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("query", "accept"),
    [("", None), ("", BROWSER), ("?accept=application/pdf", BROWSER), ("", "application/pdf"), ("", "*/*")],
)
@pytest.mark.parametrize("length", [901, 5001])
def test_a_document_is_shown_as_pdf(store, query, accept, length):
    document = b"%PDF-1.7" + bytes(length - 8)
    dataset = dataset_of("1.2.3.4.1")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    dataset.EncapsulatedDocument, dataset.EncapsulatedDocumentLength = document + b"\0", length
    keep(store, part10(dataset))
    headers = {"accept": accept} if accept else {}
    answer = ask(store, f"{ONE}/rendered{query}", **headers)
    assert header(answer, "content-type") == "application/pdf"
    assert payload(answer) in (document, document + b"\0" * (length < 1024))
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"{ONE}/rendered", accept="image/jpeg")
    assert "application/pdf" in refusal.value.acceptable
    with pytest.raises(NotFound):
        ask(store, f"{ONE}/frames/1/rendered")


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/gif", "image/webp", "image/jp2"])
def test_every_type_of_picture(store, media_type):
    kind = KINDS["RGB"]
    stored(store, image(kind, arrays_of(kind, 1)))
    assert picture(store, f"{ONE}/rendered", media_type).size == (34, 40)
    with pytest.raises(NotAcceptable) as refusal:
        ask(store, f"{ONE}/rendered", accept="image/tiff")
    assert media_type in refusal.value.acceptable


def test_broken_pixels_are_not_acceptable(store):
    kind = KINDS["8 bit"]
    stored(store, image(kind, arrays_of(kind, 1)), JPEG_LS, [b"\xff\xd8 no JPEG-LS"])
    for path in (f"{ONE}/rendered", f"{ONE}/thumbnail", f"/studies/{STUDY}/rendered"):
        with pytest.raises(NotAcceptable):
            ask(store, path)


@pytest.mark.parametrize(
    ("entries", "bits", "length", "used"),
    [
        (256, 8, 256, True),  # in bytes
        (255, 8, 256, True),  # in bytes, padded
        (256, 8, 512, True),
        (256, 8, 300, True),
        (256, 8, 254, False),
        (256, 16, 256, False),
        (256, 16, 300, False),
        (256, 99, 256, False),
        (256, 99, 512, False),
    ],
)
@pytest.mark.parametrize("table", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_of_odd_lengths(store, table, entries, bits, length, used):
    """Inverted ones; one that is too short says nothing."""
    kind = Kind(allocated=8, stored=8)
    item = Dataset()
    values = np.arange(entries)[::-1].astype("u1" if length < 2 * entries else "<u2").tobytes()
    item.add_new("LUTDescriptor", "US", [entries, 0, bits])
    item.add_new("LUTData", "OW", values[:length].ljust(length, b"\0"))
    arrays = arrays_of(kind, 1)
    dataset = image(kind, arrays, WindowCenter=128, WindowWidth=256)
    if table == "VOILUTSequence":
        del dataset.WindowCenter
    setattr(dataset, table, Sequence([item]))
    stored(store, dataset)
    drawn = np.asarray(picture(store, f"{ONE}/rendered"), int)
    expected = np.maximum(entries - 1 - arrays[0].astype(int), 0) if used else arrays[0].astype(int)
    assert np.abs(drawn - expected).max() <= 1


def test_values_without_sense_cost_no_picture(store):
    """A window, a rescale and a LUT that say nothing; a palette that is not there is a 400."""
    dataset = image(GREY, arrays_of(GREY, 1))
    dataset.add_new("WindowCenter", "LO", "middle")
    dataset.add_new("WindowWidth", "LO", "wide")
    dataset.add_new("RescaleSlope", "LO", "steep")
    dataset.add_new("VOILUTSequence", "LO", "no sequence")
    dataset.add_new("ModalityLUTSequence", "SQ", [Dataset()])
    dataset.add_new("PixelPaddingValue", "LO", "black")
    dataset.add_new("SharedFunctionalGroupsSequence", "LO", "none")
    dataset.add_new("FrameTime", "LO", "slow")
    with pydicom.config.disable_value_validation():
        stored(store, dataset)
    assert picture(store, f"{ONE}/rendered", "image/jpeg").size == (80, 60)
    assert opened(payload(ask(store, ONE, accept="application/dicom; transfer-syntax=*"))).Rows == 60
    bare = image(Kind("PALETTE COLOR", 8, 8), arrays_of(KINDS["8 bit"], 1), "1.2.3.4.2")
    del bare.RedPaletteColorLookupTableDescriptor
    stored(store, bare, RLE, [b"\0" * 64])
    with pytest.raises((BadRequest, NotAcceptable)):
        ask(store, f"{instance_path('1.2.3.4.2')}/rendered")


# Frames that cannot be drawn, among others


def codestreams(kind, count, broken):
    info = FrameInfo(kind.rows, kind.columns)
    made = [registry.encode(one.tobytes(), JPEG_LS, info)[0] for one in arrays_of(kind, count)]
    return [one[: len(one) // 3] if index in broken else one for index, one in enumerate(made)]


def stored_broken(store, count, broken, instance="1.2.3.4.1"):
    kind = KINDS["8 bit"]
    dataset = image(kind, arrays_of(kind, count), instance)
    stored(store, dataset, JPEG_LS, codestreams(kind, count, broken))


def told(answer):
    """The type and URL of each part, and its payload."""
    found = parts_of(answer, besides=["application/problem+json"])
    return [(head["content-type"], head["content-location"], body) for head, body in found]


@pytest.mark.parametrize("broken", [{0}, {5}, {39}, {0, 1, 2, 33, 34}])
def test_a_frame_that_cannot_be_drawn_costs_its_own_part(store, broken):
    stored_broken(store, 40, broken)
    found = told(ask(store, f"{ONE}/rendered"))
    assert [url for _, url, _ in found] == [
        f"http://h/v2{ONE}/frames/{number}/rendered" for number in range(1, 41)
    ]
    for index, (media_type, _, body) in enumerate(found):
        if index in broken:
            assert media_type == "application/problem+json"
            problem = json.loads(body)
            assert (problem["status"], "instance" in problem) == (406, False)
            assert problem["detail"]
        else:
            assert media_type == "image/jpeg"
            assert picture_of(body).size == (34, 40)
    again = told(ask(store, f"{ONE}/rendered"))
    assert again == found


def test_an_instance_that_cannot_be_drawn_costs_its_own_parts(store):
    stored_broken(store, 1, {0}, "1.2.3.4.1")
    stored(store, image(GREY, arrays_of(GREY, 1), "1.2.3.4.2"))
    stored_broken(store, 3, {0, 1, 2}, "1.2.3.4.3")
    types = [media_type for media_type, _, _ in told(ask(store, f"/studies/{STUDY}/rendered"))]
    assert types == ["application/problem+json", "image/jpeg"] + ["application/problem+json"] * 3


def test_an_answer_without_any_picture_is_an_error(store):
    stored_broken(store, 40, set(range(40)))
    with pytest.raises(NotAcceptable):
        ask(store, f"{ONE}/rendered")
    with pytest.raises(NotAcceptable):
        ask(store, f"{ONE}/frames/2,3/rendered", accept='multipart/related; type="image/png"')


def test_an_instance_whose_attributes_say_nonsense_costs_its_own_parts(store):
    kind = KINDS["8 bit"]
    odd = image(kind, arrays_of(kind, 2), "1.2.3.4.1")
    odd.BitsStored = 99
    stored(store, odd)
    stored(store, image(GREY, arrays_of(GREY, 1), "1.2.3.4.2"))
    types = [media_type for media_type, _, _ in told(ask(store, f"/studies/{STUDY}/rendered"))]
    assert types == ["application/problem+json"] * 2 + ["image/jpeg"]


def test_what_may_succeed_a_moment_later_ends_the_answer(store, monkeypatch):
    """A part of the same answer is never once a picture and once a problem."""
    stored_broken(store, 2, {1})

    def unavailable(future):
        raise Overloaded("no process can be started", 1)

    monkeypatch.setattr(POOL, "results", unavailable)
    with pytest.raises(Overloaded):
        ask(store, f"{ONE}/rendered")

"""streamsrv/pixels/stored_pictures.py: JPEG that is the picture already goes out as it is stored, and
whatever else is drawn."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from pixel_world import BASELINE, EXTENDED, LITTLE, RLE, Kind, arrays_of, image, stored_as
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from retrieve_world import SERIES, STUDY, ask, computed, header, instance_path, keep, parts_of, payload

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from streamsrv.errors import NotAcceptable
from streamsrv.pixels import stored_pictures
from streamsrv.pixels.pool import PixelPool
from streamsrv.retrieve import rendered_parts
from streamsrv.store.segments.leases import FileLease
from streamsrv.wire.answers import Deferred, Literal, Span

ONE = instance_path("1.2.3.4.1")
COLOUR = Kind("YBR_FULL_422", 8, 8, rows=40, columns=34)
GREY = Kind("MONOCHROME2", 8, 8, rows=40, columns=34)
ANY_PARTS = 'multipart/related; type="image/jpeg"'


def coded(kind, count=1, seed=1, **options):
    shown = Kind("RGB", 8, 8, rows=kind.rows, columns=kind.columns) if kind.samples == 3 else kind
    made = []
    for array in arrays_of(shown, count, seed):
        out = io.BytesIO()
        Image.fromarray(array).save(out, "JPEG", **{"quality": 80, **options})
        made.append(out.getvalue())
    return made


def dataset_of(kind, count=1, instance="1.2.3.4.1", **attributes):
    plain = Kind("RGB", 8, 8, rows=kind.rows, columns=kind.columns) if kind.samples == 3 else kind
    made = image(plain, arrays_of(plain, count), instance, **attributes)
    made.PhotometricInterpretation = kind.photometric
    return made


def stored(store, kind, frames, instance="1.2.3.4.1", syntax=BASELINE, **attributes):
    keep(store, stored_as(dataset_of(kind, len(frames), instance, **attributes), syntax, frames))
    return frames


def got(store, path, accept="image/jpeg", **asked):
    return payload(ask(store, path, accept=accept, **asked))


def opened(content):
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def pixels(content):
    return np.asarray(opened(content).convert("RGB"), int)


def unpadded(frame):
    return frame[: frame.rindex(b"\xff\xd9") + 2]


def is_stored(store, path, frame, **asked):
    return unpadded(got(store, path, **asked)) == frame


@pytest.mark.parametrize("kind", [COLOUR, GREY, Kind("YBR_FULL", 8, 8)], ids=lambda kind: kind.photometric)
@pytest.mark.parametrize("syntax", [BASELINE, EXTENDED])
@pytest.mark.parametrize("accept", ["image/jpeg", "*/*", "image/*", "image/png;q=0.5, image/jpeg"])
def test_a_picture_as_it_is_stored(store, kind, syntax, accept):
    (frame,) = stored(store, kind, coded(kind), syntax=syntax)
    answer = ask(store, f"{ONE}/rendered", accept=accept)
    assert header(answer, "content-type") == "image/jpeg"
    assert all(isinstance(piece, Span) for piece in answer.plan)
    assert unpadded(payload(answer)) == frame
    drawn = pixels(got(store, f"{ONE}/rendered", "image/png"))
    assert np.abs(pixels(frame) - drawn).max() <= 1


@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_of_several(store, fragments):
    frames = coded(COLOUR, 4)
    dataset = dataset_of(COLOUR, 4)
    content = stored_as(dataset, BASELINE, frames)
    if fragments > 1:
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments)
        content = stored_as(dataset, BASELINE)
    keep(store, content)
    for number, frame in enumerate(frames, 1):
        assert is_stored(store, f"{ONE}/frames/{number}/rendered", frame)
        assert is_stored(store, f"{ONE}/frames/{number}/thumbnail", frame)
    assert is_stored(store, f"{ONE}/rendered", frames[0])
    assert is_stored(store, f"{ONE}/thumbnail", frames[2])


@pytest.mark.parametrize("first", [1, 3, 30, 200])
def test_a_head_in_several_fragments(store, first):
    (frame,) = coded(COLOUR)
    frame += b"\0" * (len(frame) % 2)
    cut = first + first % 2
    dataset = dataset_of(COLOUR)
    items = b"".join(
        b"\xfe\xff\x00\xe0" + len(one).to_bytes(4, "little") + one for one in (frame[:cut], frame[cut:])
    )
    content = stored_as(dataset, BASELINE, [frame])
    whole = b"\xfe\xff\x00\xe0" + len(frame).to_bytes(4, "little") + frame
    assert content.count(whole) == 1
    keep(store, content.replace(whole, items))
    assert got(store, f"{ONE}/rendered") == frame
    assert pixels(got(store, f"{ONE}/rendered", "image/png")).shape == (40, 34, 3)


# What HTTP wants of it


def test_validators_and_ranges(store):
    stored(store, COLOUR, coded(COLOUR))
    path = f"{ONE}/frames/1/rendered"
    answer = ask(store, path, accept="image/jpeg")
    etag, whole = header(answer, "etag"), payload(answer)
    assert etag
    assert not etag.startswith("W/")
    assert header(answer, "accept-ranges") == "bytes"
    part = ask(store, path, accept="image/jpeg", range="bytes=10-99", if_range=etag)
    assert (part.status, payload(part)) == (206, whole[10:100])
    known = ask(store, path, accept="image/jpeg", if_none_match=etag)
    assert (known.status, list(known.plan)) == (304, [])
    known.release()
    asked = ask(store, path, accept="image/jpeg", method="HEAD")
    assert (asked.status, asked.length, list(asked.plan)) == (200, len(whole), [])
    assert header(asked, "etag") == etag
    asked.release()
    drawn = ask(store, f"{path}?quality=90", accept="image/jpeg")
    assert header(drawn, "etag") != etag
    assert payload(drawn) != whole
    assert header(answer, "vary") == "Accept"


def test_a_part(store):
    frames = stored(store, COLOUR, coded(COLOUR, 2))
    ((headers, content),) = parts_of(ask(store, f"{ONE}/frames/2/rendered", accept=ANY_PARTS))
    assert unpadded(content) == frames[1]
    assert headers["content-location"].endswith("/frames/2/rendered")


# What is drawn


def lut():
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", bytes(range(255, -1, -1)))
    return Sequence([item])


QUERIES = [
    "quality=90",
    "quality=100",
    "window=128,256,linear",
    "viewport=17,20",
    "viewport=340,400",
    "viewport=34,40,0,0,34,40",
    "viewport=34,40,0,0,-34,40",
    "annotation=patient",
    "iccprofile=srgb",
    "iccprofile=yes",
]


@pytest.mark.parametrize("query", QUERIES)
def test_wishes_that_need_pixels(store, query):
    (frame,) = stored(store, COLOUR, coded(COLOUR))
    assert not is_stored(store, f"{ONE}/rendered?{query}", frame)
    assert is_stored(store, f"{ONE}/rendered", frame)


@pytest.mark.parametrize(
    "query", ["viewport=34,40", "viewport=34,900", "viewport=900,40", "iccprofile=no", "accept=image/jpeg"]
)
def test_wishes_that_do_not(store, query):
    (frame,) = stored(store, COLOUR, coded(COLOUR))
    assert is_stored(store, f"{ONE}/rendered?{query}", frame)


def test_thumbnails_that_need_no_scaling(store):
    small, large = coded(COLOUR), coded(Kind("YBR_FULL_422", 8, 8, rows=300, columns=34))
    stored(store, COLOUR, small)
    stored(store, Kind("YBR_FULL_422", 8, 8, rows=300, columns=34), large, "1.2.3.4.2")
    assert is_stored(store, f"{ONE}/thumbnail", small[0])
    assert is_stored(store, f"{ONE}/thumbnail?viewport=34,99", small[0])
    assert not is_stored(store, f"{ONE}/thumbnail?viewport=64,64", small[0])
    assert opened(got(store, f"{instance_path('1.2.3.4.2')}/thumbnail")).size == (23, 200)
    assert opened(got(store, f"{ONE}/thumbnail", "image/png")).size == (34, 40)


@pytest.mark.parametrize("media_type", ["image/png", "image/gif", "image/webp", "image/jp2"])
def test_other_media_types(store, media_type):
    frames = stored(store, COLOUR, coded(COLOUR, 2))
    answer = ask(store, f"{ONE}/frames/2/rendered", accept=media_type)
    assert header(answer, "content-type") == media_type
    assert np.abs(pixels(payload(answer)) - pixels(frames[1])).mean() < 8


def test_an_animation(store):
    stored(store, COLOUR, coded(COLOUR, 3))
    assert opened(got(store, f"{ONE}/rendered", "image/gif")).n_frames == 3


GREY_SHOWN = {
    "a window over everything": ({"WindowCenter": 128, "WindowWidth": 256}, True),
    "an identical rescale": ({"RescaleSlope": 1, "RescaleIntercept": 0}, True),
    "a shape of identity": ({"PresentationLUTShape": "IDENTITY"}, True),
    "a window": ({"WindowCenter": 60, "WindowWidth": 100}, False),
    "a rescale and a window": (
        {"RescaleSlope": 2, "RescaleIntercept": 0, "WindowCenter": 128, "WindowWidth": 256},
        False,
    ),
    "an inverse shape": ({"PresentationLUTShape": "INVERSE"}, False),
    "a VOI LUT": ({"VOILUTSequence": lut()}, False),
    "a modality LUT": ({"ModalityLUTSequence": lut()}, False),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, False),
    "7 bits": ({"BitsStored": 7, "HighBit": 6}, False),
    "a sign": ({"PixelRepresentation": 1}, False),
}


@pytest.mark.parametrize("how", GREY_SHOWN)
def test_ways_of_grey(store, how):
    """As stored exactly where that is what is drawn."""
    attributes, as_stored = GREY_SHOWN[how]
    dataset = dataset_of(GREY)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    frames = coded(GREY)
    keep(store, stored_as(dataset, BASELINE, frames))
    assert is_stored(store, f"{ONE}/rendered", frames[0]) is as_stored
    drawn = pixels(got(store, f"{ONE}/rendered", "image/png"))
    assert bool(np.abs(drawn - pixels(frames[0])).max() <= 1) is as_stored
    assert np.abs(drawn - pixels(got(store, f"{ONE}/rendered"))).mean() < 4


def test_windows_of_frames(store):
    """Each frame by its own window."""
    dataset = dataset_of(GREY, 3)
    groups = []
    for center, width in ((128, 256), (60, 90), (128, 256)):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, width
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    frames = coded(GREY, 3)
    keep(store, stored_as(dataset, BASELINE, frames))
    found = [
        is_stored(store, f"{ONE}/frames/{number}/rendered", frame) for number, frame in enumerate(frames, 1)
    ]
    assert found == [True, False, True]
    parts = [content for _, content in parts_of(ask(store, f"{ONE}/rendered", accept=ANY_PARTS))]
    assert [unpadded(part) == frame for part, frame in zip(parts, frames, strict=True)] == found
    assert parts[1] == got(store, f"{ONE}/frames/2/rendered")


def test_datasets_that_say_something_else(store):
    """RGB, a size, other samples: drawn or refused, never taken for what the codestream says."""
    (frame,) = coded(COLOUR)
    for number, (kind, attributes) in enumerate(
        [
            (COLOUR, {"Rows": 39}),
            (COLOUR, {"Columns": 35}),
            (GREY, {}),
        ],
        2,
    ):
        dataset = dataset_of(kind, instance=f"1.2.3.4.{number}")
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        keep(store, stored_as(dataset, BASELINE, [frame]))
        with pytest.raises(NotAcceptable):
            got(store, f"{instance_path(f'1.2.3.4.{number}')}/rendered")


def test_rgb_is_drawn(store):
    """What browsers would take for YCbCr."""
    kind = Kind("RGB", 8, 8, rows=40, columns=34)
    (array,) = arrays_of(kind, 1)
    frame = registry.encode(
        array.tobytes(), BASELINE, FrameInfo(40, 34, 3, photometric_interpretation="RGB")
    )[0]
    keep(store, stored_as(image(kind, array[None]), BASELINE, [frame]))
    assert not is_stored(store, f"{ONE}/rendered", frame)


def test_deeper_samples_are_drawn(store):
    (frame,) = coded(COLOUR)
    stored(store, COLOUR, [frame], BitsAllocated=16, BitsStored=12, HighBit=11)
    assert not is_stored(store, f"{ONE}/rendered", frame)


@pytest.mark.parametrize("how", ["progressive", "Exif", "no EOI at its end"])
def test_codestreams_that_are_drawn(store, how):
    (frame,) = coded(COLOUR, progressive=how == "progressive")
    if how == "Exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned
        (frame,) = coded(COLOUR, exif=exif)
        assert opened(frame).getexif()[0x0112] == 6
    if how.startswith("no EOI"):
        frame += b"behind it"
    stored(store, COLOUR, [frame])
    made = got(store, f"{ONE}/rendered")
    assert made != frame
    assert not opened(made).getexif()
    assert opened(made).size == (34, 40)


def test_other_syntaxes_are_drawn(store):
    for number, syntax in enumerate((LITTLE, RLE), 1):
        dataset = dataset_of(GREY, instance=f"1.2.3.4.{number}")
        frames = None
        if syntax == RLE:
            frames = [registry.encode(arrays_of(GREY, 1).tobytes(), RLE, FrameInfo(40, 34))[0]]
        keep(store, stored_as(dataset, syntax, frames))
        answer = ask(store, f"{instance_path(f'1.2.3.4.{number}')}/rendered", accept="image/jpeg")
        assert all(isinstance(piece, Literal) for piece in answer.plan)
        assert opened(payload(answer)).size == (34, 40)


def test_a_damaged_scan_goes_out_as_it_is(store):
    """A browser shows what it can of it; only a cut codestream is noticed."""
    (frame,) = coded(COLOUR)
    middle = len(frame) - 120
    damaged = frame[:middle] + b"\x5a" * 100 + frame[middle + 100 :]
    stored(store, COLOUR, [damaged])
    assert is_stored(store, f"{ONE}/rendered", damaged)
    stored(store, COLOUR, [frame[:middle]], "1.2.3.4.2")
    with pytest.raises(NotAcceptable):
        got(store, f"{instance_path('1.2.3.4.2')}/rendered")


# Colour profiles


def profile_of(length=0):
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made + b"\0" * (length - len(made))


@pytest.mark.parametrize("length", [0, 200_000])
@pytest.mark.parametrize("place", ["image", "optical path"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_the_profile_of_the_dataset_is_put_in(store, length, place, fragments):
    (frame,) = coded(COLOUR)
    profile = profile_of(length)
    dataset = dataset_of(COLOUR)
    if place == "image":
        dataset.ICCProfile = profile
    else:
        path = Dataset()
        path.ICCProfile, path.OpticalPathIdentifier = profile, "1"
        dataset.OpticalPathSequence = [path]
    stored_as(dataset, BASELINE, [frame])
    dataset.PixelData = encapsulate([frame], fragments_per_frame=fragments)
    keep(store, stored_as(dataset, BASELINE))
    for query in ("", "?iccprofile=yes"):
        made = got(store, f"{ONE}/rendered{query}")
        assert opened(made).info["icc_profile"] == profile
        assert np.array_equal(pixels(made), pixels(frame))
        part = ask(store, f"{ONE}/rendered{query}", accept="image/jpeg", range="bytes=100-2999")
        assert payload(part) == made[100:3000]
    assert is_stored(store, f"{ONE}/rendered?iccprofile=no", frame)
    assert not is_stored(store, f"{ONE}/rendered?iccprofile=srgb", frame)


def test_an_inline_profile(store):
    frames = stored(store, COLOUR, coded(COLOUR), ICCProfile=b"short profile 16")
    made = got(store, f"{ONE}/rendered")
    assert opened(made).info["icc_profile"] == b"short profile 16"
    assert np.array_equal(pixels(made), pixels(frames[0]))


def test_a_profile_of_its_own(store):
    """That of the codestream counts where the dataset has none (PS3.18 8.3.5.1.5)."""
    profile = profile_of()
    (frame,) = coded(COLOUR, icc_profile=profile)
    stored(store, COLOUR, [frame])
    assert is_stored(store, f"{ONE}/rendered", frame)
    assert is_stored(store, f"{ONE}/rendered?iccprofile=yes", frame)
    assert "icc_profile" not in opened(got(store, f"{ONE}/rendered?iccprofile=no")).info
    stored(store, COLOUR, [frame], "1.2.3.4.2", ICCProfile=b"another")
    assert opened(got(store, f"{instance_path('1.2.3.4.2')}/rendered")).info["icc_profile"][:7] == b"another"
    (grey,) = coded(GREY, icc_profile=profile)
    stored(store, GREY, [grey], "1.2.3.4.3")
    assert "icc_profile" not in opened(got(store, f"{instance_path('1.2.3.4.3')}/rendered")).info


def test_profiles_that_are_none(store):
    """An empty one; one that is too long to be looked at is left aside."""
    (frame,) = stored(store, COLOUR, coded(COLOUR), ICCProfile=b"")
    assert is_stored(store, f"{ONE}/rendered", frame)
    stored(store, COLOUR, [frame], "1.2.3.4.2", ICCProfile=b"\0" * ((16 << 20) + 2))
    assert is_stored(store, f"{instance_path('1.2.3.4.2')}/rendered", frame)


# Several frames


@pytest.mark.parametrize("path", [f"/studies/{STUDY}/rendered", f"/studies/{STUDY}/series/{SERIES}/rendered"])
def test_studies(store, path):
    frames = stored(store, COLOUR, coded(COLOUR, 3))
    stored(store, GREY, coded(GREY), "1.2.3.4.2", WindowCenter=60, WindowWidth=90)
    found = [content for _, content in parts_of(ask(store, path, accept=ANY_PARTS))]
    assert [unpadded(one) for one in found[:3]] == frames
    assert found[3] == got(store, f"{instance_path('1.2.3.4.2')}/rendered")


def test_frame_lists(store, monkeypatch):
    """Drawn ones and others in their order, whatever the size of a chunk."""
    frames = coded(COLOUR, 40)
    for number in (0, 5, 6, 39):
        frames[number] = coded(COLOUR, 1, seed=number + 2, progressive=True)[0]
    stored(store, COLOUR, frames)
    numbers = [40, 1, 3, 6, 7, 8, 8, 1, 2, *range(1, 41)]
    path = f"{ONE}/frames/{','.join(map(str, numbers))}/rendered"
    several = parts_of(ask(store, path, accept=ANY_PARTS))
    alone = {number: got(store, f"{ONE}/frames/{number}/rendered") for number in set(numbers)}
    assert [content for _, content in several] == [alone[number] for number in numbers]
    assert unpadded(alone[2]) == frames[1]
    assert alone[1] != frames[0]
    assert all(
        headers["content-location"].endswith(f"/frames/{number}/rendered")
        for (headers, _), number in zip(several, numbers, strict=True)
    )
    monkeypatch.setattr(rendered_parts, "READ", 500)
    assert parts_of(ask(store, path, accept=ANY_PARTS)) == several


# In the loop


class Watched(PixelPool):
    """That never makes anything."""

    def submit(self, task, in_loop=False):
        raise AssertionError("something was to be made")


def in_loop(store, path):
    return computed(store, path, pool=Watched(1), accept="image/jpeg")


def test_the_loop_answers_what_is_in_memory(store, monkeypatch):
    (frame,) = stored(store, COLOUR, coded(COLOUR))
    assert unpadded(payload(in_loop(store, f"{ONE}/frames/1/rendered"))) == frame
    monkeypatch.setattr(stored_pictures, "at_hand", lambda *_: None)
    assert isinstance(in_loop(store, f"{ONE}/frames/1/rendered"), Deferred)
    assert is_stored(store, f"{ONE}/frames/1/rendered", frame)  # in a thread


def test_no_more_than_the_head_is_read(store, monkeypatch):
    kind = Kind("YBR_FULL_422", 8, 8, rows=800, columns=900)
    (frame,) = stored(store, kind, coded(kind))
    read, known = [], FileLease.pread

    def watched(lease, segment, offset, length):
        read.append(length)
        return known(lease, segment, offset, length)

    monkeypatch.setattr(FileLease, "pread", watched)
    answer = ask(store, f"{ONE}/rendered", accept="image/jpeg")
    assert len(frame) > 20_000
    assert sum(read) < 5_000
    assert unpadded(payload(answer)) == frame


# Progressive syntaxes


@pytest.mark.parametrize("suffix", ["53", "55"])
def test_progressive_syntaxes_are_decoded_and_drawn(store, suffix):
    (frame,) = coded(COLOUR, progressive=True)
    keep(store, stored_as(dataset_of(COLOUR), f"1.2.840.10008.1.2.4.{suffix}", [frame]))
    reference = np.asarray(Image.open(io.BytesIO(frame)), int)
    native = got(store, f"{ONE}/frames/1", "application/octet-stream")
    shown = np.asarray(opened(got(store, f"{ONE}/rendered", "image/png")), int)
    assert np.abs(np.frombuffer(native, "u1").reshape(reference.shape) - reference).max() <= 1
    assert np.abs(shown - reference).max() <= 1


def test_arithmetic_coding_is_named_in_the_refusal(store):
    keep(store, stored_as(dataset_of(COLOUR), "1.2.840.10008.1.2.4.56", coded(COLOUR, progressive=True)))
    with pytest.raises(NotAcceptable, match="Full Progression"):
        ask(store, f"{ONE}/rendered")

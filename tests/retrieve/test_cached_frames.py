"""streamsrv/retrieve/cached_frames.py: the places and validators of the usual answers."""

import io

import pytest
from PIL import Image
from pixel_world import BASELINE, BIG, JPEG_LS, Kind, arrays_of, image, stored_as
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from retrieve_world import STUDY, ask, dataset_of, header, instance_path, keep, part10, room_of

from streamsrv.retrieve import cached_frames
from streamsrv.retrieve.cached_frames import CachedFrames, CachedPictures
from streamsrv.wire import conditional
from streamsrv.wire.answers import Request, Span
from streamsrv.wire.resources import parse_query, target_of

GREY = Kind("MONOCHROME2", 8, 8)
ONE = "1.2.3.4.1"
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
JPEGS = "multipart/related; type=image/jpeg; transfer-syntax=*"


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    for module in (cached_frames, conditional):
        monkeypatch.setattr(module, "SETTLED", -1)


def coded(count, **options):
    made = []
    for array in arrays_of(GREY, count):
        out = io.BytesIO()
        Image.fromarray(array).save(out, "JPEG", **options)
        made.append(out.getvalue() + b"\0" * (out.tell() % 2))
    return made


def stored(store, frames, instance=ONE, fragments=1, **attributes):
    dataset = image(GREY, arrays_of(GREY, len(frames)), instance, **attributes)
    stored_as(dataset, BASELINE, frames)
    dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments)
    keep(store, stored_as(dataset, BASELINE))
    return frames


def cached(store, number=1, accept="image/jpeg", query="", resource="/rendered", instance=ONE):
    path = f"/v2{instance_path(instance)}/frames/{number}{resource}"
    request = Request("GET", path, parse_query(query), {"accept": accept}, "http://h/v2", 2)
    return room_of(store).cached_frames(request, target_of(path))


def compare(store, known, path, accept):
    """With the answer to a request for the same frame."""
    number = int(path.partition("/frames/")[2].partition("/")[0])
    answer = ask(store, path, accept=accept)
    placed = known.at(number)
    assert placed.etag.decode() == header(answer, "etag")
    assert [placed.span] == [piece for piece in answer.plan if isinstance(piece, Span)]
    told = known.answer(str(number), placed.etag.decode(), placed.boundary)
    assert told.headers == answer.headers
    assert told.length == answer.length - placed.span.length
    answer.release()


def test_each_picture_has_its_place_and_validators(store):
    stored(store, coded(4))
    known = cached(store, 2)
    assert isinstance(known, CachedPictures)
    assert known.current(known.version())
    for number in range(1, 5):
        compare(store, known, f"{instance_path(ONE)}/frames/{number}/rendered", "image/jpeg")
    assert known.at(0) is known.at(5) is None


@pytest.mark.parametrize("native", [False, True])
def test_each_frame_has_its_place_and_validators(store, native):
    if native:
        keep(store, stored_as(image(GREY, arrays_of(GREY, 4)), "1.2.840.10008.1.2.1"))
    else:
        stored(store, coded(4))
    accept = FRAMES if native else JPEGS
    known = cached(store, 2, accept=accept, resource="")
    assert isinstance(known, CachedFrames)
    for number in range(1, 5):
        compare(store, known, f"{instance_path(ONE)}/frames/{number}", accept)
    assert known.at(0) is known.at(5) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"query": "quality=3"},
        {"query": "iccprofile=no"},
        {"resource": "/thumbnail"},
        {"accept": "image/png, image/jpeg;q=0.1"},
        {"accept": "multipart/related; type=image/jpeg"},
        {"accept": "image/jpeg" + ", a/b" * 1000},
        {"accept": "text/plain"},
        {"resource": "", "accept": "image/jpeg"},
        {"resource": "", "accept": f'multipart/related; type="image/jls"; transfer-syntax={JPEG_LS}'},
        {"number": 3},
        {"instance": "1.2.3.4.99"},
    ],
)
def test_other_requests_are_not_cached(store, asked):
    stored(store, coded(2))
    known = cached(store, **asked)
    assert known is None or known.at(3) is None  # there is no such frame


def test_several_frames_are_not_cached(store):
    stored(store, coded(2))
    assert cached(store, "1,2", accept=JPEGS, resource="") is None


def test_a_picture_that_is_drawn_is_not_cached(store):
    first, second = coded(2)
    drawn = coded(1, progressive=True)[0]
    stored(store, [first, drawn, second])
    assert cached(store, 2) is None
    known = cached(store, 1)
    assert known.at(3) is not None
    assert known.at(2) is None


@pytest.mark.parametrize(("accept", "resource"), [("image/jpeg", "/rendered"), (JPEGS, "")])
def test_a_fragmented_frame_is_not_cached(store, accept, resource):
    stored(store, coded(2), fragments=2)
    known = cached(store, accept=accept, resource=resource)
    assert known is None or known.at(1) is None


def test_a_frame_that_is_sent_otherwise_is_not_cached(store):
    keep(store, part10(dataset_of("1.2.3.4.4"), BIG))
    assert cached(store, accept=FRAMES, resource="", instance="1.2.3.4.4") is None


def test_frames_with_windows_of_their_own_are_not_cached(store):
    groups = []
    for center in (128, 60):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 256
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    stored(store, coded(2), PerFrameFunctionalGroupsSequence=groups)
    assert cached(store) is None


@pytest.mark.parametrize(("accept", "resource"), [("image/jpeg", "/rendered"), (JPEGS, "")])
def test_a_deleted_or_replaced_instance_is_not_current(store, accept, resource):
    frames = stored(store, coded(2))
    known = cached(store, accept=accept, resource=resource)
    stored(store, coded(1), "1.2.3.4.2")
    assert known.current(known.version())
    store.delete(STUDY)
    assert not known.current(known.version())
    stored(store, frames[::-1])
    assert not known.current(known.version())


def test_segments_are_released(store):
    stored(store, coded(2))
    known = cached(store)
    assert known.at(1)
    store.readers.forget()
    assert not store.readers._open


def test_an_instance_that_was_stored_just_now_is_not_cached(store, monkeypatch):
    stored(store, coded(1))
    assert cached(store)
    monkeypatch.setattr(cached_frames, "SETTLED", 3600)
    assert cached(store) is None

"""streamsrv/retrieve/cached_pictures.py: what is remembered answers as `pictures` does, and no more is
remembered than that."""

import io

import pytest
from PIL import Image
from pixel_world import BASELINE, Kind, arrays_of, image, stored_as
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from retrieve_world import STUDY, ask, header, instance_path, keep, payload

from streamsrv.retrieve import cached_frames, cached_pictures
from streamsrv.retrieve.cached_frames import HotFrames
from streamsrv.retrieve.cached_pictures import hot_answers
from streamsrv.wire import conditional
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import parse_query, target_of

GREY = Kind("MONOCHROME2", 8, 8)
ONE = "1.2.3.4.1"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(cached_pictures, "_shapes", {})
    monkeypatch.setattr(cached_frames, "_shapes", {})
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


def known(store, number=1, instance=ONE, accept="image/jpeg", query="", resource="/rendered"):
    path = f"/v2{instance_path(instance)}/frames/{number}{resource}"
    request = Request("GET", path, parse_query(query), {"accept": accept}, "http://h/v2", 2)
    return hot_answers(store, request, target_of(path))


def learnt(store, number=1, instance=ONE, accept="image/jpeg", query=""):
    """Whether it is known after it was asked for."""
    path = f"{instance_path(instance)}/frames/{number}/rendered{query and '?'}{query}"
    payload(ask(store, path, accept=accept))
    return known(store, number, instance, accept, query)


def test_each_frame_has_the_answer_that_it_had(store):
    stored(store, coded(4))
    hot = learnt(store, 2)
    assert hot.current(hot.moment())
    for number in range(1, 5):
        answer = ask(store, f"{instance_path(ONE)}/frames/{number}/rendered", accept="image/jpeg")
        placed = hot.at(number)
        assert placed.etag.decode() == header(answer, "etag")
        assert [placed.span] == list(answer.plan)
        said = hot.answer(str(number), placed.etag.decode(), b"")
        assert said.headers == answer.headers
        answer.release()
    assert hot.at(0) is hot.at(5) is None


def test_words_of_their_own(store):
    stored(store, coded(2))
    assert learnt(store)
    assert known(store, 2)
    assert known(store, accept="*/*") is None
    assert known(store, query="quality=3") is None
    assert known(store, resource="") is None
    assert known(store, resource="/thumbnail") is None
    assert learnt(store, accept="image/png, image/jpeg;q=0.1") is None
    assert learnt(store, query="iccprofile=no") is None
    assert learnt(store, accept="multipart/related; type=image/jpeg") is None


def test_frames_are_known_as_ever(store):
    stored(store, coded(2))
    accept = "multipart/related; type=image/jpeg; transfer-syntax=*"
    payload(ask(store, f"{instance_path(ONE)}/frames/1", accept=accept))
    assert isinstance(known(store, accept=accept, resource=""), HotFrames)


def test_what_is_drawn_is_not_known(store):
    first, second = coded(2)
    drawn = coded(1, progressive=True)[0]
    stored(store, [first, drawn, second])
    assert learnt(store, 2) is None
    hot = learnt(store, 1)
    assert hot.at(3) is not None
    assert hot.at(2) is None


def test_what_is_not_in_one_piece_is_not_known(store):
    stored(store, coded(2), fragments=2)
    assert learnt(store) is None


def test_windows_of_frames_are_looked_at_each_time(store):
    groups = []
    for center in (128, 60):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 256
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    stored(store, coded(2), PerFrameFunctionalGroupsSequence=groups)
    assert learnt(store, 1) is None


def test_what_has_gone_is_not_current(store):
    frames = stored(store, coded(2))
    hot = learnt(store)
    moment = hot.moment()
    assert hot.current(moment)
    store.delete(STUDY)
    assert not hot.current(hot.moment())
    stored(store, frames[::-1])
    assert not hot.current(hot.moment())


def test_a_lease_is_given_back(store):
    stored(store, coded(2))
    hot = learnt(store)
    assert hot.at(1)
    store.readers.forget()
    assert not store.readers._open


def test_what_was_stored_just_now_is_not_settled(store, monkeypatch):
    stored(store, coded(1))
    assert learnt(store)
    monkeypatch.setattr(cached_frames, "SETTLED", 3600)
    assert known(store) is None


def test_few_are_remembered(store, monkeypatch):
    monkeypatch.setattr(cached_frames, "SHAPES", 3)
    stored(store, coded(1))
    for number in range(9):
        assert learnt(store, accept=f"image/jpeg, a/b{number}")
    assert len(cached_pictures._shapes) == 3

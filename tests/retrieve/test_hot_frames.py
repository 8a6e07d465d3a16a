"""streamsrv/retrieve/cached_frames.py: the same answers as those of `frames`, and none of what is not there
any more."""

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, JPEGBaseline8Bit
from retrieve_world import SERIES, STUDY, ask, dataset_of, instance_path, keep, part10, payload

from streamsrv.errors import NotFound, RangeNotSatisfiable
from streamsrv.retrieve import cached_frames, resources
from streamsrv.wire import conditional

FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ANY = "*/*"
NATIVE, TABLE, FRAGMENTS = "1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"


def encapsulated(instance, fragments_per_frame=1):
    dataset = dataset_of(instance)
    dataset.NumberOfFrames = 5
    frames = [b"\xff\xd8" + bytes([number]) * 100 + b"\xff\xd9" for number in range(5)]
    dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments_per_frame)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return part10(dataset, JPEGBaseline8Bit)


@pytest.fixture
def images(store, monkeypatch):
    monkeypatch.setattr(cached_frames, "_shapes", {})
    keep(store, part10(dataset_of(NATIVE)), encapsulated(TABLE), encapsulated(FRAGMENTS, 2))
    monkeypatch.setattr(conditional, "SETTLED", -1)  # everything says when it was modified
    return store


def whole(store, path, **asked):
    answer = ask(store, path, **asked)
    length = answer.length
    if asked.get("method") == "HEAD":
        answer.length = 0
    return answer.status, answer.headers, length, payload(answer)


def both(store, monkeypatch, path, **asked):
    """The answer without memory, then with it, and whether that was used."""
    with monkeypatch.context() as patched:
        patched.setattr(resources, "hot_frame", lambda *_: None)
        slow = whole(store, path, **asked)
    used = []

    def watched(*arguments):
        used.append(cached_frames.hot_frame(*arguments))
        return used[-1]

    monkeypatch.setattr(resources, "hot_frame", watched)
    assert whole(store, path, **asked) == slow
    return used[-1] is not None


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"method": "HEAD"},
        {"range": "bytes=5-90"},
        {"range": "bytes=-7", "if_range": '"other"'},
        {"if_none_match": "*"},
        {"if_modified_since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"if_modified_since": "Fri, 01 Jan 1999 00:00:00 GMT"},
    ],
    ids=lambda asked: "+".join(asked.values()) or "plain",
)
@pytest.mark.parametrize("instance", [NATIVE, TABLE])
def test_the_same_answer(images, monkeypatch, instance, asked):
    path = f"{instance_path(instance)}/frames/1"
    payload(ask(images, path, accept=FRAMES))
    assert both(images, monkeypatch, path, accept=FRAMES, **asked)


def test_other_frames_of_the_same_instance(images, monkeypatch):
    payload(ask(images, f"{instance_path(TABLE)}/frames/2", accept=FRAMES))
    for number in range(1, 6):
        assert both(images, monkeypatch, f"{instance_path(TABLE)}/frames/{number}", accept=FRAMES)


@pytest.mark.parametrize("accept", [FRAMES, ANY, None, "application/octet-stream; transfer-syntax=*"])
def test_other_words_are_chosen_for_anew(images, monkeypatch, accept):
    path = f"{instance_path(TABLE)}/frames/3"
    payload(ask(images, path, accept='multipart/related; type="image/jpeg"; transfer-syntax=*'))
    assert len(cached_frames._shapes) == 1
    asked = {} if accept is None else {"accept": accept}
    assert both(images, monkeypatch, path, **asked) == (accept in (FRAMES, ANY))


def test_what_is_not_plain_is_left_to_frames(images, monkeypatch):
    keep(images, part10(dataset_of("1.2.3.4.4"), ExplicitVRBigEndian))
    for path in (
        f"{instance_path(FRAGMENTS)}/frames/1",
        f"{instance_path(TABLE)}/frames/1,2",
        f"{instance_path('1.2.3.4.4')}/frames/1",
        f"{instance_path(TABLE)}/frames/1?accept=image/jpeg",
    ):
        for _ in range(2):
            assert not both(images, monkeypatch, path, accept=FRAMES)


def test_what_is_not_there(images):
    payload(ask(images, f"{instance_path(TABLE)}/frames/1", accept=FRAMES))
    for path in (f"{instance_path(TABLE)}/frames/6", f"{instance_path(TABLE, series='1.9')}/frames/1"):
        with pytest.raises(NotFound):
            ask(images, path, accept=FRAMES)
    images.delete(STUDY, SERIES, TABLE)
    with pytest.raises(NotFound):
        ask(images, f"{instance_path(TABLE)}/frames/1", accept=FRAMES)


def test_what_was_replaced_is_found_out_anew(images, monkeypatch):
    path = f"{instance_path(TABLE)}/frames/1"
    before = whole(images, path, accept=FRAMES)
    images.delete(STUDY, SERIES, TABLE)
    keep(images, encapsulated(TABLE).replace(b"\xff\xd8\0\0", b"\xff\xd8\1\1"))
    after = whole(images, path, accept=FRAMES)
    assert after[3] != before[3]
    assert both(images, monkeypatch, path, accept=FRAMES)
    assert whole(images, path, accept=FRAMES) == after


def test_a_refused_range_gives_the_segment_back(images):
    path = f"{instance_path(TABLE)}/frames/1"
    for _ in range(2):
        payload(ask(images, path, accept=FRAMES))
        with pytest.raises(RangeNotSatisfiable):
            ask(images, path, accept=FRAMES, range="bytes=100000-")
    assert not images.readers._open


def test_few_are_remembered(images, monkeypatch):
    monkeypatch.setattr(cached_frames, "SHAPES", 3)
    for number in range(9):
        payload(ask(images, f"{instance_path(TABLE)}/frames/1", accept=f"*/*, a/b{number}"))
    assert len(cached_frames._shapes) == 3

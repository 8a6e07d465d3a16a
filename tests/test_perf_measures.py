"""Every measure in its smallest form, without peers: it asks what it says, is answered, and says what it
found. What it measures here means nothing."""

import contextlib

import pytest

from perf import data, frames, large, lists, load, measures, metadata, mixed, servers, study
from perf.measures import Size
from perf.report import Claim, Row


@contextlib.contextmanager
def absent(folder):
    yield None


@pytest.fixture
def size(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "nginx", absent)
    monkeypatch.setattr(servers, "orthanc", absent)
    monkeypatch.setattr(load.shutil, "which", lambda name: None)
    for module, fewer in (
        (measures, {"WARMED": 2 << 20}),
        (frames, {"ROUNDS": 1, "CLIENTS": (64,), "FEWER": (1,)}),
        (large, {"FRAMES": 2}),
        (lists, {"ROUNDS": 1, "CLIENTS": (1,), "LISTS": (2,), "ASKED": 3, "DIFFERENT": 3}),
        (metadata, {"ROUNDS": 1, "CLIENTS": (1,)}),
        (mixed, {"INSTANCES": 2, "PAUSE": 0.01}),
    ):
        for name, value in fewer.items():
            monkeypatch.setattr(module, name, value)
    return Size(
        tmp_path,
        instances=2,
        rounds=1,
        seconds=0.2,
        tiles=20,
        large=2 * data.CT_PIXELS,
        largest=4 * data.CT_PIXELS,
        loop=10,
        slide=20,
        rest=0,
    )


CLAIMS = {
    study.ct_study: {
        "store 2 CT instances of 526 kB, one POST, in relation to cp + fsync": 0.6,
        "memory growth, store the study": 50,
        "delete 2 CT instances of 526 kB": 5,
        "first byte, retrieve the study, 1 at once": 10,
        "memory growth, retrieve the study, 1 at once": 20,
        "first byte, retrieve the study, 4 at once": 10,
        "memory growth, retrieve the study, 4 at once": 20,
    },
    large.large: {
        "store one instance of 0.00105 GB, in relation to cp + fsync": 0.7,
        "memory growth, store one instance of 0.00105 GB": 50,
        "delete one instance of 0.00105 GB": 5,
        "first byte, retrieve one instance of 0.00105 GB": 10,
        "memory growth, retrieve one instance of 0.00105 GB": 20,
        "store one instance of 0.0021 GB, in relation to cp + fsync": 0.7,
        "memory growth, store one instance of 0.0021 GB": 50,
    },
    frames.small_answers: {"frames of 21 kB, 64 at once, p99": 20},
    lists.frame_lists: {},
    metadata.study_metadata: {"metadata of 2 instances, the first request after the store": 10},
    mixed.mixed_load: {},
}


@pytest.mark.parametrize("measure", CLAIMS, ids=lambda measure: measure.__name__)
def test_a_measure(measure, size):
    found = list(measure(size))
    rows = [each for each in found if isinstance(each, Row)]
    assert any(row.subject == "streamsrv" for row in rows)
    for row in rows:
        assert (row.value is None) == (row.note == "not installed"), row
        assert row.subject in ("streamsrv", "cp + fsync") or row.value is None, row
    limits = {
        claim.text: claim.at_least if claim.at_least is not None else claim.at_most
        for claim in found
        if isinstance(claim, Claim)
    }
    assert limits == CLAIMS[measure]


def test_in_relation_to_peers_as_the_table_of_targets_says():
    size = Size(None)
    slide, watched = data.multi_frame(5, size.tiles, 10), data.ct_study(4, 2, 512)
    questions = {question.name: question for question in frames._questions(watched, slide, size)}
    tiles = questions["frames of 21 kB"]
    assert questions["frames of 524 kB"].nginx == {16: 0.9}
    assert tiles.nginx == {1: 0.5, 16: 0.5, 64: 0.5}
    assert tiles.orthanc == {1: 10, 16: 10, 64: 10}
    assert tiles.p99 == {64: 20}
    assert (study.STORE_PEER, large.STORE_PEER, study.RETRIEVE, metadata.NGINX) == (7, 8, 1.0, 0.5)


def test_a_pyramid_has_all_its_tiles():
    body = data.pyramid(9, 100, 50)
    payload = b"".join(body.chunks())
    assert len(payload) == body.length
    assert payload.count(data.PART_HEAD) == len(body.keys) == len(set(body.keys)) == 5
    assert payload.endswith(data.CLOSING)
    assert payload.count(data.CLOSING) == 1
    assert payload.count(b"\xfe\xff\x00\xe0" + (50).to_bytes(4, "little")) == 100

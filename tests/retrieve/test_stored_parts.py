"""A study that goes out as it is stored: planned from packed rows, remembered until the next commit."""

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from retrieve_world import ROOMS, STUDY, ask, computed, dataset_of, header, keep, part10, parts_of, payload

from streamsrv.errors import StoreError
from streamsrv.plans import selection as selections
from streamsrv.plans.selection import Selection
from streamsrv.wire.answers import Deferred, Literal, Span, StoredParts

ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
SECOND = "1.2.3.5"


@pytest.fixture
def contents(store):
    """Two series, two transfer syntaxes that alternate in one of them; by the end of Content-Location."""
    made = {f"1.2.3.4/instances/9.{n}": part10(dataset_of(f"9.{n}")) for n in range(3)}
    for number in range(4):
        write = part10 if number % 2 else as_jpeg
        made[f"{SECOND}/instances/8.{number}"] = write(dataset_of(f"8.{number}", series=SECOND))
    keep(store, *made.values())
    return made


def as_jpeg(dataset):
    """Not that anybody could decode it: nobody is to look."""
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    return part10(dataset, JPEGBaseline8Bit)


def study(store, **headers):
    return ask(store, f"/studies/{STUDY}", accept=ANY, **headers)


def test_every_part_is_a_stored_file_under_its_name(store, contents):
    answer = study(store)
    assert isinstance(answer.plan, StoredParts)
    parts = parts_of(answer)
    places = [headers["content-location"].partition("/series/")[2] for headers, _ in parts]
    assert places == sorted(contents)
    for place, (headers, content) in zip(places, parts, strict=True):
        assert content == contents[place]
        jpeg = place.startswith(SECOND) and place[-1] in "02"
        syntax = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
        assert headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"


def test_it_is_what_one_part_after_the_other_would_give(store, contents, monkeypatch):
    short = study(store)
    monkeypatch.setattr(selections, "ROWS_KEPT", 3)
    ROOMS.clear()
    plain = study(store)
    assert not isinstance(plain.plan, StoredParts)
    assert (short.headers, short.length) == (plain.headers, plain.length)
    assert payload(short) == payload(plain)


def test_ranges_and_heads_of_it(store, contents):
    whole = study(store)
    text = payload(whole)
    middle = len(text) // 2
    halves = [study(store, range=wanted) for wanted in (f"bytes=0-{middle}", f"bytes={middle + 1}-")]
    assert [half.status for half in halves] == [206, 206]
    assert b"".join(map(payload, halves)) == text
    head = ask(store, f"/studies/{STUDY}", method="HEAD", accept=ANY)
    assert (tuple(head.plan), head.length) == ((), len(text))
    head.release()
    same = study(store, if_none_match=header(whole, "etag"))
    assert (same.status, tuple(same.plan)) == (304, ())
    same.release()


def test_the_plan_is_made_once_until_something_is_stored(store, contents):
    answers = [study(store), study(store)]
    assert answers[0].plan is answers[1].plan
    keep(store, part10(dataset_of("9.99")))
    answers.append(study(store))
    assert len(parts_of(answers[2])) == len(contents) + 1
    assert len(parts_of(answers[0])) == len(contents)
    answers[1].release()


def in_loop(store):
    return computed(store, f"/studies/{STUDY}", accept=ANY)


def test_a_study_that_is_not_kept_is_deferred(store, contents):
    deferred = in_loop(store)
    assert isinstance(deferred, Deferred)
    deferred.compute().release()
    assert len(parts_of(in_loop(store))) == len(contents)
    keep(store, part10(dataset_of("9.98")))
    assert isinstance(in_loop(store), Deferred)


def test_a_study_that_has_to_be_encoded_is_deferred(store):
    keep(store, part10(dataset_of("9.1")), part10(dataset_of("9.2"), ImplicitVRLittleEndian))
    plain = study(store)
    assert not isinstance(plain.plan, StoredParts)
    assert len(parts_of(plain)) == 2
    assert isinstance(in_loop(store), Deferred)
    assert store.readers._open == {}


def test_a_long_study_is_looked_up_again_and_what_changed_is_told(store, contents, monkeypatch):
    monkeypatch.setattr(selections, "ROWS_KEPT", 3)
    with_all = Selection(store, STUDY, None, None)
    assert with_all.packed is None
    names = [row.key.instance for row in with_all.rows()]
    assert names == [place.rpartition("/")[2] for place in sorted(contents)]
    keep(store, part10(dataset_of("9.99", series="1.2.3.9")))
    with pytest.raises(StoreError, match="has changed"):
        list(with_all.rows())
    with_all.release()


def test_pieces_of_a_plan_are_those_of_its_parts():
    plan = StoredParts([b"one", b"two"], [(1, 10, 5), (2, 0, 0)], b"end")
    assert plan.length == 14
    assert sum(piece.length for piece in plan) == 14
    assert list(plan) == list(plan)
    assert list(plan.parts())[-1] == (b"end", (0, 0, 0))


def test_one_instance_is_one_span(store, contents):
    answer = ask(store, f"/studies/{STUDY}/series/1.2.3.4/instances/9.1", accept=ANY)
    assert list(map(type, answer.plan)) == [Literal, Span, Literal]
    ((headers, content),) = parts_of(answer)
    assert content == contents["1.2.3.4/instances/9.1"]
    assert headers["content-location"] == f"http://h/v2/studies/{STUDY}/series/1.2.3.4/instances/9.1"
    assert headers["content-type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"

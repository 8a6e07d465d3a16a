"""/bulkdata and /pixeldata at each level, without HTTP."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian
from retrieve_world import (
    SECRET,
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

from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.plans.payloads import LazyPlan
from streamsrv.retrieve import bulk

ICC = "00480105/0/00282000"
RLE = "1.2.840.10008.1.2.5"
INSTANCES = [f"1.2.3.4.{number}" for number in (1, 2)]
BULK = {"accept": 'multipart/related; type="application/octet-stream"'}
STAR = BULK["accept"] + "; transfer-syntax=*"
LEVELS = [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", instance_path("1.2.3.4.1")]


def pixels(number):
    return bytes([number, 1]) * 16


@pytest.fixture
def study(store):
    """Two CTs with a nested bulk value, one of two frames; and an instance without pixel data."""
    one, two, none = (
        dataset_of(INSTANCES[0], pixels=pixels(1)),
        dataset_of(INSTANCES[1]),
        dataset_of("1.2.3.4.3"),
    )
    two.NumberOfFrames, two.PixelData = 2, pixels(2) + pixels(3)
    two.add_new(0x00420011, "OB", b"document" * 300)
    del none.PixelData
    none.OpticalPathSequence = []
    keep(store, part10(one), part10(two), part10(none))
    return store


def url(instance, below):
    return f"http://h/v2{instance_path(instance)}/{below}"


# PS3.18 10.4.3.3.5, and Table 10.4.4-1, note 2
@pytest.mark.parametrize(
    ("below", "headers"), [("/bulkdata", {}), ("/bulkdata", {"accept": "*/*"}), ("", BULK)]
)
@pytest.mark.parametrize("level", LEVELS)
def test_all_bulk_data(study, level, below, headers):
    expected = [
        (url(INSTANCES[0], f"bulkdata/{ICC}"), SECRET),
        (url(INSTANCES[0], "bulkdata/7FE00010"), pixels(1)),
    ]
    if level is not LEVELS[2]:
        expected += [
            (url(INSTANCES[1], "bulkdata/00420011"), b"document" * 300),
            (url(INSTANCES[1], f"bulkdata/{ICC}"), SECRET),
            (url(INSTANCES[1], "bulkdata/7FE00010"), pixels(2) + pixels(3)),
        ]
    answer = ask(study, f"{level}{below}", **headers)
    assert answer.length is not None
    found = parts_of(answer)
    assert [(headers["content-location"], content) for headers, content in found] == expected
    label = "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    assert {headers["content-type"] for headers, _ in found} == {label}


def test_pages_of_bulk_values(study, monkeypatch):
    whole = parts_of(ask(study, f"{LEVELS[0]}/bulkdata"))
    monkeypatch.setattr(bulk, "VALUES_AT_ONCE", 1)
    assert parts_of(ask(study, f"{LEVELS[0]}/bulkdata")) == whole


def test_each_bulk_value_is_what_its_location_answers(study):
    for headers, content in parts_of(ask(study, f"{LEVELS[0]}/bulkdata")):
        path = headers["content-location"].removeprefix("http://h/v2")
        assert payload(ask(study, path, accept="application/octet-stream")) == content


@pytest.mark.parametrize("level", LEVELS)
def test_all_pixel_data(study, level):
    expected = [(url(INSTANCES[0], "frames/1"), pixels(1))]
    if level is not LEVELS[2]:
        expected += [(url(INSTANCES[1], f"frames/{n}"), pixels(n + 1)) for n in (1, 2)]
    answer = ask(study, f"{level}/pixeldata")
    assert isinstance(answer.plan, LazyPlan)
    found = [(headers["content-location"], content) for headers, content in parts_of(answer)]
    assert found == expected


def compressed(instance, frames):
    dataset = dataset_of(instance)
    dataset.NumberOfFrames = len(frames)
    encoded = []
    for frame in frames:
        one = dataset_of(instance, pixels=frame)
        part10(one)
        one.compress(RLE, encoding_plugin="pydicom")
        encoded += pydicom.encaps.generate_frames(one.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate(list(encoded))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return part10(dataset, RLE), encoded


def test_compressed_frames_as_stored(study):
    content, encoded = compressed("1.2.3.4.5", [pixels(5), pixels(6)])
    keep(study, content)
    path = f"{instance_path('1.2.3.4.5')}/pixeldata"
    found = parts_of(ask(study, path, accept=STAR))
    assert [part for _, part in found] == encoded
    assert {headers["content-type"] for headers, _ in found} == {f"image/dicom-rle; transfer-syntax={RLE}"}
    # Of several syntaxes each part says its own.
    mixed = ask(study, f"{LEVELS[0]}/pixeldata", accept=f"{STAR}, */*;q=0.1")
    assert len(list(mixed.plan)) == 2 * 5 + 1
    mixed.release()


@pytest.mark.parametrize("headers", [{}, {"accept": "*/*"}])
@pytest.mark.parametrize("path", ["pixeldata", "frames/1,2"])
def test_compressed_frames_decoded(study, path, headers):
    content, _ = compressed("1.2.3.4.5", [pixels(5), pixels(6)])
    keep(study, content)
    frames = [part for _, part in parts_of(ask(study, f"{instance_path('1.2.3.4.5')}/{path}", **headers))]
    assert [np.frombuffer(frame, "<u2").tolist() for frame in frames] == [
        np.frombuffer(pixels(n), "<u2").tolist() for n in (5, 6)
    ]


@pytest.mark.parametrize("path", ["/bulkdata/7FE00010", "/bulkdata", ""])
def test_encapsulated_pixel_data_are_one_decoded_value(study, path):
    frames = [pixels(5), pixels(6)]
    keep(study, compressed("1.2.3.4.5", frames)[0])
    answer = ask(study, f"{instance_path('1.2.3.4.5')}{path}", **BULK)
    found = [(headers["content-location"], content) for headers, content in parts_of(answer)]
    expected = [(url("1.2.3.4.5", "bulkdata/7FE00010"), b"".join(frames))]
    assert (
        found
        == ([] if path.endswith("7FE00010") else [(url("1.2.3.4.5", f"bulkdata/{ICC}"), SECRET)]) + expected
    )


def test_an_encapsulated_value_has_a_length_ranges_and_a_single_part(study):
    frames = [pixels(5), pixels(6)]
    keep(study, compressed("1.2.3.4.5", frames)[0])
    path = f"{instance_path('1.2.3.4.5')}/bulkdata/7FE00010"
    answer = ask(study, path, accept="application/octet-stream")
    assert (answer.length, payload(answer)) == (64, b"".join(frames))
    part = ask(study, path, accept="application/octet-stream", range="bytes=30-40")
    assert (part.status, payload(part)) == (206, b"".join(frames)[30:41])


@pytest.mark.parametrize("path", ["/bulkdata/7FE00010", "/bulkdata", ""])
def test_compressed_frames_are_parts_of_their_own(study, path):
    content, encoded = compressed("1.2.3.4.5", [pixels(5), pixels(6)])
    keep(study, content)
    answer = ask(study, f"{instance_path('1.2.3.4.5')}{path}", accept=STAR)
    found = parts_of(answer, besides=[f"image/dicom-rle; transfer-syntax={RLE}"])[-2:]
    assert [(headers["content-location"], part) for headers, part in found] == [
        (url("1.2.3.4.5", f"frames/{number}"), frame) for number, frame in enumerate(encoded, 1)
    ]


@pytest.mark.parametrize(("accept", "syntax"), [(BULK["accept"], ExplicitVRLittleEndian), (STAR, RLE)])
def test_metadata_and_bulk_data_are_a_body_for_a_store(study, accept, syntax):
    """PS3.18 10.5.2: another server takes what this one sends."""
    frames, old, new = [pixels(5), pixels(6)], "1.2.3.4.5", "1.2.3.4.6"
    keep(study, compressed(old, frames)[0])
    metadata = payload(ask(study, f"{instance_path(old)}/metadata"))
    answer = ask(study, f"{instance_path(old)}/bulkdata", accept=accept)
    boundary = header(answer, "content-type").rpartition("=")[2]
    head = f"--{boundary}\r\nContent-Type: application/dicom+json\r\n\r\n".encode()
    body = (head + metadata + b"\r\n" + payload(answer)).replace(old.encode(), new.encode())
    json = 'multipart/related; type="application/dicom+json"'
    keep(study, body, content_type=f"{json}; boundary={boundary}")
    whole = payload(ask(study, instance_path(new), accept="application/dicom; transfer-syntax=*"))
    assert pydicom.dcmread(io.BytesIO(whole)).file_meta.TransferSyntaxUID == syntax
    assert [part for _, part in parts_of(ask(study, f"{instance_path(new)}/frames/1,2"))] == frames


def test_bulk_data_of_a_study_with_compressed_and_native_instances(study):
    keep(study, compressed("1.2.3.4.5", [pixels(5), pixels(6)])[0])
    whole = {
        headers["content-location"]: content for headers, content in parts_of(ask(study, LEVELS[0], **BULK))
    }
    assert len(whole) == 7
    assert whole[url("1.2.3.4.5", "bulkdata/7FE00010")] == pixels(5) + pixels(6)
    assert whole[url(INSTANCES[1], "bulkdata/7FE00010")] == pixels(2) + pixels(3)


@pytest.mark.parametrize("path", ["frames/1,2", "pixeldata", "bulkdata/7FE00010", "bulkdata"])
@pytest.mark.parametrize("headers", [{}, {"accept": "*/*"}, BULK])
def test_frames_that_cannot_be_decoded_go_out_as_stored(study, path, headers):
    dataset, frames = dataset_of("1.2.3.4.5"), [b"no RLE at all.", b"not this one"]
    dataset.NumberOfFrames, dataset.PixelData = 2, encapsulate(frames)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    keep(study, part10(dataset, RLE))
    label = f"image/dicom-rle; transfer-syntax={RLE}"
    found = parts_of(ask(study, f"{instance_path('1.2.3.4.5')}/{path}", **headers), besides=[label])[-2:]
    assert found == [
        ({"content-type": label, "content-location": url("1.2.3.4.5", f"frames/{number}")}, frame)
        for number, frame in enumerate(frames, 1)
    ]


def test_a_media_type_of_frames_does_not_hide_other_values(study):
    """406: the client would not notice that the ICC profile is missing."""
    keep(study, compressed("1.2.3.4.5", [pixels(5), pixels(6)])[0])
    rle = 'multipart/related; type="image/dicom-rle"'
    for path in ("", "/bulkdata"):
        with pytest.raises(NotAcceptable) as refusal:
            ask(study, f"{instance_path('1.2.3.4.5')}{path}", accept=rle)
        assert refusal.value.acceptable[0] == BULK["accept"]
    found = parts_of(ask(study, f"{instance_path('1.2.3.4.5')}/bulkdata/7FE00010", accept=rle))
    assert len(found) == 2


def test_nothing_to_send_is_404(study):
    for kind in ("bulkdata", "pixeldata"):
        with pytest.raises(NotFound):
            ask(study, f"{instance_path('1.2.3.4.3')}/{kind}")
        with pytest.raises(NotFound):
            ask(study, f"{instance_path('1.2.3.4.99')}/{kind}")


def test_what_comes_in_parts_only(study):
    for kind in ("bulkdata", "pixeldata"):
        with pytest.raises(NotAcceptable):
            ask(study, f"{LEVELS[2]}/{kind}", accept="application/octet-stream")


def test_ranges_and_etags(study):
    whole = ask(study, f"{LEVELS[0]}/bulkdata")
    text = payload(whole)
    part = ask(study, f"{LEVELS[0]}/bulkdata", range="bytes=1000-4999", if_range=header(whole, "etag"))
    assert (part.status, payload(part)) == (206, text[1000:5000])
    tags = {
        header(ask(study, f"{LEVELS[0]}/{kind}"), "etag") for kind in ("bulkdata", "pixeldata", "metadata")
    }
    assert len(tags) == 3

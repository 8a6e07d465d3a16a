"""Store transactions of metadata and bulk data, without HTTP: what is stored equals what pydicom makes of the
same JSON."""

import io
import tracemalloc

import orjson
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from streamsrv.dicom.json import text as jsontext
from streamsrv.dicom.nativexml import native_xml
from streamsrv.errors import ContentTooLarge, InsufficientStorage, MultipartError
from streamsrv.ingest import Ingest, IngestLimits, assembly
from streamsrv.store.store import Store, StoreOptions
from streamsrv.wire.multipart import MultipartLimits

STUDY, SERIES = "1.2.3", "1.2.3.4"
JPEG, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JSON_BODY = 'multipart/related; type="application/dicom+json"; boundary=edge'
XML_BODY = 'multipart/related; type="application/dicom+xml"; boundary=edge'


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "data", StoreOptions(min_free=0)) as opened:
        yield opened


def metadata(instance="1.2.3.4.1", pixels="b/1", **more):
    dataset = {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
        "00080018": {"vr": "UI", "Value": [instance]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jane", "Ideographic": "山田"}]},
        "00100020": {"vr": "LO", "Value": ["ID"]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00280002": {"vr": "US", "Value": [1]},
        "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]},
        "00280010": {"vr": "US", "Value": [2]},
        "00280011": {"vr": "US", "Value": [3]},
        "00280100": {"vr": "US", "Value": [8]},
        "00400275": {"vr": "SQ", "Value": [{"00282000": {"vr": "OB", "BulkDataURI": "b/icc"}}]},
    } | {f"{int(tag[1:], 16):08X}": element for tag, element in more.items()}
    if pixels:
        dataset["7FE00010"] = {"vr": "OW", "BulkDataURI": pixels}
    return dataset


def part(content, media_type, **headers):
    lines = [f"Content-Type: {media_type}", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n--edge\r\n{}\r\n\r\n".format("\r\n".join(lines)).encode() + content


def described(*datasets, media_type="application/dicom+json"):
    return part(orjson.dumps(list(datasets)), media_type)


def bulk(content, location, media_type="application/octet-stream"):
    return part(content, media_type, Content_Location=location)


ICC = bulk(b"profile", "b/icc")
PIXELS = bulk(b"\1\2\3\4\5\6", "b/1")


def send(store, *parts, content_type=JSON_BODY, step=1 << 16, limits=None, study=None):
    body = b"".join(parts) + b"\r\n--edge--\r\n"
    ingest = Ingest(store, content_type=content_type, limits=limits, study=study)
    ingest.begin()
    try:
        for at in range(0, len(body), step):
            ingest.feed(body[at : at + step])
            while ingest.pending:
                ingest.read_ended()
        return ingest.finish()
    finally:
        ingest.abort()


def content_of(store, instance="1.2.3.4.1"):
    (row,) = store.lookup(STUDY, SERIES, instance)
    with store.open_segments([row.location.segment]) as lease:
        return lease.pread(*row.location)


def stored(store, instance="1.2.3.4.1"):
    """As pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(content_of(store, instance)))


def failures(result):
    assert not result.stored
    return [(item.failure_reason, item.instance) for item in result.failed]


VALUES = {"b/icc": b"profile\0", "b/1": b"\1\2\3\4\5\6"}


@pytest.mark.parametrize("step", [1, 13, 1 << 16])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_is_stored_is_what_pydicom_makes_of_the_json(store, order, step):
    parts = [described(metadata()), ICC, PIXELS]
    result = send(store, *(parts[place] for place in order), step=step)
    assert result.status(2) == 200
    expected = Dataset.from_json(metadata(), bulk_data_uri_handler=lambda tag, vr, uri: VALUES[uri])
    found = stored(store)
    assert found == expected
    assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert found.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.1"


def test_xml_is_stored_as_json_is(store):
    documents = [
        part(b"".join(native_xml([orjson.dumps(metadata(f"1.2.3.4.{number}"))])), "application/dicom+xml")
        for number in (1, 2)
    ]
    assert send(store, *documents, ICC, PIXELS, content_type=XML_BODY).status(2) == 200
    send(store, described(metadata("1.2.3.4.3")), ICC, PIXELS)
    assert [stored(store, f"1.2.3.4.{number}").PatientName for number in (1, 2, 3)] == [
        "Müller^Jane=山田"
    ] * 3
    one, three = (content_of(store, f"1.2.3.4.{number}") for number in (1, 3))
    assert one.replace(b"1.2.3.4.1", b"1.2.3.4.3") == three


def test_several_instances_in_one_part_and_a_single_object(store):
    many = described(*(metadata(f"1.2.3.4.{number}") for number in range(1, 4)))
    one = part(orjson.dumps(metadata("1.2.3.4.9")), "application/dicom+json")
    result = send(store, many, one, ICC, PIXELS)
    assert [item.instance for item in result.stored] == [f"1.2.3.4.{number}" for number in (1, 2, 3, 9)]


def test_long_datasets_are_made_in_steps(store, monkeypatch):
    send(store, described(metadata()), ICC, PIXELS)
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (60,))
    monkeypatch.setattr(jsontext, "STEP", 1)
    monkeypatch.setattr(assembly, "LITERAL", 50)
    monkeypatch.setattr("streamsrv.ingest.spool.CHUNK", 7)
    assert send(store, described(metadata("1.2.3.4.2")), ICC, PIXELS).status(2) == 200
    assert content_of(store, "1.2.3.4.2") == content_of(store).replace(b"1.2.3.4.1", b"1.2.3.4.2")


# Compressed pixels

FRAMES = [b"\xff\xd8one\xff\xd9", b"\xff\xd8three\xff\xd9"]
TWO_FRAMES = {"x00280008": {"vr": "IS", "Value": [2]}}


@pytest.mark.parametrize(
    "locations",
    [
        ["b/1", "b/1"],
        ["b/1/frames/1", "b/1/frames/2"],
        ["http://h/i/frames/1", "http://h/i/frames/2"],
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_part_a_frame(store, locations, backwards):
    frames = [
        bulk(frame, location, f"image/jpeg; transfer-syntax={JPEG}")
        for frame, location in zip(FRAMES, locations, strict=True)
    ]
    if backwards and len(set(locations)) > 1:
        frames.reverse()
    uri = "http://h/i/bulkdata/7FE00010" if locations[0].startswith("http") else "b/1"
    result = send(store, described(metadata(pixels=uri, **TWO_FRAMES)), ICC, *frames)
    assert result.status(2) == 200
    found = stored(store)
    assert found.file_meta.TransferSyntaxUID == JPEG
    assert found["PixelData"].VR == "OB"
    assert [frame[: len(FRAMES[place])] for place, frame in enumerate(pixel_frames(found))] == FRAMES
    (row,) = store.lookup(STUDY)
    assert row.number_of_frames == 2
    assert [length for _, length in store.frame_entries(row, [0, 1])] == [8, 10]


def pixel_frames(dataset):
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1))))


@pytest.mark.parametrize(
    ("media_type", "more", "syntax"),
    [
        (f'application/octet-stream; transfer-syntax="{JPEG}"', {}, JPEG),
        ("image/jpeg", {}, JPEG_LOSSLESS),
        ("image/jpeg", {"x00020010": {"vr": "UI", "Value": [JPEG]}}, JPEG),
        ("image/jpeg", {"x00083002": {"vr": "UI", "Value": [JPEG]}}, JPEG),
        ("image/jp2", {"x00083002": {"vr": "UI", "Value": [JPEG]}}, "1.2.840.10008.1.2.4.90"),
        ("application/octet-stream", {"x00020010": {"vr": "UI", "Value": [JPEG]}}, JPEG),
        ("application/octet-stream", {}, "1.2.840.10008.1.2.1"),
        ("application/octet-stream; transfer-syntax=1.2.840.10008.1.2", {}, "1.2.840.10008.1.2.1"),
    ],
)
def test_the_transfer_syntax(store, media_type, more, syntax):
    result = send(store, described(metadata(**more)), ICC, bulk(FRAMES[0], "b/1", media_type))
    assert result.status(2) == 200
    assert stored(store).file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize(
    "media_types",
    [
        ["text/plain"],
        ["x"],
        ["application/octet-stream; transfer-syntax=1.2.840.10008.1.2.2"],
        [f"image/jpeg; transfer-syntax={JPEG}", "image/jp2"],
    ],
)
def test_pixels_of_no_known_kind_are_refused(store, media_types):
    result = send(store, described(metadata()), ICC, *(bulk(FRAMES[0], "b/1", each) for each in media_types))
    assert failures(result) == [(43264, "1.2.3.4.1")]


def test_bulk_data_by_content_id(store):
    pixels = part(b"\1\2\3\4\5\6", "application/octet-stream", Content_ID="<p@h>")
    assert send(store, described(metadata(pixels="cid:p@h")), ICC, pixels).status(2) == 200
    assert stored(store).PixelData == b"\1\2\3\4\5\6"


# Failures


def test_bulk_data_that_are_not_there(store):
    result = send(store, described(metadata(), metadata("1.2.3.4.2", pixels="")), ICC)
    assert [(item.failure_reason, item.instance) for item in result.failed] == [(272, "1.2.3.4.1")]
    assert "b/1" in result.failed[0].comment
    assert [item.instance for item in result.stored] == ["1.2.3.4.2"]


def test_a_dataset_that_cannot_be_encoded_costs_itself(store):
    bad = metadata("1.2.3.4.2", x00280010={"vr": "US", "Value": ["tall"]})
    result = send(store, described(metadata(), bad, metadata("1.2.3.4.3")), ICC, PIXELS)
    assert [(item.failure_reason, item.instance) for item in result.failed] == [(43264, "1.2.3.4.2")]
    assert len(result.stored) == 2
    assert "00280010" in result.failed[0].comment


def test_malformed_text_costs_what_follows_it(store):
    text = orjson.dumps([metadata(), metadata("1.2.3.4.2")])[:-20]
    result = send(store, part(text, "application/dicom+json"), described(metadata("1.2.3.4.3")), ICC, PIXELS)
    assert [item.instance for item in result.stored] == ["1.2.3.4.1", "1.2.3.4.3"]
    assert [item.failure_reason for item in result.failed] == [43264]


def test_a_long_dataset_that_fails_costs_itself(store, monkeypatch):
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (60,))
    monkeypatch.setattr(jsontext, "STEP", 1)
    monkeypatch.setattr("streamsrv.ingest.spool.CHUNK", 7)
    bad = metadata(x00280010={"vr": "US", "Value": ["tall"]})
    result = send(store, described(bad, metadata("1.2.3.4.2")), ICC, PIXELS)
    assert [item.instance for item in result.failed] == ["1.2.3.4.1"]
    assert [item.instance for item in result.stored] == ["1.2.3.4.2"]


def test_a_long_dataset_that_is_malformed_costs_what_follows_it(store, monkeypatch):
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (60,))
    monkeypatch.setattr(jsontext, "STEP", 1)
    monkeypatch.setattr("streamsrv.ingest.spool.CHUNK", 7)
    text = orjson.dumps([metadata(), metadata("1.2.3.4.2")]).replace(b'"vr":"PN"', b'"vr" "PN"', 1)
    result = send(store, part(text, "application/dicom+json"), ICC, PIXELS)
    assert [item.instance for item in result.failed] == ["1.2.3.4.1", ""]
    assert "not read" in result.failed[1].comment


def test_missing_uids_and_another_study(store):
    nameless = {tag: element for tag, element in metadata().items() if tag != "00080018"}
    assert failures(send(store, described(nameless), ICC, PIXELS)) == [(43264, "")]
    assert failures(send(store, described(metadata()), ICC, PIXELS, study="9.9")) == [(43265, "1.2.3.4.1")]


def test_a_body_without_metadata(store):
    assert failures(send(store, PIXELS)) == [(43264, "")]
    assert send(store).status(2) == 204


def test_a_body_that_breaks_off_leaves_nothing(store):
    ingest = Ingest(store, content_type=JSON_BODY)
    ingest.begin()
    ingest.feed(described(metadata()) + ICC + PIXELS)
    with pytest.raises(MultipartError):
        ingest.finish()
    ingest.abort()
    assert store.lookup(STUDY) == []


def test_limits(store):
    limits = IngestLimits(instance_bytes=2_000)
    assert send(store, described(metadata()), ICC, PIXELS, limits=limits).status(2) == 200
    with pytest.raises(ContentTooLarge):
        send(store, described(metadata("1.2.3.4.2")), ICC, bulk(bytes(1_900), "b/1"), limits=limits)


def test_a_part_may_describe_only_so_many_instances(store):
    """Each is answered for: three bytes of JSON cost a hundred times as much."""
    limits = IngestLimits(multipart=MultipartLimits(parts=3))
    assert len(send(store, described({}, {}, {}), limits=limits).failed) == 3
    with pytest.raises(ContentTooLarge, match="describe more than 3 instances"):
        send(store, described({}, {}, {}, {}), limits=limits)


def test_a_full_disk_is_told(store, monkeypatch):
    def full():
        raise InsufficientStorage("nearly full")

    monkeypatch.setattr("streamsrv.ingest.spool.ASK_EVERY", 100)
    ingest = Ingest(store, content_type=JSON_BODY)
    ingest.begin()
    monkeypatch.setattr(store.reserve, "require", full)
    with pytest.raises(InsufficientStorage):
        ingest.feed(described(metadata()) + ICC + PIXELS)
    ingest.abort()
    with pytest.raises(InsufficientStorage):
        send(store, described(metadata()), ICC, PIXELS)


@pytest.mark.no_cover
def test_memory_is_bounded(store):
    """40 MB of pixels, and metadata that take 19 MB as Python objects."""
    items = [{"00080050": {"vr": "SH", "Value": ["a"]}, "00081140": {"vr": "SQ", "Value": [{}]}}] * 10_000
    long = part(orjson.dumps(metadata(x52009230={"vr": "SQ", "Value": items})), "application/dicom+json")
    tracemalloc.start()
    chunk = bytes(1 << 20)
    ingest = Ingest(store, content_type=JSON_BODY)
    ingest.begin()
    for piece in (long[at : at + (1 << 20)] for at in range(0, len(long), 1 << 20)):
        ingest.feed(piece)
    ingest.feed(ICC + bulk(b"", "b/1"))
    for _ in range(40):
        ingest.feed(chunk)
    ingest.feed(b"\r\n--edge--\r\n")
    result = ingest.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.status(2) == 200
    assert store.lookup(STUDY)[0].pixel_length == 40 << 20
    assert peak < 26 << 20


@pytest.mark.parametrize("media_type", ["application/octet-stream", "image/jpeg"])
def test_what_no_length_can_tell_is_refused(store, monkeypatch, media_type):
    """Of 4 GiB or more, were it not for the patience of whoever waits for tests."""
    for module in ("explicit", "json.encoding"):
        monkeypatch.setattr(f"streamsrv.dicom.{module}.LONGEST", 9)
    for length, status in ((8, 200), (10, 409)):
        result = send(store, described(metadata()), ICC, bulk(b"x" * length, "b/1", media_type))
        assert result.status(2) == status
    (failed,) = result.failed
    assert (failed.failure_reason, failed.instance) == (272, "1.2.3.4.1")
    assert "longer than a" in failed.comment
    assert "at tag 7FE00010" in failed.comment


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_a_dataset_without_its_uids(store, keyword):
    """It costs itself; the next one is stored."""
    tag = f"{pydicom.datadict.tag_for_keyword(keyword):08X}"
    lacking = metadata("1.9.9", pixels=None)
    del lacking[tag]
    result = send(store, described(lacking, metadata()), ICC, PIXELS)
    assert len(result.stored) == 1
    assert [(item.failure_reason, item.comment) for item in result.failed] == [
        (43264, f"{keyword} is missing (at tag {tag})")
    ]

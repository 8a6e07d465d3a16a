"""Store transactions without HTTP: bodies in, outcomes out, on a real store."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from pydicom.valuerep import validate_value
from xml_models import check_model, json_of, parsed

from streamsrv.errors import ContentTooLarge, MultipartError, NotAcceptable, NotDicom, UnsupportedMediaType
from streamsrv.ingest import Ingest, IngestLimits, spool, transaction
from streamsrv.ingest.derivation import ReaderPool, derive
from streamsrv.ingest.response import FailedItem, StoredItem, StoreResult, acceptable, answer
from streamsrv.store.fileops import Buffer, FileOps
from streamsrv.store.maintenance.check import check
from streamsrv.store.rows import InstanceKey, OnDuplicate
from streamsrv.store.store import Store, StoreOptions
from streamsrv.wire.answers import ByteStream, Literal, Request

STUDY = "1.2.3"
BOUNDARY = "edge"


def part10(
    instance: str, *, study: str = STUDY, series: str = "1.2.3.4", pixels: bytes = b"\1\2" * 16
) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName, dataset.Modality = "ID1", "Doe^Jane", "CT"
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PixelData = 0, pixels
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def body(*parts: bytes, media_type: str = "application/dicom") -> bytes:
    head = f"\r\n--{BOUNDARY}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    return b"".join(head + part for part in parts) + f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", StoreOptions(min_free=0)) as opened:
        yield opened


def send(store: Store, payload: bytes, *, step: int = 1 << 16, **options: object) -> StoreResult:
    content_type = options.pop("content_type", f"multipart/related; boundary={BOUNDARY}")
    ingest = Ingest(store, content_type=content_type, **options)  # type: ignore[arg-type]  # test options
    ingest.begin()
    try:
        for at in range(0, len(payload), step):
            ingest.feed(payload[at : at + step])
            if ingest.pending:
                ingest.read_ended()
        return ingest.finish()
    finally:
        ingest.abort()


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_parts_are_stored_byte_for_byte(store: Store, step: int) -> None:
    files = [part10(f"1.2.3.4.{number}", pixels=bytes([number]) * 32) for number in range(3)]
    result = send(store, body(*files), step=step)
    assert [item.instance for item in result.stored] == ["1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2"]
    assert result.status(1) == result.status(2) == 200
    rows = store.lookup(STUDY)
    with store.open_segments({row.location.segment for row in rows}) as lease:
        assert [lease.pread(*row.location) for row in rows] == files


def test_a_single_part_is_the_whole_body(store: Store) -> None:
    result = send(store, part10("1.2.3.4.1"), content_type='application/dicom; transfer-syntax="*"', step=100)
    assert [item.instance for item in result.stored] == ["1.2.3.4.1"]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "multipart/form-data; boundary=x",
        "multipart/related",
        'multipart/related; type="application/fhir+json"; boundary=x',
    ],
)
def test_a_body_of_another_type_is_refused_before_it_is_read(store: Store, content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        Ingest(store, content_type=content_type)


def test_a_part_that_is_not_dicom_costs_that_part(store: Store) -> None:
    result = send(store, body(b"not DICOM", part10("1.2.3.4.1"), b""))
    assert [item.instance for item in result.stored] == ["1.2.3.4.1"]
    assert [item.failure_reason for item in result.failed] == [43264, 43264]
    assert result.status(1) == 202


def test_a_part_of_another_media_type_costs_that_part(store: Store) -> None:
    result = send(store, body(part10("1.2.3.4.1"), media_type="text/plain"))
    assert [item.failure_reason for item in result.failed] == [43264]
    assert "text/plain" in result.failed[0].comment
    assert result.status(2) == 409


def test_an_instance_of_another_study_is_refused(store: Store) -> None:
    result = send(store, body(part10("1.2.3.4.1", study="9.9"), part10("1.2.3.4.2")), study=STUDY)
    assert [(item.failure_reason, item.instance) for item in result.failed] == [(43265, "1.2.3.4.1")]
    assert [item.instance for item in result.stored] == ["1.2.3.4.2"]
    assert store.lookup("9.9") == []


def test_within_a_request_the_first_of_equal_instances_wins(store: Store) -> None:
    first, second = part10("1.2.3.4.1"), part10("1.2.3.4.1", pixels=b"\7" * 32)
    result = send(store, body(first, second))
    assert [item.failure_reason for item in result.failed] == [45070]
    (row,) = store.lookup(STUDY)
    with store.open_segments([row.location.segment]) as lease:
        assert lease.pread(*row.location) == first


@pytest.mark.parametrize(
    ("on_duplicate", "same", "other"),
    [
        (OnDuplicate.REFUSE, 409, 409),
        (OnDuplicate.ACCEPT_IDENTICAL, 200, 409),
        (OnDuplicate.REPLACE, 200, 200),
    ],
)
def test_the_same_instance_again(store: Store, on_duplicate: OnDuplicate, same: int, other: int) -> None:
    send(store, body(part10("1.2.3.4.1")))
    again = send(store, body(part10("1.2.3.4.1")), on_duplicate=on_duplicate)
    assert again.status(2) == same
    changed = part10("1.2.3.4.1", pixels=b"\7" * 32)
    result = send(store, body(changed), on_duplicate=on_duplicate)
    assert result.status(2) == other
    (row,) = store.lookup(STUDY)
    with store.open_segments([row.location.segment]) as lease:
        assert (lease.pread(*row.location) == changed) is (on_duplicate is OnDuplicate.REPLACE)


def test_a_body_that_breaks_off_leaves_nothing(store: Store) -> None:
    with pytest.raises(MultipartError):
        send(store, body(part10("1.2.3.4.1"), part10("1.2.3.4.2"))[:-20])
    assert store.lookup(STUDY) == []
    assert send(store, body(part10("1.2.3.4.1"))).status(2) == 200


def test_an_instance_over_the_limit_refuses_the_request(store: Store) -> None:
    limits = IngestLimits(instance_bytes=1000)
    assert send(store, body(part10("1.2.3.4.1")), limits=limits).status(2) == 200
    with pytest.raises(ContentTooLarge, match="1000 bytes"):
        send(store, body(part10("1.2.3.4.2", pixels=bytes(2000))), limits=limits)
    assert len(store.lookup(STUDY)) == 1


def test_a_body_without_parts(store: Store) -> None:
    assert send(store, body()).status(2) == 204


def test_what_waits_for_the_commit_spills(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SPILL_AFTER", 3)
    files = [part10(f"1.2.3.4.{number}") for number in range(10)]
    result = send(store, body(*files))
    assert len(result.stored) == 10
    assert len(store.lookup(STUDY)) == 10


def test_a_series_that_comes_one_by_one_teaches_the_next_request(store: Store) -> None:
    readers = ReaderPool()
    own = readers.acquire()
    readers.release(own)
    for number in range(6):
        part = part10(f"1.2.3.4.{number}", pixels=bytes([number]) * 32)
        result = send(store, part, content_type="application/dicom", readers=readers)
        assert result.status(2) == 200
    refused = send(store, b"no DICOM", content_type="application/dicom", readers=readers)
    assert refused.status(2) == 409
    assert readers.acquire() is own
    assert own.matches > 0


def test_long_instances_are_read_in_a_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "HEAVY_INSTANCE", 700)
    ingest = Ingest(store, content_type="application/dicom")
    ingest.begin()
    ingest.feed(part10("1.2.3.4.1", pixels=bytes(1000)))
    assert (ingest.pending, ingest.heavy) == (False, False)
    assert ingest.finish().status(2) == 200
    ingest = Ingest(store, content_type=f"multipart/related; boundary={BOUNDARY}")
    ingest.begin()
    ingest.feed(body(part10("1.2.3.4.2", pixels=bytes(1000))))
    assert (ingest.pending, ingest.heavy) == (True, True)
    ingest.abort()


def test_a_chunk_of_very_many_parts_is_taken_in_turns(store: Store) -> None:
    """Or a megabyte of empty parts would stop everybody else for seconds."""
    ingest = Ingest(store, content_type=f"multipart/related; boundary={BOUNDARY}")
    ingest.begin()
    files = [part10(f"1.2.3.4.{number}") for number in range(3)]
    turns = 0
    ingest.feed(body(*[b""] * 1000, *files, *[b""] * 1000))
    while ingest.pending:
        ingest.read_ended()
        turns += 1
    assert turns > 4000 / transaction.EVENTS_AT_ONCE
    result = ingest.finish()
    assert (len(result.stored), len(result.failed)) == (3, 2000)


def test_whoever_does_not_take_turns_loses_nothing(store: Store) -> None:
    files = [part10(f"1.2.3.4.{number}") for number in range(3)]
    ingest = Ingest(store, content_type=f"multipart/related; boundary={BOUNDARY}")
    ingest.begin()
    payload = body(*[b""] * 500, *files, *[b""] * 500)
    ingest.feed(payload[:5000])
    ingest.feed(payload[5000:])
    result = ingest.finish()
    assert (len(result.stored), len(result.failed)) == (3, 1000)


class Writes(FileOps):
    """Counts the writes to segments by their pieces."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.kept = bytearray()
        self.passed = bytearray()

    def write(self, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
        self.pieces.append(len(pieces))
        for piece in pieces:
            (self.kept if keep else self.passed).extend(piece)
        return super().write(fd, pieces, offset, keep=keep)


def test_what_stays_is_written_with_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "READ_TOGETHER", 1)
    files = [part10(f"1.2.3.4.{number}", pixels=bytes([number]) * 3000) for number in range(5)]
    payload, ops = body(*files), Writes()
    with Store.open(tmp_path / "data", StoreOptions(min_free=0), fileops=ops) as store:
        ingest = Ingest(store, content_type=f"multipart/related; boundary={BOUNDARY}")
        ingest.begin()
        ops.pieces.clear()
        buffer, half = bytearray(payload), len(payload) // 2
        ingest.feed(buffer, half, stays=True)
        assert not ops.pieces
        assert not ingest.pending
        ingest.feed(buffer, len(payload) - half, start=half)
        buffer[:] = bytes(len(buffer))  # it may be used again
        assert len(ops.pieces) == 1
        assert ingest.pending
        result = ingest.finish()
        assert len(result.stored) == 5
        for item, file in zip(result.stored, files, strict=True):
            row = store.index.existing([InstanceKey(item.study, item.series, item.instance)])[0]
            assert row is not None
            with store.readers.open([row.location.segment]) as lease:
                assert lease.pread(row.location.segment, row.location.offset, row.location.length) == file


@pytest.mark.parametrize(("limit", "most"), [("WRITE_BYTES", 4000), ("WRITE_PIECES", 2)])
def test_what_waits_to_be_written_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(transaction, limit, most)
    ingest = Ingest(store, content_type=f"multipart/related; boundary={BOUNDARY}")
    ingest.begin()
    payload = body(part10("1.2.3.4.1", pixels=bytes(20_000)))
    for at in range(0, len(payload), 1000):
        ingest.feed(payload[at : at + 1000], stays=True)
    assert sum(path.stat().st_size for path in store.layout.segments.iterdir()) > 15_000
    assert len(ingest.finish().stored) == 1


def slide(instance: str, tiles: list[bytes]) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(part10(instance)))
    dataset.NumberOfFrames = len(tiles)
    dataset.PixelData = encapsulate(tiles, has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_the_rest_of_a_long_value_is_not_kept_in_the_page_cache(tmp_path: Path) -> None:
    limits = IngestLimits(kept_bytes=5000)
    loop = part10("1.2.3.4.1", pixels=b"loop" * 10_000)
    tiled = slide("1.2.3.4.2", [b"\xff\xd8tile%4d" % number * 90 for number in range(40)])
    short = part10("1.2.3.4.3", pixels=b"kept" * 8)
    no_dicom = b"noise" * 3000
    files, ops = [loop, short, tiled, no_dicom], Writes()
    with Store.open(tmp_path / "data", StoreOptions(min_free=0), fileops=ops) as store:
        assert len(send(store, body(*files), step=1000, limits=limits).stored) == 3
        again = send(store, tiled, step=777, content_type="application/dicom", limits=limits)
        assert len(again.failed) == 1
        assert 2000 > ops.kept.count(b"loop") > 1000
        assert ops.passed.count(b"loop") > 8000
        assert ops.passed.count(b"tile") > 3000
        assert 2 * 700 > ops.kept.count(b"tile") > 2 * 200
        assert ops.kept.count(b"kept") == 8
        assert ops.kept.count(b"noise") > 2990
        rows = store.index.existing([InstanceKey(STUDY, "1.2.3.4", f"1.2.3.4.{n}") for n in (1, 2, 3)])
        for row, file in zip(rows, (loop, tiled, short), strict=True):
            assert row is not None
            with store.readers.open([row.location.segment]) as lease:
                assert lease.pread(row.location.segment, row.location.offset, row.location.length) == file
        assert rows[1] is not None
        assert rows[1].number_of_frames == 40
        assert [str(finding) for finding in check(store, lambda record: derive(record)[1])] == []


def test_everything_is_kept_that_is_meant_to_be(tmp_path: Path) -> None:
    ops = Writes()
    with Store.open(tmp_path / "data", StoreOptions(min_free=0), fileops=ops) as store:
        assert (
            len(
                send(
                    store, part10("1.2.3.4.1", pixels=bytes(50_000)), content_type="application/dicom"
                ).stored
            )
            == 1
        )
    assert not ops.passed


def test_a_long_part_is_looked_at_once_and_in_a_thread(store: Store) -> None:
    ingest = Ingest(store, content_type="application/dicom", limits=IngestLimits(kept_bytes=5000))
    ingest.begin()
    file = part10("1.2.3.4.1", pixels=bytes(20_000))
    ingest.feed(file[:4000])
    assert (ingest.pending, ingest.heavy) == (False, False)
    ingest.feed(file[4000:6000])
    assert (ingest.pending, ingest.heavy) == (True, True)
    ingest.read_ended()
    ingest.feed(file[6000:])
    assert (ingest.pending, ingest.heavy) == (False, False)
    assert len(ingest.finish().stored) == 1


def test_what_a_part_calls_itself_is_kept_in_short(store: Store) -> None:
    result = send(store, body(b"", media_type="text/" + "x" * 10_000))
    assert len(result.failed[0].comment) < 200


# The response dataset


def request(version: int) -> Request:
    return Request("POST", "/studies", (), {}, f"http://h/v{version}", version)


def dataset_of(result: StoreResult, version: int) -> dict[str, dict[str, object]]:
    made = answer(result, request(version))
    (piece,) = made.plan
    assert isinstance(piece, Literal)
    assert made.length == len(piece.payload)
    loaded = orjson.loads(piece.payload)
    assert list(loaded) == sorted(loaded)
    Dataset.from_json(loaded)  # pydicom reads it
    return loaded  # type: ignore[no-any-return]  # JSON


RESULT = StoreResult(
    [
        StoredItem("1.2.840.1", STUDY, "1.4", "1.5", ("(0010,0020) is empty",)),
        StoredItem("1.2.840.1", STUDY, "1.4", "1.6"),
    ],
    [FailedItem(43264, "not DICOM"), FailedItem(45070, "there", "1.2.840.1", "1.7")],
)


def test_the_response_dataset_of_version_2() -> None:
    made = dataset_of(RESULT, 2)
    assert made["00081190"]["Value"] == [f"http://h/v2/studies/{STUDY}"]
    assert made["00081199"]["Value"] == [
        {
            "00081150": {"vr": "UI", "Value": ["1.2.840.1"]},
            "00081155": {"vr": "UI", "Value": ["1.5"]},
            "00081190": {"vr": "UR", "Value": [f"http://h/v2/studies/{STUDY}/series/1.4/instances/1.5"]},
            "00081196": {"vr": "US", "Value": [1]},
            "00741048": {
                "vr": "SQ",
                "Value": [{"00000902": {"vr": "LO", "Value": ["(0010,0020) is empty"]}}],
            },
        },
        {
            "00081150": {"vr": "UI", "Value": ["1.2.840.1"]},
            "00081155": {"vr": "UI", "Value": ["1.6"]},
            "00081190": {"vr": "UR", "Value": [f"http://h/v2/studies/{STUDY}/series/1.4/instances/1.6"]},
            "00741048": {"vr": "SQ"},
        },
    ]
    assert made["00081198"]["Value"] == [
        {
            "00081197": {"vr": "US", "Value": [43264]},
            "00741048": {"vr": "SQ", "Value": [{"00000902": {"vr": "LO", "Value": ["not DICOM"]}}]},
        },
        {
            "00081150": {"vr": "UI", "Value": ["1.2.840.1"]},
            "00081155": {"vr": "UI", "Value": ["1.7"]},
            "00081197": {"vr": "US", "Value": [45070]},
            "00741048": {"vr": "SQ", "Value": [{"00000902": {"vr": "LO", "Value": ["there"]}}]},
        },
    ]


def test_a_comment_goes_on_where_an_lo_ends() -> None:
    """PS3.5 6.2: 64 characters, no backslash, no control character. pydicom says so, too."""
    error = NotDicom("a fragment of Pixel Data is longer than its container", offset=12345678, tag="7FE00010")
    unbroken = "no part has the Content-Location '" + "x" * 200 + "'"
    failed = [
        FailedItem.of(error),
        FailedItem(272, unbroken),
        FailedItem(272, "a\\b\tc"),
        FailedItem(272, ""),
    ]
    items: Any = dataset_of(StoreResult(failed=failed), 2)["00081198"]["Value"]
    said = [[row["00000902"]["Value"][0] for row in item["00741048"].get("Value", [])] for item in items]
    assert " ".join(said[0]) == error.detail
    assert "".join(said[1]).replace(" ", "") == unbroken.replace(" ", "")
    assert said[2:] == [["a?b?c"], []]
    for comment in (one for each in said for one in each):
        validate_value("LO", comment, pydicom.config.RAISE)


def test_version_1_has_neither_warnings_nor_comments() -> None:
    made = dataset_of(RESULT, 1)
    items = [*made["00081199"]["Value"], *made["00081198"]["Value"]]  # type: ignore[misc]  # JSON
    assert all("00741048" not in item and "00081196" not in item for item in items)


def test_statuses() -> None:
    warned = StoreResult(stored=RESULT.stored[:1])
    assert (warned.status(1), warned.status(2)) == (200, 202)
    assert StoreResult(failed=RESULT.failed).status(2) == 409
    assert answer(StoreResult(), request(2)).status == 204


def test_no_study_url_when_several_were_stored() -> None:
    other = StoredItem("1.2.840.1", "9.9", "1.4", "1.8")
    assert "00081190" not in dataset_of(StoreResult([RESULT.stored[0], other]), 2)


# PS3.18 Table 10.5.3-2
@pytest.mark.parametrize(
    ("places", "below"),
    [
        ([("1.3", "1.4", "1.5")], "/1.3/series/1.4/instances/1.5"),
        ([("1.3", "1.4", "1.5"), ("1.3", "1.4", "1.6")], "/1.3/series/1.4"),
        ([("1.3", "1.4", "1.5"), ("1.3", "1.9", "1.6")], "/1.3"),
        ([("1.3", "1.4", "1.5"), ("1.3", "1.4", "1.6"), ("1.2", "1.4", "1.7")], ""),
    ],
)
def test_the_location_of_what_was_stored(places: list[tuple[str, str, str]], below: str) -> None:
    stored = [StoredItem("1.2.840.1", *place) for place in places]
    headers = dict(answer(StoreResult(stored, RESULT.failed), request(2)).headers)
    assert headers["Location"] == headers["Content-Location"] == f"http://h/v2/studies{below}"
    assert "Location" not in dict(answer(StoreResult(failed=RESULT.failed), request(2)).headers)


def answered(accept: str) -> tuple[str, bytes]:
    asked = Request("POST", "/studies", (), {"accept": accept}, "http://h/v2", 2)
    made = answer(RESULT, asked)
    (piece,) = made.plan
    assert isinstance(piece, Literal)
    return dict(made.headers)["Content-Type"], piece.payload


def test_the_response_dataset_in_xml() -> None:
    media_type, payload = answered("application/dicom+xml, application/json;q=0.5")
    assert media_type == "application/dicom+xml"
    root = parsed(payload)
    check_model(root)
    assert json_of(root) == orjson.loads(answered("application/dicom+json")[1])


def test_media_types_of_the_response() -> None:
    assert answered("application/json")[0] == "application/json"
    assert answered("*/*")[0] == "application/dicom+json"
    # Too late to refuse: it is stored.
    assert answered("image/png")[0] == "application/dicom+json"
    with pytest.raises(NotAcceptable):
        acceptable(Request("POST", "/studies", (), {"accept": "image/png"}, "http://h/v2", 2))


def test_a_long_response_is_streamed() -> None:
    stored = [StoredItem("1.2.840.1", STUDY, "1.4", generate_uid()) for _ in range(2_100)]
    made = answer(StoreResult(stored), request(2))
    (piece,) = made.plan
    assert isinstance(piece, ByteStream)
    assert made.length is None
    chunks = list(piece.chunks(0, None))
    assert len(orjson.loads(b"".join(chunks))["00081199"]["Value"]) == 2_100
    assert len(chunks) < 20

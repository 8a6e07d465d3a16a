"""The verb `salvage`: instances from segments alone, with damage at every place of a record, and with
uploaded files that imitate records."""

import csv
import hashlib
import json
import shutil
import sqlite3
import struct
import subprocess

import pytest
from hostile_files import element, instance
from object_world import fresh_key
from obstore.store import MemoryStore
from seaweed import BUCKET, variables
from small_client import file_of, key_of

from streamsrv.cli import FAILED, main
from streamsrv.ingest.derivation import derive
from streamsrv.store import OnDuplicate, Store, StoreOptions
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.writer import ObjectWriter
from streamsrv.store.segments.records import (
    HEADER,
    NO_ID,
    PayloadDigest,
    RecordFormat,
    RecordHeader,
    RecordKind,
)
from streamsrv.store.segments.segments import Clock

OPTIONS = StoreOptions(segment_size=1 << 20, min_free=0)
KEYS = [key_of(1, 1, number) for number in range(1, 7)]
FILES = [file_of(key, 1, 4000) for key in KEYS]


def put(store, *files, on_duplicate=OnDuplicate.REFUSE):
    transaction = store.begin()
    made = []
    for file in files:
        transaction.open_record()
        transaction.write([memoryview(file)])
        record = transaction.close_record()
        made.append((record, derive(record)[1]))
    outcomes = transaction.commit(made, on_duplicate)
    transaction.abort()
    return outcomes


def salvage(capsys, out, *segments):
    capsys.readouterr()
    code = main(["salvage", str(out), *map(str, segments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def files_in(folder):
    return {path.stem: path.read_bytes() for path in folder.rglob("*.dcm")}


def records_of(data):
    """The records of the first segment."""
    with Store.open(data, OPTIONS, read_only=True) as store:
        path = store.layout.segment(1)
        with path.open("rb") as stream:
            return path, list(store.form.walk(stream.fileno(), 1, path.stat().st_size))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A store with six instances."""
    data = tmp_path_factory.mktemp("plain") / "data"
    with Store.open(data, OPTIONS) as store:
        for file in FILES:
            put(store, file)
    return data


@pytest.fixture
def segment(plain, tmp_path):
    """A copy of its segment that a test may damage."""
    path, _ = records_of(plain)
    return shutil.copy(path, tmp_path / "00000001.seg")


def damage(path, offset, new):
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(new)


def expected(*left_out):
    return {key[2]: file for key, file in zip(KEYS, FILES, strict=True) if key not in left_out}


def test_instances_come_back_without_the_store(plain, segment, tmp_path, capsys):
    out = tmp_path / "out"
    code, report = salvage(capsys, out, segment)
    assert (code, report["errors"], report["instances"]) == (0, 0, 6)
    assert files_in(out / "instances") == expected()
    with (out / "manifest.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {line["found_by"] for line in lines} == {"chain"}
    for line in lines:
        assert hashlib.sha256((out / line["path"]).read_bytes()).hexdigest() == line["sha256"]
    one = out / lines[0]["path"]
    shown = subprocess.run(
        ["dcmdump", "+P", "SOPInstanceUID", one], capture_output=True, text=True, check=True
    )
    assert lines[0]["SOPInstanceUID"] in shown.stdout
    assert sorted(each.name for each in out.iterdir()) == ["instances", "manifest.csv", "salvage.sqlite"]


@pytest.mark.parametrize("part", [1000, 5000, 1 << 20])
def test_instances_come_back_from_an_object(tmp_path, capsys, part):
    """Also those that are longer than its parts, whose header in front is not final."""
    memory = MemoryStore()
    bucket = Bucket(memory, memory, part)
    form = RecordFormat(b"s" * 32, b"f" * 16)
    writer = ObjectWriter(bucket, form, 1, fresh_key(1), tmp_path, Clock())
    records = []
    for file in FILES:
        writer.open_record()
        writer.write([file[:100]])
        writer.write([file[100:]])
        records.append(writer.close_record())
    length = writer.complete(records)
    writer.abort()
    (tmp_path / "00000001.seg").write_bytes(bucket.read(writer.key, 0, length))
    out = tmp_path / "out"
    code, report = salvage(capsys, out, tmp_path / "00000001.seg")
    assert (code, report["errors"], report["instances"]) == (0, 0, 6)
    assert files_in(out / "instances") == expected()
    with (out / "manifest.csv").open(newline="") as stream:
        assert {line["found_by"] for line in csv.DictReader(stream)} == {"trailer"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, database_server, object_store):
    """The URL of a bucket with six instances, of which two have gone, and the store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(object_store.endpoint).items():
            patch.setenv(name, value)
        url = f"s3://{BUCKET}/salvage"
        options = StoreOptions(min_free=0, index=database_server.url("salvage"), segments=url, grace=10_000)
        with Store.open(tmp_path_factory.mktemp("node"), options) as store:
            put(store, *FILES[:4])
            put(store, *FILES[4:])
            put(store, FILES[0])  # refused
            store.delete(*KEYS[0])
            put(store, file_of(KEYS[1], 2, 5000), on_duplicate=OnDuplicate.REPLACE)
            yield url, store


def test_instances_come_back_from_a_bucket(bucket, tmp_path, capsys):
    """Deleted and replaced ones are known by the tombstones. A second run reads nothing again."""
    url, store = bucket
    out = tmp_path / "out"
    for _ in range(2):
        code, report = salvage(capsys, out, url)
        assert (code, report["findings"], report["instances"], report["deleted"]) == (0, [], 5, 2)
        newer = {KEYS[1][2]: file_of(KEYS[1], 2, 5000)}
        assert files_in(out / "instances") == expected(KEYS[0]) | newer
        assert sorted(files_in(out / "deleted").values()) == sorted(FILES[:2])
    segment = store.lookup(*KEYS[2])[0].location.segment
    ((_, key, length),) = store.rooms.table.find([segment])
    content = bytes(store.rooms.bucket.read(key, 0, length))
    store.rooms.bucket.remove(key)
    assert salvage(capsys, out, url)[1]["instances"] == 5
    for place in (length - 50, content.find(FILES[2]) + 3000):
        broken = bytearray(content)
        broken[place] ^= 1
        store.rooms.bucket.put(key, bytes(broken))
        code, report = salvage(capsys, tmp_path / f"out-{place}", url)
        assert code == FAILED
        assert report["findings"][0]["where"].startswith(key)
        assert (report["instances"], report["damaged"]) == ((5, 0) if place == length - 50 else (4, 1))
    store.rooms.bucket.put(key, content)


def test_buckets_that_cannot_be_read(bucket, tmp_path, capsys, monkeypatch):
    for url, sentence in (
        (f"s3://{BUCKET}/nothing", "no segment was found"),
        ("s3://of-another-owner/x", "refuses the credentials"),
        ("s3://", "is not a URL like s3://"),
    ):
        assert main(["salvage", str(tmp_path / "out"), url]) == FAILED
        assert sentence in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert main(["salvage", str(tmp_path / "out"), bucket[0]]) == FAILED
    assert "the gateway does not answer" in capsys.readouterr().err


def test_deleted_and_replaced_instances_are_put_aside(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    newer = file_of(KEYS[1], 2, 5000)
    with Store.open(data, OPTIONS) as store:
        put(store, *FILES)
        store.delete(*KEYS[0])
        put(store, newer, on_duplicate=OnDuplicate.REPLACE)
        store.delete(*KEYS[2])
        put(store, FILES[2])  # it was stored again
    code, report = salvage(capsys, out, data / "segments")
    assert (code, report["instances"], report["deleted"]) == (0, 5, 3)
    assert files_in(out / "instances") == expected(KEYS[0]) | {KEYS[1][2]: newer}
    assert sorted(files_in(out / "deleted").values()) == sorted(FILES[:3])


def test_a_run_that_broke_off_goes_on(segment, tmp_path, capsys):
    """A file without row, a row without file, and a file at its old place."""
    out = tmp_path / "out"
    salvage(capsys, out, segment)
    kept, lost, *_ = sorted((out / "instances").rglob("*.dcm"))
    lost.unlink()
    (out / "part").write_bytes(b"half")
    before = kept.stat().st_mtime_ns
    code, report = salvage(capsys, out, segment)
    assert (code, report["instances"]) == (0, 6)
    assert files_in(out / "instances") == expected()
    assert kept.stat().st_mtime_ns == before


# The header of the third record, byte by byte of its fields.
FIELDS = {
    "marker": 0,
    "version": 8,
    "kind": 9,
    "zeros": 10,
    "length": 52,
    "digest": 60,
    "crc": 76,
    "check": 88,
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_field_of_a_header_costs_nothing(plain, segment, tmp_path, capsys, field):
    _, records = records_of(plain)
    damage(segment, records[2].offset + FIELDS[field], b"\xa7")
    code, report = salvage(capsys, tmp_path / "out", segment)
    assert files_in(tmp_path / "out" / "instances") == expected()
    # The check needs the secret; one half of a digest is enough.
    assert code == report["errors"] == (0 if field in ("check", "digest", "crc") else 1)


def test_a_lost_header_costs_its_record(plain, segment, tmp_path, capsys):
    _, records = records_of(plain)
    damage(segment, records[2].offset, bytes(HEADER))
    code, report = salvage(capsys, tmp_path / "out", segment)
    assert (code, report["instances"]) == (FAILED, 5)
    assert report["findings"][0]["where"] == f"00000001.seg, byte {records[2].offset}"
    assert report["lost_bytes"] == records[2].end - records[2].offset
    assert files_in(tmp_path / "out" / "instances") == expected(KEYS[2])
    found = (tmp_path / "out" / "manifest.csv").read_text()
    assert (found.count(",chain,"), found.count(",search,")) == (2, 3)


def test_a_wrong_payload_is_named_and_kept_apart(plain, segment, tmp_path, capsys):
    _, records = records_of(plain)
    damage(segment, records[2].end - 100, b"wrong pixels")
    code, report = salvage(capsys, tmp_path / "out", segment)
    assert (code, report["instances"], report["damaged"]) == (FAILED, 5, 1)
    assert KEYS[2][2] in report["findings"][0]["what"]
    (found,) = files_in(tmp_path / "out" / "damaged").values()
    assert found != FILES[2]
    assert len(found) == len(FILES[2])


@pytest.mark.parametrize("end", ["header", "payload"])
def test_a_segment_that_ends_early(plain, segment, tmp_path, capsys, end):
    _, records = records_of(plain)
    with segment.open("r+b") as stream:
        stream.truncate(records[5].offset + (50 if end == "header" else HEADER + 500))
    code, report = salvage(capsys, tmp_path / "out", segment)
    assert (code, report["instances"]) == (FAILED, 5)
    assert files_in(tmp_path / "out" / "instances") == expected(KEYS[5])


def test_the_header_of_the_file_is_damaged(segment, tmp_path, capsys):
    damage(segment, 0, bytes(64))
    code, report = salvage(capsys, tmp_path / "out", segment)
    assert (code, report["instances"]) == (FAILED, 6)
    assert files_in(tmp_path / "out" / "instances") == expected()


def test_the_begin_of_a_segment_is_lost(plain, segment, tmp_path, capsys):
    """The marker comes from another segment of the store, here an older copy."""
    whole = segment.read_bytes()
    _, records = records_of(plain)
    segment.write_bytes(whole[300:])
    code, report = salvage(capsys, tmp_path / "alone", segment)
    assert (code, report["instances"]) == (FAILED, 0)
    other = tmp_path / "00000002.seg"
    other.write_bytes(whole[: records[1].offset])
    code, report = salvage(capsys, tmp_path / "out", other, segment)
    assert (code, report["instances"]) == (FAILED, 6)
    assert files_in(tmp_path / "out" / "instances") == expected()


# Imitations


def imitation(store, file, began):
    """Bytes like those of a record, by a user that has read the segments: only the check is wrong."""
    digest = PayloadDigest(file).digest()
    header = RecordHeader(RecordKind.INSTANCE, b"imitation 123456", 1, len(file), digest, began, NO_ID)
    raw = store.form.pack(header, 1, 0)
    return raw[:88] + bytes(16) + file


@pytest.fixture
def imitated(tmp_path):
    """A store whose second instance imitates another one up to its end."""
    data = tmp_path / "data"
    forged = file_of(key_of(9, 9, 9), 1, 4000)
    with Store.open(data, OPTIONS) as store:
        put(store, FILES[0])
        false = imitation(store, forged, 64)
        key = KEYS[1]
        hidden = element(0x00420011, "OB", b"begin " + false)
        host = instance({0x00420011: hidden}, instance=key[2], study=key[0], series=key[1])
        put(store, host)
        put(store, FILES[2])
    return data, host, forged


@pytest.mark.parametrize("field", [None, "marker", "length", "digest"])
def test_a_file_that_imitates_a_record_is_one_file(imitated, tmp_path, capsys, field):
    data, host, _ = imitated
    path, records = records_of(data)
    if field:
        damage(path, records[1].offset + FIELDS[field], struct.pack("<B", 0xA7))
    salvage(capsys, tmp_path / "out", path)
    found = files_in(tmp_path / "out" / "instances")
    assert found == {KEYS[0][2]: FILES[0], KEYS[1][2]: host, KEYS[2][2]: FILES[2]}


def test_an_imitation_behind_a_lost_header_is_marked(imitated, tmp_path, capsys):
    """Without the secret nothing tells it from a record, but the manifest says that it was searched."""
    data, _, forged = imitated
    path, records = records_of(data)
    damage(path, records[1].offset, bytes(HEADER))
    code, _ = salvage(capsys, tmp_path / "out", path)
    assert code == FAILED
    with (tmp_path / "out" / "manifest.csv").open(newline="") as stream:
        by = {line["SOPInstanceUID"]: line["found_by"] for line in csv.DictReader(stream)}
    assert by == {KEYS[0][2]: "chain", "1.2.9.9.9": "search", KEYS[2][2]: "search"}
    assert forged in files_in(tmp_path / "out" / "instances").values()


def test_a_second_run_in_the_folder_is_refused(segment, tmp_path, capsys):
    out = tmp_path / "out"
    salvage(capsys, out, segment)
    rows = sqlite3.connect(out / "salvage.sqlite")
    rows.execute("BEGIN EXCLUSIVE")
    assert main(["salvage", str(out), str(segment)]) == FAILED
    assert "another run" in capsys.readouterr().err
    rows.close()
    assert main(["salvage", str(out), str(tmp_path / "no")]) == FAILED


def test_a_folder_without_segments(tmp_path, capsys):
    assert main(["salvage", str(tmp_path / "out"), str(tmp_path)]) == FAILED
    assert "no segment was found" in capsys.readouterr().err

"""Rot in each kind of record and file: nothing that was acknowledged is cut or hidden, nothing deleted
returns.

Whatever byte is wrong, three things hold for `reindex`. With the old index it has as many instances as
before. If it says that all is well, every instance is whole and `check` agrees. And what was deleted or
replaced stays away, unless the exit code says that something is wrong and no old index is there to tell.
"""

import errno
import os
import random
import shutil

import pytest
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreError
from streamsrv.store.maintenance.check import Severity, check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import OnDuplicate, Outcome
from streamsrv.store.segments.manifest import slot_offset
from streamsrv.store.segments.records import HEADER, RecordKind
from streamsrv.store.store import StoreOptions

SOAK = int(os.environ.get("SOAK", "1"))
OPTIONS = StoreOptions(segment_size=3000, min_free=0)
LIVING = [key_of(study, 1, number) for study in (1, 2, 3) for number in (1, 2, 3, 4)]
DELETED, REPLACED = key_of(4), LIVING[0]
DEAD = [DELETED, key_of(8), key_of(8, 1, 2), *(key_of(9, 1, number) for number in range(6))]
WITNESSES = ("all", "manifest", "index", "none")


def fill(folder):
    """Three segments: a compacted one, one that is full and sealed, and one that grows. The last records of
    each are of every kind."""
    with open_store(folder, options=OPTIONS) as store:
        put(store, *(payload_of(key, 300) for key in LIVING[:4]), payload_of(DELETED, 250))
        put(store, *(payload_of(key_of(9, 1, number), 400) for number in range(6)))
        store.delete("1.9")
        store.delete(*DELETED)
        put(store, *(payload_of(key, 700) for key in LIVING[4:8]))
        put(store, payload_of(REPLACED, 320, "r"), on_duplicate=OnDuplicate.REPLACE)
        put(store, payload_of(key_of(8), 250))
        assert compact(store).segments == [1]
        put(store, *(payload_of(key, 900) for key in LIVING[8:]))
        put(store, payload_of(key_of(8, 1, 2), 250))
        store.delete("1.8")
        return {key: get(store, key) for key in LIVING}


@pytest.fixture(scope="module")
def world(memory_factory):
    folder = memory_factory() / "store"
    return folder, fill(folder)


@pytest.fixture
def folder(world, memory):
    return shutil.copytree(world[0], memory / "store")


def segments_of(folder):
    """segment -> the records in it."""
    with open_store(folder, read_only=True, options=OPTIONS) as store:
        found = {}
        for segment, path in store.layout.segment_files().items():
            with store.open_segments([segment]) as lease:
                found[segment] = list(store.form.walk(lease.fd(segment), segment, path.stat().st_size))
        return found


def path_of(folder, segment):
    return folder / "segments" / f"{segment:08d}.seg"


def flip(path, offset, mask=4):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def take_away(folder, witnesses):
    """Leave only some of the files that say which bytes were acknowledged."""
    if witnesses in ("manifest", "none"):
        shutil.rmtree(folder / "index")
    if witnesses in ("index", "none"):
        (folder / "manifest").unlink()


def retrieved(store, key):
    try:
        return get(store, key)
    except (StoreError, OSError):
        return None


def complaints(store):
    return [str(finding) for finding in check(store, derive) if finding.severity is Severity.ERROR]


def must_hold(folder, expected, witnesses, context):
    report = reindex(folder, derive)
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    with open_store(folder, options=OPTIONS) as store:
        there = {key for key in expected if store.lookup(*key)}
        gone = [key for key in DEAD if store.lookup(*key)]
        ids = [store.lookup(*key)[0].record_id for key in there]
        damaged = {record.record_id for record in store.index.damaged_among(ids)}
        for key in there:
            whole = retrieved(store, key) == expected[key]
            assert whole or store.lookup(*key)[0].record_id in damaged, (context, key, report.findings)
        if witnesses in ("all", "index"):
            assert there == set(expected), (context, report.findings)
            assert gone == [], (context, report.findings)
        if not errors:
            assert (there, gone, damaged) == (set(expected), [], set()), (context, report.findings)
            assert complaints(store) == [], (context, report.findings)
        elif witnesses != "none":
            assert complaints(store) != [], (context, report.findings)
    return report


def places(records, choice):
    """Offsets in headers and payloads of the first, a middle, and the last records."""
    chosen = {0, len(records) - 1, len(records) - 2} | ({len(records) // 2} if SOAK > 1 else set())
    for number in sorted(each for each in chosen if 0 <= each < len(records)):
        record = records[number]
        for place in (0, 9, 16, 32, 56, 64, 80, 88, 103) if SOAK > 1 else (9, 56, 88):
            yield record.offset + place, f"header {record.header.kind.name} + {place}"
        for _ in range(SOAK if record.header.length else 0):
            place = choice.randrange(record.payload, record.end)
            yield place, f"payload {record.header.kind.name} + {place - record.payload}"


def test_the_world_has_every_kind_in_every_place(world):
    found = segments_of(world[0])
    lasts = [records[-1].header.kind for records in found.values()]
    kinds = {record.header.kind for records in found.values() for record in records}
    assert len(found) >= 3
    assert kinds >= {RecordKind.INSTANCE, RecordKind.TOMBSTONE, RecordKind.SEAL}
    assert {RecordKind.SEAL, RecordKind.TOMBSTONE} <= set(lasts)


@pytest.mark.no_cover
@pytest.mark.parametrize("witnesses", WITNESSES)
def test_one_flipped_bit_in_each_kind_of_record(world, memory, witnesses):
    origin, expected = world
    choice, checked = random.Random(11), 0
    for segment, records in segments_of(origin).items():
        for offset, context in places(records, choice):
            folder = shutil.copytree(origin, memory / "store")
            flip(path_of(folder, segment), offset)
            take_away(folder, witnesses)
            must_hold(folder, expected, witnesses, (segment, offset, context))
            shutil.rmtree(folder)
            checked += 1
    assert checked > 20


@pytest.mark.no_cover
def test_a_store_that_is_started_cuts_nothing_and_check_is_as_strict_as_reindex(world, memory):
    origin, expected = world
    choice = random.Random(12)
    for segment, records in segments_of(origin).items():
        for offset, context in places(records, choice):
            folder = shutil.copytree(origin, memory / "store")
            path = path_of(folder, segment)
            flip(path, offset)
            before = {each: path_of(folder, each).read_bytes() for each in (2, 3, 4)}
            with open_store(folder, options=OPTIONS) as store:
                assert put(store, payload_of(key_of(7))) == [Outcome.STORED], context
                told = complaints(store)
            for each, body in before.items():
                assert path_of(folder, each).read_bytes()[: len(body)] == body, (context, each)
            report = reindex(folder, derive)
            strict = any(finding.severity is Severity.ERROR for finding in report.findings)
            assert told != [] or not strict, (context, report.findings)
            assert report.instances == len(expected) + 1
            shutil.rmtree(folder)


@pytest.mark.parametrize("witnesses", ["all", "manifest", "index"])
def test_a_header_that_is_destroyed(world, memory, witnesses):
    origin, expected = world
    for segment, records in segments_of(origin).items():
        for record in records[-2:]:
            folder = shutil.copytree(origin, memory / "store")
            with path_of(folder, segment).open("r+b") as file:
                file.seek(record.offset)
                file.write(b"?" * HEADER)
            take_away(folder, witnesses)
            report = must_hold(folder, expected, witnesses, (segment, record))
            assert report.findings
            shutil.rmtree(folder)


@pytest.mark.parametrize("witnesses", WITNESSES)
def test_a_flipped_bit_in_the_last_payload_of_a_sealed_segment(folder, world, witnesses):
    """Nothing follows but the SEAL record, which proves that the payload is not torn."""
    (segment, records) = next(
        (segment, records)
        for segment, records in segments_of(folder).items()
        if records[-1].header.kind is RecordKind.SEAL and records[-2].header.kind is RecordKind.INSTANCE
    )
    length = path_of(folder, segment).stat().st_size
    flip(path_of(folder, segment), records[-2].end - 5)
    take_away(folder, witnesses)
    report = must_hold(folder, world[1], witnesses, segment)
    assert any(finding.severity is Severity.ERROR for finding in report.findings)
    assert report.instances == len(world[1])
    assert path_of(folder, segment).stat().st_size == length


@pytest.mark.parametrize("witnesses", WITNESSES)
def test_both_copies_in_a_tombstone(folder, world, witnesses):
    """With the old index the dead stay dead, and get a new tombstone; without it is told."""
    for segment, records in segments_of(folder).items():
        for record in records:
            if record.header.kind is RecordKind.TOMBSTONE:
                flip(path_of(folder, segment), record.payload)
                flip(path_of(folder, segment), record.end - 16)
    take_away(folder, witnesses)
    report = must_hold(folder, world[1], witnesses, "tombstones")
    assert any(finding.severity is Severity.ERROR for finding in report.findings)
    if witnesses == "all":
        shutil.rmtree(folder / "index")
        reindex(folder, derive)
        with open_store(folder, options=OPTIONS) as store:
            assert not store.lookup(*key_of(8))


@pytest.mark.parametrize("witnesses", ["all", "manifest", "index"])
def test_a_missing_segment(world, memory, witnesses):
    origin, expected = world
    for segment in segments_of(origin):
        folder = shutil.copytree(origin, memory / "store")
        path_of(folder, segment).rename(memory / "aside")
        take_away(folder, witnesses)
        for _ in range(2):  # it is named as long as it is missing
            report = must_hold(folder, expected, witnesses, segment)
            errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
            assert any(finding.where == f"segment {segment}" for finding in errors)
            with open_store(folder, options=OPTIONS) as store:
                for key in expected:
                    row = store.lookup(*key)
                    if row and row[0].location.segment == segment:
                        with pytest.raises(StoreError):
                            get(store, key)
        # When it comes back all is well.
        (memory / "aside").rename(path_of(folder, segment))
        reindex(folder, derive)
        with open_store(folder, options=OPTIONS) as store:
            assert {key: get(store, key) for key in expected} == expected
            assert complaints(store) == []
        shutil.rmtree(folder)


def test_a_missing_segment_without_index_and_manifest(memory):
    """Its number is missing between others. Of the last segment nothing is left that could be missed."""
    folder = memory / "store"
    with open_store(folder, options=StoreOptions(segment_size=1)) as store:
        for number in range(5):
            put(store, payload_of(key_of(1, 1, number)))
    for segment in (1, 3, 4):
        path_of(folder, segment).unlink()
    take_away(folder, "none")
    report = reindex(folder, derive)
    errors = [finding.where for finding in report.findings if finding.severity is Severity.ERROR]
    assert errors == ["segment 1", "segments 3 to 4"], report.findings


@pytest.mark.parametrize("witnesses", ["all", "manifest", "index"])
def test_a_truncated_segment(world, memory, witnesses):
    origin, expected = world
    for segment in segments_of(origin):
        for share in (0, 64, 0.5, 0.9) if SOAK > 1 else (0, 0.9):
            folder = shutil.copytree(origin, memory / "store")
            path = path_of(folder, segment)
            os.truncate(path, int(path.stat().st_size * share) if share < 1 else share)
            take_away(folder, witnesses)
            report = must_hold(folder, expected, witnesses, (segment, share))
            assert any(finding.severity is Severity.ERROR for finding in report.findings)
            shutil.rmtree(folder)


def bad_sector(monkeypatch, path, begin, end):
    """From here on these bytes of a file cannot be read."""
    pread = os.pread

    def failing(fd, length, offset):
        if offset < end and begin < offset + length and os.path.realpath(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", failing)


@pytest.mark.parametrize("part", ["header", "payload"])
@pytest.mark.parametrize("witnesses", ["all", "manifest"])
def test_a_sector_that_cannot_be_read(world, memory, monkeypatch, witnesses, part):
    """It costs no other record, and neither check nor reindex ends there."""
    origin, expected = world
    monkeypatch.setattr(
        "streamsrv.store.segments.records.PAGE", 16
    )  # the segments are smaller than a real page
    with open_store(origin, read_only=True, options=OPTIONS) as store:
        living = {store.lookup(*key)[0].record_id for key in expected}
    for segment, records in segments_of(origin).items():
        record = next((each for each in records[::-1] if each.header.record_id in living), None)
        if record is None:
            continue
        folder = shutil.copytree(origin, memory / "store")
        begin = record.offset if part == "header" else record.payload
        with monkeypatch.context() as patch:
            bad_sector(patch, path_of(folder, segment), begin, begin + 20)
            with open_store(folder, read_only=True, options=OPTIONS) as store:
                assert complaints(store) != []
            take_away(folder, witnesses)
            report = reindex(folder, derive)
            assert report.findings
            assert report.instances >= len(expected) - (witnesses == "manifest")
            with open_store(folder, options=OPTIONS) as store:
                there = {key for key in expected if retrieved(store, key) == expected[key]}
                assert len(there) >= len(expected) - 1
        reindex(folder, derive)  # the disk can be read again
        with open_store(folder, options=OPTIONS) as store:
            assert {key: get(store, key) for key in expected} == expected
            assert complaints(store) == []
        shutil.rmtree(folder)


def test_every_byte_of_a_slot_and_the_header_of_the_manifest(world, memory):
    origin, expected = world
    for offset in [*range(0, 48, 9), *range(slot_offset(2), slot_offset(3), 1 if SOAK > 1 else 5)]:
        folder = shutil.copytree(origin, memory / "store")
        flip(folder / "manifest", offset)
        report = must_hold(folder, expected, "all", offset)
        assert all(finding.severity is Severity.NOTE for finding in report.findings)
        shutil.rmtree(folder)


@pytest.mark.parametrize("size", [4096, 65536])
def test_an_old_index_that_is_rotten_is_no_witness(world, memory, size):
    """It may kill a process that reads it: that is another one."""
    origin, expected = world
    choice = random.Random(5)
    for _ in range(6):
        folder = shutil.copytree(origin, memory / "store")
        path = folder / "index" / "data.mdb"
        with path.open("r+b") as file:
            file.seek(choice.randrange(path.stat().st_size // 4096) * 4096)
            file.write(choice.randbytes(size))
        report = reindex(folder, derive)
        assert report.instances == len(expected)
        with open_store(folder, options=OPTIONS) as store:
            assert {key: get(store, key) for key in expected} == expected
            assert complaints(store) == []
        shutil.rmtree(folder)


def test_what_is_lost_for_good_can_be_given_up(folder, world):
    """Deleted or stored again, and then compacted: check and reindex are content again."""
    segment = next(iter(segments_of(folder)))
    path_of(folder, segment).unlink()
    assert any(finding.severity is Severity.ERROR for finding in reindex(folder, derive).findings)
    with open_store(folder, options=OPTIONS) as store:
        for key in world[1]:
            if store.lookup(*key)[0].location.segment == segment:
                assert store.delete(*key) == 1
                put(store, world[1][key])
        assert complaints(store) != []
        compact(store, everything=True)
        assert complaints(store) == []
        assert {key: get(store, key) for key in world[1]} == world[1]
    assert reindex(folder, derive).findings == []


def test_a_damaged_segment_stays_when_it_is_compacted(folder, world):
    """It may hide a tombstone. With --all no other record is left that a tombstone could kill."""
    segment, records = next(
        (segment, records)
        for segment, records in segments_of(folder).items()
        if any(record.header.kind is RecordKind.TOMBSTONE for record in records)
    )
    tombstone = next(record for record in records if record.header.kind is RecordKind.TOMBSTONE)
    with path_of(folder, segment).open("r+b") as file:
        file.seek(tombstone.offset)
        file.write(b"?" * HEADER)
    with open_store(folder, options=OPTIONS) as store:
        for key in LIVING[8:]:
            store.delete(*key)
        store.segments.seal(segment)
        assert compact(store).damaged == [segment]
        assert path_of(folder, segment).exists()
        compact(store, everything=True)
        assert not path_of(folder, segment).exists()
        assert [part.name[:8] for part in (folder / "lost+found").iterdir()] == [f"{segment:08d}"]
        assert complaints(store) == []

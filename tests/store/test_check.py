import dataclasses
import os
import random
import shutil
import struct
import threading
import time

import lmdb
import pytest
from store_world import PIXEL_FACTS, derive, get, key_of, open_store, payload_of, put

from streamsrv.dicom.instance import FrameKind
from streamsrv.errors import NotDicom, SegmentGone, StoreCorrupt, StoreLocked
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.index.environment import DATABASES
from streamsrv.store.index.metadata_blobs import BlobReader, lengths_in, pack_blob
from streamsrv.store.index.rows import with_sum
from streamsrv.store.locks import Locks
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate
from streamsrv.store.segments.records import HEADER, RecordHeader, RecordKind

PATIENCE = 30.0
KEYS = [key_of(study, series, instance) for study in (1, 2) for series in (1, 2) for instance in (1, 2, 3)]


def fill(store):
    """Stores, refusals, drops, replacements, deletes and compaction have all been there."""
    put(store, *(payload_of(key, 300) for key in KEYS))
    put(store, payload_of(key_of(5)), payload_of(KEYS[0]), payload_of(key_of(6)))
    put(store, payload_of(KEYS[1], 400, "r"), on_duplicate=OnDuplicate.REPLACE)
    store.delete("1.5")
    store.delete("1.2", "1.2.2", "1.2.2.3")


@pytest.fixture(scope="module")
def filled(memory_factory):
    folder = memory_factory()
    with open_store(folder) as store:
        fill(store)
    return folder


@pytest.fixture
def folder(filled, memory):
    return shutil.copytree(filled, memory / "store")


def findings(store):
    return [str(finding) for finding in check(store, derive)]


def checked(folder):
    with open_store(folder, read_only=True) as store:
        return findings(store)


def flip(path, offset, mask=0x20):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def records(folder):
    with open_store(folder) as store, store.open_segments([1]) as lease:
        return list(store.form.walk(lease.fd(1), 1, store.index.segment(1).committed_end))


def test_all_is_well(folder):
    assert checked(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["index", "manifest", "segments", "store.toml"]


def test_an_empty_store_is_well(memory):
    with open_store(memory) as store:
        assert findings(store) == []


def test_well_after_compaction(folder):
    with open_store(folder) as store:
        store.delete("1.1")
        store.segments.seal(1)
        assert compact(store).segments == [1]
        assert findings(store) == []


def test_left_over_bytes_are_not_errors(folder):
    with (folder / "segments" / "00000001.seg").open("ab") as file:
        file.write(b"left over by a request that was killed")
    (folder / "segments" / "00000099.seg").touch()
    assert checked(folder) == []


def test_a_segment_that_the_index_does_not_know(folder):
    (folder / "segments" / "00000099.seg").write_bytes(b"x")
    (finding,) = checked(folder)
    assert finding.startswith("error: segment 99: its file is not in the index")


@pytest.mark.parametrize("place", [0, 8, 9, 16, 32, 48, 56, 64, 80, 103])
@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_flipped_byte_in_a_header(folder, number, place):
    offset = records(folder)[number].offset
    flip(folder / "segments" / "00000001.seg", offset + place)
    found = checked(folder)
    assert found[0].startswith(f"error: segment 1, byte {offset}: record header")
    # Without its tombstone a dead record looks alive.
    assert len(found) == (2 if number == -1 else 1)


@pytest.mark.parametrize("kind", [RecordKind.INSTANCE, RecordKind.TOMBSTONE])
def test_a_flipped_byte_in_a_payload(folder, kind):
    record = [found for found in records(folder) if found.header.kind is kind][-1]
    flip(folder / "segments" / "00000001.seg", record.end - 1)
    assert (
        f"error: segment 1, byte {record.payload}: payload of {record.header.length} bytes"
        in checked(folder)[0]
    )


def test_flips_at_random(folder):
    """Every byte before the committed end counts but those of voids."""
    seed = random.randrange(2**32)
    print("seed", seed)
    choice = random.Random(seed)
    path = folder / "segments" / "00000001.seg"
    voids = [
        range(found.payload, found.end) for found in records(folder) if found.header.kind is RecordKind.VOID
    ]
    for _ in range(40):
        offset = choice.randrange(path.stat().st_size)
        mask = 1 << choice.randrange(8)
        flip(path, offset, mask)
        found = checked(folder)
        assert bool(found) != any(offset in void for void in voids), (offset, mask, found)
        flip(path, offset, mask)
    assert checked(folder) == []


def test_a_segment_that_is_cut_or_gone(folder):
    path = folder / "segments" / "00000001.seg"
    length = path.stat().st_size
    os.truncate(path, length - 10)
    assert f"byte {length - 10}: the file ends here" in checked(folder)[0]
    path.unlink()
    assert checked(folder)[0] == "error: segment 1: its file is missing: bring it back from a backup"


def rows(folder, database):
    with lmdb.open(str(folder / "index"), max_dbs=len(DATABASES), readonly=True, lock=False) as environment:
        handle = environment.open_db(database.encode(), create=False, dupsort=DATABASES[database])
        with environment.begin(db=handle) as transaction:
            return list(transaction.cursor())


def change_row(folder, database, old, new):
    """Replace one (key, value) by another, or take it away."""
    with lmdb.open(str(folder / "index"), max_dbs=len(DATABASES), map_size=1 << 30) as environment:
        handle = environment.open_db(database.encode(), create=False, dupsort=DATABASES[database])
        with environment.begin(write=True, db=handle) as transaction:
            if old is not None:
                assert transaction.delete(old[0], old[1] if DATABASES[database] else b"")
            if new is not None:
                assert transaction.put(*new)


def flipped(value, at, mask=1):
    return value[:at] + bytes([value[at] ^ mask]) + value[at + 1 :]


def told(folder):
    """What check says; a store that cannot even be opened says it at once."""
    try:
        return checked(folder)
    except StoreCorrupt as reason:
        return [f"error: {reason.detail}"]


def row_of(database, key):
    """How a row is named."""
    names = {
        "metadata": lambda: "of 1.",  # by its instance
        "frames": lambda: "of 1.",
        "bulk": lambda: "of 1.",
        "changes": lambda: f"change {int.from_bytes(key, 'big')}",
        "segments": lambda: f"segment {int.from_bytes(key, 'big')}",
        "about": key.decode,
    }
    return names.get(database, lambda: key.split(b"\0")[0].decode())()


SINGLE = [name for name in DATABASES if not DATABASES[name]]


@pytest.mark.no_cover
@pytest.mark.parametrize("database", SINGLE)
def test_a_flipped_byte_in_each_value(folder, database):
    """Any bit of any row: what is compared is derived from the records, or has a checksum of its own."""
    choice = random.Random(7)
    found = rows(folder, database)
    for key, value in choice.sample(found, min(3, len(found))):
        for at in sorted({0, len(value) - 1, *(choice.randrange(len(value)) for _ in range(8))}):
            wrong = flipped(value, at, 1 << choice.randrange(8))
            change_row(folder, database, (key, value), (key, wrong))
            where = f"index database {database}, {row_of(database, key)}"
            assert any(where in line for line in told(folder)), (key, at, told(folder))
            change_row(folder, database, (key, wrong), (key, value))
    assert checked(folder) == []


OTHERS = [name for name in DATABASES if name != "damage"]  # in which something stands


def test_a_flipped_byte_in_the_register_of_damaged_records(folder):
    with open_store(folder) as store:
        row = store.lookup(*KEYS[0])[0]
        store.index.register_damage([DamagedRecord(row.record_id, KEYS[0], row.location, "a reason", 1)])
    (pair,) = rows(folder, "damage")
    for at in range(len(pair[1])):
        change_row(folder, "damage", pair, (pair[0], flipped(pair[1], at)))
        where = f"error: index database damage, record {pair[0].hex()}: its checksum is wrong"
        assert where in checked(folder)
        change_row(folder, "damage", (pair[0], flipped(pair[1], at)), pair)


@pytest.mark.parametrize("database", OTHERS)
def test_a_missing_row_in_each_database(folder, database):
    pair = random.Random(3).choice(rows(folder, database)[:8])
    change_row(folder, database, pair, None)
    words = (f"index database {database}", "its file is not in", "the index knows it not at all")
    assert any(word in line for line in told(folder) for word in words)


@pytest.mark.parametrize("database", [name for name in OTHERS if name != "about"])
def test_a_flipped_byte_in_each_key(folder, database):
    key, value = random.Random(3).choice(rows(folder, database)[:8])
    at = 0 if database == "uids" else len(key) - 1
    change_row(folder, database, (key, value), (flipped(key, at), value))
    assert any(f"index database {database}" in line for line in checked(folder))


@pytest.mark.parametrize("at", range(6))
def test_a_flipped_byte_in_each_key_of_about(folder, at):
    for key, value in rows(folder, "about"):
        change_row(folder, "about", (key, value), (flipped(key, at % len(key)), value))
        assert any("index database about" in line for line in told(folder))
        change_row(folder, "about", (flipped(key, at % len(key)), value), (key, value))


def test_a_flipped_byte_in_the_key_of_a_long_path(memory, monkeypatch):
    """A bulk value so deep that a digest stands in its key."""
    monkeypatch.setattr("streamsrv.store.index.rows.LONGEST_PATH", 3)
    with open_store(memory) as store:
        put(store, payload_of(key_of(1)))
        assert findings(store) == []
    (pair,) = rows(memory, "bulk")
    change_row(memory, "bulk", pair, (flipped(pair[0], len(pair[0]) - 1), pair[1]))
    assert any("index database bulk" in line for line in checked(memory))


def kept_together(folder):
    """Rows of several texts."""
    return [pair for pair in rows(folder, "metadata") if len(lengths_in(pair[1])) > 1]


def changed_texts(pair, change):
    """The same row with other texts."""
    key, stored = pair
    texts = BlobReader().texts(stored[:-4])
    change(texts)
    return key, with_sum(key, pack_blob(texts))


def test_texts_that_are_kept_together(folder):
    """One that is missing, one that is another's, one that belongs to nobody."""
    first = kept_together(folder)[0]
    for change in (lambda texts: texts.pop(0), lambda texts: texts.__setitem__(0, b"")):
        other = changed_texts(first, change)
        change_row(folder, "metadata", first, other)
        assert any("index database metadata, of 1." in line for line in checked(folder))
        change_row(folder, "metadata", other, first)
    with_gap = next(pair for pair in kept_together(folder) if 0 in lengths_in(pair[1]))
    gone = lengths_in(with_gap[1]).index(0)
    other = changed_texts(with_gap, lambda texts: texts.__setitem__(gone, b"{}"))
    change_row(folder, "metadata", with_gap, other)
    serial = int.from_bytes(with_gap[0][:8], "big") + gone
    assert checked(folder) == [f"error: index database metadata, serial {serial}: belongs to no instance"]


@pytest.mark.parametrize("facts", [0, PIXEL_FACTS ^ 1])
def test_rows_with_other_pixel_facts(folder, facts):
    """Missing and wrong facts are damage. A rebuild writes the right ones."""
    whole = rows(folder, "instances")
    key, value = whole[0]
    at = value.index(struct.pack("<HH", 3, PIXEL_FACTS)) + 2
    other = value[:at] + struct.pack("<H", facts) + value[at + 2 :]
    change_row(folder, "instances", (key, value), (key, other))
    assert any("index database instances" in line for line in checked(folder))
    assert reindex(folder, derive).findings == []
    assert [value[8:] for _, value in rows(folder, "instances")] == [value[8:] for _, value in whole]
    assert checked(folder) == []


@pytest.mark.parametrize("database", ["attributes", "uids"])
def test_a_flipped_byte_in_a_value_of_many(folder, database):
    key, value = rows(folder, database)[0]
    change_row(folder, database, (key, value), (key, flipped(value, len(value) - 1)))
    assert any(f"index database {database}" in line for line in checked(folder))


def test_no_name_of_a_patient_is_told(folder):
    for pair in rows(folder, "attributes"):
        change_row(folder, "attributes", pair, None)
    lines = checked(folder)
    assert lines
    assert not any("name" in line.lower() for line in lines)


def test_an_instance_that_cannot_be_read(memory):
    with open_store(memory) as store:
        put(store, payload_of(key_of(1)))

        def refuse(record):
            raise NotDicom("no preamble")

        (finding,) = check(store, refuse)
    assert (
        str(finding)
        == f"error: segment 1, byte {FIRST_RECORD + HEADER}: instance cannot be read: no preamble"
    )


def test_beside_a_live_server_nothing_is_alarming(folder):
    """Stores, replacements and deletes go on while it looks."""
    with open_store(folder) as store:
        stop = threading.Event()
        counts = [0]

        def work(number):
            while not stop.is_set():
                counts[0] += 1
                key = key_of(number, 1, counts[0] % 7)
                put(store, payload_of(key, 300), on_duplicate=OnDuplicate.REPLACE)
                if counts[0] % 5 == 0:
                    store.delete(f"1.{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 20)]
        for thread in threads:
            thread.start()
        found, looks, until = [], 0, time.monotonic() + PATIENCE
        while (looks < 5 or counts[0] <= 10) and time.monotonic() < until:
            found += findings(store)
            looks += 1
        stop.set()
        for thread in threads:
            thread.join()
        assert found == []
        assert counts[0] > 10
        assert findings(store) == []


def test_compaction_and_check_wait_for_each_other(folder):
    with open_store(folder) as store:
        running = check(store, derive)
        locks = Locks(store.manifest)
        assert locks.try_lock_compaction()
        with pytest.raises(StoreLocked):
            next(running)
        locks.close()
        running = check(store, derive)
        assert next(running, None) is None
        assert get(store, KEYS[0]) == payload_of(KEYS[0], 300)


def test_where_the_folder_cannot_be_written_to(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError

    with open_store(folder, read_only=True) as store:
        monkeypatch.setattr("streamsrv.store.maintenance.check.os.access", lambda *_: False)
        monkeypatch.setattr("streamsrv.store.maintenance.check.Locks", refuse)
        assert findings(store) == []
    assert not (folder / "index.check").exists()


def test_a_pending_record_before_the_committed_end(folder):
    form, end = None, 0
    with open_store(folder) as store:
        form, row = store.form, store.index.segment(1)
        header = RecordHeader(RecordKind.PENDING, b"p" * 16, 0, 0, bytes(20), 0)
        end = row.committed_end
        with store.layout.segment(1).open("ab") as file:
            file.write(form.pack(header, 1, end))
        store.index.put_segment(dataclasses.replace(row, committed_end=end + HEADER))
    assert checked(folder)[0].startswith(f"error: segment 1, byte {end}: record header: pending")


def test_a_row_that_cannot_be_read(folder):
    key, value = rows(folder, "instances")[0]
    for length in (0, 7, 8, 40):
        change_row(folder, "instances", (key, None), (key, value[:length]))
        assert any("index database instances" in line for line in checked(folder))


def test_a_change_that_cannot_be_read(folder):
    key, value = rows(folder, "changes")[3]
    change_row(folder, "changes", (key, value), (key, value[:12]))
    assert any("index database changes" in line for line in checked(folder))


def test_many_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("streamsrv.store.index.audit.PAGE", 2)
    with open_store(tmp_path) as store:
        fill(store)
        assert findings(store) == []


def test_native_pixels_have_no_frame_table(tmp_path):
    def native(record):
        new = derive(record)
        row = new.row._replace(frame_kind=FrameKind.NATIVE)
        return dataclasses.replace(new, row=row, frame_table=b"")

    with open_store(tmp_path) as store:
        transaction = store.begin()
        transaction.open_record()
        transaction.write([payload_of(key_of(1))])
        record = transaction.close_record()
        transaction.commit([(record, native(record))])
        assert [str(finding) for finding in check(store, native)] == []


def test_an_instance_that_goes_while_it_is_compared(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        put(store, *(payload_of(key_of(1, 1, n)) for n in range(3)))
        metadata = store.index.metadata

        def gone(rows):
            monkeypatch.setattr(store.index, "metadata", metadata)
            store.delete(*rows[0].key)
            return metadata(rows)

        monkeypatch.setattr(store.index, "metadata", gone)
        assert findings(store) == []


def test_a_segment_that_goes_while_it_is_checked(folder, monkeypatch):
    with open_store(folder) as store:
        opened = store.open_segments

        def absent(segments):
            raise SegmentGone("gone")

        monkeypatch.setattr(store, "open_segments", absent)
        monkeypatch.setattr(store.index, "segment", lambda segment: None)
        monkeypatch.setattr(store.index, "dump", lambda database: iter(()))
        assert [line for line in findings(store) if "its file is missing" in line] == []
        monkeypatch.setattr(store, "open_segments", opened)

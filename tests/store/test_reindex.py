import errno
import os
import resource
import shutil

import pytest
from disks import RecordingFileOps
from store_world import derive, describe, get, key_of, open_store, payload_of, put

from streamsrv.errors import NotDicom, StoreError, StoreLocked
from streamsrv.store.fileops import FileOps
from streamsrv.store.maintenance.check import Severity, check
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.maintenance.scanning import MOST_OPEN
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate
from streamsrv.store.segments.records import HEADER, RecordHeader, RecordKind, pack_file_header
from streamsrv.store.store import Store, StoreOptions

KEYS = [key_of(study, 1, instance) for study in (1, 2) for instance in (1, 2, 3)]
SEGMENT = "00000001.seg"


def fill(store):
    put(store, *(payload_of(key, 300) for key in KEYS))
    put(store, payload_of(KEYS[0]), payload_of(key_of(6)))  # one is refused
    put(store, payload_of(KEYS[1], 400, "r"), on_duplicate=OnDuplicate.REPLACE)
    store.delete(*KEYS[2])
    put(store, payload_of(key_of(7)))


@pytest.fixture(scope="module")
def filled(memory_factory):
    folder = memory_factory()
    with open_store(folder) as store:
        fill(store)
    return folder


@pytest.fixture
def folder(filled, memory):
    return shutil.copytree(filled, memory / "store")


def answers(folder):
    """Whatever the index can be asked, but for the epoch and the numbers of changes."""
    with open_store(folder) as store:
        rows = {key: store.lookup(*key) for key in [*KEYS, key_of(6), key_of(7)]}
        every = [row for found in rows.values() for row in found]
        segments = {
            number: (row.committed_end, row.live, row.dead) for number, row in store.index.segments().items()
        }
        assert [str(finding) for finding in check(store, derive)] == []
        return rows, b"".join(store.metadata(every)), segments, {key: get(store, key) for key in rows}


def records(folder):
    with Store.open(folder) as store, store.open_segments([1]) as lease:
        return store.form, list(store.form.walk(lease.fd(1), 1, os.fstat(lease.fd(1)).st_size))


def overwrite(folder, offset, body):
    with (folder / "segments" / SEGMENT).open("r+b") as file:
        file.seek(offset)
        file.write(body)


@pytest.mark.parametrize("lost", [True, False])
def test_the_answers_are_the_same(folder, lost):
    before = answers(folder)
    with open_store(folder) as store:
        epoch = store.index.about()["epoch"]
    if lost:
        shutil.rmtree(folder / "index")
    report = reindex(folder, derive)
    assert (report.instances, report.segments, report.findings) == (7, 1, [])
    assert answers(folder) == before
    with open_store(folder) as store:
        assert store.index.about()["epoch"] != epoch
        assert [change.key for change in store.changes()] == [
            KEYS[0], *KEYS[3:], key_of(6), KEYS[1], key_of(7),
        ]  # fmt: skip
        put(store, payload_of(key_of(8)))
        assert get(store, key_of(8)) == payload_of(key_of(8))
    assert not (folder / "index.new").exists()


def test_several_segments_in_stored_order(memory):
    with open_store(memory) as store:
        one, two = store.begin(), store.begin()
        pairs = {one: [], two: []}
        for number, transaction in enumerate([one, two, two, one, two]):
            transaction.open_record()
            transaction.write([payload_of(key_of(1, 1, number))])
            record = transaction.close_record()
            pairs[transaction].append((record, describe(record)))
        two.commit(pairs[two])
        one.commit(pairs[one])
        assert len(store.index.segments()) == 2
    reindex(memory, derive)
    with open_store(memory) as store:
        assert [change.key for change in store.changes()] == [key_of(1, 1, number) for number in range(5)]
        assert store.segments.acquire().segment == 1


def test_an_empty_store(memory):
    with open_store(memory):
        pass
    assert reindex(memory, derive).instances == 0
    with open_store(memory) as store:
        assert put(store, payload_of(key_of(1)))


def test_no_store(memory):
    with pytest.raises(StoreError):
        reindex(memory, derive)


def test_not_while_the_store_is_open(folder):
    with open_store(folder), pytest.raises(StoreLocked, match="open in another process"):
        reindex(folder, derive)
    with Store.lock(folder), pytest.raises(StoreLocked):
        reindex(folder, derive)
    reindex(folder, derive)


@pytest.mark.parametrize("place", [0, 9, 20, 58, 90])
@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_header_with_one_wrong_byte_is_mended(folder, number, place):
    before = answers(folder)
    _, found = records(folder)
    offset = found[number].offset
    with (folder / "segments" / SEGMENT).open("rb") as file:
        raw = bytearray(file.read())
    raw[offset + place] ^= 0x18
    (folder / "segments" / SEGMENT).write_bytes(raw)
    (finding,) = reindex(folder, derive).findings
    assert (finding.severity, finding.where) == (Severity.NOTE, f"segment 1, byte {offset}")
    assert answers(folder) == before


def test_a_destroyed_header_is_made_again_from_the_old_index(folder):
    before = answers(folder)
    _, found = records(folder)
    overwrite(folder, found[0].offset, b"nothing is left of it" * 4)
    report = reindex(folder, derive)
    assert [str(finding) for finding in report.findings] == [
        "note: segment 1, byte 64: record header: damaged, made again from the old index"
    ]
    assert answers(folder) == before


def test_a_destroyed_header_costs_its_own_instance_without_an_index(folder):
    _, found = records(folder)
    overwrite(folder, found[0].offset, b"nothing is left of it" * 4)
    shutil.rmtree(folder / "index")
    report = reindex(folder, derive)
    assert [finding.severity for finding in report.findings] == [Severity.ERROR]
    assert report.instances == 6
    with open_store(folder) as store:
        assert [key for key in KEYS if get(store, key) is None] == [KEYS[0], KEYS[2]]
        # The damage stays where it is, and is told.
        assert [str(finding)[:25] for finding in check(store, derive)] == ["error: segment 1, byte 64"]
        assert store.index.segment(1).sealed


def test_a_decayed_payload_is_kept_and_told(folder):
    _, found = records(folder)
    overwrite(folder, found[0].end - 5, b"decay")
    report = reindex(folder, derive)
    assert [str(finding) for finding in report.findings] == [
        f"error: segment 1, byte {FIRST_RECORD + HEADER}: payload: its checksum is wrong, or it cannot be "
        f"read"
    ]
    with open_store(folder) as store:
        assert get(store, KEYS[0]).endswith(b"decay")


@pytest.mark.parametrize("known", [True, False])
def test_an_instance_that_cannot_be_read_is_told_and_kept_if_the_old_index_has_it(folder, known):
    if not known:
        shutil.rmtree(folder / "index")

    def refuse_one(record):
        if record.location.length == 400:
            raise NotDicom("no preamble")
        return derive(record)

    report = reindex(folder, refuse_one)
    assert [finding.severity for finding in report.findings] == [Severity.ERROR]
    assert "no preamble" in str(report.findings[0])
    with open_store(folder) as store:
        assert get(store, KEYS[1]) == (payload_of(KEYS[1], 400, "r") if known else None)


# What a power loss leaves of the last request


def without_witnesses(folder):
    """Nothing but the segments says what was acknowledged."""
    shutil.rmtree(folder / "index")
    (folder / "manifest").unlink()


def told(report):
    """But for the manifest."""
    return [finding for finding in report.findings if finding.where != "manifest"]


def torn(folder, *, header=True, payload=True, tail=b""):
    """A request of three behind the committed end, of whose middle record something is missing."""
    with open_store(folder) as store:
        form, end = store.form, store.index.segment(1).committed_end
        transaction = store.begin()
        pairs = []
        for number in range(3):
            transaction.open_record()
            transaction.write([payload_of(key_of(20 + number), 300)])
            record = transaction.close_record()
            pairs.append((record, describe(record)))
        transaction.commit(pairs)
    middle = pairs[1][0]
    if not header:
        overwrite(folder, middle.begin, bytes(HEADER))
    if not payload:
        overwrite(folder, middle.end - 50, bytes(50))
    with (folder / "segments" / SEGMENT).open("ab") as file:
        file.write(tail)
    without_witnesses(folder)
    return end, form


@pytest.mark.parametrize("lost", [{"header": False}, {"payload": False}, {"header": False, "payload": False}])
def test_a_torn_record_in_between_becomes_void(folder, lost):
    torn(folder, **lost)
    report = reindex(folder, derive)
    assert [finding.severity for finding in told(report)] == [Severity.NOTE]
    with open_store(folder) as store:
        assert [get(store, key_of(20 + n)) is not None for n in range(3)] == [True, False, True]
        assert [str(finding) for finding in check(store, derive)] == []
    assert [step.header.kind for step in records(folder)[1]].count(RecordKind.VOID) == 2


def test_a_torn_tail_is_cut_off(folder):
    torn(folder, tail=b"half a record" * 20)
    assert len(told(reindex(folder, derive))) == 1
    length = (folder / "segments" / SEGMENT).stat().st_size
    with open_store(folder) as store:
        assert store.index.segment(1).committed_end == length - 260
        assert [str(finding) for finding in check(store, derive)] == []
    assert (folder / "segments" / SEGMENT).stat().st_size == length - 260


def test_what_is_pending_is_cut_off(folder):
    _, form = torn(folder)
    length = (folder / "segments" / SEGMENT).stat().st_size
    pending = RecordHeader(RecordKind.PENDING, b"p" * 16, 0, 0, bytes(20), length)
    valid = RecordHeader(RecordKind.INSTANCE, b"v" * 16, 1, 0, bytes(20), length)
    with (folder / "segments" / SEGMENT).open("ab") as file:
        file.write(form.pack(pending, 1, length) + form.pack(valid, 1, length + HEADER))
    report = reindex(folder, derive)
    assert (told(report), report.instances) == ([], 10)
    with open_store(folder) as store:
        assert store.index.segment(1).committed_end == length


def test_a_torn_tombstone_kills_no_instance(folder):
    with open_store(folder) as store:
        store.delete("1.2")
    _, found = records(folder)
    overwrite(folder, found[-1].payload, bytes(found[-1].header.length - 20))
    without_witnesses(folder)
    severities = [finding.severity for finding in told(reindex(folder, derive))]
    assert severities == [Severity.ERROR, Severity.NOTE]  # nothing says that it was not acknowledged
    with open_store(folder) as store:
        assert len(store.lookup("1.2")) == 3
        assert [str(finding) for finding in check(store, derive)] == []


def test_two_living_records_of_one_key(folder):
    """Only a disk that lies leaves them: the later one wins, and reindexing again says the same."""
    with open_store(folder) as store:
        other = store.segments.acquire()
        mine = store.begin()
        other.release()
        payload = payload_of(KEYS[0], 500, "l")
        mine.open_record()
        mine.write([payload])
        record = mine.close_record()
        header = RecordHeader(
            RecordKind.INSTANCE, record.record_id, record.stored_at, 500, record.digest, FIRST_RECORD
        )
        mine.abort()
        segment = record.location.segment
    packed = Store.open(folder)
    body = pack_file_header(packed.form, segment) + packed.form.pack(header, segment, FIRST_RECORD)
    packed.close()
    (folder / "segments" / f"{segment:08d}.seg").write_bytes(body + payload)
    (finding,) = reindex(folder, derive).findings
    assert finding.severity is Severity.NOTE
    with open_store(folder) as store:
        assert get(store, KEYS[0]) == payload
        assert [str(finding) for finding in check(store, derive)] == []
    assert reindex(folder, derive).findings == []
    with open_store(folder) as store:
        assert get(store, KEYS[0]) == payload


# Taking its place


class Died(BaseException):
    pass


class DyingFileOps(RecordingFileOps):
    def __init__(self, folder, dies_at):
        super().__init__(folder)
        self.dies_at = dies_at

    def _note(self, kind, path, *detail):
        super()._note(kind, path, *detail)
        if len(self.log) == self.dies_at:
            raise Died


@pytest.mark.parametrize("lost", [True, False])
def test_a_crash_at_any_operation(folder, lost):
    before = answers(folder)
    if lost:
        shutil.rmtree(folder / "index")
    for dies_at in range(1, 100):
        try:
            reindex(folder, derive, fileops=DyingFileOps(folder, dies_at))
        except Died:
            if not lost or (folder / "index").exists() or (folder / "index.old").exists():
                assert answers(folder) == before
            continue
        break
    assert dies_at > 5
    assert answers(folder) == before
    assert not (folder / "index.new").exists()


def test_no_descriptor_is_kept(folder):
    before = len(os.listdir("/proc/self/fd"))
    reindex(folder, derive)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_store_with_more_segments_than_a_process_may_have_descriptors(memory):
    keys = [key_of(1, 1, number) for number in range(MOST_OPEN + 40)]
    with open_store(memory, options=StoreOptions(segment_size=1)) as store:
        for key in keys:
            put(store, payload_of(key))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [int(name) for name in os.listdir("/proc/self/fd")]
    free = max(used) + 1 - len(used)  # numbers below the highest one
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 1 + max(MOST_OPEN + 20 - free, 0), hard))
    try:
        report = reindex(memory, derive)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.instances, report.segments, report.findings) == (len(keys), len(keys), [])
    with open_store(memory) as store:
        assert all(get(store, key) == payload_of(key) for key in keys)


def test_an_index_of_long_ago_does_not_come_back(folder):
    """Neither after a reindex without an index that was cut short."""

    class CutShort(FileOps):
        def rename(self, old, new):
            raise OSError(errno.EIO, "cut short")

    reindex(folder, derive)
    assert (folder / "index.old").exists()
    shutil.rmtree(folder / "index")
    with pytest.raises(OSError, match="cut short"):
        reindex(folder, derive, fileops=CutShort())
    assert not (folder / "index.building").exists()
    with pytest.raises(StoreError, match="segments but no index"):
        open_store(folder)
    assert (folder / "index.old").exists()
    assert reindex(folder, derive).findings == []

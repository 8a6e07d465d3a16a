import shutil

import pytest
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreCorrupt
from streamsrv.store.maintenance.check import Severity, check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments import records
from streamsrv.store.segments.records import RecordFormat, damaged_headers, pack_file_header

FORM = RecordFormat(b"s" * 32, b"f" * 16)


def test_the_layout_as_drawn():
    packed = pack_file_header(FORM, 0x0102)
    assert len(packed) == FIRST_RECORD == 64
    assert packed[:16] == b"SRVSEG\r\n" + b"\3\0\0\0" + b"\2\1\0\0"
    assert packed[16:32] == b"f" * 16
    assert packed[32:48] == FORM.marker + bytes(8)


@pytest.fixture
def folder(memory):
    with open_store(memory / "store") as store:
        put(store, payload_of(key_of(1)))
    return memory / "store"


def path_in(folder):
    return folder / "segments" / "00000001.seg"


@pytest.mark.parametrize("place", [0, 8, 12, 16, 32, 40, 48, 63])
def test_a_flipped_byte_is_named_and_written_again(folder, place):
    """The records count: each has a check of its own."""
    whole = path_in(folder).read_bytes()
    path_in(folder).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with open_store(folder) as store:
        assert get(store, key_of(1)) == payload_of(key_of(1))
        (finding,) = check(store, derive)
        assert str(finding) == "error: segment 1, byte 0: segment header: its checksum is wrong: run reindex"
    (finding,) = reindex(folder, derive).findings
    assert (finding.severity, finding.where) == (Severity.NOTE, "segment 1, byte 0")
    assert path_in(folder).read_bytes() == whole
    with open_store(folder) as store:
        assert list(check(store, derive)) == []


def everything_refuses(folder, sentence):
    for use in (open_store, lambda folder: open_store(folder, read_only=True)):
        with pytest.raises(StoreCorrupt, match=sentence):
            use(folder)
    with pytest.raises(StoreCorrupt, match=sentence):
        reindex(folder, derive)


@pytest.mark.parametrize("known", [True, False])
def test_a_segment_of_another_store(folder, memory, known):
    with open_store(memory / "other") as store:
        put(store, payload_of(key_of(2)))
    target = path_in(folder) if known else path_in(folder).with_name("00000009.seg")
    shutil.copy(path_in(memory / "other"), target)
    before = {path.name: path.read_bytes() for path in (folder / "segments").iterdir()}
    everything_refuses(folder, "belongs to another store")
    assert {path.name: path.read_bytes() for path in (folder / "segments").iterdir()} == before


def test_a_segment_under_another_name(folder):
    path_in(folder).rename(path_in(folder).with_name("00000002.seg"))
    everything_refuses(folder, "is segment 1 of this store")


def test_a_later_version(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(records, "FORMAT_VERSION", 9)
        path_in(folder).write_bytes(pack_file_header(FORM, 1))
    everything_refuses(folder, "format version 9")


def test_a_new_segment_whose_creator_died_before_its_header(folder):
    path_in(folder).with_name("00000002.seg").touch()
    with open_store(folder) as store:
        assert list(check(store, derive)) == []
        assert store.index.add_segment() == 2
        store.segments.refresh()
        held, acquired = store.segments.acquire(), store.segments.acquire()
        assert (held.segment, acquired.segment) == (1, 2)
        held.release()
        acquired.release()
        assert store.layout.segment(2).read_bytes() == pack_file_header(store.form, 2)


def test_the_power_goes_before_a_header_is_on_the_disk(folder):
    """The length is there, and the bytes are not. Nothing in the segment was acknowledged."""
    with open_store(folder) as store:
        number = store.index.add_segment()
        path = folder / "segments" / f"{number:08d}.seg"
        path.write_bytes(bytes(FIRST_RECORD + 100))
        assert list(check(store, derive)) == []
    with open_store(folder) as store:
        assert list(check(store, derive)) == []
        put(store, payload_of(key_of(2)))
        assert list(check(store, derive)) == []
    path_in(folder).write_bytes(bytes(FIRST_RECORD) + path_in(folder).read_bytes()[FIRST_RECORD:])
    with open_store(folder) as store:
        (finding,) = check(store, derive)
        assert str(finding) == "error: segment 1, byte 0: segment header: it is not written: run reindex"


def test_a_segment_that_is_gone_while_the_headers_are_read(folder):
    files = {1: path_in(folder), 7: folder / "segments" / "00000007.seg"}
    with open_store(folder) as store:
        assert list(damaged_headers(files, store.form)) == []
        put(store, payload_of(key_of(3)))
        assert compact(store).segments == []

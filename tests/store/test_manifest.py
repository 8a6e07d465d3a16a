import os
import shutil

import pytest
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import StoreCorrupt, StoreError, WrongStore
from streamsrv.store.fileops import FileOps
from streamsrv.store.locks import Locks
from streamsrv.store.maintenance.check import check
from streamsrv.store.rows import FIRST_RECORD, Outcome
from streamsrv.store.segments.manifest import (
    HEADER_LENGTH,
    SLOT,
    Manifest,
    ManifestFormat,
    Slot,
    State,
    slot_offset,
)
from streamsrv.store.segments.segments import Segments
from streamsrv.store.store import StoreOptions

FORM = ManifestFormat(b"f" * 16)
GROWING = Slot(State.GROWING, 0x0102)


def test_the_layout_as_drawn():
    header, slot = FORM.header(), FORM.pack(3, GROWING)
    assert header[:32] == b"SRVMANIF\3\0" + bytes(6) + b"f" * 16
    assert len(header) == HEADER_LENGTH == 64
    assert len(slot) == SLOT == 16
    assert slot[:10] == b"\0\1\2\1" + bytes(6)
    assert slot_offset(3) == 64 + 48


def test_every_wrong_byte_of_a_slot_is_told():
    packed = FORM.pack(3, GROWING)
    assert FORM.unpack(3, packed) == GROWING
    for place in range(1, SLOT):
        for bit in range(8):
            wrong = packed[:place] + bytes([packed[place] ^ 1 << bit]) + packed[place + 1 :]
            assert FORM.unpack(3, wrong) is None
    assert FORM.unpack(4, packed) is None
    assert ManifestFormat(b"g" * 16).unpack(3, packed) is None


@pytest.fixture
def manifest(tmp_path):
    manifest = Manifest(tmp_path / "manifest", FileOps(), b"f" * 16)
    manifest.create()
    manifest.open()
    return manifest


def test_it_is_made_once_and_replaced_whole(manifest):
    manifest.replace({2: GROWING, 5: Slot(State.REMOVED, 9)})
    manifest.create()
    assert manifest.read() == ({2: GROWING, 5: Slot(State.REMOVED, 9)}, [], False)
    assert os.listdir(manifest.path.parent) == ["manifest"]


def test_that_of_another_store_is_refused(manifest):
    with pytest.raises(WrongStore, match="another store"):
        Manifest(manifest.path, FileOps(), b"g" * 16).read()


def test_another_version_is_refused(manifest, monkeypatch):
    monkeypatch.setattr("streamsrv.store.segments.manifest.FORMAT_VERSION", 7)
    with pytest.raises(WrongStore, match="format version 3"):
        manifest.read()


def flip(path, offset, mask=4):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= mask
    path.write_bytes(raw)


def test_a_slot_that_is_being_written_is_read_again(manifest, monkeypatch):
    manifest.replace({2: GROWING, 3: GROWING})
    whole = manifest.path.read_bytes()
    half = bytearray(whole)
    half[slot_offset(2) + 3] ^= 1
    bodies = iter([bytes(half), whole, whole, whole])
    monkeypatch.setattr(type(manifest.path), "read_bytes", lambda path: next(bodies))
    assert manifest.read() == ({2: GROWING, 3: GROWING}, [], False)


@pytest.mark.parametrize("place", [0, 8, 20, 40])
def test_a_damaged_header_leaves_the_slots(manifest, place):
    manifest.replace({2: GROWING})
    flip(manifest.path, place)
    assert manifest.read() == ({2: GROWING}, [], True)


# In a store


@pytest.fixture
def folder(memory):
    with open_store(memory / "store") as store:
        put(store, payload_of(key_of(1)))
        put(store, payload_of(key_of(2)))
    return memory / "store"


def slots(folder):
    with open_store(folder, read_only=True) as store:
        return store.manifest.read().known


def test_it_follows_the_index(memory):
    with open_store(memory, options=StoreOptions(segment_size=300, min_free=0)) as store:
        assert store.manifest.read().known == {}
        for number in (1, 2, 3):
            put(store, payload_of(key_of(number)))
            rows = store.index.segments()
            assert store.manifest.read().known == {
                segment: Slot(State.SEALED if row.sealed else State.GROWING, row.committed_end)
                for segment, row in rows.items()
            }
        assert len(rows) == 3


@pytest.mark.parametrize("place", [1, 2, 10, 15])
def test_a_damaged_slot_is_told_and_written_again(folder, place):
    before = slots(folder)
    flip(folder / "manifest", slot_offset(1) + place)
    with open_store(folder, read_only=True) as store:
        (finding,) = map(str, check(store, derive))
        assert finding == "error: manifest, segment 1: its checksum is wrong: run reindex"
    with open_store(folder) as store:
        assert put(store, payload_of(key_of(3))) == [Outcome.STORED]
        assert list(check(store, derive)) == []
    assert slots(folder)[1].end > before[1].end


def test_an_index_that_is_older_than_the_manifest_is_refused(folder):
    """One request behind: neither the segment nor the index alone could tell."""
    shutil.copytree(folder / "index", folder / "older")
    with open_store(folder) as store:
        put(store, payload_of(key_of(3)))
    shutil.rmtree(folder / "index")
    (folder / "older").rename(folder / "index")
    length = (folder / "segments" / "00000001.seg").stat().st_size
    for read_only in (True, False):
        with pytest.raises(StoreCorrupt, match="the index is an older one"):
            open_store(folder, read_only=read_only)
    assert (folder / "segments" / "00000001.seg").stat().st_size == length


def test_without_a_manifest_a_store_is_refused(folder):
    (folder / "manifest").unlink()
    for read_only in (True, False):
        with pytest.raises(StoreCorrupt, match="run `streamsrv reindex"):
            open_store(folder, read_only=read_only)
    assert not (folder / "manifest").exists()


@pytest.mark.parametrize("copied", [True, False])
def test_one_that_is_removed_or_replaced_meanwhile_is_not_trusted(folder, copied):
    """Its locks are on the old file: another process would not see them."""
    with open_store(folder) as store:
        (folder / "manifest").rename(folder / "aside")
        if copied:
            shutil.copy(folder / "aside", folder / "manifest")
        with pytest.raises(StoreError, match="removed or replaced"):
            put(store, payload_of(key_of(3)))
        with pytest.raises(StoreError, match="removed or replaced"):
            store.delete("1.1")
        assert get(store, key_of(1)) == payload_of(key_of(1))
        (folder / "aside").rename(folder / "manifest")
        assert put(store, payload_of(key_of(3))) == [Outcome.STORED]


def test_two_writers_never_have_one_segment(folder):
    """Not even where each of them has a manifest of its own."""
    with open_store(folder) as store:
        mine = store.segments.acquire()
        (folder / "manifest").rename(folder / "aside")
        shutil.copy(folder / "aside", folder / "manifest")
        other = Manifest(folder / "manifest", store.ops, store.form.fingerprint)
        other.open()
        others = Segments(store.layout, other, store.index, store.form, store.ops, 1 << 20, store.reserve)
        theirs = others.acquire()
        assert (mine.segment, theirs.segment) == (1, 2)
        theirs.release()
        mine.release()


def test_a_missing_segment_is_named_and_the_rest_is_served(memory, caplog):
    with open_store(memory, options=StoreOptions(segment_size=300, min_free=0)) as store:
        for number in (1, 2):
            put(store, payload_of(key_of(number)))
    (memory / "segments" / "00000001.seg").unlink()
    with open_store(memory) as store:
        assert "segment 1: its file is missing" in caplog.text
        assert get(store, key_of(2)) == payload_of(key_of(2))
        with pytest.raises(StoreError):
            get(store, key_of(1))
        found = list(map(str, check(store, derive)))
        assert found[0] == "error: segment 1: its file is missing: bring it back from a backup"


def test_what_is_cut_off_is_kept(folder):
    path = folder / "segments" / "00000001.seg"
    length = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"nobody knows what this is")
    open_store(folder).close()
    assert path.stat().st_size == length
    (part,) = (folder / "lost+found").iterdir()
    assert part.name == f"00000001-{length}-{length + 25}.part"
    assert part.read_bytes() == b"nobody knows what this is"


def test_a_body_that_was_being_received_is_not_kept(folder):
    """A killed upload may be large, and was never acknowledged."""
    path = folder / "segments" / "00000001.seg"
    length = path.stat().st_size
    with open_store(folder) as store:
        transaction = store.begin()
        transaction.open_record()
        transaction.write([payload_of(key_of(3))])
        shutil.copytree(folder, folder.with_name("killed"))
        transaction.abort()
    open_store(folder.with_name("killed")).close()
    assert (folder.with_name("killed") / "segments" / "00000001.seg").stat().st_size == length
    assert not (folder.with_name("killed") / "lost+found").exists()


def test_a_full_segment_ends_with_a_seal(memory):
    with open_store(memory, options=StoreOptions(segment_size=300, min_free=0)) as store:
        put(store, payload_of(key_of(1), 400))
        put(store, payload_of(key_of(2)))
        with store.open_segments([1]) as lease:
            end = store.index.segment(1).committed_end
            steps = list(store.form.walk(lease.fd(1), 1, end))
        assert [step.header.kind.name for step in steps] == ["INSTANCE", "SEAL"]
        assert steps[1].header.began == steps[1].offset == FIRST_RECORD + 104 + 400
        assert steps[1].end == end == store.layout.segment(1).stat().st_size
        assert list(check(store, derive)) == []


def test_slots_are_at_least_those_of_the_segments(folder):
    with open_store(folder) as store:
        locks = Locks(store.manifest)
        assert locks.slot(1) == (False, Slot(State.GROWING, store.index.segment(1).committed_end))
        locks.close()

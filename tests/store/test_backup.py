"""The folder of a backup, and the store that a restore makes of it: beside writers and compactions, after
kills at every step, with damage on either side, and on a full disk."""

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import threading

import pytest
from disks import LOSSES, RecordingFileOps, Replay
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.errors import InsufficientStorage, StoreCorrupt, StoreError, StoreLocked, WrongStore
from streamsrv.store import failpoints
from streamsrv.store.failpoints import Failpoint
from streamsrv.store.fileops import FileOps
from streamsrv.store.maintenance import segment_reader
from streamsrv.store.maintenance.backup import back_up
from streamsrv.store.maintenance.backup_table import TABLE, UNFINISHED, BackupFolder
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.restore import restore, verify_backup
from streamsrv.store.maintenance.scrub import UncachedFile
from streamsrv.store.rows import OnDuplicate
from streamsrv.store.store import StoreOptions

OPTIONS = StoreOptions(segment_size=4000, min_free=0)
KEYS = [key_of(1, 1, number) for number in range(20)]


def nothing(*_):
    pass


def backed_up(store, target, **options):
    return back_up(store, target, nothing, nothing, **options)


def errors(findings):
    return [str(each) for each in findings if each.severity == "error"]


def restored(target, folder):
    """The findings of a restore."""
    return errors(restore(target, folder, derive, nothing, nothing).findings)


def verified(target):
    return errors(verify_backup(target, nothing, nothing).findings)


def contents(store):
    """Key -> bytes, and the facts that make its ETag."""
    rows = [row for study in range(1, 9) for row in store.lookup(f"1.{study}")]
    return {row.key: (get(store, row.key), row.record_id, row.stored_at) for row in rows}


def must_be(folder, expected):
    with open_store(folder, options=OPTIONS) as store:
        assert contents(store) == expected
        assert [str(each) for each in check(store, derive)] == []


def table_of(target):
    return BackupFolder(target, FileOps()).complete()


def damage(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def store(memory):
    with open_store(memory / "store", options=OPTIONS) as store:
        for key in KEYS:
            put(store, payload_of(key, 500))
        yield store


@pytest.fixture
def target(memory):
    return memory / "backup"


# Beside others


def test_backups_while_others_store_delete_and_compact(memory, store, target):
    for key in KEYS[::4]:
        store.delete(*key)
    before = {key: value for key, value in contents(store).items() if key.study == "1.1"}
    stop = threading.Event()
    stored = []

    def work(study):
        while not stop.is_set():
            key = key_of(study, 1, len(stored) % 50)
            stored.append(key)
            put(store, payload_of(key, 700, "w"), on_duplicate=OnDuplicate.REPLACE)
            if len(stored) % 7 == 0:
                store.delete(*key)

    def tidy():
        while not stop.is_set():
            compact(store)

    threads = [threading.Thread(target=work, args=(study,)) for study in (2, 3, 4)]
    threads.append(threading.Thread(target=tidy))
    for thread in threads:
        thread.start()
    for number in range(4):
        assert errors(backed_up(store, target).findings) == []
        assert restored(target, memory / f"copy {number}") == []
        with open_store(memory / f"copy {number}", options=OPTIONS) as other:
            found = contents(other)
            assert {key: value for key, value in found.items() if key.study == "1.1"} == before
            for key, value in found.items():
                assert value[0] == (payload_of(key, 500) if key.study == "1.1" else payload_of(key, 700, "w"))
            assert [str(each) for each in check(other, derive)] == []
    stop.set()
    for thread in threads:
        thread.join()
    assert len(stored) > 20
    assert verified(target) == []


def test_the_next_backup_copies_new_bytes_only(memory, store, target):
    first = backed_up(store, target)
    assert first.copied == first.bytes == table_of(target).length
    files = {path: path.stat() for path in (target / "segments").iterdir()}
    assert all(found.st_nlink == 1 for found in files.values())
    again = backed_up(store, target)
    assert (again.copied, again.bytes) == (0, first.bytes)
    put(store, payload_of(key_of(2), 300))
    third = backed_up(store, target)
    assert 300 <= third.copied == third.bytes - first.bytes < 2000
    changed = [path for path, found in files.items() if path.stat().st_mtime_ns != found.st_mtime_ns]
    assert len(changed) <= 1
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (target, *target.rglob("*"))}
    assert {mode for name, mode in modes.items() if "." in name or name == "lock"} == {0o600}
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", contents(store))
    with open_store(memory / "copy", options=OPTIONS) as other:
        assert backed_up(other, target).copied == 0


def test_a_compaction_is_followed(memory, store, target):
    backed_up(store, target)
    copied = table_of(target).files
    for key in KEYS[1:]:
        store.delete(*key)
    compact(store, everything=True)
    report = backed_up(store, target)
    assert report.removed_files == len(copied)
    assert {path.name for path in (target / "segments").iterdir()} == table_of(target).files
    assert not any(b"1.1.1.3\n" in path.read_bytes() for path in (target / "segments").iterdir())
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", contents(store))
    with open_store(memory / "copy", options=OPTIONS) as other:
        number = int(other.index.about()["next_segment"])
    assert number >= int(store.index.about()["next_segment"]) - 1


def test_a_segment_that_goes_while_it_is_copied(memory, store, target):
    """The state is taken again: nothing is missing, and nothing is there twice."""
    for key in KEYS[::2]:
        store.delete(*key)
    started = []

    def progress(done, total):
        if not started:
            started.append(done)
            compact(store, everything=True)

    assert errors(back_up(store, target, nothing, progress).findings) == []
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", contents(store))


# Kills


def killed(folder, target, passage, save_every=0.0):
    """Whether a backup in a child process was killed where it passed the point. This process has the store
    closed, because an open LMDB file is no use to a child."""
    child = os.fork()
    if child == 0:
        failpoints.hit = Failpoint(f"in-backup@{passage}").passed
        code = 1
        try:
            with open_store(folder, options=OPTIONS, read_only=True) as own:
                backed_up(own, target, save_every=save_every)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_kills_at_every_step(memory, store, target):
    folder = store.layout.root
    store.close()
    assert killed(folder, target, 3)
    with pytest.raises(StoreError, match="first backup was interrupted"):
        table_of(target)
    with open_store(folder, options=OPTIONS) as store:
        backed_up(store, target)
        old = contents(store)
        for key in KEYS[3:]:
            store.delete(*key)
        compact(store)
        for number in range(8):
            put(store, payload_of(key_of(3, 1, number), 2_000))
        new = contents(store)
    run, passage = table_of(target).run, 1
    whole = {False: 0, True: 0}  # whether the table is the new one -> kills
    shutil.copytree(target, each := memory / "1")
    while killed(folder, each, passage):
        assert verified(each) == []
        whole[finished := table_of(each).run != run] += 1
        if passage % 3 == 0:
            assert restored(each, memory / f"copy {passage}") == []
            must_be(memory / f"copy {passage}", new if finished else old)
            assert not killed(folder, each, 1_000)  # it goes on
            assert not (each / UNFINISHED).exists()
            assert {path.name for path in (each / "segments").iterdir()} == table_of(each).files
            assert restored(each, memory / f"last {passage}") == []
            must_be(memory / f"last {passage}", new)
        passage += 1
        shutil.copytree(target, each := memory / str(passage))
    assert min(whole.values()) > 2, whole


def test_a_killed_backup_goes_on(store, target):
    folder = store.layout.root
    store.close()
    assert killed(folder, target, 5)
    done = sum(each.length for each in BackupFolder(target, FileOps()).table(UNFINISHED).segments.values())
    with open_store(folder, options=OPTIONS) as store:
        report = backed_up(store, target)
    assert 0 < done < report.bytes
    assert report.copied == report.bytes - done


def test_the_files_of_a_complete_backup_are_not_cut_by_an_older_interrupted_one(memory, store, target):
    folder = store.layout.root
    backed_up(store, target)
    for passage, save_every in ((3, 0.0), (4, 1e9)):  # before the table, after it
        put(store, payload_of(key_of(2, 1, passage), 100))
        store.close()
        assert killed(folder, target, passage, save_every)
        store = open_store(folder, options=OPTIONS)
    assert (target / UNFINISHED).exists()
    store.delete(*KEYS[0])
    for number in range(12):
        shutil.copytree(target, copy := memory / f"backup {number}")
        with pytest.raises(OSError, match="Input/output error"):
            backed_up(store, copy, ops=FailingOps(number))
        assert verified(copy) == []
    store.close()


def test_every_prefix_of_the_calls_with_lost_syncs(memory, store, target):
    """After a power cut there is the backup before or the new one, whole."""
    ops = RecordingFileOps(target)
    backed_up(store, target, ops=ops, save_every=0.0)
    first, old = len(ops.log), contents(store)
    for key in KEYS[4:]:
        store.delete(*key)
    compact(store)
    put(store, payload_of(key_of(2), 900))
    backed_up(store, target, ops=ops)
    run, new = table_of(target).run, contents(store)
    replay, states = Replay(), {}
    for number, operation in enumerate(ops.log, 1):
        replay.step(operation)
        for loss in LOSSES if number >= first else ():
            folder = memory / f"{loss} {number}"
            replay.build(folder, loss, number)
            assert verified(folder) == [], (loss, number, operation)
            states.setdefault(table_of(folder).run, folder)
            if number == len(ops.log):
                assert table_of(folder).run == run
    assert len(ops.log) > first + 10
    assert len(states) == 2
    for state, folder in states.items():
        assert restored(folder, memory / state) == []
        must_be(memory / state, new if state == run else old)
    backed_up(store, folder)
    assert restored(folder, memory / "on") == []
    must_be(memory / "on", new)


# Damage in the store


def test_a_damaged_instance_is_kept_and_named(memory, store, target):
    row = store.lookup(*KEYS[0])[0]
    path = store.layout.segment(row.location.segment)
    whole = contents(store)
    damage(path, row.location.offset + 100)
    for _ in range(2):  # the second backup reads it again
        (found,) = errors(backed_up(store, target).findings)
        assert KEYS[0].instance in found
        assert "its checksum is not that of its arrival" in found
    assert verified(target) == []
    assert len(restored(target, memory / "copy")) == 1
    with open_store(memory / "copy", options=OPTIONS) as other:
        found = contents(other)
        assert found.keys() == whole.keys()
        assert {key for key in found if found[key] != whole[key]} == {KEYS[0]}
        assert [each.key for each in other.index.damage()] == [KEYS[0]]
    damage(path, row.location.offset + 100)
    assert errors(backed_up(store, target).findings) == []
    assert restored(target, memory / "whole") == []


def test_a_good_copy_survives_decay_in_the_store(memory, store, target):
    """Of a segment that goes on growing, and of one whose file is lost."""
    backed_up(store, target)
    growing = max(store.lookup(*key)[0].location for key in KEYS)
    damage(store.layout.segment(growing.segment), growing.offset + 50)
    lost = store.lookup(*KEYS[0])[0].location.segment
    store.delete(*KEYS[2])  # the tombstone is in the growing segment
    expected = contents(store)
    expected = {key: (payload_of(key, 500), *facts[1:]) for key, facts in expected.items()}
    os.rename(store.layout.segment(lost), memory / "lost")
    found = errors(backed_up(store, target).findings)
    assert len(found) == 2
    assert any("file is missing; the backup keeps its copy" in each for each in found)
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", expected)
    os.rename(memory / "lost", store.layout.segment(lost))


def test_the_better_copy_stays(memory, store, target):
    """A file that is cut, and a second fault in a segment whose copy has one."""
    row, other = store.lookup(*KEYS[0])[0].location, store.lookup(*KEYS[1])[0].location
    assert row.segment == other.segment
    path = store.layout.segment(row.segment)
    body = path.read_bytes()
    backed_up(store, target)
    os.truncate(path, row.offset + 5)
    assert any("the file ends here" in each for each in errors(backed_up(store, target).findings))
    assert restored(target, memory / "whole") == []
    must_be(
        memory / "whole", {key: (payload_of(key, 500), *facts[1:]) for key, facts in contents(store).items()}
    )
    path.write_bytes(body)
    shutil.rmtree(target)
    damage(path, row.offset + 50)
    assert len(errors(backed_up(store, target).findings)) == 1
    damage(path, other.offset + 50)
    assert len(errors(backed_up(store, target).findings)) == 2
    assert len(restored(target, memory / "copy")) == 1
    damage(path, row.offset + 50)
    damage(path, other.offset + 50)
    assert errors(backed_up(store, target).findings) == []


def test_a_segment_that_cannot_be_opened(memory, store, target, monkeypatch):
    bad = store.lookup(*KEYS[0])[0].location.segment

    class ClosedFile(UncachedFile):
        def __init__(self, path, loaded):
            if path == store.layout.segment(bad):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            super().__init__(path, loaded)

    for _ in range(2):
        monkeypatch.setattr(segment_reader, "UncachedFile", ClosedFile)
        (found,) = errors(backed_up(store, target).findings)
        assert found == f"error: segment {bad}: its file cannot be opened: Permission denied"
        assert len(table_of(target).segments[bad].findings) == 1
    assert restored(target, memory / "copy") != []
    monkeypatch.undo()
    assert errors(backed_up(store, target).findings) == []
    assert restored(target, memory / "whole") == []


def test_pages_that_cannot_be_read(memory, store, target, monkeypatch):
    bad = store.lookup(*KEYS[3])[0].location
    path = str(store.layout.segment(bad.segment))

    class FailingFile(UncachedFile):
        def read(self, offset, length, *, ahead=True):
            if os.readlink(f"/proc/self/fd/{self.fd}") == path and offset <= bad.offset < offset + length:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(offset, length, ahead=ahead)

    monkeypatch.setattr(segment_reader, "UncachedFile", FailingFile)
    found = errors(backed_up(store, target).findings)
    assert any("cannot be read (Input/output error): the backup has zeros" in each for each in found)
    monkeypatch.undo()
    assert restored(target, memory / "copy") != []
    assert errors(backed_up(store, target).findings) == []
    assert restored(target, memory / "whole") == []
    must_be(memory / "whole", contents(store))


def test_an_older_state_of_the_store_comes_back(memory, store, target):
    """As from a snapshot: other bytes follow the ones that are copied."""
    put(store, payload_of(key_of(2), 900))
    backed_up(store, target)
    segment = store.lookup(*key_of(2))[0].location.segment
    path = target / "segments" / table_of(target).segments[segment].file
    body = path.read_bytes()[:-10] + b"otherbytes"
    path.write_bytes(body)
    raw = json.loads((target / TABLE).read_text())
    for each in raw["backup"]["segments"]:
        if each["segment"] == segment:
            each["sha256"], each["modified"] = hashlib.sha256(body).hexdigest(), 1
    text = json.dumps(raw["backup"], sort_keys=True, separators=(",", ":"))
    raw["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (target / TABLE).write_text(json.dumps(raw))
    assert errors(backed_up(store, target).findings) == []
    assert table_of(target).segments[segment].file.endswith("-2.seg")
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", contents(store))


# The folder


class FullDisk(FileOps):
    """No room behind `room` bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, fd, pieces, offset, *, keep=True):
        self.room -= sum(map(len, pieces))
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, pieces, offset, keep=keep)


def test_a_full_disk(memory, store, target):
    backed_up(store, target)
    expected = contents(store)
    put(store, *(payload_of(key_of(2, 1, number), 900) for number in range(9)))
    for room in (0, 900, 3_000, 9_000):
        with pytest.raises(InsufficientStorage, match="run the backup again: it goes on there"):
            backed_up(store, target, ops=FullDisk(room))
        assert verified(target) == []
    assert restored(target, memory / "copy") == []
    must_be(memory / "copy", expected)
    with pytest.raises(InsufficientStorage, match="Nothing was restored"):
        restore(target, memory / "none", derive, nothing, nothing, ops=FullDisk(3_000))
    assert list((memory / "none").iterdir()) == []
    backed_up(store, target)
    assert restored(target, memory / "none") == []


class FailingOps(FileOps):
    """The call with this number fails, and all that follow it."""

    def __init__(self, number):
        self._left = number

    def __getattribute__(self, name):
        if not name.startswith("_") and name not in ("length", "space"):
            self._left -= 1
            if self._left < 0:

                def fail(*_, **__):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

                return fail
        return super().__getattribute__(name)


def test_every_call_that_fails(memory, store, target):
    backed_up(store, target)
    store.delete(*KEYS[1])
    compact(store, everything=True)
    put(store, *(payload_of(key_of(2, 1, number), 2_000) for number in range(3)))
    number, done = 0, False
    while not done:
        copy = memory / f"backup {number}"
        shutil.copytree(target, copy)
        try:
            backed_up(store, copy, ops=FailingOps(number), save_every=0.0)
            done = True
        except OSError:
            number += 1
        assert verified(copy) == []
        assert errors(backed_up(store, copy).findings) == []
        assert verified(copy) == []
        assert {path.name for path in (copy / "segments").iterdir()} == table_of(copy).files
    assert number > 30
    assert restored(copy, memory / "copy") == []
    must_be(memory / "copy", contents(store))


def test_folders_that_are_refused(memory, store, target):
    for inside in (store.layout.root, store.layout.segments / "deep" / "er"):
        with pytest.raises(StoreError, match="is in the folder of the store"):
            backed_up(store, inside)
    (memory / "link").symlink_to(store.layout.root)
    with pytest.raises(StoreError, match="is in the folder of the store"):
        backed_up(store, memory / "link" / "backup")
    with open_store(memory / "other", options=OPTIONS) as other:
        put(other, payload_of(key_of(7), 100))
        with pytest.raises(StoreError, match="neither empty nor a backup: it has 'index'"):
            backed_up(store, memory / "other")
        backed_up(other, target)
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        with pytest.raises(WrongStore, match="backup of another store"):
            backed_up(store, target)
        assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (memory / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        backed_up(store, memory / "file")
    with pytest.raises(StoreError, match="has no complete backup"):
        verified(memory / "other")


def test_one_process_at_a_time(memory, store, target):
    backed_up(store, target)
    folder = BackupFolder(target, FileOps())
    with folder.locked():
        for refused in (backed_up, lambda _, folder: verified(folder)):
            with pytest.raises(StoreLocked, match="wait until it has ended"):
                refused(store, target)
        with pytest.raises(StoreLocked):
            restored(target, memory / "copy")
    with folder.shared():
        assert verified(target) == []
        with pytest.raises(StoreLocked):
            backed_up(store, target)


def test_every_byte_of_a_backup_is_verified(memory, store, target):
    backed_up(store, target)
    for path in [*(target / "segments").iterdir(), target / "store.toml", target / TABLE]:
        body = path.read_bytes()
        damage(path, len(body) // 2)
        if path.name == TABLE:
            with pytest.raises(StoreCorrupt):
                verified(target)
        else:
            (found,) = verified(target)
            assert str(path) in found
        path.write_bytes(body)
    path = next((target / "segments").iterdir())
    body = path.read_bytes()
    path.write_bytes(body[:-1])
    (found,) = verified(target)
    assert f"it ends at byte {len(body) - 1}, not at {len(body)}" in found
    path.unlink()
    (found,) = verified(target)
    assert "it is missing" in found
    assert len(restored(target, memory / "copy")) >= 2  # the file, and reindex names the segment
    path.write_bytes(body)
    assert verified(target) == []


def test_folders_that_no_restore_changes(memory, store, target):
    backed_up(store, target)
    for folder in (store.layout.root, memory):
        with pytest.raises(StoreError, match="is not empty"):
            restored(target, folder)
    with pytest.raises(StoreError, match="is in the backup"):
        restored(target, target / "new")
    (memory / "fresh" / "lost+found").mkdir(parents=True)  # a new file system
    assert restored(target, memory / "fresh") == []
    must_be(memory / "fresh", contents(store))
    damage(target / "store.toml", 80)
    with pytest.raises(StoreCorrupt, match="Nothing was restored"):
        restored(target, memory / "none")
    assert not (memory / "none").exists()

"""Disks for tests: one that fills up or breaks, and one that records what was done to it for a replay."""

import errno
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from streamsrv.store.fileops import FileOps

PAGE = 512  # what a disk writes whole


class FullDiskFileOps(FileOps):
    """ENOSPC after `room` bytes, `free` bytes of space, syncs that fail with `sync_error`."""

    def __init__(self, room=None, free=None, sync_error=None):
        self.room = room
        self.free = free
        self.sync_error = sync_error
        self.syncs = []

    def write(self, fd, pieces, offset, *, keep=True):
        length = sum(map(len, pieces))
        if self.room is None or length <= self.room:
            written = super().write(fd, pieces, offset, keep=keep)
        elif self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:  # a disk writes what still fits
            written = super().write(fd, [b"".join(pieces)[: self.room]], offset, keep=keep)
        if self.room is not None:
            self.room -= written
        return written

    def copy(self, source, source_offset, target, target_offset, length):
        if self.room is not None and length > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().copy(source, source_offset, target, target_offset, length)

    def sync(self, fd):
        self.syncs.append(path_of(fd).name)
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        super().sync(fd)

    def space(self, folder):
        free, total = super().space(folder)
        return (free if self.free is None else self.free), total


def path_of(fd):
    return Path(os.readlink(f"/proc/self/fd/{fd}"))


@dataclass
class Operation:
    """One thing done to a disk: `path` is relative to the folder, `detail` what its kind needs."""

    kind: str
    path: str
    detail: tuple = ()


@dataclass
class RecordingFileOps(FileOps):
    """Does what is asked, and writes it down."""

    folder: Path
    log: list = field(default_factory=list)

    def _note(self, kind, path, *detail):
        self.log.append(Operation(kind, os.path.relpath(path, self.folder), detail))

    def create(self, path):
        fd = super().create(path)
        self._note("create", path)
        return fd

    def write(self, fd, pieces, offset, *, keep=True):
        written = super().write(fd, pieces, offset, keep=keep)
        self._note("write", path_of(fd), offset, b"".join(pieces)[:written])
        return written

    def sync(self, fd):
        super().sync(fd)
        self._note("sync", path_of(fd))

    def sync_folder(self, folder):
        super().sync_folder(folder)
        self._note("sync_folder", folder)

    def truncate(self, fd, length):
        super().truncate(fd, length)
        self._note("truncate", path_of(fd), length)

    def copy(self, source, source_offset, target, target_offset, length):
        copied = super().copy(source, source_offset, target, target_offset, length)
        self._note("write", path_of(target), target_offset, os.pread(source, copied, source_offset))
        return copied

    def make_folder(self, folder):
        super().make_folder(folder)
        self._note("make_folder", folder)

    def link(self, old, new):
        super().link(old, new)
        self._note("link", old, os.path.relpath(new, self.folder))

    def rename(self, old, new):
        super().rename(old, new)
        self._note("rename", old, os.path.relpath(new, self.folder))

    def unlink(self, path):
        super().unlink(path)
        self._note("unlink", path)

    def remove_folder(self, folder):
        super().remove_folder(folder)
        self._note("remove_folder", folder)

    def index_committed(self, snapshot):
        """The index reached a new durable state, a copy of which lies in `snapshot`."""
        self.log.append(Operation("index", "index", (snapshot,)))


@dataclass
class Content:
    """A file as the disk has it, and what was written since and may be lost."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list = field(default_factory=list)

    def apply(self, operations):
        result = bytearray(self.durable)
        for kind, offset, body in operations:
            if kind == "truncate":
                del result[offset:]
                result += bytes(offset - len(result))
            else:
                result += bytes(max(offset + len(body) - len(result), 0))
                result[offset : offset + len(body)] = body
        return result

    def synced(self):
        self.durable, self.pending = self.apply(self.pending), []


LOSSES = ("none", "all", "torn")


class Replay:
    """What a log leaves on a disk, prefix by prefix."""

    def __init__(self):
        self.files = {}
        self.unsynced_names = {}  # names that their folder's sync has not made durable yet
        self.replaced = {}  # the same of renames: new name -> the file that had it before, or None
        self.index = None

    def step(self, operation):
        getattr(self, f"_{operation.kind}")(operation)

    def _create(self, operation):
        self.files[operation.path] = Content()
        self.unsynced_names[operation.path] = True

    def _write(self, operation):
        offset, body = operation.detail
        # Torn where the disk's pages end.
        at = 0
        while at < len(body):
            size = min(PAGE - (offset + at) % PAGE, len(body) - at)
            self.files[operation.path].pending.append(("write", offset + at, body[at : at + size]))
            at += size

    def _truncate(self, operation):
        self.files[operation.path].pending.append(("truncate", operation.detail[0], b""))

    def _sync(self, operation):
        self.files[operation.path].synced()

    def _sync_folder(self, operation):
        for path in list(self.unsynced_names):
            if os.path.dirname(path) == ("" if operation.path == "." else operation.path):
                del self.unsynced_names[path]
        for path in list(self.replaced):
            if os.path.dirname(path) == ("" if operation.path == "." else operation.path):
                del self.replaced[path]

    def _rename(self, operation):
        (new,) = operation.detail
        self.replaced.setdefault(new, self.files.get(new))
        self.files[new] = self.files.pop(operation.path)
        self.unsynced_names.pop(operation.path, None)

    def _make_folder(self, operation):
        pass

    def _link(self, operation):
        self.files[operation.detail[0]] = self.files[operation.path]

    def _unlink(self, operation):
        self.files.pop(operation.path)
        self.unsynced_names.pop(operation.path, None)

    def _remove_folder(self, operation):
        pass

    def _index(self, operation):
        self.index = operation.detail[0]

    def build(self, folder, loss, seed):
        """The folder after a crash: a dead process loses nothing, a power loss what was not synced."""
        choice = random.Random(seed)
        for name in ("segments", "index"):
            (folder / name).mkdir(parents=True)
        for path, content in self.files.items():
            if loss == "all" and path in self.replaced:
                content = self.replaced[path]
            if content is None or (loss == "all" and path in self.unsynced_names):
                continue
            kept = {
                "none": content.pending,
                "all": [],
                "torn": [one for one in content.pending if choice.random() < 0.6],
            }[loss]
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content.apply(kept))
        if self.index is not None:
            shutil.copytree(self.index, folder / "index", dirs_exist_ok=True)

"""The folder of a backup, and the table of its files.

    DEST/backup.json           the table of the last complete backup
    DEST/unfinished.json       the files that an interrupted backup has copied: the next one goes on there
    DEST/segments/N.seg        the bytes of a segment up to its committed end; N-2.seg is a later copy
    DEST/store.toml            the identity of the store, with its secret: mode 0600
    DEST/lock                  is locked (flock) by backup, and shared by restore and verification

The table has the length and the SHA-256 of each file, and its own. It also is the manifest of the backup: it
has the committed end of each segment, and the removed segments.

Rules of this file
- A table is replaced in one step, after its files and their names are on the disk.
- A file that a table names only grows. Its bytes before the length in the table stay as they are.
- The lock is a file, because NFS cannot lock folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from streamsrv.errors import StoreCorrupt, StoreError, StoreLocked
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.maintenance.scrub import STEP, UncachedFile

FORMAT = 1
SEGMENTS = "segments"
TABLE, UNFINISHED, IDENTITY, LOCK = "backup.json", "unfinished.json", "store.toml", "lock"
DRAFT = ".new"
# mkfs makes it in every file system.
OF_THE_FILE_SYSTEM = "lost+found"
_SEGMENT_FILE = re.compile(r"[0-9]{8,}(-[0-9]+)?\.seg")


@dataclass(frozen=True, slots=True)
class SegmentCopy:
    """A segment in a backup. `file` is its name in DEST/segments, empty if nothing of it could be copied.
    `length` are the copied bytes, `end` the committed end. `modified` is the time of the last change of the
    source, in nanoseconds. `findings` are the faults of the copy: the store had them when it was made."""

    segment: int
    file: str
    length: int
    end: int
    sealed: bool
    sha256: str
    modified: int
    findings: tuple[str, ...] = ()


@dataclass(slots=True)
class BackupTable:
    """`store` is the id of the store, `identity` the SHA-256 of store.toml. `began` and `ended` are times in
    UTC; `ended` is empty in an unfinished backup. `removed` are the segments that a compaction removed. `run`
    is random: an unfinished table with that of the complete one is older than it."""

    store: str
    identity: str
    program: str
    run: str
    began: str = ""
    ended: str = ""
    segments: dict[int, SegmentCopy] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)

    def packed(self) -> bytes:
        """The JSON text of the table."""
        body = asdict(self) | {"segments": [asdict(each) for each in self.segments.values()]}
        document = {"format": FORMAT, "sha256": _digest_of(body), "backup": body}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2)

    @classmethod
    def unpacked(cls, raw: bytes, where: Path) -> BackupTable:
        """Raises StoreCorrupt if a byte has changed, StoreError for another format."""
        try:
            document = orjson.loads(raw)
            version, body = document["format"], document["backup"]
            if version != FORMAT:
                raise StoreError(f"{where} has format {version}, and this program reads only {FORMAT}")
            if document["sha256"] != _digest_of(body):
                raise StoreCorrupt(f"{where} is damaged: its SHA-256 is wrong. {_NO_TABLE}")
            copies = [_copy_of(each) for each in body.pop("segments")]
            return cls(**body, segments={each.segment: each for each in copies})
        except (ValueError, LookupError, TypeError) as error:
            raise StoreCorrupt(f"{where} cannot be read ({error}). {_NO_TABLE}") from None

    @property
    def files(self) -> set[str]:
        return {each.file for each in self.segments.values()} - {""}

    @property
    def length(self) -> int:
        """Bytes of all segments."""
        return sum(each.length for each in self.segments.values())


_NO_TABLE = "Restore it, or begin a backup in an empty folder"


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _copy_of(values: dict[str, Any]) -> SegmentCopy:
    if values["file"] and not _SEGMENT_FILE.fullmatch(values["file"]):
        raise ValueError(f"{values['file']!r} is no name of a segment")
    return SegmentCopy(**{**values, "findings": tuple(values["findings"])})


class BackupFolder:
    """The folder DEST."""

    def __init__(self, root: Path, ops: FileOps) -> None:
        self.root = root
        self.ops = ops
        self.identity = root / IDENTITY
        self.segments = root / SEGMENTS

    def path(self, file: str) -> Path:
        return self.segments / file

    # Tables

    def complete(self) -> BackupTable:
        """The last complete backup. Raises StoreError if there is none, StoreCorrupt if it cannot be read."""
        table = self.table(TABLE)
        if table is None:
            begun = (self.root / UNFINISHED).exists()
            reason = "its first backup was interrupted, run it again" if begun else f"it has no {TABLE}"
            raise StoreError(f"{self.root} has no complete backup: {reason}")
        return table

    def table(self, name: str) -> BackupTable | None:
        """None if there is no such table."""
        path = self.root / name
        try:
            return BackupTable.unpacked(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, name: str, body: bytes) -> None:
        """Replaces a file of the folder in one step, durably. Raises OSError."""
        draft = self.root / (name + DRAFT)
        with contextlib.suppress(FileNotFoundError):
            self.ops.unlink(draft)
        fd = self.ops.create(draft)
        try:
            write_all(self.ops, fd, [body], 0)
            self.ops.sync(fd)
        finally:
            os.close(fd)
        self.ops.rename(draft, self.root / name)
        self.ops.sync_folder(self.root)

    # Locks

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For a backup; makes the folder. Raises StoreLocked."""
        make_durable(self.root, self.ops)
        fd = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with _closing(fd):
            self._lock(fd, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """For restore and verification. Read-only media without the file have no writer. Raises
        StoreLocked."""
        try:
            fd = os.open(self.root / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        with _closing(fd):
            self._lock(fd, fcntl.LOCK_SH)
            yield

    def _lock(self, fd: int, kind: int) -> None:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "a backup, a restore or a verification" if kind == fcntl.LOCK_EX else "a backup"
            raise StoreLocked(f"{what} is running on {self.root}: wait until it has ended") from None


def make_durable(folder: Path, ops: FileOps) -> None:
    """Make the folder and its parents, if they are missing, and sync their names."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    ops.make_folder(folder)
    for each in missing:
        ops.sync_folder(each.parent)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def pieces_of(path: Path, length: int, taken: Callable[[int], None]) -> Iterator[bytes]:
    """The first `length` bytes of a file, read past the page cache. Raises StoreCorrupt if it is missing, or
    behind its last byte if it is too short; OSError."""
    try:
        file = UncachedFile(path, taken)
    except FileNotFoundError:
        raise StoreCorrupt("it is missing") from None
    with contextlib.closing(file):
        end = min(file.length, length)
        for start in range(0, end, STEP):
            yield file.read(start, min(STEP, end - start))
        if end < length:
            raise StoreCorrupt(f"it ends at byte {end}, not at {length}")

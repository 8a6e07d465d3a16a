"""The folder of a store: paths, identity, free space, and the locks on the store as a whole.

    DATA/store.toml        store id, secret, format version, checksum; written once, mode 0600
    DATA/manifest          segments and their acknowledged ends; locks of writers (see manifest, locks)
    DATA/segments/NNNNNNNN.seg
    DATA/index/            LMDB. index.old is the one before the last reindex, index.building the one that
                           reindex works on, index.new exists while the two change places
    DATA/lost+found/       bytes that recovery has cut off segments (see leftovers)
    DATA/index.check/      the scratch index of check, while it runs
    DATA/scrub.json        when the bytes of each segment were last verified (see scrub)
    DATA/ballast           preallocated blocks without contents: space for deletes and compaction

The *fingerprint* of a store is a digest of its id and secret. The index and the header of each segment have
it, so that a file of another store is refused before anything is written.

Stores leave a reserve of free space, but other programs may fill the disk beyond it. Deletes, compaction and
opening the store need a few blocks and perhaps an inode. If they find none, the ballast is removed and the
work is done again. While the ballast is missing, stores are refused. The first store that finds room for
ballast and reserve makes it again.

Rules of this file
- The locks are flocks on folders, because a user may remove a lock file. The one server (its supervisor) or
  reindex locks DATA; servers that only read share it. Everything that has the store open shares a lock on
  DATA/segments; reindex has it alone. So no forgotten worker, compaction or check goes on with an index that
  has been replaced.
- A folder that has segments but no index is never opened: an empty index would say that nothing in them was
  committed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tomllib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from streamsrv.errors import NO_SPACE, InsufficientStorage, StoreCorrupt, StoreError, StoreLocked
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.segments.manifest import Manifest
from streamsrv.store.segments.records import FORMAT_VERSION

SECRET_LENGTH = 32

# The default reserve in bytes, or as a share of the disk, whichever is less.
RESERVE = 1 << 30
RESERVE_SHARE = 50
# At most this share of a small disk is ballast.
BALLAST_SHARE = 32

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths in the folder."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "store.toml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest"

    @property
    def lost_and_found(self) -> Path:
        return self.root / "lost+found"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def unfinished_index(self) -> Path:
        return self.root / "index.building"

    @property
    def new_index(self) -> Path:
        return self.root / "index.new"

    @property
    def old_index(self) -> Path:
        return self.root / "index.old"

    @property
    def scratch_index(self) -> Path:
        return self.root / "index.check"

    @property
    def scrub_state(self) -> Path:
        return self.root / "scrub.json"

    def segment(self, segment: int) -> Path:
        return self.segments / f"{segment:08d}.seg"

    def segment_files(self) -> dict[int, Path]:
        """Segments with a file, ascending."""
        paths = self.segments.glob("*.seg") if self.segments.is_dir() else ()
        return dict(sorted((int(path.stem), path) for path in paths if path.stem.isdecimal()))


@dataclass(frozen=True, slots=True)
class Identity:
    store_id: str
    secret: bytes

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that do not reveal the secret."""
        whole = self.store_id.encode() + b"\0" + self.secret
        return hashlib.blake2b(whole, digest_size=16, person=b"streamsrv store").digest()

    def text(self) -> str:
        secret = self.secret.hex()
        return (
            "# The identity of this store. Keep a copy: without it only `salvage` reads the segments.\n"
            f'store_id = "{self.store_id}"\n'
            f'secret = "{secret}"\n'
            f"format_version = {FORMAT_VERSION}\n"
            f'checksum = "{_checksum(self.store_id, secret, FORMAT_VERSION)}"\n'
        )


def _checksum(store_id: str, secret: str, version: int) -> str:
    """The checksum of the values in store.toml."""
    return hashlib.blake2b(f"{store_id}\n{secret}\n{version}\n".encode(), digest_size=16).hexdigest()


class FolderLock:
    """A lock on the folder. `close`, or the end of the process, releases it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(layout: Layout, ops: FileOps) -> None:
    """Make the folder and its identity, if missing. An existing store gets no empty folder of segments: its
    folder may be a mount that is missing."""
    ops.make_folder(layout.root)
    require_writable(layout)
    if layout.identity.exists():
        return
    ops.make_folder(layout.segments)
    if layout.segment_files() or layout.index.exists() or layout.manifest.exists():
        if layout.identity.exists():  # another worker was faster
            return
        raise StoreCorrupt(
            f"{layout.root} has segments, index or manifest, but no store.toml: without its secret "
            "they cannot be read. Bring back the copy that you keep of it"
        )
    # Written under another name, then linked: one of several workers wins, and no reader sees half a file.
    draft = layout.root / f"store.toml.{os.getpid()}.{secrets.token_hex(4)}"
    fd = ops.create(draft)
    try:
        write_all(
            ops, fd, [Identity(str(uuid.uuid4()), secrets.token_bytes(SECRET_LENGTH)).text().encode()], 0
        )
        ops.sync(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(FileExistsError):
        ops.link(draft, layout.identity)
    ops.unlink(draft)
    ops.sync_folder(layout.root)


def prepare_manifest(layout: Layout, manifest: Manifest) -> None:
    """Make the manifest of a new store. Reindex makes a lost one again."""
    used = layout.index.exists() or bool(layout.segment_files())
    if not used and not layout.manifest.exists():
        manifest.create()


def require_writable(layout: Layout) -> None:
    """StoreError on a read-only file system, or without permission."""
    if not os.access(layout.root, os.W_OK):
        raise StoreError(
            f"{layout.root} cannot be written to (a read-only file system, or no permission): only `serve "
            "--read-only`, `check`, `info` and `backup` work there"
        )


def identity_of(layout: Layout) -> Identity:
    """Read store.toml. Raises StoreError if it is missing or has another format, StoreCorrupt if it cannot be
    read."""
    try:
        return identity_from(layout.identity.read_text(errors="replace"), str(layout.identity))
    except FileNotFoundError:
        raise StoreError(f"{layout.root} is not the folder of a store: it has no store.toml") from None


def identity_from(text: str, where: str) -> Identity:
    """The identity in a store.toml. Raises StoreError for another format, StoreCorrupt if the text was
    changed."""
    try:
        settings = tomllib.loads(text)
        version = settings["format_version"]
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{where} has format version {version}, and this program reads only {FORMAT_VERSION}: "
                "use the version of streamsrv that made it, or store its instances in a new store"
            )
        expected = _checksum(settings["store_id"], settings["secret"], version)
        identity = Identity(settings["store_id"], bytes.fromhex(settings["secret"]))
        if settings["checksum"] != expected:
            raise StoreCorrupt(
                f"{where}: the checksum is wrong, so a value in it has changed. "
                "Nothing was written; bring back the copy that you keep of it"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorrupt(
            f"{where} cannot be read ({error}): bring back the copy that you keep of it"
        ) from error
    if len(identity.secret) != SECRET_LENGTH:
        raise StoreCorrupt(
            f"{where}: the secret is not {SECRET_LENGTH} bytes. Bring back the copy that you keep"
        )
    return identity


def undo_exchange(layout: Layout, ops: FileOps) -> None:
    """Undo an exchange of indexes that stopped before the new index got its name. An old index alone stays:
    it may be months old."""
    if not layout.index.exists() and layout.old_index.exists() and layout.new_index.exists():
        with contextlib.suppress(FileNotFoundError):  # another worker was first
            ops.rename(layout.old_index, layout.index)


def ensure_index(layout: Layout, ops: FileOps) -> None:
    """Raises StoreCorrupt for segments without an index."""
    undo_exchange(layout, ops)
    if not layout.index.exists() and layout.segment_files():
        raise StoreCorrupt(
            f"{layout.root} has segments but no index: run `streamsrv reindex --data {layout.root}`"
        )


def require_no_index(layout: Layout) -> None:
    """Raises StoreError if the folder has an index of its own: its instances are not in the database."""
    if layout.index.exists():
        raise StoreError(
            f"{layout.root} has its own index: start without `--index`, or with another folder for a database"
        )


def lock(layout: Layout, ops: FileOps, *, shared: bool = False) -> FolderLock:
    """Lock the folder for one server, or for reindex; `shared` with others that write nothing. Raises
    StoreLocked."""
    ops.make_folder(layout.root)
    fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not _locked(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
        owner = _holder(fd)
        os.close(fd)
        raise StoreLocked(f"{layout.root} is in use by another streamsrv process ({owner}): stop it first")
    return FolderLock(fd)


def use(layout: Layout, *, exclusive: bool = False) -> FolderLock:
    """Lock the segments: shared, or `exclusive` for reindex. Raises StoreLocked."""
    try:
        fd = os.open(layout.segments, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StoreCorrupt(
            f"{layout.root} has no folder of segments: mount it, or bring it back from a backup"
        ) from None
    if not _locked(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
        os.close(fd)
        raise StoreLocked(
            f"{layout.root} is open in another process: end it first"
            if exclusive
            else f"{layout.root} is being reindexed: wait until that has ended"
        )
    return FolderLock(fd)


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    """The process that holds the flock, from /proc/locks."""
    inode = str(os.fstat(fd).st_ino)
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                return f"process {fields[4]}"
    return "which one is not known"


class Reserve:
    """`least` is the reserve in bytes, None for the default. `ballast` is its size in bytes, 0 for none."""

    def __init__(self, root: Path, ops: FileOps, least: int | None, ballast: int) -> None:
        self._root = root
        self._path = root / "ballast"
        self._ops = ops
        self._least = least
        self._ballast = ballast

    def least_of(self, total: int) -> int:
        """Bytes that stay free on a disk of `total` bytes."""
        return min(RESERVE, total // RESERVE_SHARE) if self._least is None else self._least

    def require(self) -> None:
        """Raises InsufficientStorage if less than the reserve is free, or if the missing ballast has no
        room."""
        free, total = self._ops.space(self._root)
        least = self.least_of(total)
        if self._ballast and not self._ops.length(self._path):
            size = min(self._ballast, total // BALLAST_SHARE)
            least += size
            if free >= least:
                self._make(size)
        if free < least:
            raise InsufficientStorage(f"less than {least} bytes are free on the disk of the store")

    def _make(self, size: int) -> None:
        """A file system that cannot preallocate has no ballast."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._ops.unlink(self._path)  # one that a crash left empty
            self._ops.allocate(self._path, size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise InsufficientStorage("the disk of the store has no room for the ballast file") from error

    def with_room(self, work: Callable[[], Result]) -> Result:
        """Call `work`; if the disk is full, remove the ballast and call it again."""
        try:
            return work()
        except (InsufficientStorage, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_SPACE:
                raise
        self.release()
        return work()

    def release(self) -> None:
        """Remove the ballast."""
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._ops.unlink(self._path)

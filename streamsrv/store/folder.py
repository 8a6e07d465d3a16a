"""The folder of a store: what lies where, who it is, and the locks on it as a whole.

    DATA/store.toml        store id, secret, format version; written once, mode 0600
    DATA/lock              flock: exclusive by the server (its supervisor) of the folder, and by reindex
    DATA/claims            byte-range locks of writers (see claims)
    DATA/segments/NNNNNNNN.seg
    DATA/index/            LMDB; index.new while reindex builds another, index.old while they change places
    DATA/index.check/      what check compares the index with, while it runs

Rules of this file
- store.toml is flocked too: shared by everything that has the store open, exclusive by reindex. So no
  forgotten worker, compaction or check goes on with an index that has been replaced.
- A folder that has segments but no index is never opened: an empty index would say that nothing in them was
  ever committed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path

from streamsrv.errors import StoreCorrupt, StoreError, StoreLocked
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.records import FORMAT_VERSION

SECRET_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of everything in the folder."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "store.toml"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def new_index(self) -> Path:
        return self.root / "index.new"

    @property
    def old_index(self) -> Path:
        return self.root / "index.old"

    @property
    def scratch_index(self) -> Path:
        return self.root / "index.check"

    def segment(self, segment: int) -> Path:
        return self.segments / f"{segment:08d}.seg"

    def segment_files(self) -> dict[int, Path]:
        """Every segment that has a file, in ascending order."""
        paths = self.segments.glob("*.seg") if self.segments.is_dir() else ()
        return dict(sorted((int(path.stem), path) for path in paths if path.stem.isdecimal()))


@dataclass(frozen=True, slots=True)
class Identity:
    store_id: str
    secret: bytes

    def text(self) -> str:
        return (
            "# The identity of this store. Keep a copy: without the secret its segments cannot be read.\n"
            f'store_id = "{self.store_id}"\n'
            f'secret = "{self.secret.hex()}"\n'
            f"format_version = {FORMAT_VERSION}\n"
        )


class Held:
    """A lock on the folder; closing it, or the end of the process, gives it up."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(layout: Layout, ops: FileOps) -> None:
    """Make the folder and its identity, unless they are there."""
    ops.make_folder(layout.root)
    ops.make_folder(layout.segments)
    if layout.identity.exists():
        return
    if layout.segment_files():
        raise StoreCorrupt(
            f"{layout.root} has segments but no store.toml: without its secret they cannot be read"
        )
    # Written whole under another name, then linked: of several workers one wins, and no half of it is ever
    # seen.
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


def identity_of(layout: Layout) -> Identity:
    """Read store.toml; StoreError if there is none, StoreCorrupt if it makes no sense."""
    try:
        settings = tomllib.loads(layout.identity.read_text())
        version = settings["format_version"]
        identity = Identity(settings["store_id"], bytes.fromhex(settings["secret"]))
    except FileNotFoundError:
        raise StoreError(f"{layout.root} is not the folder of a store: it has no store.toml") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{layout.identity} cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise StoreError(f"{layout.root} has format version {version}; this program knows {FORMAT_VERSION}")
    if len(identity.secret) != SECRET_LENGTH:
        raise StoreCorrupt(f"{layout.identity}: the secret is not {SECRET_LENGTH} bytes")
    return identity


def ensure_index(layout: Layout, ops: FileOps) -> None:
    """Refuse segments without their index, and undo an exchange of indexes that was cut short."""
    if layout.index.exists():
        return
    if layout.old_index.exists():
        with contextlib.suppress(FileNotFoundError):  # another worker was first
            ops.rename(layout.old_index, layout.index)
        return
    if layout.segment_files():
        raise StoreCorrupt(
            f"{layout.root} has segments but no index: run `streamsrv reindex --data {layout.root}`"
        )


def lock(layout: Layout, ops: FileOps) -> Held:
    """The one server of the folder, or reindex; StoreLocked if there is another."""
    ops.make_folder(layout.root)
    fd = _open_lock(layout, ops)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # it serves on a full disk, too
            ops.truncate(fd, 0)
            write_all(ops, fd, [f"process {os.getpid()}\n".encode()], 0)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise StoreLocked(
            f"{layout.root} is in use by another streamsrv process ({owner or 'starting'}): stop it first"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return Held(fd)


def _open_lock(layout: Layout, ops: FileOps) -> int:
    with contextlib.suppress(FileNotFoundError):
        return ops.open(layout.lock)
    with contextlib.suppress(FileExistsError):
        return ops.create(layout.lock)
    return ops.open(layout.lock)  # made by another in between


def use(layout: Layout, *, exclusive: bool = False) -> Held:
    """Have the store open, beside others, or for reindex without others."""
    fd = os.open(layout.identity, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreLocked(
            f"{layout.root} is open in another process: end it first"
            if exclusive
            else f"{layout.root} is being reindexed"
        ) from None
    return Held(fd)

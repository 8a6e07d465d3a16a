"""Documents: small named texts that all processes of a store share, such as keys, sessions, hooks, cursors.

Two places keep them, and their callers see no difference: files of a folder, and rows of a database for the
nodes of a cluster (postgresql/documents.py). Each kind of document has its own folder, or its own rows.

Rules
- A change excludes all other changes of its kind. Its texts are durable when it has ended.
- A reader waits for no change. It sees the former text of a document, or the new one.
- A lease makes one process of all the only one that does something. A change can depend on it, so a process
  that was stopped, and has lost its lease meanwhile, changes nothing when it wakes up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from streamsrv.errors import StoreCorrupt, StoreError

_DRAFT = ".draft"
_LEASE = ".lease"


class DocumentDamaged(StoreCorrupt):
    """A document cannot be read; `detail` names it."""


class LeaseLost(StoreError):
    """Another process has the lease, or may have it."""


class NamedText(NamedTuple):
    """A document, or the reason why it cannot be read."""

    name: str
    text: bytes | DocumentDamaged


class ChangedTexts(NamedTuple):
    """Texts of documents, None for one that is not there. `version` counts the changes of their kind that
    they have at least."""

    version: int
    texts: dict[str, bytes | None]


class Lease(Protocol):
    """The right of one process to do something."""

    def holds(self) -> bool:
        """Whether it holds, as of a second ago at most. May block. Raises StoreError."""


class DocumentChange(Protocol):
    """The calls that change documents, within `Documents.changing`."""

    def write(self, name: str, text: bytes) -> None:
        """Makes or replaces a document."""

    def append(self, name: str, text: bytes) -> None:
        """Adds to the end of a document; makes it if it is not there."""

    def rename(self, name: str, new: str) -> None:
        """Replaces the document `new`. `name` has to be there."""

    def remove(self, name: str) -> None:
        """Does nothing if it is not there."""


class Documents(ABC):
    """The documents of one kind. Any thread may call it; all calls block. Reading calls raise StoreError.
    `where` is the place, for people. `folder` is None for a database."""

    where: str
    folder: Path | None = None
    watched: WatchedDocuments | None = None  # of a database
    # Seconds between two tries to get the lease.
    patience = 0.0

    @abstractmethod
    def exist(self) -> bool:
        """False if there is no store yet, so that none can be made."""

    @abstractmethod
    def names(self, start: str = "", end: str = "") -> list[str]:
        """The names with this start and end, sorted."""

    @abstractmethod
    def all(self, start: str = "", end: str = "") -> Iterator[NamedText]:
        """The documents of these names, in their order."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """None if there is none. Raises DocumentDamaged."""

    @abstractmethod
    def changing(self, lease: Lease | None = None) -> AbstractContextManager[DocumentChange]:
        """Raises StoreError, and LeaseLost if the lease is given and lost."""

    @abstractmethod
    def leased(self) -> AbstractContextManager[Lease | None]:
        """The lease of this kind; None while another process has it. It ends with the context."""

    @abstractmethod
    def holder(self) -> str:
        """The process of a node that has the lease, as HOST:PROCESS. Empty if there is none, and for a
        folder."""

    @abstractmethod
    def now(self) -> float:
        """Seconds since 1970, by the clock that all processes share."""

    @abstractmethod
    def close(self) -> None: ...


class WatchedDocuments(Protocol):
    """Documents that another machine may change: the calls that notice it."""

    def read_several(self, names: Sequence[str]) -> ChangedTexts:
        """Raises StoreError."""

    def changed_since(self, version: int) -> ChangedTexts:
        """All documents that have changed since this version. Changes that are older than an hour may be
        missing. Raises StoreError."""


class FolderLease:
    """Holds until its process ends."""

    def holds(self) -> bool:
        return True


class FolderDocuments(Documents):
    """A file for each. The folder is for its owner only (0700), and need not exist to be read. A file is
    written under another name, synced, and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self.where = str(folder)

    def exist(self) -> bool:
        return True

    def names(self, start: str = "", end: str = "") -> list[str]:
        try:
            found = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be read: {error.strerror}") from None
        ours = (name for name in found if name[0] != "." and not name.endswith(_DRAFT))
        return sorted(name for name in ours if name.startswith(start) and name.endswith(end))

    def all(self, start: str = "", end: str = "") -> Iterator[NamedText]:
        for name in self.names(start, end):
            with contextlib.suppress(FileNotFoundError):
                try:
                    yield NamedText(name, self.content(name)[0])
                except DocumentDamaged as error:
                    yield NamedText(name, error)

    def path_of(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> bytes | None:
        try:
            return self.content(name)[0]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path_of(name)} cannot be read: {error.strerror}") from None

    def content(self, name: str) -> tuple[bytes, os.stat_result]:
        """Raises FileNotFoundError, DocumentDamaged, and another OSError of the machine."""
        path = self.path_of(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError as error:
            raise DocumentDamaged(f"{path} cannot be read: {error.strerror}") from None
        except OSError:
            if path.is_symlink():
                raise DocumentDamaged(f"{path} is a symbolic link") from None
            raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise DocumentDamaged(f"{path} is not a file")
            with open(fd, "rb", closefd=False) as file:
                return file.read(), found
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def changing(self, lease: Lease | None = None) -> Iterator[DocumentChange]:
        """Makes the folder and locks it; removes drafts of processes that died."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                make_private(self.folder)
                for draft in self.folder.glob(f"*{_DRAFT}"):
                    draft.unlink(missing_ok=True)
                yield FolderChange(self)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written to: {error.strerror}") from None

    @contextlib.contextmanager
    def leased(self) -> Iterator[Lease | None]:
        """A lock on a file of the folder; makes both."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.folder / _LEASE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield FolderLease()
        finally:
            os.close(fd)

    def holder(self) -> str:
        return ""

    def now(self) -> float:
        return time.time()

    def close(self) -> None:
        """Nothing is open."""


class FolderChange:
    """Each call is a change of its own: a process that dies leaves those that have ended."""

    def __init__(self, documents: FolderDocuments) -> None:
        self._path_of = documents.path_of

    def write(self, name: str, text: bytes) -> None:
        path = self._path_of(name)
        draft = path.with_suffix(_DRAFT)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(draft, path)

    def append(self, name: str, text: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path_of(name), flags, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)

    def rename(self, name: str, new: str) -> None:
        os.rename(self._path_of(name), self._path_of(new))

    def remove(self, name: str) -> None:
        self._path_of(name).unlink(missing_ok=True)


def make_private(folder: Path) -> bool:
    """Takes the permissions of others from the folder. Returns whether they could write to it. Raises
    OSError."""
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    if mode & 0o077:
        os.chmod(folder, mode & 0o700)
    return bool(mode & 0o022)

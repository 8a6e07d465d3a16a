"""Requests for Storage Commitment that were acknowledged and are not reported yet: a file for each.

    DATA/commitments/PEER-TOKEN.json      the request
    DATA/commitments/.PEER-TOKEN.draft    one that is being written

Rules of this file
- A request may name a hundred thousand instances. Memory holds them while it is answered or reported.
- One peer that is never reached leaves room for the others.
- A file is written under another name, synced, and renamed: a request that was acknowledged outlives a crash.
- The process that reports a request has a lock on its file. So a worker that starts takes over the requests
  of workers that have ended, and no others.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streamsrv.errors import Overloaded

log = logging.getLogger("streamsrv.dimse")

FOLDER = "commitments"
MOST_KEPT, MOST_OF_PEER = 1000, 250  # requests of all workers
DRAFT_ENDS = 3600.0  # seconds: an older draft belongs to a process that has ended


class CommitmentRequest(NamedTuple):
    """AE title and address of the peer. `asked` is in seconds since 1970. `references` are pairs of SOP Class
    and Instance UID."""

    title: str
    address: str
    asked: float
    transaction: str
    references: tuple[tuple[str, str], ...]


class KeptCommitment(NamedTuple):
    """Call `drop` when it was reported, or given up. `path` is None for one that is in memory only, else
    `request` has no references."""

    request: CommitmentRequest
    path: Path | None = None
    descriptor: int = -1

    def whole(self) -> CommitmentRequest:
        """With its references. Blocks; raises OSError, ValueError, LookupError and TypeError."""
        return self.request if self.path is None else _request_in(_content_of(self.descriptor))

    def drop(self) -> None:
        """Blocks."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)


class CommitmentLog:
    """Its calls block."""

    def __init__(self, data: Path | None) -> None:
        """None for a store that is read only: then nothing outlives the process."""
        self._folder = None if data is None else data / FOLDER

    def keep(self, request: CommitmentRequest) -> KeptCommitment:
        """The request is on the disk when this returns. Raises OSError and Overloaded."""
        if self._folder is None:
            return KeptCommitment(request)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        peer, names = request.title.encode().hex(), os.listdir(self._folder)
        if len(names) >= MOST_KEPT:
            raise Overloaded(f"{MOST_KEPT} requests are not reported yet")
        if sum(name.lstrip(".").startswith(f"{peer}-") for name in names) >= MOST_OF_PEER:
            raise Overloaded(f"{MOST_OF_PEER} requests of {request.title} are not reported yet")
        token = f"{peer}-{secrets.token_hex(8)}"
        draft, path = self._folder / f".{token}.draft", self._folder / f"{token}.json"
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with open(descriptor, "wb", closefd=False) as out:
                out.write(json.dumps(request._asdict()).encode())
            os.fsync(descriptor)
            draft.rename(path)
            self._sync()
        except BaseException:
            draft.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return KeptCommitment(request._replace(references=()), path, descriptor)

    def _sync(self) -> None:
        """Names in the folder are on the disk when this returns."""
        descriptor = os.open(self._folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def left(self) -> Iterator[KeptCommitment]:
        """Takes over the requests of processes that have ended."""
        if self._folder is None:
            return
        for path in sorted(self._folder.glob(".*.draft")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > DRAFT_ENDS:
                    path.unlink()
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError):
                if (kept := _taken_over(path)) is not None:
                    yield kept


def _taken_over(path: Path) -> KeptCommitment | None:
    """None if another process has it, or if it cannot be read. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            request = _request_in(_content_of(descriptor))
            return KeptCommitment(request._replace(references=()), path, descriptor)
    except BlockingIOError:
        pass
    except (ValueError, LookupError, TypeError):
        log.error("the request for commitment in %s cannot be read", path)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _content_of(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _request_in(content: bytes) -> CommitmentRequest:
    """Raises ValueError, LookupError and TypeError."""
    row = json.loads(content)
    references = tuple((str(sop_class), str(instance)) for sop_class, instance in row["references"])
    names = str(row["title"]), str(row["address"]), float(row["asked"]), str(row["transaction"])
    return CommitmentRequest(*names, references)

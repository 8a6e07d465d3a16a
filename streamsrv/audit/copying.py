"""Copies an audit trail beside the processes that append to it: the same bytes, and new ones only.

Strategy: under a shared lock of the folder nothing is appended. The lengths of all files, the head and the
cursor are read then, and the bytes are copied after it, because they do not change. The end of a copy that is
the same in the trail vouches for all lines before it: its chain depends on them.

Rule of this file: lines are on the disk before a head that names them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from streamsrv.audit.trail import files_of, locked

COMPARED, PIECE = 64 << 10, 1 << 20  # bytes
# Files that are replaced as a whole.
SMALL = ("head", "sent")
ATTEMPTS = 5


class TrailState(NamedTuple):
    """Names and lengths of the files with lines, and the bytes of the small files."""

    lengths: dict[str, int]
    small: dict[str, bytes]


def copy_trail(source: Path, target: Path) -> None:
    """Makes the trail in `target` equal to that in `source`. Raises OSError, also if files are removed during
    each attempt: then `target` keeps its head."""
    for left in reversed(range(ATTEMPTS)):
        state = _state(source)
        os.makedirs(target, mode=0o700, exist_ok=True)
        try:
            for name, length in state.lengths.items():
                _copy(source / name, target / name, length)
        except FileNotFoundError:  # a file was removed by its age
            if not left:
                raise
        else:
            break
    for path in files_of(target).values():
        if path.name not in state.lengths:
            path.unlink()
    for name in SMALL:
        if name in state.small:
            _write(target / name, state.small[name])
        else:
            (target / name).unlink(missing_ok=True)
    _sync_folder(target)


def _state(folder: Path) -> TrailState:
    small = dict[str, bytes]()
    with locked(folder):
        for name in SMALL:
            with contextlib.suppress(FileNotFoundError):
                small[name] = (folder / name).read_bytes()
        return TrailState({path.name: path.stat().st_size for path in files_of(folder).values()}, small)


def _copy(source: Path, target: Path, length: int) -> None:
    """The first `length` bytes."""
    with source.open("rb") as file:
        have = target.stat().st_size if target.exists() else 0
        if have <= length and _same_end(file.fileno(), target, have):
            _append(file.fileno(), target, have, length)
        else:
            draft = target.with_suffix(".new")
            draft.unlink(missing_ok=True)
            _append(file.fileno(), draft, 0, length)
            draft.rename(target)


def _same_end(fd: int, target: Path, have: int) -> bool:
    if not have:
        return True
    begin = max(0, have - COMPARED)
    with target.open("rb") as copy:
        copy.seek(begin)
        return copy.read() == os.pread(fd, have - begin, begin)


def _append(fd: int, target: Path, at: int, length: int) -> None:
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(out, "ab") as file:
        while at < length and (piece := os.pread(fd, min(PIECE, length - at), at)):
            file.write(piece)
            at += len(piece)
        file.flush()
        os.fsync(out)


def _write(path: Path, body: bytes) -> None:
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(fd)
    draft.rename(path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Finds the files to send below the paths of the command line, in batches of one request each.

Rule: it is lazy. A folder of millions of files needs the memory of one batch and of the names of one
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from streamsrv.dicom.part10 import PREAMBLE, PREFIX, read_file_meta
from streamsrv.dicom.window import Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError

INSTANCE_UID = 0x00020003


class FoundFile(NamedTuple):
    """A file to send. `uid` is its SOP Instance UID, or "" if that is unknown."""

    path: Path
    size: int
    uid: str


Batch: TypeAlias = list[FoundFile]


class Limit(NamedTuple):
    """The limits of one request, `size` in bytes. A file above `size` is sent alone."""

    instances: int = 200
    size: int = 256 << 20  # a request that breaks off loses a few seconds of a usual line


def files_under(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yields each regular file, by name in each folder, and whether the command line names it."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            yield from ((Path(folder, name), False) for name in sorted(names) if Path(folder, name).is_file())


def size_of(path: Path) -> int:
    """0 after an error, which opening the file raises again."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def examine(path: Path) -> tuple[FoundFile, bool]:
    """The file, and whether it is a Part 10 file (PS3.10 7.1). Raises OSError."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size

        def pread(offset: int, length: int) -> bytes:
            return os.pread(stream.fileno(), length, offset)

        is_dicom = pread(PREAMBLE, len(PREFIX)) == PREFIX
        return FoundFile(path, size, _instance_uid(pread, size) if is_dicom else ""), is_dicom


def _instance_uid(pread: Pread, size: int) -> str:
    """Media Storage SOP Instance UID (0002,0003), which identifies the file in a response."""
    try:
        meta = read_file_meta(ReadWindow(pread, size), size, ReadLimits())
    except InstanceError:
        return ""
    uids = [value for tag, _, value in meta.elements if tag == INSTANCE_UID]
    return uids[0].decode("ascii", "replace").rstrip("\0 ") if uids else ""


def batches(files: Iterator[FoundFile], limit: Limit) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for found in files:
        if batch and (len(batch) >= limit.instances or size + found.size > limit.size):
            yield batch
            batch, size = [], 0
        batch.append(found)
        size += found.size
    if batch:
        yield batch

"""The files to send: a walk over the paths of the command line, cut into batches, one request each.

Rule: lazy. A folder of millions of files costs one batch of memory; nobody sorts more than one folder's
names.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

PREFIX_OFFSET = 128
HEAD_SIZE = 4096  # the UID is the third element of the file meta information, long before this
LONG_VRS = (b"OB", b"UN", b"UT", b"OW")  # those that occur in group 0002, or by mistake: 4 bytes of length


class FoundFile(NamedTuple):
    """A file to send. `uid` is its SOP Instance UID, empty if that could not be read."""

    path: Path
    size: int
    uid: str


Batch: TypeAlias = list[FoundFile]


class Limit(NamedTuple):
    """How much goes into one request. A single file over `size` still goes, alone."""

    instances: int = 200
    size: int = 256 << 20  # what is lost when a request is cut off, a few seconds of a usual line


def files_under(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Every regular file, folders in order of their names, and whether it was named on the command line."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            yield from ((Path(folder, name), False) for name in sorted(names) if Path(folder, name).is_file())


def size_of(path: Path) -> int:
    """0 for what cannot be asked: whoever opens it will find out why."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def examine(path: Path) -> tuple[FoundFile, bool]:
    """The file, and whether it is a Part 10 file (PS3.10 7.1)."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_SIZE)
        size = os.fstat(stream.fileno()).st_size
    return FoundFile(path, size, _instance_uid(head)), head[PREFIX_OFFSET : PREFIX_OFFSET + 4] == b"DICM"


def _instance_uid(head: bytes) -> str:
    """Media Storage SOP Instance UID (0002,0003), which only serves to recognize the file in a response. File
    meta information is Explicit VR Little Endian; one that breaks its rules has no UID here."""
    position = PREFIX_OFFSET + 4
    while position + 12 <= len(head):
        group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
        value = position + 8
        if vr in LONG_VRS:
            length = int.from_bytes(head[value : value + 4], "little")
            value += 4
        if (group, element) >= (2, 3):
            uid = head[value : value + length] if (group, element) == (2, 3) else b""
            return uid.decode("ascii", "replace").rstrip("\0 ")
        position = value + length
    return ""


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

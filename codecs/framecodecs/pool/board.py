"""The state of each process of a pool: a byte of a memory file of its own.

A process can write to its own byte only, so one that was taken over can lie about nothing but itself. The
files are sealed, because a file that is cut short under a mapping kills the processes that look at it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

ABSENT, STARTING, IDLE, BUSY = b"\0", b"s", b"i", b"b"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_files(count: int) -> tuple[int, ...]:
    """Descriptors, which the caller closes."""
    files = list[int]()
    for _ in range(count):
        file = os.memfd_create("board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        files.append(file)
        os.truncate(file, 1)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    return tuple(files)


class Board:
    """The bytes of some processes, in the order of their files. It is a hint: a process may be gone."""

    def __init__(self, files: Sequence[int]) -> None:
        self._pages = [mmap.mmap(file, 1) for file in files]

    def __len__(self) -> int:
        return len(self._pages)

    def states(self) -> bytes:
        return b"".join([page[:] for page in self._pages])

    def __getitem__(self, place: int) -> bytes:
        return self._pages[place][:]

    def __setitem__(self, place: int, state: bytes) -> None:
        self._pages[place][:] = state

    def close(self) -> None:
        for page in self._pages:
            page.close()

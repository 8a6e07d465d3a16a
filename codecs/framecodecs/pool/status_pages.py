"""The status pages of the pixel processes: for each process one byte in a memory file of its own.

A process can write to its own page only. So a process that was taken over can lie about itself alone. The
files are sealed: to cut a mapped file short would kill the processes that read it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

ABSENT, STARTING, IDLE, BUSY = b"\0", b"s", b"i", b"b"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_files(count: int) -> tuple[int, ...]:
    """Returns descriptors, which the caller closes."""
    files = list[int]()
    for _ in range(count):
        file = os.memfd_create("status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        files.append(file)
        os.truncate(file, 1)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    return tuple(files)


class StatusPages:
    """The pages of some processes, in the order of their files. They are hints: a process may have died."""

    def __init__(self, files: Sequence[int]) -> None:
        self._pages = [mmap.mmap(file, 1) for file in files]

    def __len__(self) -> int:
        return len(self._pages)

    def states(self) -> bytes:
        return b"".join([page[:] for page in self._pages])

    def __getitem__(self, index: int) -> bytes:
        return self._pages[index][:]

    def __setitem__(self, index: int, state: bytes) -> None:
        self._pages[index][:] = state

    def close(self) -> None:
        for page in self._pages:
            page.close()

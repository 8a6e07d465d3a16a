"""Memory files for orders: made when needed, a few of them used again."""

from __future__ import annotations

import contextlib
import os
import threading

KEPT_FILES, KEPT_BYTES = 4, 8 * 2**20


class MemoryFiles:
    """Thread-safe. A file that was used again costs no new pages."""

    def __init__(self) -> None:
        self._spare: list[int] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> int:
        """A descriptor; whoever has it closes it or gives it back."""
        try:
            return self._spare.pop()
        except IndexError:
            return os.memfd_create("frames", os.MFD_CLOEXEC)

    def give_back(self, file: int) -> None:
        """Nobody else has it any more. It is emptied if it has grown large."""
        with self._lock:
            if not self._closed and len(self._spare) < KEPT_FILES:
                if os.lseek(file, 0, os.SEEK_END) > KEPT_BYTES:  # fstat would tell ten things more
                    os.ftruncate(file, 0)
                self._spare.append(file)
                return
        os.close(file)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            with contextlib.suppress(IndexError):  # others may take some meanwhile
                while True:
                    os.close(self._spare.pop())

"""Free space of the disk: the reserve that stores leave, and the ballast for a disk that is full all the
same.

    DATA/ballast           preallocated blocks, without contents

Strategy: other programs may fill the disk beyond the reserve. Deletes, compaction and opening the store
need a few blocks and perhaps an inode. If they find none, the ballast is removed and the work is done
again. While the ballast is missing stores are refused, so that they cannot take its space. It is made again
by the first store that finds room for it and for the reserve.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from streamsrv.errors import NO_SPACE, InsufficientStorage
from streamsrv.store.fileops import FileOps

# The default reserve in bytes, or as a share of the disk, whichever is less.
RESERVE = 1 << 30
RESERVE_SHARE = 50
# At most this share of a small disk is ballast.
BALLAST_SHARE = 32

Result = TypeVar("Result")


class Reserve:
    """`least` is the reserve in bytes, None for the default. `ballast` is its size in bytes, 0 for none."""

    def __init__(self, root: Path, ops: FileOps, least: int | None, ballast: int) -> None:
        self._root = root
        self._path = root / "ballast"
        self._ops = ops
        self._least = least
        self._ballast = ballast

    def require(self) -> None:
        """InsufficientStorage when less than the reserve is free, or the ballast is missing and has no
        room."""
        free, total = self._ops.space(self._root)
        least = min(RESERVE, total // RESERVE_SHARE) if self._least is None else self._least
        if self._ballast and not self._ops.length(self._path):
            size = min(self._ballast, total // BALLAST_SHARE)
            least += size
            if free >= least:
                self._make(size)
        if free < least:
            raise InsufficientStorage(f"less than {least} bytes are free on the disk of the store")

    def _make(self, size: int) -> None:
        """Another process may be faster. A file system that cannot preallocate goes without ballast."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._ops.unlink(self._path)  # one that a crash left empty
            self._ops.allocate(self._path, size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise InsufficientStorage("the disk of the store has no room for the ballast file") from error

    def with_room(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. If the disk is full, `work` is done again without the ballast."""
        try:
            return work()
        except (InsufficientStorage, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_SPACE:
                raise
        self.release()
        return work()

    def release(self) -> None:
        """Give the space of the ballast to the work that follows."""
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._ops.unlink(self._path)

"""Free space of the disk: the reserve that stores leave, and the ballast for a full disk.

    DATA/ballast           preallocated blocks, without contents

Strategy: other programs may fill the disk beyond the reserve. Deletes, compaction and opening the store need
a few blocks and perhaps an inode. If they find none, the ballast is removed and the work is done again. While
the ballast is missing, stores are refused. The first store that finds room for ballast and reserve makes it
again."""

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
        """Raises InsufficientStorage if less than the reserve is free, or if the missing ballast has no
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
        """A file system that cannot preallocate has no ballast."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._ops.unlink(self._path)  # one that a crash left empty
            self._ops.allocate(self._path, size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise InsufficientStorage("the disk of the store has no room for the ballast file") from error

    def with_room(self, work: Callable[[], Result]) -> Result:
        """Call `work`; if the disk is full, remove the ballast and call it again."""
        try:
            return work()
        except (InsufficientStorage, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_SPACE:
                raise
        self.release()
        return work()

    def release(self) -> None:
        """Remove the ballast."""
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._ops.unlink(self._path)

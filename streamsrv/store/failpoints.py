"""Named points at which a test kills or pauses this process.

    STREAMSRV_FAILPOINT = NAME[@COUNT][=ACTION]     e.g.  after-data-sync   mid-body@20   in-delete=pause:2.5
    STREAMSRV_FAILPOINT_FILE = PATH                 the same text in a file. A test arms a running server by a
                                                    rename. The process that acts removes the file first, so
                                                    one process acts

COUNT is the passage, from 1, at which the process acts. ACTION is `kill` (SIGKILL, the default) or
`pause:SECONDS`. A name that is not in POINTS is an error at import.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

POINTS = frozenset(
    (
        "mid-body",  # an open record has taken some bytes.
        "before-data-sync",  # headers are written, nothing is synced.
        "after-data-sync",  # the segment is synced, the index has not committed.
        "after-commit",  # the index is durable, the segment is not released.
        "in-delete",  # the tombstone is synced, the index has the instances.
        "in-compaction",  # after the copy's sync, the swap of locations, the unlink.
        "in-backup",  # after a write, a segment, the removal of a file; before and after the table.
    )
)


class Failpoint:
    """One armed point; `path` is the file that armed it, if any."""

    def __init__(self, spec: str, path: str = "") -> None:
        place, _, action = spec.partition("=")
        self.name, _, count = place.partition("@")
        if self.name not in POINTS:
            raise ValueError(
                f"STREAMSRV_FAILPOINT names {self.name!r}; there are {', '.join(sorted(POINTS))}"
            )
        self._left = int(count or 1)
        self._action, _, seconds = (action or "kill").partition(":")
        if self._action not in ("kill", "pause"):
            raise ValueError(f"STREAMSRV_FAILPOINT: {self._action!r} is neither kill nor pause:SECONDS")
        self._seconds = float(seconds or 0)
        self._path = path
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        if name != self.name:
            return
        with self._lock:
            self._left -= 1
            due = self._left == 0
        if due and self._is_first():
            if self._action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._seconds)

    def _is_first(self) -> bool:
        """False if another process has removed the file."""
        try:
            if self._path:
                os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True


class FailpointFile:
    """The point that a file names, while the file exists."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._version = 0
        self._point: Failpoint | None = None
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        try:
            version = os.stat(self._path).st_mtime_ns
            with self._lock:
                if version != self._version:
                    with open(self._path, encoding="ascii") as file:
                        self._version, self._point = version, Failpoint(file.read().strip(), self._path)
                point = self._point
        except FileNotFoundError:
            return
        if point is not None:
            point.passed(name)


def _nothing(name: str) -> None:
    """No point is armed."""


def armed(environment: Mapping[str, str]) -> Callable[[str], None]:
    """The function to call at each point, in this environment."""
    if spec := environment.get("STREAMSRV_FAILPOINT", ""):
        return Failpoint(spec).passed
    if path := environment.get("STREAMSRV_FAILPOINT_FILE", ""):
        return FailpointFile(path).passed
    return _nothing


hit = armed(os.environ)

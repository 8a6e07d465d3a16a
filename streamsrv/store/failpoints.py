"""Named points at which a test makes this process die or wait, if the environment says so.

    STREAMSRV_FAILPOINT = NAME[@COUNT][=ACTION]     e.g.  after-data-sync   mid-body@20   in-delete=pause:2.5
    STREAMSRV_FAILPOINT_ONCE = PATH                 act only if PATH does not exist yet, and create it: so the
                                                    worker that takes the place of the killed one lives
    STREAMSRV_FAILPOINT_FILE = PATH                 what the first of these would say stands in this file, if
                                                    there is one: so a test arms a running server by a rename.
                                                    Whoever acts removes it first: one process acts

COUNT is the how-manieth time (from 1) that the process passes the point; ACTION is `kill` (SIGKILL to itself,
the default) or `pause:SECONDS`. The points are the members of POINTS; another name is an error at import, so
that no test waits for nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

POINTS = frozenset(
    (
        "mid-body",  # an open record has just taken some bytes
        "before-data-sync",  # headers are written, nothing of the request is synced
        "after-data-sync",  # the segment is synced, the index does not know
        "after-commit",  # the index is durable, the segment is not given back, nobody was answered
        "in-delete",  # the tombstone is synced, the index still has the instances
        "in-compaction",  # passed after the copy's sync, after the swap of locations, and after the unlink
    )
)


class Failpoint:
    """One armed point."""

    def __init__(self, spec: str, once: str = "") -> None:
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
        self._once = once
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        if name != self.name:
            return
        with self._lock:
            self._left -= 1
            due = self._left == 0
        if due and self._first():
            self._act()

    def _first(self) -> bool:
        """Of all processes, where only one may act."""
        if not self._once:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    def _act(self) -> None:
        if self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._seconds)


class FileOfPoints:
    """The point that a file names, for as long as the file is there."""

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
                    self._version, self._point = version, _Removing(self._path)
                point = self._point
        except FileNotFoundError:
            return
        if point is not None:
            point.passed(name)


class _Removing(Failpoint):
    """Acts if it was this process that removed the file."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="ascii") as file:
            super().__init__(file.read().strip())
        self._path = path

    def _first(self) -> bool:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True


def _nothing(name: str) -> None:
    """No point is armed."""


def armed(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What a passage of a point does in this environment."""
    spec = environment.get("STREAMSRV_FAILPOINT", "")
    if spec:
        return Failpoint(spec, environment.get("STREAMSRV_FAILPOINT_ONCE", "")).passed
    path = environment.get("STREAMSRV_FAILPOINT_FILE", "")
    return FileOfPoints(path).passed if path else _nothing


hit = armed(os.environ)

"""Named points at which a test makes this process die or wait; without STREAMSRV_FAILPOINT they do nothing.

    STREAMSRV_FAILPOINT = NAME[@COUNT][=ACTION]     e.g.  after-data-sync   mid-body@20   in-delete=pause:2.5
    STREAMSRV_FAILPOINT_ONCE = PATH                 act only if PATH does not exist yet, and create it: so the
                                                    worker that takes the place of the killed one lives

COUNT is the how-manieth time (from 1) that the process passes the point; ACTION is `kill` (SIGKILL to itself,
the default) or `pause:SECONDS`. The points are the members of POINTS; another name is an error at import, so
that no test waits for nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

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


def _nothing(name: str) -> None:
    """No point is armed."""


_spec = os.environ.get("STREAMSRV_FAILPOINT", "")
hit: Callable[[str], None] = (
    Failpoint(_spec, os.environ.get("STREAMSRV_FAILPOINT_ONCE", "")).passed if _spec else _nothing
)

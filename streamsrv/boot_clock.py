"""A clock that counts the time in which the machine sleeps, for leases that others count, too."""

from __future__ import annotations

import time


def boot_seconds() -> float:
    """Seconds since the machine was started, those in which it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

"""The number of pixel processes and their limits. The supervisor imports this, so it imports no codec."""

from __future__ import annotations

import os
from dataclasses import replace

from framecodecs.pool.processes import PoolLimits
from streamsrv.settings import Settings

# The kernel gives long work a quarter of a core for which another process competes.
LONG_WORK_NICE = 5
LONG_WORK_LIFETIME = 1_000  # tasks


def pixel_processes(settings: Settings) -> int:
    return settings.pixel_workers or len(os.sched_getaffinity(0))


def pixel_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        settings.pixel_queue,
        settings.pixel_deadline,
        settings.pixel_memory,
        fonts=settings.annotation_fonts,
    )


def slow_limits(limits: PoolLimits) -> PoolLimits:
    """Limits of the processes for long work. They are replaced often, because they keep their memory."""
    return replace(limits, nice=LONG_WORK_NICE, lifetime=LONG_WORK_LIFETIME)

"""How many pixel processes a server has and what they may take, asked by whoever starts them and by the
workers that use them; and their errors as ours.

Rule: what cannot be decoded is the client's to know (NotAcceptable), not an error of ours.
"""

from __future__ import annotations

import os
from dataclasses import replace

from framecodecs import errors as codec_errors
from framecodecs.pool.processes import PoolLimits
from streamsrv.errors import (
    BadRequest,
    NotAcceptable,
    Overloaded,
    StoreCorrupt,
    StoreError,
    StreamsrvError,
)
from streamsrv.settings import Settings

# With a full queue of short orders one second is enough for some to be done.
RETRY_AFTER = 1
# By how much long work is less urgent to the kernel: it gets a quarter of a core that another process wants.
LONG_WORK_NICE = 5
LONG_WORK_LIFETIME = 1_000  # orders


def pixel_processes(settings: Settings) -> int:
    return settings.pixel_workers or len(os.sched_getaffinity(0))


def pixel_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(settings.pixel_queue, settings.pixel_deadline, settings.pixel_memory)


def slow_limits(limits: PoolLimits) -> PoolLimits:
    """Limits of the processes for long work. They are replaced often, because they keep their memory."""
    return replace(limits, nice=LONG_WORK_NICE, lifetime=LONG_WORK_LIFETIME)


def translated(error: codec_errors.FrameCodecError) -> StreamsrvError:
    """Their error as one of ours, with its HTTP status."""
    match error:
        case codec_errors.QueueFull():
            return Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
        case codec_errors.Unavailable():
            return Overloaded("the pixel processes are not there at the moment", RETRY_AFTER)
        case codec_errors.RenderingError():
            return BadRequest(f"this cannot be drawn: {error.detail}")
        case codec_errors.WorkCancelled():
            return StoreError("the work was cancelled")
        case codec_errors.FrameUnread():
            return StoreCorrupt(error.detail)
        case _:
            return NotAcceptable(f"the pixels cannot be sent in this form: {error.detail}", ())

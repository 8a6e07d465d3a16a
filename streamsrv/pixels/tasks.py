"""Tasks for the pixel processes: their number, limits, deadlines and errors.

Rule: an error of a codec means that the client cannot have the pixels (NotAcceptable). It is not an internal
error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from framecodecs import errors as codec_errors
from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame
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
from streamsrv.wire.answers import Requester

# Bytes of pixels per second of the slowest codec. Lossy JPEG 2000 of colour reaches 10 MB on an idle core.
SLOWEST = 2 << 20
# Seconds of processor time for a task without pixels.
SHORTEST_DEADLINE = 3.0
# Bytes of pixels that take the slowest codec a third of a second. Longer work has processes of its own.
QUICK = 4 << 20
# Bytes of pixels that take about a second, which is as long as the start of a process. Only work of this
# length is stopped after it has begun.
WORTH_A_PROCESS = 16 << 20
# Seconds until a client tries again: long enough for some tasks of a full queue.
RETRY_AFTER = 1
# The kernel gives long work a quarter of a core for which another process competes.
LONG_WORK_NICE = 5
LONG_WORK_LIFETIME = 1_000  # tasks
PREFETCH = Requester()  # no client waits; shared, so nothing may call its `leave`


@dataclass(slots=True, eq=False)
class PixelTask:
    """A call `work(frames, *arguments)` for a pixel process. `work` is a function of framecodecs.pool.work;
    `pixels` is the number of decoded bytes."""

    work: Callable[..., Any]
    frames: Sequence[Frame]
    arguments: tuple[Any, ...]
    pixels: int
    requester: Requester = PREFETCH


@dataclass(slots=True, eq=False)
class FrameJob:
    """How one frame or picture is made: `task` reads the stored frame, `finish` makes bytes of the results.
    `task` returns None if it would wait for the disk, and must not."""

    key: Hashable
    task: Callable[[], PixelTask | None]
    finish: Callable[[list[Result]], bytes]
    requester: Requester = PREFETCH


def deadline_of(task: PixelTask, most: float) -> float:
    """Seconds of processor time, at most `most`. Quick work has a deadline that grows with its size. Long
    work delays no small picture, so its deadline is `most`."""
    return most if task.pixels > QUICK else min(SHORTEST_DEADLINE + task.pixels / SLOWEST, most)


def pixel_processes(settings: Settings) -> int:
    return settings.pixel_workers or len(os.sched_getaffinity(0))


def pixel_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(settings.pixel_queue, settings.pixel_deadline, settings.pixel_memory)


def slow_limits(limits: PoolLimits) -> PoolLimits:
    """Limits of the processes for long work. They are replaced often, because they keep their memory."""
    return replace(limits, nice=LONG_WORK_NICE, lifetime=LONG_WORK_LIFETIME)


def translated(error: codec_errors.FrameCodecError) -> StreamsrvError:
    """The same error with an HTTP status."""
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

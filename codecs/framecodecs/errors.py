"""Every error that framecodecs raises on purpose.

    FrameCodecError
    |-- GeometryError        what the dataset says about its pixels cannot be true of any frame
    |-- CodestreamError      the codestream's own header contradicts the dataset, or the stream is cut
    |-- Unsupported          no library here does this; `hint` says what to install, if anything helps
    |-- DecodeError          the library refused the codestream
    |-- EncodeError          the library refused the pixels
    |-- RenderingError       what was asked for cannot be drawn: a window, viewport or table without sense
    |-- FrameUnread          the frame is not there as a whole, or cannot be read where it is stored
    `-- PoolError            the work was not done, whatever it was
        |-- QueueFull        too much is waiting already: try again later
        |-- Unavailable      no process is there for it, or can be started: try again later
        |-- DeadlineExceeded the worker was stopped after its time was over
        |-- MemoryExceeded   the worker asked for more memory than it may have
        |-- WorkerCrashed    the worker died of the work
        `-- WorkCancelled    nobody wanted the answer any more

Nothing else comes out of decode, encode, transcode or the pool's futures, whatever bytes go in. No message
holds pixel values.
"""

from __future__ import annotations


class FrameCodecError(Exception):
    """Base of all. `detail` is a sentence that may be shown to a user."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class GeometryError(FrameCodecError):
    pass


class CodestreamError(FrameCodecError):
    pass


class Unsupported(FrameCodecError):
    """`hint` is a command that would help, or empty when nothing can be installed for it."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(f"{detail} ({hint})" if hint else detail)
        self.hint = hint


class DecodeError(FrameCodecError):
    pass


class EncodeError(FrameCodecError):
    pass


class RenderingError(FrameCodecError):
    pass


class FrameUnread(FrameCodecError):
    pass


class PoolError(FrameCodecError):
    pass


class QueueFull(PoolError):
    pass


class Unavailable(PoolError):
    pass


class DeadlineExceeded(PoolError):
    pass


class MemoryExceeded(PoolError):
    pass


class WorkerCrashed(PoolError):
    pass


class WorkCancelled(PoolError):
    pass


BY_NAME: dict[str, type[FrameCodecError]] = {
    kind.__name__: kind
    for kind in (
        FrameCodecError,
        GeometryError,
        CodestreamError,
        Unsupported,
        DecodeError,
        EncodeError,
        RenderingError,
        MemoryExceeded,
    )
}
"""What a worker may answer by name; anything else that it says becomes a FrameCodecError."""

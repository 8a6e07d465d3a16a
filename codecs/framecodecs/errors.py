"""The errors of framecodecs.

    FrameCodecError
    |-- GeometryError        the attributes of the dataset are true of no frame
    |-- CodestreamError      the header of the codestream contradicts the dataset, or the stream is cut
    |-- Unsupported          no installed library does this; `hint` says which one would
    |-- DecodeError          the library refused the codestream
    |-- EncodeError          the library refused the pixels
    |-- RenderingError       a window, viewport or table of the request is invalid
    |-- FrameUnread          the stored frame is cut, or cannot be read
    `-- PoolError            the work was not done
        |-- QueueFull        too many tasks wait: try again later
        |-- Unavailable      there is no process, and none can be started: try again later
        |-- DeadlineExceeded the process was stopped at its deadline
        |-- MemoryExceeded   the process reached its memory limit
        |-- WorkerCrashed    the process died of the work
        `-- WorkCancelled    no request waits for the answer

For any input bytes, decode, encode, transcode and the pool raise no other errors. No message holds pixel
values.
"""

from __future__ import annotations


class FrameCodecError(Exception):
    """The base of all. `detail` is a sentence for users."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class GeometryError(FrameCodecError):
    pass


class CodestreamError(FrameCodecError):
    pass


class Unsupported(FrameCodecError):
    """`hint` is a command that installs a library for it, or empty."""

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
"""The errors that a pixel process may name; any other name becomes a FrameCodecError."""

"""How the pool and its workers talk: small messages through a socket pair, frames through a memory file
beside it.

    pool -> worker   pickle: Order(function, arguments, sizes of the frames, deadline, cores)
    worker -> pool   JSON: {"sizes": [...], "infos": [...]} or {"error": name, "detail": ..., "hint": ...}
                     an info is the values of a FrameInfo, in the order of its fields

The frames of an order lie back to back in the worker's memory file, and so do those of its answer. Both sides
use pread and pwrite: a page is copied once on each side and nothing is mapped, so a worker that cuts the file
short gives a short read here, not a bus error. A worker has decoded foreign bytes, so nothing that it says is
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

from framecodecs.errors import BY_NAME, FrameCodecError, Unsupported, WorkerCrashed
from framecodecs.frameinfo import FrameInfo

Result = tuple[bytes, FrameInfo | None]
Work = Callable[..., Sequence[Result]]
_info_of = lru_cache(maxsize=64)(FrameInfo)  # what a worker says is checked once
_values = attrgetter(*(field.name for field in fields(FrameInfo)))
KEPT_BYTES = 16 * 2**20  # a memory file that grew beyond this is emptied after its answer


@dataclass(frozen=True)
class Order:
    """`work` is a function of a module, called with the frames and the arguments; `cores` it may use."""

    work: Work
    arguments: tuple[Any, ...]
    sizes: tuple[int, ...]
    deadline: float
    cores: int = 1


def put_frames(file: int, frames: Sequence[bytes | memoryview]) -> tuple[int, ...]:
    """Writes the frames to the beginning of the memory file."""
    offset = 0
    for frame in frames:
        rest = memoryview(frame).cast("B")
        while rest:
            written = os.pwrite(file, rest, offset)
            rest = rest[written:]
            offset += written
    return tuple(memoryview(frame).nbytes for frame in frames)


def _get(file: int, size: int, offset: int) -> bytes:
    """One pread where the kernel gives all at once (up to 2 GiB), as it does from memory."""
    piece = os.pread(file, size, offset)
    if len(piece) != size:
        raise WorkerCrashed(f"{size} bytes were promised, {len(piece)} came")
    return piece


def get_frames(file: int, sizes: Sequence[int]) -> list[bytes]:
    """The frames that lie at the beginning of the memory file, which is emptied if it has grown large."""
    frames, offset = [], 0
    for size in sizes:
        frames.append(_get(file, size, offset))
        offset += size
    if offset > KEPT_BYTES:
        os.ftruncate(file, 0)
    return frames


def answer_of(results: Sequence[Result], sizes: Sequence[int]) -> bytes:
    infos = [None if info is None else _values(info) for _, info in results]
    return json.dumps({"sizes": list(sizes), "infos": infos}).encode()


def answer_of_error(error: FrameCodecError) -> bytes:
    hint = error.hint if isinstance(error, Unsupported) else ""
    detail = error.detail.removesuffix(f" ({hint})") if hint else error.detail
    return json.dumps({"error": type(error).__name__, "detail": detail, "hint": hint}).encode()


def read_answer(message: bytes, file: int) -> list[Result]:
    """The results; raises the worker's error, or WorkerCrashed if the worker speaks nonsense."""
    try:
        said = json.loads(message)
        if "error" not in said:
            infos = [None if info is None else _info_of(*info) for info in said["infos"]]
            return list(zip(get_frames(file, [int(n) for n in said["sizes"]]), infos, strict=True))
        name, detail, hint = str(said["error"]), str(said["detail"]), str(said["hint"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, OSError) as error:
        raise WorkerCrashed("the worker's answer cannot be read") from error
    kind = BY_NAME.get(name, FrameCodecError)
    raise Unsupported(detail, hint) if kind is Unsupported else kind(detail)

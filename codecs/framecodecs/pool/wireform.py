"""The messages between pools and processes. Each order has two pipes of its own.

    pool -> queue    HEAD; with it go the read end of IN and the write end of OUT
    IN               the text of the order | its frames, back to back
    OUT              HEAD | the text of the answer | its frames, back to back

    HEAD             the length of the text
    an order's text  a line of JSON: [deadline, patience, cores, [length, ...], "module:function"]; JSON: the
                     arguments
    an answer's      the lengths of the frames in decimal, a line feed, JSON: [info, ...]; or JSON:
                     {"error": name, "detail": ..., "hint": ...}
                     an info is null or the values of a FrameInfo, in the order of its fields

A process has decoded foreign bytes and may have been taken over by them. So the pool checks every number and
name that it says, and bounds the answer in frames and bytes. Nothing is shared, mapped or unpickled.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from framecodecs import arguments as arguments_of_work
from framecodecs.errors import BY_NAME, FrameCodecError, Unsupported, WorkerCrashed
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool.pipes import Frame as Frame
from framecodecs.pool.pipes import Incoming
from framecodecs.pool.pipes import Stored as Stored

Result = tuple[bytes, FrameInfo | None]
Work = Callable[..., Sequence[Result]]
_info_of = lru_cache(maxsize=64)(FrameInfo)  # what a process says is checked once
_FIELDS = fields(FrameInfo)
_values = attrgetter(*(field.name for field in _FIELDS))
_TYPES = [{"int": int, "str": str, "bool": bool}[str(field.type)] for field in _FIELDS]
HEAD = struct.Struct("<I")
# Bytes of OUT that the process locks: while it works on the order, and while it answers.
WORKING, ANSWERING = 0, 1
LONGEST_TEXT = 2**24  # bytes; some hundred thousand frames an order
LONGEST_DETAIL = 500  # characters of an error
# The frames of a series are asked for in the same words: these are written and read once.
KNOWN, SHORT = 16, 2048  # texts, bytes of a text


class Order(NamedTuple):
    """`work` is a function of a module, called with frames of these lengths and the arguments; `cores` it may
    use. `deadline` is seconds of processor time, `patience` seconds that may pass meanwhile. If
    both are the same, processor time has no limit of its own: several cores may be at work."""

    work: Work
    arguments: tuple[Any, ...]
    lengths: tuple[int, ...]
    deadline: float
    patience: float
    cores: int = 1


def text_of(order: Order) -> bytes:
    """Raises TypeError if the arguments cannot be sent."""
    try:
        what = _known_text(order.arguments)
    except TypeError:  # one of them has no hash
        what = arguments_of_work.to_json(order.arguments)
    name = f"{order.work.__module__}:{order.work.__qualname__}"
    lengths = ",".join(map(str, order.lengths))
    times = f"{float(order.deadline)!r},{float(order.patience)!r}"
    return f'[{times},{order.cores},[{lengths}],"{name}"]\n{what}'.encode()


_known_text = lru_cache(maxsize=KNOWN)(arguments_of_work.to_json)
_known_arguments = lru_cache(maxsize=KNOWN)(arguments_of_work.from_json)


def order_in(text: bytes) -> Order:
    """As `text_of` wrote it. The module of the work is imported already."""
    head, _, what = text.partition(b"\n")
    deadline, patience, cores, lengths, name = json.loads(head)
    module, _, function = name.partition(":")
    read = _known_arguments if len(what) <= SHORT else arguments_of_work.from_json
    return Order(
        getattr(sys.modules[module], function), read(what), tuple(lengths), deadline, patience, cores
    )


def answer_of(results: Sequence[Result]) -> bytes:
    sizes = " ".join([str(len(frame)) for frame, _ in results])
    infos = ",".join([_text_of_info(info) for _, info in results])
    return f"{sizes}\n[{infos}]".encode()


@lru_cache(maxsize=64)
def _text_of_info(info: FrameInfo | None) -> str:
    return json.dumps(None if info is None else _values(info))


def answer_of_error(error: FrameCodecError) -> bytes:
    hint = error.hint if isinstance(error, Unsupported) else ""
    detail = error.detail.removesuffix(f" ({hint})") if hint else error.detail
    return json.dumps({"error": type(error).__name__, "detail": detail, "hint": hint}).encode()


class AnswerReader:
    """Reads an answer as it comes: at most `frames` frames, and `size` bytes of them."""

    def __init__(self, frames: int, size: int) -> None:
        self._most_frames, self._most_bytes = frames, size
        self._head: Incoming | None = Incoming(HEAD.size)
        self._text: Incoming | None = None
        self._coming: list[Incoming] | None = None
        self._infos: tuple[FrameInfo | None, ...] = ()

    def read(self, pipe: int) -> list[Result] | None:
        """The results; None as long as bytes are missing. Raises the error that the process tells, EOFError
        if the pipe ends, and WorkerCrashed if the answer breaks a rule."""
        try:
            return self._read(pipe)
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            raise WorkerCrashed("the worker's answer cannot be read") from error

    def _read(self, pipe: int) -> list[Result] | None:
        if self._head is not None:
            if (head := self._head.receive(pipe)) is None:
                return None
            (size,) = HEAD.unpack(head)
            if size > LONGEST_TEXT:
                raise WorkerCrashed(f"an answer begins with a text of {size} bytes")
            self._head, self._text = None, Incoming(size)
        if self._text is not None:
            if (text := self._text.receive(pipe)) is None:
                return None
            self._text = None
            self._coming = self._announced(text)
        assert self._coming is not None
        frames = list[bytes]()
        for coming in self._coming:
            if (frame := coming.receive(pipe)) is None:
                return None
            frames.append(frame)
        return list(zip(frames, self._infos, strict=True))

    def _announced(self, text: bytes) -> list[Incoming]:
        """The frames that are to come."""
        if text.startswith(b"{"):
            raise error_in(text)
        line, _, infos = text.partition(b"\n")
        sizes = list(map(int, line.split()))
        if len(sizes) > self._most_frames or min(sizes, default=0) < 0 or sum(sizes) > self._most_bytes:
            raise WorkerCrashed("an answer has more frames or bytes than were asked for")
        self._infos = (_known_infos if len(infos) <= SHORT else _infos_in)(infos)
        if len(self._infos) != len(sizes):
            raise WorkerCrashed(f"an answer describes {len(self._infos)} of {len(sizes)} frames")
        return list(map(Incoming, sizes))


def _infos_in(text: bytes) -> tuple[FrameInfo | None, ...]:
    return tuple(None if values is None else _checked_info(values) for values in json.loads(text))


_known_infos = lru_cache(maxsize=64)(_infos_in)


def _checked_info(values: Any) -> FrameInfo:
    if [type(value) for value in values] != _TYPES:
        raise WorkerCrashed("an answer describes a frame by values of other types")
    return _info_of(*values)


def error_in(text: bytes) -> FrameCodecError:
    """The error that a process tells, in one line of printable characters."""
    said = json.loads(text)
    name, detail, hint = (
        "".join(one if one.isprintable() else "?" for one in str(said[key])[:LONGEST_DETAIL])
        for key in ("error", "detail", "hint")
    )
    kind = BY_NAME.get(name, FrameCodecError)
    return Unsupported(detail, hint) if kind is Unsupported else kind(detail)

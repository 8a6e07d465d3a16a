"""The messages between pools and pixel processes, and the work that they name. Each task has two
pipes of its own.

    pool -> queue    HEAD; with it go the read end of IN and the write end of OUT
    IN               the text of the task | its frames, back to back
    OUT              HEAD | the text of the answer | its frames, back to back

    HEAD             the length of the text
    a task's text    a line of JSON: [deadline, patience, cores, [length, ...], "module:function"]; JSON: the
                     arguments
    an answer's      the lengths of the frames in decimal, a line feed, JSON: [info, ...]; or JSON:
                     {"error": name, "detail": ..., "hint": ...}
                     an info is null or the values of a FrameInfo, in the order of its fields

In arguments, numbers, texts, booleans and None are JSON values. Sequences become tuples. Bytes are
{"bytes": base64}. A dataclass of VALUES is {its name: [the values of its fields]}; its constructor checks
them.

A foreign codestream may take over the process that decodes it. So the pool checks every number and name of an
answer, and bounds the answer in frames and bytes. Nothing is shared, mapped or unpickled.

`FramePool.submit` takes the work of this file, or another function of an importable module. Its first
argument is a FrameBatch. It returns (bytes, FrameInfo or None) for each frame.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from framecodecs import registry
from framecodecs.errors import BY_NAME, FrameCodecError, Unsupported, WorkerCrashed
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.pool.pipes import PipeReader
from framecodecs.rendering import pictures
from framecodecs.rendering.lettering import Notes
from framecodecs.rendering.pictures import PictureRequest, Viewport
from framecodecs.rendering.rendering import Lut, Palette, Rendering, Window

Result = tuple[bytes, FrameInfo | None]
Work = Callable[..., Sequence[Result]]
VALUES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        FrameInfo,
        EncodeOptions,
        PictureRequest,
        Viewport,
        Rendering,
        Window,
        Lut,
        Palette,
        Notes,
    )
}
BYTES = "bytes"
HEAD = struct.Struct("<I")
# Bytes of OUT that a process locks: while it works on the task, and while it answers.
WORKING, ANSWERING = 0, 1
LONGEST_TEXT = 2**24  # bytes; some hundred thousand frames a task
LONGEST_DETAIL = 500  # characters of an error
# Tasks for the frames of a series have equal arguments: these are written and parsed once.
KNOWN, SHORT = 16, 2048  # texts, bytes of a text
_info_of = lru_cache(maxsize=64)(FrameInfo)  # the constructor checks equal values once
_FIELDS = fields(FrameInfo)
_values = attrgetter(*(field.name for field in _FIELDS))
_TYPES = [{"int": int, "str": str, "bool": bool}[str(field.type)] for field in _FIELDS]


# Arguments


def arguments_to_json(arguments: tuple[Any, ...]) -> str:
    """Raises TypeError for a value of any other type."""
    return json.dumps(_plain(arguments), separators=(",", ":"))


def arguments_from_json(text: str | bytes) -> tuple[Any, ...]:
    """Raises ValueError, or an error of a dataclass."""
    found = _value(json.loads(text))
    if not isinstance(found, tuple):
        raise ValueError("arguments are a sequence")  # noqa: TRY004
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    name = type(value).__name__
    if VALUES.get(name) is not type(value):
        raise TypeError(f"a value of type {name} is no argument of work")
    return {name: [_plain(getattr(value, field.name)) for field in fields(value)]}


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(one) for one in plain)
    if not isinstance(plain, dict):
        return plain
    ((name, inner),) = plain.items()
    if name == BYTES:
        return base64.b64decode(inner)
    if name not in VALUES:
        raise ValueError(f"no value is called {name[:40]!r}")
    return VALUES[name](*map(_value, inner))


_known_text = lru_cache(maxsize=KNOWN)(arguments_to_json)
_known_arguments = lru_cache(maxsize=KNOWN)(arguments_from_json)


# Tasks


class TaskMessage(NamedTuple):
    """`work` is a function of a module. It is called with frames of these lengths and the arguments. `cores`
    is the number of cores that it may use. `deadline` is seconds of processor time, `patience` is seconds.
    If both are equal, processor time has no limit of its own, because several cores may work."""

    work: Work
    arguments: tuple[Any, ...]
    lengths: tuple[int, ...]
    deadline: float
    patience: float
    cores: int = 1

    def to_text(self) -> bytes:
        """Raises TypeError if the arguments cannot be sent."""
        try:
            arguments = _known_text(self.arguments)
        except TypeError:  # one of them has no hash
            arguments = arguments_to_json(self.arguments)
        name = f"{self.work.__module__}:{self.work.__qualname__}"
        lengths = ",".join(map(str, self.lengths))
        times = f"{float(self.deadline)!r},{float(self.patience)!r}"
        return f'[{times},{self.cores},[{lengths}],"{name}"]\n{arguments}'.encode()

    @classmethod
    def from_text(cls, text: bytes) -> TaskMessage:
        """The module of the work is imported already."""
        head, _, arguments = text.partition(b"\n")
        deadline, patience, cores, lengths, name = json.loads(head)
        module, _, function = name.partition(":")
        read = _known_arguments if len(arguments) <= SHORT else arguments_from_json
        work = getattr(sys.modules[module], function)
        return cls(work, read(arguments), tuple(lengths), deadline, patience, cores)


# Answers


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
    """Reads an answer as its bytes arrive: at most `frames` frames, and `size` bytes of them."""

    def __init__(self, frames: int, size: int) -> None:
        self._most_frames, self._most_bytes = frames, size
        self._head: PipeReader | None = PipeReader(HEAD.size)
        self._text: PipeReader | None = None
        self._frames: list[PipeReader] | None = None
        self._infos: tuple[FrameInfo | None, ...] = ()

    def read(self, pipe: int) -> list[Result] | None:
        """Returns None while bytes are missing. Raises the error that the answer names, EOFError at an early
        end of the pipe, and WorkerCrashed if the answer is malformed."""
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
            self._head, self._text = None, PipeReader(size)
        if self._text is not None:
            if (text := self._text.receive(pipe)) is None:
                return None
            self._text = None
            self._frames = self._announced(text)
        assert self._frames is not None
        frames = list[bytes]()
        for reader in self._frames:
            if (frame := reader.receive(pipe)) is None:
                return None
            frames.append(frame)
        return list(zip(frames, self._infos, strict=True))

    def _announced(self, text: bytes) -> list[PipeReader]:
        """Returns a reader for each frame that follows the text."""
        if text.startswith(b"{"):
            raise error_in(text)
        line, _, infos = text.partition(b"\n")
        sizes = list(map(int, line.split()))
        if len(sizes) > self._most_frames or min(sizes, default=0) < 0 or sum(sizes) > self._most_bytes:
            raise WorkerCrashed("an answer has more frames or bytes than were asked for")
        self._infos = (_known_infos if len(infos) <= SHORT else _infos_in)(infos)
        if len(self._infos) != len(sizes):
            raise WorkerCrashed(f"an answer describes {len(self._infos)} of {len(sizes)} frames")
        return list(map(PipeReader, sizes))


def _infos_in(text: bytes) -> tuple[FrameInfo | None, ...]:
    return tuple(None if values is None else _checked_info(values) for values in json.loads(text))


_known_infos = lru_cache(maxsize=64)(_infos_in)


def _checked_info(values: Any) -> FrameInfo:
    if [type(value) for value in values] != _TYPES:
        raise WorkerCrashed("an answer describes a frame by values of other types")
    return _info_of(*values)


def error_in(text: bytes) -> FrameCodecError:
    """Reads the error of an answer. Its texts are cut, and unprintable characters become question marks."""
    members = json.loads(text)
    name, detail, hint = (
        "".join(one if one.isprintable() else "?" for one in str(members[key])[:LONGEST_DETAIL])
        for key in ("error", "detail", "hint")
    )
    kind = BY_NAME.get(name, FrameCodecError)
    return Unsupported(detail, hint) if kind is Unsupported else kind(detail)


# Work


class FrameBatch(list[bytes]):
    """The frames of a task. `cores` is the number of cores that a library may use for each of them."""

    cores = 1


def decode_frames(frames: FrameBatch, uid: str, info: FrameInfo, words: bool = False) -> list[Result]:
    return [registry.decode(frame, uid, info, words=words, cores=frames.cores) for frame in frames]


def transcode_frames(
    frames: FrameBatch,
    from_uid: str,
    to_uid: str,
    info: FrameInfo,
    options: EncodeOptions | None = None,
    words: bool = False,
) -> list[Result]:
    return [
        registry.transcode(frame, from_uid, to_uid, info, options=options, words=words, cores=frames.cores)
        for frame in frames
    ]


def render_frames(
    frames: FrameBatch, uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """Makes a picture file of each frame."""
    return [(pictures.rendered(frame, uid, info, request, words, frames.cores), None) for frame in frames]


def animate_frames(
    frames: FrameBatch, uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """Makes a block of an animated GIF of each frame."""
    return [(pictures.animated(frame, uid, info, request, words, frames.cores), None) for frame in frames]

"""How pools and processes talk: small messages, all else in a memory file of the order.

    pool -> queue    PLACES: where the order lies in its file, or zeros and the order itself, if it is short;
                     with it go one end of a pipe, the file, and the files that frames are stored in
    process -> pool  PLACES: where the answer lies in the file, or zeros and the answer; through that pipe,
                     which ends unsaid with the process, and with it the order

    the file         BEGUN | frames, back to back | what is said of them
    of an order      deadline, cores, places of the frames, pickle: (function, arguments)
    of an answer     the lengths of the frames in decimal, a line feed, JSON: [info, ...]; or JSON:
                     {"error": name, "detail": ..., "hint": ...}
                     an info is null or the values of a FrameInfo, in the order of its fields
    BEGUN            the process that has taken the order, and when, by the monotonic clock; before that,
                     what was said of an order that had the file earlier, or zeros

Both sides use pread and pwrite: a page is copied once on each side and nothing is mapped, so a process that
cuts the file short gives a short read here, not a bus error. A process has decoded foreign bytes, so nothing
that it says is unpickled. A file is handed to one process only, so none can touch the frames of another.
A frame that is Stored is not copied at all: the process reads it from where it lies.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import starmap
from operator import attrgetter
from typing import Any, NamedTuple

from framecodecs.errors import BY_NAME, FrameCodecError, FrameUnread, Unsupported, WorkerCrashed
from framecodecs.frameinfo import FrameInfo

Result = tuple[bytes, FrameInfo | None]
Work = Callable[..., Sequence[Result]]
_info_of = lru_cache(maxsize=64)(FrameInfo)  # what a process says is checked once
_values = attrgetter(*(field.name for field in fields(FrameInfo)))
PLACES = struct.Struct("<QQ")  # offset and length in the file
_BEGUN = struct.Struct("<qd")
FRAMES_AT = _BEGUN.size
LONGEST_SAID = 2**24  # bytes; some thousand frames an order
SHORT_SAID = 2048  # bytes that go with the message
LONGEST_MESSAGE = PLACES.size + SHORT_SAID
IN_MESSAGE = PLACES.pack(0, 0)
STORED_FILES = 16  # that may go with an order; the frames of an instance lie in one


class Stored(NamedTuple):
    """A frame in a file that others keep as it is, of which `descriptor` is open for reading."""

    descriptor: int
    offset: int
    length: int


Frame = bytes | memoryview | Stored


class Place(NamedTuple):
    """Where a frame of an order lies: in its memory file, or in one of the files that go with it (from 1)."""

    file: int
    offset: int
    length: int


class Order(NamedTuple):
    """`work` is a function of a module, called with the frames and the arguments; `cores` it may use."""

    work: Work
    arguments: tuple[Any, ...]
    places: tuple[Place, ...]
    deadline: float
    cores: int = 1


_ORDER = struct.Struct("<dII")
_PLACE = struct.Struct("<IQQ")
_What = tuple[Work, tuple[Any, ...]]
# The frames of a series are asked for in the same words: they are pickled once, and unpickled once.
KNOWN = 16
_unpickled: dict[bytes, _What] = {}


@lru_cache(maxsize=KNOWN)
def _pickled(work: Work, arguments: tuple[Any, ...]) -> bytes:
    return pickle.dumps((work, arguments), pickle.HIGHEST_PROTOCOL)


def text_of(order: Order) -> bytes:
    try:
        what = _pickled(order.work, order.arguments)
    except TypeError:  # something of them can be changed, and has no hash
        what = _pickled.__wrapped__(order.work, order.arguments)
    head = _ORDER.pack(order.deadline, order.cores, len(order.places))
    return b"".join((head, *starmap(_PLACE.pack, order.places), what))


def order_in(text: bytes) -> Order:
    """As `text_of` wrote it: by a pool, never by a process."""
    deadline, cores, count = _ORDER.unpack_from(text)
    end = _ORDER.size + count * _PLACE.size
    places = tuple(map(Place._make, _PLACE.iter_unpack(text[_ORDER.size : end])))
    pickled = text[end:]
    what = _unpickled.get(pickled)
    if what is None:
        what = pickle.loads(pickled)
        if _is_value(what[1]) and len(pickled) <= SHORT_SAID:
            if len(_unpickled) == KNOWN:
                _unpickled.clear()
            _unpickled[pickled] = what
    work, arguments = what
    return Order(work, arguments, places, deadline, cores)


def _is_value(arguments: tuple[Any, ...]) -> bool:
    """Whether nothing of them can be changed by whoever works with them."""
    try:
        hash(arguments)
    except TypeError:
        return False
    return True


class Begun(NamedTuple):
    """`pid` is 0 before."""

    pid: int
    at: float


def put_begun(file: int, begun: Begun) -> None:
    os.pwrite(file, _BEGUN.pack(*begun), 0)


def get_begun(file: int) -> Begun:
    text = os.pread(file, _BEGUN.size, 0)
    return Begun(*_BEGUN.unpack(text)) if len(text) == _BEGUN.size else Begun(0, 0.0)


def put_frames(file: int, frames: Sequence[Frame]) -> tuple[tuple[Place, ...], list[int]]:
    """Writes the frames to the file, but those that are Stored. Gives their places, and the descriptors of
    the files that these are stored in."""
    places, stored, offset = list[Place](), list[int](), FRAMES_AT
    for frame in frames:
        if isinstance(frame, Stored):
            if frame.descriptor not in stored:
                stored.append(frame.descriptor)
                if len(stored) > STORED_FILES:
                    raise ValueError(f"the frames of an order are stored in more than {STORED_FILES} files")
            places.append(Place(1 + stored.index(frame.descriptor), frame.offset, frame.length))
        else:
            end = _put(file, frame, offset)
            places.append(Place(0, offset, end - offset))
            offset = end
    return tuple(places), stored


def _put(file: int, what: bytes | memoryview, offset: int) -> int:
    rest = memoryview(what).cast("B")
    while rest:
        written = os.pwrite(file, rest, offset)
        rest = rest[written:]
        offset += written
    return offset


def put_said(file: int, text: bytes, places: Sequence[Place]) -> bytes:
    """The message: with what is said of the frames, or telling where it was written, which is behind them."""
    if len(text) <= SHORT_SAID:
        return IN_MESSAGE + text
    offset = max((place.offset + place.length for place in places if not place.file), default=FRAMES_AT)
    _put(file, text, offset)
    return PLACES.pack(offset, len(text))


def get_said(file: int, message: bytes) -> bytes:
    """Raises WorkerCrashed if the message is none, or too little is there."""
    if message.startswith(IN_MESSAGE):
        return message[PLACES.size :]
    if len(message) != PLACES.size:
        raise WorkerCrashed("a message of another length was promised")
    offset, size = PLACES.unpack(message)
    if size > LONGEST_SAID:
        raise WorkerCrashed("more is said than anybody would")
    return _get(file, size, offset)


def _get(file: int, size: int, offset: int) -> bytes:
    """One pread where the kernel gives all at once (up to 2 GiB), as it does from memory."""
    piece = os.pread(file, size, offset)
    if len(piece) != size:
        raise WorkerCrashed(f"{size} bytes were promised, {len(piece)} came")
    return piece


def get_frames(files: Sequence[int], places: Sequence[Place]) -> list[bytes]:
    """From the memory file and those that frames are stored in. Raises FrameUnread."""
    return [
        _stored(files[at], length, offset) if at else _get(files[0], length, offset)
        for at, offset, length in places
    ]


def _stored(file: int, size: int, offset: int) -> bytes:
    try:
        frame = os.pread(file, size, offset)
    except OSError as error:
        raise FrameUnread(f"a stored frame cannot be read: {error.strerror}") from error
    if len(frame) != size:
        raise FrameUnread(f"a stored frame has {size} bytes, {len(frame)} are there")
    return frame


def answer_of(results: Sequence[Result]) -> bytes:
    sizes = " ".join([str(len(frame)) for frame, _ in results])
    infos = ",".join([_text_of_info(info) for _, info in results])
    return f"{sizes}\n[{infos}]".encode()


@lru_cache(maxsize=64)
def _text_of_info(info: FrameInfo | None) -> str:
    return json.dumps(None if info is None else _values(info))


@lru_cache(maxsize=64)
def _infos_in(text: bytes) -> tuple[FrameInfo | None, ...]:
    """What is said in the same words is read once."""
    return tuple(None if values is None else _info_of(*values) for values in json.loads(text))


def answer_of_error(error: FrameCodecError) -> bytes:
    hint = error.hint if isinstance(error, Unsupported) else ""
    detail = error.detail.removesuffix(f" ({hint})") if hint else error.detail
    return json.dumps({"error": type(error).__name__, "detail": detail, "hint": hint}).encode()


def read_answer(message: bytes, file: int) -> list[Result]:
    """The results; raises the process's error, or WorkerCrashed if it speaks nonsense."""
    try:
        text = get_said(file, message)
        if not text.startswith(b"{"):
            sizes, _, infos = text.partition(b"\n")
            read = _infos_in if len(infos) <= SHORT_SAID else _infos_in.__wrapped__
            return list(zip(_back_to_back(file, list(map(int, sizes.split()))), read(infos), strict=True))
        said = json.loads(text)
        name, detail, hint = str(said["error"]), str(said["detail"]), str(said["hint"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, MemoryError, OSError) as error:
        raise WorkerCrashed("the worker's answer cannot be read") from error
    kind = BY_NAME.get(name, FrameCodecError)
    raise Unsupported(detail, hint) if kind is Unsupported else kind(detail)


def _back_to_back(file: int, sizes: Sequence[int]) -> list[bytes]:
    frames, offset = [], FRAMES_AT
    for size in sizes:
        frames.append(_get(file, size, offset))
        offset += size
    return frames

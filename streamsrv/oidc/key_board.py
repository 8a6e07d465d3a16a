"""The keys of the issuer in memory that all processes of a server share.

Strategy: a memory file that the supervisor makes. The process that fetches the keys writes them, workers
read. A reader sees at the cost of one comparison whether something has changed.

    generation  8 bytes  raised before each change
    begun       8 bytes  number of fetches that have begun
    ended       8 bytes  number of fetches that have ended
    time        8 bytes  begin of the latest fetch, in seconds of the monotonic clock of the machine
    length      8 bytes  of the text
    digest     16 bytes  xxh3-128 of generation and text: a reader never takes half of a text
    text                 JSON

A worker asks for a fetch through an eventfd, which counts and never blocks. The process that fetches decides
whether it is time for one, so that all workers together cause one fetch in PAUSE seconds.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from typing import Any, NamedTuple

import orjson
import xxhash

SIZE = 1 << 20
PAUSE = 30.0  # seconds from the begin of a fetch to the next one that a token may cause
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_COUNTS = struct.Struct("<QQQd")
_TEXT = struct.Struct("<Q16s")
_BEGIN = _COUNTS.size + _TEXT.size


class BoardState(NamedTuple):
    """`began` is in seconds of the monotonic clock; 0 before the first fetch."""

    generation: int
    begun: int
    ended: int
    began: float

    @property
    def fetching(self) -> bool:
        return self.begun > self.ended


class KeyBoard:
    """A child process inherits `descriptors`, and makes the same object from them."""

    def __init__(self, file: int, wake: int) -> None:
        self.descriptors = file, wake
        self.wake = wake
        self._memory = mmap.mmap(file, SIZE)

    @classmethod
    def make(cls) -> KeyBoard:
        file = os.memfd_create("keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(file, SIZE)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        return cls(file, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @property
    def state(self) -> BoardState:
        return BoardState(*_COUNTS.unpack_from(self._memory))

    @property
    def generation(self) -> int:
        """Differs after a change. It costs 0.2 us."""
        return int(_COUNTS.unpack_from(self._memory)[0])

    def read(self) -> tuple[int, Any] | None:
        """Generation and value of the text. None if nothing was written, or if it is being written."""
        generation = self.generation
        length, digest = _TEXT.unpack_from(self._memory, _COUNTS.size)
        text = self._memory[_BEGIN : _BEGIN + min(length, SIZE)]
        if not length or _digest(generation, text) != digest:
            return None
        return generation, orjson.loads(text)

    def ask(self) -> None:
        """Wakes the process that fetches."""
        os.eventfd_write(self.wake, 1)

    # The process that fetches

    def asked(self) -> bool:
        """Whether a worker has asked since the last call."""
        try:
            return os.eventfd_read(self.wake) > 0
        except BlockingIOError:
            return False

    def begin_fetch(self) -> None:
        generation, begun, ended, _ = self.state
        if begun > ended:  # the former process was killed
            ended = begun
        _COUNTS.pack_into(self._memory, 0, generation, begun + 1, ended, time.monotonic())

    def end_fetch(self) -> None:
        generation, begun, _, began = self.state
        _COUNTS.pack_into(self._memory, 0, generation, begun, begun, began)

    def write(self, value: object) -> None:
        """Replaces the value, if it is another one. Raises ValueError if it is too long."""
        text = orjson.dumps(value)
        if len(text) > SIZE - _BEGIN:
            raise ValueError("the keys are too long")
        former = self.read()
        if former is not None and former[1] == orjson.loads(text):
            return
        generation, *rest = self.state
        _COUNTS.pack_into(self._memory, 0, generation + 1, *rest)
        _TEXT.pack_into(self._memory, _COUNTS.size, len(text), _digest(generation + 1, text))
        self._memory[_BEGIN : _BEGIN + len(text)] = text


def _digest(generation: int, text: bytes) -> bytes:
    return xxhash.xxh3_128_digest(text, generation & 0xFFFF_FFFF)

"""What a request's head is turned into before its body is read: a job to compute, or an intake of its body.

`Service` is what an exchange needs of the worker that it lives in; streamsrv.web.app implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

from streamsrv.ingest.response import StoreResult
from streamsrv.web.access_log import AccessLog
from streamsrv.web.connection.pace import Watch
from streamsrv.web.fastpath.frames import Lane
from streamsrv.web.head import Head
from streamsrv.web.stow import Upload
from streamsrv.web.uploads import UploadSlot
from streamsrv.wire.answers import Answer, Computed

# The buffer of one upload. It is written at once: a quarter faster than half of it or part by part.
# Larger ones gain nothing, and every upload in flight holds one.
BUFFER = 4 << 20
# Buffers that wait for their next use.
BUFFERS_KEPT = 8


def _nothing() -> None:
    pass


class Job(NamedTuple):
    """`inline`: so short that a turn through a thread would cost more. `left` is called if the client leaves
    while a thread computes."""

    compute: Callable[[], Computed]
    inline: bool
    left: Callable[[], None] = _nothing


class Intake(NamedTuple):
    upload: Upload
    answer: Callable[[StoreResult], Answer]
    slot: UploadSlot


class Buffers:
    """Upload buffers, used again and again: the pages of a fresh one cost as much as filling it."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(BUFFER)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < BUFFERS_KEPT:
            self._free.append(buffer)


class Service(Protocol):
    watch: Watch
    buffers: Buffers
    access_log: AccessLog
    draining: bool
    lane: Lane | None

    @property
    def pool(self) -> Executor: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...
    def begun(self, exchange: object) -> None: ...
    def ended(self, exchange: object, slot: UploadSlot | None) -> None: ...
    def admit(self, head: Head, length: int) -> tuple[Job | Intake, str]: ...
    def learn(self, asked: bytes, head: Head, client: str) -> None: ...
    def standard_headers(self, head: Head) -> Sequence[tuple[str, str]]: ...
    def problem(self, error: Exception, head: Head) -> Answer: ...

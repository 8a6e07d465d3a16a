"""An answer is a value: status, headers and a plan of where the bytes of its payload lie.

A plan is a sequence of pieces. Its length is the sum of theirs and is known before the first byte is sent,
unless a Stream without a length is among them. Nothing here opens a file: a Span names bytes of a segment,
whoever writes the answer finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that are ready."""

    payload: bytes

    @property
    def length(self) -> int:
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes at `offset` of a segment, sent without passing through Python where the kernel can."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes made while they are sent, in bounded memory. `chunks(start, stop)` yields exactly the bytes
    [start, stop) of the piece, and blocks: it is called in a thread, a chunk at a time. `length` is None
    where only the end tells; `stop` is then None too."""

    chunks: Callable[[int, int | None], Iterator[bytes]]
    length: int | None


Piece: TypeAlias = Literal | Span | Stream


@dataclass(frozen=True, slots=True)
class Request:
    """What an answer is made from. `path` is percent-encoded as sent, `query` the decoded pairs in their
    order; header names are lower case; `base_url` is the absolute URL of the service with its version and
    without a trailing slash ("http://h:1/v2")."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    base_url: str
    version: int
    request_id: str = ""


@dataclass(slots=True)
class Answer:
    """`headers` in the order in which they go out; Content-Length is not among them: the writer derives it
    from the plan."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    plan: Iterable[Piece] = ()
    length: int | None = 0  # of the whole plan; None when a Stream's is not known
    descriptor: Callable[[int], int] | None = None  # segment -> open file descriptor, for the plan's spans
    release: Callable[[], None] | None = None  # called once, when the plan is not needed any more

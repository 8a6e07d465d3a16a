"""An answer is a value: status, headers and a plan of its payload.

A plan is a sequence of pieces. Its length is the sum of their lengths, which is known before the first
byte is sent, unless it has a ByteStream without a length. Nothing here opens a file: a Span names bytes of a
segment, and the sender finds them.

Nothing changes a value that is made. Those of every request are not frozen, because frozen ones take up to
seven times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias


@dataclass(slots=True)
class Literal:
    """Bytes in memory."""

    payload: bytes

    @property
    def length(self) -> int:
        return len(self.payload)


@dataclass(slots=True)
class Span:
    """`length` bytes at `offset` of a segment. The kernel sends them without Python where it can."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ByteStream:
    """Bytes that are made while they are sent, in bounded memory.

    `chunks(start, stop)` yields exactly the bytes [start, stop) of the piece. It blocks, so a thread
    calls it for each chunk. `length` is None if it is unknown before the end; `stop` is then None too. A
    chunk of a `quick` stream takes less time than a system call, so several are sent together.
    """

    chunks: Callable[[int, int | None], Iterator[bytes]]
    length: int | None
    quick: bool = False


class Taking(NamedTuple):
    """`take` returns the bytes that wait: empty if there are none yet, None at the end. `left` is called when
    no more are wanted."""

    take: Callable[[], bytes | None]
    left: Callable[[], None]


@dataclass(frozen=True, slots=True)
class LiveBytes:
    """Bytes that come at any time. The loop calls `begin` with a function that wakes the sender, which then
    takes more. Nothing of it blocks."""

    begin: Callable[[Callable[[], None]], Taking]


# Stored bytes may claim to be HTML: no script in them ever runs under this origin (CSP 3, 6.3.2).
SANDBOX = "sandbox"
_CONTROLS = bytes([*range(0x20), 0x7F])

Piece: TypeAlias = Literal | Span | ByteStream


Place: TypeAlias = tuple[int, int, int]  # segment, offset, length
FileAt: TypeAlias = Callable[[int, int], tuple[int, int]]  # segment, offset -> descriptor, offset in its file


class StoredParts:
    """The plan of a multipart answer with stored parts: the head and the place of each part, and the close
    delimiter. A study has hundreds of parts, and objects for all of them would delay the first byte."""

    __slots__ = ("closing", "heads", "length", "places")

    def __init__(self, heads: Sequence[bytes], places: Sequence[Place], closing: bytes) -> None:
        self.heads = heads
        self.places = places
        self.closing = closing
        self.length = sum(map(len, heads)) + sum([length for _, _, length in places]) + len(closing)

    def parts(self) -> Iterator[tuple[bytes, Place]]:
        """Yields the head and the place of each part. The close delimiter has an empty place."""
        yield from zip(self.heads, self.places, strict=True)
        yield self.closing, (0, 0, 0)

    def __iter__(self) -> Iterator[Piece]:
        for head, place in zip(self.heads, self.places, strict=True):
            yield Literal(head)
            yield Span(*place)
        yield Literal(self.closing)


@dataclass(frozen=True, slots=True)
class Windows:
    """The plan of a long answer whose spans are fetched from another machine. `following` ends the window
    before, and returns the pieces of the next one, whose spans can be read then; none at the end. The
    future raises StoreError. One window at a time."""

    following: Callable[[], Future[list[Piece]]]

    def __iter__(self) -> Iterator[Piece]:
        while pieces := self.following().result():
            yield from pieces


@dataclass(slots=True, eq=False)
class Requester:
    """The client of one request. `address` is empty if no client asks; `left` says that it has shut or
    closed the connection before the answer began."""

    address: str = ""
    left: bool = False

    def leave(self) -> None:
        self.left = True


@dataclass(slots=True)
class Request:
    """The input of an answer. `path` is percent-encoded as sent. `query` has the decoded pairs in their
    order. Header names are lower case. `base_url` is the absolute URL of the service with its version and
    without a trailing slash ("http://h:1/v2")."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    base_url: str
    version: int
    request_id: str = ""
    requester: Requester = field(default_factory=Requester, compare=False)


@dataclass(slots=True)
class Answer:
    """`headers` are in the order in which they go out, without Content-Length, which the sender adds."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    plan: Iterable[Piece] = ()
    length: int | None = 0  # bytes of the whole plan; None if that of a ByteStream is unknown
    file_at: FileAt | None = None
    release: Callable[[], None] | None = None  # called once, when the plan is no longer needed
    policy: str = SANDBOX  # Content-Security-Policy
    live: LiveBytes | None = None  # behind the plan, of an answer without length


def _raise(error: Exception) -> Answer:
    raise error


@dataclass(slots=True, eq=False)
class Pending:
    """An answer that waits for a result: `finish(result)` makes it.

    If the client leaves earlier, `cancel()` is called once: it may cancel the future. If the future fails,
    `recover(error)` makes the answer or raises the error. Neither blocks.
    """

    future: Future[Any]
    finish: Callable[[Any], Answer]
    cancel: Callable[[], object]
    recover: Callable[[Exception], Answer | Deferred] = _raise

    def answer(self) -> Answer | Deferred:
        """Makes the answer. Blocks until the future ends; raises CancelledError if it is cancelled."""
        error = self.future.exception()
        if error is None:
            return self.finish(self.future.result())
        if isinstance(error, Exception):
            return self.recover(error)
        raise error


@dataclass(frozen=True, slots=True)
class Deferred:
    """An answer that takes too long for the event loop: a thread calls `compute`."""

    compute: Callable[[], Computed]


Computed: TypeAlias = Answer | Pending | Deferred


def then(computed: Computed, step: Callable[[Answer], Answer]) -> Computed:
    """Applies `step` to the answer, as soon as there is one."""
    match computed:
        case Answer() | Deferred():
            return _then(computed, step)
        case Pending(finish=finish, recover=recover):
            computed.finish = lambda result: step(finish(result))
            computed.recover = lambda error: _then(recover(error), step)
            return computed


def _then(computed: Answer | Deferred, step: Callable[[Answer], Answer]) -> Answer | Deferred:
    if isinstance(computed, Answer):
        return step(computed)
    return Deferred(lambda: then(computed.compute(), step))


def resolved(computed: Computed) -> Answer:
    """The answer. Blocks until there is one."""
    while not isinstance(computed, Answer):
        computed = computed.compute() if isinstance(computed, Deferred) else computed.answer()
    return computed


def field_lines(fields: Sequence[tuple[str, str]]) -> bytes:
    """The lines of header fields (RFC 9110 5.5, RFC 2045). Raises ValueError unless all are printable
    ASCII."""
    text = "".join([f"{name}: {value}\r\n" for name, value in fields])
    lines = text.encode("ascii", "replace")
    # Of all control characters only the two at the end of each line. A pattern takes six times as long.
    if not text.isascii() or len(lines) - len(lines.translate(None, _CONTROLS)) != 2 * len(fields):
        raise ValueError("a header field has a character that is not printable ASCII")
    return lines

"""Drives the Ingest of one store request, alone or in a batch of short bodies.

Strategy: bytes are fed inline, between two reads of the socket. Steps that may take long run in a thread: the
begin, a large dataset, a sync, the commit. One sync may run while bytes arrive, so that the last one, for
which the client waits, is short. A short body is received whole, and one thread stores such bodies in
batches. No body waits for a batch to fill: while the thread stores one batch, the next one collects.

Rules
- The caller of `begin` ends an Upload exactly once, by `finish` or by `abort`. An aborted one leaves nothing
  behind.
- Content-Encoding is decoded in pieces, under limits of its own, in bytes and as a ratio: gzip unpacks to a
  thousand times its size at most.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeAlias, TypeVar

from streamsrv.errors import BadRequest, ContentTooLarge, UnsupportedMediaType
from streamsrv.ingest.batching import LARGEST_BATCH, StoreOutcome
from streamsrv.ingest.response import StoreResult
from streamsrv.ingest.transaction import Ingest
from streamsrv.web.connection.loop import Threads, from_thread

# Bytes that a gzip decoder yields, and gets, at a time.
INFLATED = 1 << 20
PACKED = 64 << 10
# The ratio counts only beyond so many bytes: short texts and empty pictures compress better than anything.
RATIO_FROM = 256 << 20
# A gzip body may hold empty members without end: each costs a decoder.
MAX_MEMBERS = 10_000

# The buffer of one upload. It is written at once: a quarter faster than half of it, or part by part.
BUFFER = 4 << 20
BUFFERS_KEPT = 8  # for their next use

Result = TypeVar("Result")
Buffer = bytes | bytearray
StoreBatch: TypeAlias = Callable[[Sequence[Ingest]], list[StoreOutcome]]


class Buffers:
    """Buffers of uploads, used again: the pages of a new one cost as much as to fill it."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(BUFFER)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < BUFFERS_KEPT:
            self._free.append(buffer)


class Gzip:
    """RFC 1952: one or more members, each checked by its own CRC. Raises ContentTooLarge over `limit` bytes,
    or over `ratio` times the size of the body; 0 is no limit."""

    def __init__(self, limit: int, ratio: int) -> None:
        self._limit = limit
        self._ratio = ratio
        self._packed = 0
        self._inflated = 0
        self._members = 0
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def decode(self, chunk: Buffer, size: int, start: int = 0) -> Iterator[tuple[Buffer, int, int]]:
        """Decodes `size` bytes of `chunk` from `start` on. Yields chunks, with begin and length."""
        # The decoder copies the bytes behind a member: a whole megabyte would be too much for each.
        end = start + size
        for at in range(start, end, PACKED):
            stop = min(at + PACKED, end)
            self._packed += stop - at
            yield from self._decode(bytes(chunk[at:stop]))

    def _decode(self, rest: bytes) -> Iterator[tuple[Buffer, int, int]]:
        while True:
            try:
                piece = self._member.decompress(rest, INFLATED)
            except zlib.error as error:
                raise BadRequest(f"the body is not gzip: {error}") from None
            self._begun = self._begun or bool(rest)
            rest = self._member.unconsumed_tail
            if self._member.eof:
                rest = self._member.unused_data
                self._next_member()
            if piece:
                self._count(len(piece))
                yield piece, 0, len(piece)
            # A full piece may have left some of its output in the decoder, with all input taken.
            if not rest and len(piece) < INFLATED:
                return

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise ContentTooLarge(f"the body has more than {MAX_MEMBERS} gzip members")
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def _count(self, length: int) -> None:
        self._inflated += length
        if self._limit and self._inflated > self._limit:
            raise ContentTooLarge(
                f"the body unpacks to more than the {self._limit} bytes that this server accepts"
            )
        if self._ratio and self._inflated > max(RATIO_FROM, self._ratio * self._packed):
            raise ContentTooLarge(
                f"the body unpacks to more than {self._ratio} times its size; send it without "
                "Content-Encoding"
            )

    def close(self) -> None:
        if self._begun or not self._members:
            raise BadRequest("the gzip body ends before its end")


def decoder_for(content_encoding: str, limit: int, ratio: int) -> Gzip | None:
    """Returns None if the body is not coded. Raises UnsupportedMediaType."""
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return Gzip(limit, ratio)
    raise UnsupportedMediaType(f"Content-Encoding {coding[:40]!r} is not supported", ("gzip", "identity"))


class Upload:
    """One store transaction. Not to be used by two tasks at once."""

    def __init__(
        self,
        pool: Executor,
        ingest: Ingest,
        decoder: Gzip | None,
        max_body: int,
        *,
        check: Callable[[], None] = lambda: None,
        batches: Batches | None = None,
    ) -> None:
        """`check` raises the error that refuses the request, in a thread. With `batches` the body is short:
        call `arrived` instead of `feed`."""
        self._pool = pool
        self._ingest = ingest
        self._decoder = decoder
        self._max_body = max_body
        self._check = check
        self._batches = batches
        self._received = 0
        self._receiver: Ingest | None = None  # begun, not ended
        self._syncing: asyncio.Future[None] | None = None

    @property
    def is_short(self) -> bool:
        return self._batches is not None

    async def begin(self) -> None:
        """Raises an error that refuses the body before it is read: InsufficientStorage, and those of
        `check`."""
        if not self.is_short:
            await self._begin()

    async def _begin(self) -> None:
        self._receiver = self._ingest
        await self._in_thread(self._check_and_begin)

    def _check_and_begin(self) -> None:
        self._check()
        self._ingest.begin()

    async def feed(self, chunk: Buffer, size: int, *, start: int = 0, stays: bool = False) -> None:
        """Take `size` bytes of `chunk` from `start` on, as sent. After the return no chunk is used any more,
        unless this one `stays` as it is until the next one that does not: many are written at once then."""
        receiver = self._begun()
        self._received += size
        if self._max_body and self._received > self._max_body:
            raise ContentTooLarge(
                f"the body is longer than the {self._max_body} bytes that this server accepts"
            )
        pieces = self._decoder.decode(chunk, size, start) if self._decoder else ((chunk, start, size),)
        for piece, at, length in pieces:
            receiver.feed(piece, length, start=at, stays=stays or isinstance(piece, bytes))
            await self._advance(receiver)
            await asyncio.sleep(0)  # a megabyte of gzip may hold a thousand pieces

    async def _advance(self, receiver: Ingest) -> None:
        while receiver.pending:
            await self._read_ended(receiver)
            await asyncio.sleep(0)
        if receiver.sync_due:
            await self._sync(receiver)

    def arrived(self, buffer: bytearray, size: int, release: Callable[[bytearray], None]) -> None:
        """Takes the whole body, the first `size` bytes of `buffer`. The buffer stays as it is until its
        `release`. Raises the errors of `feed`."""
        self._buffer, self._release = buffer, release
        self._ingest.feed(buffer, size, stays=True)

    async def finish(self) -> StoreResult:
        if self._batches is None:
            return await self._finish(self._begun())
        try:
            if self._ingest.fits_batch:
                return await self._batches.add(self._ingest)
            await self._begin()
            await self._advance(self._ingest)
            return await self._finish(self._ingest)
        finally:
            self._release(self._buffer)

    async def _finish(self, receiver: Ingest) -> StoreResult:
        if self._decoder is not None:
            self._decoder.close()
        try:
            result = await self._in_thread(receiver.finish)
        finally:
            await self._synced()  # if it failed, its error says why `finish` did
        self._receiver = None
        return result

    def stop(self) -> None:
        """The client has left. `finish` then raises BadRequest, unless all has been read."""
        if self._receiver is not None:
            self._receiver.stop()

    async def abort(self) -> None:
        """Does nothing if there is nothing to abort."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            await self._synced(quiet=True)
            await self._in_thread(receiver.abort)

    def _begun(self) -> Ingest:
        if self._receiver is None:
            raise RuntimeError("this upload has not begun, or has ended")
        return self._receiver

    async def _read_ended(self, receiver: Ingest) -> None:
        if receiver.heavy:
            await self._in_thread(receiver.read_ended)
        else:
            receiver.read_ended()

    async def _sync(self, receiver: Ingest) -> None:
        """Begin the next sync when the last one has ended: a disk slower than the network holds the client
        back."""
        await self._synced()
        self._syncing = self._in_thread(receiver.sync_so_far)

    async def _synced(self, *, quiet: bool = False) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            await asyncio.wait([syncing])
            if not quiet or syncing.cancelled():
                syncing.result()
            else:
                syncing.exception()

    def _in_thread(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)


class Batches:
    """Used in the loop. The thread starts with the first body. When a batch has ended, the loop answers all
    of its requests in one turn, and the thread has the next batch already."""

    def __init__(self, store: StoreBatch) -> None:
        self._store = store
        self._thread = Threads(1, "storing")
        self._waiting: list[tuple[Ingest, asyncio.Future[StoreResult]]] = []
        self._is_storing = False

    def add(self, ingest: Ingest) -> asyncio.Future[StoreResult]:
        future: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((ingest, future))
        self._next()
        return future

    def _next(self) -> None:
        if self._is_storing or not self._waiting:
            return
        batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
        ingests, futures = [ingest for ingest, _ in batch], [future for _, future in batch]
        self._is_storing = True
        from_thread(
            self._thread, lambda: self._stored(ingests), lambda outcomes: self._end(futures, outcomes)
        )

    def _stored(self, ingests: Sequence[Ingest]) -> list[StoreOutcome]:
        try:
            return self._store(ingests)
        except Exception as error:
            return [error] * len(ingests)

    def _end(self, futures: Sequence[asyncio.Future[StoreResult]], outcomes: Sequence[StoreOutcome]) -> None:
        self._is_storing = False
        self._next()
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():  # its client has left
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def close(self) -> None:
        """Waits for the batch that is being stored."""
        self._thread.shutdown(wait=True)

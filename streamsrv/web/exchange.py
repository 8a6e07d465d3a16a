"""One request and its answer on one connection: Tornado's message delegate.

    head -> admitted or refused -> [100 Continue] -> body into an Upload -> answer computed -> sent -> ended

Strategy: a body of known length is read here, by read_into with one reused buffer, before Tornado looks for
it; Content-Length is removed from the head afterwards, so that Tornado finds no body left. A chunked body
comes through `data_received`, which Tornado awaits.

Rules of this file
- Unless a body was consumed to its last byte, its connection ends: what is left of it would be parsed as
  the next request (smuggling). A refusal before or within a body of known length detaches the connection
  from HTTP first. A request that Tornado still finds in the buffer of a closed stream is ignored.
- A refusal is sent, our side is shut, and what the client still sends is read and thrown away for a while:
  closing at once would reset the connection and the client might never see the refusal (RFC 9112 9.6).
- `end` runs once for every request whose head arrived: it gives back the upload slot and writes the line in
  the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from streamsrv.errors import ContentTooLarge, RequestTimeout, StreamsrvError, WouldBlock
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.admission import Intake, Job, Service
from streamsrv.web.farewell import GONE, LINGER_BYTES, LINGER_SECONDS, discard, reset, say_last
from streamsrv.web.head import CHUNKED, Head, body_length
from streamsrv.web.pace import Meter
from streamsrv.web.stow import Upload
from streamsrv.web.transfer import Transfer
from streamsrv.web.writer import Outgoing, begin_transfer, release, send_now
from streamsrv.wire.answers import Answer

log = logging.getLogger("streamsrv.web")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Bodies of requests that take none are read and dropped up to this size.
DROPPED_BODY = 64 << 10
# Tornado's own limit for chunked bodies; ours is told as a problem.
NO_LIMIT = 1 << 62


class Exchange(HTTPMessageDelegate):
    """Created when the connection begins to wait for a head; `key` is the connection's, the same for all
    its exchanges.
    """

    def __init__(self, service: Service, connection: HTTP1Connection, key: object) -> None:
        self._service = service
        self._connection = connection
        self._key = key
        self._head: Head | None = None
        self._began = 0.0
        self._job: Job | None = None
        self._intake: Intake | None = None
        self._meter: Meter | None = None
        self._over = False  # answered, refused or gone: what still arrives is dropped
        self._to_drop = 0  # bytes of a refused chunked body that are still read
        self._ended = False
        self.client = ""
        service.watch.head_awaited(key, connection.close)

    # What Tornado calls

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._service.watch.head_arrived(self._key)
        if self._connection.stream.closed():
            self._over = True
            return None
        line = cast(RequestStartLine, start_line)
        self.client = str(getattr(self._connection.context, "remote_ip", "-"))
        self._head = head = Head(line.method, line.path, line.version, headers, self.client)
        self._began = asyncio.get_running_loop().time()
        self._service.begun(self)
        length = CHUNKED  # until it is known, there may be one
        try:
            length = body_length(head)
            admitted, self.client = self._service.admit(head, length)
            if isinstance(admitted, Intake):
                self._intake = admitted
                return self._receive(headers, length)
            if length > DROPPED_BODY:
                raise ContentTooLarge("this resource takes no body")
            self._job = admitted
        except Exception as error:
            return self._refuse_head(error, has_body=length != 0)
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._over:
            self._drop(len(chunk))
        elif self._intake is not None:
            return self._feed(self._intake.upload, chunk)
        return None

    def finish(self) -> None:
        """The whole message has been read."""
        self._stop_meter()
        if self._over:
            self._connection.close()
        elif self._intake is not None:
            self._service.spawn(self._answer_stored(self._intake))
        elif self._job is not None:
            self._answer_job(self._job)

    def on_connection_close(self) -> None:
        """Only while the message is being read; afterwards the close callback tells."""
        if not self._over:
            self._service.spawn(self._vanish(CLIENT_GONE))

    # Receiving

    async def _receive(self, headers: HTTPHeaders, length: int) -> None:
        head, intake = cast(Head, self._head), cast(Intake, self._intake)
        try:
            await intake.upload.begin()
            if head.expects_continue:
                await self._connection.stream.write(CONTINUE)
            headers.pop("Expect", None)  # said, or not asked for: Tornado has nothing to say any more
            self._meter = self._service.watch.meter(lambda: self._service.spawn(self._time_out()))
            self._service.watch.add(self._meter)
            if length == CHUNKED:
                self._connection.set_max_body_size(NO_LIMIT)
                self._connection.set_body_timeout(NO_LIMIT)
                return
            await self._read_body(intake.upload, length)
            del headers["Content-Length"]
        except GONE:
            await self._vanish(CLIENT_GONE)
        except Exception as error:
            await self._refuse(error)

    async def _read_body(self, upload: Upload, length: int) -> None:
        """The hot loop of an upload."""
        stream, meter = self._connection.stream, cast(Meter, self._meter)
        buffer = self._service.buffers.take()
        view, left = memoryview(buffer), length
        # The stream counts our buffer as its own; at all other times its own stays small.
        usual, stream.max_buffer_size = stream.max_buffer_size, 2 * len(buffer)
        while left:
            most = min(left, self._service.watch.share(len(buffer)))
            count = await stream.read_into(cast(bytearray, view[:most]), partial=True)
            left -= count
            meter.moved += count
            meter.pause()
            await upload.feed(buffer, count)
            meter.resume()
        # After an error the stream may still hold the buffer: then it is left to the garbage collector.
        stream.max_buffer_size = usual
        view.release()
        self._service.buffers.give(buffer)

    async def _feed(self, upload: Upload, chunk: bytes) -> None:
        meter = cast(Meter, self._meter)
        meter.moved += len(chunk)
        meter.pause()
        try:
            await upload.feed(chunk, len(chunk))
        except Exception as error:
            await self._refuse_within(error)
        meter.resume()

    async def _time_out(self) -> None:
        """Tell why and close; the read that waits then ends with StreamClosedError."""
        if self._over:
            return
        error = RequestTimeout("the body arrives more slowly than this server's minimum rate")
        self._over = True
        await self._say_last(self._connection.stream, error)
        await self._vanish(error.status)

    async def _vanish(self, status: int) -> None:
        """The client is gone, or has to go."""
        self._over = True
        self._connection.close()
        await self._abort()
        self._end(status, 0)

    async def _abort(self) -> None:
        self._stop_meter()
        if self._intake is not None:
            try:
                await self._intake.upload.abort()
            except Exception:
                log.exception("[%s] an upload could not be undone", self._request_id)

    # Refusing

    def _refuse_head(self, error: Exception, *, has_body: bool) -> Awaitable[None] | None:
        if has_body:
            return self._refuse(error)
        self._job = Job(lambda: self._problem(error), inline=True)
        return None

    async def _refuse(self, error: Exception) -> None:
        """Before or within a body of known length: the connection ends with the refusal."""
        self._over = True
        await self._abort()
        # From here on Tornado reads nothing from this connection: no byte of the body can become a request.
        stream = self._connection.detach()
        timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, stream.close)
        try:
            await self._say_last(stream, error)
            await discard(stream)
        finally:
            timer.cancel()
            stream.close()

    async def _refuse_within(self, error: Exception) -> None:
        """Within a chunked body: Tornado goes on reading it to its end, and we drop what it brings."""
        self._over = True
        self._to_drop = LINGER_BYTES
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._connection.close)
        await self._abort()
        await self._say_last(self._connection.stream, error)

    async def _say_last(self, stream: IOStream, error: Exception) -> None:
        outgoing = self._outgoing(self._problem(error), keep_alive=False)
        self._end(outgoing.answer.status, await say_last(stream, outgoing))

    def _drop(self, count: int) -> None:
        self._to_drop -= count
        if self._to_drop < 0:
            self._connection.close()

    # Answering

    def _answer_job(self, job: Job) -> None:
        if not job.inline:
            self._service.spawn(self._answer_later(job))
            return
        try:
            answer = job.compute()
        except WouldBlock:
            self._service.spawn(self._answer_later(job))
            return
        except Exception as error:
            answer = self._problem(error)
        self._answer(answer)

    async def _answer_later(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        self._answer(await loop.run_in_executor(self._service.pool, self._computed, job.compute))

    async def _answer_stored(self, intake: Intake) -> None:
        try:
            answer = intake.answer(await intake.upload.finish())
        except Exception as error:
            await self._abort()
            answer = self._problem(error)
        self._answer(answer)

    def _computed(self, compute: Callable[[], Answer]) -> Answer:
        try:
            return compute()
        except Exception as error:
            return self._problem(error)

    def _answer(self, answer: Answer) -> None:
        """Send it at once if that can be, else in a task."""
        head = cast(Head, self._head)
        try:
            outgoing = self._outgoing(answer, keep_alive=head.keep_alive and not self._service.draining)
            # Tornado ends the connection when the client has asked for it; when we have, we must.
            ours = outgoing.close and head.keep_alive
            sent = None if ours else send_now(self._connection, outgoing)
        except Exception as error:
            release(answer)
            answer = self._problem(error)
            outgoing, ours, sent = self._outgoing(answer, keep_alive=False), True, None
        if sent is None:
            self._transfer(outgoing, close=ours)
        else:
            release(answer)
            self._end(answer.status, sent)

    def _transfer(self, outgoing: Outgoing, *, close: bool) -> None:
        stream = self._connection.stream
        if stream.closed():
            release(outgoing.answer)
            self._end(CLIENT_GONE, 0)
            return
        transfer = begin_transfer(stream, outgoing, self._service.pool, self._service.watch)
        if transfer.done.done():
            self._transferred(transfer, outgoing, close)
        else:
            self._connection.set_close_callback(lambda: transfer.abort(StreamClosedError()))
            transfer.done.add_done_callback(lambda _: self._transferred(transfer, outgoing, close))

    def _transferred(self, transfer: Transfer, outgoing: Outgoing, close: bool) -> None:
        error = transfer.done.exception()
        status, sent = outgoing.answer.status, max(0, transfer.sent - len(outgoing.head))
        if error is None:
            self._connection.finish()
        elif isinstance(error, (*GONE, TimeoutError)):
            status, close = CLIENT_GONE, True
        else:
            text = "[%s] the answer was cut short after %d bytes"
            log.error(text, self._request_id, sent, exc_info=error)
            close = True
            if outgoing.until_close:
                reset(self._connection.stream)
        release(outgoing.answer)
        if close:
            self._connection.close()
        self._end(status, sent)

    # Around

    @property
    def _request_id(self) -> str:
        return self._head.request_id if self._head else "-"

    def _outgoing(self, answer: Answer, *, keep_alive: bool) -> Outgoing:
        head = cast(Head, self._head)
        extra = self._service.standard_headers(head)
        return Outgoing(answer, extra, method=head.method, version=head.version, keep_alive=keep_alive)

    def _problem(self, error: Exception) -> Answer:
        """What went wrong, in words for the client; if it was our fault, in full for the log."""
        if not isinstance(error, StreamsrvError):
            log.error("[%s] unexpected", self._request_id, exc_info=error)
        elif error.status >= 500:
            log.warning("[%s] %s: %s", self._request_id, type(error).__name__, error.detail)
        return self._service.problem(error, cast(Head, self._head))

    def _stop_meter(self) -> None:
        if self._meter is not None:
            self._service.watch.drop(self._meter)

    def _end(self, status: int, sent: int) -> None:
        if self._ended or self._head is None:
            return
        self._ended = self._over = True
        self._service.ended(self, self._intake is not None)
        seconds = asyncio.get_running_loop().time() - self._began
        head = self._head
        self._service.access_log.add(
            self.client, head.method, head.path, status, sent, seconds, head.request_id
        )

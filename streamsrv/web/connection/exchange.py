"""One request and its answer on one connection: Tornado's message delegate.

    head -> admitted or refused -> [100 Continue] -> body into an Upload -> answer computed -> sent -> ended

Strategy: a body of known length is read before Tornado looks for it (body.py); Content-Length is removed from
the head afterwards, so that Tornado finds no body left. A chunked body comes through `data_received`, which
Tornado awaits.

Rules of this file
- Unless a body was consumed to its last byte, its connection ends: what is left of it would be parsed as
  the next request (smuggling). A refusal before or within a body of known length detaches the connection
  from HTTP first. A request that Tornado still finds in the buffer of a closed stream is ignored.
- A refusal is sent, our side is shut, and what the client still sends is read and thrown away for a while:
  closing at once would reset the connection and the client might never see the refusal (RFC 9112 9.6).
- A client that has shut its side gets its whole answer: the stream holds the socket until then (stream.py).
- `_end` runs once for every request whose head arrived: it gives back the upload slot, lets the socket go and
  writes the line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import StreamClosedError

from streamsrv.errors import BadRequest, ContentTooLarge, LengthRequired, RequestError, RequestTimeout
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.admission import Intake, Job, Service
from streamsrv.web.connection.body import feed, read_body
from streamsrv.web.connection.closing import (
    GONE,
    LINGER_BYTES,
    LINGER_SECONDS,
    discard,
    left,
    reset,
    say_last,
    sent_as,
)
from streamsrv.web.connection.compute import Answering
from streamsrv.web.connection.pace import Meter
from streamsrv.web.connection.waiting import Waiting
from streamsrv.web.head import CHUNKED, UNREADABLE, Head, HeadRefused, body_length
from streamsrv.web.sending.response import CONTINUE, Outgoing, begin_transfer, release, send_now
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer

log = logging.getLogger("streamsrv.web")

TOO_SLOW = "the body arrives more slowly than the minimum rate"
# Bodies of requests that take none are read and dropped up to this size.
DROPPED_BODY = 64 << 10
# Tornado's own limit for chunked bodies; ours is told as a problem.
NO_LIMIT = 1 << 62


class Exchange(Waiting, HTTPMessageDelegate):
    """Created when the connection begins to wait for a head; `key` is the connection's, the same for all
    its exchanges.
    """

    def __init__(self, service: Service, connection: HTTP1Connection, key: object) -> None:
        super().__init__(service, connection, key)
        self._head: Head | None = None
        self._began = 0.0
        self._job: Job | None = None
        self._intake: Intake | None = None
        self._meter: Meter | None = None
        self._over = False  # answered, refused or gone: what still arrives is dropped
        self._to_drop = 0  # bytes of a refused chunked body that are still read
        self._ended = False
        self._stream.malformed = self._malformed

    # What Tornado calls

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        if self._stream.closed():
            self._over = True
            return None
        line = cast(RequestStartLine, start_line)
        head = Head(line.method, line.path, line.version, headers, self.client)
        self._begin(head)
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
            # Behind a head without a length a body may follow all the same.
            return self._refuse_head(error, has_body=length != 0 or isinstance(error, LengthRequired))
        return None

    def _begin(self, head: Head) -> None:
        self._service.watch.head_arrived(self._key)
        self._head, self._began = head, asyncio.get_running_loop().time()
        self._stream.hold()
        self._service.begun(self)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._over:
            self._drop(len(chunk))
        elif self._intake is not None:
            return self._feed(self._intake, chunk)
        return None

    def finish(self) -> None:
        """The whole message has been read."""
        self._stop_meter()
        if self._over:
            self._stream.close()
        elif self._intake is not None:
            self._service.spawn(self._answer_stored(self._intake))
        elif self._job is not None:
            self._answer_job(self._job)

    def on_connection_close(self) -> None:
        """Only while the message is being read; afterwards the close callback tells."""
        if not self._over:
            self._service.spawn(self._break_off())

    # Receiving

    async def _receive(self, headers: HTTPHeaders, length: int) -> None:
        head, intake = cast(Head, self._head), cast(Intake, self._intake)
        try:
            await intake.upload.begin()
            if head.expects_continue:
                await self._stream.write(CONTINUE)
            headers.pop("Expect", None)  # said, or not asked for: Tornado has nothing to say any more
            self._meter = self._service.watch.meter(lambda: self._time_out(TOO_SLOW))
            self._service.watch.add(self._meter)
            intake.slot.watch(self._meter, self._time_out)
            if length == CHUNKED:
                self._connection.set_max_body_size(NO_LIMIT)
                self._connection.set_body_timeout(NO_LIMIT)
                return
            await read_body(self._service, self._stream, length, intake.upload, self._meter)
            del headers["Content-Length"]
        except GONE:
            await self._break_off()
        except Exception as error:
            if not self._over:  # else its upload was ended, and the client has been answered
                await self._refuse(error)

    async def _feed(self, intake: Intake, chunk: bytes) -> None:
        try:
            await feed(intake.upload, chunk, len(chunk), cast(Meter, self._meter))
        except Exception as error:
            if not self._over:
                await self._refuse_within(error)

    def _time_out(self, reason: str) -> None:
        self._service.spawn(self._end_slow(RequestTimeout(reason)))

    async def _end_slow(self, error: RequestTimeout) -> None:
        """Tell why and close; the read that waits then ends with StreamClosedError."""
        if not self._over:
            self._over = True
            await self._say_last(error)
            await self._vanish(error.status)

    async def _break_off(self) -> None:
        """No more comes, and the body is not whole. A client that has shut its side only is told."""
        self._over = True
        await self._abort()
        if self._stream.half_closed:
            await self._say_last(BadRequest("the connection was shut before the end of the body"))
        await self._vanish(CLIENT_GONE)

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
                log.exception("[%s] an upload could not be undone", cast(Head, self._head).request_id)

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
        self._connection.detach()
        await self._leave(error)

    def _malformed(self, error: BaseException | None) -> Coroutine[Any, Any, None]:
        """Tornado cannot parse the head, or the chunks of the body, and will close when this has ended."""
        refused = error if isinstance(error, HeadRefused) else None
        if not self._over and self._head is None:
            line = refused.line if refused else UNREADABLE
            self._begin(Head(*line, {}, self.client))  # at once: a task might find the stream closed
        return self._refuse_malformed(refused.reason if refused else malformed(error))

    async def _refuse_malformed(self, reason: RequestError) -> None:
        if not self._over:
            self._over = True
            await self._abort()
            await self._leave(reason)

    async def _leave(self, error: Exception) -> None:
        timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._stream.close)
        try:
            await self._say_last(error)
            await discard(self._stream)
        finally:
            timer.cancel()
            self._stream.close()

    async def _refuse_within(self, error: Exception) -> None:
        """Within a chunked body: Tornado goes on reading it to its end, and we drop what it brings."""
        self._over = True
        self._to_drop = LINGER_BYTES
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._connection.close)
        await self._abort()
        await self._say_last(error)

    async def _say_last(self, error: Exception) -> None:
        outgoing = self._outgoing(self._problem(error), keep_alive=False)
        self._end(outgoing.answer.status, await say_last(self._stream, outgoing))

    def _drop(self, count: int) -> None:
        self._to_drop -= count
        if self._to_drop < 0:
            self._connection.close()

    # Answering

    def _answer_job(self, job: Job) -> None:
        listen = self._connection.set_close_callback
        Answering(self._service, cast(Head, self._head), listen, self._answer).begin(job)

    async def _answer_stored(self, intake: Intake) -> None:
        closed = partial(left, self._stream, cast(Head, self._head).version, intake.upload.stop)
        self._connection.set_close_callback(closed)
        if self._stream.closed():
            closed()
        try:
            answer = intake.answer(await intake.upload.finish())
        except Exception as error:
            await self._abort()
            answer = self._problem(error)
        self._connection.set_close_callback(None)
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        """Send it at once if that can be, else in a task."""
        head = cast(Head, self._head)
        try:
            outgoing = self._outgoing(answer, keep_alive=head.keep_alive and not self._service.draining)
            # Tornado ends the connection when the client has asked for it; when we have, we must.
            ours = outgoing.close and not head.tornado_closes
            sent = None if ours or self._stream.closed() else send_now(self._connection, outgoing)
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
        stream = self._stream
        if stream.closed() and not stream.half_closed:
            release(outgoing.answer)
            self._end(CLIENT_GONE, 0)
            return
        transfer = begin_transfer(stream, outgoing, self._service.pool, self._service.watch)
        if transfer.done.done():
            self._transferred(transfer, outgoing, close)
        else:

            def closed() -> None:
                if not stream.half_closed:
                    transfer.abort(StreamClosedError())

            self._connection.set_close_callback(closed)
            transfer.done.add_done_callback(lambda _: self._transferred(transfer, outgoing, close))

    def _transferred(self, transfer: Transfer, outgoing: Outgoing, close: bool) -> None:
        error, sent = transfer.done.exception(), max(0, transfer.sent - len(outgoing.head))
        status = sent_as(error, outgoing.answer.status, cast(Head, self._head).request_id, sent)
        if error is None:
            self._connection.finish()
        else:
            close = True
            if outgoing.until_close and status != CLIENT_GONE:
                reset(self._stream)
        release(outgoing.answer)
        if close:
            self._connection.close()
        self._end(status, sent)

    # Around

    def _outgoing(self, answer: Answer, *, keep_alive: bool) -> Outgoing:
        head = cast(Head, self._head)
        extra = self._service.standard_headers(head)
        return Outgoing(answer, extra, method=head.method, version=head.version, keep_alive=keep_alive)

    def _problem(self, error: Exception) -> Answer:
        return self._service.problem(error, cast(Head, self._head))

    def _stop_meter(self) -> None:
        if self._meter is not None:
            self._service.watch.drop(self._meter)

    def _end(self, status: int, sent: int) -> None:
        if self._ended or self._head is None:
            return
        self._ended = self._over = True
        if self._asked is not None and 200 <= status < 300:
            self._service.learn(self._asked, self._head, self.client)
        self._stream.let_go()
        self._service.ended(self, self._intake.slot if self._intake else None)
        seconds = asyncio.get_running_loop().time() - self._began
        head = self._head
        self._service.access_log.add(
            self.client, head.method, head.path, status, sent, seconds, head.request_id
        )


def malformed(error: BaseException | None) -> BadRequest:
    """Tornado's description of a head that it cannot parse, without any text of the client: a header may hold
    a token."""
    said = re.split(r"""['":]""", str(error or "malformed message"), maxsplit=1)[0].strip()
    return BadRequest(f"this is not HTTP/1.1: {said}"[:200])

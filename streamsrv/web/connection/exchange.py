"""One request and its answer on one connection: Tornado's message delegate.

    head -> admitted or refused -> [100 Continue] -> body into an Upload -> answer computed and sent -> end

Strategy: a body of known length is read before Tornado looks for it (body.py). Content-Length is removed from
the head afterwards, so that Tornado finds no body. A chunked body comes through `data_received`: Tornado
awaits it.

Rules of this file
- Unless a body was read to its last byte, its connection ends. Otherwise the rest would be parsed as the next
  request (smuggling). A refusal before or within a body of known length detaches the connection from HTTP
  first. A request that Tornado still finds in the buffer of a closed stream is ignored.
- After a refusal our side is shut, and the bytes that still arrive are dropped for a while. A close at once
  would reset the connection, and the client might never see the refusal (RFC 9112 9.6).
- A client that has shut its side gets its whole answer: the stream holds the socket until then (stream.py).
- `_end` runs once for every request whose head arrived. It frees the upload slot and the socket, and writes
  the line in the log.
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

from streamsrv.errors import (
    BadRequest,
    ContentTooLarge,
    KeysPending,
    LengthRequired,
    RequestError,
    RequestTimeout,
)
from streamsrv.ingest.response import StoreResult
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.actions import request_kind
from streamsrv.web.app import App, Intake, Job
from streamsrv.web.connection.body import feed, read_body
from streamsrv.web.connection.clients import Meter
from streamsrv.web.connection.closing import (
    GONE,
    LINGER_BYTES,
    LINGER_SECONDS,
    discard,
    probe_client,
    send_last,
)
from streamsrv.web.connection.compute import Answering, Ended
from streamsrv.web.connection.stream import RequestBatch
from streamsrv.web.fastpath.answering import FastPath, Waiting
from streamsrv.web.head import CHUNKED, UNREADABLE, Head, HeadRefused, body_length
from streamsrv.web.hosts import Caller
from streamsrv.web.sending.response import CONTINUE

log = logging.getLogger("streamsrv.web")

TOO_SLOW = "the body arrives more slowly than the minimum rate"
# Bodies of requests that take none are read and dropped up to this size.
DROPPED_BODY = 64 << 10
# Times that a request asks once more: for its session, for new keys, and for a renewal.
SETTLED = 3
# Instead of Tornado's limit for chunked bodies: the app refuses with a problem.
NO_LIMIT = 1 << 62


class Exchange(Waiting, HTTPMessageDelegate):
    """Created when the connection begins to wait for a head. `key` is the same for all exchanges of the
    connection."""

    def __init__(
        self, app: App, fast_path: FastPath | None, connection: HTTP1Connection, key: object
    ) -> None:
        super().__init__(app, connection, key, partial(self._show, fast_path) if fast_path else None)
        self._fast_path = fast_path
        self._request: bytes | None = None  # the bytes of a request that may be cached
        self._head: Head | None = None
        self._caller: Caller | None = None
        self._client = self.peer  # in the access log
        self._began = 0.0
        self._job: Job | None = None
        self._intake: Intake | None = None
        self._answer: Answering | None = None  # being computed or sent
        self._meter: Meter | None = None
        self._over = False  # answered, refused or gone: bytes that still arrive are dropped
        self._to_drop = 0  # bytes of a refused chunked body that are still read
        self._ended = False
        self.stream.malformed = self._malformed

    def _show(self, fast_path: FastPath, request: bytes, batch: RequestBatch) -> bool:
        """Whether a fast way answers these bytes, the first of a request."""
        if fast_path.answer(self, request, batch):
            return True
        self._request = request if fast_path.may_keep(request) else None
        return False

    # Called by Tornado

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        if self.stream.closed():
            self._over = True
            return None
        line = cast(RequestStartLine, start_line)
        head = Head(line.method, line.path, line.version, headers, self.peer, self.stream.certificate)
        self._begin(head)
        length = CHUNKED  # until it is known, there may be one
        try:
            length = body_length(head)
            return self._admit(head, headers, length)
        except KeysPending as pending:
            return self._admit_later(head, headers, length, pending)
        except Exception as error:
            return self._refuse_head(error, length)

    def _admit(self, head: Head, headers: HTTPHeaders, length: int) -> Awaitable[None] | None:
        self._caller = origin = self._app.origin(head)
        self._client = origin.client
        self._caller = caller = self._app.caller(head, origin)
        self.count_for(caller)
        admitted = self._app.admit(head, caller, length)
        if isinstance(admitted, Intake):
            self._intake = admitted
            return self._receive(headers, length)
        if length > DROPPED_BODY:
            raise ContentTooLarge("this resource takes no body")
        self._job = admitted
        return None

    async def _admit_later(self, head: Head, headers: HTTPHeaders, length: int, pending: KeysPending) -> None:
        for left in reversed(range(SETTLED)):
            await self._app.access.settled(pending)
            if self._over:
                return
            if self.stream.closed() and not self.stream.half_closed:
                await self._drop_connection(CLIENT_GONE)
                return
            try:
                rest = self._admit(head, headers, length)
            except KeysPending as again:
                if left and type(again) is not type(pending):
                    pending = again
                    continue
                rest = self._refuse_head(again, length)
            except Exception as error:
                rest = self._refuse_head(error, length)
            break
        if rest is not None:
            await rest

    def _begin(self, head: Head) -> None:
        self._app.watch.head_arrived(self.key)
        self._head, self._began = head, asyncio.get_running_loop().time()
        self.stream.hold()
        self._app.begun(self)

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
            self.stream.close()
        elif self._intake is not None:
            self._app.spawn(self._answer_stored(self._intake))
        elif self._job is not None:
            self._answering().begin(self._job)
            self._listen()

    def on_connection_close(self) -> None:
        """Called only while the message is read; afterwards the close callback is."""
        if not self._over:
            self._app.spawn(self._break_off())

    # The body

    async def _receive(self, headers: HTTPHeaders, length: int) -> None:
        head, intake = cast(Head, self._head), cast(Intake, self._intake)
        try:
            await intake.upload.begin()
            if head.expects_continue:
                await self.stream.write(CONTINUE)
            headers.pop("Expect", None)  # sent, or not wanted: Tornado must not send it
            self._meter = self._app.watch.meter(lambda: self._time_out(TOO_SLOW))
            self._app.watch.add(self._meter)
            intake.slot.watch(self._meter, self._time_out)
            if length == CHUNKED:
                self._connection.set_max_body_size(NO_LIMIT)
                self._connection.set_body_timeout(NO_LIMIT)
                return
            await read_body(self._app, self.stream, length, intake.upload, self._meter)
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
        self._app.spawn(self._end_slow(RequestTimeout(reason)))

    async def _end_slow(self, error: RequestTimeout) -> None:
        """Sends the reason and closes. The read that waits then ends with StreamClosedError."""
        if not self._over:
            self._over = True
            await self._send_last(error)
            await self._drop_connection(error.status)

    async def _break_off(self) -> None:
        """The body ends early. A client that has only shut its side gets an answer."""
        self._over = True
        await self._abort()
        if self.stream.half_closed:
            await self._send_last(BadRequest("the connection was shut before the end of the body"))
        await self._drop_connection(CLIENT_GONE)

    async def _drop_connection(self, status: int) -> None:
        self._over = True
        self._connection.close()
        await self._abort()
        self._end(Ended(status, 0))

    async def _abort(self) -> None:
        self._stop_meter()
        if self._intake is not None:
            try:
                await self._intake.upload.abort()
            except Exception:
                log.exception("[%s] an upload could not be undone", cast(Head, self._head).request_id)

    # Refusals

    def _refuse_head(self, error: Exception, length: int) -> Awaitable[None] | None:
        # A body may follow even a head without a length.
        if length != 0 or isinstance(error, LengthRequired):
            return self._refuse(error)
        self._job = Job(lambda: self._app.problem(error, cast(Head, self._head)))
        return None

    async def _refuse(self, error: Exception) -> None:
        """Before or within a body of known length: the connection ends with the refusal."""
        self._over = True
        await self._abort()
        # From here on Tornado reads nothing from this connection: no byte of the body can become a request.
        self._connection.detach()
        await self._linger(error)

    def _malformed(self, error: BaseException | None) -> Coroutine[Any, Any, None]:
        """Tornado cannot parse the head, or the chunks of the body. It closes when this has ended."""
        refused = error if isinstance(error, HeadRefused) else None
        if not self._over and self._head is None:
            line = refused.line if refused else UNREADABLE
            self._begin(Head(*line, {}, self.peer))  # at once: a task might find the stream closed
        return self._refuse_malformed(refused.reason if refused else malformed(error))

    async def _refuse_malformed(self, reason: RequestError) -> None:
        if not self._over:
            self._over = True
            await self._abort()
            await self._linger(reason)

    async def _linger(self, error: Exception) -> None:
        timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.stream.close)
        try:
            await self._send_last(error)
            await discard(self.stream)
        finally:
            timer.cancel()
            self.stream.close()

    async def _refuse_within(self, error: Exception) -> None:
        """Within a chunked body: Tornado reads on to its end, and the bytes are dropped."""
        self._over = True
        self._to_drop = LINGER_BYTES
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._connection.close)
        await self._abort()
        await self._send_last(error)

    async def _send_last(self, error: Exception) -> None:
        head = cast(Head, self._head)
        outgoing = self._app.outgoing(self._app.problem(error, head), head, keep_alive=False)
        self._end(Ended(outgoing.answer.status, await send_last(self.stream, outgoing)))

    def _drop(self, count: int) -> None:
        self._to_drop -= count
        if self._to_drop < 0:
            self._connection.close()

    # Answers

    def _answering(self) -> Answering:
        self._answer = Answering(self._app, self.stream, cast(Head, self._head), self._answered)
        return self._answer

    def _listen(self) -> None:
        if self._answer is not None:
            self._connection.set_close_callback(self._answer.client_closed)

    async def _answer_stored(self, intake: Intake) -> None:
        head = cast(Head, self._head)
        closed = partial(probe_client, self.stream, head.version, intake.upload.stop)
        self._connection.set_close_callback(closed)
        if self.stream.closed():
            closed()
        audit, caller = self._app.audit, cast(Caller, self._caller)
        try:
            result = await intake.upload.finish()
            if audit is not None and isinstance(result, StoreResult):
                await audit.stored(caller, head, result)
            answer = intake.answer(result)
        except Exception as error:
            await self._abort()
            answer = self._app.problem(error, head)
        self._connection.set_close_callback(None)
        self._answering().send(answer)
        self._listen()

    def _answered(self, ended: Ended) -> None:
        self._answer = None
        if ended.error is None:
            self._connection.finish()
        # Tornado ends the connection if the client has asked for it. If the server has, it must do so itself.
        if ended.error is not None or (ended.close and not cast(Head, self._head).tornado_closes):
            self._connection.close()
        self._end(ended)

    # The end

    def _stop_meter(self) -> None:
        if self._meter is not None:
            self._app.watch.drop(self._meter)

    def _end(self, ended: Ended) -> None:
        if self._ended or self._head is None:
            return
        self._ended = self._over = True
        head, caller = self._head, self._caller
        if self._request is not None and caller is not None and 200 <= ended.status < 300:
            cast(FastPath, self._fast_path).keep(self._request, head, caller, ended)
        self.stream.let_go()
        self._app.ended(self, self._intake.slot if self._intake else None)
        if self._app.audit is not None:
            self._app.audit.ended(caller or Caller("", self.peer, ""), head, ended.status)
        self._log(head, ended)

    def _log(self, head: Head, ended: Ended) -> None:
        self._app.access_log.add(
            self._client,
            head.method,
            head.path,
            ended.status,
            ended.sent,
            asyncio.get_running_loop().time() - self._began,
            head.request_id,
            kind=(self._job and self._job.kind) or request_kind(head.method, head.path),
            received=self._meter.moved if self._meter else 0,
        )


def malformed(error: BaseException | None) -> BadRequest:
    """Tornado's description of a head that it cannot parse, without any text of the client: a header may hold
    a token."""
    reason = re.split(r"""['":]""", str(error or "malformed message"), maxsplit=1)[0].strip()
    return BadRequest(f"this is not HTTP/1.1: {reason}"[:200])

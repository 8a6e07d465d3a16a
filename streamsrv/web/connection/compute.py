"""One answer from its job to its last byte: computed in the loop, by a thread or after a future, then sent.

While a future runs no thread waits for it. If the client leaves, the future is cancelled; a thread that
computes gets a flag.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import NamedTuple

from tornado.iostream import StreamClosedError

from streamsrv.errors import TooManyRequests
from streamsrv.pixels.pool import left_early
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.app import App, Job
from streamsrv.web.connection.closing import final_status, reset
from streamsrv.web.connection.stream import Stream
from streamsrv.web.head import Head
from streamsrv.web.sending.response import Outgoing, release
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer, Computed, Deferred, Pending

log = logging.getLogger("streamsrv.web")


class Ended(NamedTuple):
    """The end of an answer: status and payload bytes for the log, and the error that cut it short. `close` if
    the connection has to end. `answer` has its plan, and is released."""

    status: int
    sent: int
    error: BaseException | None = None
    close: bool = False
    answer: Answer | None = None


class Answering:
    """`over` is called once, in the loop, when the answer has ended."""

    def __init__(self, app: App, stream: Stream, head: Head, over: Callable[[Ended], None]) -> None:
        self._app = app
        self._stream = stream
        self._head = head
        self._over = over
        self._left: Callable[[], None] | None = None
        self._transfer: Transfer | None = None
        self._has_left = False
        self._client = ""  # that has a share of the threads

    # The client leaves

    def client_shut(self) -> None:
        """The client has shut its side; it may still read. Nothing is computed for it any more."""
        self._has_left = True
        left, self._left = self._left, None
        if left is not None:
            left()

    def client_closed(self) -> None:
        if self._transfer is None:
            self.client_shut()
        elif not self._stream.half_closed:
            self._transfer.abort(StreamClosedError())

    # Compute

    def begin(self, job: Job) -> None:
        self._client = job.client
        try:
            computed = job.compute()
        except Exception as error:
            computed = self._problem(error)
        self._take(computed, job.left)

    def _take(self, computed: Computed, left: Callable[[], None]) -> None:
        """Sends an answer, now or as soon as there is one. `left` is called if the client leaves while a
        thread computes."""
        match computed:
            case Pending():
                self._wait_for(computed)
            case Deferred():
                self._from_thread(computed.compute, left)
            case _:
                self.send(computed)

    def _wait_for(self, pending: Pending) -> None:
        """Takes the answer when its future ends. If the client shuts its side, the loop cannot tell whether
        it still reads: the answer then says that the request was cancelled, or is the result of a future
        that goes on."""
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        in_loop = False  # whether the loop itself may go on within the callback of the future
        # Emptied at the end: breaks the reference cycle future -> callback -> pending -> future.
        waits_for, future = [pending], pending.future

        def left() -> None:
            nonlocal in_loop
            in_loop = False
            for each in waits_for:
                each.cancel()

        def resume() -> None:
            self._left = None
            self._take(self._finished(waits_for.pop()), _nothing)

        def ended(_: object) -> None:
            if threading.get_ident() != here:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(resume)
            elif in_loop:
                resume()
            else:
                loop.call_soon(resume)

        self._left = left
        future.add_done_callback(ended)
        in_loop = True
        if self._has_left:  # while a thread computed
            left()

    def _finished(self, pending: Pending) -> Computed:
        try:
            return pending.answer()
        except CancelledError:
            return self._problem(left_early())
        except Exception as error:
            return self._problem(error)

    def _from_thread(self, compute: Callable[[], Computed], left: Callable[[], None]) -> None:
        self._left = left
        try:
            self._app.threads.submit(
                self._client,
                lambda: self._computed(compute),
                self._from_there,
                lambda error: self._from_there(self._problem(error)),
            )
        except TooManyRequests as error:
            self._from_there(self._problem(error))

    def _from_there(self, computed: Answer | Pending) -> None:
        self._left = None
        self._take(computed, _nothing)

    def _computed(self, compute: Callable[[], Computed]) -> Answer | Pending:
        try:
            computed = compute()
            while isinstance(computed, Deferred):
                computed = computed.compute()
        except Exception as error:
            return self._problem(error)
        return computed

    def _problem(self, error: Exception) -> Answer:
        return self._app.problem(error, self._head)

    # Send

    def send(self, answer: Answer) -> None:
        stream, app = self._stream, self._app
        if stream.writing() and not stream.closed():  # 100 Continue is on its way
            stream.write(b"").add_done_callback(lambda done: self._written(done, answer))
            return
        if stream.closed() and not stream.half_closed:
            release(answer)
            self._end(Ended(CLIENT_GONE, 0, StreamClosedError()))
            return
        try:
            outgoing = app.outgoing(answer, self._head)
            transfer = app.writer.send(stream, outgoing)
        except Exception as error:  # nothing was sent
            release(answer)
            outgoing = app.outgoing(self._problem(error), self._head, keep_alive=False)
            transfer = app.writer.send(stream, outgoing)
        if transfer is None or transfer.done.done():
            self._ended(outgoing, transfer)
        else:
            self._transfer = transfer
            transfer.done.add_done_callback(lambda _: self._ended(outgoing, transfer))

    def _written(self, done: asyncio.Future[None], answer: Answer) -> None:
        done.exception()  # if the client has left, `send` sees it
        self.send(answer)

    def _ended(self, outgoing: Outgoing, transfer: Transfer | None) -> None:
        answer, error = outgoing.answer, None
        sent = (answer.length or 0) if outgoing.body else 0
        self._transfer = None
        if transfer is not None:
            error, sent = transfer.done.exception(), max(0, transfer.sent - len(outgoing.head))
        status = final_status(error, answer.status, self._head.request_id, sent)
        if error is not None and outgoing.until_close and status != CLIENT_GONE:
            reset(self._stream)
        try:
            release(answer)
        except Exception:
            log.exception("[%s] the resources of an answer cannot be released", self._head.request_id)
        self._end(Ended(status, sent, error, outgoing.close, answer))

    def _end(self, ended: Ended) -> None:
        # Breaks the reference cycle with the owner.
        over, self._over = self._over, _nothing
        over(ended)


def _nothing(_: object = None) -> None:
    pass

"""A request whose head was read before (fastpath/headers.py), answered beside Tornado: nothing of it passes
through there, however long its answer takes.

    computed in the loop, made by a pixel process, or computed in a thread -> sent at once, or by a Transfer

Rules of this file
- Its stream is paused from when its answer is waited for to when that is sent (waiting.py): nothing of a next
  request is read meanwhile.
- What went wrong before anything was sent is told the client; what goes wrong later ends the connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tornado.iostream import StreamClosedError

from streamsrv.web.access_log import CLIENT_GONE, Way
from streamsrv.web.admission import Job, Service
from streamsrv.web.connection.closing import sent_as
from streamsrv.web.connection.compute import Answering
from streamsrv.web.connection.stream import Look, Stream
from streamsrv.web.fastpath.frames import lies_in_store
from streamsrv.web.head import Head
from streamsrv.web.sending.response import Outgoing, begin_transfer, release, send_small
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer, Deferred, Pending

log = logging.getLogger("streamsrv.web")


class Known:
    """`client` is named in the log; `asked` is the request, if the lane may learn it by its success. `over`
    is told of what was waited for that it is sent, or the error that ends the connection."""

    def __init__(
        self,
        service: Service,
        stream: Stream,
        head: Head,
        client: str,
        look: Look,
        asked: bytes | None,
        over: Callable[[BaseException | None], None],
    ) -> None:
        self._service = service
        self._stream = stream
        self._head = head
        self._client = client
        self._look = look
        self._asked = asked
        self._tell_over = over
        self._left: Callable[[], None] | None = None
        self._transfer: Transfer | None = None

    def send(self, answer: Answer) -> Transfer | None:
        """None: it is sent. Raises as long as nothing was."""
        outgoing, sent = self._begin(answer)
        if sent is None:
            return self._begin_transfer(outgoing)
        self._over(outgoing.answer, answer.status, sent)
        return None

    def take(self, computed: Pending | Deferred, job: Job) -> Known:
        """Sends the answer as soon as there is one."""
        Answering(self._service, self._head, self._listen, self._answer).take(computed, job.left)
        return self

    def _listen(self, left: Callable[[], None] | None) -> None:
        self._left = self._stream.shut = left

    def abort(self, error: BaseException) -> None:
        """What a thread still computes finds nobody."""
        if self._transfer is not None:
            self._transfer.abort(error)
        elif self._left is not None:
            self._left()

    def _answer(self, answer: Answer) -> None:
        if self._stream.closed():
            self._over(answer, CLIENT_GONE, 0)
            self._tell_over(StreamClosedError())
            return
        try:
            outgoing, sent = self._begin(answer)
        except Exception as error:  # nothing was sent
            release(answer)
            answer = self._service.problem(error, self._head)
            outgoing, sent = self._begin(answer)
        if sent is not None:
            self._over(answer, answer.status, sent)
            self._tell_over(self._last(outgoing))
            return
        self._transfer = transfer = self._begin_transfer(outgoing)
        transfer.done.add_done_callback(
            lambda _: self._tell_over(transfer.done.exception() or self._last(outgoing))
        )

    def _last(self, outgoing: Outgoing) -> StreamClosedError | None:
        """What ends the connection after an answer that said so."""
        if not outgoing.close:
            return None
        self._stream.drop_arrived()
        return StreamClosedError()

    # Sending

    def _begin(self, answer: Answer) -> tuple[Outgoing, int | None]:
        """With the payload's length, if all of it is sent."""
        head = self._head
        extra = self._service.standard_headers(head)
        keep_alive = not self._service.draining
        outgoing = Outgoing(answer, extra, method=head.method, version=head.version, keep_alive=keep_alive)
        return outgoing, send_small(self._stream, outgoing)

    def _begin_transfer(self, outgoing: Outgoing) -> Transfer:
        transfer = begin_transfer(self._stream, outgoing, self._service.pool, self._service.watch)

        def sent(_: object) -> None:
            count = max(0, transfer.sent - len(outgoing.head))
            status = sent_as(transfer.done.exception(), outgoing.answer.status, self._head.request_id, count)
            self._over(outgoing.answer, status, count)

        if transfer.done.done():
            sent(transfer.done)
        else:
            transfer.done.add_done_callback(sent)
        return transfer

    def _over(self, answer: Answer, status: int, sent: int) -> None:
        """Raises nothing: all is sent."""
        head, seconds = self._head, time.monotonic() - self._look.began
        self._service.access_log.add(
            self._client, head.method, head.path, status, sent, seconds, head.request_id, Way.KNOWN_HEADERS
        )
        try:
            release(answer)
            if status == 200 and self._asked is not None and lies_in_store(answer):
                self._service.learn(self._asked, self._head, self._client)
        except Exception:
            log.exception("[%s] something failed behind the answer", head.request_id)

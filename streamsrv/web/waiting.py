"""A connection that waits for a request: what an exchange is until its head arrives.

Requests that the lane knows are answered here, one after the other, and the connection goes on waiting. So
are those whose head was read before (words.py), if their answer is short: nothing of them has to pass through
Tornado. All others go on to it, and become the exchange's; what was found to take longer is not tried twice.
"""

from __future__ import annotations

import logging
import time
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from streamsrv.errors import WouldBlock
from streamsrv.web.admission import Job, Service
from streamsrv.web.farewell import sent_as
from streamsrv.web.head import Head
from streamsrv.web.lane import Lane
from streamsrv.web.stream import Look, Stream
from streamsrv.web.transfer import Transfer
from streamsrv.web.writer import Outgoing, begin_transfer, release, send_small

log = logging.getLogger("streamsrv.web")


class Waiting:
    def __init__(self, service: Service, connection: HTTP1Connection, key: object) -> None:
        self._service = service
        self._connection = connection
        self._stream = stream = cast(Stream, connection.stream)
        self._key = key
        self._asked: bytes | None = None  # what came first, if the lane may learn it
        self._blocked: WouldBlock | None = None  # why it was not answered here
        self.client = str(getattr(connection.context, "remote_ip", "-"))
        stream.express = self._express if service.lane is not None else None
        self._wait()

    def _wait(self) -> None:
        self._service.watch.head_awaited(self._key, self._connection.close)

    def _express(self, asked: bytes, look: Look) -> bool:
        """Whether the lane has answered what has come; then this goes on waiting."""
        lane = self._service.lane
        if lane is None or self._service.draining:
            return False
        try:
            taken = lane.answer(self._stream, self.client, asked, look)
        except Exception as error:  # nothing was sent, and the usual way tells the client what is wrong
            log.warning("the express lane stood back: %s", error)
            taken = False
        taken = taken or self._known(lane, asked, look)
        if not taken:
            self._asked = asked if lane.may_learn(asked) else None
            return False
        if taken is True:
            self._service.watch.head_awaited_again(self._key, look.began)
        elif taken.done.done():
            self._expressed(taken)
        else:
            self._wait_for(taken)
        return True

    def _known(self, lane: Lane, asked: bytes, look: Look) -> Transfer | bool:
        """As the lane's `answer`, of any request whose words are known and whose answer is short."""
        head = lane.words.head(asked, self.client)
        if head is None:
            return False
        service, client = self._service, self.client
        try:
            admitted, client = service.admit(head, 0)
            if not isinstance(admitted, Job) or not admitted.inline:
                return False
            answer = admitted.compute()
        except WouldBlock as blocked:
            self._blocked = blocked
            return False
        except Exception as error:
            answer = service.problem(error, head)
        try:
            extra = service.standard_headers(head)
            outgoing = Outgoing(answer, extra, method=head.method, version=head.version, keep_alive=True)
            sent = send_small(self._stream, outgoing)
        except Exception as error:  # nothing was sent
            log.warning("[%s] an answer is made once more: %s", head.request_id, error)
            release(answer)
            return False
        if answer.status == 200 and lane.may_learn_frames(asked):
            service.learn(asked, head, client)
        if sent is not None:
            release(answer)
            self._log(head, client, answer.status, sent, look)
            return True
        transfer = begin_transfer(self._stream, outgoing, service.pool, service.watch)
        if transfer.done.done():
            self._sent(transfer, outgoing, head, client, look)
        else:
            transfer.done.add_done_callback(lambda _: self._sent(transfer, outgoing, head, client, look))
        return transfer

    def _sent(self, transfer: Transfer, outgoing: Outgoing, head: Head, client: str, look: Look) -> None:
        release(outgoing.answer)
        sent = max(0, transfer.sent - len(outgoing.head))
        status = sent_as(transfer.done.exception(), outgoing.answer.status, head.request_id, sent)
        self._log(head, client, status, sent, look)

    def _log(self, head: Head, client: str, status: int, sent: int, look: Look) -> None:
        seconds = time.monotonic() - look.began
        self._service.access_log.add(client, head.method, head.path, status, sent, seconds, head.request_id)

    def _wait_for(self, transfer: Transfer) -> None:
        """Nothing is read before the answer is complete."""
        self._stream.pause()
        self._stream.set_close_callback(lambda: transfer.abort(StreamClosedError()))
        self._service.watch.head_arrived(self._key)
        self._service.begun(self)

        def done(_: object) -> None:
            self._service.ended(self, False)
            self._stream.set_close_callback(None)
            self._stream.resume()
            self._expressed(transfer)

        transfer.done.add_done_callback(done)

    def _expressed(self, transfer: Transfer) -> None:
        if transfer.done.exception() is None:
            self._wait()
        else:
            self._connection.close()

"""A connection that waits for a request: what an exchange is until its head arrives.

Requests that the lane knows are answered here, one after the other, and the connection goes on waiting. So
are those whose head was read before (fastpath/headers.py, fastpath/known_request.py). All others go on to
Tornado, and become the exchange's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from streamsrv.web.admission import Job, Service
from streamsrv.web.connection.stream import Look, Stream
from streamsrv.web.fastpath.frames import Lane
from streamsrv.web.fastpath.known_request import Known
from streamsrv.web.sending.response import release
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer, Deferred

log = logging.getLogger("streamsrv.web")


class Waiting:
    def __init__(self, service: Service, connection: HTTP1Connection, key: object) -> None:
        self._service = service
        self._connection = connection
        self._stream = stream = cast(Stream, connection.stream)
        self._key = key
        self._asked: bytes | None = None  # what came first, if the lane may learn it
        self.client = str(getattr(connection.context, "remote_ip", "-"))
        stream.express = self._express if service.lane is not None else None
        stream.begun = partial(service.watch.head_begun, key)
        self._wait()

    def _wait(self) -> None:
        stream = self._stream
        self._service.watch.head_awaited(self._key, self._connection.close, stream.party, new=stream.is_new)
        stream.is_new = False

    def _express(self, asked: bytes, look: Look) -> bool:
        """Whether the lane has answered what has come; then this goes on waiting."""
        lane = self._service.lane
        if lane is None or self._service.draining:
            return False
        try:
            taken: Transfer | Known | bool = lane.answer(self._stream, self.client, asked, look)
        except Exception as error:  # nothing was sent, and the usual way tells the client what is wrong
            log.warning("the express lane stood back: %s", error)
            taken = False
        taken = taken or self._known(lane, asked, look)
        if not taken:
            self._asked = asked if lane.may_learn(asked) else None
            return False
        if taken is True:
            self._service.watch.head_awaited_again(self._key, look.began)
        elif isinstance(taken, Known):
            self._pause(taken.abort)
        elif taken.done.done():
            self._go_on(taken.done.exception())
        else:
            self._pause(taken.abort)
            taken.done.add_done_callback(lambda done: self._resume(done.exception()))
        return True

    def _known(self, lane: Lane, asked: bytes, look: Look) -> Transfer | Known | bool:
        """As the lane's `answer`, of any request whose words are known."""
        head = lane.words.head(asked, self.client)
        if head is None:
            return False
        service = self._service
        try:
            admitted, client = service.admit(head, 0)
        except Exception as error:
            admitted, client = Job(partial(service.problem, error, head), inline=True), self.client
        if not isinstance(admitted, Job):
            return False
        to_learn = asked if lane.may_learn_frames(asked) else None
        known = Known(service, self._stream, head, client, look, to_learn, self._resume)
        if not admitted.inline:
            return known.take(Deferred(admitted.compute), admitted)
        try:
            answer = admitted.compute()
        except Exception as error:
            answer = service.problem(error, head)
        if not isinstance(answer, Answer):
            return known.take(answer, admitted)
        try:
            return known.send(answer) or True
        except Exception as error:  # nothing was sent
            log.warning("[%s] an answer is made once more: %s", head.request_id, error)
            release(answer)
            return False

    def _pause(self, abort: Callable[[BaseException], None]) -> None:
        """Nothing is read before the answer is complete."""
        self._stream.pause()
        self._stream.set_close_callback(lambda: abort(StreamClosedError()))
        self._service.watch.head_arrived(self._key)
        self._service.begun(self)

    def _resume(self, error: BaseException | None) -> None:
        self._service.ended(self, None)
        self._stream.set_close_callback(None)
        self._stream.resume()
        self._go_on(error)

    def _go_on(self, error: BaseException | None) -> None:
        if error is None:
            self._wait()
        else:
            self._connection.close()

"""A connection that waits for a request: what an exchange is until its head arrives.

Requests that the lane knows are answered here, one after the other, and the connection goes on waiting; the
first that it does not know goes on to Tornado, and becomes the exchange's.
"""

from __future__ import annotations

import logging
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from streamsrv.web.admission import Service
from streamsrv.web.stream import Look, Stream
from streamsrv.web.transfer import Transfer

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

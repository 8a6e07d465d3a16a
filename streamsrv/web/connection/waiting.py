"""A connection that waits for a request, and that a fast way can hold while it sends an answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from streamsrv.web.app import App
from streamsrv.web.connection.stream import RequestBatch, Stream
from streamsrv.web.sending.transfer import Transfer


class Waiting:
    """`show` gets the first bytes of each request, and returns whether it has answered it. `key` is the same
    for all requests of the connection."""

    def __init__(
        self,
        app: App,
        connection: HTTP1Connection,
        key: object,
        show: Callable[[bytes, RequestBatch], bool] | None,
    ) -> None:
        self._app = app
        self._connection = connection
        self.key = key
        self.stream = stream = cast(Stream, connection.stream)
        self.peer = str(getattr(connection.context, "remote_ip", "-"))
        stream.show_first = show
        stream.begun = partial(app.watch.head_begun, key)
        self._wait()

    def _wait(self) -> None:
        stream = self.stream
        self._app.watch.head_awaited(self.key, self._connection.close, stream.party, new=stream.is_new)
        stream.is_new = False

    def pause(self, closed: Callable[[], None], shut: Callable[[], None] | None = None) -> None:
        """Reads nothing until `resume`. Calls `closed` when the connection closes, `shut` when the client has
        shut its side."""
        self.stream.pause()
        self.stream.shut = shut
        self.stream.set_close_callback(closed)
        self._app.watch.head_arrived(self.key)
        self._app.begun(self)

    def resume(self, error: BaseException | None) -> None:
        """Ends the pause."""
        self._app.ended(self, None)
        self.stream.shut = None
        self.stream.set_close_callback(None)
        self.stream.resume()
        self.go_on(error)

    def follow(self, transfer: Transfer) -> None:
        """Pauses until `transfer` has ended."""
        if transfer.done.done():
            self.go_on(transfer.done.exception())
        else:
            self.pause(lambda: transfer.abort(StreamClosedError()))
            transfer.done.add_done_callback(lambda done: self.resume(done.exception()))

    def go_on(self, error: BaseException | None) -> None:
        """Waits for the next request, or closes the connection after an error."""
        if error is None:
            self._wait()
        else:
            self._connection.close()

"""The two fast ways to answer a GET: cached frames, then known headers. All else is left to Tornado.

Strategy: a connection that waits for a request shows its bytes to `answer` before Tornado has them. A request
that is answered here never reaches Tornado, however long its answer takes: the stream is paused meanwhile.

Both caches are filled in one place, `keep`, after a request has succeeded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from streamsrv.metrics import RequestKind, Way
from streamsrv.retrieve.cached_frames import AskedFrame, CachedInstance
from streamsrv.web.actions import request_kind
from streamsrv.web.app import App
from streamsrv.web.connection.compute import Answering, Ended
from streamsrv.web.connection.stream import RequestBatch, Stream
from streamsrv.web.fastpath.asking import FrameAsker
from streamsrv.web.fastpath.frames import FrameCache, Limits
from streamsrv.web.fastpath.headers import LONGEST, KnownHead, KnownHeaders
from streamsrv.web.head import Head, source_of
from streamsrv.web.hosts import Caller
from streamsrv.web.sending.transfer import Transfer

log = logging.getLogger("streamsrv.web")


class FastPath:
    """The fast ways of one worker."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self.headers = KnownHeaders(limits.headers, app.access)
        self._audit = app.audit
        self.frames = FrameCache(app.access_log, app.writer, app.access, limits)
        self._asker = FrameAsker(app.pool)

    def answer(self, waiting: Waiting, request: bytes, batch: RequestBatch) -> bool:
        """Whether the request is answered here. If not, nothing was sent."""
        if self._app.draining:
            return False
        try:
            sent = self.frames.answer(waiting.stream, waiting.source, request, batch)
        except Exception as error:  # the next way answers
            log.warning("a cached frame cannot be sent: %s", error)
            sent = False
        if sent is True:
            self._app.watch.head_awaited_again(waiting.key, batch.began)
            return True
        if sent:
            waiting.follow(sent)
            return True
        known = self.headers.find(request, waiting.source)
        if known is None:
            return False
        # A frame of a store on other machines that was not answered here may wait for a thread.
        asked = self.frames.asked(waiting.source, request) if self.frames.remote else None
        otherwise = partial(KnownRequest, self, self._app, waiting, known, request, batch.began)
        if asked is None:
            otherwise().begin()
        else:
            AskedRequest(self.frames, waiting, request, asked, otherwise, batch.began).begin(self._asker)
        return True

    @staticmethod
    def may_keep(request: bytes) -> bool:
        return request.startswith(b"GET /") and len(request) <= LONGEST

    def keep(self, request: bytes, head: Head, caller: Caller, ended: Ended) -> None:
        """Fills the caches after `request` was answered with success."""
        if self._app.access.holds(caller):
            self.headers.keep(request, head, caller)
            self.keep_frame(request, head, caller, ended)

    def keep_frame(self, request: bytes, head: Head, caller: Caller, ended: Ended) -> None:
        if ended.answer is None or not self.frames.wants(request, head, ended.answer):
            return
        try:
            frames = self._app.cached_frames(head, caller)
            if callable(frames):
                self._asker.find(frames, lambda found: self._keep(request, head, caller, found))
            else:
                self._keep(request, head, caller, frames)
        except Exception:
            log.exception("[%s] the frame is not cached", head.request_id)

    def _keep(self, request: bytes, head: Head, caller: Caller, frames: CachedInstance | None) -> None:
        if frames is not None and self._app.access.holds(caller):
            mark = self._audit.mark(caller, head) if self._audit else None
            self.frames.keep(request, head, caller, frames, self._app.rendered, mark)

    def close(self) -> None:
        self.frames.close()


class KnownRequest:
    """One request whose header block is known, from its head to the end of its answer."""

    def __init__(
        self, path: FastPath, app: App, waiting: Waiting, known: KnownHead, request: bytes, began: float
    ) -> None:
        self._path = path
        self._app = app
        self._waiting = waiting
        self._head, self._caller = known
        self._client = waiting.peer
        self._kind: RequestKind | None = None
        self._request = request
        self._began = began
        self._paused = self._ended = False
        self._answering = Answering(app, waiting.stream, known.head, self._over)

    def begin(self, *, paused: bool = False) -> None:
        """`paused` if the connection is paused already."""
        self._paused = paused
        try:
            self._waiting.count_for(self._caller)
            job = self._app.admit_known(self._head, self._caller)
        except Exception as error:
            self._answering.send(self._app.problem(error, self._head))
        else:
            self._client = self._caller.client
            self._kind = job.kind
            self._answering.begin(job)
        if not self._ended:
            self._paused = True
            self._waiting.pause(self._answering.client_closed, self._answering.client_shut)

    def _over(self, ended: Ended) -> None:
        self._ended = True
        head, seconds = self._head, time.monotonic() - self._began
        self._app.access_log.add(
            *(self._client, head.method, head.path, ended.status, ended.sent, seconds),
            *(head.request_id, Way.KNOWN_HEADERS, self._kind or request_kind(head.method, head.path)),
        )
        if self._app.audit is not None:
            self._app.audit.ended(self._caller, head, ended.status)
        error = ended.error
        if error is None and ended.status == 200:
            self._path.keep_frame(self._request, head, self._caller, ended)
        if error is None and ended.close:
            self._waiting.stream.drop_arrived()
            error = StreamClosedError()
        if self._paused:
            self._waiting.resume(error)
        elif error is None:
            self._app.watch.head_awaited_again(self._waiting.key, self._began)
        else:
            self._waiting.go_on(error)


class AskedRequest:
    """One request for a cached frame of a remote store. `otherwise` makes its other way."""

    def __init__(
        self,
        frames: FrameCache,
        waiting: Waiting,
        request: bytes,
        asked: AskedFrame,
        otherwise: Callable[[], KnownRequest],
        began: float,
    ) -> None:
        self._frames = frames
        self._waiting = waiting
        self._request = request
        self._asked = asked
        self._otherwise = otherwise
        self._batch = RequestBatch()
        self._batch.began = began

    def begin(self, asker: FrameAsker) -> None:
        self._waiting.pause(lambda: None)  # a client that has left is found by the answer
        asker.ask(self._asked, self._read)

    def _read(self) -> None:
        waiting, asked = self._waiting, self._asked
        sent: Transfer | bool = False
        self._frames.keep_open(asked)
        if asked.placed is not None and not waiting.stream.closed():
            given = waiting.stream, waiting.source, self._request
            try:
                if asked.content is not None:
                    sent = self._frames.send_read(*given, asked, self._batch)
                else:  # a long one
                    sent = self._frames.answer(*given, self._batch)
            except Exception as error:  # nothing was sent
                log.warning("a cached frame cannot be sent: %s", error)
        if sent is False:
            self._otherwise().begin(paused=True)
        elif sent is True:
            waiting.resume(None)
        else:
            transfer = sent
            waiting.stream.set_close_callback(lambda: transfer.abort(StreamClosedError()))
            transfer.done.add_done_callback(lambda done: waiting.resume(done.exception()))


class Waiting:
    """A connection that waits for a request, and that a fast way can hold while it sends an answer.

    `show` gets the first bytes of each request, and returns whether it has answered it. `key` is the same
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
        self.peer = stream.peer
        self.source = source_of(stream.peer, stream.certificate)
        stream.show_first = show
        stream.begun = partial(app.watch.head_begun, key)
        self._wait()

    def _wait(self) -> None:
        stream = self.stream
        self._app.watch.head_awaited(self.key, self._connection.close, stream.party, new=stream.is_new)
        stream.is_new = False

    def count_for(self, caller: Caller) -> None:
        """The connection counts for the principal of its last request, unless it is that of a proxy. A
        preflight has none. Raises TooManyRequests."""
        stream = self.stream
        if stream.party and caller.party and stream.party != caller.party:
            self._app.own(stream, caller.party)

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

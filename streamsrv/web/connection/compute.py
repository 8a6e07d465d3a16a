"""Answers that are computed: at once where that is short, when something was made, or else by a thread.

While something is made no thread waits for it, and nothing is begun for a client that has left. A thread
that computes is told when the client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeAlias

from streamsrv.errors import Overloaded
from streamsrv.web.admission import Job, Service
from streamsrv.web.connection.threads import from_thread
from streamsrv.web.head import Head
from streamsrv.wire.answers import Answer, Computed, Deferred, Pending

CANCELLED = "the connection was shut before the turn of this request came"

# Takes whom to tell that the client has left, or shut its side; or None.
Listen: TypeAlias = Callable[[Callable[[], None] | None], object]


class Answering:
    """One request of which a job is computed; `answer` hears in the loop what came of it, or the problem."""

    def __init__(
        self, service: Service, head: Head, listen: Listen, answer: Callable[[Answer], None]
    ) -> None:
        self._service = service
        self._head = head
        self._listen = listen
        self._answer = answer
        self._has_left = False  # while a thread computed

    def begin(self, job: Job) -> None:
        """At once, if that is short."""
        if not job.inline:
            self._from_thread(job.compute, job.left)
            return
        try:
            computed = job.compute()
        except Exception as error:
            computed = self._problem(error)
        self.take(computed, job.left)

    def take(self, computed: Computed, left: Callable[[], None]) -> None:
        """Sends an answer, now or as soon as there is one. A thread calls `left` if the client leaves."""
        match computed:
            case Pending():
                self._wait_for(computed)
            case Deferred():
                self._from_thread(computed.compute, left)
            case _:
                self._answer(computed)

    def _wait_for(self, pending: Pending) -> None:
        """Takes the answer when its future ends. If the client shuts its side, the loop cannot tell whether
        it still reads: the answer then says that the request was cancelled, or is the result of a future
        that goes on."""
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        waiting = [pending]  # emptied at the end: breaks the reference cycle future -> callback -> pending
        may_resume = False  # whether the loop itself may go on within the callback of the future

        def left() -> None:
            nonlocal may_resume
            may_resume = False
            self._listen(None)
            for one in waiting:
                one.cancel()

        def resume() -> None:
            self._listen(None)
            self._answer(self._finished(waiting.pop()))

        def ended(_: object) -> None:
            if threading.get_ident() != here:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(resume)
            elif may_resume:
                resume()
            else:
                loop.call_soon(resume)

        self._listen(left)
        pending.future.add_done_callback(ended)
        may_resume = True
        if self._has_left:
            left()

    def _finished(self, pending: Pending) -> Answer:
        try:
            return pending.answer()
        except CancelledError:
            return self._problem(Overloaded(CANCELLED, retry_after=1))
        except Exception as error:
            return self._problem(error)

    def _from_thread(self, compute: Callable[[], Computed], left: Callable[[], None]) -> None:
        def has_left() -> None:
            self._has_left = True
            left()

        self._listen(has_left)
        try:
            from_thread(self._service.pool, lambda: self._computed(compute), self._from_there)
        except RuntimeError as error:  # there is no thread, and none can be started
            asyncio.get_running_loop().call_soon(self._from_there, self._problem(error))

    def _from_there(self, computed: Answer | Pending) -> None:
        self._listen(None)
        self.take(computed, _nothing)

    def _computed(self, compute: Callable[[], Computed]) -> Answer | Pending:
        try:
            computed = compute()
            while isinstance(computed, Deferred):
                computed = computed.compute()
        except Exception as error:
            return self._problem(error)
        return computed

    def _problem(self, error: Exception) -> Answer:
        return self._service.problem(error, self._head)


def _nothing() -> None:
    pass

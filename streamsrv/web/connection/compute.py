"""Answers that are computed: at once where that is short, when something was made, or else by a thread.

While something is made no thread waits for it, and nothing is begun for a client that has left. A thread
that computes is told when the client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeAlias, cast

from streamsrv.errors import Overloaded, WouldBlock
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

    def begin(self, job: Job) -> None:
        """At once, if that is short."""
        if not job.inline:
            self._from_thread(job.compute, job.left)
            return
        try:
            computed = job.compute()
        except WouldBlock as blocked:
            self.wait(job, blocked)
            return
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
        waits = False  # whether the loop itself may go on within the callback of the future

        def left() -> None:
            nonlocal waits
            waits = False
            self._listen(None)
            pending.cancel()

        def resume() -> None:
            self._listen(None)
            self._answer(self._finished(pending))

        def ended(_: object) -> None:
            if threading.get_ident() != here:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(resume)
            elif waits:
                resume()
            else:
                loop.call_soon(resume)

        self._listen(left)
        pending.future.add_done_callback(ended)
        waits = True

    def _finished(self, pending: Pending) -> Answer:
        try:
            return pending.answer()
        except CancelledError:
            return self._problem(Overloaded(CANCELLED, retry_after=1))
        except Exception as error:
            return self._problem(error)

    def wait(self, job: Job, blocked: WouldBlock) -> None:
        """For what was in its way here."""
        if not when_made(self._listen, blocked, job, self.begin):
            self._from_thread(job.compute, job.left)

    def _from_thread(self, compute: Callable[[], Computed], left: Callable[[], None]) -> None:
        self._listen(left)
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


def when_made(listen: Listen, blocked: WouldBlock, job: Job, answer: Callable[[Job], None]) -> bool:
    """Calls `answer` in the loop as soon as it is there, with what finishes it, or else with the same job
    again; False if there is nothing to wait for. It is given up if the client shut its side, or left, before
    anybody had begun it. Nobody can tell the two apart, so whoever still listens is told."""
    if blocked.until is None:
        return False
    blocked.__traceback__ = None  # its frames hold this request, which holds it
    loop, here = asyncio.get_running_loop(), threading.get_ident()
    given_up: bool | None = None  # None: still there
    waiting = False

    def left() -> None:
        nonlocal given_up, waiting
        if given_up is None:
            waiting = False  # what is given up ends within `leave`
            given_up = blocked.leave()

    def resume() -> None:
        listen(None)
        if given_up:
            next_one = Job(_refuse, inline=True)
        else:
            next_one = (_finishing(blocked) if given_up is None else None) or job
        blocked.forget()
        answer(next_one)

    def made(_: Future[bytes]) -> None:
        if threading.get_ident() != here:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(resume)
        elif waiting:
            resume()  # the loop itself has taken it in: the answer goes out at once
        else:
            loop.call_soon(resume)

    listen(left)
    blocked.until.add_done_callback(made)
    waiting = True
    return True


def _finishing(blocked: WouldBlock) -> Job | None:
    """None where it has failed, or has to be computed anew: then it is asked for again."""
    until, finish = blocked.until, blocked.finish
    if until is None or finish is None or until.cancelled() or until.exception() is not None:
        return None
    blocked.leave()
    return Job(lambda: cast(Answer, finish(until.result())), inline=True)


def _refuse() -> Answer:
    raise Overloaded(CANCELLED, retry_after=1)


def _nothing() -> None:
    pass

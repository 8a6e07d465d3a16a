"""Answers that wait for something to be made: no thread waits, and nothing is begun for who has left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import cast

from tornado.http1connection import HTTP1Connection

from streamsrv.errors import Overloaded, WouldBlock
from streamsrv.web.admission import Job
from streamsrv.wire.answers import Answer


def when_made(
    connection: HTTP1Connection, blocked: WouldBlock, job: Job, answer: Callable[[Job], None]
) -> bool:
    """Calls `answer` in the loop as soon as it is there, with what finishes it, or else with the same job
    again; False if there is nothing to wait for. It is given up if the client shut its side, or left, before
    anybody had begun it. Nobody can tell the two apart, so whoever still listens is told."""
    if blocked.until is None:
        return False
    loop, here = asyncio.get_running_loop(), threading.get_ident()
    given_up: bool | None = None  # None: still there
    waiting = False

    def left() -> None:
        nonlocal given_up, waiting
        waiting = False  # what is given up ends within `leave`
        given_up = blocked.leave()

    def resume() -> None:
        connection.set_close_callback(None)
        if given_up:
            answer(Job(_refuse, inline=True))
        else:
            answer((_finishing(blocked) if given_up is None else None) or job)

    def made(_: Future[bytes]) -> None:
        if threading.get_ident() != here:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(resume)
        elif waiting:
            resume()  # the loop itself has taken it in: the answer goes out at once
        else:
            loop.call_soon(resume)

    connection.set_close_callback(left)
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
    raise Overloaded("the connection was shut before the turn of this request came", retry_after=1)

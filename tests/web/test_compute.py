"""streamsrv/web/connection/compute.py: answers that wait for a future, and those that a thread computes."""

import asyncio
import threading
from concurrent.futures import Future

import pytest
from web_world import Raw, eventually, text

from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.wire.answers import Deferred, Pending

ASKED = b"GET /v2/studies/1.2/series/1.3/instances/1.4 HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Work:
    """An answer that waits for `future`. Its work `has_begun` if `cancel` cannot end it."""

    def __init__(self, world, **more):
        self.future, self.has_begun = Future(), True
        self.threads, self.cancelled, self.released = [], 0, 0
        self.more = more
        world.answers["1.4"] = self.compute

    def compute(self):
        self.threads.append(threading.current_thread())
        return Pending(self.future, self.finish, self.cancel, **self.more)

    def finish(self, result):
        self.threads.append(threading.current_thread())
        return text(b"made of " + result, release=self.release)

    def cancel(self):
        self.cancelled += 1
        if not self.has_begun:
            self.future.cancel()
            self.future.set_running_or_notify_cancel()

    def release(self):
        self.released += 1


async def begun(port, work, asked=ASKED):
    raw = await Raw.connect(port)
    await raw.send(asked)
    before = len(work.threads)
    await eventually(lambda: len(work.threads) > before or work.threads)
    return raw


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_result_finishes_the_answer_in_the_loop(port, world, in_thread):
    work = Work(world)
    raw = await begun(port, work)
    if in_thread:
        threading.Thread(target=work.future.set_result, args=(b"bytes",)).start()
    else:
        work.future.set_result(b"bytes")
    assert (await raw.answer())[2] == b"made of bytes"
    assert work.threads == [threading.main_thread()] * 2
    assert (work.cancelled, work.released) == (0, 1)
    await raw.send(b"GET /v2/studies/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await raw.answer())[2] == b"hello"
    await raw.close()


async def test_a_future_that_ended_earlier_makes_the_answer_too(port, world):
    work = Work(world)
    work.future.set_result(b"before")
    raw = await begun(port, work)
    assert (await raw.answer())[2] == b"made of before"
    await raw.close()


async def test_the_error_of_a_future_is_the_answer(port, world):
    work = Work(world)
    raw = await begun(port, work)
    work.future.set_exception(NotFound("it is gone"))
    status, _, body = await raw.answer()
    assert (status, b"it is gone" in body, len(work.threads)) == (404, True, 1)
    await raw.close()


async def test_an_answer_may_recover_from_the_error(port, world):
    def recover(error):
        return text(b"instead of: " + error.detail.encode())

    work = Work(world, recover=recover)
    raw = await begun(port, work)
    work.future.set_exception(NotAcceptable("a bad frame", ()))
    assert (await raw.answer())[::2] == (200, b"instead of: a bad frame")
    await raw.close()


async def test_a_client_that_leaves_cancels_once(port, world, http_server):
    work = Work(world)
    raw = await begun(port, work)
    await raw.close()
    await eventually(lambda: work.cancelled)
    work.future.set_result(b"bytes")
    await eventually(lambda: work.released)
    await eventually(lambda: not http_server.app._active)
    assert (work.cancelled, work.released) == (1, 1)


@pytest.mark.parametrize("reads", [False, True])
async def test_a_cancelled_request_is_told_if_its_client_still_reads(port, world, http_server, reads):
    work = Work(world)
    work.has_begun = False
    raw = await begun(port, work)
    if reads:
        raw.writer.write_eof()
        status, headers, body = await raw.answer()
        assert (status, headers["retry-after"], b"before the turn" in body) == (503, "1", True)
        assert await raw.rest() == b""
    await raw.close()
    await eventually(lambda: not http_server.app._active)
    assert (len(work.threads), work.cancelled) == (1, 1)


async def test_a_client_that_shut_its_side_gets_the_result_of_work_that_goes_on(port, world):
    work = Work(world)
    raw = await begun(port, work)
    raw.writer.write_eof()
    await eventually(lambda: work.cancelled)
    work.future.set_result(b"bytes")
    assert (await raw.answer())[2] == b"made of bytes"
    await raw.close()


async def test_a_deferred_answer_is_computed_in_a_thread(port, world):
    threads = []

    def compute():
        threads.append(threading.current_thread())
        return text(b"slow")

    world.answers["1.4"] = lambda: Deferred(lambda: Deferred(compute))
    raw = await Raw.connect(port)
    await raw.send(ASKED)
    assert (await raw.answer())[2] == b"slow"
    assert threads[0] is not threading.main_thread()
    await raw.close()


async def test_no_thread_waits_for_the_future_of_a_deferred_answer(port, world):
    work, answers = Work(world), [await Raw.connect(port) for _ in range(100)]
    world.answers["1.4"] = lambda: Deferred(work.compute)
    for raw in answers:
        await raw.send(ASKED)
    await eventually(lambda: len(work.threads) == len(answers))
    await asyncio.sleep(0)
    work.future.set_result(b"bytes")
    for raw in answers:
        assert (await raw.answer())[2] == b"made of bytes"
        await raw.close()


async def test_the_error_of_a_deferred_answer_is_the_answer(port, world):
    def fail():
        raise NotFound("it is gone")

    world.answers["1.4"] = lambda: Deferred(fail)
    raw = await Raw.connect(port)
    await raw.send(ASKED)
    assert (await raw.answer())[0] == 404
    await raw.close()

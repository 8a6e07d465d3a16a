"""Short bodies on their way to the thread that stores them together."""

import asyncio
import threading

import pytest
from web_world import Recorder, World

from streamsrv.errors import BadRequest
from streamsrv.ingest.response import StoreResult
from streamsrv.ingest.together import MOST_TOGETHER, ShortBody
from streamsrv.web.gathering import Gathering
from streamsrv.web.stow import ShortUpload


class Parser:
    """Stands in for a MultipartParser: the word that is the body is the only event."""

    more = False

    def feed(self, chunk, size, *, most):
        if chunk[:size] == b"malformed":
            raise BadRequest("malformed")
        self.more = chunk[:size] == b"many"
        return [bytes(chunk[:size])]


class Thread:
    """Stands in for Together: waits inside `store` until it is let go."""

    def __init__(self):
        self.groups = []
        self.threads = set()
        self.go = threading.Event()
        self.error = None

    def store(self, bodies):
        self.groups.append(list(bodies))
        self.threads.add(threading.get_ident())
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        for each in bodies:
            each.result = StoreResult()


def body_of():
    return ShortBody(Parser(), "", None)


async def test_what_comes_meanwhile_is_stored_together():
    thread = Thread()
    gathering = Gathering(thread.store)
    futures = [gathering.add(body_of())]
    while not thread.groups:
        await asyncio.sleep(0.001)
    futures += [gathering.add(body_of()) for _ in range(MOST_TOGETHER + 2)]
    thread.go.set()
    await asyncio.wait_for(asyncio.gather(*futures), 10)
    assert [len(group) for group in thread.groups] == [1, MOST_TOGETHER, 2]
    assert len(thread.threads) == 1
    assert threading.get_ident() not in thread.threads
    gathering.close()


async def test_who_has_left_harms_nobody():
    thread = Thread()
    gathering = Gathering(thread.store)
    futures = [gathering.add(body_of()) for _ in range(3)]
    futures[1].cancel()
    thread.go.set()
    await asyncio.wait_for(asyncio.gather(futures[0], futures[2]), 10)
    gathering.close()


async def test_a_bug_is_told_to_those_whom_it_hit():
    thread = Thread()
    gathering = Gathering(thread.store)
    thread.error = ZeroDivisionError()
    thread.go.set()
    body = body_of()
    await asyncio.wait_for(gathering.add(body), 10)
    assert body.error is thread.error
    thread.error = None
    again = body_of()
    await asyncio.wait_for(gathering.add(again), 10)
    assert (again.error, again.result) == (None, StoreResult())
    gathering.close()


async def test_without_a_body_there_is_no_thread():
    before = threading.active_count()
    gathering = Gathering(Thread().store)
    assert threading.active_count() == before
    gathering.close()


class Uploads:
    """Makes uploads of short bodies; knows the receivers that they fell back on, and buffers given back."""

    def __init__(self, pool):
        self.world, self.given = World(), []
        self._pool = pool
        self.gathering = Gathering(self._store)

    def _store(self, bodies):
        for each in bodies:
            if each.events == [b"refused"]:
                each.error = BadRequest("refused")
            else:
                each.result = StoreResult()

    def _begin(self):
        self.world.recorders.append(Recorder(self.world))
        return self.world.recorders[-1]

    def make(self, payload):
        made = ShortUpload(self._pool, self._begin, self.gathering, body_of())
        made.arrived(bytearray(payload + b"more"), len(payload), self.given.append)
        return made


async def test_the_buffer_is_given_back_in_the_end(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"stored")
    await short.begin()
    assert await short.finish() == StoreResult()
    assert uploads.given == [b"storedmore"]
    await short.abort()
    assert not uploads.world.recorders
    uploads.gathering.close()


async def test_a_refusal(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"refused")
    await short.begin()
    with pytest.raises(BadRequest):
        await short.finish()
    await short.abort()
    assert (len(uploads.given), uploads.world.recorders) == (1, [])
    uploads.gathering.close()


async def test_what_is_not_short_after_all_is_taken_alone(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"many")
    await short.begin()
    await short.finish()
    assert (uploads.world.stored, len(uploads.given)) == ([b"many"], 1)
    uploads.gathering.close()


async def test_a_malformed_body_is_refused_when_it_has_arrived(http_server):
    uploads = Uploads(http_server.app.pool)
    with pytest.raises(BadRequest):
        uploads.make(b"malformed")
    assert uploads.gathering._thread is None

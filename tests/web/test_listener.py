"""Accepting: one a turn, none over the limit, none without descriptors."""

import asyncio
import errno
import os
import socket

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of, text

from streamsrv.web import listener
from streamsrv.web.listener import Acceptor, Server

HEAD = b"GET /v2/studies/1.2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Failing:
    """A listening socket whose accept fails in a given way, a given number of times."""

    def __init__(self, real, fault, times):
        self.real, self.fault, self.times = real, fault, times

    def accept(self):
        if self.times:
            self.times -= 1
            raise OSError(self.fault, os.strerror(self.fault))
        return self.real.accept()

    def __getattr__(self, name):
        return getattr(self.real, name)


@pytest.fixture
def bound():
    with socket.create_server(("127.0.0.1", 0)) as real:
        yield real


async def served(raw):
    await raw.send(HEAD)
    return (await raw.answer())[2] == b"hello"


async def test_over_the_limit_newcomers_wait(http_server, bound):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=2)
    acceptor.start()
    port = bound.getsockname()[1]
    first, second, third = [await Raw.connect(port) for _ in range(3)]
    assert await served(first)
    assert await served(second)
    await third.send(HEAD)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(third.reader.readexactly(1), 0.1)
    await first.close()
    assert (await third.answer())[2] == b"hello"
    acceptor.stop()
    acceptor.start()  # stays stopped
    fourth = await Raw.connect(port)
    await fourth.send(HEAD)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(fourth.reader.readexactly(1), 0.1)


@pytest.mark.parametrize("fault", sorted(listener.NO_DESCRIPTORS))
async def test_without_descriptors_it_tries_again_later(http_server, bound, monkeypatch, fault):
    monkeypatch.setattr(listener, "PAUSE", 0.05)
    failing = Failing(bound, fault, 2)
    acceptor = Acceptor([failing], Server(http_server.app, settings_of()), limit=10)
    acceptor.start()
    raw = await Raw.connect(bound.getsockname()[1])
    assert await served(raw)
    assert failing.times == 0
    acceptor.stop()


@pytest.mark.parametrize("fault", [errno.ECONNABORTED, errno.EAGAIN])
async def test_a_client_that_has_gone_is_nobodys_fault(http_server, bound, fault):
    acceptor = Acceptor([Failing(bound, fault, 1)], Server(http_server.app, settings_of()), limit=10)
    acceptor.start()
    assert await served(await Raw.connect(bound.getsockname()[1]))
    acceptor.stop()


async def test_other_faults_of_accept_are_not_hidden(http_server, bound):
    acceptor = Acceptor([], Server(http_server.app, settings_of()), limit=10)
    with pytest.raises(OSError, match="Input/output"):
        acceptor._accept(Failing(bound, errno.EIO, 1))


async def test_one_of_several_workers_stands_back_after_each_connection(http_server, bound):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=10, alone=False)
    acceptor.start()
    port = bound.getsockname()[1]
    clients = [await Raw.connect(port) for _ in range(10)]
    for raw in clients:
        assert await served(raw)
    assert not acceptor._accepting  # full
    await clients[0].close()
    assert await served(await Raw.connect(port))
    acceptor.stop()


async def test_who_has_shut_its_side_counts_until_it_is_answered(http_server, bound, world):
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow():
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(DEADLINE)
        return text(b"slow")

    world.answers["metadata"] = slow
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=1)
    acceptor.start()
    port = bound.getsockname()[1]
    first, second = await Raw.connect(port), await Raw.connect(port)
    await first.send(HEAD.replace(b"1.2", b"1.2/metadata"))
    first.writer.write_eof()
    await second.send(HEAD)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(second.reader.readexactly(1), 0.1)
    gate.set()
    assert (await first.answer())[2] == b"slow"
    assert (await second.answer())[2] == b"hello"
    acceptor.stop()


async def test_the_watch_forgets_connections_that_ended(http_server, port):
    for _ in range(5):
        raw = await Raw.connect(port)
        assert await served(raw)
        await raw.close()
    await eventually(lambda: not http_server.app.watch.waiting())


async def test_a_flood_of_pipelined_requests_is_held_back(http_server, port, world):
    """While an answer is being made, what else arrives stays in the kernel: no memory of ours holds it."""
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow():
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(DEADLINE)
        return text(b"slow")

    async def flood():
        while True:
            await raw.send(HEAD * 2000)

    world.answers["metadata"] = slow
    raw = await Raw.connect(port)
    await raw.send(b"GET /v2/studies/1.2/metadata HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: world.requests)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(flood(), 0.3)
    gate.set()
    assert (await raw.answer())[2] == b"slow"
    assert (await raw.answer())[2] == b"hello"
    raw.writer.transport.abort()

"""Accepting: one a turn, none over the limit, none without descriptors."""

import asyncio
import errno
import os
import socket

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of, text

from streamsrv.web.connection import listener
from streamsrv.web.connection.listener import Acceptor, Server
from streamsrv.web.hosts import Hosts
from streamsrv.wire.answers import Deferred

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


@pytest.fixture
def gate(world):
    """Until it is set, metadata are being made."""
    opened, loop = asyncio.Event(), asyncio.get_event_loop()

    def slow():
        asyncio.run_coroutine_threadsafe(opened.wait(), loop).result(DEADLINE)
        return text(b"slow")

    world.answers["metadata"] = lambda: Deferred(slow)
    return opened


SLOW = HEAD.replace(b"1.2", b"1.2/metadata")


async def test_at_the_limit_a_newcomer_replaces_who_waited_longest(http_server, bound):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=2)
    acceptor.start()
    port = bound.getsockname()[1]
    first, second = [await Raw.connect(port) for _ in range(2)]
    await first.send(HEAD[:-2])
    assert await served(second)
    third = await Raw.connect(port)
    assert await served(third)
    assert await first.rest() == b""
    assert await served(second)
    fourth = await Raw.connect(port)
    assert await served(fourth)
    assert await third.rest() == b""
    assert await served(second)
    acceptor.stop()
    acceptor.start()  # stays stopped
    fifth = await Raw.connect(port)
    await fifth.send(HEAD)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(fifth.reader.readexactly(1), 0.1)


async def test_where_no_connection_waits_newcomers_do(http_server, bound, world, gate):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=2)
    acceptor.start()
    port = bound.getsockname()[1]
    busy = [await Raw.connect(port) for _ in range(2)]
    for raw in busy:
        await raw.send(SLOW)
    await eventually(lambda: len(world.requests) == 2)
    third = await Raw.connect(port)
    await third.send(HEAD)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(third.reader.readexactly(1), 0.1)
    gate.set()
    assert (await third.answer())[2] == b"hello"
    acceptor.stop()


async def from_address(address, port):
    return Raw(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))


async def test_a_client_replaces_its_own_connections(http_server, bound):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=10, share=2)
    acceptor.start()
    port = bound.getsockname()[1]
    other = await from_address("127.0.0.2", port)
    assert await served(other)
    crowd = [await from_address("127.0.0.3", port) for _ in range(5)]
    for raw in crowd[:3]:
        assert await raw.rest() == b""
    for raw in (other, *crowd[3:]):
        assert await served(raw)
    await eventually(lambda: acceptor._open == 3)
    acceptor.stop()


async def test_a_client_whose_connections_are_all_busy_is_turned_away(
    http_server, bound, world, gate, caplog
):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=10, share=2)
    acceptor.start()
    port = bound.getsockname()[1]
    busy = [await Raw.connect(port) for _ in range(2)]
    for raw in busy:
        await raw.send(SLOW)
    await eventually(lambda: len(world.requests) == 2)
    status, headers, body = await (await Raw.connect(port)).answer()
    assert (status, headers["connection"], headers["retry-after"]) == (429, "close", "2")
    assert b"too many connections of this client" in body
    assert await served(await from_address("127.0.0.2", port))
    gate.set()
    assert (await busy[0].answer())[2] == b"slow"
    assert await served(busy[0])
    acceptor._report()
    assert "0 were closed for newer ones, 1 were turned away" in caplog.text
    acceptor.stop()


async def test_a_trusted_proxy_has_no_share(http_server, bound):
    server = Server(http_server.app, settings_of())
    server.app._hosts = Hosts(settings_of(trusted_proxies=("127.0.0.0/8",)))
    acceptor = Acceptor([bound], server, limit=10, share=2)
    acceptor.start()
    crowd = [await Raw.connect(bound.getsockname()[1]) for _ in range(5)]
    for raw in crowd:
        assert await served(raw)
    acceptor.stop()


async def test_without_descriptors_waiting_connections_make_room(http_server, bound, monkeypatch):
    monkeypatch.setattr(listener, "PAUSE", 60)
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=10)
    acceptor.start()
    idle = [await Raw.connect(bound.getsockname()[1]) for _ in range(2)]
    for raw in idle:
        assert await served(raw)
    acceptor._accept(Failing(bound, errno.EMFILE, 1))
    for raw in idle:
        assert await raw.rest() == b""
    assert await served(await Raw.connect(bound.getsockname()[1]))
    acceptor.stop()


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
    assert await served(await Raw.connect(port))
    acceptor.stop()


async def test_who_has_shut_its_side_counts_until_it_is_answered(http_server, bound, world, gate):
    acceptor = Acceptor([bound], Server(http_server.app, settings_of()), limit=1)
    acceptor.start()
    port = bound.getsockname()[1]
    first = await Raw.connect(port)
    await first.send(SLOW)
    first.writer.write_eof()
    await eventually(lambda: world.requests)
    second = await Raw.connect(port)
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

    world.answers["metadata"] = lambda: Deferred(slow)
    raw = await Raw.connect(port)
    await raw.send(b"GET /v2/studies/1.2/metadata HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: world.requests)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(flood(), 0.3)
    gate.set()
    assert (await raw.answer())[2] == b"slow"
    assert (await raw.answer())[2] == b"hello"
    raw.writer.transport.abort()

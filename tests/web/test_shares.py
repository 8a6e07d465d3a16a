"""Shares of principals in one worker: a greedy client and a modest one."""

import asyncio
import socket
import threading
import time

import pytest
from web_world import DEADLINE, Raw, Recorder, eventually, settings_of, text

from streamsrv.errors import TooManyRequests
from streamsrv.web.access.grants import KEY, Grant, digest_of, grants_in, new_key
from streamsrv.web.access.principal import ALL_RIGHTS
from streamsrv.web.connection.listener import Acceptor, Server
from streamsrv.web.connection.loop import Threads
from streamsrv.web.connection.shares import ThreadShares
from streamsrv.wire.answers import Deferred

SHARE, WAITING, UPLOADS = 2, 32, 8


@pytest.fixture
def keys(tmp_path):
    """Secrets of two principals."""
    grants, keys = grants_in(tmp_path), {name: new_key() for name in ("greedy", "modest")}
    with grants.changing() as change:
        for name, key in keys.items():
            change.write(Grant(KEY, name, digest_of(key), ALL_RIGHTS, None, time.time()))
    return keys


@pytest.fixture
def settings(tmp_path, keys):
    return settings_of(
        allowed_hosts=("h",),
        data=str(tmp_path),
        auth="required",
        trusted_proxies=("127.0.0.1",),
        client_threads=SHARE,
        max_uploads=UPLOADS,
    )


class Client:
    """A principal that asks through a proxy, from an address."""

    def __init__(self, port, key, address):
        self.port, self.key, self.address = port, key, address

    async def send(self, line, *headers, body=b""):
        raw = await Raw.connect(self.port)
        lines = (
            f"{line} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {self.key}",
            f"X-Forwarded-For: {self.address}",
            *headers,
        )
        await raw.send("\r\n".join((*lines, "", "")).encode() + body)
        return raw

    async def ask(self, line, *headers, body=b""):
        return await (await self.send(line, *headers, body=body)).answer()


@pytest.fixture
def slow(world):
    """Metadata take until the gate opens. Yields the gate and the parties whose requests are in threads."""
    gate, running = threading.Event(), []

    def compute(request):
        running.append(request.requester.address)
        gate.wait(DEADLINE)
        return text(b"slow")

    world.answers["metadata"] = lambda: Deferred(lambda request=world.requests[-1][0]: compute(request))
    yield gate, running
    gate.set()


METADATA, FAST = "GET /v2/studies/1.2/metadata", "GET /v2/studies/1.2"


async def test_a_greedy_principal_leaves_the_threads_to_another_one(port, keys, slow, http_server):
    """Both come from one address; the greedy one comes from several others, too."""
    gate, running = slow
    greedy = [
        await Client(port, keys["greedy"], f"192.0.2.{number % 3 + 1}").send(METADATA)
        for number in range(SHARE + WAITING)
    ]
    await eventually(lambda: http_server.app.threads.waiting == WAITING)
    assert running == ["key:greedy"] * SHARE
    status, headers, body = await Client(port, keys["greedy"], "192.0.2.9").ask(METADATA)
    assert (status, headers["retry-after"]) == (429, "1")
    assert b"32 requests of this client are waiting" in body
    assert (await Client(port, keys["greedy"], "192.0.2.1").ask(FAST))[0] == 200
    modest = await Client(port, keys["modest"], "192.0.2.1").send(METADATA)
    await eventually(lambda: running[SHARE:] == ["key:modest"])
    gate.set()
    for raw in (*greedy, modest):
        assert (await raw.answer())[2] == b"slow"
    assert len(running) == SHARE + WAITING + 1
    assert http_server.app.threads.waiting == 0


async def test_a_client_that_leaves_while_it_waits_stops_no_other(port, keys, slow, http_server):
    gate, running = slow
    greedy = [await Client(port, keys["greedy"], "192.0.2.1").send(METADATA) for _ in range(SHARE + 3)]
    await eventually(lambda: http_server.app.threads.waiting == 3)
    await greedy.pop().close()
    gate.set()
    for raw in greedy:
        assert (await raw.answer())[2] == b"slow"
    await eventually(lambda: http_server.app.active == 0)
    assert len(running) == SHARE + 3


async def test_uploads_are_shared_by_principal(port, keys, world, monkeypatch):
    begun = threading.Event()
    begin = Recorder.begin
    monkeypatch.setattr(Recorder, "begin", lambda self: begun.wait(DEADLINE) and begin(self))
    post = ("POST /v2/studies", "Content-Type: application/dicom", "Content-Length: 100000")
    body, share = bytes(100_000), UPLOADS - UPLOADS // 4
    sent = [
        await Client(port, keys["greedy"], f"192.0.2.{number}").send(*post, body=body)
        for number in range(share)
    ]
    await eventually(lambda: len(world.recorders) == share)
    status, headers, answer = await Client(port, keys["greedy"], "192.0.2.200").ask(*post, body=body)
    assert (status, headers["retry-after"]) == (429, "2")
    assert b"6 uploads of this client" in answer
    sent.append(await Client(port, keys["modest"], "192.0.2.1").send(*post, body=body))
    begun.set()
    assert [(await raw.answer())[2] for raw in sent] == [b"stored 100000"] * (share + 1)


def test_a_thread_that_cannot_be_started_fails_its_call():
    async def run():
        threads = Threads(1, "closed")
        threads.shutdown()
        shares, failed = ThreadShares(threads, 1, 1), []
        for _ in range(2):
            shares.submit("a", lambda: 1, pytest.fail, failed.append)
        with pytest.raises(TooManyRequests):
            shares.submit("a", lambda: 1, pytest.fail, failed.append)
        await asyncio.sleep(0.01)
        assert [type(error) for error in failed] == [RuntimeError] * 2
        assert shares.waiting == 0

    asyncio.run(run())


async def test_connections_count_for_the_principal_of_their_last_request(http_server, keys, slow):
    """The greedy one has its share from any number of addresses, and an address holds several principals."""
    gate, running = slow
    with socket.create_server(("127.0.0.1", 0)) as bound:
        acceptor = Acceptor([bound], Server(http_server.app, http_server.app.settings), limit=20, share=3)
        acceptor.start()
        port = bound.getsockname()[1]

        async def connect(address, name, line=FAST):
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
            await raw.send(
                f"{line} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {keys[name]}\r\n\r\n".encode()
            )
            return raw

        idle = [await connect(f"127.0.0.{number}", "greedy") for number in range(2, 5)]
        assert [(await raw.answer())[0] for raw in idle] == [200] * 3
        busy = []
        for number in range(5, 8):  # each replaces the connection that has waited longest
            busy.append(await connect(f"127.0.0.{number}", "greedy", METADATA))
            await eventually(lambda: len(running) + http_server.app.threads.waiting == len(busy))
            assert await asyncio.wait_for(idle[number - 5].reader.read(), DEADLINE) == b""
        refused = await connect("127.0.0.8", "greedy")
        status, headers, body = await refused.answer()
        assert (status, headers["retry-after"]) == (429, "2")
        assert b"too many connections of this client" in body
        modest = [await connect("127.0.0.5", "modest") for _ in range(3)]
        assert [(await raw.answer())[0] for raw in modest] == [200] * 3
        gate.set()
        assert [(await raw.answer())[0] for raw in busy] == [200] * 3
        again = await connect("127.0.0.9", "greedy")
        assert (await again.answer())[0] == 200
        acceptor.stop()


async def test_a_preflight_leaves_a_connection_in_the_share_of_its_address(http_server):
    """A client could hold any number of connections otherwise, and would close those of others."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        acceptor = Acceptor([bound], Server(http_server.app, http_server.app.settings), limit=20, share=3)
        acceptor.start()
        port, preflight = bound.getsockname()[1], b"Access-Control-Request-Method: GET\r\n"

        async def connect(address):
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
            await raw.send(b"OPTIONS /v2/studies HTTP/1.1\r\nHost: h\r\n%b\r\n" % preflight)
            assert (await raw.answer())[0] == 204
            return raw

        other = await connect("127.0.0.3")
        opened = [await connect("127.0.0.2") for _ in range(5)]
        for raw in opened[:2]:  # replaced by the last two
            assert await raw.reader.read() == b""
        await other.send(b"OPTIONS /v2/studies HTTP/1.1\r\nHost: h\r\n%b\r\n" % preflight)
        assert (await other.answer())[0] == 204
        acceptor.stop()

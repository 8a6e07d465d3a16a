"""The server's end of a connection, by itself."""

import asyncio
import socket

import pytest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

from streamsrv.web.connection.closing import send_last
from streamsrv.web.connection.stream import CHUNK, Stream
from streamsrv.web.sending.response import Outgoing
from streamsrv.wire.answers import Answer

REFUSAL = Outgoing(Answer(400), (), method="GET", version="HTTP/1.1", keep_alive=False, date="")


def test_a_stream_that_has_ended_is_too_late_to_be_held():
    """The end may be read before what came with it is looked at: then nobody can be told any more."""

    async def run():
        theirs, ours = socket.socketpair()
        stream = Stream(ours)
        theirs.close()
        with pytest.raises(StreamClosedError):
            await stream.read_bytes(1)
        stream.hold()
        assert not stream.half_closed
        await send_last(stream, REFUSAL)
        stream.let_go()

    asyncio.run(run())


def test_a_stream_that_is_held_can_be_written_to_until_it_is_let_go():
    async def run():
        theirs, ours = socket.socketpair()
        stream = Stream(ours)
        stream.hold()
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(StreamClosedError):
            await stream.read_bytes(1)
        assert stream.half_closed
        await send_last(stream, REFUSAL)
        stream.let_go()
        assert not stream.half_closed
        with theirs:
            assert theirs.recv(1000).startswith(b"HTTP/1.1 400 ")
            assert theirs.recv(1000) == b""

    asyncio.run(run())


def test_a_stream_that_pauses_lets_the_loop_rest():
    async def run():
        near, far = socket.socketpair()
        stream, asked = Stream(near), []
        stream.read_from_fd = lambda buffer: asked.append(1) or Stream.read_from_fd(stream, buffer)
        stream.show_first = lambda *_: False
        head = stream.read_until_regex(b"\r\n\r\n")
        stream.pause()
        far.send(b"GET\r\n\r\n")
        await asyncio.sleep(0.05)
        assert len(asked) <= 2
        stream.resume()
        assert await asyncio.wait_for(head, 10.0) == b"GET\r\n\r\n"
        stream.close()
        far.close()

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET"])
def test_a_paused_stream_tells_that_its_client_has_shut_its_side(sent):
    """Although it was told of what had been read meanwhile; what was sent behind a request hides it."""

    async def run():
        near, far = socket.socketpair()
        stream, told = Stream(near), []
        stream.shut = lambda: told.append(1)
        stream.show_first = lambda *_: False
        stream.read_until_regex(b"\r\n\r\n")
        stream.pause()
        stream._handle_events(near.fileno(), IOLoop.READ)
        await asyncio.sleep(0.01)
        far.sendall(sent)
        far.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        assert told == [1] * (not sent)
        stream.close()
        far.close()

    asyncio.run(run())


def test_a_stream_that_paused_goes_on_writing():
    """Although it stood in the loop as one that waits to write, when it did no more."""

    async def run():
        near, far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        far.settimeout(0)
        stream = Stream(near)
        stream.show_first = lambda *_: False
        stream.read_until_regex(b"\r\n\r\n")
        stream.write(bytes(50000))
        while stream.writing():
            far.recv(1 << 16)
            stream.write(b"")
        stream.pause()
        far.send(b"GET")
        await asyncio.sleep(0.05)
        stream.resume()
        stream.write(bytes(50000))
        left = 50000
        while left:
            left -= len(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 1 << 16), 10.0))
        stream.close()
        far.close()

    asyncio.run(run())


def test_tornado_has_what_the_stream_uses():
    async def run():
        near, far = socket.socketpair()
        stream = IOStream(near)
        assert callable(stream._handle_events)
        assert (stream._read_buffer, stream._read_buffer_size, stream._state) == (bytearray(), 0, None)
        head = stream.read_until_regex(b"\n")
        assert stream._state == stream.io_loop.READ | stream.io_loop.ERROR
        far.send(b"one\ntwo")
        assert await asyncio.wait_for(head, 10.0) == b"one\n"
        assert (stream._read_buffer, stream._read_buffer_size) == (bytearray(b"two"), 3)
        assert stream._consume(3) == b"two"
        assert (stream._read_buffer, stream._read_buffer_size) == (bytearray(), 0)
        stream.close()
        far.close()

    asyncio.run(run())


async def test_the_buffer_holds_what_arrives_before_a_body_is_awaited(http_server):
    """The head has come with 64 kB of the body. The loop reads once more before the body is awaited."""
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    stream = Stream(ours, max_buffer_size=http_server.max_buffer_size, read_chunk_size=CHUNK)
    stream.show_first = lambda request, batch: False
    first = stream.read_until_regex(b"\r\n\r\n")
    theirs.send(b"GET / HTTP/1.1\r\n\r\n")
    await first
    sent = theirs.send(b"POST / HTTP/1.1\r\n\r\n" + bytes(200_000))
    assert sent > 3 * CHUNK
    head = await stream.read_until_regex(b"\r\n\r\n")
    await asyncio.sleep(0.01)
    assert not stream.closed()
    stream.max_buffer_size = 1 << 20
    assert await stream.read_into(bytearray(sent - len(head))) == sent - len(head)
    stream.close()
    theirs.close()

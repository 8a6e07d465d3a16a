"""The server's end of a connection, by itself."""

import asyncio
import socket

import pytest
from tornado.iostream import StreamClosedError

from streamsrv.web.connection.closing import say_last
from streamsrv.web.connection.stream import Stream
from streamsrv.web.sending.response import Outgoing
from streamsrv.wire.answers import Answer


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
        await say_last(stream, Outgoing(Answer(400), (), method="GET", version="HTTP/1.1", keep_alive=False))
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
        await say_last(stream, Outgoing(Answer(400), (), method="GET", version="HTTP/1.1", keep_alive=False))
        stream.let_go()
        assert not stream.half_closed
        with theirs:
            assert theirs.recv(1000).startswith(b"HTTP/1.1 400 ")
            assert theirs.recv(1000) == b""

    asyncio.run(run())

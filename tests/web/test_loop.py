"""The loop of a worker (streamsrv/web/connection/loop.py): who is shown what has come, and when."""

import asyncio
import socket

import pytest

from streamsrv.web.connection.loop import BatchLoop, waiting_here
from streamsrv.web.connection.stream import Stream

END = b"\r\n\r\n"
DEADLINE = 20.0


class World:
    """Streams that await a head, and what each was shown. Those in `known` answer."""

    def __init__(self):
        self.known, self.shown, self.looks, self.read, self.clients = set(), [], [], {}, []

    def connect(self):
        near, far = socket.socketpair()
        stream, number = Stream(near), len(self.clients)
        stream.waiting = waiting_here()
        stream.show_first = lambda asked, look: self.show(number, asked, look)
        self.clients.append((stream, far))
        self.read[number] = asyncio.ensure_future(stream.read_until_regex(END))
        return number

    def show(self, number, asked, look):
        self.shown.append((number, asked))
        self.looks.append(look)
        return number in self.known

    def send(self, number, data):
        self.clients[number][1].send(data)

    def close(self):
        for stream, far in self.clients:
            stream.close()
            far.close()


def in_ours(work):
    async def run():
        world = World()
        try:
            await work(world)
        finally:
            world.close()
        assert waiting_here() == {}

    with asyncio.Runner(loop_factory=BatchLoop) as runner:
        runner.run(run())


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def test_all_that_has_come_is_shown_in_one_look(monkeypatch):
    monkeypatch.setattr(Stream, "_handle_events", lambda *_: pytest.fail("asyncio was told"))

    async def work(world):
        numbers = [world.connect() for _ in range(3)]
        world.known.update(numbers)
        await turns()
        for number in numbers:
            world.send(number, b"GET %d" % number)
        await turns()
        assert sorted(world.shown) == [(number, b"GET %d" % number) for number in numbers]
        assert len({id(look) for look in world.looks}) == 1
        world.send(1, b"again")
        await turns()
        assert world.shown[3:] == [(1, b"again")]
        assert world.looks[3] is not world.looks[0]

    in_ours(work)


def test_all_bytes_are_there_before_the_first_is_looked_at():
    """What is looked up once for all of them is not older than any of them."""

    async def work(world):
        first, second = world.connect(), world.connect()
        world.known.update((first, second))
        await turns()
        taken = []
        streams = [stream for stream, _ in world.clients]
        for stream in streams:
            stream.arrived = lambda stream=stream: taken.append(stream) or Stream.arrived(stream)
            stream.show_first = lambda asked, look: len(taken) == 2
        world.send(first, b"one")
        world.send(second, b"two")
        await turns()
        assert not any(stream._first for stream in streams)
        assert set(taken) == set(streams)

    in_ours(work)


def test_what_nobody_takes_is_read_by_tornado_as_it_came():
    async def work(world):
        known, other = world.connect(), world.connect()
        world.known.add(known)
        await turns()
        world.send(known, b"GET 0" + END)
        world.send(other, b"GET 1" + END + b"more")
        assert await asyncio.wait_for(world.read[other], DEADLINE) == b"GET 1" + END
        assert world.shown.count((other, b"GET 1" + END + b"more")) == 1
        assert (known, b"GET 0" + END) in world.shown
        assert not world.read[known].done()
        world.send(other, END)
        stream = world.clients[other][0]
        assert await asyncio.wait_for(stream.read_until_regex(END), DEADLINE) == b"more" + END

    in_ours(work)


def test_a_stream_that_is_closed_within_a_look_is_shown_nothing():
    async def work(world):
        first, second = world.connect(), world.connect()
        await turns()
        for number, other in ((first, second), (second, first)):
            stream = world.clients[number][0]
            stream.show_first = lambda asked, look, other=other: world.clients[other][0].close() or True
        world.send(first, b"one")
        world.send(second, b"two")
        await turns()
        assert [stream.closed() for stream, _ in world.clients].count(True) == 1
        assert not any(stream._first for stream, _ in world.clients)
        for read in world.read.values():
            read.cancel()

    in_ours(work)


def test_what_goes_wrong_with_one_stream_ends_only_that(caplog):
    async def work(world):
        broken, other = world.connect(), world.connect()
        world.known.add(other)
        await turns()
        streams = [stream for stream, _ in world.clients]
        streams[0].show_first = lambda asked, look: 1 // 0
        world.send(broken, b"GET 0" + END)
        world.send(other, b"GET 1" + END)
        await turns()
        assert [stream.closed() for stream in streams] == [True, False]
        assert (other, b"GET 1" + END) in world.shown

    in_ours(work)
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def test_a_stream_that_pauses_is_shown_nothing_until_it_goes_on():
    async def work(world):
        number = world.connect()
        world.known.add(number)
        stream = world.clients[number][0]
        await turns()
        stream.pause()
        world.send(number, b"GET")
        await turns()
        assert not world.shown
        stream.resume()
        await turns()
        assert world.shown == [(number, b"GET")]

    in_ours(work)


def test_the_end_of_a_connection_is_told_to_tornado():
    async def work(world):
        number = world.connect()
        await turns()
        world.clients[number][1].close()
        with pytest.raises(OSError, match="closed"):
            await asyncio.wait_for(world.read[number], DEADLINE)
        assert not world.shown

    in_ours(work)


def test_another_loop_shows_a_stream_its_bytes_when_it_reads():
    async def run():
        world = World()
        number = world.connect()
        world.known.add(number)
        assert waiting_here() is None
        world.send(number, b"known")
        await asyncio.sleep(0.02)
        world.known.clear()
        world.send(number, b"GET" + END)
        assert await asyncio.wait_for(world.read[number], DEADLINE) == b"GET" + END
        assert world.shown == [(number, b"known"), (number, b"GET" + END)]
        world.close()

    asyncio.run(run())

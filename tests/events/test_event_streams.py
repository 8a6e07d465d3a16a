"""Followers of one worker: their shared reader, a slow one, and their ends. Without a socket."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from events_world import BASE, World, put_together
from small_client import key_of

from streamsrv.errors import BadRequest, IndexUnreachable, NotAcceptable
from streamsrv.events import TailSource
from streamsrv.query.rules import rule_of
from streamsrv.web import event_streams
from streamsrv.web.event_streams import EventStreams
from streamsrv.wire.answers import Request, resolved
from streamsrv.wire.resources import parse_query

DEADLINE = 20.0


class CountedTail:
    """Counts the reads of all tails."""

    def __init__(self, tail, counts):
        self._tail, self._counts = tail, counts
        self.begin = tail.begin

    @property
    def position(self):
        return self._tail.position

    def read(self):
        self._counts.append(self)
        return self._tail.read(10)


class Streams:
    """The followers of a store, in the loop of the test."""

    def __init__(self, world, pool):
        self.world = world
        self.reads, self.begun = [], []
        self.streams = EventStreams(pool)
        self.may = True

    def source(self, view=None):
        def tail():
            return CountedTail(self.world.tail(0, time.time, view), self.reads)

        return TailSource(tail, self.world.store.version, lambda: "e0")

    def follow(self, query="", rule=None, **headers):
        request = Request("GET", "/v2/events", parse_query(query), headers, BASE, 2)
        view = self.world.store.restricted(rule) if rule else None
        begun = self.begun
        answer = resolved(
            self.streams.answer(
                request, rule, self.source(view), lambda: self.may, lambda: begun.append(query)
            )
        )
        assert answer.length is None
        return Reader(answer.live)


class Reader:
    def __init__(self, live):
        self._awake = asyncio.Event()
        self.taking = live.begin(self._awake.set)
        self.text = b""
        self.ended = False

    def take(self):
        piece = self.taking.take()
        self.ended = piece is None
        self.text += piece or b""
        return piece

    async def until(self, condition):
        async with asyncio.timeout(DEADLINE):
            while not (self.take() is None or condition(self)):
                await self._awake.wait()
                self._awake.clear()
        assert condition(self), self.text

    @property
    def sequences(self):
        lines = self.text.decode().split("\n")
        return [json.loads(line[6:])["sequence"] for line in lines if line.startswith("data: ")]


def run(test, world, monkeypatch):
    monkeypatch.setattr(event_streams, "TICK", 0.01)

    async def running():
        with ThreadPoolExecutor(8) as pool:
            streams = Streams(world, pool)
            await test(streams)
            streams.streams.end()

    asyncio.run(running())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "store")
    yield made
    made.store.close()


def stored(world, first, last):
    for ten in range(first, last + 1, 10):
        put_together(world.store, [key_of(1, 1, each) for each in range(ten, min(ten + 10, last + 1))])


def all_of(last, first=1):
    return lambda reader: reader.sequences == list(range(first, last + 1))


def test_followers_share_one_reader(world, monkeypatch):
    async def test(streams):
        readers = [streams.follow() for _ in range(50)]
        for reader in readers:
            await reader.until(lambda reader: b"id: e0.0.0" in reader.text)
        await asyncio.sleep(0.1)
        before = len(streams.reads)
        stored(world, 1, 30)
        for reader in readers:
            await reader.until(all_of(30))
        assert len(streams.reads) - before < 50  # 3 commits, pages of 10
        assert len(streams.streams) == 50
        for reader in readers:
            reader.taking.left()
        assert len(streams.streams) == 0

    run(test, world, monkeypatch)


def test_a_late_client_catches_up_and_joins(world, monkeypatch):
    async def test(streams):
        stored(world, 1, 45)
        first, late = streams.follow("offset=0"), streams.follow(**{"last-event-id": "e0.20.0"})
        await first.until(all_of(45))
        await late.until(all_of(45, first=21))
        stored(world, 46, 60)
        await first.until(all_of(60))
        await late.until(all_of(60, first=21))

    run(test, world, monkeypatch)


def test_a_slow_client_reads_the_log_again(world, monkeypatch):
    """Only the last kilobytes of events are kept, however far a client is behind."""
    monkeypatch.setattr(event_streams, "KEPT", 2_000)

    async def test(streams):
        slow, quick = streams.follow("offset=0"), streams.follow("offset=0")
        stored(world, 1, 5)
        for reader in (slow, quick):
            await reader.until(all_of(5))
        stored(world, 6, 80)
        await quick.until(all_of(80))
        (line,) = streams.streams._lines.values()
        assert sum(len(text) for _, text in line.events) <= 2_000
        await slow.until(all_of(80))

    run(test, world, monkeypatch)


def test_a_lost_place_is_told(world, monkeypatch):
    async def test(streams):
        stored(world, 1, 3)
        for last in ("e1.2.0", "e0.9.0", "9"):
            reader = streams.follow(**{"last-event-id": last})
            await reader.until(lambda reader: b"event: reset" in reader.text)
            assert b"id: e0.3." in reader.text
        stored(world, 4, 4)
        await reader.until(lambda reader: reader.sequences == [3, 4])

    run(test, world, monkeypatch)


def test_a_view_has_a_line_of_its_own(world, monkeypatch):
    async def test(streams):
        seen = streams.follow("offset=0", rule=rule_of(["PatientID=ID 1.2.2"]))
        every = streams.follow("offset=0")
        stored(world, 1, 3)
        world.put(key_of(2, 1, 1))
        await every.until(all_of(4))
        await seen.until(lambda reader: reader.sequences == [4])

    run(test, world, monkeypatch)


def test_ends(world, monkeypatch):
    async def test(streams):
        stored(world, 1, 3)
        short = streams.follow("offset=0&duration=0")
        await short.until(lambda reader: reader.ended)
        assert short.sequences == [1, 2, 3]
        ending = streams.follow("offset=0")
        await ending.until(all_of(3))
        streams.may = False
        await ending.until(lambda reader: reader.ended)
        streams.may = True
        last = streams.follow()
        await last.until(lambda reader: b"id:" in reader.text)
        streams.streams.end()
        await last.until(lambda reader: reader.ended)
        await streams.follow().until(lambda reader: reader.ended)

    run(test, world, monkeypatch)


def test_heartbeats_bring_the_place(world, monkeypatch):
    monkeypatch.setattr(event_streams, "BEAT", 0.05)

    async def test(streams):
        hidden = streams.follow(rule=rule_of(["PatientID=none"]))
        await hidden.until(lambda reader: b"still here" in reader.text)
        stored(world, 1, 2)
        await hidden.until(lambda reader: b"id: e0.2." in reader.text)
        assert hidden.sequences == []

    run(test, world, monkeypatch)


def test_an_error_of_the_store_ends_the_stream(world, monkeypatch):
    """At its begin it is the answer."""

    async def test(streams):
        def broken(*_):
            raise IndexUnreachable("away")

        follows = streams.follow("offset=0")
        await follows.until(lambda reader: b"id: " in reader.text)
        monkeypatch.setattr(world.store, "latest_change", broken)
        await follows.until(lambda reader: reader.ended)
        for query in ("", "offset=0"):
            with pytest.raises(IndexUnreachable):
                streams.follow(query)
        assert streams.begun == ["offset=0"]

    run(test, world, monkeypatch)


def test_refusals(world, monkeypatch):
    async def test(streams):
        for query in ("duration=x", "duration=86401", "duration=-1", "offset=x"):
            with pytest.raises(BadRequest, match=query.partition("=")[0]):
                streams.follow(query)
        with pytest.raises(BadRequest, match="Last-Event-ID"):
            streams.follow(**{"last-event-id": "e0.1.1.1"})
        with pytest.raises(NotAcceptable):
            streams.follow(accept="application/json")

    run(test, world, monkeypatch)

"""Cached frames of a store on other machines, over real sockets: the same bytes as in any way, from a version
of the index that was asked after the request, in threads."""

import threading
from collections import Counter

import pytest
from object_world import reading_objects, upload
from obstore.store import MemoryStore
from test_fast_path import (
    CACHED,
    LARGE,
    NATIVE,
    PLAIN,
    SHOWN,
    SLICES,
    SMALL,
    SPARE,
    TILES,
    WIDE,
    WIDE_TILES,
    Connection,
    Worker,
    World,
    comparable,
    eventually,
    get,
    shown,
)

from streamsrv.errors import BucketUnreachable, IndexUnreachable
from streamsrv.store.objects.bucket import Bucket


class WatchedBucket(Bucket):
    def __init__(self, store):
        super().__init__(store, store)
        self.gate = threading.Event()
        self.gate.set()
        self.away = False

    def read(self, key, offset, length):
        assert self.gate.wait(20)
        if self.away:
            raise BucketUnreachable("the gateway does not answer")
        return super().read(key, offset, length)


class RemoteWorld(World):
    def __init__(self, folder, cache):
        super().__init__(folder)
        self.local, stored = self.store, MemoryStore()
        self.bucket = WatchedBucket(stored)
        places = upload(stored, self.local.layout)
        self.store, self.cache = reading_objects(self.local, places, cache, self.bucket)
        self.folder = cache

    def end(self):
        self.store = self.local
        super().end()
        self.cache.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    one = RemoteWorld(*(tmp_path_factory.mktemp("remote") / name for name in ("data", "cache")))
    yield one
    one.end()


@pytest.fixture
def start(world):
    running = []

    def begin(way=CACHED):
        running.append(Worker(world, way))
        running[-1].faults.wrapped = lambda found: found
        world.call(running[-1].start)
        return running[-1]

    yield begin
    while Connection.opened:
        Connection.opened.pop().close()
    for one in running:
        one.stop().result(20)


def until_cached(worker, connection, request):
    """The template is found by a thread, after the second answer."""

    def is_cached():
        before = worker.answered.copy()
        connection.ask(request)
        return worker.took(before, 1) == Counter({CACHED: 1})

    eventually(is_cached)


@pytest.fixture
def cached(start):
    worker = start()
    connection = worker.connect()
    for instance in (SMALL, NATIVE, WIDE):
        until_cached(worker, connection, get(instance, 1))
    return worker, connection


def test_the_answers_are_those_of_each_other_way(start, cached):
    worker, connection = cached
    plain = start(PLAIN).connect()
    requests = [get(SMALL, number) for number in range(1, 13)] + [get(NATIVE, number) for number in (1, 2, 3)]
    requests += [get(WIDE, number) for number in (1, 2)]
    before = worker.answered.copy()
    for request in requests * 2:
        assert comparable(connection.ask(request)) == comparable(plain.ask(request))
    assert worker.took(before, 2 * len(requests)) == Counter({CACHED: 2 * len(requests)})
    others = [get(LARGE, 1), shown(1), get(SHOWN, 3), get(SMALL, 13), get(SMALL, "1,2"), get(NATIVE, 4)]
    for request in others * 3:
        assert comparable(connection.ask(request)) == comparable(plain.ask(request))


def test_requests_sent_ahead_are_answered_in_order(cached):
    worker, connection = cached
    numbers = [1, 5, 2, 12, 2, 7]
    before = worker.answered.copy()
    connection.send(*(get(SMALL, number) for number in numbers))
    assert [connection.next_frame() for _ in numbers] == [TILES[number - 1] for number in numbers]
    assert worker.took(before, len(numbers))[CACHED] >= 1


def test_many_connections_share_a_question(cached, world, monkeypatch):
    worker, connection = cached
    asked, gate, version = [], threading.Event(), world.local.index.version

    def watched(*_):
        asked.append(threading.current_thread())
        assert gate.wait(20)
        return version()

    monkeypatch.setattr(world.store, "version", watched)
    others = [worker.connect() for _ in range(8)]
    connection.send(get(SMALL, 1))
    eventually(lambda: asked)
    for number, other in enumerate(others):
        other.send(get(SMALL, number + 1))
    eventually(lambda: len(worker.app._active) == 9)
    gate.set()
    assert connection.next_frame() == TILES[0]
    assert [other.next_frame() for other in others] == TILES[:8]
    assert len(asked) <= 4
    assert threading.main_thread() not in asked
    assert world.thread not in asked


def test_a_frame_that_is_fetched_keeps_no_other_waiting(cached, world, start):
    worker, connection = cached
    for path in world.folder.glob("??/*"):
        path.unlink()
    world.bucket.gate.clear()
    slow, quick = worker.connect(), worker.connect()
    slow.send(get(WIDE, 2))
    quick.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert quick.answer()[0].startswith(b"HTTP/1.1 200")
    world.bucket.gate.set()
    assert slow.next_frame() == WIDE_TILES[1]
    assert connection.frame(get(NATIVE, 2)) == SLICES[1]


def test_a_deleted_instance_is_not_found(cached, world):
    worker, connection = cached
    until_cached(worker, connection, get(SPARE[0], 1))
    assert world.local.delete("1.2.3", "1.2.3.4", SPARE[0]) == 1
    assert connection.ask(get(SPARE[0], 1))[0].startswith(b"HTTP/1.1 404")
    assert connection.frame(get(SMALL, 4)) == TILES[3]


def test_an_index_that_does_not_answer_is_a_status(cached, world, monkeypatch):
    _, connection = cached

    def away(*_):
        raise IndexUnreachable("the database does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "version", away)
        assert connection.frame(get(SMALL, 1)) == TILES[0]  # another way asks the index itself
        patch.setattr(world.store, "instance", away)
        head, _ = connection.ask(get(SMALL, 1))
        assert head.startswith(b"HTTP/1.1 503")
        assert b"\r\nRetry-After: " in head
    assert connection.frame(get(SMALL, 1)) == TILES[0]


def test_a_client_that_leaves_while_its_frame_is_read(cached, world, monkeypatch):
    worker, connection = cached
    gate, version = threading.Event(), world.local.index.version
    monkeypatch.setattr(world.store, "version", lambda *_: gate.wait(20) and version())
    leaves = worker.connect()
    leaves.send(get(SMALL, 2))
    eventually(lambda: worker.app._active)
    leaves.close()
    gate.set()
    eventually(lambda: not worker.app._active)
    assert connection.frame(get(SMALL, 3)) == TILES[2]

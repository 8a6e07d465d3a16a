"""Cached frames of a store on other machines, over real sockets: the same bytes as in any way. If the version
of the index is at hand, they need no thread; else it is asked after the request, in threads."""

import os
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from object_world import reading_objects, upload
from obstore.store import MemoryStore
from test_fast_path import (
    CACHED,
    LARGE,
    NATIVE,
    PICTURES,
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
    get,
    keep,
    part10,
    shown,
)
from waiting import waited

from streamsrv.errors import BucketUnreachable, IndexUnreachable
from streamsrv.metrics import Way
from streamsrv.retrieve.cached_frames import read_frames
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.ordered_map import COMMIT_BITS
from streamsrv.web.fastpath import asking, segments
from streamsrv.wire.answers import Span

KNOWN = Way.KNOWN_HEADERS


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
        self.is_fresh = False
        self.store.version_at_hand = lambda: self.local.version() if self.is_fresh else None

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

    world.is_fresh = False
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

    waited(is_cached)


@pytest.fixture
def cached(start):
    worker = start()
    connection = worker.connect()
    for instance in (SMALL, NATIVE, WIDE):
        until_cached(worker, connection, get(instance, 1))
    return worker, connection


@pytest.fixture(params=["asked", "at hand"])
def version(request, world, cached):
    world.is_fresh = request.param == "at hand"


@pytest.fixture
def fresh(world, cached, monkeypatch):
    """The version is at hand, and a thread that looks a frame up is noted."""
    looked = []

    def noted(group, done):
        looked.append([each.number for each in group])
        read_frames(group, done)

    monkeypatch.setattr(asking, "read_frames", noted)
    world.is_fresh = True
    return looked


def test_the_answers_are_those_of_each_other_way(start, version, cached):
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


def test_frames_at_hand_need_no_thread(fresh, cached):
    worker, connection = cached
    before = worker.answered.copy()
    connection.frame(get(SMALL, 1))  # the first one brings the frame table, and the bytes of all
    frames = [connection.frame(get(SMALL, number)) for number in (1, 2, 7, 12, 2)]
    assert frames == [TILES[number - 1] for number in (1, 2, 7, 12, 2)]
    assert connection.frame(get(NATIVE, 3)) == SLICES[2]
    assert worker.took(before, 7) == Counter({CACHED: 7})
    assert len(fresh) <= 2


def test_long_frames_at_hand_need_no_thread(fresh, cached):
    worker, connection = cached
    until_cached(worker, connection, get(LARGE, 1))
    looked, before = len(fresh), worker.answered.copy()
    for number in (1, 2, 3, 1):
        assert connection.frame(get(LARGE, number)) == PICTURES[number - 1]
    taken = worker.took(before, 4)
    assert taken[CACHED] >= 2  # the bytes of others were not in the cache
    assert len(fresh) <= looked + taken[KNOWN]
    before = worker.answered.copy()
    assert connection.frame(get(LARGE, 2)) == PICTURES[1]
    assert worker.took(before, 1) == Counter({CACHED: 1})


def test_a_commit_is_looked_up_once_for_each_instance(fresh, cached, world):
    _, connection = cached
    connection.frame(get(SMALL, 1))
    keep(world.local, part10("1.2.3.4.99", TILES[:1]))
    before = len(fresh)
    assert [connection.frame(get(SMALL, 1)) for _ in range(3)] == [TILES[0]] * 3
    assert len(fresh) == before + 1


def test_bytes_that_have_left_the_cache_are_fetched_again(fresh, cached, world):
    worker, connection = cached
    assert connection.frame(get(SMALL, 1)) == TILES[0]
    for path in world.folder.glob("??/*"):
        path.unlink()
    worker.call(lambda _: worker.server.fast_path.close())  # nothing is held any more
    assert connection.frame(get(SMALL, 1)) == TILES[0]
    assert [connection.frame(get(SMALL, number)) for number in (3, 4)] == TILES[2:4]


def test_no_question_for_a_version_at_hand_where_bytes_are_fetched(fresh, cached, world, monkeypatch):
    worker, connection = cached
    connection.frame(get(SMALL, 1))
    for path in world.folder.glob("??/*"):
        path.unlink()
    worker.call(lambda _: worker.server.fast_path.close())
    asked = []
    monkeypatch.setattr(world.store, "version", lambda: asked.append(1) or world.local.version())
    before = len(fresh)
    assert connection.frame(get(SMALL, 1)) == TILES[0]
    assert len(fresh) == before + 1
    assert not asked


def test_requests_sent_ahead_are_answered_in_order(version, cached):
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
    waited(lambda: asked)
    for number, other in enumerate(others):
        other.send(get(SMALL, number + 1))
    waited(lambda: len(worker.app._active) == 9)
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


def test_a_deleted_instance_is_not_found(version, cached, world):
    worker, connection = cached
    spare = SPARE[1 if world.is_fresh else 0]
    until_cached(worker, connection, get(spare, 1))
    assert connection.frame(get(spare, 1)) == TILES[0]
    assert world.local.delete("1.2.3", "1.2.3.4", spare) == 1
    assert connection.ask(get(spare, 1))[0].startswith(b"HTTP/1.1 404")
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
    waited(lambda: worker.app._active)
    leaves.close()
    gate.set()
    waited(lambda: not worker.app._active)
    assert connection.frame(get(SMALL, 3)) == TILES[2]


def test_an_answer_that_is_forgotten_while_its_frame_is_read(cached, monkeypatch):
    worker, connection = cached
    whole = comparable(connection.ask(get(SMALL, 1)))
    prepared = worker.server.fast_path.frames._prepared
    assert prepared

    def read(group, done):
        prepared.clear()
        read_frames(group, done)

    monkeypatch.setattr(asking, "read_frames", read)
    for _ in range(2):
        assert comparable(connection.ask(get(SMALL, 1))) == whole


class PartFiles:
    """A lease whose segments are files of `part` bytes. `held` are the parts that are held now."""

    part = 10

    def __init__(self, folder, content):
        self.fetcher, self.held, self.content = self, Counter(), content
        self._files = []
        for at in range(0, len(content), self.part):
            path = folder / str(at)
            path.write_bytes(content[at : at + self.part])
            self._files.append(path.open("rb"))
        self.gone = set()

    def at_hand(self, place):
        number = place.offset // self.part
        assert place.offset % self.part + place.length <= self.part
        if number in self.gone:
            return None
        self.held[number] += 1
        return lambda: self.held.subtract([number])

    def file_at(self, _, offset):
        assert self.held[offset // self.part]
        return self._files[offset // self.part].fileno(), offset % self.part

    def release(self):
        self.held.subtract(["released"])

    def close(self):
        for file in self._files:
            file.close()


def test_frames_in_several_parts_are_read_while_they_are_held(tmp_path, world, monkeypatch):
    lease, frames = PartFiles(tmp_path, content := os.urandom(95)), SimpleNamespace(remote=True)
    monkeypatch.setattr(segments, "MOST_HELD", 3)

    def read():
        opened = segments.OpenSegments(4, 3600, 64)
        assert opened.read(frames, Span(1, 0, 5)) is None  # nobody has opened it
        opened.keep(1, lease, 0)
        for offset, length in [(0, 5), (0, 6), (8, 4), (5, 30), (90, 5), (10, 10), (8, 4), (61, 34), (0, 5)]:
            for _ in range(2):
                assert opened.read(frames, Span(1, offset, length)) == content[offset : offset + length]
            assert set(lease.held.values()) <= {0, 1}
        lease.gone = {2}
        opened.keep(1, lease, 1 << COMMIT_BITS)
        assert opened.read(frames, Span(1, 15, 10)) is None
        assert opened.read(frames, Span(1, 8, 4)) == content[8:12]
        opened.close()

    failed = []

    def guarded():
        try:
            read()
        except BaseException as error:
            failed.append(error)

    world.call(guarded)
    assert failed == []
    lease.close()
    assert +lease.held == Counter()
    assert lease.held["released"] == -2


def test_the_lease_of_another_server_is_replaced(world):
    released = []

    def lease(name):
        return SimpleNamespace(name=name, release=lambda: released.append(name), fetcher=None)

    def keep():
        opened = segments.OpenSegments(4, 3600, 64)
        server = 1 << COMMIT_BITS
        kept = [opened.keep(1, lease(name), version).lease.name for name, version in (("a", 1), ("b", 2))]
        assert (kept, released) == (["a", "a"], ["b"])
        assert opened.keep(1, lease("c"), server).lease.name == "c"
        assert released == ["b", "a"]
        opened.close()

    world.call(keep)
    assert released == ["b", "a", "c"]

"""The cache of a node, filled from a bucket that is memory and counts its reads."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import pytest
from obstore import delete, put
from obstore.store import MemoryStore

from streamsrv.errors import BucketUnreachable, InsufficientStorage, SegmentGone, StoreError
from streamsrv.store.objects import cache as caches
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import MOST_IDLE, ObjectCache, StoredObject
from streamsrv.store.objects.cached_file import CHUNK, CachedFile, chunks_in

SEGMENT, KEY = 4, "segments/ab/abc-00000004"
MIB = 1 << 20
CONTENT = random.Random(1).randbytes(5 * MIB + 1234)


class Counting(Bucket):
    def __init__(self, store):
        super().__init__(store, store)
        self.reads = []
        self.gate = None

    def read(self, key, offset, length):
        self.reads.append((offset, length))
        if self.gate:
            assert self.gate.wait(20)
        return super().read(key, offset, length)


@pytest.fixture
def store():
    made = MemoryStore()
    put(made, KEY, CONTENT)
    return made


@pytest.fixture
def bucket(store):
    return Counting(store)


@pytest.fixture
def cached(bucket, memory):
    """Makes caches of one folder, as the processes of a node do."""
    made = []

    def make(limit=100 * MIB, source=bucket, **options):
        place = StoredObject(KEY, len(CONTENT))
        cache = ObjectCache(memory, limit, source, lambda _: {SEGMENT: place}, **options)
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


def content(lease, offset, length):
    return os.pread(lease.fd(SEGMENT), length, offset)


def test_spans_are_those_of_the_object_in_any_order(cached):
    """Of two processes, whose cache holds a part of it."""
    some, rng = [cached(limit=2 * MIB, window=MIB) for _ in range(2)], random.Random(7)
    for number in range(120):
        offset = rng.randrange(len(CONTENT))
        length = rng.choice([1, 1000, CHUNK, 3 * MIB])
        with some[number % 2].open([SEGMENT]) as lease:
            assert lease.pread(SEGMENT, offset, length) == CONTENT[offset : offset + length]
    assert some[0].used() <= 4 * MIB


def test_ensured_bytes_are_in_the_file_at_their_offset(cached, bucket):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, len(CONTENT) - 10, 10)
        lease.ensure(SEGMENT, 3, 0)
        assert content(lease, len(CONTENT) - 10, 10) == CONTENT[-10:]
    assert len(bucket.reads) == 1
    assert cache.used() <= CHUNK + 8192


def test_neighbours_are_one_read(cached, bucket):
    with cached().open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 5 * CHUNK, 1)
        lease.ensure(SEGMENT, 0, 20 * CHUNK)
        assert content(lease, 0, 20 * CHUNK) == CONTENT[: 20 * CHUNK]
    assert sorted(bucket.reads) == [(0, 5 * CHUNK), (5 * CHUNK, CHUNK), (6 * CHUNK, 14 * CHUNK)]


def test_a_long_span_is_several_reads(cached, bucket, monkeypatch):
    monkeypatch.setattr(caches, "JOINED", 32)
    with cached().open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, len(CONTENT))
    assert sorted(bucket.reads) == [(0, 32 * CHUNK), (32 * CHUNK, len(CONTENT) - 32 * CHUNK)]


def test_a_chunk_is_fetched_once_for_many_threads(cached, bucket):
    cache, found = cached(), []
    bucket.gate = threading.Event()

    def read():
        with cache.open([SEGMENT]) as lease:
            found.append(lease.pread(SEGMENT, 100, 50))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while not bucket.reads and time.monotonic() < until:
        time.sleep(0.001)
    bucket.gate.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT[100:150]] * 8
    assert len(bucket.reads) == 1


def test_a_chunk_that_came_meanwhile_is_not_fetched_again(cached, bucket, monkeypatch):
    """Between a look at the cache and the decision to fetch."""
    reader, look = cached(), caches._missing

    def slow(pin):
        found = look(pin)
        monkeypatch.setattr(caches, "_missing", look)
        with reader.open([SEGMENT]) as other:
            other.pread(SEGMENT, 100, 50)
        return found

    monkeypatch.setattr(caches, "_missing", slow)
    with reader.open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 100, 50) == CONTENT[100:150]
    assert len(bucket.reads) == 1


def test_another_process_and_the_next_one_read_nothing(cached, bucket):
    for _ in range(3):
        with cached().open([SEGMENT]) as lease:
            assert lease.pread(SEGMENT, 0, MIB) == CONTENT[:MIB]
    assert len(bucket.reads) == 1


@pytest.mark.parametrize("offset", [10, 5 * MIB // CHUNK * CHUNK], ids=["first", "last"])
def test_a_damaged_chunk_is_fetched_again(cached, bucket, memory, offset):
    with cached().open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, offset, 10)
    (path,) = memory.glob("??/*")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0\0\0")
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, offset, 10) == CONTENT[offset : offset + 10]
    assert len(bucket.reads) == 2


def test_a_chunk_of_a_writer_that_died_is_not_there(cached, bucket, memory):
    """It wrote the bytes, and no entry."""
    with cached().open([SEGMENT]) as lease:
        os.pwrite(lease.fd(SEGMENT), b"torn", 0)
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]
    assert len(bucket.reads) == 1


def test_a_chunk_of_another_object_is_not_taken(cached, bucket, memory):
    with cached().open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 2 * CHUNK)
        fd, entries = lease.fd(SEGMENT), -(-len(CONTENT) // CHUNK) * CHUNK
        os.pwrite(fd, os.pread(fd, CHUNK, CHUNK), 0)
        os.pwrite(fd, os.pread(fd, 32, entries + 32), entries)
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]


def test_a_file_of_a_wrong_length_begins_again(cached, memory):
    with cached().open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 10)
    (path,) = memory.glob("??/*")
    os.truncate(path, 1000)
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]


def test_pinned_bytes_stay_while_another_process_evicts(cached, memory):
    one, other = cached(), cached(limit=CHUNK)
    with one.open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 2 * CHUNK)
        lease.ensure(SEGMENT, CHUNK, 10)
        with other.open([SEGMENT]) as last:
            for offset in range(2 * CHUNK, 12 * CHUNK, CHUNK):
                last.pread(SEGMENT, offset, 10)
        assert content(lease, 0, 2 * CHUNK) == CONTENT[: 2 * CHUNK]
        assert other.used() <= 4 * CHUNK
    with other.open([SEGMENT]) as last:
        last.pread(SEGMENT, 12 * CHUNK, 10)
        last.pread(SEGMENT, 13 * CHUNK, 10)
    (path,) = memory.glob("??/*")
    assert not {0, 1} & {use.chunk for use in chunks_in(path)}


def test_an_object_larger_than_the_cache_passes_through(cached, bucket):
    cache = cached(limit=MIB, window=MIB // 2)
    most, read = 0, b""
    with cache.open([SEGMENT]) as lease:
        for _, offset, length in lease.windows(SEGMENT, 7, len(CONTENT) - 7):
            read += content(lease, offset, length)
            most = max(most, cache.used())
    assert read == CONTENT[7:]
    assert most <= 3 * MIB


def test_windows_that_are_not_taken_are_given_back(cached):
    cache = cached(limit=MIB, window=MIB // 2)
    lease = cache.open([SEGMENT])
    windows = lease.windows(SEGMENT, 0, len(CONTENT))
    next(windows)
    descriptor = lease.fd(SEGMENT)
    windows.close()
    lease.release()
    lease.release()
    cache.close()  # the thread of the window ahead has ended
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    with cached(limit=1).open([SEGMENT]) as other:
        other.pread(SEGMENT, 5 * MIB, 10)
        assert cache.used() <= CHUNK + 8192


def test_few_objects_stay_open_without_a_lease(bucket, store, memory):
    places = {number: StoredObject(f"{KEY}{number}", 10) for number in range(MOST_IDLE + 3)}
    for place in places.values():
        put(store, place.key, b"0123456789")
    cache = ObjectCache(memory, MIB, bucket, lambda _: places)
    before = len(os.listdir("/proc/self/fd"))
    for number in places:
        with cache.open([number]) as lease:
            assert lease.pread(number, 3, 20) == b"3456789"
    assert len(os.listdir("/proc/self/fd")) == before + MOST_IDLE
    cache.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folder_may_be_deleted_at_any_moment(cached, bucket, memory):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 10)
        shutil.rmtree(memory)
        assert content(lease, 0, 10) == CONTENT[:10]
        assert lease.pread(SEGMENT, MIB, 10) == CONTENT[MIB : MIB + 10]
        with cache.open([SEGMENT]) as fresh:
            assert fresh.fd(SEGMENT) != lease.fd(SEGMENT)
            assert fresh.pread(SEGMENT, 0, 10) == CONTENT[:10]
    assert len(list(memory.glob("??/*"))) == 1


def test_the_least_recently_used_chunks_go_first(cached, memory, monkeypatch):
    cache, now = cached(limit=4 * CHUNK), [1_000_000]
    monkeypatch.setattr(time, "time", lambda: now[0])
    with cache.open([SEGMENT]) as lease:
        for offset in (0, CHUNK, 2 * CHUNK, 0, 3 * CHUNK, 4 * CHUNK):
            lease.pread(SEGMENT, offset, 10)
            now[0] += 100
    (path,) = memory.glob("??/*")
    there = {use.chunk for use in chunks_in(path)}
    assert {0, 4} <= there
    assert 1 not in there


def test_a_segment_that_is_gone(cached, store):
    cache = cached()
    with pytest.raises(SegmentGone):
        cache.open([SEGMENT, 99])
    delete(store, KEY)
    with cache.open([SEGMENT]) as lease, pytest.raises(SegmentGone):
        lease.ensure(SEGMENT, 0, len(CONTENT))


def test_a_bucket_that_does_not_answer_leaves_the_cached_bytes(cached, bucket, monkeypatch):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 10)

    def fail(*_):
        raise BucketUnreachable("reading from the bucket failed")

    monkeypatch.setattr(bucket, "read", fail)
    with cache.open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]
        with pytest.raises(BucketUnreachable):
            lease.pread(SEGMENT, MIB, 10)
    monkeypatch.undo()
    with cache.open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, MIB, 10) == CONTENT[MIB : MIB + 10]


@pytest.mark.parametrize("times", [1, 10])
def test_a_full_disk_evicts_and_tries_once_more(cached, monkeypatch, times):
    cache, whole, left = cached(), CachedFile.put, [times]
    with cache.open([SEGMENT]) as lease:
        lease.ensure(SEGMENT, 0, 8 * CHUNK)

    def full(file, chunk, piece):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(file, chunk, piece)

    monkeypatch.setattr(CachedFile, "put", full)
    with cache.open([SEGMENT]) as lease:
        if times == 1:
            assert lease.pread(SEGMENT, 4 * MIB, 10) == CONTENT[4 * MIB : 4 * MIB + 10]
        else:
            with pytest.raises(InsufficientStorage):
                lease.pread(SEGMENT, 4 * MIB, 10)
    assert cache.used() < 6 * CHUNK


def test_a_disk_that_fails_gets_a_sentence(cached, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    cache = cached()
    with cache.open([SEGMENT]) as lease:
        monkeypatch.setattr(CachedFile, "put", fail)
        with pytest.raises(StoreError, match="writing to the cache"):
            lease.ensure(SEGMENT, 0, 10)
        monkeypatch.setattr(CachedFile, "checks", fail)
        with pytest.raises(StoreError, match="reading the cache"):
            lease.ensure(SEGMENT, 0, 10)
    monkeypatch.setattr(CachedFile, "__init__", fail)
    with pytest.raises(StoreError, match="opening a file"):
        cached().open([SEGMENT])


READS = """
import os, random, sys, time
from pathlib import Path
from obstore.store import LocalStore
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import ObjectCache, StoredObject
folder, seed = Path(sys.argv[1]), sys.argv[2]
store, content = LocalStore(folder), (folder / "object").read_bytes()
places = {4: StoredObject("object", len(content))}
cache = ObjectCache(folder / "cache", 2 << 20, Bucket(store, store), lambda _: places, 1 << 20)
numbers = random.Random(seed)
print("begun", flush=True)
for _ in range(int(sys.argv[3])):
    offset = numbers.randrange(len(content))
    length = min(numbers.choice([1, 200_000, 1 << 20]), len(content) - offset)
    with cache.open([4]) as lease:
        lease.ensure(4, offset, length)
        assert os.pread(lease.fd(4), length, offset) == content[offset : offset + length]
cache.close()
"""


def test_processes_that_die_leave_a_sound_cache(memory):
    """A reader goes on beside others that are killed while they fetch and evict."""
    (memory / "object").write_bytes(CONTENT)

    def reader(seed, times):
        command = [sys.executable, "-c", READS, str(memory), str(seed), str(times)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with reader(0, 600) as steady:
        for seed in range(1, 4):
            with reader(seed, 1_000_000) as victim:
                assert victim.stdout.readline() == "begun\n"
                time.sleep(0.02 * seed)
                victim.kill()
        assert steady.wait(60) == 0
    with reader(9, 50) as last:
        assert last.wait(60) == 0

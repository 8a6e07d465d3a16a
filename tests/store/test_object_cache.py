"""The cache of a node, filled from a bucket that is memory and counts its reads."""

import errno
import gc
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from obstore import delete, put
from obstore.store import MemoryStore

from streamsrv.errors import BucketUnreachable, InsufficientStorage, Overloaded, SegmentGone, StoreError
from streamsrv.store.objects import cache_folder
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.cache_folder import MOST_IDLE, StoredObject
from streamsrv.store.objects.cached_file import CHUNK, CachedFile
from streamsrv.store.rows import Location

SEGMENT, KEY = 4, "segments/ab/abc-00000004"
MIB = 1 << 20
CONTENT = random.Random(1).randbytes(5 * MIB + 1234)


class Counting(Bucket):
    def __init__(self, store):
        super().__init__(store, store, part=MIB)
        self.reads = []
        self.gate = None

    def pieces(self, key, offset, length):
        self.reads.append((offset, length))
        if self.gate:
            assert self.gate.wait(20)
        return super().pieces(key, offset, length)


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

    def make(limit=100 * MIB):
        place = StoredObject(KEY, len(CONTENT))
        cache = ObjectCache(memory, limit, bucket, lambda _: {SEGMENT: place})
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


def hold(lease, offset, length):
    return lease.hold([Location(SEGMENT, offset, length)])


def content(lease, offset, length):
    """Of held bytes in one part."""
    fd, at = lease.file_at(SEGMENT, offset)
    return os.pread(fd, length, at)


def parts_there(memory):
    """The numbers of the parts that have a file."""
    return {int(path.name.rpartition("-")[2], 16) for path in memory.glob("??/*")}


def descriptors():
    gc.collect()  # those of earlier tests
    return len(os.listdir("/proc/self/fd"))


def wait_until(true):
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_spans_are_those_of_the_object_in_any_order(cached):
    """Of two processes, whose cache holds a part of it."""
    some, rng = [cached(limit=2 * MIB) for _ in range(2)], random.Random(7)
    for number in range(120):
        offset = rng.randrange(len(CONTENT))
        length = rng.choice([1, 1000, CHUNK, 3 * MIB])
        with some[number % 2].open([SEGMENT]) as lease:
            assert lease.pread(SEGMENT, offset, length) == CONTENT[offset : offset + length]
    assert some[0].folder.used() <= 4 * MIB


def test_held_bytes_are_in_the_file_of_their_part(cached, bucket):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        releases = [hold(lease, len(CONTENT) - 10, 10), hold(lease, 3, 0), hold(lease, MIB - 5, 10)]
        assert content(lease, len(CONTENT) - 10, 10) == CONTENT[-10:]
        assert content(lease, MIB - 5, 5) + content(lease, MIB, 5) == CONTENT[MIB - 5 : MIB + 5]
        for release in releases:
            release()
    assert len(bucket.reads) == 3
    assert cache.folder.used() <= 3 * CHUNK + 3 * 8192


def test_bytes_behind_the_object_are_refused(cached):
    with cached().open([SEGMENT]) as lease, pytest.raises(StoreError, match="ends before"):
        hold(lease, len(CONTENT) - 5, 6)


def test_neighbours_in_a_part_are_one_read(cached, bucket):
    with cached().open([SEGMENT]) as lease:
        hold(lease, 5 * CHUNK, 1)()
        hold(lease, 0, 20 * CHUNK)()
        assert lease.pread(SEGMENT, 0, 20 * CHUNK) == CONTENT[: 20 * CHUNK]
    expected = [(0, 5), (5, 1), (6, 10), (16, 4)]
    assert sorted(bucket.reads) == [(first * CHUNK, number * CHUNK) for first, number in expected]


def test_a_reader_in_sequence_gets_the_following_chunks_too(cached, bucket):
    with cached().open([SEGMENT]) as lease:
        size = CHUNK // 4
        for offset in range(0, 2 * MIB, size):
            assert lease.pread(SEGMENT, offset, size) == CONTENT[offset : offset + size]
        lease.pread(SEGMENT, 3 * MIB - CHUNK, 10)
        lease.pread(SEGMENT, 3 * MIB - 3 * CHUNK, 10)
        lease.pread(SEGMENT, 3 * MIB - 2 * CHUNK, 10)
    lengths = [length // CHUNK for _, length in bucket.reads]
    assert lengths == [1, 4, 4, 4, 3] * 2 + [1, 1, 1]


def test_a_chunk_is_fetched_once_for_many_threads(cached, bucket):
    cache, found = cached(), []
    bucket.gate = threading.Event()

    def read():
        with cache.open([SEGMENT]) as lease:
            found.append(lease.pread(SEGMENT, 100, 50))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bucket.reads)
    bucket.gate.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT[100:150]] * 8
    assert len(bucket.reads) == 1


def test_a_chunk_that_came_meanwhile_is_not_fetched_again(cached, bucket, monkeypatch):
    """Between a look at the cache and the decision to fetch."""
    reader, look = cached(), CachedFile.missing

    def slow(file, chunks):
        found = look(file, chunks)
        monkeypatch.setattr(CachedFile, "missing", look)
        with reader.open([SEGMENT]) as other:
            other.pread(SEGMENT, 100, 50)
        return found

    monkeypatch.setattr(CachedFile, "missing", slow)
    with reader.open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 100, 50) == CONTENT[100:150]
    assert len(bucket.reads) == 1


def test_another_process_and_the_next_one_read_nothing(cached, bucket):
    for _ in range(3):
        with cached().open([SEGMENT]) as lease:
            assert lease.pread(SEGMENT, 0, MIB) == CONTENT[:MIB]
    assert len(bucket.reads) == 1


def test_bytes_at_hand_are_those_of_open_files(cached, bucket, monkeypatch):
    """Nothing is read to find them."""
    cache, place = cached(), Location(SEGMENT, MIB + 10, CHUNK)
    with cache.open([SEGMENT]) as lease:
        assert lease.at_hand(place) is None
        hold(lease, MIB, 2 * CHUNK)()
    with cached().open([SEGMENT]) as other:  # this process has not compared them
        assert other.at_hand(place) is None
    lease = cache.open([SEGMENT])
    assert lease.at_hand(Location(SEGMENT, MIB - 1, 2)) is None  # in two files
    assert lease.at_hand(Location(SEGMENT, MIB, 2 * CHUNK + 1)) is None
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", None)
        releases = [lease.at_hand(place), lease.at_hand(place)]
    releases[0]()
    assert content(lease, MIB + 10, CHUNK) == CONTENT[MIB + 10 : MIB + 10 + CHUNK]
    releases[1]()
    assert lease.read_here(place) == CONTENT[MIB + 10 : MIB + 10 + CHUNK]
    assert not cache.folder.in_use
    assert len(bucket.reads) == 1


@pytest.mark.parametrize("offset", [10, 5 * MIB // CHUNK * CHUNK], ids=["first", "last"])
def test_a_damaged_chunk_is_fetched_again(cached, bucket, memory, offset):
    with cached().open([SEGMENT]) as lease:
        hold(lease, offset, 10)()
    (path,) = memory.glob("??/*")
    with path.open("r+b") as file:
        file.seek(offset % MIB)
        flipped = file.read(1)[0] ^ 4
        file.seek(offset % MIB)
        file.write(bytes([flipped]))
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, offset, 10) == CONTENT[offset : offset + 10]
    assert len(bucket.reads) == 2


def test_a_chunk_of_a_writer_that_died_is_not_there(cached, bucket):
    """It wrote the bytes, and no check."""
    with cached().open([SEGMENT]) as lease:
        release = hold(lease, CHUNK, 1)
        os.pwrite(lease.file_at(SEGMENT, 0)[0], b"torn", 0)
        release()
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]
    assert len(bucket.reads) == 2


def test_a_chunk_of_another_place_is_not_taken(cached, bucket, memory):
    with cached().open([SEGMENT]) as lease:
        hold(lease, 0, 2 * MIB)()
    first, second = sorted(memory.glob("??/*"))
    second.replace(first)
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]
    assert len(bucket.reads) == 3


def test_a_file_of_a_wrong_length_begins_again(cached, memory):
    with cached().open([SEGMENT]) as lease:
        hold(lease, 0, 10)()
    (path,) = memory.glob("??/*")
    os.truncate(path, 1000)
    with cached().open([SEGMENT]) as lease:
        assert lease.pread(SEGMENT, 0, 10) == CONTENT[:10]


def test_held_bytes_stay_while_another_process_evicts(cached, memory):
    """Their space counts until they are released."""
    one, other = cached(), cached(limit=CHUNK)
    with one.open([SEGMENT]) as lease:
        release = hold(lease, 0, 2 * CHUNK)
        with other.open([SEGMENT]) as last:
            for offset in range(MIB, 5 * MIB, MIB):
                last.pread(SEGMENT, offset, 10)
        assert 0 not in parts_there(memory)
        assert content(lease, 0, 2 * CHUNK) == CONTENT[: 2 * CHUNK]
        assert one.folder.used() - other.folder.used() >= 2 * CHUNK
        before = descriptors()
        release()
        lease.pread(SEGMENT, 0, 10)
        assert descriptors() <= before  # of the new file
    assert one.folder.used() == other.folder.used() <= 3 * CHUNK


def test_bytes_that_wait_in_a_socket_are_those_of_the_object(cached, memory):
    """Their file is evicted after sendfile, and its place in memory used for others."""
    one, other = cached(), cached(limit=CHUNK)
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    near.setblocking(False)
    with near, far, one.open([SEGMENT]) as lease:
        release = hold(lease, 0, MIB)
        sent = os.sendfile(near.fileno(), *lease.file_at(SEGMENT, 7), MIB - 7)
        assert sent > 2 * CHUNK
        release()
        with other.open([SEGMENT]) as last:
            last.pread(SEGMENT, MIB, len(CONTENT))
        one.close()
        assert 0 not in parts_there(memory)
        near.close()
        assert b"".join(iter(lambda: far.recv(MIB), b"")) == CONTENT[7 : 7 + sent]


def test_an_object_larger_than_the_cache_passes_through(cached):
    cache = cached(limit=2 * MIB)
    most, read = 0, b""
    with cache.open([SEGMENT]) as lease:
        for fd, offset, length in lease.windows(SEGMENT, 7, len(CONTENT) - 7):
            read += os.pread(fd, length, offset)
            most = max(most, cache.folder.used())
    assert read == CONTENT[7:]
    assert most <= 4 * MIB


def test_windows_that_are_not_taken_are_given_back(cached):
    cache = cached(limit=MIB)
    lease = cache.open([SEGMENT])
    windows = lease.windows(SEGMENT, 0, len(CONTENT))
    descriptor = next(windows).fd
    windows.close()
    lease.release()
    lease.release()
    cache.close()  # the thread of the window ahead has ended
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    with cached(limit=1).open([SEGMENT]) as other:
        other.pread(SEGMENT, 5 * MIB, 10)
        assert cache.folder.used() <= CHUNK + 8192


def test_few_files_stay_open_without_a_reader(bucket, store, memory):
    places = {number: StoredObject(f"{KEY}{number}", 10) for number in range(MOST_IDLE + 3)}
    for place in places.values():
        put(store, place.key, b"0123456789")
    cache = ObjectCache(memory, MIB, bucket, lambda _: places)
    before = descriptors()
    for number in places:
        with cache.open([number]) as lease:
            assert lease.pread(number, 3, 20) == b"3456789"
    assert descriptors() == before + MOST_IDLE
    cache.close()
    assert descriptors() == before


def test_a_removed_file_is_closed_though_nothing_is_read(cached, memory, monkeypatch):
    monkeypatch.setattr(cache_folder, "SWEEP", 0.01)
    cache, before = cached(), descriptors()
    with cache.open([SEGMENT]) as lease:
        lease.pread(SEGMENT, 0, 10)
        lease.pread(SEGMENT, MIB, 10)
    assert descriptors() == before + 2
    next(memory.glob("??/*")).unlink()
    wait_until(lambda: descriptors() == before + 1)


def test_the_folder_may_be_deleted_at_any_moment(cached, bucket, memory):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        release = hold(lease, 0, 10)
        shutil.rmtree(memory)
        assert content(lease, 0, 10) == CONTENT[:10]
        assert lease.pread(SEGMENT, 0, MIB) == CONTENT[:MIB]  # in the same file
        assert lease.pread(SEGMENT, MIB, 10) == CONTENT[MIB : MIB + 10]
        with cache.open([SEGMENT]) as fresh:
            again = hold(fresh, 0, 10)
            assert fresh.file_at(SEGMENT, 0) != lease.file_at(SEGMENT, 0)
            assert content(fresh, 0, 10) == CONTENT[:10]
            again()
        release()
    assert parts_there(memory) == {0, 1}
    assert not cache.folder.in_use


def test_the_least_recently_used_parts_go_first(cached, memory):
    with cached().open([SEGMENT]) as lease:
        for number in range(4):
            lease.pread(SEGMENT, number * MIB, 10)
    for path in memory.glob("??/*"):
        used = 1_000_000 + int(path.name[-1])
        os.utime(path, (used, used))
    with cached().open([SEGMENT]) as lease:
        lease.pread(SEGMENT, 0, 10)
    with cached(limit=4 * CHUNK).open([SEGMENT]) as lease:
        lease.pread(SEGMENT, 4 * MIB, 10)
    there = parts_there(memory)
    assert {0, 4} <= there
    assert 1 not in there


def test_a_segment_that_is_gone(cached, store):
    cache = cached()
    with pytest.raises(SegmentGone):
        cache.open([SEGMENT, 99])
    delete(store, KEY)
    with cache.open([SEGMENT]) as lease, pytest.raises(SegmentGone, match=f"segment {SEGMENT} "):
        hold(lease, 0, len(CONTENT))
    assert not cache.folder.in_use


@pytest.mark.parametrize("length", [10, MIB], ids=["short", "in pieces"])
def test_an_object_that_is_too_short(cached, store, length):
    """Nothing of it counts as there."""
    put(store, KEY, CONTENT[: 2 * MIB + 5])
    cache = cached()
    for _ in range(2):
        with cache.open([SEGMENT]) as lease, pytest.raises(StoreError, match=f"ends at byte {2 * MIB + 5}"):
            hold(lease, 2 * MIB, length)


def test_a_bucket_that_does_not_answer_leaves_the_cached_bytes(cached, bucket, monkeypatch):
    cache = cached()
    with cache.open([SEGMENT]) as lease:
        hold(lease, 0, 10)()

    def fail(*_):
        raise BucketUnreachable("reading from the bucket failed")

    monkeypatch.setattr(bucket, "pieces", fail)
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
        hold(lease, 0, MIB)()

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
    assert cache.folder.used() < 6 * CHUNK


def test_a_disk_that_fails_gets_a_sentence(cached, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    cache = cached()
    with cache.open([SEGMENT]) as lease:
        monkeypatch.setattr(CachedFile, "put", fail)
        with pytest.raises(StoreError, match="writing to the cache"):
            hold(lease, 0, 10)()
        monkeypatch.setattr(CachedFile, "missing", fail)
        with pytest.raises(StoreError, match="reading the cache"):
            hold(lease, 0, 10)()
    monkeypatch.setattr(CachedFile, "__init__", fail)
    with pytest.raises(StoreError, match="opening a file"), cached().open([SEGMENT]) as lease:
        hold(lease, 0, 10)


@pytest.mark.parametrize("call", ["fstat", "ftruncate"])
def test_a_file_that_cannot_be_opened_leaves_no_descriptor(cached, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    cache, before = cached(), descriptors()
    with monkeypatch.context() as disk, cache.open([SEGMENT]) as lease:
        disk.setattr(os, call, fail)
        with pytest.raises(StoreError, match="opening a file"):
            hold(lease, 0, 10)
    assert descriptors() == before


@pytest.mark.parametrize(("number", "kind"), [(errno.EMFILE, Overloaded), (errno.EACCES, StoreError)])
def test_a_folder_that_cannot_be_measured_gets_a_sentence(cached, monkeypatch, number, kind):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as disk, cached(limit=MIB).open([SEGMENT]) as lease:
        disk.setattr(os, "scandir", fail)
        with pytest.raises(kind):
            hold(lease, 0, 10)


READS = """
import os, random, sys, time
from pathlib import Path
from obstore.store import LocalStore
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.cache_folder import StoredObject
folder, seed = Path(sys.argv[1]), sys.argv[2]
store, content = LocalStore(folder), (folder / "object").read_bytes()
places = {4: StoredObject("object", len(content))}
cache = ObjectCache(folder / "cache", 2 << 20, Bucket(store, store, part=1 << 20), lambda _: places)
numbers = random.Random(seed)
print("begun", flush=True)
for _ in range(int(sys.argv[3])):
    offset = numbers.randrange(len(content))
    length = min(numbers.choice([1, 200_000, 1 << 20]), len(content) - offset)
    with cache.open([4]) as lease:
        for fd, at, size in lease.windows(4, offset, length):
            assert os.pread(fd, size, at) == content[offset : offset + size]
            offset += size
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

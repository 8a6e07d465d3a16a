"""Objects in a real S3-compatible store, SeaweedFS: whole or not there, when gateways die and stop."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

import pytest
from object_world import fresh_key
from obstore import put
from seaweed import ADMIN, BUCKET, NODE, Seaweed, store_of

from streamsrv.errors import BucketUnreachable, SegmentGone, StoreError
from streamsrv.store.objects.bucket import PART, PARTS_AT_ONCE, opened
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.objects.layout import walk_object
from streamsrv.store.objects.writer import ObjectWriter
from streamsrv.store.segments.records import PayloadDigest, RecordFormat
from streamsrv.store.segments.segments import Clock

FORM = RecordFormat(b"s" * 32, b"f" * 16)
SEGMENT = 9
MIB = 1 << 20
URL = f"s3://{BUCKET}/store"


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory):
    started = Seaweed(tmp_path_factory.mktemp("seaweed"))
    yield started
    started.end()


@pytest.fixture(scope="module")
def endpoint(seaweed):
    _, endpoint = seaweed.gateway()
    # The first object of an administrator makes the bucket.
    put(store_of(endpoint, ADMIN, BUCKET), "made", b"")
    return endpoint


@pytest.fixture
def node(monkeypatch):
    """The environment of a node, as the tools of AWS take it."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name, value in zip(names, NODE, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")


def writer_in(bucket, folder):
    return ObjectWriter(bucket, FORM, SEGMENT, fresh_key(SEGMENT), folder, Clock())


def append(writer, size, fill):
    writer.open_record()
    for begin in range(0, size, MIB):
        writer.write([bytes([fill]) * min(MIB, size - begin)])
        writer.send()
    return writer.close_record()


def is_whole(bucket, writer, records):
    """Whether the object lists exactly these records, with the bytes that arrived."""
    length = bucket.length(writer.key)
    with tempfile.TemporaryFile() as file:
        for begin in range(0, length, PART):
            file.write(bucket.read(writer.key, begin, min(PART, length - begin)))
        file.flush()
        found = list(walk_object(FORM, file.fileno(), SEGMENT, length))
        for each in found:
            payload = os.pread(file.fileno(), each.header.length, each.payload)
            assert PayloadDigest(payload).digest() == each.header.digest
    return [each.header.record_id for each in found] == [record.record_id for record in records]


@pytest.mark.parametrize("sizes", [[0, 100], [3 * MIB, 6 * MIB, 20 * MIB, 1000]], ids=["short", "long"])
def test_records_are_read_where_they_were_written(seaweed, endpoint, node, tmp_path, sizes):
    bucket = opened(URL, endpoint=endpoint)
    writer = writer_in(bucket, tmp_path)
    records = [append(writer, size, number) for number, size in enumerate(sizes)]
    length = writer.complete(records)
    writer.abort()
    assert length == bucket.length(writer.key)
    assert is_whole(bucket, writer, records)
    for number, record in enumerate(records):
        _, offset, size = record.location
        if size:
            assert bytes(bucket.read(writer.key, offset + size - 1, 1)) == bytes([number])
    assert not seaweed.hidden()


def test_an_aborted_object_leaves_nothing_in_the_bucket(seaweed, endpoint, node, tmp_path):
    """A part that is on its way may arrive after the end of its upload, so all of them arrive first."""
    bucket = opened(URL, endpoint=endpoint)
    before, writer = seaweed.hidden(), writer_in(bucket, tmp_path)
    append(writer, 5 * PART, 1)
    until = time.monotonic() + 30
    while (begun := parts_of_new(seaweed, before)) != [4]:  # the fifth one may be the last
        assert time.monotonic() < until, begun
        time.sleep(0.05)
    writer.abort()
    assert seaweed.hidden() == before
    with pytest.raises(SegmentGone):
        bucket.length(writer.key)


def parts_of_new(seaweed, before):
    return [parts for name, parts in seaweed.hidden().items() if name not in before]


def test_a_removed_object_is_gone(endpoint, node, tmp_path):
    bucket = opened(URL, endpoint=endpoint)
    writer = writer_in(bucket, tmp_path)
    writer.complete([append(writer, 100, 1)])
    bucket.remove(writer.key)
    bucket.remove(writer.key)
    with pytest.raises(SegmentGone):
        bucket.read(writer.key, 0, 10)


def test_what_was_acknowledged_is_whole_after_the_gateway_was_killed(seaweed, endpoint, node, tmp_path):
    """Four writers; the gateway dies while they write. Each object is whole or not there."""
    gateway, own = seaweed.gateway()
    bucket = opened(URL, endpoint=own)
    acknowledged, refused = [], []

    def write():
        while not refused:
            writer = writer_in(bucket, tmp_path)
            try:
                records = [append(writer, size, 1) for size in (100, 3 * PART, 100)]
                writer.complete(records)
                acknowledged.append((writer, records))
            except BucketUnreachable:
                refused.append(writer)
            finally:
                writer.abort()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(acknowledged) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    gateway.kill()
    gateway.wait()
    for thread in threads:
        thread.join()
    assert refused
    seaweed.gateway(urlsplit(own).port)
    assert len(acknowledged) >= 2
    assert all(is_whole(bucket, writer, records) for writer, records in acknowledged)
    for writer in refused:
        try:
            length = bucket.length(writer.key)
        except SegmentGone:
            continue
        assert length > 3 * PART  # it became whole, and its answer was lost
    writer = writer_in(bucket, tmp_path)
    records = [append(writer, 100, 1)]
    writer.complete(records)
    writer.abort()
    assert is_whole(bucket, writer, records)


def test_a_gateway_that_answers_nothing_is_an_error_in_time(seaweed, endpoint, node, tmp_path):
    """Its sockets stay open, as behind a network that drops all packets."""
    gateway, own = seaweed.gateway()
    bucket = opened(URL, endpoint=own)
    known = writer_in(bucket, tmp_path)
    known.complete([append(known, 100, 1)])
    short, long = writer_in(bucket, tmp_path), writer_in(bucket, tmp_path)
    record = append(short, 100, 1)
    gateway.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, gateway.pid, os.WSTOPPED)
    errors = []

    def tried(call):
        with pytest.raises(BucketUnreachable, match="does not answer") as caught:
            call()
        errors.append(caught.value)

    calls = [
        lambda: bucket.read(known.key, 0, 10),
        lambda: short.complete([record]),
        lambda: append(long, 10 * PART, 1),
    ]
    threads = [threading.Thread(target=tried, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gateway.send_signal(signal.SIGCONT)
    assert [error.status for error in errors] == [503, 503, 503]
    for writer in (known, short, long):
        writer.abort()
    with pytest.raises(SegmentGone):
        bucket.length(long.key)


def test_a_node_reads_through_its_cache(seaweed, endpoint, node, tmp_path):
    """By sendfile, cold and cached; without a gateway the cached bytes remain."""
    gateway, own = seaweed.gateway()
    bucket = opened(URL, endpoint=own)
    writer = writer_in(bucket, tmp_path)
    records = [append(writer, size, number) for number, size in enumerate((100, 20 * MIB, 3 * MIB))]
    places = {SEGMENT: StoredObject(writer.key, writer.complete(records))}
    writer.abort()
    cache = ObjectCache(tmp_path / "cache", 20 * MIB, bucket, lambda _: places)

    def sent(record):
        """The digest of the bytes that a socket got."""
        near, far = socket.socketpair()
        digest = PayloadDigest()

        def receive():
            while piece := far.recv(MIB):
                digest.update(piece)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            with near, cache.open([SEGMENT]) as lease:
                for fd, offset, length in lease.windows(*record.location):
                    end = offset + length
                    while offset < end:
                        offset += os.sendfile(near.fileno(), fd, offset, end - offset)
        finally:
            thread.join()
            far.close()
        return digest.digest()

    assert [sent(record) for record in records] == [record.digest for record in records]
    assert cache.folder.used() <= 36 * MIB
    gateway.kill()
    gateway.wait()
    assert sent(records[2]) == records[2].digest
    with pytest.raises(BucketUnreachable):
        sent(records[1])
    cache.close()


WRITES = """
import sys
from pathlib import Path
from test_object_store import append, opened, writer_in, URL
writer = writer_in(opened(URL, endpoint=sys.argv[1]), Path(sys.argv[2]))
writer.complete([append(writer, int(sys.argv[3]), 1)])
"""


def test_memory_is_that_of_the_parts_on_their_way(endpoint, node, tmp_path):
    def peak(size):
        command = [sys.executable, "-c", WRITES, endpoint, str(tmp_path), str(size)]
        variables = {**os.environ, "PYTHONPATH": ":".join([".", *sys.path])}
        with subprocess.Popen(command, env=variables) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = status
        assert status == 0
        return usage.ru_maxrss * resource.getpagesize() // 4

    assert peak(300 * MIB) - peak(1) < (PARTS_AT_ONCE + 5) * PART


def test_settings_that_are_wrong_get_a_sentence(endpoint, node, tmp_path, monkeypatch):
    def error(url=URL, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        writer = writer_in(opened(url, endpoint=endpoint), tmp_path)
        try:
            with pytest.raises(StoreError) as caught:
                writer.complete([append(writer, 10, 1)])
            return caught.value.detail
        finally:
            writer.abort()

    assert "refuses the credentials" in error("s3://of-another-owner/store")
    assert "AWS_SECRET_ACCESS_KEY" in error(AWS_SECRET_ACCESS_KEY="another one")


def test_a_gateway_that_is_not_there(node, tmp_path):
    writer = writer_in(opened(URL, endpoint="http://127.0.0.1:1"), tmp_path)
    with pytest.raises(BucketUnreachable):
        writer.complete([append(writer, 10, 1)])
    writer.abort()

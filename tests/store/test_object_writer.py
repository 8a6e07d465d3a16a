"""Objects that a transaction writes, in a bucket that is memory."""

import os
import tempfile

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_world import fresh_key
from obstore.store import MemoryStore

from streamsrv.errors import (
    BucketUnreachable,
    InsufficientStorage,
    ObjectGone,
    SegmentGone,
    StoreCorrupt,
    StoreError,
)
from streamsrv.store.fileops import FileOps
from streamsrv.store.objects.bucket import Bucket, opened
from streamsrv.store.objects.layout import fresh_stem, segment_of, walk_object
from streamsrv.store.objects.writer import ObjectWriter
from streamsrv.store.segments.records import RecordFormat
from streamsrv.store.segments.segments import Clock

FORM = RecordFormat(b"s" * 32, b"f" * 16)
SEGMENT = 3
PART = 1000


class Failing:
    """A bucket whose n-th write of a part, or whose end, fails."""

    def __init__(self, bucket, at):
        self._bucket, self._left, self.part = bucket, at, bucket.part

    def upload(self, key):
        self._upload = self._bucket.upload(key)
        return self

    def _step(self):
        self._left -= 1
        if self._left == 0:
            raise BucketUnreachable("the gateway does not answer")

    def write(self, part):
        self._step()
        self._upload.write(part)

    def complete(self):
        self._step()
        self._upload.complete()

    def abort(self):
        self._upload.abort()


@pytest.fixture
def bucket():
    store = MemoryStore()
    return Bucket(store, store, PART)


@pytest.fixture
def writer(bucket, tmp_path):
    made = ObjectWriter(bucket, FORM, SEGMENT, fresh_key(SEGMENT), tmp_path, Clock())
    yield made
    made.abort()


def append(writer, *pieces):
    writer.open_record()
    for piece in pieces:
        writer.write([piece])
        writer.send()
    return writer.close_record()


def read(bucket, key):
    """The payloads that the object's trailer lists."""
    length = bucket.length(key)
    content = bytes(bucket.read(key, 0, length))
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        found = list(walk_object(FORM, file.fileno(), SEGMENT, length))
    return [content[each.payload : each.end] for each in found]


def test_locations_name_the_payloads_in_the_bucket(bucket, writer):
    short = append(writer, b"short")
    writer.open_body()
    long = append(writer, *[b"%04d" % number * 25 for number in range(90)])
    length = writer.complete([short, long])
    assert (length, long.body) == (bucket.length(writer.key), short.number)
    for record, payload in ((short, b"short"), (long, b"".join(b"%04d" % n * 25 for n in range(90)))):
        _, offset, size = record.location
        assert bytes(bucket.read(writer.key, offset, size)) == payload
        assert record.pread(0, size) == payload


def test_an_open_record_can_be_read(writer):
    writer.open_record()
    writer.write([b"a" * 3000])
    writer.write([b"b" * 10])
    assert writer.received().pread(2995, 10) == b"aaaaabbbbb"


def test_a_dropped_record_is_not_listed(bucket, writer):
    first = append(writer, b"first")
    end = writer.end
    append(writer, b"x" * 5000)
    writer.back_to(end)
    last = append(writer, b"last")
    refused = append(writer, b"refused")
    assert refused.end > last.end > 2 * PART
    writer.complete([first, last])
    assert read(bucket, writer.key) == [b"first", b"last"]


@pytest.mark.parametrize("sizes", [[10], [10, 5000, 10]])
def test_nothing_of_an_aborted_object_can_be_read(bucket, writer, sizes):
    for size in sizes:
        append(writer, b"x" * size)
    writer.abort()
    writer.abort()
    with pytest.raises(SegmentGone):
        bucket.length(writer.key)
    with pytest.raises(StoreError, match="ended"):
        append(writer, b"late")


def test_records_that_are_only_gathered_stay_before_a_dropped_one(bucket, writer):
    writer.open_record()
    writer.gather(b"kept")
    kept = writer.close_record()
    end = writer.end
    writer.open_record()
    writer.gather(b"dropped")
    writer.back_to(end)
    assert writer.end == end
    writer.complete([kept])
    assert read(bucket, writer.key) == [b"kept"]


def test_an_open_record_prevents_the_end(bucket, writer):
    writer.open_record()
    with pytest.raises(StoreError, match="open"):
        writer.complete([])
    with pytest.raises(StoreError, match="open"):
        writer.open_record()


def test_a_transaction_leaves_no_file(writer, tmp_path):
    append(writer, b"x" * 5000)
    assert os.listdir(tmp_path) == []


def test_keys_of_one_number_differ():
    assert fresh_stem() != fresh_stem()
    assert segment_of(fresh_key(5)) == 5


SIZES = st.lists(st.integers(0, 2500), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 14))
@settings(max_examples=100, deadline=None)
def test_a_completed_object_is_whole_and_another_one_is_not_there(sizes, at):
    """The n-th call of the bucket fails. If `complete` returns, all records are in the bucket."""
    store = MemoryStore()
    bucket = Bucket(store, store, PART)
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        writer = ObjectWriter(Failing(bucket, at), FORM, SEGMENT, fresh_key(SEGMENT), folder, Clock())
        try:
            writer.complete([append(writer, payload) for payload in payloads])
        except BucketUnreachable:
            writer.abort()
            with pytest.raises(SegmentGone):
                bucket.length(writer.key)
            with pytest.raises(StoreError):
                append(writer, b"late")
        else:
            writer.abort()
            assert read(bucket, writer.key) == payloads


def test_a_full_disk_of_the_node(bucket, tmp_path):
    class Full(FileOps):
        def write(self, fd, pieces, offset, *, keep=True):
            raise OSError(28, "No space left on device")

    writer = ObjectWriter(bucket, FORM, SEGMENT, fresh_key(SEGMENT), tmp_path, Clock(), Full())
    with pytest.raises(InsufficientStorage):
        append(writer, b"x")
    writer.abort()


def test_a_folder_that_is_gone(bucket, tmp_path):
    with pytest.raises(StoreError, match="making a file"):
        ObjectWriter(bucket, FORM, SEGMENT, fresh_key(SEGMENT), tmp_path / "gone", Clock())


def test_a_read_past_the_end_is_damage(bucket, writer):
    length = writer.complete([])
    with pytest.raises(StoreCorrupt, match=f"ends at byte {length}"):
        bucket.read(writer.key, length - 10, 20)


def test_a_removed_object_is_gone(bucket, writer):
    writer.complete([])
    bucket.remove(writer.key)
    bucket.remove(writer.key)
    with pytest.raises(SegmentGone):
        bucket.read(writer.key, 0, 10)


def test_an_object_is_not_gone_if_the_gateway_finds_nothing(bucket, writer, monkeypatch):
    def fail(*_):
        raise OSError("Server returned non-2xx status code: 404 Not Found")

    writer.complete([])
    bucket.proof = "store.toml"
    monkeypatch.setattr(obstore, "delete", fail)
    with pytest.raises(BucketUnreachable, match=r"not even store\.toml"):
        bucket.remove(writer.key)
    bucket.put("store.toml", b"content")
    bucket.remove(writer.key)


def test_a_bucket_that_keeps_less_than_it_took(writer, monkeypatch):
    append(writer, b"x" * 100)
    monkeypatch.setattr(obstore, "head", lambda store, key: {"size": 5})
    with pytest.raises(StoreCorrupt, match="has 5 bytes"):
        writer.complete([])


@pytest.mark.parametrize("url", ["http://bucket/x", "s3://", "s3://bucket?x=1", "bucket"])
def test_a_place_that_is_no_bucket(url):
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        opened(url)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (
            "Server returned non-2xx status code: 404 Not Found: <Code>NoSuchBucket</Code>",
            StoreError,
            "make it",
        ),
        ("Server returned non-2xx status code: 404 Not Found", ObjectGone, "gone"),
        ("Server returned non-2xx status code: 400 Bad Request", StoreError, "refuses the request"),
        ("Server returned non-2xx status code: 429 Too Many Requests", BucketUnreachable, "not answer"),
        ("Server returned non-2xx status code: 503 Service Unavailable", BucketUnreachable, "not answer"),
        ("HTTP error: error sending request", BucketUnreachable, "not answer"),
    ],
)
def test_an_error_of_the_gateway_gets_a_sentence(bucket, monkeypatch, text, kind, sentence):
    def fail(*_, **__):
        raise OSError(text)

    monkeypatch.setattr(obstore, "get_range", fail)
    with pytest.raises(kind, match=sentence) as caught:
        bucket.read("key", 0, 10)
    assert type(caught.value) is kind


def test_a_place_is_opened_without_a_request():
    assert opened("s3://bucket/a/prefix", endpoint="http://127.0.0.1:1").part == opened("s3://bucket").part

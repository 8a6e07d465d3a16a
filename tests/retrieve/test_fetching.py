"""Answers whose bytes are fetched from a bucket: the same as those of a local store, in bounded windows."""

import errno
import random
import threading
import time
from pathlib import Path

import clinic
import pytest
from object_world import reading_objects, upload
from obstore.store import MemoryStore
from pydicom.data import get_testdata_file
from retrieve_world import ask, computed, keep, payload

from streamsrv.errors import BucketUnreachable, StreamsrvError
from streamsrv.plans import fetching
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import ObjectLease
from streamsrv.store.objects.cached_file import CHUNK
from streamsrv.store.store import Store, StoreOptions
from streamsrv.wire.answers import Deferred, Span, Windows

MIB = 1 << 20
LONG = "1.2.826.0.1.3680043.8.498.77.9"


class WatchedBucket(Bucket):
    """Notes its reads, and fails while it is away."""

    def __init__(self, store):
        super().__init__(store, store)
        self.reads = []
        self.away = False

    def pieces(self, key, offset, length):
        self.reads.append((key, offset, length))
        if self.away:
            raise BucketUnreachable("reading from the bucket failed: the gateway does not answer")
        return super().pieces(key, offset, length)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The clinic, files of every syntax, and a long study: 12 instances of 1 MB."""
    with Store.open(tmp_path_factory.mktemp("local") / "data", StoreOptions(min_free=0)) as store:
        keep(store, *map(clinic.file_of, clinic.everything()))
        keep(store, *(Path(get_testdata_file(name)).read_bytes() for name in SYNTAXES))
        for number in range(12):
            made = clinic.dataset(clinic.CTImageStorage, LONG, f"{LONG}.1", f"{LONG}.1.{number}")
            made.Rows, made.Columns, made.SamplesPerPixel, made.NumberOfFrames = 128, 128, 1, "32"
            made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
            made.PhotometricInterpretation = "MONOCHROME2"
            made.PixelData = random.Random(number).randbytes(MIB)
            keep(store, clinic.file_of(made))
        yield store


SYNTAXES = {
    "CT_small.dcm",
    "ExplVR_BigEnd.dcm",
    "image_dfl.dcm",
    "JPEG2000.dcm",
    "liver.dcm",
    "MR_small_implicit.dcm",
    "SC_rgb_rle_2frame.dcm",
    "color3d_jpeg_baseline.dcm",
    "reportsi.dcm",
}


@pytest.fixture(scope="module")
def objects(local):
    stored = MemoryStore()
    return stored, upload(stored, local.layout)


@pytest.fixture
def bucket(objects):
    return WatchedBucket(objects[0])


@pytest.fixture
def remote(local, objects, bucket, tmp_path):
    """Makes the store that reads from the bucket."""
    caches = []

    def make(**options):
        view, cache = reading_objects(local, objects[1], tmp_path / "cache", bucket, **options)
        caches.append(cache)
        return view

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture
def short_windows(bucket):
    bucket.part = MIB // 2


EVERY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
EXPLICIT = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*, */*'


def surface(store):
    """(path, headers) of requests whose answers have bytes of segments, without pixels that are made."""
    rows = store.index.rows(limit=1_000)
    for study in sorted({row.key.study for row in rows}):
        yield f"/studies/{study}", {"accept": EVERY}
        yield f"/studies/{study}", {"accept": EVERY, "range": "bytes=5000-900000"}
        yield f"/studies/{study}", {"accept": EXPLICIT}
        yield f"/studies/{study}", {"accept": "application/zip"}
        yield f"/studies/{study}/bulkdata", {"accept": "*/*"}
        yield f"/studies/{study}/pixeldata", {"accept": "*/*"}
        yield f"/studies/{study}/metadata", {"accept": "application/dicom+json"}
    for row in rows:
        study, series, instance = row.key
        path = f"/studies/{study}/series/{series}/instances/{instance}"
        yield path, {"accept": "application/dicom; transfer-syntax=*"}
        yield path, {"accept": "application/dicom; transfer-syntax=*", "range": "bytes=-700"}
        yield path, {"accept": "application/dicom; transfer-syntax=*", "want_repr_digest": "sha-256=1"}
        yield f"{path}/bulkdata", {"accept": "*/*"}
        yield f"{path}/frames/1", {"accept": FRAMES}
        yield f"{path}/frames/1", {"accept": "application/octet-stream; transfer-syntax=*"}
        if row.number_of_frames > 1:
            yield (
                f"{path}/frames/{','.join(map(str, range(1, row.number_of_frames + 1)))}",
                {"accept": FRAMES},
            )


def seen(store, path, headers):
    try:
        answer = ask(store, path, **headers)
    except StreamsrvError as error:
        return type(error), error.detail
    headers = [each for each in answer.headers if each[0] != "Last-Modified"]
    return answer.status, answer.length, headers, payload(answer)


def test_every_answer_is_that_of_the_local_store(local, remote, short_windows):
    """Through a cache that is smaller than the long study, twice."""
    store, compared = remote(limit=2 * MIB), 0
    requests = list(surface(local))
    for path, headers in [*requests, *random.Random(1).sample(requests, len(requests))]:
        assert seen(store, path, headers) == seen(local, path, headers), (path, headers)
        compared += 1
    assert compared > 200
    assert store.readers.folder.used() < 6 * MIB


def test_the_loop_answers_nothing_itself(remote):
    made = computed(remote(), f"/studies/{LONG}/series/{LONG}.1/instances/{LONG}.1.1/frames/1", accept=FRAMES)
    assert isinstance(made, Deferred)


def test_frames_are_read_together_and_once(remote, bucket):
    store = remote()
    path = f"/studies/{LONG}/series/{LONG}.1/instances/{LONG}.1.3/frames/{','.join(map(str, range(1, 25)))}"
    first = payload(ask(store, path, accept=FRAMES))
    reads = len(bucket.reads)
    assert reads <= 3  # the chunks around them, and those of the offset table
    bucket.away = True
    assert payload(ask(store, path, accept=FRAMES)) == first
    assert len(bucket.reads) == reads


@pytest.mark.parametrize(
    ("method", "headers", "status"), [("HEAD", {}, 200), ("GET", {"if_none_match": "*"}, 304)]
)
def test_an_answer_without_a_body_fetches_nothing(remote, bucket, method, headers, status):
    answer = ask(remote(), f"/studies/{LONG}", method=method, accept=EVERY, **headers)
    assert (answer.status, bucket.reads) == (status, [])
    answer.release()


def test_a_bucket_that_is_away_is_a_status(remote, bucket):
    store, bucket.away = remote(), True
    for path in (f"/studies/{LONG}", f"/studies/{LONG}/series/{LONG}.1/instances/{LONG}.1.1"):
        with pytest.raises(BucketUnreachable):
            ask(store, path, accept=EVERY)
    bucket.away = False
    payload(ask(store, f"/studies/{LONG}", accept=EVERY))


def test_a_bucket_that_goes_away_breaks_the_answer_off(remote, bucket, short_windows):
    answer = ask(remote(), f"/studies/{LONG}", accept=EVERY)
    assert isinstance(answer.plan, Windows)
    pieces = iter(answer.plan)
    next(pieces)
    bucket.away = True
    with pytest.raises(BucketUnreachable):
        list(pieces)
    answer.release()


def test_a_disk_that_fails_while_the_next_window_begins_breaks_the_answer_off(
    remote, short_windows, monkeypatch
):
    """That is in the event loop, where nothing else waits for the error."""
    store = remote()
    answer = ask(store, f"/studies/{LONG}", accept=EVERY)

    def at_hand(*_):
        raise OSError(errno.EIO, "the disk of the cache")

    monkeypatch.setattr(ObjectLease, "at_hand", at_hand)
    with pytest.raises(OSError, match="the disk of the cache"):
        all(answer.plan.following().result(30) for _ in range(100))
    answer.release()
    wait_until(lambda: not store.readers.folder.in_use)


def test_an_answer_holds_few_windows(remote, bucket, short_windows):
    """Those ahead of its client, and no more."""
    store = remote()
    answer = ask(store, f"/studies/{LONG}", accept=EVERY)
    for number in range(5):
        pieces = answer.plan.following().result(10)
        assert 0 < sum(piece.length for piece in pieces if isinstance(piece, Span)) <= MIB // 2
        wait_until(lambda: len(answer_windows(answer)) == fetching.AHEAD)
        assert fetched_bytes(bucket) <= (number + 1 + fetching.AHEAD) * (MIB // 2 + CHUNK)
        assert len(store.readers.folder.in_use) <= 2 * (1 + fetching.AHEAD)  # a window has at most two
    answer.release()
    wait_until(lambda: not store.readers.folder.in_use)


def test_most_windows_at_hand_need_no_thread(remote, bucket, short_windows, monkeypatch):
    store = remote()
    first = payload(ask(store, f"/studies/{LONG}", accept=EVERY))
    reads = len(bucket.reads)
    begun, ahead = [], store.readers.ahead
    monkeypatch.setattr(store.readers, "ahead", lambda work: begun.append(work) or ahead(work))
    answer = ask(store, f"/studies/{LONG}", accept=EVERY)
    assert isinstance(answer.plan, Windows)
    assert payload(answer) == first
    assert len(bucket.reads) == reads
    assert len(begun) < 5  # of 27: some windows lack the bytes between their pieces
    wait_until(lambda: not store.readers.folder.in_use)


def test_many_slow_clients_hold_little_beside_the_first(remote, bucket):
    """Each of 40 clients reads one window of a study as long as the cache, and stays at its place."""
    bucket.part = 2 * MIB
    store = remote(limit=12 * MIB)
    answers = []
    for number in range(40):
        answers.append(ask(store, f"/studies/{LONG}", accept=EVERY))
        for _ in range(1 + number % 5):
            answers[-1].plan.following().result(10)
    wait_until(lambda: len({len(answer_windows(each)) for each in answers[5:]}) == 1)
    assert store.readers.folder.is_crowded
    assert {len(answer_windows(each)) for each in answers[5:]} == {1}
    short = fetching.SHORT_WINDOW
    assert all(sum(piece.length for piece in window_of(each)) <= short for each in answers[5:])
    assert sum(piece.length for piece in answers[-1].plan) > 5 * MIB
    for each in answers:
        each.release()
    wait_until(lambda: not store.readers.folder.in_use)


def window_of(answer):
    return [piece for piece in answer_windows(answer)[0].result().pieces if isinstance(piece, Span)]


def wait_until(true):
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.001)


def answer_windows(answer):
    """Windows that are there before they are wanted."""
    return [ahead for ahead in answer.plan.following.__self__._ahead if ahead.done()]


def fetched_bytes(bucket):
    return sum(length for _, _, length in bucket.reads)


def test_a_client_that_leaves_gives_back(remote, bucket, short_windows):
    """Also while a window is on its way, for which the loop does not wait."""
    store, gate = remote(), threading.Event()
    answer = ask(store, f"/studies/{LONG}", accept=EVERY)
    pieces, bucket.pieces = bucket.pieces, lambda *asked: gate.wait(10) and pieces(*asked)
    answer.plan.following().result(10)
    began = time.monotonic()
    answer.release()
    assert time.monotonic() - began < 5
    gate.set()
    wait_until(lambda: not store.readers.folder.in_use)

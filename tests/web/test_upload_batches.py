"""Short bodies on their way to the thread that stores them in batches."""

import asyncio
import dataclasses
import threading

import pytest
from web_world import Recorder, World, settings_of

from streamsrv.errors import BadRequest
from streamsrv.ingest.batching import LARGEST_BATCH
from streamsrv.ingest.response import StoreResult
from streamsrv.query.rules import Rule
from streamsrv.web.access.principal import ALL_RIGHTS, Principal
from streamsrv.web.stow import Batches, Upload


class Thread:
    """Stands in for `store_batch`: waits until it is released."""

    def __init__(self):
        self.batches = []
        self.threads = set()
        self.go = threading.Event()
        self.error = None

    def store(self, ingests):
        self.batches.append(list(ingests))
        self.threads.add(threading.get_ident())
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return [StoreResult() for _ in ingests]


async def test_bodies_that_arrive_meanwhile_are_one_batch():
    thread = Thread()
    batches = Batches(thread.store)
    futures = [batches.add(0)]
    while not thread.batches:
        await asyncio.sleep(0.001)
    futures += [batches.add(number) for number in range(LARGEST_BATCH + 2)]
    thread.go.set()
    await asyncio.wait_for(asyncio.gather(*futures), 10)
    assert [len(batch) for batch in thread.batches] == [1, LARGEST_BATCH, 2]
    assert len(thread.threads) == 1
    assert threading.get_ident() not in thread.threads
    batches.close()


async def test_a_client_that_has_left_does_not_affect_others():
    thread = Thread()
    batches = Batches(thread.store)
    futures = [batches.add(number) for number in range(3)]
    futures[1].cancel()
    thread.go.set()
    await asyncio.wait_for(asyncio.gather(futures[0], futures[2]), 10)
    batches.close()


async def test_an_error_is_that_of_its_batch():
    thread = Thread()
    batches = Batches(thread.store)
    thread.error = ZeroDivisionError()
    thread.go.set()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(batches.add(0), 10)
    thread.error = None
    assert await asyncio.wait_for(batches.add(1), 10) == StoreResult()
    batches.close()


async def test_without_a_body_there_is_no_thread():
    before = threading.active_count()
    batches = Batches(Thread().store)
    assert threading.active_count() == before
    batches.close()


class Short(Recorder):
    """An ingest of a short body: `many` has very many parts."""

    def feed(self, chunk, size=None, *, start=0, stays=False):
        super().feed(chunk, size, start=start, stays=stays)
        self.fits_batch = self.body != b"many"


class Uploads:
    """Makes uploads of short bodies; lists the batches and the released buffers."""

    def __init__(self, pool):
        self.world, self.released, self.batched = World(), [], []
        self._pool = pool
        self.batches = Batches(self._store)

    def _store(self, ingests):
        self.batched.append([bytes(each.body) for each in ingests])
        return [BadRequest("no") if each.body == b"refused" else StoreResult() for each in ingests]

    def make(self, payload):
        made = Upload(self._pool, Short(self.world), None, 0, batches=self.batches)
        made.arrived(bytearray(payload + b"more"), len(payload), self.released.append)
        return made


async def test_the_buffer_is_released_in_the_end(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"stored")
    await short.begin()
    assert await short.finish() == StoreResult()
    assert (uploads.batched, uploads.released) == ([[b"stored"]], [b"storedmore"])
    await short.abort()
    assert not uploads.world.aborted
    uploads.batches.close()


async def test_a_refusal(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"refused")
    await short.begin()
    with pytest.raises(BadRequest):
        await short.finish()
    await short.abort()
    assert len(uploads.released) == 1
    uploads.batches.close()


async def test_very_many_parts_are_taken_alone(http_server):
    uploads = Uploads(http_server.app.pool)
    short = uploads.make(b"many")
    await short.begin()
    await short.finish()
    assert (uploads.world.stored, uploads.batched, len(uploads.released)) == ([b"many"], [], 1)
    uploads.batches.close()


async def test_a_malformed_body_is_refused_when_it_has_arrived(http_server):
    uploads = Uploads(http_server.app.pool)
    with pytest.raises(BadRequest):
        uploads.make(b"REFUSE")
    assert not uploads.batched


class BatchedWorld(World):
    """Its short bodies fit batches. A principal with a rule has actions of its own."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def ingest(self, request, target):
        recorder = super().ingest(request, target)
        recorder.fits_batch = True
        return recorder

    def store_batch(self, ingests):
        self.batches.append(len(ingests))
        self.stored += [bytes(ingest.body) for ingest in ingests]
        return [StoreResult() for _ in ingests]

    def actions(self):
        whole = dataclasses.replace(super().actions(), store_batch=self.store_batch)
        return dataclasses.replace(whole, restricted=lambda rule, may_replace: dataclasses.replace(whole))


class RuledWay:
    def principal(self, head, authorization):
        return Principal("key:ward", ALL_RIGHTS, Rule())

    def refresh(self):
        return False


class TestBodiesOfPrincipalsWithRules:
    @pytest.fixture
    def world(self):
        return BatchedWorld()

    @pytest.fixture
    def ways(self):
        return (RuledWay(),)

    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), auth="required")

    async def test_share_batches_with_others(self, http_server_client, world):
        headers = {"Content-Type": "application/dicom"}
        answer = await http_server_client.fetch("/v2/studies", method="POST", body=b"short", headers=headers)
        assert (answer.code, world.batches, world.stored) == (200, [1], [b"short"])

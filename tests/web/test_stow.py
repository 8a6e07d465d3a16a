"""Content-Encoding and the order of what an Upload does."""

import asyncio
import gzip
import os
import random
import zlib

import pytest
from web_world import Recorder, World

from streamsrv.errors import BadRequest, ContentTooLarge, StoreError, UnsupportedMediaType
from streamsrv.web import stow
from streamsrv.web.stow import INFLATED, Gzip, Upload, decoder_for


def inflate(packed, sizes, limit=0):
    decoder, out = Gzip(limit, 0), bytearray()
    at = 0
    for size in sizes:
        for piece, _, length in decoder.decode(packed[at : at + size], len(packed[at : at + size])):
            assert length <= INFLATED
            out += piece[:length]
        at += size
    decoder.close()
    return bytes(out)


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(10))
def test_gzip_is_undone_however_it_is_cut(seed):
    draw = random.Random(seed)
    bodies = [draw.choice((b"", b"a" * 3_000_000, draw.randbytes(100_000))) for _ in range(3)]
    packed = b"".join(gzip.compress(body) for body in bodies)
    sizes = [draw.choice((1, 3, 100, 10_000)) for _ in range(len(packed))]
    assert inflate(packed, sizes) == b"".join(bodies)


def test_a_buffer_that_is_not_full():
    buffer = bytearray(gzip.compress(b"body") + b"rubbish")
    decoder = Gzip(0, 0)
    pieces = list(decoder.decode(buffer, len(buffer) - 7))
    decoder.close()
    assert pieces == [(b"body", 0, 4)]


def test_a_chunk_within_its_buffer():
    packed = gzip.compress(b"body")
    decoder = Gzip(0, 0)
    assert list(decoder.decode(b"rubbish" + packed + b"rubbish", len(packed), 7)) == [(b"body", 0, 4)]
    decoder.close()


def test_the_ratio_counts_beyond_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(stow, "RATIO_FROM", 2 * INFLATED)
    zeros, noise = gzip.compress(bytes(16 * INFLATED)), gzip.compress(os.urandom(INFLATED))
    for ratio, packed, fits in (
        (100, gzip.compress(bytes(2 * INFLATED)), True),
        (100, zeros, False),
        (2000, zeros, True),
        (0, zeros, True),
        (100, noise + zeros, True),  # 17 times its size
        (100, zeros + noise, False),
    ):
        decoder = Gzip(0, ratio)
        if fits:
            assert sum(length for _, _, length in decoder.decode(packed, len(packed))) >= 2 * INFLATED
        else:
            with pytest.raises(ContentTooLarge, match="more than 100 times its size"):
                list(decoder.decode(packed, len(packed)))


def test_a_piece_that_is_exactly_full_is_not_the_end():
    body = os.urandom(10) * (INFLATED // 10)
    for extra in range(4):
        content = body + b"x" * extra
        assert inflate(gzip.compress(content), [10**9]) == content


def test_every_truncation_is_told():
    packed = gzip.compress(os.urandom(200))
    for end in range(len(packed)):
        with pytest.raises(BadRequest, match="gzip"):
            inflate(packed[:end], [10**9])


def test_rubbish_is_told():
    for rubbish in (b"rubbish", zlib.compress(b"body"), gzip.compress(b"body") + b"rubbish"):
        with pytest.raises(BadRequest, match="not gzip"):
            inflate(rubbish, [10**9])
    broken = bytearray(gzip.compress(os.urandom(200)))
    broken[-6] ^= 1  # of its CRC
    with pytest.raises(BadRequest, match="not gzip"):
        inflate(bytes(broken), [10**9])


def test_bombs():
    with pytest.raises(ContentTooLarge, match="unpacks"):
        inflate(gzip.compress(b"\0" * 50_000_000), [10**9], limit=1_000_000)
    with pytest.raises(ContentTooLarge, match="members"):
        inflate(gzip.compress(b"") * (stow.MAX_MEMBERS + 1), [10**9])


@pytest.mark.parametrize(
    ("value", "kind"), [("", type(None)), ("identity", type(None)), (" GZIP ", Gzip), ("x-gzip", Gzip)]
)
def test_codings(value, kind):
    assert isinstance(decoder_for(value, 0, 0), kind)


@pytest.mark.parametrize("value", ["br", "deflate", "gzip, gzip", "zstd"])
def test_other_codings_are_refused(value):
    with pytest.raises(UnsupportedMediaType) as caught:
        decoder_for(value, 0, 0)
    assert caught.value.supported == ("gzip", "identity")


class _Broken:
    """A receiver whose sync fails."""

    pending = heavy = False
    sync_due = True

    def __init__(self):
        self.calls = []

    def begin(self):
        pass

    def feed(self, chunk, size=None, *, start=0, stays=False):
        self.calls.append("feed")

    def stop(self):
        pass

    def sync_so_far(self):
        raise OSError("the disk is broken")

    def finish(self):
        self.calls.append("finish")
        raise StoreError("could not be synced before")

    def abort(self):
        self.calls.append("abort")


async def test_a_sync_that_fails_refuses_the_rest_and_is_undone(http_server):
    receiver = _Broken()
    upload = Upload(http_server.app.pool, receiver, None, 0)
    await upload.begin()
    await upload.feed(b"x", 1)
    with pytest.raises(OSError, match="the disk is broken"):
        await upload.feed(b"x", 1)
    await upload.abort()
    await upload.abort()
    assert receiver.calls == ["feed", "feed", "abort"]
    receiver.calls.clear()
    again = Upload(http_server.app.pool, receiver, None, 0)
    await again.begin()
    await again.feed(b"x", 1)
    await again.abort()  # a sync that fails meanwhile does not matter any more
    assert receiver.calls == ["feed", "abort"]


async def test_a_sync_that_fails_while_the_end_is_near_is_the_error(http_server):
    receiver = _Broken()
    upload = Upload(http_server.app.pool, receiver, None, 0)
    await upload.begin()
    await upload.feed(b"x", 1)
    with pytest.raises(OSError, match="the disk is broken"):
        await upload.finish()
    await upload.abort()
    assert receiver.calls == ["feed", "finish", "abort"]


class _Dense(Recorder):
    """Has more to read after each reading."""

    def __init__(self, world, readings):
        super().__init__(world)
        self.readings = readings

    def feed(self, chunk, size=None, *, start=0, stays=False):
        self.pending = True

    def read_ended(self):
        self.readings -= 1
        self.pending = self.readings > 0


@pytest.mark.parametrize("bomb", ["parts", "gzip"])
async def test_others_have_their_turn_while_one_chunk_is_taken(http_server, bomb):
    """A megabyte may hold 100,000 parts, or a gigabyte of gzip."""
    receiver = _Dense(World(), 20 if bomb == "parts" else 1)
    decoder = None if bomb == "parts" else Gzip(0, 0)
    chunk = b"x" if bomb == "parts" else gzip.compress(bytes(20 << 20), 1)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    upload = Upload(http_server.app.pool, receiver, decoder, 0)
    await upload.begin()
    other = asyncio.ensure_future(others())
    await upload.feed(chunk, len(chunk))
    assert turns >= 19
    other.cancel()
    await upload.abort()


async def test_an_upload_that_has_not_begun_or_has_ended_takes_nothing(http_server):
    world = World()
    upload = Upload(http_server.app.pool, Recorder(world), None, 0)
    await upload.abort()
    with pytest.raises(RuntimeError):
        await upload.feed(b"x", 1)
    await upload.begin()
    await upload.finish()
    with pytest.raises(RuntimeError):
        await upload.finish()
    await upload.abort()
    assert world.stored == [b""]
    assert not world.aborted

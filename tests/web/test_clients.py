"""Clients that are too slow, in the head, in the body, in reading: told with tiny time-outs."""

import asyncio
import threading

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of

from streamsrv.web.connection.clients import SHARED, Meter, Watch
from streamsrv.wire.answers import Answer, ByteStream

DICOM = "Content-Type: application/dicom"
HEAD = b"GET /v2/studies/1.2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def settings():
    return settings_of(idle_timeout=0.4, stall_timeout=0.4, min_rate=1_000_000)


def post(*headers):
    return "\r\n".join(["POST /v2/studies HTTP/1.1", "Host: localhost", DICOM, *headers, "", ""]).encode()


async def elapsed(awaitable):
    began = asyncio.get_running_loop().time()
    result = await awaitable
    return result, asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("sent", [b"", b"G", HEAD[:-1], HEAD + b"GET /"])
async def test_a_head_that_does_not_come_ends_the_connection(port, sent):
    raw = await Raw.connect(port)
    await raw.send(sent)
    everything, seconds = await elapsed(raw.rest())
    assert everything.count(b"hello") == (sent.startswith(HEAD))
    assert seconds > 0.3
    await raw.close()


async def test_a_head_that_trickles_is_cut_off_too(port):
    raw = await Raw.connect(port)
    ended = asyncio.ensure_future(raw.rest())
    for byte in HEAD:
        if ended.done():
            break
        try:
            await raw.send(bytes([byte]))
        except ConnectionError:
            break
        await asyncio.wait([ended], timeout=0.05)
    assert await asyncio.wait_for(ended, DEADLINE) == b""
    await raw.close()


async def test_a_busy_connection_is_not_idle(port):
    raw = await Raw.connect(port)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.8
    while loop.time() < until:
        await raw.send(HEAD)
        assert (await raw.answer())[2] == b"hello"
    await raw.close()


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
async def test_a_body_that_stops_is_told_and_leaves_nothing(port, world, lines, framing):
    raw = await Raw.connect(port)
    await raw.send(post(framing) + b"5\r\nhello\r\n")
    status, headers, payload = await raw.answer()
    assert (status, headers["connection"]) == (408, "close")
    assert b"minimum rate" in payload
    assert await raw.rest() == b""
    await eventually(lambda: world.aborted)
    assert not world.stored
    await eventually(lambda: lines.text)
    assert '"POST /v2/studies" 408 ' in lines.text
    await raw.close()


async def test_a_body_that_trickles_is_too_slow(port, world):
    raw = await Raw.connect(port)
    await raw.send(post("Content-Length: 100000"))
    answered = asyncio.ensure_future(raw.head())
    while not answered.done():
        await raw.send(b"x")
        await asyncio.wait([answered], timeout=0.02)
    assert answered.result()[0] == 408
    await raw.close()


async def test_a_dropped_body_that_stops_ends_the_connection(port):
    raw = await Raw.connect(port)
    await raw.send(HEAD[:-2] + b"Content-Length: 10\r\n\r\nx")
    assert await raw.rest() == b""
    await raw.close()


async def test_time_that_we_spend_is_not_the_clients(port, world):
    """Reading the dataset takes longer than the time-out."""
    gate = threading.Event()
    world.before_reading = lambda: gate.wait(DEADLINE)
    raw = await Raw.connect(port)
    await raw.send(post("Content-Length: 4") + b"SLOW")
    asyncio.get_running_loop().call_later(0.9, gate.set)
    assert (await raw.answer())[0] == 200
    await raw.close()


async def test_a_reader_that_stops_is_cut_off_and_its_answer_released(port, world, lines):
    released = []
    answer = Answer(200, [], (ByteStream(lambda start, stop: iter([b"x" * 1_000_000] * 100), 10**8),), 10**8)
    answer.release = lambda: released.append(True)
    world.answers["1"] = lambda: answer
    raw = await Raw.connect(port, limit=1)
    await raw.send(HEAD.replace(b"1.2", b"1"))
    await eventually(lambda: released)
    await eventually(lambda: lines.text)
    assert '"GET /v2/studies/1" 499 ' in lines.text
    await raw.close()


def test_a_meter_looks_at_windows():
    meter = Meter(lambda: None, now=0.0)
    assert not meter.stalled(9.9, window=10, least=100)
    meter.moved = 1_000_000  # no credit for later
    assert not meter.stalled(10.0, window=10, least=100)
    meter.moved += 99
    assert not meter.stalled(19.9, window=10, least=100)
    assert meter.stalled(20.0, window=10, least=100)
    meter.pause()
    assert not meter.stalled(50.0, window=10, least=100)
    meter.resume()
    assert not meter.stalled(59.9, window=10, least=100)
    assert meter.stalled(60.0, window=10, least=100)


async def test_heads_are_due_in_their_order(http_server):
    watch = Watch(idle_timeout=0.2, stall_timeout=100, min_rate=1, head_timeout=100)
    closed = []
    for number in range(5):
        watch.head_awaited(number, lambda number=number: closed.append(number))
    watch.head_arrived(2)
    watch.head_arrived("never awaited")
    assert len(watch.waiting()) == 4
    await eventually(lambda: len(closed) == 4)
    assert closed == [0, 1, 3, 4]
    assert watch.waiting() == []
    watch.stop()


async def test_an_upload_beside_others_takes_less():
    watch = Watch(60, 30, 1024, 20)
    meters = [watch.meter(lambda: None) for _ in range(2)]
    for meter, expected in zip(meters, (2 << 20, SHARED), strict=True):
        watch.add(meter)
        assert watch.share(2 << 20) == expected
        assert watch.share(1000) == 1000
    watch.drop(meters[0])
    assert watch.share(2 << 20) == 2 << 20
    watch.stop()


async def test_heads_that_have_begun_are_due_first():
    watch = Watch(idle_timeout=100, stall_timeout=100, min_rate=1, head_timeout=0.2)
    closed = []
    for key in ("new", "begun", "idle", "answered", "known"):
        new = key in ("new", "answered", "known")
        watch.head_awaited(key, lambda key=key: closed.append(key), "party", new=new)
    watch.head_begun("begun")
    watch.head_begun("unknown")
    watch.head_arrived("answered")
    watch.head_awaited_again("known", asyncio.get_running_loop().time())
    await eventually(lambda: len(closed) == 2)
    await asyncio.sleep(0.3)
    assert closed == ["new", "begun"]
    assert not watch.end_longest("another party")
    assert watch.end_longest("party")
    assert watch.end_longest()
    assert not watch.end_longest()
    assert closed == ["new", "begun", "idle", "known"]
    watch.stop()

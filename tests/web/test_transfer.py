"""Plans on their way into a socket: every kind of piece, every kind of reader, every kind of end."""

import asyncio
import errno
import os
import random
import select
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from web_world import DEADLINE, eventually

from streamsrv.errors import StoreCorrupt
from streamsrv.web.connection.clients import Meter, TurnQueue
from streamsrv.web.sending import sources
from streamsrv.web.sending.sources import LONG_STEP, PROBE_STEP, StreamReader, read_warm, to_page, warm_bytes
from streamsrv.web.sending.transfer import PIECES_AT_ONCE, SHORT, SLICE, Transfer
from streamsrv.wire.answers import Answer, ByteStream, Literal, Span, StoredParts, Windows

SIZE = 6 << 20


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    """Path and content of a file that stands for a segment."""
    content = random.Random(1).randbytes(SIZE)
    path = tmp_path_factory.mktemp("segments") / "1"
    path.write_bytes(content)
    return path, content


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Line:
    """A transfer at one end of a socket pair; the test reads at the other."""

    def __init__(self, segment, pool, plan, **options):
        self.source = os.open(segment[0], os.O_RDONLY)
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.client, self.ours = theirs, ours
        self.meter = Meter(lambda: None, 0.0)
        turns = options.pop("turns", None) or TurnQueue()
        length = options.pop("length", None)
        answer = Answer(200, [], plan, length, lambda number, at: (self.source, at))
        self.transfer = Transfer(ours, answer, pool, self.meter, turns, **options)

    async def read(self, chunk=1 << 20, turns=0):
        """Everything that arrives; `turns` of the loop go by before each read."""
        loop, received = asyncio.get_running_loop(), bytearray()
        while True:
            for _ in range(turns):
                await asyncio.sleep(0)
            piece = await asyncio.wait_for(loop.sock_recv(self.client, chunk), DEADLINE)
            if not piece:
                return bytes(received)
            received += piece

    def start(self):
        """Our end closes when the transfer is done, as a connection would."""
        self.transfer.done.add_done_callback(lambda _: self.ours.close())
        self.transfer.start()

    async def run(self, **reading):
        self.start()
        received = await self.read(**reading)
        await self.transfer.done
        return received

    def close(self):
        self.client.close()
        self.ours.close()
        os.close(self.source)


@pytest.fixture
def line(segment, pool):
    """Makes lines that are closed in the end."""
    made = []

    def make(plan, **options):
        made.append(Line(segment, pool, plan, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def stream_of(content, sizes, length=None):
    def chunks(start, stop):
        at = 0
        for size in sizes:
            yield content[at : at + size]
            at += size

    return ByteStream(chunks, length)


def random_plan(seed, content):
    """Some pieces and the bytes that they stand for."""
    draw = random.Random(seed)
    pieces, expected = [], []
    for _ in range(draw.randrange(40)):
        size = draw.choice((0, 1, 100, 5_000, 70_000, 300_000))
        at = draw.randrange(SIZE - size)
        part = content[at : at + size]
        kind = draw.choice("lsk")
        if kind == "l":
            pieces.append(Literal(part))
        elif kind == "s":
            pieces.append(Span(1, at, size))
        else:
            half = size // 2
            sizes = [half, 0, size - half] if half else [size]
            pieces.append(stream_of(part, sizes, draw.choice((None, size))))
        expected.append(part)
    return pieces, b"".join(expected)


def unchunked(payload):
    """The content of a chunked body that must be whole."""
    content, at = b"", 0
    while True:
        end = payload.index(b"\r\n", at)
        size = int(payload[at:end], 16)
        assert payload[end + 2 + size : end + 4 + size] == b"\r\n"
        content += payload[end + 2 : end + 2 + size]
        at = end + 4 + size
        if not size:
            assert at == len(payload)
            return content


@pytest.mark.parametrize("lazy", [False, True], ids=["list", "lazy"])
@pytest.mark.parametrize("seed", range(25))
async def test_any_plan_arrives_whole_and_in_order(http_server, line, segment, seed, lazy):
    pieces, expected = random_plan(seed, segment[1])
    plan = (piece for piece in pieces) if lazy else pieces
    reading = random.Random(seed).choice(({}, {"chunk": 10_000}, {"chunk": 50_000, "turns": 3}))
    one = line(plan, prefix=b"HEAD")
    assert await one.run(**reading) == b"HEAD" + expected
    assert one.transfer.sent == one.meter.moved == len(expected) + 4


@pytest.mark.parametrize("lazy", [False, True], ids=["list", "lazy"])
@pytest.mark.parametrize("seed", range(25))
async def test_chunked_it_is_the_same(http_server, line, segment, seed, lazy):
    pieces, expected = random_plan(seed, segment[1])
    plan = iter(pieces) if lazy else tuple(pieces)
    received = await line(plan, prefix=b"", chunked=True).run()
    assert unchunked(received) == expected


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("seed", range(12))
async def test_parts_as_they_are_stored_arrive_whole(http_server, line, segment, monkeypatch, seed, cold):
    draw, heads, places, expected = random.Random(seed), [], [], []
    for number in range(draw.randrange(60)):
        size = draw.choice((0, 1, 100, 4_096, 5_000, 300_000, 2_500_000))
        at = draw.choice((4_096, draw.randrange(SIZE - size)))
        heads.append(b"head %d\r\n" % number * draw.choice((1, 50)))
        places.append((1, at, size))
        expected += [heads[-1], segment[1][at : at + size]]
    plan = StoredParts(heads, places, b"the end")
    if cold:  # sometimes
        monkeypatch.setattr(
            "streamsrv.web.sending.transfer.warm_bytes",
            lambda *asked: 0 if draw.random() < 0.3 else sources.warm_bytes(*asked),
        )
    reading = draw.choice(({}, {"chunk": 10_000}, {"chunk": 50_000, "turns": 3}))
    one = line(plan, prefix=b"HEAD", length=plan.length)
    assert await one.run(**reading) == b"".join([b"HEAD", *expected, b"the end"])
    assert one.transfer.sent == one.meter.moved == plan.length + 4


def test_the_lead_of_a_span_ends_where_a_page_begins(segment, monkeypatch):
    path, content = segment
    source = os.open(path, os.O_RDONLY)
    page = sources.PAGE
    assert to_page(source, 2 * page, 100) == b""
    assert to_page(source, 2 * page - 30, 100) == content[2 * page - 30 : 2 * page]
    assert to_page(source, 2 * page - 30, 10) == content[2 * page - 30 : 2 * page - 20]
    with pytest.raises(StoreCorrupt):
        to_page(source, SIZE + 5, 10)
    monkeypatch.setattr(os, "preadv", cold_preadv)
    assert to_page(source, 2 * page - 30, 100) == b""
    os.close(source)


def cold_preadv(*asked):
    raise BlockingIOError


def test_what_is_in_memory_is_probed_less_often(monkeypatch):
    asked = []

    def preadv(source, buffers, at, flags):
        asked.append(at)
        if at == missing:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    missing = -1
    assert warm_bytes(0, 0, SLICE) == SLICE
    assert len(asked) == SLICE // PROBE_STEP + 1
    asked.clear()
    assert warm_bytes(0, 0, SLICE, True) == SLICE
    assert asked == [*range(LONG_STEP - 1, SLICE, LONG_STEP)]
    missing = SLICE - 1
    assert warm_bytes(0, 0, SLICE, True) == SLICE - PROBE_STEP


async def test_long_lazy_plans_are_made_a_batch_at_a_time(http_server, line, segment):
    made, threads = [], set()

    def plan():
        for number in range(10 * PIECES_AT_ONCE):
            made.append(number)
            threads.add(threading.current_thread())
            yield Span(1, number * 10, 10)
            yield Literal(b"x" * 10_000)

    one = line(plan())
    one.start()
    await eventually(lambda: made and one.transfer.sent and one.transfer._watching)
    assert len(made) <= PIECES_AT_ONCE
    assert threading.main_thread() not in threads
    received = await one.read()
    assert len(received) == 10 * PIECES_AT_ONCE * 10_010


class Fetched:
    """Windows of a plan: every second one is there at once, and each next one is begun by `following`."""

    def __init__(self, pool, windows, fails=False):
        self.pool, self.rest, self.fails, self.asked = pool, list(windows), fails, 0

    def following(self):
        self.asked += 1
        made = Future()
        if self.fails and not self.rest:
            made.set_exception(StoreCorrupt("the bucket is away"))
        elif self.asked % 2:
            made.set_result(self.rest.pop(0) if self.rest else [])
        else:
            return self.pool.submit(lambda: time.sleep(0.001) or (self.rest.pop(0) if self.rest else []))
        return made


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_windows_arrive_whole_and_in_order(http_server, line, segment, pool, seed, chunked):
    plans = [random_plan(f"{seed} {number}", segment[1]) for number in range(5)]
    source = Fetched(pool, [pieces for pieces, _ in plans if pieces])
    connection = line(Windows(source.following), chunked=chunked)
    received = await connection.run(turns=seed)
    assert (unchunked(received) if chunked else received) == b"".join(content for _, content in plans)


async def test_a_window_that_cannot_be_fetched_ends_the_transfer(http_server, line, pool):
    source = Fetched(pool, [[Literal(b"the first window")]], fails=True)
    connection = line(Windows(source.following))
    connection.start()
    assert await connection.read() == b"the first window"
    with pytest.raises(StoreCorrupt, match="away"):
        await connection.transfer.done


async def test_a_client_that_leaves_does_not_wait_for_a_window(http_server, line):
    fetched = Future()
    connection = line(Windows(lambda: fetched))
    connection.start()
    connection.transfer.abort(ConnectionResetError())
    assert not connection.transfer.done.done()  # the window is given back before its lease
    fetched.set_result([Literal(b"late")])
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(asyncio.shield(connection.transfer.done), DEADLINE)


async def test_a_stream_is_made_as_the_socket_takes_it_and_no_further(http_server, line):
    pulled = []

    def chunks(start, stop):
        for number in range(50):
            pulled.append(number)
            yield bytes([number]) * (1 << 20)

    one = line([ByteStream(chunks, 50 << 20)])
    one.start()
    await eventually(lambda: one.transfer._watching)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert len(pulled) == 1
    received = await one.read()
    assert received == b"".join(bytes([number]) * (1 << 20) for number in range(50))
    await one.transfer.done


@pytest.mark.parametrize(("quick", "calls"), [(True, [30_000, 30_000, 10_000, 20_000]), (False, 9)])
def test_quick_chunks_go_out_together(monkeypatch, quick, calls):
    """As many as make TOGETHER, without waiting for one that is not ready yet."""
    content, sent = random.Random(2).randbytes(90_000), []
    monkeypatch.setattr(sources, "TOGETHER", 25_000)
    plan = [10_000] * 7 + [0] + [10_000] * 2
    expected = calls if quick else [10_000] * calls

    class Counted:
        def sendmsg(self, parts):
            sent.append(sum(map(len, parts)))
            return ours.sendmsg(parts)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        stream = stream_of(content, plan, len(content))
        reader = StreamReader(replace(stream, quick=quick), chunked=False)
        if not quick:  # the loop is told that one is not ready
            assert reader.forward(Counted()) == (70_000, b"")
            assert not reader.ended
        assert reader.forward(Counted()) == ((90_000 if quick else 20_000), b"")
        assert reader.ended
        assert theirs.recv(1 << 20, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == content
    assert sent == expected


@pytest.mark.parametrize("leaves", ["stays", "shuts its side", "closes"])
def test_a_client_that_has_shut_its_side_is_asked_whether_it_is_there(leaves):
    """Once for each chunk that is not ready, by a zero before its size. Nothing else is sent."""
    reader = StreamReader(stream_of(b"chunk", [0, 0, 0, 5, 0, 0], None), chunked=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        if leaves == "closes":
            theirs.close()
            assert ours.recv(1, socket.MSG_PEEK) == b""
            assert reader.forward(ours) == (1, b"")
            eventually_reset(ours)
            with pytest.raises(ConnectionError):
                reader.forward(ours)
            return
        if leaves == "shuts its side":
            theirs.shutdown(socket.SHUT_WR)
            ours.recv(1, socket.MSG_PEEK)  # it has come
        sent = sum(reader.forward(ours)[0] for _ in range(6))
        text = theirs.recv(100)
        assert text == (b"5\r\nchunk\r\n" if leaves == "stays" else b"05\r\nchunk\r\n0")
        assert sent == len(text)


def eventually_reset(sock):
    """Until the reset has come, if one comes."""
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll(1000)


async def test_pages_that_are_not_in_memory_are_sent_from_a_thread(http_server, line, segment, monkeypatch):
    sent = []

    def send_cold(*args):
        sent.append(threading.current_thread())
        return sources.send_cold(*args)

    monkeypatch.setattr("streamsrv.web.sending.transfer.send_cold", send_cold)
    one = line([Span(1, 0, SIZE)])
    os.fsync(one.source)
    os.posix_fadvise(one.source, 0, 0, os.POSIX_FADV_DONTNEED)
    # The first probe is made to find nothing: whether the disk's pages are really gone, and still are, is the
    # kernel's to say (a probe alone may bring them back).
    probed = []

    def probe(*asked):
        probed.append(asked)
        return 0 if len(probed) == 1 else warm_bytes(*asked)

    monkeypatch.setattr("streamsrv.web.sending.transfer.warm_bytes", probe)
    assert await one.run() == segment[1]
    assert sent
    assert threading.main_thread() not in sent


@pytest.mark.parametrize("fault", [errno.EOPNOTSUPP, errno.EAGAIN])
async def test_a_file_system_that_cannot_tell_counts_as_cold(http_server, line, segment, monkeypatch, fault):
    def preadv(*args):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "preadv", preadv)
    one = line([Span(1, 7, SIZE - 7)])
    assert warm_bytes(one.source, 0, SIZE) == 0
    assert await one.run() == segment[1][7:]


async def test_other_faults_of_the_disk_end_the_transfer(http_server, line, monkeypatch):
    def preadv(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(OSError, match="Input/output error"):
        await line([Span(1, 0, SIZE)]).run()


def test_warm_bytes_stop_before_the_step_with_a_cold_page(segment, monkeypatch):
    def preadv(source, buffers, at, flags):
        if at // 4096 in cold:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    step = PROBE_STEP // 4096
    cold = {3 * step}
    assert warm_bytes(0, PROBE_STEP, PROBE_STEP + 5) == PROBE_STEP + 5
    assert warm_bytes(0, PROBE_STEP, 2 * PROBE_STEP) == 2 * PROBE_STEP
    assert warm_bytes(0, 3 * PROBE_STEP, 10) == 0
    assert warm_bytes(0, 3 * PROBE_STEP - 1, 2) == 0
    assert warm_bytes(0, 3 * PROBE_STEP - 1, 1) == 1
    cold = {4 * step - 1}  # the first page of the step is there, the last on its way
    assert warm_bytes(0, PROBE_STEP, SIZE) == 2 * PROBE_STEP
    assert warm_bytes(0, 3 * PROBE_STEP, PROBE_STEP) == 0
    assert warm_bytes(0, 3 * PROBE_STEP, PROBE_STEP - 4096) == PROBE_STEP - 4096


@pytest.mark.parametrize("cold", [False, True])
async def test_a_segment_that_ends_too_early_is_an_error(http_server, line, monkeypatch, cold):
    if cold:
        monkeypatch.setattr("streamsrv.web.sending.transfer.warm_bytes", lambda *_: 0)
    with pytest.raises(StoreCorrupt, match="a segment ends at byte"):
        await line([Span(1, SIZE - 10, 11)]).run()


@pytest.mark.parametrize(("length", "sizes"), [(10, [5]), (10, [5, 6]), (10, []), (10, [0, 5])])
async def test_a_stream_of_another_length_is_an_error(http_server, line, length, sizes):
    plan = [stream_of(b"x" * 100, sizes, length), Literal(b"end")]
    with pytest.raises(StoreCorrupt, match="a stream of"):
        await line(plan).run()


async def test_spans_that_nobody_opens_are_an_error(http_server, line):
    one = line([Span(1, 0, 10)])
    one.transfer._answer.file_at = None
    with pytest.raises(StoreCorrupt, match="no function that opens"):
        await one.run()


async def test_a_plan_that_fails_ends_the_transfer(http_server, line):
    def plan():
        yield Literal(b"first")
        raise RuntimeError("the plan is broken")

    with pytest.raises(RuntimeError, match="the plan is broken"):
        await line(plan(), chunked=True).run()


async def test_a_client_that_goes_ends_the_transfer(http_server, line):
    one = line([Span(1, 0, SIZE)])
    one.start()
    one.client.close()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(one.transfer.done, DEADLINE)


async def test_abort_waits_for_the_thread_and_closes_what_it_pulled(http_server, line):
    inside, leave, closed = threading.Event(), threading.Event(), []

    def chunks(start, stop):
        try:
            inside.set()
            leave.wait(DEADLINE)
            yield b"x"
        finally:
            closed.append(True)

    one = line([ByteStream(chunks, None)])
    one.start()
    await eventually(inside.is_set)
    one.transfer.abort(TimeoutError("too slow"))
    assert not one.transfer.done.done()
    leave.set()
    with pytest.raises(TimeoutError, match="too slow"):
        await asyncio.wait_for(one.transfer.done, DEADLINE)
    assert closed == [True]
    one.transfer.abort(RuntimeError("again"))


async def test_abort_of_a_reader_that_stopped_reading(http_server, line):
    closed = []

    def plan():
        try:
            while True:
                yield Literal(b"x" * 50_000)
        finally:
            closed.append(True)

    one = line(plan())
    one.start()
    await eventually(lambda: one.transfer._watching)
    one.transfer.abort(TimeoutError("too slow"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.transfer.done, DEADLINE)
    assert closed == [True]


async def test_others_get_their_turn_between_slices(http_server, line, segment):
    one = line([Span(1, 0, SIZE)] * 20)
    turns = 0

    async def count():
        nonlocal turns
        while not one.transfer.done.done():
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    received = await one.run()
    await counting
    assert len(received) == 20 * SIZE
    assert turns >= 20 * SIZE // SLICE


async def test_long_answers_move_one_in_each_turn_of_the_loop(http_server, line, segment):
    """The sockets take little, so that each has to wait again and again."""
    turns, moves = TurnQueue(), []
    lines = [line([Span(1, 0, SIZE)], turns=turns) for _ in range(3)]
    for number, one in enumerate(lines):
        move = one.transfer._move
        one.transfer._move = lambda number=number, move=move: (moves.append(number), move())
    reads = [asyncio.ensure_future(one.run()) for one in lines]
    in_one_turn = 0
    while not all(one.transfer.done.done() for one in lines):
        before = len(moves)
        await asyncio.sleep(0)
        if len(moves) > len(lines):  # all have begun
            in_one_turn = max(in_one_turn, len(moves) - before)
    assert in_one_turn == 1
    assert set(moves[-6:]) == {0, 1, 2}
    assert await asyncio.gather(*reads) == [segment[1]] * 3


async def test_short_answers_wait_for_nobodys_turn(http_server, line, segment):
    turns = TurnQueue()
    turns.queue(lambda: None)
    short = line([Span(1, 0, SHORT)], turns=turns, length=SHORT)
    turns.take = turns.queue = lambda *_: pytest.fail("a short answer asked for its turn")
    assert await short.run() == segment[1][:SHORT]


async def test_an_answer_that_is_aborted_in_the_queue_moves_no_more(http_server, line):
    turns = TurnQueue()
    one = line([Span(1, 0, SIZE)], turns=turns)
    one.start()
    turns.take = lambda: False
    one.client.recv(1 << 20)  # so that the socket takes more
    await eventually(lambda: one.transfer._queued)
    sent = one.transfer.sent
    one.transfer.abort(TimeoutError("too slow"))
    for move in turns._waiting:
        move()
    assert one.transfer.sent == sent
    with pytest.raises(TimeoutError):
        await one.transfer.done


def test_read_warm_reads_all_or_says_so(tmp_path, monkeypatch):
    path = tmp_path / "segment"
    path.write_bytes(b"0123456789")
    source = os.open(path, os.O_RDONLY)
    buffer = bytearray(4)
    assert read_warm(source, memoryview(buffer), 3)
    assert buffer == b"3456"
    with pytest.raises(StoreCorrupt):
        read_warm(source, memoryview(buffer), 8)
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", lambda *_: 3)  # the next page is not there
        assert not read_warm(source, memoryview(buffer), 3)
    assert read_warm(source, memoryview(bytearray()), 8)

    def refuse(error):
        def preadv(*_):
            raise error

        return preadv

    monkeypatch.setattr(os, "preadv", refuse(BlockingIOError()))
    assert not read_warm(source, memoryview(buffer), 0)
    monkeypatch.setattr(os, "preadv", refuse(OSError(errno.EOPNOTSUPP, "no")))
    assert not read_warm(source, memoryview(buffer), 0)
    monkeypatch.setattr(os, "preadv", refuse(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        read_warm(source, memoryview(buffer), 0)
    os.close(source)

"""The ways that an answer can take (streamsrv/web/fastpath) over real sockets: each gives the same bytes and
the same line in the log, and no request can pass anything on to the next one."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import io
import logging
import os
import re
import socket
import struct
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import Future

import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit
from waiting import waited

from streamsrv.audit.reading import entries_of
from streamsrv.audit.recorder import AuditRecorder
from streamsrv.audit.trail import Trail
from streamsrv.errors import StoreCorrupt
from streamsrv.ingest import Ingest
from streamsrv.metrics import RequestCounts
from streamsrv.server import actions, pixel_pool
from streamsrv.settings import Settings
from streamsrv.store.store import Store, StoreOptions
from streamsrv.web.access_log import AccessLog
from streamsrv.web.app import App
from streamsrv.web.auditing import RequestAudit
from streamsrv.web.connection.listener import Acceptor, Server
from streamsrv.web.connection.loop import BatchLoop
from streamsrv.web.fastpath.frames import Limits
from streamsrv.wire.answers import Answer, Deferred, Literal, Pending

SERIES = "/v2/studies/1.2.3/series/1.2.3.4/instances"
SMALL, NATIVE, LARGE, SHOWN, WIDE = "1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "1.2.3.4.4", "1.2.3.4.5"
SPARE = [f"1.2.3.4.6.{number}" for number in range(6)]  # equal to SMALL, but for tests that change them
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
MADE = 'multipart/related; type="image/jls"'
DEADLINE = 20.0
SETTLED = 2.1  # seconds after which an instance may be answered from a cache
PLAIN, HEADERS, CACHED = "plain", "known-headers", "cached-frame"
WAYS = PLAIN, HEADERS, CACHED


def part10(instance, frames, *, native=False, side=64):
    """Frames of random bytes, encapsulated or native."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.PatientID, dataset.Modality, dataset.NumberOfFrames = "ID1", "CT", len(frames)
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = b"".join(frames) if native else encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = not native
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if native else JPEGBaseline8Bit
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def codestreams():
    """Baseline JPEG goes out as stored; the progressive one (number 5) has to be rendered."""
    made = []
    for number in range(6):
        out = io.BytesIO()
        shades = Image.linear_gradient("L").resize((64, 64)).rotate(60 * number)
        shades.save(out, "JPEG", progressive=number == 4)
        made.append(out.getvalue() + b"\0" * (out.tell() % 2))
    return made


def tile(length):
    return b"\xff\xd8" + os.urandom(length) + b"\xff\xd9"


SHADES = codestreams()
TILES = [tile(1000 + 2 * number) for number in range(12)]
SLICES = [os.urandom(64 * 64) for _ in range(3)]
PICTURES = [os.urandom(1 << 20) for _ in range(6)]
WIDE_TILES = [tile(60000) for _ in range(2)]
FILES = [
    part10(SMALL, TILES),
    part10(NATIVE, SLICES, native=True),
    part10(LARGE, PICTURES, native=True, side=1024),
    part10(SHOWN, SHADES),
    part10(WIDE, WIDE_TILES),
    *(part10(instance, TILES) for instance in SPARE),
]


def keep(store, *contents):
    for content in contents:
        ingest = Ingest(store, content_type="application/dicom")
        ingest.begin()
        ingest.feed(content)
        assert not ingest.finish().failed


class Faults:
    """The frames that the fast path keeps; `raises` names the method that fails, `calls` counts them."""

    def __init__(self):
        self.raises = ""

    def wrapped(self, hot):
        return lambda request, target: (
            frames and Faulty(self, frames) if (frames := hot(request, target)) else None
        )


class Faulty:
    def __init__(self, faults, frames):
        self._faults, self._frames = faults, frames

    def __getattr__(self, name):
        if name == self._faults.raises:
            raise StoreCorrupt("not as it was written")
        return getattr(self._frames, name)


class Lines:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Worker:
    """One App of a World. `way` is the fastest that it knows."""

    def __init__(self, world, way, fast=Limits(), audit=None, **values):  # noqa: B008 - a constant
        self.world, self.lines, self.faults, self.audit = world, Lines(), Faults(), audit
        values = {"port": 0, "workers": 1, "fast_path": way != PLAIN} | values
        self.settings = dataclasses.replace(Settings(), **values)
        self.fast = fast._replace(templates=0) if way == HEADERS else fast
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.counts = RequestCounts()
        self.drained = None

    @property
    def answered(self):
        return self.counts.by_way()

    def start(self):
        work = actions(self.world.store, self.settings, self.world.pool, self.world.store)
        work = dataclasses.replace(work, cached_frames=self.faults.wrapped(work.cached_frames))
        as_json = self.settings.log_format == "json"
        log = AccessLog(self.lines, json=as_json, counts=self.counts)
        self.app = App(self.settings, work, log, audit=self.audit)
        self.server = Server(self.app, self.settings, self.fast)
        self.acceptor = Acceptor([self.listener], self.server, 100)
        self.acceptor.start()

    async def end(self):
        if self.drained is None:
            self.acceptor.stop()
            self.drained = await self.app.drain(DEADLINE)
            await self.server.close_all_connections()
            self.app.stop()
            self.listener.close()

    def stop(self):
        """Drains it, as SIGTERM does. Returns a future."""
        return asyncio.run_coroutine_threadsafe(self.end(), self.world.loop)

    def connect(self, **options):
        return Connection(self.port, **options)

    def slow(self, size=64 << 10):
        """A connection whose sockets do not take a frame at once: `size` is that of the worker's buffer."""
        connection, found = self.connect(receive_buffer=2048), []
        own = connection.socket.getsockname()

        def narrow(streams):
            with contextlib.suppress(OSError):  # a client that left
                found.extend(each for each in sockets(streams) if each.getpeername() == own)
            for each in found:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

        waited(lambda: self.call(narrow) or found)
        return connection

    def took(self, before, count):
        """How many of `count` requests were answered in which way, after the answers `before`."""
        waited(lambda: self.answered.total() >= before.total() + count)
        return self.answered - before

    def replace(self, **given):
        self.app._actions = dataclasses.replace(self.app._actions, **given)

    def call(self, work):
        """In the loop, with the streams of the connections that wait for a request."""
        self.world.call(lambda: work([key.stream for key in self.app.watch._heads]))

    def has_read(self, count):
        """Whether so many bytes of a head have arrived at one of its streams."""
        found = []
        self.call(lambda streams: found.extend(each._read_buffer_size for each in streams))
        return count in found

    def warm(self, connection, *requests):
        """Until each is answered in the fastest way."""
        before = self.answered.copy()
        for request in requests:
            for _ in range(3):
                connection.ask(request)
        self.took(before, 3 * len(requests))

    def logged(self, count=0):
        """Lines without time, seconds and request id; each with its way. Waits for `count` of them."""
        waited(lambda: self.lines.text.count("\n") >= count)
        own = (
            r'^\S+ | [\d.]+ [\w-]+ [\w-]+$|"at":"[^"]*"|"seconds":[\d.]+|"request_id":"[^"]*"|"way":"[\w-]+"'
        )
        lines = self.lines.text.splitlines()
        return [(re.sub(own, "", line), re.search(r'([a-z-]+)"?}?$', line)[1]) for line in lines]


class World:
    """A store, a pool of pixel processes, and workers in one thread."""

    def __init__(self, folder):
        self.store = Store.open(folder, StoreOptions(min_free=0))
        keep(self.store, *FILES)
        self.settled = time.time() + SETTLED
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.ready.wait(DEADLINE)
        time.sleep(max(0, self.settled - time.time()))

    def run(self):
        with asyncio.Runner(loop_factory=BatchLoop) as runner:
            runner.run(self.serve())

    async def serve(self):
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        self.pool = pixel_pool(Settings())
        self.ready.set()
        await self.stopped.wait()
        self.pool.close()

    def call(self, work):
        over = threading.Event()
        self.loop.call_soon_threadsafe(lambda: [work(), over.set()])
        assert over.wait(DEADLINE)

    def end(self):
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(DEADLINE)
        self.store.close()
        assert not self.thread.is_alive()


def sockets(streams):
    return [stream.socket for stream in streams if stream.socket is not None]


class Connection:
    opened = []  # closed at the end of each test  # noqa: RUF012 - meant to be shared

    def __init__(self, port, receive_buffer=0, source="127.0.0.1"):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", port))
        self.stream = self.socket.makefile("rb")
        Connection.opened.append(self)

    def send(self, *requests):
        self.socket.sendall(b"".join(requests))

    def answer(self, body=True):
        """Head and payload, as they came."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.stream.readline()
            assert line, f"the connection ended after {head!r}"
            head += line
        if body and b"\r\nTransfer-Encoding: chunked\r\n" in head:
            return head, b"".join(iter(self.chunk, b""))
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        return head, self.stream.read(int(length[1])) if body and length else b""

    def chunk(self):
        length = int(self.stream.readline(), 16)
        return self.stream.read(length + 2)[:length]

    def ask(self, request):
        self.send(request)
        return self.answer(not request.startswith(b"HEAD"))

    def frame(self, request):
        """The bytes between the head of the part and the closing boundary."""
        self.send(request)
        return self.next_frame()

    def next_frame(self):
        return self.answer()[1].partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]

    def shut(self):
        self.socket.shutdown(socket.SHUT_WR)

    def ended(self):
        return self.stream.read(1) == b""

    def close(self):
        self.stream.close()
        self.socket.close()


def ask_for(target, *headers, method="GET", host="localhost"):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def get(instance, number, *headers, accept=FRAME, **words):
    return ask_for(f"{SERIES}/{instance}/frames/{number}", f"Accept: {accept}", *headers, **words)


def shown(number, *headers, accept="image/jpeg", **words):
    return get(SHOWN, f"{number}/rendered", *headers, accept=accept, **words)


def comparable(answer):
    head, payload = answer
    payload = re.sub(rb'"instance": ?"[^"]*"', b"", payload) if b"problem+json" in head else payload
    return re.sub(rb"(Date|X-Request-ID): [^\r]*", rb"\1", head), payload


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The system may take pages out of memory at any time, and an answer would take another way.
        patch.setattr(os, "RWF_NOWAIT", 0)
        one = World(tmp_path_factory.mktemp("ways") / "data")
        yield one
        one.end()


@pytest.fixture
def start(world):
    running = []

    def begin(way=CACHED, **values):
        running.append(Worker(world, way, **values))
        world.call(running[-1].start)
        return running[-1]

    yield begin
    while Connection.opened:
        Connection.opened.pop().close()
    for one in running:
        one.stop().result(DEADLINE)


@pytest.fixture(params=WAYS)
def warm(request, start):
    """A worker, a connection, and the way that SMALL and LARGE take on it from now on."""
    worker = start(request.param)
    connection = worker.connect()
    worker.warm(connection, get(SMALL, 1), get(LARGE, 1))
    return worker, connection, request.param


@pytest.fixture
def cached(start):
    """A worker that has templates for SMALL and LARGE, and a connection."""
    worker = start()
    connection = worker.connect()
    worker.warm(connection, get(SMALL, 1), get(LARGE, 1))
    return worker, connection


# The table: a request, and the fastest way that its answer may take

TABLE = [
    *((get(SMALL, number), CACHED) for number in range(1, 13)),
    *((get(NATIVE, number), CACHED) for number in (1, 2, 3)),
    *((get(LARGE, number), CACHED) for number in (1, 6)),
    *((shown(number), CACHED) for number in (1, 2, 3, 4, 6)),
    (get(SMALL, 1, "Origin: https://viewer.example"), CACHED),
    (get(SMALL, 2, "Accept-Encoding: gzip, deflate, br", "Connection: keep-alive"), CACHED),
    (get(SMALL, 3, "Accept-Language: de%20s"), CACHED),
    (get(SMALL, 5, "Forwarded: for=192.0.2.7;proto=https;host=localhost"), CACHED),
    (get(SMALL, 1, "Accept: text/html"), CACHED),
    (shown(2, accept="*/*"), CACHED),
    (shown(3, "Origin: https://viewer.example"), CACHED),
    # Pages that may embed pictures, and others
    *((shown(3, f"Referer: https://{name}.example/"), CACHED) for name in ("viewer", "evil")),
    # Made, or more than one, or not a frame
    *((get(NATIVE, number, accept=MADE), HEADERS) for number in (1, 2, 3, "1,2", 4)),
    (get(LARGE, 1, accept=MADE), HEADERS),
    (shown(5), HEADERS),
    (shown(1, accept="multipart/related; type=image/jpeg"), HEADERS),
    (shown("1,2", accept="multipart/related; type=image/jpeg"), HEADERS),
    (get(SHOWN, "1/rendered?quality=90", accept="image/jpeg"), HEADERS),
    (get(SHOWN, "1/thumbnail", accept="image/jpeg"), HEADERS),
    (get(SMALL, "1,2"), HEADERS),
    (get(SMALL, "1?accept=image/jpeg"), HEADERS),
    # Refused
    *((get(SMALL, number), HEADERS) for number in (0, "01", 13, 99999999999)),
    (get("1.2.3.4.9", 1), HEADERS),
    (shown(7), HEADERS),
    (get(SHOWN, "1/rendered/", accept="image/jpeg"), HEADERS),
    (get(SHOWN, "/rendered", accept="image/jpeg"), HEADERS),
    (get(SMALL, 1, accept="text/html"), PLAIN),
    (get(SMALL, 1, host="evil.example"), PLAIN),
    # Read by Tornado each time: conditions, ranges, bodies, request ids, other methods
    *(
        (get(SMALL, 1, header), PLAIN)
        for header in ("Range: bytes=5-90", 'If-None-Match: "x"', "If-None-Match: *")
    ),
    (get(SMALL, 1, "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"), PLAIN),
    (get(SMALL, 1, "X-Request-ID: mine"), PLAIN),
    (get(SMALL, 1, "Content-Length: 0"), PLAIN),
    (get(SMALL, 1, "Want-Repr-Digest: sha-256=1"), PLAIN),
    (get(SMALL, 1, method="HEAD"), PLAIN),
    (shown(1, "Range: bytes=5-90"), PLAIN),
    (shown(1, 'If-None-Match: "x"'), PLAIN),
    (shown(1, method="HEAD"), PLAIN),
    (ask_for("http://localhost/v2/studies"), PLAIN),
    (ask_for("/v2/studies", "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), PLAIN),
    # Other resources
    *(
        (ask_for(target, *headers), HEADERS)
        for headers in ((), ("Accept-Encoding: gzip", "Origin: https://viewer.example"))
        for target in (
            "/health/live",
            "/v2/studies",
            "/v2/studies?PatientID=ID1",
            "/v2/studies?PatientID=absent",
            "/v2/studies?PatientID=%",
            "/v2/studies?nothing=1&limit=0",
            "/v2/studies?StudyInstanceUID=1/frames/1",
            "/v2/studies/1.2.3/series",
            f"{SERIES}?limit=1",
            f"{SERIES}/{SMALL}/metadata",
            f"{SERIES}/{SMALL}",
            f"{SERIES}/{LARGE}",
            f"{SERIES}/{NATIVE}/frames/1,3",
            f"{SERIES}/{NATIVE}/rendered",
            SERIES.removesuffix("/instances"),
            "/v2/studies/1.2.3/metadata",
            "/v2/studies/1.2.3?accept=text/css",
            "/v2/studies/x",
            "/v2/nothing",
            "/v2/openapi.json",
            "//evil.example/v2/studies",
        )
    ),
    (ask_for("/v2/studies", "Referer: x/frames/1 HTTP/1.1"), HEADERS),
]
VARIANTS = [
    {},
    {"cors_origins": ("*",)},
    {"cors_origins": ("https://viewer.example",), "cache_max_age": 60},
    {"public_url": "https://pacs.example/100%25/", "log_format": "json"},
    {"trusted_proxies": ("127.0.0.1",)},
]


@pytest.mark.parametrize("values", VARIANTS, ids=lambda values: "+".join(values) or "as it is")
def test_each_way_gives_the_same_answer_and_the_same_line(start, values):
    workers = {way: start(way, **values) for way in WAYS}
    connections = {way: worker.connect() for way, worker in workers.items()}
    asked = dict(zip(WAYS, (1, 2, 4), strict=True))  # from then on each way is the fastest
    for request, _ in TABLE:
        expected = comparable(connections[PLAIN].ask(request))
        for way in (HEADERS, CACHED):
            for _ in range(asked[way]):
                assert comparable(connections[way].ask(request)) == expected, (way, request)
    logged = {way: worker.logged(asked[way] * len(TABLE)) for way, worker in workers.items()}
    for number, (request, fastest) in enumerate(TABLE):
        line, _ = logged[PLAIN][number]
        for way in WAYS:
            count = asked[way]
            lines = logged[way][number * count : (number + 1) * count]
            assert [each for each, _ in lines] == [line] * count, (way, request)
            assert lines[-1][1] == min(way, fastest, key=WAYS.index), (way, request)
    for way, worker in workers.items():
        assert worker.answered == Counter(found for _, found in logged[way])


def test_frames_are_the_stored_ones(warm):
    _, connection, _ = warm
    for instance, frames in ((SMALL, TILES), (NATIVE, SLICES), (LARGE, PICTURES), (SHOWN, SHADES)):
        for _ in range(3):
            for number, frame in enumerate(frames, 1):
                assert connection.frame(get(instance, number)) == frame
    for number, picture in enumerate(SHADES, 1):
        for _ in range(3):
            shape = connection.ask(shown(number))[1]
            assert (shape == picture) is (number != 5)
            assert Image.open(io.BytesIO(shape)).size == (64, 64)


def test_each_answer_has_its_own_request_id_and_the_log_names_it(warm):
    worker, connection, _ = warm
    heads = [connection.ask(get(SMALL, 1))[0] for _ in range(20)]
    identifiers = {re.search(rb"X-Request-ID: (\w+)\r\n", head)[1].decode() for head in heads}
    assert len(identifiers) == 20
    waited(lambda: all(identifier in worker.lines.text for identifier in identifiers))


# Nothing is parsed by a fast way, so nothing can be smuggled


@pytest.mark.parametrize(
    "hidden",
    [
        b"Content-Length: %d\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Content-Length: +%d\r\n",
    ],
)
def test_no_body_becomes_a_request(warm, hidden):
    """A known header block with a body behind it that looks like another request."""
    worker, connection, _ = warm
    request, before = get(SMALL, 1), worker.answered.copy()
    length = hidden.replace(b"%d", b"%d" % len(request))
    connection.send(request[:-2] + length + b"\r\n" + request)
    connection.shut()
    received = connection.stream.read()
    assert received.count(TILES[0]) == (hidden == b"Content-Length: %d\r\n")
    assert set(worker.took(before, 1)) == {PLAIN}
    assert worker.connect().frame(request) == TILES[0]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\n", b"\n\r\n", b"\r\r\n\r\n"])
def test_odd_line_ends_are_never_cached(start, end):
    worker = start()
    for _ in range(4):
        connection = worker.connect()
        connection.send(get(SMALL, 1)[:-4] + end)
        connection.shut()
        connection.answer()
        connection.close()
    assert set(worker.answered) == {PLAIN}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v2/studies\x0c HTTP/1.1\r\nHost: localhost\r\n\r\n", b"40"),
        (b"GET /v2/studies?PatientID=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /v2/stud ies HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /v2/studies?a=1\r\nX: HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    ],
)
def test_an_odd_request_line_before_a_known_header_block_is_tornados(start, request_, status):
    worker = start()
    connection = worker.connect()
    connection.ask(ask_for("/v2/studies"))
    connection.send(request_)
    assert connection.answer()[0].startswith(b"HTTP/1.1 " + status)
    assert set(worker.answered) == {PLAIN}


def test_what_one_peer_sends_is_not_known_from_another(cached):
    worker, _ = cached
    other = worker.connect(source="127.0.0.2")
    for _ in range(3):
        assert other.frame(get(SMALL, 1)) == TILES[0]
    worker.logged(9)
    assert re.findall(r" 127\.0\.0\.2 .* ([a-z-]+)\n", worker.lines.text)[0] != CACHED


def test_pipelined_requests_are_answered_in_order(warm):
    _, connection, _ = warm
    for gap in (0, 0.002):
        wanted = []
        for number in (1, 2, 3, 4, 5, 6) * 4:
            for instance, frames in ((SMALL, TILES), (LARGE, PICTURES)):
                connection.send(get(instance, number))
                wanted.append(frames[number - 1])
                time.sleep(gap)
        for frame in wanted:
            assert connection.next_frame() == frame


def test_a_large_frame_holds_back_the_requests_behind_it(warm):
    """A client that reads nothing until it has sent everything, over a small window."""
    worker, connection, _ = warm
    slow, before = worker.slow(), worker.answered.copy()
    slow.send(get(LARGE, 2))
    waited(lambda: worker.app._active)
    slow.send(get(SMALL, 3))
    slow.send(get(LARGE, 3), get(SMALL, 4))
    time.sleep(0.05)
    assert connection.frame(get(SMALL, 2)) == TILES[1]
    assert worker.took(before, 1).total() == 1
    for frame in (PICTURES[1], TILES[2], PICTURES[2], TILES[3]):
        assert slow.next_frame() == frame


def test_a_request_in_pieces_is_tornados(cached):
    worker, connection = cached
    request, before = get(SMALL, 1), worker.answered.copy()
    for at in (1, 20, len(request) - 3, len(request) - 1):
        connection.send(request[:at])
        waited(lambda at=at: worker.has_read(at))
        connection.send(request[at:])
        assert connection.next_frame() == TILES[0]
    assert worker.took(before, 4) == {PLAIN: 4}
    assert connection.frame(request) == TILES[0]
    assert worker.took(before, 5) == {PLAIN: 4, CACHED: 1}


def test_nothing_behind_the_last_request_is_answered(warm, caplog):
    worker, known, _ = warm
    before = worker.answered.copy()
    for instance in (SMALL, LARGE):
        connection = worker.connect()
        connection.send(get(SMALL, 2, "Connection: close"), get(instance, 1))
        assert connection.next_frame() == TILES[1]
        assert connection.ended()
    known.ask(get(SMALL, 1))
    assert worker.took(before, 3).total() == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_browser_mixes_preflights_frames_and_searches_on_one_connection(start):
    worker = start(cors_origins=("*",))
    connection, origin = worker.connect(), "Origin: https://viewer.example"
    preflight = get(SMALL, 1, origin, "Access-Control-Request-Method: GET", method="OPTIONS")
    for turn in range(100):
        assert connection.ask(preflight)[0].startswith(b"HTTP/1.1 204 ")
        assert connection.frame(get(SMALL, turn % 12 + 1, origin)) == TILES[turn % 12]
        assert b"0020000D" in connection.ask(ask_for("/v2/studies?limit=1", origin))[1]
    assert worker.answered[CACHED] >= 95
    assert worker.answered[HEADERS] >= 95


# What changes


def test_a_deleted_instance_is_not_found(start, world):
    worker = start()
    connection = worker.connect()
    gone, kept = SPARE[:2]
    worker.warm(connection, get(gone, 1), get(kept, 1))
    world.store.delete("1.2.3", "1.2.3.4", gone)
    for number in (1, 2):
        assert connection.ask(get(gone, number))[0].startswith(b"HTTP/1.1 404 ")
    before = worker.took(Counter(), 8)
    assert connection.frame(get(kept, 1)) == TILES[0]
    assert worker.took(before, 1) == {CACHED: 1}


def test_a_replaced_instance_is_the_new_one(start, world):
    worker = start()
    connection, instance = worker.connect(), SPARE[2]
    request = get(instance, 1)
    worker.warm(connection, request)
    old = connection.ask(request)
    world.store.delete("1.2.3", "1.2.3.4", instance)
    keep(world.store, part10(instance, TILES[::-1]))
    before = worker.answered[CACHED]
    for _ in range(4):  # new ones get Last-Modified only later, and are not cached until then
        new = connection.ask(request)
        assert TILES[-1] in new[1]
        assert re.search(rb"ETag: .*", new[0])[0] != re.search(rb"ETag: .*", old[0])[0]
    assert worker.answered[CACHED] == before
    time.sleep(SETTLED)
    worker.warm(connection, request)
    assert TILES[-1] in connection.ask(request)[1]
    assert worker.answered[CACHED] > before


def test_segments_are_closed_after_a_while(tmp_path, start, world):
    worker = start(fast=Limits(linger=0.02, segments=2))
    connection = worker.connect()
    worker.warm(connection, get(SMALL, 1), get(LARGE, 1))
    assert worker.answered[CACHED]
    waited(lambda: not world.store.readers._open)


def test_a_long_frame_that_cannot_be_read_gives_its_segment_back(start, world, monkeypatch):
    worker = start(fast=Limits(linger=0.02, segments=2))
    connection, failed = worker.connect(), []
    send = worker.app.writer.send_span

    def fail_once(*given):
        if failed:
            return send(*given)
        failed.append(OSError(errno.EIO, "it cannot be read"))
        raise failed[-1]

    worker.warm(connection, get(LARGE, 1))
    monkeypatch.setattr(worker.app.writer, "send_span", fail_once)
    assert connection.ask(get(LARGE, 1))[0].startswith(b"HTTP/1.1 200 ")
    assert failed
    waited(lambda: not world.store.readers._open)


def test_little_is_kept(start):
    worker = start(fast=Limits(prepared=5, templates=2, once=4, headers=8))
    connection = worker.connect()
    for turn in range(3):
        for language in range(8):
            for number in (1, 2, 3):
                request = get(SMALL, number, f"Accept-Language: l{language}")
                assert connection.frame(request) == TILES[number - 1], turn
    frames, headers = worker.server.fast_path.frames, worker.server.fast_path.headers
    assert len(frames._prepared) <= 5
    assert len(frames._templates) <= 2
    assert len(frames._once) <= 4
    assert len(headers) <= 8
    assert worker.answered[CACHED]


# What fails


def test_a_cold_frame_takes_another_way(cached, monkeypatch):
    worker, connection = cached
    before, preadv = worker.took(Counter(), 6), os.preadv

    def cold(source, buffers, offset, flags=None):
        if flags is not None:
            raise BlockingIOError
        return preadv(source, buffers, offset)

    monkeypatch.setattr(os, "preadv", cold)
    assert connection.frame(get(SMALL, 1)) == TILES[0]
    assert CACHED not in worker.took(before, 1)


@pytest.mark.parametrize("what", ["is_current", "at", "lease", "version_at_hand"])
def test_what_fails_in_a_fast_way_is_left_to_the_next_one(cached, what):
    worker, connection = cached
    before = worker.took(Counter(), 6)
    worker.call(lambda _: worker.server.fast_path.close())  # so that it has to lease
    worker.faults.raises = what
    assert connection.frame(get(SMALL, 2)) == TILES[1]
    connection.send(get(SMALL, 1), get(SMALL, 2), get(SMALL, 3))
    for number in range(3):
        assert connection.next_frame() == TILES[number]
    assert CACHED not in worker.took(before, 4)


def test_a_failure_is_told_on_each_way(warm, caplog):
    worker, connection, _ = warm
    worker.warm(connection, ask_for("/v2/studies"))
    worker.replace(search=lambda *_: 1 // 0)
    assert connection.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 500 ")
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_an_answer_that_cannot_be_written_is_a_failure(warm):
    worker, connection, _ = warm
    worker.warm(connection, ask_for("/v2/studies"))
    released = []
    answers = iter([Answer(200, [("X", "a\r\nb")], release=lambda: released.append(1)) for _ in range(3)])
    worker.replace(search=lambda *_: next(answers))
    assert connection.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 500 ")
    assert connection.ended()
    assert released


def test_a_failure_behind_an_answer_is_logged(start, caplog):
    worker = start()
    connection = worker.connect()
    connection.ask(ask_for("/v2/studies"))
    worker.replace(search=lambda *_: Answer(200, [], (Literal(b"text"),), 4, release=lambda: 1 // 0))
    for _ in range(2):
        assert connection.ask(ask_for("/v2/studies"))[1] == b"text"
    worker.logged(3)
    assert sum(bool(record.exc_info) for record in caplog.records) == 2


def test_a_search_that_blocks_is_computed_once_in_a_thread(warm, world):
    worker, connection, _ = warm
    asked, usual = [], worker.app._actions.search
    worker.warm(connection, ask_for("/v2/studies"))

    def search(request, target):
        here = threading.current_thread() is world.thread
        asked.append(here)
        return Deferred(lambda: search(request, target)) if here else usual(request, target)

    worker.replace(search=search)
    for _ in range(3):
        assert connection.ask(ask_for("/v2/studies?PatientID=ID1"))[0].startswith(b"HTTP/1.1 200 ")
    assert asked == [True, False] * 3


def test_without_a_thread_a_request_is_told_and_its_worker_lives(start, monkeypatch):
    worker = start()
    connection, other = worker.connect(), worker.connect()
    for each in (connection, other):
        each.ask(ask_for("/health/live"))
    refused, start_thread = [True], threading.Thread.start

    def refuse(thread):
        if refused and thread.name.startswith("streamsrv-"):
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert connection.ask(ask_for("/v2/studies/1.2.3/metadata"))[0].startswith(b"HTTP/1.1 500 ")
    assert other.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 200 ")
    refused.clear()
    assert connection.ask(ask_for("/v2/studies/1.2.3/metadata"))[0].startswith(b"HTTP/1.1 200 ")


# An answer that is waited for


class Made:
    """A search that waits for pixels; the answer is computed in the loop when they are there."""

    def __init__(self, worker):
        self.until, self.left, self.begun = Future(), 0, True
        self.asked = 0
        worker.replace(search=self.search)

    def search(self, request, target):
        self.asked += 1
        return Pending(self.until, self.finish, self.cancel)

    def finish(self, payload):
        return Answer(200, [], (Literal(payload),), len(payload))

    def cancel(self):
        self.left += 1
        if not self.begun:
            self.until.cancel()
            self.until.set_running_or_notify_cancel()


@pytest.fixture(params=[PLAIN, HEADERS])
def made(request, start):
    """A request waits for an answer."""
    worker = start(request.param)
    connection = worker.connect()
    connection.ask(ask_for("/v2/studies"))
    making = Made(worker)
    connection.send(ask_for("/v2/studies?PatientID=ID1"))
    waited(lambda: making.asked)
    return worker, connection, making, request.param


def test_what_came_behind_a_waiting_request_waits_too(made):
    worker, connection, making, way = made
    connection.send(ask_for("/health/live"))
    connection.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.socket.recv(1)
    connection.socket.settimeout(DEADLINE)
    making.until.set_result(b"made")
    assert connection.answer()[1] == b"made"
    assert connection.answer()[0].startswith(b"HTTP/1.1 200 ")
    assert (making.asked, making.left) == (1, 0)
    waited(lambda: not worker.app._active)
    assert worker.logged(3)[1][1] == way


def test_a_client_that_has_shut_its_side_gets_what_was_begun(made):
    _, connection, making, _ = made
    connection.shut()
    waited(lambda: making.left)
    making.until.set_result(b"made")
    assert connection.answer()[1] == b"made"
    assert connection.ended()
    assert making.left == 1


def test_nothing_is_begun_for_a_client_that_has_shut_its_side(made):
    worker, connection, making, _ = made
    making.begun = False
    connection.shut()
    head, body = connection.answer()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"before the turn" in body
    assert connection.ended()
    waited(lambda: not worker.app._active)
    assert (making.asked, making.left) == (1, 1)


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_has_broken_off_leaves_once(made, begun):
    worker, connection, making, _ = made
    making.begun = begun
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    waited(lambda: making.left)
    if begun:
        making.until.set_result(b"made")
    waited(lambda: not worker.app._active)
    waited(lambda: " 499 " in worker.lines.text)
    assert making.left == 1


def test_a_drained_worker_sends_what_was_waited_for_and_closes(made):
    worker, connection, making, way = made
    if way == HEADERS:
        connection.send(ask_for("/health/live"))  # not read, and no reason for a reset
    ended = worker.stop()
    waited(lambda: worker.app.draining)
    making.until.set_result(b"made")
    head, body = connection.answer()
    assert b"\r\nConnection: close\r\n" in head
    assert body == b"made"
    assert connection.ended()
    ended.result(DEADLINE)
    assert worker.drained


def test_an_answer_leaves_nothing_to_the_garbage_collector(warm):
    _, connection, _ = warm
    requests = [get(NATIVE, number, accept=MADE) for number in (1, 2, 3)] + [get(LARGE, 1)] * 2
    for request in requests:
        connection.ask(request)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for request in requests:
            assert connection.ask(request)[0].startswith(b"HTTP/1.1 200 ")
        connection.ask(ask_for("/health/live"))
        gc.collect()
        left = [one for one in gc.garbage if type(one).__module__.startswith(("streamsrv", "framecodecs"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


# Clients that are slow or leave, and a worker that ends


@pytest.fixture(params=WAYS)
def slow(request, start):
    """A worker, and a client to which it has sent a part of a small frame."""

    def begin(**values):
        worker = start(request.param, **values)
        known = worker.connect()
        worker.warm(known, get(WIDE, 1))
        connection = worker.slow(4096)
        connection.send(get(WIDE, 1))
        waited(lambda: worker.app._active)
        return worker, connection, request.param

    return begin


def test_a_small_frame_goes_on_after_the_client_has_shut_its_side(slow):
    worker, connection, way = slow()
    connection.shut()
    time.sleep(0.05)
    assert connection.next_frame() == WIDE_TILES[0]
    assert connection.ended()
    assert worker.logged(4)[-1][1] == way


def test_a_small_frame_is_ended_before_the_worker_is(slow):
    worker, connection, _ = slow()
    ended = worker.stop()
    time.sleep(0.05)
    assert connection.next_frame() == WIDE_TILES[0]
    ended.result(DEADLINE)
    assert worker.drained


def test_a_client_that_reads_nothing_is_cut_off(slow):
    worker, connection, _ = slow(stall_timeout=0.2)
    waited(lambda: " 499 " in worker.lines.text)
    assert len(connection.stream.read()) < len(WIDE_TILES[0])


def test_frames_in_a_row_over_a_narrow_way(slow):
    _, connection, _ = slow()
    for turn in range(1, 6):
        connection.send(get(WIDE, turn % 2 + 1))
        time.sleep(0.02)
    for turn in range(6):
        assert connection.next_frame() == WIDE_TILES[turn % 2]


def test_a_client_that_has_shut_its_side_gets_its_frame(warm):
    worker, _, _ = warm
    for instance, frames in ((SMALL, TILES), (LARGE, PICTURES)):
        connection = worker.connect()
        connection.send(get(instance, 1))
        connection.shut()
        assert connection.next_frame() == frames[0]
        assert connection.ended()


def test_a_client_that_leaves_within_a_frame(warm):
    worker, known, way = warm
    for _ in range(3):
        gone = worker.slow()
        gone.send(get(LARGE, 1))
        gone.socket.recv(100)
        gone.close()
    assert known.frame(get(LARGE, 2)) == PICTURES[1]
    waited(lambda: worker.lines.text.count(" 499 ") == 3)
    waited(lambda: not worker.app._active)
    assert [found for line, found in worker.logged() if " 499 " in line] == [way] * 3


def test_a_drained_worker_ends_a_frame_and_closes(warm):
    worker, known, _ = warm
    connection = worker.slow()
    connection.send(get(LARGE, 1))
    waited(lambda: worker.app._active)
    ended = worker.stop()
    assert connection.next_frame() == PICTURES[0]
    assert connection.ended()
    assert known.ended()
    ended.result(DEADLINE)
    assert worker.drained


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(start):
    worker = start(idle_timeout=0.4)
    busy, idle = worker.connect(), worker.connect()
    worker.warm(busy, get(SMALL, 1))
    idle.ask(get(SMALL, 1))
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        assert busy.frame(get(SMALL, 1)) == TILES[0]
        time.sleep(0.02)
    assert idle.ended()
    assert busy.ended()


def test_a_stream_of_a_closed_connection_is_freed_at_once(start):
    worker, streams = start(), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            connection = worker.connect()
            connection.ask(get(SMALL, 1))
            waited(lambda: worker.app.watch._heads)
            worker.call(lambda found: streams.extend(map(weakref.ref, found)))
            connection.close()
            waited(lambda: not worker.app.watch._heads)
        waited(lambda: not any(stream() for stream in streams))
    finally:
        gc.enable()
    assert len(streams) == 3


# The audit trail


class Clock:
    def __init__(self):
        self.at = 1_700_000_000.0

    def __call__(self):
        return self.at


@pytest.mark.parametrize("way", WAYS)
def test_equal_requests_make_one_entry_a_minute(start, tmp_path, way):
    clock = Clock()
    audit = AuditRecorder(Trail(tmp_path / "audit"), clock=clock)
    noted = RequestAudit(audit)
    worker = start(way, audit=noted)
    connection = worker.connect()
    worker.warm(connection, get(SMALL, 1))
    for _ in range(3):
        before = worker.answered.copy()
        for number in range(1, 11):
            connection.ask(get(SMALL, number))
        assert worker.took(before, 10) == {way: 10}
        clock.at += 60
        worker.call(lambda streams: noted.refresh())
    audit.close()
    found = [(each["event"], each["study"], each["at"]) for each in entries_of(tmp_path / "audit")]
    minutes = [f"2023-11-14T22:{minute}:20.000Z" for minute in (13, 14, 15)]
    assert found == [("instances-accessed", "1.2.3", at) for at in minutes]

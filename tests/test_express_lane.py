"""The express lane (streamsrv/web/fastpath/frames.py) over real sockets, against the usual way: the same
answers, the same lines in the log, and nothing that a request could carry over from one to the other."""

import asyncio
import dataclasses
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
from concurrent.futures import Future

import imagecodecs
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from streamsrv.errors import NotFound, StoreCorrupt, StoreError, WouldBlock
from streamsrv.ingest import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.single_flight import UnderWay
from streamsrv.retrieve import cached_frames, cached_pictures, cached_series
from streamsrv.server import actions, pixel_pool
from streamsrv.settings import Settings
from streamsrv.store.store import Store, StoreOptions
from streamsrv.web.access_log import AccessLog
from streamsrv.web.app import App
from streamsrv.web.connection.exchange import Exchange
from streamsrv.web.connection.listener import Acceptor, Server
from streamsrv.web.connection.loop import Loop
from streamsrv.web.connection.stream import Stream
from streamsrv.web.fastpath import frames as lanes
from streamsrv.web.fastpath import headers as known_words
from streamsrv.web.fastpath import series as series_lane
from streamsrv.web.fastpath.known_request import Known
from streamsrv.web.fastpath.templates import SeriesTemplate
from streamsrv.web.sending import transfer as transfers
from streamsrv.wire import conditional
from streamsrv.wire.answers import Answer, Literal

SERIES = "/v2/studies/1.2.3/series/1.2.3.4/instances"
SMALL, NATIVE, LARGE, SHOWN = "1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "1.2.3.4.4"
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
DEADLINE = 20.0


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
    """Pictures as they stand, but for one that has to be drawn."""
    made = []
    for number in range(6):
        out = io.BytesIO()
        shades = Image.linear_gradient("L").resize((64, 64)).rotate(60 * number)
        shades.save(out, "JPEG", progressive=number == 4)
        made.append(out.getvalue() + b"\0" * (out.tell() % 2))
    return made


SHADES = codestreams()
TILES = [b"\xff\xd8" + os.urandom(1000 + 2 * number) + b"\xff\xd9" for number in range(12)]
SLICES = [os.urandom(64 * 64) for _ in range(3)]
PICTURES = [os.urandom(1 << 20) for _ in range(6)]
FILES = [
    part10(SMALL, TILES),
    part10(NATIVE, SLICES, native=True),
    part10(LARGE, PICTURES, native=True, side=1024),
    part10(SHOWN, SHADES),
]


class Lines:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def run_in_ours(work):
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(work)


class Local:
    """A worker in a thread of its own."""

    def __init__(self, store, **values):
        self.settings = dataclasses.replace(Settings(), port=0, workers=1, **values)
        self.store, self.lines = store, Lines()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: run_in_ours(self.serve()))
        self.thread.start()
        assert self.ready.wait(DEADLINE)

    async def serve(self):
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        pool = pixel_pool(self.settings)
        work = actions(self.store, self.settings, pool)
        log = AccessLog(self.lines, json=self.settings.log_format == "json")
        self.app = App(self.settings, work, log)
        server = Server(self.app, self.settings)
        acceptor = Acceptor([self.listener], server, 100)
        acceptor.start()
        self.ready.set()
        await self.stopped.wait()
        acceptor.stop()
        self.drained = await self.app.drain(DEADLINE)
        await server.close_all_connections()
        self.app.stop()
        pool.close()

    def stop(self):
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(DEADLINE)
        self.listener.close()
        assert not self.thread.is_alive()

    @property
    def answered(self):
        return self.app.lane.answered if self.app.lane else 0

    def connect(self, **options):
        return Connection(self.port, **options)

    def call(self, work):
        """In the loop, with the streams of the connections that wait for a request."""
        over = threading.Event()

        def run():
            work([key.stream for key in self.app.watch._heads])
            over.set()

        self.loop.call_soon_threadsafe(run)
        assert over.wait(DEADLINE)


class Connection:
    opened = []  # closed at the end of each test  # noqa: RUF012 - meant to be shared

    def __init__(self, port, receive_buffer=0):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
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
        return self.answer()

    def ended(self):
        return self.stream.read(1) == b""

    def close(self):
        self.stream.close()
        self.socket.close()


def get(instance, number, *headers, method="GET", host="localhost", accept=FRAME):
    lines = [f"{method} {SERIES}/{instance}/frames/{number} HTTP/1.1", f"Host: {host}", f"Accept: {accept}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def shown(number, *headers, **words):
    return get(SHOWN, f"{number}/rendered", *headers, **{"accept": "image/jpeg", **words})


def comparable(answer):
    head, payload = answer
    payload = re.sub(rb'"instance": ?"[^"]*"', b"", payload) if b"problem+json" in head else payload
    return re.sub(rb"(Date|X-Request-ID): [^\r]*", rb"\1", head), payload


def payload_of(answer):
    """The frame: what is between the part's head and the closing boundary."""
    return answer[1].partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(conditional, "SETTLED", -1)
    monkeypatch.setattr(cached_frames, "SETTLED", -1)
    monkeypatch.setattr(cached_frames, "_shapes", {})
    monkeypatch.setattr(cached_pictures, "_shapes", {})
    monkeypatch.setattr(cached_series, "_shapes", {})
    # The system may take pages out of memory at any time, and what is counted here would be another number.
    monkeypatch.setattr(os, "RWF_NOWAIT", 0)
    with Store.open(tmp_path / "data", StoreOptions(min_free=0)) as opened:
        keep(opened, *FILES)
        yield opened


def keep(store, *contents):
    for content in contents:
        ingest = Ingest(store, content_type="application/dicom")
        ingest.feed(content)
        assert not ingest.finish().failed


@pytest.fixture
def start(store):
    running = []

    def begin(**values):
        running.append(Local(store, **values))
        return running[-1]

    yield begin
    while Connection.opened:
        Connection.opened.pop().close()
    for one in running:
        one.stop()


def eventually(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def warm(local, connection, *requests):
    """Asked for often enough to be known."""
    for request in requests:
        for _ in range(3):
            connection.ask(request)
    before = local.answered
    for request in requests:
        connection.ask(request)
    assert local.answered == before + len(requests)


# The same answers

REQUESTS = [
    *(get(SMALL, number) for number in range(1, 13)),
    *(get(NATIVE, number) for number in (1, 2, 3)),
    *(get(LARGE, number) for number in (1, 6)),
    get(SMALL, 1, "Origin: https://viewer.example"),
    get(SMALL, 2, "Accept-Encoding: gzip, deflate, br", "Connection: keep-alive"),
    get(SMALL, 3, "Accept-Language: de%20s"),
    get(SMALL, 5, "Forwarded: for=192.0.2.7;proto=https;host=localhost"),
    *(shown(number) for number in (1, 2, 3, 4, 6)),
    shown(2, accept="*/*"),
    shown(3, "Origin: https://viewer.example"),
]
PARTICULAR = [
    get(SMALL, 0),
    get(SMALL, "01"),
    get(SMALL, 13),
    get(SMALL, 99999999999),
    get(SMALL, "1,2"),
    get(SMALL, 1, "Range: bytes=5-90"),
    get(SMALL, 1, 'If-None-Match: "x"'),
    get(SMALL, 1, "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"),
    get(SMALL, 1, "Accept: text/html"),
    get(SMALL, 1, host="evil.example"),
    get(SMALL, 1, "X-Request-ID: mine"),
    get(SMALL, 1, "Content-Length: 0"),
    get(SMALL, "1?accept=image/jpeg"),
    get("1.2.3.4.9", 1),
    get(SMALL, 1, method="HEAD"),
    shown(5),
    shown(7),
    shown("1,2", accept="multipart/related; type=image/jpeg"),
    shown(1, accept="multipart/related; type=image/jpeg"),
    shown(1, "Range: bytes=5-90"),
    shown(1, 'If-None-Match: "x"'),
    shown(1, method="HEAD"),
    get(SHOWN, "1/rendered?quality=90", accept="image/jpeg"),
    get(SHOWN, "1/thumbnail", accept="image/jpeg"),
    get(SHOWN, "1/rendered/", accept="image/jpeg"),
    get(SHOWN, "/rendered", accept="image/jpeg"),
]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cors_origins": ("*",)},
        {"cors_origins": ("https://viewer.example",), "cache_max_age": 60},
        {"public_url": "https://pacs.example/100%25/", "log_format": "json"},
        {"trusted_proxies": ("127.0.0.1",)},
    ],
    ids=lambda values: "+".join(values) or "as it is",
)
def test_every_request_has_the_same_answer_without_the_lane(start, values):
    fast, slow = start(**values), start(fast_path=False, **values)
    one, other = fast.connect(), slow.connect()
    for request in [*REQUESTS, *PARTICULAR]:
        for _ in range(4):
            body = not request.startswith(b"HEAD")
            one.send(request)
            other.send(request)
            assert comparable(one.answer(body)) == comparable(other.answer(body)), request
    # Each of the first ones but those whose words are new takes the lane from its third time on.
    assert fast.answered >= 2 * len(REQUESTS)
    assert slow.answered == 0
    eventually(lambda: len(logged(fast)) == len(logged(slow)))
    assert logged(fast) == logged(slow)


def logged(local):
    """The lines of the log without the time, the seconds and the request id."""
    own = r'^\S+ | [\d.]+ [\w-]+$|"at":"[^"]*"|"seconds":[\d.]+|"request_id":"[^"]*"'
    return [re.sub(own, "", line) for line in local.lines.text.splitlines()]


def test_the_frames_are_the_stored_ones(start):
    local = start()
    connection = local.connect()
    for instance, frames in ((SMALL, TILES), (NATIVE, SLICES), (LARGE, PICTURES)):
        for _ in range(3):
            for number, frame in enumerate(frames, 1):
                assert payload_of(connection.ask(get(instance, number))) == frame
    assert local.answered >= 2 * (len(TILES) + len(SLICES) + len(PICTURES)) - 6


def test_the_pictures_are_the_stored_frames(start):
    local = start()
    connection = local.connect()
    for _ in range(3):
        for number, picture in enumerate(SHADES, 1):
            head, made = connection.ask(shown(number))
            assert b"\r\nContent-Type: image/jpeg\r\n" in head
            assert (made == picture) is (number != 5)
            assert Image.open(io.BytesIO(made)).size == (64, 64)
    assert local.answered >= 2 * (len(SHADES) - 1) - 2


def test_a_replaced_picture_is_the_new_one(start, store):
    local = start()
    connection = local.connect()
    warm(local, connection, shown(1), shown(2))
    store.delete("1.2.3", "1.2.3.4", SHOWN)
    assert connection.ask(shown(1))[0].startswith(b"HTTP/1.1 404 ")
    keep(store, part10(SHOWN, SHADES[::-1]))
    assert connection.ask(shown(1))[1] == SHADES[-1]
    assert Image.open(io.BytesIO(connection.ask(shown(2))[1])).size == (64, 64)
    warm(local, connection, shown(1))


def test_a_cold_head_goes_the_usual_way(start, monkeypatch):
    local = start()
    connection = local.connect()
    warm(local, connection, shown(1))
    before = local.answered
    monkeypatch.setattr(cached_pictures, "head_at_hand", lambda *_: None)
    assert connection.ask(shown(2))[1] == SHADES[1]
    assert local.answered == before


def test_each_answer_has_a_request_id_of_its_own_that_the_log_names(start):
    local = start()
    connection = local.connect()
    heads = [connection.ask(get(SMALL, 1))[0] for _ in range(20)]
    identifiers = [re.search(rb"X-Request-ID: (\w+)\r\n", head)[1].decode() for head in heads]
    assert len(set(identifiers)) == 20
    assert local.answered == 18, local.lines.text
    eventually(lambda: all(identifier in local.lines.text for identifier in identifiers))


# On one connection with everything else


def test_a_browser_mixes_preflights_frames_and_searches_on_one_connection(start):
    local = start(cors_origins=("*",))
    connection = local.connect()
    origin = "Origin: https://viewer.example"
    preflight = get(SMALL, 1, origin, "Access-Control-Request-Method: GET", method="OPTIONS")
    search = f"GET /v2/studies?limit=1 HTTP/1.1\r\nHost: localhost\r\n{origin}\r\n\r\n".encode()
    for turn in range(100):
        assert connection.ask(preflight)[0].startswith(b"HTTP/1.1 204 ")
        assert payload_of(connection.ask(get(SMALL, turn % 12 + 1, origin))) == TILES[turn % 12]
        assert b"0020000D" in connection.ask(search)[1]
    assert local.answered >= 95


def test_pipelined_requests_are_answered_in_order(start):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1), get(LARGE, 1))
    for gap in (0, 0.002):
        wanted = []
        for number in (1, 2, 3, 4, 5, 6) * 4:
            for instance, frames in ((SMALL, TILES), (LARGE, PICTURES)):
                connection.send(get(instance, number))
                wanted.append(frames[number - 1])
                time.sleep(gap)
        for frame in wanted:
            assert payload_of(connection.answer()) == frame


def test_a_large_frame_holds_back_what_was_sent_after_it(start):
    """A client that reads nothing until it has sent everything, over a small window."""
    local = start()
    known = local.connect()
    warm(local, known, get(SMALL, 1), get(LARGE, 1))
    slow = local.connect(receive_buffer=4096)
    before = local.answered
    slow.send(get(LARGE, 2))
    eventually(lambda: local.answered == before + 1)
    slow.send(get(SMALL, 3))
    slow.send(get(LARGE, 3), get(SMALL, 4))
    time.sleep(0.05)
    assert payload_of(known.ask(get(SMALL, 2))) == TILES[1]
    for frame in (PICTURES[1], TILES[2], PICTURES[2], TILES[3]):
        assert payload_of(slow.answer()) == frame


def test_a_request_in_pieces_goes_the_usual_way(start):
    local = start()
    connection = local.connect()
    request = get(SMALL, 1)
    warm(local, connection, request)
    before = local.answered
    for at in (1, 20, len(request) - 3, len(request) - 1):
        connection.send(request[:at])
        time.sleep(0.01)
        connection.send(request[at:])
        assert payload_of(connection.answer()) == TILES[0]
    assert local.answered == before
    assert payload_of(connection.ask(request)) == TILES[0]
    assert local.answered == before + 1


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
def test_no_body_becomes_a_request(start, hidden):
    """The words of a known request with a body behind it that looks like another."""
    local = start()
    connection = local.connect()
    request = get(SMALL, 1)
    warm(local, connection, request)
    before = local.answered
    length = hidden.replace(b"%d", b"%d" % len(request))
    connection.send(request[:-2] + length + b"\r\n" + request)
    connection.socket.shutdown(socket.SHUT_WR)
    received = connection.stream.read()
    assert local.answered == before
    assert received.count(TILES[0]) == (hidden == b"Content-Length: %d\r\n")
    again = local.connect()
    assert payload_of(again.ask(request)) == TILES[0]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\n", b"\n\r\n", b"\r\r\n\r\n"])
def test_odd_line_ends_are_never_learnt(start, end):
    local = start()
    odd = get(SMALL, 1)[:-4] + end
    for _ in range(4):
        connection = local.connect()
        connection.send(odd)
        connection.socket.shutdown(socket.SHUT_WR)
        connection.answer()
        connection.close()
    assert local.answered == 0


def test_words_in_the_query_or_the_headers_are_no_frame(start):
    local = start()
    connection = local.connect()
    for line in (
        b"GET /v2/studies?StudyInstanceUID=1/frames/1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nReferer: x/frames/1 HTTP/1.1\r\n\r\n",
    ):
        answers = [comparable(connection.ask(line)) for _ in range(4)]
        assert len(set(answers)) == 1
    assert local.answered == 0


# What changes


def test_what_was_deleted_is_not_found(start, store):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1), get(LARGE, 1))
    store.delete("1.2.3", "1.2.3.4", SMALL)
    assert connection.ask(get(SMALL, 1))[0].startswith(b"HTTP/1.1 404 ")
    assert connection.ask(get(SMALL, 2))[0].startswith(b"HTTP/1.1 404 ")
    assert payload_of(connection.ask(get(LARGE, 1))) == PICTURES[0]
    store.delete("1.2.3")
    assert connection.ask(get(LARGE, 1))[0].startswith(b"HTTP/1.1 404 ")


def test_what_was_replaced_is_the_new_one(start, store):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1))
    old = connection.ask(get(SMALL, 1))
    store.delete("1.2.3", "1.2.3.4", SMALL)
    keep(store, part10(SMALL, TILES[::-1]))
    new = connection.ask(get(SMALL, 1))
    assert payload_of(new) == TILES[-1]
    assert re.search(rb"ETag: .*", new[0])[0] != re.search(rb"ETag: .*", old[0])[0]
    warm(local, connection, get(SMALL, 1))
    assert comparable(connection.ask(get(SMALL, 1))) == comparable(new)


def test_a_commit_elsewhere_keeps_the_lane(start, store):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1))
    before = local.answered
    keep(store, part10("1.2.3.4.7", TILES))
    assert payload_of(connection.ask(get(SMALL, 1))) == TILES[0]
    assert local.answered == before + 1


def test_segments_are_given_back(start, store, monkeypatch):
    monkeypatch.setattr(lanes, "LINGER", 0.02)
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1), get(LARGE, 1))
    eventually(lambda: not store.readers._open)


def test_little_is_remembered(start, monkeypatch):
    for name, most in (("READY", 5), ("TEMPLATES", 2), ("ONCE", 4)):
        monkeypatch.setattr(lanes, name, most)
    local = start()
    connection = local.connect()
    for turn in range(3):
        for words in range(8):
            for number in (1, 2, 3):
                answer = connection.ask(get(SMALL, number, f"Accept-Language: l{words}"))
                assert payload_of(answer) == TILES[number - 1], turn
    lane = local.app.lane
    assert len(lane._ready) <= 5
    assert len(lane._templates) <= 2
    assert len(lane._once) <= 4
    assert local.answered


def test_cold_frames_go_the_usual_way(start, monkeypatch):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1))
    before = local.answered
    monkeypatch.setattr(lanes, "read_warm", lambda *_: False)
    assert payload_of(connection.ask(get(SMALL, 1))) == TILES[0]
    assert local.answered == before


def test_few_segments_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(conditional, "SETTLED", -1)
    monkeypatch.setattr(cached_frames, "SETTLED", -1)
    monkeypatch.setattr(lanes, "SEGMENTS", 2)
    instances = [f"1.2.3.4.{number}" for number in range(10, 16)]
    with Store.open(tmp_path / "data", StoreOptions(min_free=0, segment_size=1)) as store:
        keep(store, *(part10(instance, TILES) for instance in instances))
        local = Local(store)
        try:
            connection = local.connect()
            for _ in range(4):
                for instance in instances:
                    assert payload_of(connection.ask(get(instance, 1))) == TILES[0]
            assert local.answered >= 2 * len(instances)
            assert len(local.app.lane._leases) == 2
            assert len(store.readers._open) <= 2
        finally:
            connection.close()
            local.stop()


# What fails


def fail(*_):
    raise StoreCorrupt("not as it was written")


@pytest.mark.parametrize("what", ["read_warm", "current", "at", "lease"])
def test_what_fails_in_the_lane_goes_the_usual_way(start, monkeypatch, what):
    local = start()
    connection = local.connect()
    warm(local, connection, get(SMALL, 1))
    before = local.answered
    where = lanes if what == "read_warm" else cached_frames.HotFrames
    local.call(lambda _: local.app.lane.close())  # so that it has to lease
    monkeypatch.setattr(where, what, fail)
    assert payload_of(connection.ask(get(SMALL, 2))) == TILES[1]
    connection.send(get(SMALL, 1), get(SMALL, 2), get(SMALL, 3))
    for number in range(3):
        assert payload_of(connection.answer()) == TILES[number]
    assert local.answered == before


def test_a_frame_that_is_cut_short_is_logged_as_ever(start, monkeypatch):
    lines = []
    for values in ({}, {"fast_path": False}):
        local = start(**values)
        connection = local.connect()
        for _ in range(3):
            connection.ask(get(LARGE, 1))
        with monkeypatch.context() as context:
            context.setattr(transfers, "warm_bytes", fail)
            context.setattr(lanes, "send_warm", lambda *_: 0)
            connection.send(get(LARGE, 1))
            received = connection.stream.read()
        assert b"\r\nContent-Length: " in received
        eventually(lambda local=local: len(logged(local)) == 4)
        lines.append(logged(local)[-1])
    assert lines[0] == lines[1]
    assert " 200 " in lines[0]


def test_nothing_behind_the_last_request_is_answered(start, caplog):
    local = start()
    known = local.connect()
    warm(local, known, get(SMALL, 1), get(LARGE, 1))
    before = local.answered
    for instance in (SMALL, LARGE):
        connection = local.connect()
        connection.send(get(SMALL, 2, "Connection: close"), get(instance, 1))
        assert payload_of(connection.answer()) == TILES[1]
        assert connection.ended()
    known.ask(get(SMALL, 1))
    assert local.answered == before + 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Known words for another target


def ask_for(target, *headers):
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


OTHERS = [
    "/v2/studies",
    "/v2/studies?PatientID=ID1",
    "/v2/studies?PatientID=nobody",
    "/v2/studies?PatientID=%",
    "/v2/studies?nothing=1&limit=0",
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
    "/health/live",
    "/v2/openapi.json",
    "//evil.example/v2/studies",
]


@pytest.fixture
def read_by_tornado(monkeypatch):
    """The targets of the requests that it has read."""
    seen, usual = [], Exchange.headers_received

    def received(exchange, start_line, headers):
        seen.append(start_line.path)
        return usual(exchange, start_line, headers)

    monkeypatch.setattr(Exchange, "headers_received", received)
    return seen


@pytest.mark.parametrize("headers", [(), ("Accept-Encoding: gzip", "Origin: https://viewer.example")])
def test_known_words_are_answered_as_by_tornado(start, read_by_tornado, headers):
    fast, slow = start(cors_origins=("*",)), start(cors_origins=("*",), fast_path=False)
    one, other = fast.connect(), slow.connect()
    expected = [comparable(other.ask(ask_for(target, *headers))) for target in OTHERS]
    one.ask(ask_for("/v2/studies?limit=7", *headers))
    del read_by_tornado[:]
    for _ in range(2):
        for target, answer in zip(OTHERS, expected, strict=True):
            assert comparable(one.ask(ask_for(target, *headers))) == answer, target
    assert not read_by_tornado
    eventually(lambda: len(logged(fast)) == 1 + 2 * len(OTHERS))
    assert logged(fast)[1 : 1 + len(OTHERS)] == logged(slow)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\n\r\n",
        b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\n\r\n",
        b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\n\r\n",
        b"GET http://localhost/v2/studies HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v2/studies HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
        b"HEAD /v2/studies HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_particular_words_are_read_each_time(start, read_by_tornado, request_):
    connection = start().connect()
    for _ in range(3):
        connection.send(request_)
        connection.answer(body=not request_.startswith(b"HEAD"))
    assert len(read_by_tornado) == 3


@pytest.mark.parametrize("target", ["/v2/studies\x0c", "/v2/studies?PatientID=\xff", "/v2/stud ies"])
def test_odd_targets_in_known_words_are_tornados(start, read_by_tornado, target):
    connection = start().connect()
    connection.ask(ask_for("/v2/studies"))
    connection.send(ask_for(target).decode().encode("latin-1"))
    assert connection.answer()[0].startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))


def test_a_first_line_within_known_words_is_not_taken_for_one(start, read_by_tornado):
    connection = start().connect()
    connection.ask(ask_for("/v2/studies"))
    connection.send(b"GET /v2/studies?a=1\r\nX: HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.answer()[0].startswith(b"HTTP/1.1 400 ")


def test_what_would_block_is_not_tried_twice(start, store, monkeypatch, read_by_tornado):
    asked = []
    local = start()
    usual = local.app._actions.search

    def search(request, target):
        here = threading.current_thread() is local.thread
        asked.append(here)
        if here:
            raise WouldBlock("longer")
        return usual(request, target)

    connection = local.connect()
    connection.ask(ask_for("/v2/studies"))
    local.app._actions = dataclasses.replace(local.app._actions, search=search)
    for _ in range(3):
        assert connection.ask(ask_for("/v2/studies?PatientID=ID1"))[0].startswith(b"HTTP/1.1 200 ")
    assert asked == [True, False] * 3


def test_an_unexpected_failure_in_known_words_is_told(start, caplog):
    local = start()
    connection = local.connect()
    connection.ask(ask_for("/v2/studies"))
    local.app._actions = dataclasses.replace(local.app._actions, search=lambda *_: 1 // 0)
    assert connection.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 500 ")
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_an_answer_that_cannot_be_written_is_made_once_more(start, caplog):
    local = start()
    connection = local.connect()
    connection.ask(ask_for("/v2/studies"))
    split = Answer(200, [("X", "a\r\nb")])
    local.app._actions = dataclasses.replace(local.app._actions, search=lambda *_: split)
    assert connection.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 500 ")
    assert any("once more" in record.message for record in caplog.records)


class Made:
    """What searches wait for; they are computed in the loop when it is there."""

    def __init__(self, local):
        self.until, self.left, self.begun = Future(), 0, True
        self.local, self.asked = local, []
        local.app._actions = dataclasses.replace(local.app._actions, search=self.search)

    def search(self, request, target):
        self.asked.append(threading.current_thread() is self.local.thread)
        if not self.until.done():
            raise WouldBlock("it is being made", self.until, self.leave)
        return Answer(200, [], (Literal(self.until.result()),), 4)

    def leave(self):
        self.left += 1
        if not self.begun:
            self.until.set_exception(StoreError("nobody wanted it"))
        return not self.begun


@pytest.fixture
def made(start, read_by_tornado):
    """A request in known words has come, and waits for what is being made."""
    local = start()
    connection = local.connect()
    connection.ask(ask_for("/v2/studies"))
    making = Made(local)
    del read_by_tornado[:]
    connection.send(ask_for("/v2/studies?PatientID=ID1"))
    eventually(lambda: making.asked)
    return local, connection, making


def test_what_is_made_for_known_words_is_not_tornados(made, read_by_tornado):
    """What came behind it waits for its turn."""
    local, connection, making = made
    connection.send(ask_for("/health/live"))
    connection.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.socket.recv(1)
    connection.socket.settimeout(DEADLINE)
    making.until.set_result(b"made")
    assert connection.answer()[1] == b"made"
    assert connection.answer()[0].startswith(b"HTTP/1.1 200 ")
    assert (making.asked, making.left, read_by_tornado) == ([True, True], 0, [])
    assert not local.app._active


def test_why_it_could_not_be_made_is_told(made):
    _, connection, making = made
    making.until.set_exception(NotFound("it is gone"))
    head, body = connection.answer()
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"it is gone" in body
    assert connection.ask(ask_for("/health/live"))[0].startswith(b"HTTP/1.1 200 ")


def test_what_was_begun_for_who_has_shut_its_side_is_sent(made):
    _, connection, making = made
    connection.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: making.left)
    making.until.set_result(b"made")
    assert connection.answer()[1] == b"made"
    assert connection.ended()
    assert making.left == 1


def test_nothing_is_begun_for_who_has_shut_its_side(made):
    local, connection, making = made
    making.begun = False
    connection.socket.shutdown(socket.SHUT_WR)
    head, body = connection.answer()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"before the turn" in body
    assert connection.ended()
    eventually(lambda: not local.app._active)
    assert (making.asked, making.left) == ([True], 1)


def test_who_has_shut_its_side_and_is_cut_off_leaves_once(made):
    local, connection, making = made
    connection.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: making.left)
    local.loop.call_soon_threadsafe(lambda: [request._connection.close() for request in local.app._active])
    making.until.set_result(b"made")
    eventually(lambda: not local.app._active)
    assert making.left == 1


@pytest.mark.parametrize("begun", [True, False])
def test_who_has_broken_off_leaves_once(made, begun):
    local, connection, making = made
    making.begun = begun
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    eventually(lambda: making.left)
    if begun:
        making.until.set_result(b"made")
    eventually(lambda: not local.app._active)
    eventually(lambda: " 499 " in local.lines.text)
    assert making.left == 1


def test_a_drained_worker_sends_what_was_waited_for_and_closes(made):
    local, connection, making = made
    local.loop.call_soon_threadsafe(local.stopped.set)
    eventually(lambda: local.app.draining)
    making.until.set_result(b"made")
    head, body = connection.answer()
    assert b"\r\nConnection: close\r\n" in head
    assert body == b"made"
    assert connection.ended()
    local.thread.join(DEADLINE)
    assert local.drained


def test_what_was_sent_behind_it_does_not_reset_a_drained_connection(made):
    local, connection, making = made
    connection.send(ask_for("/health/live"))
    local.loop.call_soon_threadsafe(local.stopped.set)
    eventually(lambda: local.app.draining)
    making.until.set_result(b"made")
    local.thread.join(DEADLINE)
    assert connection.answer()[1] == b"made"
    assert connection.ended()


def test_without_a_thread_a_request_is_told_and_its_worker_lives(start, monkeypatch, caplog):
    local = start()
    connection, other = local.connect(), local.connect()
    for each in (connection, other):
        each.ask(ask_for("/health/live"))
    refused = [True]
    start_thread = threading.Thread.start

    def refuse(thread):
        if refused and thread.name.startswith("streamsrv-"):
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert connection.ask(ask_for("/v2/studies/1.2.3/metadata"))[0].startswith(b"HTTP/1.1 500 ")
    assert other.ask(ask_for("/v2/studies"))[0].startswith(b"HTTP/1.1 200 ")
    del refused[:]
    assert connection.ask(ask_for("/v2/studies/1.2.3/metadata"))[0].startswith(b"HTTP/1.1 200 ")


def test_what_fails_behind_an_answer_is_logged_and_the_connection_goes_on(start, caplog):
    local = start()
    connection = local.connect()
    connection.ask(ask_for("/v2/studies"))
    failing = Answer(200, [], (Literal(b"said"),), 4, release=lambda: 1 // 0)
    local.app._actions = dataclasses.replace(local.app._actions, search=lambda *_: failing)
    for _ in range(2):
        assert connection.ask(ask_for("/v2/studies"))[1] == b"said"
    eventually(lambda: len(logged(local)) == 3)
    assert sum(bool(record.exc_info) for record in caplog.records) == 2


def test_what_was_waited_for_and_cannot_be_written_is_told(made, caplog):
    local, connection, making = made
    released = []
    making.search = lambda *_: Answer(200, [("X", "a\r\nb")], release=lambda: released.append(1))
    local.app._actions = dataclasses.replace(local.app._actions, search=making.search)
    making.until.set_result(b"made")
    assert connection.answer()[0].startswith(b"HTTP/1.1 500 ")
    assert released == [1]
    assert any(record.exc_info for record in caplog.records)


def test_what_has_to_be_made_is_nothing_for_the_lane(start):
    local = start()
    connection = local.connect()
    for kind, noted in (("image/jls", 0), ("application/octet-stream", 1)):
        accept = f'multipart/related; type="{kind}"'
        assert connection.ask(ask_for("/health/live", f"Accept: {accept}"))[0].startswith(b"HTTP/1.1 200 ")
        for number in (1, 2):
            head = connection.ask(get(NATIVE, number, accept=accept))[0]
            assert head.startswith(b"HTTP/1.1 200 ")
        assert len(local.app.lane._once) == noted


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(("instance", "kind"), [(NATIVE, "image/jls"), (LARGE, "application/octet-stream")])
def test_an_answer_leaves_nothing_to_the_garbage_collector(start, instance, kind, fast_path):
    """Nor does anything that was made, or is sent by a Transfer, stay in memory until that comes."""
    connection = start(fast_path=fast_path).connect()
    accept = f'multipart/related; type="{kind}"'
    connection.ask(get(instance, 1, accept=accept))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in (2, 3):
            assert connection.ask(get(instance, number, accept=accept))[0].startswith(b"HTTP/1.1 200 ")
        connection.ask(ask_for("/health/live"))
        gc.collect()
        kinds = (WouldBlock, Known, Exchange, UnderWay, transfers.Transfer)
        left = [one for one in gc.garbage if isinstance(one, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


# Series whose frames are made

TWIN = "1.2.3.4.5"  # with pixels like those of NATIVE
TO_MAKE = 'multipart/related; type="image/jls"'


def to_make(instance, number, *headers, **words):
    return get(instance, number, *headers, **{"accept": TO_MAKE, **words})


@pytest.fixture
def twin(store):
    keep(store, part10(TWIN, SLICES[::-1], native=True))


@pytest.fixture
def hot(monkeypatch):
    """The paths of the requests that were answered from what was learnt of others of their series."""
    seen, usual = [], SeriesTemplate.written

    def written(template, head, *what):
        seen.append(head.path)
        return usual(template, head, *what)

    monkeypatch.setattr(SeriesTemplate, "written", written)
    return seen


SERIES_TO_MAKE = [
    *(to_make(instance, number) for instance in (NATIVE, TWIN) for number in (1, 2, 3)),
    to_make(TWIN, 1, "Origin: https://viewer.example"),
    to_make(TWIN, 2, "Origin: https://viewer.example"),
]
NOT_ALIKE = [
    to_make(LARGE, 1),
    to_make(SMALL, 1),
    to_make(SHOWN, 2),
    to_make("1.2.3.4.9", 1),
    to_make("1.2.3..4", 1),
    to_make(NATIVE, 4),
    to_make(NATIVE, 0),
    to_make(NATIVE, "01"),
    to_make(NATIVE, "1,2"),
    to_make(NATIVE, "1?accept=image/jls"),
    to_make(NATIVE, 1, "Range: bytes=5-90"),
    to_make(NATIVE, 1, 'If-None-Match: "x"'),
    to_make(NATIVE, 1, host="evil.example"),
    to_make(NATIVE, 1, method="HEAD"),
    to_make(NATIVE, "1/rendered"),
]


@pytest.mark.parametrize("settled", [-1, 3600], ids=["dated", "new"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cors_origins": ("https://viewer.example",), "cache_max_age": 60},
        {"public_url": "https://pacs.example/100%25/", "log_format": "json"},
        {"trusted_proxies": ("127.0.0.1",)},
    ],
    ids=lambda values: "+".join(values) or "as it is",
)
def test_a_frame_of_a_known_series_has_the_same_answer(start, twin, hot, monkeypatch, values, settled):
    monkeypatch.setattr(conditional, "SETTLED", settled)
    monkeypatch.setattr(cached_frames, "SETTLED", settled)
    fast, slow = start(**values), start(fast_path=False, **values)
    one, other = fast.connect(), slow.connect()
    for _ in range(3):
        for request in [*SERIES_TO_MAKE, *NOT_ALIKE]:
            body = not request.startswith(b"HEAD")
            one.send(request)
            other.send(request)
            answer = comparable(one.answer(body))
            assert answer == comparable(other.answer(body)), request
            assert (b"\r\nLast-Modified: " in answer[0]) is (settled < 0) or request not in SERIES_TO_MAKE
    # The first one in its words is Tornado's, and what is learnt from the second holds until one with other
    # pixels is made.
    assert len(hot) >= 2 * len(SERIES_TO_MAKE)
    eventually(lambda: len(logged(fast)) == len(logged(slow)))
    assert logged(fast) == logged(slow)


def test_frames_of_a_known_series_are_those_that_are_stored(start, twin, hot):
    connection = start().connect()
    for _ in range(2):
        for instance, frames in ((NATIVE, SLICES), (TWIN, SLICES[::-1])):
            for number, frame in enumerate(frames, 1):
                made = payload_of(connection.ask(to_make(instance, number)))
                assert imagecodecs.jpegls_decode(made).tobytes() == frame
    assert len(hot) == 10


def test_what_was_deleted_or_replaced_in_a_known_series_is_not_told(start, store, twin, hot):
    connection = start().connect()
    for _ in range(3):
        connection.ask(to_make(NATIVE, 1))
    before = comparable(connection.ask(to_make(TWIN, 1)))
    store.delete("1.2.3", "1.2.3.4", TWIN)
    assert connection.ask(to_make(TWIN, 1))[0].startswith(b"HTTP/1.1 404 ")
    keep(store, part10(TWIN, SLICES, native=True))
    after = comparable(connection.ask(to_make(TWIN, 1)))
    assert (after[0] == before[0], payload_of(after) == payload_of(before)) == (False, False)
    assert payload_of(after) == payload_of(connection.ask(to_make(NATIVE, 1)))


def test_why_a_frame_of_a_known_series_cannot_be_made_is_told(start, twin, hot, monkeypatch):
    connection = start().connect()
    for _ in range(3):
        connection.ask(to_make(NATIVE, 1))

    def torn(*_):
        raise StoreCorrupt("it is torn")

    monkeypatch.setattr(cached_series, "one_frame", torn)
    head, told = connection.ask(to_make(TWIN, 1))
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"it is torn" in told


def test_a_frame_that_cannot_be_made_is_tried_once_in_a_known_series(start, store, hot, monkeypatch):
    """Its pixels are said to be like those of the others."""
    keep(store, part10(TWIN, [SHADES[0], TILES[0], SHADES[1]]))
    local, tried = start(), []
    usual = PixelPool.submit
    monkeypatch.setattr(PixelPool, "submit", lambda pool, order: tried.append(order) or usual(pool, order))
    connection = local.connect()
    for number in (1, 3, 1):
        assert connection.ask(to_make(TWIN, number))[0].startswith(b"HTTP/1.1 200 ")
    assert len(hot) == 1
    del tried[:]
    head, told = connection.ask(to_make(TWIN, 2))
    assert head.startswith(b"HTTP/1.1 406 ")
    assert b"no marker at byte 2" in told
    assert len(tried) == 1
    assert payload_of(connection.ask(to_make(TWIN, 2, accept=f"{TO_MAKE}, {FRAME}"))) == TILES[0]
    assert payload_of(connection.ask(to_make(TWIN, 2, accept=f"{TO_MAKE}, {FRAME}"))) == TILES[0]
    assert len(local.app.series._templates) == 1


def test_a_frame_of_a_known_series_has_a_limit_to_its_url(start, twin, hot):
    long = f"{TWIN}.{'1' * 40}"
    limit = len(SERIES) + len(long) + len("//frames/1") - 1
    connection = start(max_url=limit).connect()
    for _ in range(3):
        connection.ask(to_make(NATIVE, 1))
    assert connection.ask(to_make(long, 1))[0].startswith(b"HTTP/1.1 414 ")
    assert connection.ask(to_make(long[:-1], 1))[0].startswith(b"HTTP/1.1 404 ")


def test_a_drained_worker_sends_a_frame_of_a_known_series_and_closes(start, twin, hot, monkeypatch):
    """It is being made while the end comes."""
    local = start()
    connection = local.connect()
    for _ in range(3):
        connection.ask(to_make(NATIVE, 1))
    begun, go_on = [], cached_series.HotSeries._made

    def made(series, *what):
        begun.append(what)
        local.app.draining = True
        return go_on(series, *what)

    monkeypatch.setattr(cached_series.HotSeries, "_made", made)
    head, payload = connection.ask(to_make(TWIN, 1))
    assert head.endswith(b"\r\nConnection: close\r\n\r\n")
    assert imagecodecs.jpegls_decode(payload_of((head, payload))).tobytes() == SLICES[-1]
    assert connection.ended()
    assert begun


def test_little_is_remembered_of_series(start, twin, hot, monkeypatch):
    monkeypatch.setattr(series_lane, "TEMPLATES", 2)
    monkeypatch.setattr(cached_frames, "SHAPES", 2)
    local = start()
    connection = local.connect()
    for number in range(5):
        for _ in range(3):
            connection.ask(to_make(NATIVE, 1, f"X-Viewer: {number}", accept=f"{TO_MAKE}; q=0.{number + 1}"))
    assert len(local.app.series._templates) == len(cached_series._shapes) == 2


def test_few_words_are_remembered(start, monkeypatch):
    monkeypatch.setattr(known_words, "KNOWN", 2)
    local = start()
    connection = local.connect()
    for number in range(5):
        connection.ask(ask_for("/v2/studies", f"X-Viewer: {number}"))
    assert len(local.app.lane.words._known) == 2


# Clients that are slow, and what is not sent at once


@pytest.fixture(params=[True, False], ids=["express", "usual"])
def narrow(request, start, store):
    """A worker that knows a frame, and a client that it can send only a part of it at once."""
    keep(store, part10("1.2.3.4.8", WIDE))

    def begin(**values):
        local = start(fast_path=request.param, **values)
        known = local.connect()
        for _ in range(4):
            known.ask(get("1.2.3.4.8", 1))
        known.close()
        eventually(lambda: not local.app.watch._heads)
        connection = local.connect(receive_buffer=2048)
        eventually(lambda: local.app.watch._heads)
        local.call(lambda streams: streams[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096))
        connection.send(get("1.2.3.4.8", 1))
        eventually(lambda: local.app._active)
        assert (local.answered > 0) == request.param
        return local, connection

    return begin


WIDE = [b"\xff\xd8" + os.urandom(60000) + b"\xff\xd9" for _ in range(2)]


def test_a_small_frame_goes_on_after_the_client_has_shut_its_side(narrow):
    _, connection = narrow()
    connection.socket.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    assert payload_of(connection.answer()) == WIDE[0]
    assert connection.ended()


def test_a_small_frame_is_ended_before_the_worker_is(narrow):
    local, connection = narrow()
    local.loop.call_soon_threadsafe(local.stopped.set)
    time.sleep(0.05)
    assert payload_of(connection.answer()) == WIDE[0]
    local.thread.join(DEADLINE)
    assert local.drained


def test_who_reads_nothing_of_a_small_frame_is_cut_off(narrow):
    local, connection = narrow(stall_timeout=0.2)
    eventually(lambda: " 499 " in local.lines.text)
    assert len(connection.stream.read()) < len(WIDE[0])


def test_frames_in_a_row_over_a_narrow_way(narrow):
    _, connection = narrow()
    for turn in range(1, 6):
        connection.send(get("1.2.3.4.8", turn % 2 + 1))
        time.sleep(0.02)
    for turn in range(6):
        assert payload_of(connection.answer()) == WIDE[turn % 2]


# The stream, and what it uses of Tornado


def test_a_stream_of_a_closed_connection_is_nobodys(start):
    local = start()
    streams = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            connection = local.connect()
            connection.ask(get(SMALL, 1))
            eventually(lambda: local.app.watch._heads)
            local.call(lambda found: streams.extend(map(weakref.ref, found)))
            connection.close()
            eventually(lambda: not local.app.watch._heads)
        eventually(lambda: not any(stream() for stream in streams))
    finally:
        gc.enable()
    assert len(streams) == 3


def test_a_stream_that_pauses_lets_the_loop_rest():
    async def run():
        near, far = socket.socketpair()
        stream, asked = Stream(near), []
        stream.read_from_fd = lambda buffer: asked.append(1) or Stream.read_from_fd(stream, buffer)
        stream.express = lambda *_: False
        head = stream.read_until_regex(b"\r\n\r\n")
        stream.pause()
        far.send(b"GET\r\n\r\n")
        await asyncio.sleep(0.05)
        assert len(asked) <= 2
        stream.resume()
        assert await asyncio.wait_for(head, DEADLINE) == b"GET\r\n\r\n"
        stream.close()
        far.close()

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET"])
def test_a_paused_stream_tells_that_its_client_has_shut_its_side(sent):
    """Although it was told of what had been read meanwhile; what was sent behind a request hides it."""

    async def run():
        near, far = socket.socketpair()
        stream, told = Stream(near), []
        stream.shut = lambda: told.append(1)
        stream.express = lambda *_: False
        stream.read_until_regex(b"\r\n\r\n")
        stream.pause()
        stream._handle_events(near.fileno(), IOLoop.READ)
        await asyncio.sleep(0.01)
        far.sendall(sent)
        far.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        assert told == [1] * (not sent)
        stream.close()
        far.close()

    asyncio.run(run())


def test_a_stream_that_paused_goes_on_writing():
    """Although it stood in the loop as one that waits to write, when it did no more."""

    async def run():
        near, far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        far.settimeout(0)
        stream = Stream(near)
        stream.express = lambda *_: False
        stream.read_until_regex(b"\r\n\r\n")
        stream.write(bytes(50000))
        while stream.writing():
            far.recv(1 << 16)
            stream.write(b"")
        stream.pause()
        far.send(b"GET")
        await asyncio.sleep(0.05)
        stream.resume()
        stream.write(bytes(50000))
        left = 50000
        while left:
            left -= len(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 1 << 16), DEADLINE))
        stream.close()
        far.close()

    asyncio.run(run())


def test_tornado_has_what_the_stream_uses():
    async def run():
        near, far = socket.socketpair()
        stream = IOStream(near)
        assert callable(stream._handle_events)
        assert (stream._read_buffer, stream._read_buffer_size, stream._state) == (bytearray(), 0, None)
        head = stream.read_until_regex(b"\n")
        assert stream._state == stream.io_loop.READ | stream.io_loop.ERROR
        far.send(b"one\ntwo")
        assert await asyncio.wait_for(head, DEADLINE) == b"one\n"
        assert (stream._read_buffer, stream._read_buffer_size) == (bytearray(b"two"), 3)
        assert stream._consume(3) == b"two"
        assert (stream._read_buffer, stream._read_buffer_size) == (bytearray(), 0)
        stream.close()
        far.close()

    asyncio.run(run())


# Clients that leave, and a server that ends


def test_a_client_that_has_shut_its_side_gets_its_frame(start):
    local = start()
    known = local.connect()
    warm(local, known, get(SMALL, 1), get(LARGE, 1))
    for instance, frames in ((SMALL, TILES), (LARGE, PICTURES)):
        connection = local.connect()
        connection.send(get(instance, 1))
        connection.socket.shutdown(socket.SHUT_WR)
        assert payload_of(connection.answer()) == frames[0]
        assert connection.ended()
        connection.close()


def narrow_sockets(streams):
    """Their sockets do not take a large frame at once."""
    for stream in streams:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)


def test_a_client_that_leaves_within_a_frame(start, monkeypatch):
    monkeypatch.setattr(lanes, "send_warm", lambda *_: 0)  # the socket might take all of it at once
    local = start()
    known = local.connect()
    warm(local, known, get(LARGE, 1))
    for _ in range(3):
        eventually(lambda: len(local.app.watch._heads) == 1)
        gone = local.connect(receive_buffer=4096)
        eventually(lambda: len(local.app.watch._heads) == 2)
        local.call(narrow_sockets)
        gone.send(get(LARGE, 1))
        gone.socket.recv(100)
        gone.close()
    assert payload_of(known.ask(get(LARGE, 2))) == PICTURES[1]
    eventually(lambda: local.lines.text.count(" 499 ") == 3)
    eventually(lambda: not local.app._active)


def test_a_drained_worker_ends_a_frame_and_closes(start):
    local = start()
    known = local.connect()
    warm(local, known, get(LARGE, 1))
    slow = local.connect(receive_buffer=4096)
    before = local.answered
    slow.send(get(LARGE, 1))
    eventually(lambda: local.answered == before + 1)
    local.loop.call_soon_threadsafe(local.stopped.set)
    assert payload_of(slow.answer()) == PICTURES[0]
    assert slow.ended()
    assert known.ended()
    local.thread.join(DEADLINE)
    assert local.drained


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(start):
    local = start(idle_timeout=0.4)
    busy, idle = local.connect(), local.connect()
    warm(local, busy, get(SMALL, 1))
    idle.ask(get(SMALL, 1))
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        assert payload_of(busy.ask(get(SMALL, 1))) == TILES[0]
        time.sleep(0.02)
    assert idle.ended()
    assert busy.ended()

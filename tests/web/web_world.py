"""Stand-ins for the rooms below web/: answers made by the tests, a receiver that keeps what it was fed, and a
raw client.

The receiver understands four words in a body, to make trouble on demand: see `Recorder.feed`."""

import asyncio
import dataclasses
import threading

from streamsrv.errors import BadRequest, InsufficientStorage, UnsupportedMediaType
from streamsrv.ingest.response import StoreResult
from streamsrv.metrics import RequestCounts
from streamsrv.settings import Settings
from streamsrv.web.access_log import AccessLog
from streamsrv.web.actions import Actions
from streamsrv.wire.answers import Answer, Literal

DEADLINE = 10.0  # seconds: how long a test waits for what must happen


class Recorder:
    """Stands in for an Ingest. `REFUSE` in a body refuses it as malformed, `BREAK` is a bug, `SLOW` makes
    the next read_ended heavy."""

    def __init__(self, world):
        self.world = world
        self.body = bytearray()
        self.pending = self.heavy = self.sync_due = False
        self.calls = []
        self.fits_batch = False

    def begin(self):
        if self.world.full:
            raise InsufficientStorage("the disk is full")

    def feed(self, chunk, size=None, *, start=0, stays=False):
        self.body += chunk[start : start + size]
        if b"REFUSE" in self.body:
            raise BadRequest("the body holds REFUSE")
        if b"BREAK" in self.body:
            raise RuntimeError("a bug")
        if b"SLOW" in self.body and "read_ended" not in self.calls:
            self.pending = self.heavy = True
        self.sync_due = len(self.body) > self.world.sync_after and "sync" not in self.calls

    def read_ended(self):
        self.calls.append("read_ended")
        self.world.threads.add(threading.current_thread().name)
        self.world.before_reading()
        self.pending = False

    def stop(self):
        pass

    def sync_so_far(self):
        self.calls.append("sync")

    def finish(self):
        self.calls.append("finish")
        if b"LATE" in self.body:
            raise BadRequest("the body holds LATE")
        self.world.stored.append(bytes(self.body))
        return StoreResult()

    def abort(self):
        self.calls.append("abort")
        if self.world.abort_fails:
            raise OSError("the disk is broken")
        self.world.aborted.append(len(self.body))


class World:
    """What the rooms below were asked, and what they answer: `answers` by the last segment of the path, else
    `hello`."""

    def __init__(self):
        self.stored = []
        self.aborted = []
        self.deleted = []
        self.threads = set()
        self.requests = []
        self.answers = {}
        self.recorders = []
        self.sync_after = 1 << 30
        self.before_reading = lambda: None
        self.full = self.abort_fails = False

    def retrieve(self, request, target):
        self.requests.append((request, target))
        make = self.answers.get(request.path.rpartition("/")[2])
        return make() if make else text(b"hello")

    def search(self, request, target):
        self.requests.append((request, target))
        return Answer(204)

    def delete(self, study, series, instance):
        self.deleted.append((study, series, instance))
        return 0 if study == "404" else 1

    def ingest(self, request, target):
        if "dicom" not in request.headers.get("content-type", ""):
            raise UnsupportedMediaType("not DICOM", ("application/dicom",))
        self.recorders.append(Recorder(self))
        return self.recorders[-1]

    def stored_answer(self, result, request):
        return text(b"stored %d" % len(self.stored[-1]))

    def actions(self):
        return Actions(self.retrieve, self.search, self.delete, self.ingest, self.stored_answer)


class Lines:
    """Where an access log goes in tests."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def text(payload, status=200, **more):
    return Answer(status, [("Content-Type", "text/plain")], (Literal(payload),), len(payload), **more)


def settings_of(**values):
    return dataclasses.replace(Settings(), port=0, **values)


def access_log(lines):
    return AccessLog(lines, json=False, counts=RequestCounts())


class Raw:
    """A client that sends what it is told to, byte by byte."""

    opened = []  # closed in the end by the http_server fixture  # noqa: RUF012 - meant to be shared

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        Raw.opened.append(self)

    @classmethod
    async def connect(cls, port, limit=1 << 22):
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))

    async def send(self, payload):
        self.writer.write(payload)
        await self.writer.drain()

    async def head(self):
        """Status, headers by lower-case name."""
        block = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE)
        lines = block.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self, body=True):
        status, headers = await self.head()
        payload = b""
        if body and headers.get("transfer-encoding") == "chunked":
            payload = await self.chunks()
        elif body and status not in (204, 304):
            payload = await asyncio.wait_for(
                self.reader.readexactly(int(headers["content-length"])), DEADLINE
            )
        return status, headers, payload

    async def chunks(self):
        payload = b""
        while True:
            size = int(await asyncio.wait_for(self.reader.readline(), DEADLINE), 16)
            payload += (await asyncio.wait_for(self.reader.readexactly(size + 2), DEADLINE))[:-2]
            if not size:
                return payload

    async def rest(self):
        """Everything until the server closes; a reset ends it too."""
        try:
            return await asyncio.wait_for(self.reader.read(), DEADLINE)
        except ConnectionError:
            return b""

    async def close(self):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


async def eventually(condition):
    """Poll until it holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE
    while not condition():
        assert loop.time() < deadline, "it never came true"
        await asyncio.sleep(0.005)

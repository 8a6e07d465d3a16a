"""Clients that take what others need: upload slots, connections, the disk. All others are served."""

import contextlib
import os
import socket
import threading
import time
import zlib

import pytest
from hostile_files import instance
from hostile_world import (
    BOUNDARY,
    DEADLINE,
    DICOM,
    PLANT,
    RELATED,
    World,
    head,
    marked,
    part,
    post,
    related,
    replies,
)
from live_server import free_port

UPLOADS = 110
UPLOAD_RATE = 1200  # bytes a second
ONE = ["127.0.0.1"]
MANY = [f"127.0.1.{number}" for number in range(1, 51)]
OTHER = "127.0.2.1"
# Seconds in which another client is answered; alone it takes some milliseconds.
PROMPTLY = 5.0
HEALTH = free_port()
CONNECTIONS = {"--max-connections": 60, "--max-connections-per-client": 20, "--head-timeout": 2}
CONNECTIONS["--health-port"] = HEALTH


def ask(world, request, source=OTHER):
    """The answer to a request from an address of its own."""
    port = int(world.origin.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(source, 0)) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    (reply,) = replies(received)
    return reply


def store(world, request):
    """Repeats it while it is refused: the uploads in the slots may be too young to be ended."""
    until = time.monotonic() + PROMPTLY
    while (reply := ask(world, request)).status == 503 and time.monotonic() < until:
        time.sleep(0.1)
    assert reply.status == 200, reply


class Crowd:
    """Connections from the given addresses in turn; each sends `opening`, and then `rate` bytes a second."""

    def __init__(self, world, addresses, number, opening, rate=0):
        self._address = ("127.0.0.1", int(world.origin.rpartition(":")[2]))
        self._stop = threading.Event()
        self._rate = rate
        self.sockets = []
        for at in range(number):
            sock = socket.create_connection(
                self._address, DEADLINE, source_address=(addresses[at % len(addresses)], 0)
            )
            self.sockets.append(sock)
            sock.sendall(opening)
            sock.setblocking(False)
        self._thread = threading.Thread(target=self._trickle)

    def _trickle(self):
        while not self._stop.wait(0.1):
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    sock.send(b"x" * (self._rate // 10))

    def ended(self):
        """How many the server has answered or ended."""
        return sum(_has_ended(sock) for sock in self.sockets)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        for sock in self.sockets:
            sock.close()


def _has_ended(sock):
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# Upload slots, as they are set by default


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("usual"))
    yield world
    world.end()


@pytest.mark.parametrize("addresses", [ONE, MANY], ids=["one address", "many addresses"])
@pytest.mark.parametrize("framing", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
def test_slow_uploads_stop_no_other(usual, addresses, framing):
    opening = head("POST /v2/studies", RELATED, framing)
    body = part(instance()) + marked(2000)
    opening += b"%x\r\n%b\r\nfffff\r\n" % (len(body), body) if "chunked" in framing else body
    with Crowd(usual, addresses, UPLOADS, opening, UPLOAD_RATE):
        time.sleep(1)
        for _ in range(10):
            began = time.monotonic()
            store(usual, post(DICOM, instance()))
            store(usual, post(RELATED, related(*[instance()] * 1, instance())))
            assert time.monotonic() - began < PROMPTLY
    usual.unharmed()


def test_the_slowest_upload_goes_first_and_is_told_why(tmp_path):
    """With one worker and four slots. The fast ones are finished, the slowest one is ended."""
    world = World(tmp_path, "--max-uploads", "4", "--slow-upload-rate", "20000", workers=1)
    body = related(*(instance() for _ in range(3)), os.urandom(400_000))
    begun = head("POST /v2/studies", RELATED, f"Content-Length: {len(body)}")
    with contextlib.ExitStack() as stack:
        slow, fast, faster, *_ = (
            stack.enter_context(socket.create_connection(("127.0.0.1", int(world.origin.rpartition(":")[2]))))
            for _ in range(3)
        )
        other = Crowd(world, [OTHER], 1, begun + body[:300_000])
        stack.enter_context(other)
        sent = {slow: 5_000, fast: 200_000, faster: 300_000}
        for sock, size in sent.items():
            sock.settimeout(DEADLINE)
            sock.sendall(begun + body[:size])
        time.sleep(0.8)
        assert ask(world, post(DICOM, instance()), "127.0.3.1").status == 200
        (told,) = replies(b"".join(iter(lambda: slow.recv(1 << 16), b"")))
        assert told.status == 408
        assert "the slowest upload" in told.problem()
        for sock in (fast, faster):
            sock.sendall(body[sent[sock] :])
            assert sock.recv(12) in (b"HTTP/1.1 202", b"HTTP/1.1 409")
    world.unharmed()
    world.end()


def test_uploads_end_while_slots_are_scarce(tmp_path):
    """Without any newcomer: until fewer than three quarters of the slots are taken."""
    world = World(tmp_path, "--max-uploads", "8", workers=1)
    opening = head("POST /v2/studies", RELATED, "Content-Length: 10000000") + part(instance())
    with Crowd(world, [*ONE, OTHER], 8, opening, UPLOAD_RATE) as crowd:
        deadline = time.monotonic() + DEADLINE
        while crowd.ended() < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5)
        told = [sock.recv(1 << 16) for sock in crowd.sockets if _has_ended(sock)]
        assert [b" 408 " in answer and b"slots are scarce" in answer for answer in told] == [True] * 3, told
    world.end()


# Connections


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    words = (str(word) for pair in CONNECTIONS.items() for word in pair)
    world = World(tmp_path_factory.mktemp("few"), *words)
    yield world
    world.end()


HALF = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: "


@pytest.mark.parametrize("addresses", [ONE, MANY], ids=["one address", "many addresses"])
@pytest.mark.parametrize("sent", [b"", HALF], ids=["nothing", "half a head"])
def test_half_heads_stop_no_other(few, addresses, sent):
    """Four times as many as there may be connections."""
    with Crowd(few, addresses, 480, sent):
        for _ in range(10):
            for request in (head("GET /health/live"), post(DICOM, instance())):
                began = time.monotonic()
                assert ask(few, request).status == 200
                assert time.monotonic() - began < PROMPTLY
    few.unharmed()


def test_a_head_that_does_not_end_has_less_time_than_an_idle_connection(few):
    """On each way: a new connection, one behind an answer of the HTTP parser, one behind known words."""
    live = head("GET /health/live")
    with Crowd(few, ONE, 1, b"") as new, Crowd(few, ONE, 2, live * 4) as known:
        time.sleep(0.5)
        for sock in known.sockets:
            assert sock.recv(1 << 16).count(b"alive\n") == 4
            assert not _has_ended(sock)
        half, idle = known.sockets
        half.send(HALF)
        deadline = time.monotonic() + DEADLINE
        while not (new.ended() and _has_ended(half)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert new.ended()
        assert _has_ended(half)
        time.sleep(2 * CONNECTIONS["--head-timeout"])
        assert not _has_ended(idle)
        idle.send(live)
        idle.setblocking(True)
        assert b"alive\n" in idle.recv(1 << 16)


HEALTH_ASKED = {
    "GET /health/live HTTP/1.1": (200, b"alive\n"),
    "GET /health/ready HTTP/1.0": (200, b"ready\n"),
    "HEAD /health/live HTTP/1.1": (200, b""),
    "GET /v2/studies HTTP/1.1": (404, b"only health is answered here\n"),
    "POST /health/live HTTP/1.1": (400, b"only GET and HEAD of HTTP/1.1 are answered here\n"),
}


def test_health_has_a_listener_of_its_own(few):
    """While as many half heads as it takes stand before it and before the service."""
    before = World.__new__(World)
    before.origin = f"http://127.0.0.1:{HEALTH}"
    with Crowd(few, MANY, 480, HALF), Crowd(before, ONE, 40, HALF):
        for line, expected in HEALTH_ASKED.items():
            received = _everything(before, f"{line}\r\nHost: any\r\n\r\n".encode())
            block, _, body = received.partition(b"\r\n\r\n")
            assert (int(block.split()[1]), body) == expected
            assert b"\r\nConnection: close" in block
    assert _everything(before, b"GET /health/live HTTP/1.1\r\n" + b"x" * 20_000) == b""
    few.unharmed()


def _everything(world, request):
    port = int(world.origin.rpartition(":")[2])
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE) as sock,
        contextlib.suppress(ConnectionError),
    ):
        sock.sendall(request)
        while piece := sock.recv(1 << 16):
            received += piece
    return received


# The disk


def test_a_gzip_body_that_fills_the_disk(usual):
    """300 kB that unpack to 300 MB are refused beyond 256 MB; the same body without gzip would be taken."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    opening = b"--%b\r\n%b\r\n\r\n" % (BOUNDARY.encode(), DICOM.encode())
    packed = squeezer.compress(opening + instance())
    packed += b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(300)) + squeezer.flush()
    assert len(packed) < 1 << 20
    reply = usual.refused(post(RELATED, packed + PLANT, "Content-Encoding: gzip"))
    assert reply.status == 413
    assert "unpacks to more than 100 times its size" in reply.problem()
    usual.unharmed()

"""Heads that are long, many-lined or cut, on each of the ways that a request takes: the HTTP parser, known
header blocks, cached frames. A refusal says what was wrong; nothing of a malformed value is logged."""

import socket
import time

import pytest
from hostile_files import element, instance, new_uid
from hostile_world import (
    DEADLINE,
    DICOM,
    PLANT,
    RELATED,
    VICTIM,
    World,
    connect,
    converse,
    head,
    related,
    replies,
)

INSTANCE = f"/v2/studies/{VICTIM}/series/{VICTIM}.1/instances/{VICTIM}.1.1"
TOKEN = "eyJhbGciOiJub25lIn0"
SPLIT_TRIES = 60


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("heads"))
    yield world
    world.end()


# Too much


@pytest.mark.parametrize("size", [16_390, 31_000, 100_000, 1_000_000])
def test_a_long_head_is_answered_before_the_connection_ends(hostile, size):
    """The client sends all of it first, as most do, and reads then."""
    for _ in range(5):
        with connect(hostile.origin) as sock:
            sock.sendall(head("GET /health/live", "Cookie: " + "x" * size) + PLANT)
            (reply,) = replies(b"".join(iter(lambda sock=sock: sock.recv(1 << 16), b"")))
        assert reply.status == 431
        assert "this server accepts 16384" in reply.problem()
        assert reply.headers["connection"] == "close"
    hostile.unharmed()


@pytest.mark.parametrize("lines", [101, 3000])
def test_many_header_lines(hostile, lines):
    reply = hostile.refused(head("GET /health/live", *["a:"] * (lines - 1)))
    assert reply.status == 431
    assert f"the request has {lines} header lines; this server accepts 100" in reply.problem()
    assert hostile.get("/health/live", *["a:"] * 98).status == 200


@pytest.mark.parametrize("name", ["Accept", "Accept-Charset", "Accept-Encoding", "Range"])
def test_a_list_of_many_elements(hostile, name):
    reply = hostile.get(INSTANCE, f"{name}: " + ",".join(["a/b;q=1"] * 65))
    assert reply.status == 431
    assert f"{name.lower()} lists more than 64" in reply.problem()
    assert hostile.get(INSTANCE, f"{name}: " + ",".join(["*/*"] + ["a/b;q=1"] * 63)).status == 200


def test_a_query_of_many_acceptable_types(hostile):
    reply = hostile.get(f"{INSTANCE}?accept=" + ",".join(["a/b"] * 65) + "," * 500)
    assert reply.status == 400
    assert "more than 64 acceptable media types" in reply.problem()


def test_heads_at_the_limits_cost_little(hostile):
    """A hundred of them, each with the longest Accept and as many lines as are taken."""
    accept = ",".join(["a/b" + ";c=d" * 32] * 63) + ",*/*"
    request = head(f"GET {INSTANCE}", f"Accept: {accept}", *["a: b"] * 97)
    assert len(request) < 16_384
    began = time.monotonic()
    found = replies(converse(hostile.origin, request * 100 + head("GET /health/live", "Connection: close")))
    assert [reply.status for reply in found] == [200] * 101
    assert time.monotonic() - began < 20


# Where the body, or the connection, ends


@pytest.mark.parametrize("content_type", [RELATED, DICOM])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_store_that_says_no_length(hostile, content_type, version):
    """Behind its head its body may follow all the same: the connection ends."""
    uid = new_uid()
    body = related(instance(study=uid)) if content_type == RELATED else instance(study=uid)
    reply = hostile.refused(head("POST /v2/studies", content_type, version=version) + body)
    assert reply.status == 411
    assert "needs a Content-Length" in reply.problem()
    hostile.unharmed()
    assert hostile.get(f"/v2/studies/{uid}").status == 404
    assert hostile.get("/health/live").status == 200


def test_connection_is_a_list_on_every_way(hostile):
    """A frame, asked for in words that are known by then."""
    uid = new_uid()
    pixels = {0x7FE00010: element(0x7FE00010, "OW", bytes(2 * 64))}
    assert hostile.store(instance(pixels, study=uid, series=f"{uid}.1", instance=f"{uid}.1.1")).status == 200
    path = f"/v2/studies/{uid}/series/{uid}.1/instances/{uid}.1.1/metadata"
    for line in (f"GET {path}", f"GET {INSTANCE}", "GET /health/live"):
        for _ in range(4):
            assert hostile.get(line[4:]).status == 200
        for options in ("close, x", "x, Close", "keep-alive,close"):
            for _ in range(4):
                found = replies(converse(hostile.origin, head(line, f"Connection: {options}") + PLANT))
                assert [(each.status, each.headers["connection"]) for each in found] == [(200, "close")]
    hostile.unharmed()


@pytest.mark.parametrize("tail", [2, 30])
@pytest.mark.parametrize("line", ["GET /health/live", f"GET {INSTANCE}", "POST /v2/studies"])
def test_a_head_in_two_pieces_and_then_the_end(hostile, line, tail):
    """The second piece and the end of the client's side arrive while the first one is being read."""
    request = head(line, "Accept: */*", *(["Content-Length: 0", DICOM] if line.startswith("POST") else []))
    statuses = []
    for number in range(SPLIT_TRIES):
        with connect(hostile.origin) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if number % 2:
                time.sleep(0.002)  # the server waits for the head by now; else it reads as it begins to wait
            sock.sendall(request[:-tail])
            time.sleep(0.00002)
            sock.sendall(request[-tail:])
            sock.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda sock=sock: sock.recv(1 << 16), b""))
        statuses += [reply.status for reply in replies(received)] or [None]
    assert statuses == [204 if line.startswith("POST") else 200] * SPLIT_TRIES


# What the log says


MALFORMED = {
    "a control character": (f"Authorization: Bearer {TOKEN}\x01", "Invalid header value"),
    "a lone CR": (f"Authorization: Bearer {TOKEN}\rX", "Invalid header value"),
    "a malformed name": (f"Authorization Bearer {TOKEN}: x", "Invalid header name"),
    "an unknown coding": (f"Transfer-Encoding: {TOKEN}", "Transfer-Encoding"),
    "lengths that differ": (f"Content-Length: 1, {TOKEN}", "Content-Length"),
    "no colon": (f"Bearer {TOKEN}", "no colon in header line"),
    "too long": (f"Authorization: Bearer {TOKEN * 2000}", "this server accepts"),
    "a request id": (f"X-Request-ID: {TOKEN}\xff", None),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_told_and_not_logged(hostile, kind):
    line, words = MALFORMED[kind]
    (reply,) = replies(converse(hostile.origin, head(f"GET {INSTANCE}", line, "Connection: close")))
    if words is None:
        assert reply.status == 200
    else:
        assert reply.status in (400, 431)
        assert words in reply.problem()
        assert TOKEN not in reply.problem()
    deadline = time.monotonic() + DEADLINE
    while f" {reply.headers['x-request-id']} plain\n" not in hostile.server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert TOKEN not in hostile.server.log.read_text()

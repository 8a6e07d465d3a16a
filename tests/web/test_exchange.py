"""One request and its answer on a connection: receiving, answering, and what else lies in the buffer."""

import asyncio
import gzip
import os
import random
import socket
import struct
import threading

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of, text

from streamsrv.errors import NotAcceptable, NotFound, Overloaded
from streamsrv.web.sending.transfer import SHORT
from streamsrv.wire.answers import Answer, ByteStream, Deferred, Literal, Span

DICOM = "Content-Type: application/dicom"


def message(line, *headers, version="HTTP/1.1"):
    return "\r\n".join([f"{line} {version}", "Host: localhost", *headers, "", ""]).encode()


def post(body, *headers):
    return message("POST /v2/studies", DICOM, f"Content-Length: {len(body)}", *headers) + body


def chunks(pieces):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def split(body, seed):
    draw = random.Random(seed)
    while body:
        size = draw.choice((1, 2, 3, 100, 5_000, 70_000))
        yield body[:size]
        body = body[size:]


# Small things


async def test_a_small_answer_and_its_head(http_server_client, lines):
    answer = await http_server_client.fetch(
        "/v2/studies/1.2?PatientName=Secret", headers={"X-Request-ID": "mine-1"}
    )
    assert answer.code == 200
    assert answer.body == b"hello"
    assert answer.headers["Server"] == "streamsrv"
    assert answer.headers["Date"].endswith(" GMT")
    assert answer.headers["api-supported-versions"] == "1, 2"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    assert answer.headers["X-Request-ID"] == "mine-1"
    await eventually(lambda: lines.text)
    assert '127.0.0.1 "GET /v2/studies/1.2" 200 5 ' in lines.text
    assert lines.text.endswith(" mine-1 plain\n")
    assert "Secret" not in lines.text


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\u00e9", "a;b", '"'])
async def test_a_request_id_that_is_not_sane_is_replaced(port, given):
    raw = await Raw.connect(port)
    await raw.send(
        b"GET /v2/studies/1.2 HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n\r\n" % given.encode()
    )
    _, headers, _ = await raw.answer()
    assert headers["x-request-id"] != given
    assert len(headers["x-request-id"]) == 16
    await raw.close()


async def test_pipelined_requests_are_answered_in_order(port, world):
    world.answers = {str(number): lambda number=number: text(b"%d" % number) for number in range(20)}
    raw = await Raw.connect(port)
    await raw.send(b"".join(message(f"GET /v2/studies/{number}") for number in range(20)))
    assert [(await raw.answer())[2] for _ in range(20)] == [b"%d" % number for number in range(20)]
    await raw.close()


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        ("HTTP/1.1", "X: 1", True),
        ("HTTP/1.1", "Connection: close", False),
        ("HTTP/1.1", "Connection: Close", False),
        ("HTTP/1.0", "X: 1", False),
        ("HTTP/1.0", "Connection: keep-alive", True),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_connection_stays_or_ends_as_the_head_says(port, version, header, stays, method):
    raw = await Raw.connect(port)
    await raw.send(message(f"{method} /v2/studies/1.2", header, version=version))
    _, headers, _ = await raw.answer(body=method == "GET")
    assert headers.get("connection", "none") == (
        {"HTTP/1.1": "none", "HTTP/1.0": "keep-alive"}[version] if stays else "close"
    )
    await raw.send(message("GET /v2/studies/1.3"))
    assert bool(await raw.reader.read(1)) is stays
    await raw.close()


async def test_absolute_targets_and_their_host_count(port, world):
    raw = await Raw.connect(port)
    await raw.send(message("GET http://localhost:99/v2/studies/1.2?limit=3"))
    assert (await raw.answer())[0] == 200
    request, _ = world.requests[0]
    assert (request.path, request.query, request.base_url) == (
        "/v2/studies/1.2",
        (("limit", "3"),),
        "http://localhost:99/v2",
    )
    await raw.send(message("GET http://evil.example/v2/studies/1.2"))
    assert (await raw.answer())[0] == 403
    await raw.close()


async def test_versions_and_the_base_url(http_server_client, world):
    await http_server_client.fetch("/v1/studies/1.2", headers={"Host": "localhost"})
    request, target = world.requests[0]
    assert (request.version, request.base_url, target.version) == (1, "http://localhost/v1", 1)


# Bodies


@pytest.mark.parametrize("size", [0, 1, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
async def test_an_upload_and_the_next_request_on_its_connection(port, world, size):
    body = random.Random(size).randbytes(size)
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, f"Content-Length: {size}"))
    for piece in split(body, 1):
        await raw.send(piece)
    status, _, payload = await raw.answer()
    assert (status, payload) == (200, b"stored %d" % size)
    assert world.stored == [body]
    await raw.send(message("GET /v2/studies/1.2"))
    assert (await raw.answer())[2] == b"hello"
    await raw.close()
    assert world.recorders[0].calls == ["finish"]


@pytest.mark.parametrize("seed", range(4))
async def test_a_chunked_body_is_the_same_body(port, world, seed):
    body = random.Random(seed).randbytes(300_000)
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked"))
    await raw.send(chunks(split(body, seed)) + message("GET /v2/studies/1.2"))
    assert (await raw.answer())[2] == b"stored 300000"
    assert (await raw.answer())[2] == b"hello"
    assert world.stored == [body]
    await raw.close()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_gzip_is_undone_on_the_fly(port, world, framing):
    body = b"zero" * 1_000_000
    packed = gzip.compress(body[:100]) + gzip.compress(body[100:])
    raw = await Raw.connect(port)
    if framing == "length":
        await raw.send(post(packed, "Content-Encoding: gzip"))
    else:
        await raw.send(
            message("POST /v2/studies", DICOM, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
        )
        await raw.send(chunks(split(packed, 5)))
    assert (await raw.answer())[0] == 200
    assert world.stored == [body]
    await raw.close()


@pytest.mark.parametrize("cut", [1, 10, 100])
async def test_a_truncated_gzip_body_is_refused_and_leaves_nothing(port, world, cut):
    raw = await Raw.connect(port)
    await raw.send(post(gzip.compress(os.urandom(10_000))[:-cut], "Content-Encoding: gzip"))
    status, _, payload = await raw.answer()
    assert status == 400
    assert b"gzip" in payload
    assert not world.stored
    assert world.aborted
    await raw.close()


async def test_100_continue_comes_at_once_and_only_if_the_body_is_wanted(port, world):
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 4", "Expect: 100-continue"))
    assert (
        await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), DEADLINE)
        == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    await raw.send(b"body")
    assert (await raw.answer())[0] == 200
    await raw.send(message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked", "Expect: 100-Continue"))
    assert (
        await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), DEADLINE)
        == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    await raw.send(b"0\r\n\r\n")
    assert (await raw.answer())[0] == 200
    await raw.send(message("POST /v2/studies", "Content-Length: 4", "Expect: 100-continue"))
    assert (await raw.answer())[0] == 415
    assert await raw.rest() == b""
    await raw.close()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_breaks_off_leaves_nothing(port, world, lines, framing):
    raw = await Raw.connect(port)
    if framing == "length":
        await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 1000") + b"x" * 999)
    else:
        await raw.send(
            message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked") + b"3e8\r\n" + b"x" * 999
        )
    await eventually(lambda: world.recorders)
    await raw.close()
    await eventually(lambda: world.aborted)
    assert not world.stored
    assert world.recorders[0].calls == ["abort"]
    await eventually(lambda: lines.text)
    assert '"POST /v2/studies" 400 ' in lines.text  # told, for it might have listened


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_shuts_its_side_within_a_body_is_told(port, world, lines, framing):
    raw = await Raw.connect(port)
    begun = {"length": "Content-Length: 1000", "chunked": "Transfer-Encoding: chunked"}[framing]
    await raw.send(message("POST /v2/studies", DICOM, begun) + b"3e8\r\n" + b"x" * 500)
    raw.writer.write_eof()
    status, headers, payload = await raw.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert b"before the end of the body" in payload
    assert await raw.rest() == b""
    await raw.close()
    assert not world.stored
    assert world.recorders[0].calls == ["abort"]
    await eventually(lambda: lines.text)
    assert '"POST /v2/studies" 400 158 ' in lines.text


async def test_what_is_found_wrong_at_the_end_leaves_the_connection_open(port, world):
    raw = await Raw.connect(port)
    await raw.send(post(b"LATE"))
    status, headers, _ = await raw.answer()
    assert (status, "connection" in headers) == (400, False)
    assert world.recorders[0].calls == ["finish", "abort"]
    await raw.send(post(b"fine"))
    assert (await raw.answer())[0] == 200
    await raw.close()


async def test_large_instances_are_read_in_a_thread(port, world):
    raw = await Raw.connect(port)
    await raw.send(post(b"SLOW" + b"x" * 100))
    assert (await raw.answer())[0] == 200
    assert world.recorders[0].calls == ["read_ended", "finish"]
    assert all(name.startswith("streamsrv") for name in world.threads)
    await raw.close()


async def test_a_sync_runs_beside_the_receiving(port, world):
    world.sync_after = 1000
    raw = await Raw.connect(port)
    await raw.send(post(b"x" * 3_000_000))
    assert (await raw.answer())[0] == 200
    *before, last = world.recorders[0].calls
    assert set(before) == {"sync"}
    assert last == "finish"
    await raw.close()


# Answers


async def test_bodiless_answers(port, world):
    world.answers["204"] = lambda: Answer(204)
    world.answers["304"] = lambda: text(b"never sent", 304)
    raw = await Raw.connect(port)
    await raw.send(
        message("GET /v2/studies/204") + message("GET /v2/studies/304") + message("HEAD /v2/studies/1.2")
    )
    status, headers, _ = await raw.answer()
    assert status == 204
    assert "content-length" not in headers
    assert (await raw.answer())[0] == 304
    status, headers, _ = await raw.answer(body=False)
    assert (status, headers["content-length"]) == (200, "5")
    await raw.send(message("GET /v2/studies/1.2"))
    assert (await raw.answer())[2] == b"hello"
    await raw.close()


async def test_release_is_called_once_whatever_becomes_of_the_answer(port, world):
    released = []

    def make(length):
        answer = Answer(200, [], (ByteStream(lambda start, stop: iter([b"12345"]), length),), length)
        answer.release = lambda: released.append(length)
        return answer

    world.answers = {"5": lambda: make(5), "9": lambda: make(9), "0": lambda: make(None)}
    for name in ("5", "0"):
        raw = await Raw.connect(port)
        await raw.send(message(f"GET /v2/studies/{name}") + message(f"HEAD /v2/studies/{name}"))
        assert (await raw.answer())[2] == b"12345"
        assert (await raw.answer(body=False))[0] == 200
        await raw.close()
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/9"))
    assert (await raw.rest()).endswith(b"\r\n\r\n12345")
    await raw.close()
    await eventually(lambda: len(released) == 5)
    assert sorted(released, key=str) == [5, 5, 9, None, None]


@pytest.mark.parametrize("length", [10, None])
async def test_an_answer_that_fails_half_way_is_cut_and_logged(port, world, caplog, lines, length):
    def chunk_and_fail(start, stop):
        yield b"12345"
        raise RuntimeError("the disk is broken")

    world.answers["1"] = lambda: Answer(200, [], (ByteStream(chunk_and_fail, length),), length)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    everything = await raw.rest()
    assert b"12345" in everything
    assert not everything.endswith(b"0\r\n\r\n")
    await raw.close()
    await eventually(lambda: lines.text)
    assert "cut short after" in caplog.text
    assert "the disk is broken" in caplog.text


async def test_a_broken_frame_behind_good_ones_is_logged_in_a_sentence(port, world, caplog, lines):
    def chunk_and_fail(start, stop):
        yield b"12345"
        raise NotAcceptable("the codestream ends inside its picture", ())

    world.answers["1"] = lambda: Answer(200, [], (ByteStream(chunk_and_fail, None),), None)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    assert not (await raw.rest()).endswith(b"0\r\n\r\n")
    await raw.close()
    await eventually(lambda: lines.text)
    assert "bytes: the codestream ends inside its picture" in caplog.text
    assert "Traceback" not in caplog.text


async def test_an_answer_cut_short_never_looks_complete_to_http_1_0(port, world):
    def fail(start, stop):
        yield b"12345"
        raise RuntimeError("the disk is broken")

    world.answers["1"] = lambda: Answer(200, [], (ByteStream(fail, None),), None)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1", version="HTTP/1.0"))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(raw.reader.read(), DEADLINE)
    await raw.close()


async def test_unknown_lengths_are_chunked_or_end_with_the_connection(port, world):
    world.answers["1"] = lambda: Answer(
        200,
        [],
        (
            Literal(b"[" * 10),
            ByteStream(lambda start, stop: iter([b"a" * 100_000, b"", b"b"]), None),
            Literal(b"]"),
        ),
        None,
    )
    expected = b"[" * 10 + b"a" * 100_000 + b"b]"
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1") + message("GET /v2/studies/1.2"))
    _, headers, payload = await raw.answer()
    assert (headers["transfer-encoding"], payload) == ("chunked", expected)
    assert (await raw.answer())[2] == b"hello"
    await raw.close()
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1", "Connection: keep-alive", version="HTTP/1.0"))
    _, headers = await raw.head()
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert await raw.rest() == expected
    await raw.close()


async def test_known_errors_and_bugs_become_problems(port, world, caplog):
    def fail(error):
        def answer():
            raise error

        return answer

    world.answers = {
        "1": fail(NotFound("nothing there")),
        "2": fail(Overloaded("busy", 7)),
        "3": fail(RuntimeError("secret of the house")),
    }
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    status, headers, payload = await raw.answer()
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert b"nothing there" in payload
    await raw.send(message("GET /v2/studies/2", "Accept: text/plain"))
    status, headers, payload = await raw.answer()
    assert (status, headers["retry-after"], headers["content-type"]) == (
        503,
        "7",
        "text/plain; charset=utf-8",
    )
    await raw.send(message("GET /v2/studies/3", "X-Request-ID: abc"))
    status, headers, payload = await raw.answer()
    assert status == 500
    assert b"secret" not in payload
    assert b"abc" in payload
    assert "[abc] unexpected" in caplog.text
    assert "secret of the house" in caplog.text
    await raw.close()


async def test_a_header_with_a_line_break_is_never_sent(port, world):
    world.answers["1"] = lambda: Answer(200, [("X", "a\r\nSet-Cookie: b")], (), 0)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    status, headers, _ = await raw.answer()
    assert (status, "set-cookie" in headers) == (500, False)
    await raw.close()


async def test_deletes(port, world):
    raw = await Raw.connect(port)
    await raw.send(message("DELETE /v2/studies/1.2/series/3") + message("DELETE /v2/studies/404"))
    assert (await raw.answer())[0] == 204
    assert (await raw.answer())[0] == 404
    assert world.deleted == [("1.2", "3", None), ("404", None, None)]
    await raw.close()


class TestReadOnly:
    @pytest.fixture
    def settings(self):
        return settings_of(read_only=True)

    async def test_writes_are_refused(self, port, world):
        raw = await Raw.connect(port)
        await raw.send(message("DELETE /v2/studies/1.2") + message("GET /v2/studies/1.2") + post(b"body"))
        assert (await raw.answer())[0] == 403
        assert (await raw.answer())[0] == 200
        assert (await raw.answer())[0] == 403
        await raw.close()
        assert not world.deleted
        assert not world.stored


async def test_no_descriptor_is_left_behind(port, world):
    """After every kind of end a connection can have."""

    async def round_of_ends():
        for line in (
            post(b"x" * 1000),
            post(b"REFUSE"),
            message("GET /v2/studies/1.2"),
            message("GET /v9/x"),
        ):
            raw = await Raw.connect(port)
            await raw.send(line)
            await raw.answer()
            await raw.close()
        raw = await Raw.connect(port)
        await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 9") + b"x")
        await raw.close()
        raw = await Raw.connect(port)
        await raw.send(message("GET /v2/studies/1"))
        await raw.head()
        await raw.close()

    world.answers["1"] = lambda: Answer(
        200, [], (ByteStream(lambda start, stop: iter([b"x" * 100_000] * 1000), 10**8),), 10**8
    )
    await round_of_ends()
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await round_of_ends()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= count)


# Rare ways


def span_answer(path, *spans, length=None):
    source = os.open(path, os.O_RDONLY)
    total = sum(span.length for span in spans)
    return Answer(
        200,
        [],
        (Literal(b"<"), *spans, Literal(b">")),
        total + 2 if length is None else length,
        file_at=lambda segment, at: (source, at),
        release=lambda: os.close(source),
    )


@pytest.mark.parametrize("warm", [True, False])
async def test_small_spans_go_out_with_their_head(port, world, tmp_path, monkeypatch, warm):
    if not warm:
        monkeypatch.setattr("streamsrv.web.sending.response.read_warm", lambda *_: False)
    (tmp_path / "segment").write_bytes(b"0123456789")
    world.answers["1"] = lambda: span_answer(tmp_path / "segment", Span(1, 2, 3), Span(1, 0, 1))
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    assert (await raw.answer())[2] == b"<2340>"
    await raw.close()


async def test_a_segment_that_ends_too_early_is_our_fault(port, world, tmp_path):
    (tmp_path / "segment").write_bytes(b"0123456789")
    world.answers["1"] = lambda: span_answer(tmp_path / "segment", Span(1, 8, 3))
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    assert (await raw.answer())[0] == 500
    await raw.close()


async def test_spans_without_anybody_who_opens_them_are_a_bug(port, world):
    world.answers["1"] = lambda: Answer(200, [], (Span(1, 0, 10),), 10)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    assert b"\r\n\r\n" in await raw.rest()
    await raw.close()


@pytest.mark.parametrize("length", [100_000, 700_000, 3_000_000])
async def test_a_long_answer_that_is_in_memory_arrives_whole(port, world, length):
    """And one that is shorter than it says is never begun."""
    texts, more = (b"before", bytes(length // 2) + b"x" * (length // 2), b"after"), [0, 1]
    world.answers["1.4"] = lambda: Answer(
        200, [], tuple(map(Literal, texts)), sum(map(len, texts)) + more.pop(0)
    )
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1.2/series/1.3/instances/1.4"))
    assert (await raw.answer())[2] == b"".join(texts)
    if length < SHORT:
        await raw.send(message("GET /v2/studies/1.2/series/1.3/instances/1.4"))
        assert (await raw.answer())[0] == 500
    await raw.close()


async def test_an_error_of_an_inline_answer_is_a_problem_too(port, world):
    def compute():
        raise NotFound("nothing there")

    world.answers["1.4"] = compute
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1.2/series/1.3/instances/1.4"))
    assert (await raw.answer())[0] == 404
    await raw.close()


async def test_searches_go_to_the_search(port, world):
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies?PatientID=1"))
    assert (await raw.answer())[0] == 204
    assert world.requests[0][0].query == (("PatientID", "1"),)
    await raw.close()


async def test_a_client_that_goes_while_its_answer_is_made(port, world, lines):
    gate, released = threading.Event(), []

    def slow():
        gate.wait(DEADLINE)
        answer = Answer(200, [], (ByteStream(lambda start, stop: iter([b"x"]), 1),), 1)
        answer.release = lambda: released.append(True)
        return answer

    world.answers["metadata"] = lambda: Deferred(slow)
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1.2/metadata"))
    await eventually(lambda: world.requests)
    linger = struct.pack("ii", 1, 0)  # a reset: an end would be taken for half of one
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await raw.close()
    await asyncio.sleep(0.05)
    gate.set()
    await eventually(lambda: released)
    await eventually(lambda: lines.text)
    assert '"GET /v2/studies/1.2/metadata" 499 0 ' in lines.text


LONG = b"0123456789" * 500_000


@pytest.mark.parametrize("kind", ["small", "long", "of unknown length"])
async def test_a_client_that_has_shut_its_side_gets_its_whole_answer(port, world, lines, kind):
    """RFC 9112 9.6; `nc -N` does so. Its shutting arrives while the answer is being made, in a thread."""
    gate = threading.Event()
    plan, length = {
        "small": ((Literal(b"small"),), 5),
        "long": ((ByteStream(lambda start, stop: iter([LONG[:100], LONG[100:]]), len(LONG)),), len(LONG)),
        "of unknown length": ((ByteStream(lambda start, stop: iter([LONG, b"end"]), None),), None),
    }[kind]

    def slow():
        gate.wait(DEADLINE)
        return Answer(200, [], plan, length)

    world.answers = {"metadata": lambda: Deferred(slow), "1.3": lambda: Answer(200, [], plan, length)}
    expected = {"small": b"small", "long": LONG, "of unknown length": LONG + b"end"}[kind]
    for path in ("1.2/metadata", "1.3"):
        gate.clear()
        raw = await Raw.connect(port)
        await raw.send(message(f"GET /v2/studies/{path}"))
        raw.writer.write_eof()
        await asyncio.sleep(0.05)
        gate.set()
        assert (await raw.answer())[2] == expected
        assert await raw.rest() == b""
        await raw.close()
    await eventually(lambda: lines.text.count(" 200 ") == 2)


async def test_a_client_that_has_shut_its_side_behind_what_is_no_http_is_told(port, lines):
    for _ in range(50):  # the end may arrive before a task begins, or later
        raw = await Raw.connect(port)
        await raw.send(b"hello\r\n\r\n")
        raw.writer.write_eof()
        assert (await raw.answer())[0] == 400
        assert await raw.rest() == b""
        await raw.close()
    await eventually(lambda: lines.text.count(" 400 ") == 50)


async def test_a_client_that_has_shut_its_side_behind_a_body_and_more(port, world):
    gate = threading.Event()
    world.before_reading = lambda: gate.wait(DEADLINE)
    raw = await Raw.connect(port)
    await raw.send(post(b"SLOW") + message("GET /v2/studies/1.2/metadata"))
    raw.writer.write_eof()
    await asyncio.sleep(0.05)
    gate.set()
    assert (await raw.answer())[2] == b"stored 4"
    assert (await raw.answer())[2] == b"hello"
    assert await raw.rest() == b""
    await raw.close()


async def test_an_answer_to_nobody_ends_soon(port, world, lines):
    """A client that is gone for good looks like one that has shut its side only, until it is sent
    something."""
    released = []

    def endless(start, stop):
        while True:
            yield b"x" * 100_000

    answer = Answer(200, [], (ByteStream(endless, None),), None, release=lambda: released.append(True))
    world.answers["1"] = lambda: answer
    raw = await Raw.connect(port)
    await raw.send(message("GET /v2/studies/1"))
    await raw.reader.readexactly(1_000_000)
    await raw.close()
    await eventually(lambda: released)
    await eventually(lambda: lines.text)
    assert '"GET /v2/studies/1" 499 ' in lines.text


async def test_an_upload_that_cannot_be_undone_is_logged(port, world, caplog):
    raw = await Raw.connect(port)
    world.abort_fails = True
    await raw.send(post(b"REFUSE"))
    assert (await raw.answer())[0] == 400
    assert "could not be undone" in caplog.text
    await raw.close()


async def test_a_refused_client_that_goes_on_for_ever_is_cut_off(port, world, monkeypatch):
    for module in ("exchange", "closing"):
        monkeypatch.setattr(f"streamsrv.web.connection.{module}.LINGER_BYTES", 1_000_000)
    for framing in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
        raw = await Raw.connect(port)
        await raw.send(message("POST /v2/studies", DICOM, framing) + b"a\r\nREFUSE1234\r\n")

        async def flood(raw=raw):
            while True:
                await raw.send(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(flood(), DEADLINE)
        await raw.close()


async def test_a_refused_client_that_lingers_is_cut_off(port, world, monkeypatch):
    monkeypatch.setattr("streamsrv.web.connection.exchange.LINGER_SECONDS", 0.1)
    for framing in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
        raw = await Raw.connect(port)
        await raw.send(message("POST /v2/studies", DICOM, framing) + b"a\r\nREFUSE1234\r\n")
        assert (await raw.answer())[0] == 400
        assert await raw.rest() == b""

        async def writing(raw=raw):
            while True:
                await raw.send(b"x")
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(writing(), DEADLINE)
        await raw.close()


async def test_a_refused_client_that_is_gone_already(port, world, lines):
    gate = threading.Event()
    world.before_reading = lambda: gate.wait(DEADLINE)
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 100") + b"SLOW")
    await eventually(lambda: world.threads)
    raw.writer.transport.abort()
    gate.set()
    await eventually(lambda: world.aborted)

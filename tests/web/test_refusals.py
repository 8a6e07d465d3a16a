"""Every refusal with a second request planted in the unread body: it must never be answered, and the refusal
must arrive although the client is still sending."""

import asyncio
import json
import re

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of

PLANTED = b"\r\n\r\nDELETE /v2/studies/6.6.6 HTTP/1.1\r\nHost: localhost\r\n\r\n"
DICOM = "Content-Type: application/dicom"


@pytest.fixture
def settings():
    return settings_of(max_body=1 << 20, max_url=300, max_head=2000, max_uploads=2, max_inflated_body=1 << 20)


def message(line, *headers, host="localhost", version="HTTP/1.1"):
    lines = [f"{line} {version}", *([f"Host: {host}"] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1")


def chunked(body, size=50_000):
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# What is refused: status, request line, headers, word in the body.
REFUSALS = {
    "unknown version": (404, "POST /v9/studies", [DICOM], b""),
    "unknown resource": (404, "POST /v2/nothing", [DICOM], b""),
    "malformed UID": (400, "POST /v2/studies/1..2", [DICOM], b""),
    "no path": (400, "POST localhost/v2/studies", [DICOM], b""),
    "another scheme": (400, "POST ftp://localhost/v2/studies", [DICOM], b""),
    "malformed escape": (400, "POST /v2/studies/%zz", [DICOM], b""),
    "malformed query": (400, "POST /v2/studies?a=%zz", [DICOM], b""),
    "method": (405, "PUT /v2/studies", [DICOM], b""),
    "made-up method": (405, "FROB /v2/studies", [DICOM], b""),
    "long URL": (414, "POST /v2/studies?a=" + "b" * 300, [DICOM], b""),
    "long head": (431, "POST /v2/studies", [DICOM, "X-Long: " + "x" * 2000], b""),
    "media type": (415, "POST /v2/studies", ["Content-Type: text/plain"], b""),
    "no media type": (415, "POST /v2/studies", [], b""),
    "content encoding": (415, "POST /v2/studies", [DICOM, "Content-Encoding: br"], b""),
    "not gzip": (400, "POST /v2/studies", [DICOM, "Content-Encoding: gzip"], b""),
    "malformed body": (400, "POST /v2/studies", [DICOM], b"REFUSE"),
    "a bug": (500, "POST /v2/studies", [DICOM], b"BREAK"),
}


def answers_in(everything):
    return len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", everything))


async def one_answer(port, head, body):
    """Everything that comes back when all of it is sent at once; exactly one answer, then the end."""
    raw = await Raw.connect(port)
    sending = asyncio.ensure_future(raw.send(head + body))
    everything = await raw.rest()
    await asyncio.wait([sending])
    sending.exception()
    await raw.close()
    assert answers_in(everything) == 1, everything[:2000]
    head, _, payload = everything.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    return int(head.split()[1]), payload


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("length", [100, 400_000])
@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_planted_request_is_never_answered(port, world, kind, length, framing):
    status, line, headers, word = REFUSALS[kind]
    body = word + PLANTED + b"x" * length + PLANTED
    if framing == "length":
        head = message(line, *headers, f"Content-Length: {len(body)}") + b"\r\n\r\n"
    else:
        head, body = message(line, *headers, "Transfer-Encoding: chunked") + b"\r\n\r\n", chunked(body)
    answered, payload = await one_answer(port, head, body)
    assert answered == status
    assert b'"status": %d' % status in payload
    assert not world.deleted
    assert not world.stored
    await eventually(lambda: all("abort" in each.calls for each in world.recorders))


# Where a body ends cannot be told, or not safely: refused by us or by Tornado, and always closed.
FRAMINGS = {
    "both": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "two lengths": ["Content-Length: 5", "Content-Length: 6"],
    "twice the same length": ["Content-Length: 5", "Content-Length: 5"],
    "a list of lengths": ["Content-Length: 5, 5"],
    "negative": ["Content-Length: -5"],
    "with a sign": ["Content-Length: +5"],
    "hexadecimal": ["Content-Length: 0x5"],
    "with an underscore": ["Content-Length: 1_0"],
    "of other digits": ["Content-Length: \u00b2"],
    "empty": ["Content-Length:"],
    "far too long": ["Content-Length: " + "9" * 30],
    "gzip coding": ["Transfer-Encoding: gzip"],
    "two codings": ["Transfer-Encoding: gzip, chunked"],
    "twice chunked": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "identity": ["Transfer-Encoding: identity"],
    "folded": ["Content-Length:\r\n 5"],
    "a blank before the colon": ["Content-Length : 5"],
    "no colon": ["Content-Length 5"],
}


@pytest.mark.parametrize("line", ["POST /v2/studies", "GET /v2/studies/1.2", "PUT /v2/studies"])
@pytest.mark.parametrize("kind", FRAMINGS)
async def test_a_body_whose_end_is_doubtful_ends_the_connection(port, world, kind, line):
    head = message(line, DICOM, *FRAMINGS[kind]) + b"\r\n\r\n"
    raw = await Raw.connect(port)
    await raw.send(head + PLANTED)
    everything = await raw.rest()
    await raw.close()
    assert answers_in(everything) <= 1
    assert not everything or int(everything.split()[1]) in (400, 405)
    assert not world.deleted
    assert not world.stored


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "ICY/1.1"])
async def test_chunks_are_of_http_1_1(port, world, version):
    head = message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked", version=version) + b"\r\n\r\n"
    raw = await Raw.connect(port)
    await raw.send(head + chunked(b"x" * 100) + PLANTED)
    everything = await raw.rest()
    await raw.close()
    assert everything.startswith(b"HTTP/1.1 400 ")
    assert answers_in(everything) == 1
    assert not world.deleted
    assert not world.stored


@pytest.mark.parametrize("size", [b"-5", b"0x5", b"5;" + b"a" * 9, b"g", b"", b" 5", b"5 "])
async def test_a_malformed_chunk_ends_the_connection_and_leaves_nothing(port, world, size):
    head = message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked") + b"\r\n\r\n"
    raw = await Raw.connect(port)
    await raw.send(head + b"5\r\nfirst\r\n" + size + b"\r\nsecond\r\n" + PLANTED)
    everything = await raw.rest()
    await raw.close()
    assert answers_in(everything) == 1
    assert b"this is not HTTP/1.1: invalid chunk size" in everything
    await eventually(lambda: world.aborted)
    assert not world.stored
    assert not world.deleted


@pytest.mark.parametrize("size", [b"0" * 62 + b"5", b"a" * 64, b"\r" * 70, bytes(200_000)])
@pytest.mark.parametrize("later", [0, 40])
async def test_a_chunk_size_without_an_end_is_told(port, world, size, later):
    head = message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked") + b"\r\n\r\n"
    sent = head + b"5\r\nfirst\r\n" + size + b"\r\nsecond\r\n" + PLANTED
    at = len(sent) - later * (len(PLANTED) + len(size)) // 40
    raw = await Raw.connect(port)
    await raw.send(sent[:at])
    await asyncio.sleep(0.01 * bool(later))
    await raw.send(sent[at:])
    everything = await raw.rest()
    await raw.close()
    assert everything.startswith(b"HTTP/1.1 400 ")
    assert answers_in(everything) == 1
    assert b"the size of a chunk has no end within 64 bytes" in everything
    await eventually(lambda: world.aborted)
    assert not world.stored
    assert not world.deleted


@pytest.mark.parametrize("size", [b"5", b"0" * 61 + b"5"])
async def test_a_chunk_size_may_have_62_digits(port, world, size):
    head = message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked", "Connection: close") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, size + b"\r\nfirst\r\n0\r\n\r\n")
    assert status == 200
    assert world.stored


async def test_a_host_that_is_not_expected(port, world):
    body = PLANTED
    head = (
        message("POST /v2/studies", DICOM, f"Content-Length: {len(body)}", host="evil.example") + b"\r\n\r\n"
    )
    status, _ = await one_answer(port, head, body)
    assert status == 403
    head = message("POST /v2/studies", DICOM, f"Content-Length: {len(body)}", host="") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, body)
    assert status == 400
    assert not world.deleted


async def test_a_body_over_the_limit(port, world):
    head = message("POST /v2/studies", DICOM, "Content-Length: 2000000") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, PLANTED)
    assert status == 413
    assert not world.recorders  # refused by the head alone
    head = message("POST /v2/studies", DICOM, "Transfer-Encoding: chunked") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, chunked(b"x" * 2_000_000) + PLANTED)
    assert status == 413
    assert not world.stored
    assert not world.deleted


async def test_a_full_disk(port, world):
    world.full = True
    head = message("POST /v2/studies", DICOM, "Content-Length: 2000") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, PLANTED + b"x" * 2000)
    assert status == 507
    assert not world.deleted


@pytest.mark.parametrize("line", ["GET /v2/studies/1.2", "DELETE /v2/studies/1.2", "GET /health/live"])
async def test_a_large_body_where_none_belongs(port, world, line):
    head = message(line, "Content-Length: 1000000") + b"\r\n\r\n"
    status, _ = await one_answer(port, head, PLANTED + b"x" * 1_000_000)
    assert status == 413
    assert not world.deleted


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_small_body_where_none_belongs_is_dropped_whole(port, world, framing):
    raw = await Raw.connect(port)
    if framing == "length":
        await raw.send(
            message("GET /v2/studies/1.2", f"Content-Length: {len(PLANTED)}") + b"\r\n\r\n" + PLANTED
        )
    else:
        await raw.send(
            message("GET /v2/studies/1.2", "Transfer-Encoding: chunked") + b"\r\n\r\n" + chunked(PLANTED)
        )
    await raw.send(message("GET /v2/studies/1.3") + b"\r\n\r\n")
    assert (await raw.answer())[2] == b"hello"
    assert (await raw.answer())[2] == b"hello"
    await raw.close()
    assert [target.study for _, target in world.requests] == ["1.2", "1.3"]
    assert not world.deleted


async def test_too_many_uploads_at_once(port, world):
    waiting = [await Raw.connect(port) for _ in range(2)]
    for raw in waiting:
        await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 100") + b"\r\n\r\nbegin")
    await eventually(lambda: len(world.recorders) == 2)
    head = message("POST /v2/studies", DICOM, "Content-Length: 1000") + b"\r\n\r\n"
    raw = await Raw.connect(port)
    await raw.send(head + PLANTED)
    status, headers = await raw.head()
    assert status == 429
    assert int(headers["retry-after"]) > 0
    await raw.close()
    for raw in waiting:
        await raw.send(b"x" * 95)
        assert (await raw.answer())[0] == 200
        await raw.close()
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, "Content-Length: 5") + b"\r\n\r\nagain")
    assert (await raw.answer())[0] == 200
    await raw.close()
    assert not world.deleted


async def test_a_refused_client_may_go_on_sending_for_a_while(port, world):
    """It reads the refusal only after it has sent 30 MB: a reset must not have overtaken it."""
    length = 30_000_000
    raw = await Raw.connect(port)
    await raw.send(message("POST /v2/studies", DICOM, f"Content-Length: {length}") + b"\r\n\r\n")
    for _ in range(30):
        await asyncio.wait_for(raw.send(b"x" * (length // 30)), DEADLINE)
    status, headers, _ = await raw.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert await raw.rest() == b""
    await raw.close()


async def test_a_head_that_is_far_too_long_is_told_so(port):
    raw = await Raw.connect(port)
    await raw.send(b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 500_000)
    everything = await raw.rest()
    assert everything.startswith(b"HTTP/1.1 431 ")
    assert b"this server accepts 2000" in everything
    await raw.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"GET  /v2/studies HTTP/1.1", "Malformed HTTP request line"),
        (b"GET /v2/st\x01udies HTTP/1.1", "Malformed HTTP request line"),
        (b"hello", "Malformed HTTP request line"),
        (b"\x16\x03\x01", "Malformed HTTP request line"),
        (b"GET /v2/studies HTTP/2.0", "Unexpected HTTP version"),
        (b"GET /v2/studies HTTP/1.1\r\nAccept */*", "no colon in header line"),
    ],
)
async def test_what_is_not_http_is_told_what_is_wrong(port, lines, line, said):
    raw = await Raw.connect(port)
    await raw.send(line + b"\r\nHost: localhost\r\n\r\n" + PLANTED)
    everything = await raw.rest()
    assert everything.startswith(b"HTTP/1.1 400 ")
    assert answers_in(everything) == 1
    head, _, payload = everything.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    told = json.loads(payload)
    assert told["detail"] == f"this is not HTTP/1.1: {said}"
    assert told["instance"] in head.decode()
    await eventually(lambda: lines.text)
    assert lines.text.startswith('127.0.0.1 "- -" 400 ', lines.text.index("Z ") + 2)
    await raw.close()

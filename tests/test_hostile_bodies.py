"""Bodies that are refused as a whole: by their Content-Type, as multipart, as gzip, by a limit.

Each is full of planted requests. Where a body was not read to its end, the connection ends with the refusal;
where it was, the next request is answered and the planted ones are not.
"""

import gzip
import time
import zlib

import pytest
from hostile_files import instance, new_uid
from hostile_world import (
    BOUNDARY,
    DICOM,
    MARK,
    PLANT,
    RELATED,
    Probes,
    World,
    chunked,
    converse,
    head,
    marked,
    part,
    post,
    related,
    replies,
)

from streamsrv.web.connection.closing import RESET_SECONDS

LIMITS = {
    "--max-body": 40_000_000,
    "--max-instance": 1_000_000,
    "--max-inflated-body": 5_000_000,
    "--max-parts": 20_000,
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("bodies"), *(str(word) for pair in LIMITS.items() for word in pair))
    yield world
    world.end()


@pytest.fixture(autouse=True)
def unharmed(hostile):
    yield
    hostile.unharmed()


# Refused by the head alone: the body is never read

CONTENT_TYPES = {
    "none": (None, "without a Content-Type"),
    "no boundary": ('Content-Type: multipart/related; type="application/dicom"', "names no boundary"),
    "an empty boundary": ("Content-Type: multipart/related; boundary=", "names no boundary"),
    "an endless boundary": ("Content-Type: multipart/related; boundary=" + "b" * 300, "boundary is too long"),
    "a form": (f"Content-Type: multipart/form-data; boundary={BOUNDARY}", "multipart/form-data"),
    "mixed": (f"Content-Type: multipart/mixed; boundary={BOUNDARY}", "multipart/mixed"),
    "parts of text": (f"{RELATED.replace('application/dicom', 'text/plain')}", "text/plain"),
    "text": ("Content-Type: text/plain", "text/plain"),
    "an upload form": (
        "Content-Type: application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded",
    ),
    "no media type": ("Content-Type: dicom", "malformed"),
    "an open quote": ('Content-Type: multipart/related; boundary="frontier', "malformed"),
    "quotes without end": ("Content-Type: a/b" + ';a="\\' * 3000, "malformed"),
}


@pytest.mark.parametrize("size", [0, 300_000])
@pytest.mark.parametrize("kind", CONTENT_TYPES)
def test_a_content_type_that_cannot_be_stored(hostile, kind, size):
    content_type, words = CONTENT_TYPES[kind]
    body = PLANT + related(instance()) + marked(size)
    reply = hostile.refused(post(content_type, body))
    assert reply.status == 415
    assert words in reply.problem()
    assert {'multipart/related; type="application/dicom"', "application/dicom"} <= set(
        reply.json()["supported"]
    )


def test_a_coding_that_is_not_known(hostile):
    reply = hostile.refused(post(RELATED, PLANT + marked(), "Content-Encoding: br"))
    assert reply.status == 415
    assert "'br'" in reply.problem()


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
def test_a_length_over_the_limit(hostile, expect):
    """Told before anything is read, and before the client is told to go on."""
    request = head("POST /v2/studies", RELATED, "Content-Length: 40000001", *expect) + PLANT
    received = converse(hostile.origin, request)
    assert not received.startswith(b"HTTP/1.1 100")
    (reply,) = replies(received)
    assert reply.status == 413
    assert reply.problem() == "the body has 40000001 bytes; this server accepts 40000000"


# Refused within the body


def lines(number):
    return b"".join(b"X-%d: y\r\n" % at for at in range(number))


OPENED = f"--{BOUNDARY}\r\n".encode()
WITHIN = {
    "no boundary where one belongs": (lambda: marked(200_000), 413, "65536 bytes of the body do not hold"),
    "a part's head of 10 MB": (
        lambda: OPENED + b"X-Long: " + MARK * 700_000,
        413,
        "the headers of the part at byte 12 of the body exceed 16384 bytes",
    ),
    "a part's head without a line end": (
        lambda: OPENED + marked(100_000).replace(b"\r\n", b""),
        413,
        "at byte 12",
    ),
    "a thousand headers": (lambda: OPENED + lines(1000) + b"\r\n" + marked(), 413, "more than 64 headers"),
    "many headers and no end": (lambda: OPENED + lines(3000), 413, "exceed 16384 bytes"),
    "no header": (lambda: OPENED + b"no header\r\n\r\n" + marked(), 400, "malformed header (at byte 12 "),
    "NUL in a header": (lambda: OPENED + b"A: \0\r\n\r\n" + marked(), 400, "malformed header (at byte 12 "),
    "an instance over the limit": (lambda: part(marked(1_100_000)), 413, "longer than the 1000000 bytes"),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("kind", WITHIN)
def test_a_body_that_is_no_multipart_body(hostile, kind, framing):
    make, status, words = WITHIN[kind]
    body = make() + PLANT + marked(200_000)
    if framing == "length":
        request = post(RELATED, body)
    else:
        request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked") + chunked(body)
    reply = hostile.refused(request)
    assert reply.status == status
    assert words in reply.problem()


def test_a_million_empty_parts(hostile):
    """Others are answered meanwhile, although a single chunk holds 50,000 of them."""
    body = part(instance()) + f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 1_000_000 + marked()
    with Probes(hostile) as probes:
        reply = hostile.refused(post(RELATED, body))
    assert reply.status == 413
    assert reply.problem() == "the body has more than 20000 parts"
    assert max(probes.seconds) < 2


def test_as_many_empty_parts_as_are_allowed(hostile):
    """Each is answered for."""
    file = instance()
    body = f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 19_999 + related(file)
    with Probes(hostile) as probes:
        reply = hostile.answered(post(RELATED, body))
    assert reply.status == 202
    assert len(reply.failures()) == 19_999
    assert {reason for reason, _ in reply.failures()} == {43264}
    assert max(probes.seconds) < 2


def test_a_chunked_body_over_the_limit(hostile):
    """Its length is told by nobody: it ends at the limit. Nothing of it is held: the preamble is."""
    file = instance()
    body = (
        related(*[file] * 10)[: -len(BOUNDARY) - 6] + b"\r\n" + OPENED + b"Content-Type: text/plain\r\n\r\n"
    )
    request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked")
    reply = hostile.refused(request + chunked(body + marked(40_100_000)))
    assert reply.status == 413
    assert "longer than the 40000000 bytes" in reply.problem()


# Refused at the end of the body: the connection lives, and what comes next is a request

ENDINGS = {
    "nothing at all": (lambda one: b"", "before the first boundary"),
    "another boundary": (
        lambda one: related(one).replace(b"frontier", b"border"),
        "before the first boundary",
    ),
    "another case": (lambda one: related(one).replace(b"frontier", b"FRONTIER"), "before the first boundary"),
    "line feeds only": (
        lambda one: related(one).replace(b"\r\n--", b"\n--")[1:],
        "before the first boundary",
    ),
    "cut within headers": (lambda one: part(one) + related(one)[:25], "in the headers of a part"),
    "cut within a part": (lambda one: part(one) + related(one)[:-100], "in a part"),
    "cut behind a part": (lambda one: part(one) + part(one), "in a part"),
    "cut behind a boundary": (lambda one: part(one) + OPENED, "in the headers of a part"),
    "no line end before the end": (
        lambda one: related(one).replace(b"\r\n--frontier--", b"--frontier--"),
        "in a part",
    ),
    "cut within the end": (lambda one: related(one)[:-3], "in a part"),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("kind", ENDINGS)
def test_a_multipart_body_that_is_cut(hostile, kind, framing):
    """All its instances are whole, and none is stored: the client cannot be told about those that are
    missing."""
    make, words = ENDINGS[kind]
    uid = new_uid()
    body = marked() + b"\r\n" + make(instance(study=uid))
    if framing == "length":
        reply = hostile.answered(post(RELATED, body))
    else:
        request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked") + chunked(body, size=1000)
        reply = hostile.answered(request)
    assert reply.status == 400
    assert reply.json()["offset"] == len(body)
    assert words in reply.problem()
    assert hostile.get(f"/v2/studies/{uid}").status == 404


# Bodies that never end


@pytest.mark.parametrize("framing", ["length", "chunked", "in a chunk's size", "in a chunk"])
def test_a_connection_that_breaks_off_leaves_nothing(hostile, framing):
    uid = new_uid()
    body = related(instance(study=uid)) + marked(5000)
    if framing == "length":
        request = head("POST /v2/studies", RELATED, f"Content-Length: {len(body) + 1}") + body
    else:
        request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked")
        request += chunked(body, size=1000)[
            : {"chunked": -5, "in a chunk's size": -8, "in a chunk": -20}[framing]
        ]
    (told,) = replies(converse(hostile.origin, request, half_close=True))
    assert told.status == 400
    assert told.problem() == "the connection was shut before the end of the body"
    assert hostile.get(f"/v2/studies/{uid}").status == 404


def test_a_client_that_shuts_its_side_behind_a_whole_body_is_answered(hostile):
    """The server asks later whether the client is there, also if the connection has ended meanwhile."""
    (told,) = replies(converse(hostile.origin, post(DICOM, instance()), half_close=True))
    assert told.status == 200
    time.sleep(RESET_SECONDS + 0.2)
    assert "Traceback" not in hostile.server.log.read_text(errors="replace")


MALFORMED = dict.fromkeys(
    (b"-5", b"0x5", b"5;" + b"a" * 20, b"g", b"", b" 5"), "this is not HTTP/1.1: invalid chunk size"
) | {b"1" * 30: "this is not HTTP/1.1: chunked body too large"}


@pytest.mark.parametrize("size", MALFORMED)
def test_a_chunk_size_that_is_none(hostile, size):
    uid = new_uid()
    request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked")
    request += chunked(related(instance(study=uid)) + marked(), size=1000)[:-5] + size + b"\r\n" + marked()
    found = replies(converse(hostile.origin, request + b"\r\n0\r\n\r\n" + PLANT))
    assert [(each.status, each.problem()) for each in found] == [(400, MALFORMED[size])]
    assert hostile.get(f"/v2/studies/{uid}").status == 404


# gzip


def test_gzip_that_is_none(hostile):
    reply = hostile.refused(post(RELATED, related(instance()) + marked(), "Content-Encoding: gzip"))
    assert reply.status == 400
    assert "not gzip" in reply.problem()


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_gzip_that_is_cut(hostile, cut):
    body = gzip.compress(related(instance()) + marked())
    reply = hostile.answered(post(RELATED, body[:-cut], "Content-Encoding: gzip"))
    assert reply.status == 400
    assert reply.problem() == "the gzip body ends before its end"


def test_gzip_with_a_wrong_checksum(hostile):
    body = gzip.compress(related(instance()) + marked())
    reply = hostile.refused(post(RELATED, body[:-5] + b"\0" + body[-4:] + PLANT, "Content-Encoding: gzip"))
    assert reply.status == 400
    assert "not gzip" in reply.problem()


@pytest.mark.parametrize("where", ["preamble", "part", "epilogue"])
def test_a_gzip_bomb(hostile, where):
    """60 kB that unpack to 60 MB."""
    before = {
        "preamble": b"",
        "part": OPENED + b"Content-Type: text/plain\r\n\r\n",
        "epilogue": related(instance()),
    }
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = squeezer.compress(before[where]) + squeezer.compress(bytes(60 << 20)) + squeezer.flush()
    reply = hostile.refused(post(RELATED, body + marked(), "Content-Encoding: gzip"))
    assert reply.status == 413
    assert ("65536" if where == "preamble" else "unpacks to more than the 5000000 bytes") in reply.problem()


def test_a_gzip_body_of_empty_members(hostile):
    reply = hostile.refused(post(RELATED, gzip.compress(b"") * 20_000 + marked(), "Content-Encoding: gzip"))
    assert reply.status == 413
    assert "more than 10000 gzip members" in reply.problem()


def test_gzip_that_is_right_is_stored(hostile):
    file = instance()
    body = gzip.compress(related(file), mtime=0)
    assert hostile.answered(post(RELATED, body, "Content-Encoding: gzip")).status == 200

"""Requests that are refused for their head: framing, targets, methods, names.

What has a body is planted with a second request, in the body and behind it, and must end its connection.
"""

import pytest
from hostile_files import instance, new_uid
from hostile_world import (
    DICOM,
    PLANT,
    RELATED,
    VICTIM,
    World,
    chunked,
    converse,
    head,
    marked,
    post,
    related,
    replies,
)

INSTANCE = f"/v2/studies/{VICTIM}/series/{VICTIM}.1/instances/{VICTIM}.1.1"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("requests"))
    yield world
    world.end()


@pytest.fixture(autouse=True)
def unharmed(hostile):
    yield
    hostile.unharmed()


# Where the body ends must not be doubtful

FRAMINGS = {
    "two lengths": ["Content-Length: {0}", "Content-Length: {1}"],
    "the same length twice": ["Content-Length: {0}", "Content-Length: {0}"],
    "a list of lengths": ["Content-Length: {0}, {0}"],
    "length and chunked": ["Content-Length: {0}", "Transfer-Encoding: chunked"],
    "chunked and length": ["Transfer-Encoding: chunked", "Content-Length: {0}"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "gzip, chunked": ["Transfer-Encoding: gzip, chunked"],
    "chunked, identity": ["Transfer-Encoding: chunked, identity"],
    "not quite chunked": ["Transfer-Encoding: xchunked"],
    "a vertical tab": ["Transfer-Encoding: \x0bchunked"],
    "a sign": ["Content-Length: +{0}"],
    "negative": ["Content-Length: -{0}"],
    "hexadecimal": ["Content-Length: 0x{0}"],
    "a fraction": ["Content-Length: {0}.0"],
    "blanks within": ["Content-Length: 1 {0}"],
    "empty": ["Content-Length:"],
    "over 64 bits": ["Content-Length: 1" + "0" * 20 + "{0}"],
    "a blank before the colon": ["Content-Length : {0}"],
    "a folded line": ["Content-Length:\r\n {0}"],
    "a line without colon": ["Content-Length {0}"],
    "a lone CR": ["X: y\rContent-Length: {0}"],
    "NUL": ["X: \0", "Content-Length: {0}"],
}


@pytest.mark.parametrize("line", ["POST /v2/studies", f"GET {INSTANCE}", f"DELETE /v2/studies/{VICTIM}.9"])
@pytest.mark.parametrize("kind", FRAMINGS)
def test_a_body_whose_end_is_doubtful(hostile, kind, line):
    uid = new_uid()
    body = related(instance(study=uid)) + marked()
    headers = [form.format(len(body), len(body) + 7) for form in FRAMINGS[kind]]
    for sent in (body, chunked(body)):
        found = replies(converse(hostile.origin, head(line, RELATED, *headers) + sent + PLANT))
        assert [each.status for each in found] in ([400], [])
        hostile.unharmed()
    assert hostile.get(f"/v2/studies/{uid}").status == 404


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "ICY/1.1", "http/1.1"])
def test_chunked_in_another_version(hostile, version):
    uid = new_uid()
    request = head("POST /v2/studies", RELATED, "Transfer-Encoding: chunked", version=version)
    found = replies(converse(hostile.origin, request + chunked(related(instance(study=uid))) + PLANT))
    assert [each.status for each in found] == [400]
    assert hostile.get(f"/v2/studies/{uid}").status == 404


NOT_HTTP = {
    "two blanks": b"GET  /v2/studies HTTP/1.1",
    "a control character": b"GET /v2/st\x01udies HTTP/1.1",
    "no version": b"GET /v2/studies",
    "a word": b"hello",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0",
    "DICOM": bytes.fromhex("01000000 00cd 0001 0000") + b"ANY-SCP         ECHOSCU         ",
}


@pytest.mark.parametrize("kind", NOT_HTTP)
def test_what_is_not_http(hostile, kind):
    found = replies(converse(hostile.origin, NOT_HTTP[kind] + b"\r\nHost: localhost\r\n\r\n" + PLANT))
    assert [each.status for each in found] == [400]


# Heads that are bombs

BOMBS = {
    "a long header": ["X-Long: " + "x" * 33_000],
    "a thousand headers": [f"X-{number}: yyyyyyyyyyyyyyyyyyyyyyyy" for number in range(1000)],
    "one header a thousand times": ["Accept: application/dicom+json, a/b"] * 1500,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_head_over_the_limit(hostile, kind):
    reply = hostile.refused(post(RELATED, PLANT + marked(), *BOMBS[kind]))
    assert reply.status == 431
    assert "this server accepts 16384" in reply.problem()


@pytest.mark.parametrize(
    "line", ["X-Long: " + "x" * 1_000_000, "X: y\r\n" * 200_000, "\r\n".join(["a:"] * 50_000)]
)
def test_a_head_far_over_the_limit(hostile, line):
    reply = hostile.refused(head("POST /v2/studies", line))
    assert reply.status == 431
    assert "this server accepts 16384" in reply.problem()


@pytest.mark.parametrize("size", [16_385, 30_000])
@pytest.mark.parametrize("shape", ["/v2/studies?PatientName={}", "/v2/{}", INSTANCE + "/frames/{}"])
def test_a_long_url(hostile, shape, size):
    path = shape.format("1" * size)
    reply = hostile.refused(post(RELATED, PLANT, line=f"POST {path}"))
    assert reply.status == 414
    assert "this server accepts 16384" in reply.problem()
    assert hostile.refused(head(f"GET {path}")).status == 414


# Targets

TARGETS = {
    "no version": (404, "/studies", "supported are /v1 and /v2"),
    "version 0": (404, "/v0/studies", "supported are /v1 and /v2"),
    "version 3": (404, "/v3/studies", "supported are /v1 and /v2"),
    "version 02": (404, "/v99999/studies", "supported are /v1 and /v2"),
    "no resource": (404, "/v2/nothing", "no such resource"),
    "a step up": (404, f"/v2/../v2/studies/{VICTIM}", "no such resource"),
    "an encoded step up": (404, "/v2/%2e%2e%2fetc%2fpasswd", "no such resource"),
    "an encoded slash": (400, f"/v2/studies/{VICTIM}%2Fseries", "study UID"),
    "an encoded twice": (400, f"/v2/studies/{VICTIM}%252Fseries", "study UID"),
    "an escape that is cut": (400, f"/v2/studies/{VICTIM}%2", "percent sign"),
    "an escape that is none": (400, f"/v2/studies/{VICTIM}%zz", "percent sign"),
    "an escape of no UTF-8": (400, f"/v2/studies/{VICTIM}%ff", "not UTF-8"),
    "an overlong slash": (400, f"/v2/studies/{VICTIM}%c0%af", "not UTF-8"),
    "NUL": (400, f"/v2/studies/{VICTIM}%00", "study UID"),
    "raw bytes": (400, f"/v2/studies/{VICTIM}\xff", "not UTF-8"),
    "a UID of letters": (400, "/v2/studies/abc", "study UID 'abc'"),
    "a UID with two dots": (400, "/v2/studies/1..2", "study UID '1..2'"),
    "a UID of 65 characters": (400, "/v2/studies/" + "1" * 65, "at most 64"),
    "a UID of other digits": (400, "/v2/studies/%D9%A1.%D9%A2", "study UID"),
    "a series of letters": (400, f"/v2/studies/{VICTIM}/series/x", "series UID 'x'"),
    "an instance of letters": (400, f"/v2/studies/{VICTIM}/series/1/instances/x", "instance UID 'x'"),
    "an endless path": (404, "/v2" + "/x" * 5000, "no such resource"),
    "only slashes": (404, "/" * 5000, "names no version"),
    "a query of escapes": (400, "/v2/studies?PatientID=%", "percent sign"),
    "a query of no UTF-8": (400, "/v2/studies?PatientID=%ff", "not UTF-8"),
    "too many parameters": (414, "/v2/studies?" + "a=1&" * 1001, "1000 parameters"),
    "an unknown attribute": (400, "/v2/studies?NoSuchAttribute=1", "NoSuchAttribute"),
    "a limit that is none": (400, "/v2/studies?limit=abc", "limit"),
    "a negative offset": (400, "/v2/studies?offset=-1", "offset"),
    "a wildcard bomb": (400, "/v2/studies?PatientName=" + "*a" * 5000, "PatientName"),
    "frame 0": (400, INSTANCE + "/frames/0", "'0' in the frame list"),
    "frame -1": (400, INSTANCE + "/frames/-1", "'-1' in the frame list"),
    "frame abc": (400, INSTANCE + "/frames/abc", "'abc' in the frame list"),
    "frame 1.5": (400, INSTANCE + "/frames/1.5", "'1.5' in the frame list"),
    "no frame": (400, INSTANCE + "/frames/1,,2", "'' in the frame list"),
    "a frame of other digits": (400, INSTANCE + "/frames/%C2%B2", "in the frame list"),
    "frame 10^12": (404, INSTANCE + "/frames/1000000000000", "no SOP instance has a frame"),
    "frame 9": (404, INSTANCE + "/frames/9", ""),
    "10,001 frames": (414, INSTANCE + "/frames/" + ",".join("1" * 10_001), ""),
    "8,000 frames": (404, INSTANCE + "/frames/" + ",".join("1" * 8_000), ""),
    "a bulk path that is none": (400, INSTANCE + "/bulkdata/7FE0", "bulk data path"),
    "a bulk path up": (400, INSTANCE + "/bulkdata/../../7FE00010", "bulk data path"),
    "a bulk value that is not there": (404, INSTANCE + "/bulkdata/7FE00010", ""),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_is_none(hostile, kind):
    """With nothing to read, the connection lives on; with a body that nobody reads, it ends."""
    status, path, words = TARGETS[kind]
    # A head that is too long is refused before it is parsed, and so its end is not known.
    reply = hostile.refused(head(f"GET {path}")) if len(path) > 16_384 else hostile.get(path)
    assert reply.status == status
    assert words in reply.problem()
    with_body = hostile.refused(post(RELATED, PLANT + marked(100_000), line=f"GET {path}"))
    assert with_body.status in (status, 413)
    assert with_body.problem()


def test_a_body_of_a_get_is_dropped_whole(hostile):
    """A short one, and what stands in it is not a request."""
    reply = hostile.answered(post(DICOM, PLANT, line="GET /v2/studies/1.2.3"))
    assert reply.status == 404


# Methods

METHODS = ["TRACE", "CONNECT", "PUT", "PATCH", "PROPFIND", "get", "DELETE\x20/x", "X" * 3000]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_none(hostile, method):
    (reply,) = replies(
        converse(hostile.origin, post(RELATED, marked(), line=f"{method} /v2/studies") + PLANT)
    )
    assert reply.status in (400, 405)
    if reply.status == 405:
        assert reply.headers["connection"] == "close"
        assert reply.problem().startswith("this resource has no ")
        assert reply.headers["allow"] == "GET, POST, HEAD, OPTIONS"


def test_trace_repeats_nothing(hostile):
    reply = hostile.answered(head(f"TRACE {INSTANCE}", "Cookie: token=abc"))
    assert reply.status == 405
    assert b"token" not in reply.body


@pytest.mark.parametrize("target", ["example.com:443", "127.0.0.1:22", "http://example.com/", "*"])
def test_nobody_is_connected_to(hostile, target):
    assert hostile.answered(head(f"CONNECT {target}")).status in (400, 403, 404, 405)


@pytest.mark.parametrize("path", ["/v2/studies", "/v2/series", "/v2", "/health/live"])
def test_nothing_else_is_deleted(hostile, path):
    reply = hostile.answered(head(f"DELETE {path}"))
    assert reply.status == 405
    assert "DELETE" not in reply.headers["allow"]


# Names

EVIL = [
    "evil.example",
    "evil.example:8943",
    "localhost.evil.example",
    "localhost@evil.example",
    "169.254.169.254",
]


@pytest.mark.parametrize("host", EVIL)
def test_another_name(hostile, host):
    """A page that made its own name point here (DNS rebinding) is told nothing."""
    for line in ("POST /v2/studies", f"GET {INSTANCE}", "GET /health/live"):
        request = head(line, RELATED, f"Content-Length: {len(PLANT)}", host=host) + PLANT
        reply = hostile.refused(request)
        assert reply.status in (400, 403)
        assert reply.problem()


@pytest.mark.parametrize("host", ["", None, "local host", "localhost/x", "localhost:999999", "[::1", "a,b"])
def test_a_name_that_is_none(hostile, host):
    found = replies(converse(hostile.origin, post(RELATED, PLANT).replace(b"Host: localhost\r\n", b"", 1)))
    request = head("POST /v2/studies", RELATED, f"Content-Length: {len(PLANT)}", host=host) + PLANT
    found += replies(converse(hostile.origin, request + PLANT))
    assert [each.status for each in found] == [400, 400]


def test_two_names(hostile):
    reply = hostile.refused(post(RELATED, PLANT, "Host: evil.example"))
    assert reply.status == 400


def test_an_absolute_target(hostile):
    """Its authority counts, whatever Host says (RFC 9112 3.2.2)."""
    port = hostile.origin.rpartition(":")[2]
    good = f"http://127.0.0.1:{port}{INSTANCE}"
    assert hostile.answered(head(f"GET {good}", "Accept: */*")).status == 200
    for target in (
        f"http://evil.example{INSTANCE}",
        f"https://evil.example:{port}{INSTANCE}",
        "http://evil.example",
    ):
        assert hostile.refused(post(DICOM, PLANT, line=f"POST {target}")).status == 403


@pytest.mark.parametrize(
    "target", [f"ftp://localhost{INSTANCE}", f"localhost{INSTANCE}", "file:///etc/passwd", "?", "a"]
)
def test_a_target_that_is_neither_path_nor_url(hostile, target):
    reply = hostile.refused(post(DICOM, PLANT, line=f"GET {target}"))
    assert reply.status == 400
    assert "neither a path nor an http" in reply.problem()


# Representations


@pytest.mark.parametrize(
    ("accept", "where"),
    [
        ("image/png", "/metadata"),
        ("application/dicom+json", ""),
        ("text/html;q=1, image/svg+xml", ""),
        ("nonsense", ""),
        ("," * 63, ""),
        ("a/b;" * 4_000, ""),
        ('"\\' * 8_000, ""),
    ],
)
def test_a_representation_that_is_not_to_be_had(hostile, accept, where):
    reply = hostile.get(INSTANCE + where, f"Accept: {accept}")
    assert reply.status in (200, 406)
    if reply.status == 406:
        assert reply.json()["acceptable"]
        assert reply.problem()


def test_a_refusal_in_plain_text(hostile):
    reply = hostile.get("/v2/studies/abc", "Accept: text/plain")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.body.startswith(b"400 Bad Request: the study UID 'abc' is not ")


@pytest.mark.parametrize(
    "value", ["bytes=999999-", "bytes=-0", "bytes=5-1", "bytes=a-b", "x=0-1", "bytes=" + "0-1," * 60]
)
def test_a_range_that_is_none(hostile, value):
    reply = hostile.get(INSTANCE, f"Range: {value}")
    assert reply.status in (200, 416)

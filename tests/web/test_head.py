"""Heads: where a body ends, how big a head may be, how long the connection lasts."""

import pytest
from tornado.httputil import HTTPHeaders

from streamsrv.errors import BadRequest, HeadersTooLarge, URITooLong
from streamsrv.web.head import (
    CHUNKED,
    LINE_SLACK,
    MAX_LINES,
    UNREADABLE,
    Head,
    HeadRefused,
    body_length,
    check_block,
    check_lists,
    check_url,
    most_bytes,
)
from streamsrv.wire.accept import MAX_RANGES


def head(method="GET", target="/v2/studies", version="HTTP/1.1", **headers):
    fields = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    return Head(method, target, version, fields, "127.0.0.1")


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ({}, 0),
        ({"Content_Length": "0"}, 0),
        ({"Content_Length": "007"}, 7),
        ({"Content_Length": "9" * 18}, int("9" * 18)),
        ({"Transfer_Encoding": "chunked"}, CHUNKED),
        ({"Transfer_Encoding": "Chunked"}, CHUNKED),
    ],
)
def test_where_a_body_ends(headers, length):
    assert body_length(head(**headers)) == length


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1,1", "1 1", "0x1", "1_0", "\u0661", "9" * 19])
def test_lengths_that_are_none(value):
    with pytest.raises(BadRequest, match="Content-Length"):
        body_length(head(Content_Length=value))


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"Transfer_Encoding": "chunked", "Content_Length": "1"}, "HTTP/1.1"),
        ({"Transfer_Encoding": "chunked"}, "HTTP/1.0"),
        ({"Transfer_Encoding": "gzip, chunked"}, "HTTP/1.1"),
        ({"Transfer_Encoding": ""}, "HTTP/1.1"),
    ],
)
def test_transfer_encodings_that_are_refused(headers, version):
    with pytest.raises(BadRequest):
        body_length(head(version=version, **headers))


def test_length_of_the_url():
    check_url(head(target="/" + "a" * 99), max_url=100)
    with pytest.raises(URITooLong, match="101 bytes"):
        check_url(head(target="/" + "a" * 98 + "?bb"), max_url=100)


def block(*lines, target="/v2", method="GET"):
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "accepted",
    [
        block(),
        b"\r\n" + block(),
        block(*["a: b"] * MAX_LINES),
        block("a: " + "b" * 993),
        block("a: " + "b" * 993, target="/" + "a" * 99, method="GETGET"),
        b"\n\n",
    ],
)
def test_heads_within_the_limits(accepted):
    check_block(accepted, max_url=100, max_head=1000)
    assert len(accepted) <= most_bytes(100, 1000)


@pytest.mark.parametrize(
    ("refused", "kind", "words", "line"),
    [
        (block(*["a: b"] * (MAX_LINES + 1)), HeadersTooLarge, "101 header lines", ("GET", "/v2", "HTTP/1.1")),
        (block("a: " + "b" * 996), HeadersTooLarge, "accepts 1000", ("GET", "/v2", "HTTP/1.1")),
        (block("a: b")[:-2] + b"c" * 2000, HeadersTooLarge, "accepts 1000", ("GET", "/v2", "HTTP/1.1")),
        (block(target="/" + "a" * 100), URITooLong, "accepts 100", ("GET", "/" + "a" * 100, "HTTP/1.1")),
        (b"GET /" + b"a" * 2000, URITooLong, "accepts 100", UNREADABLE),
        (block(method="G" * (LINE_SLACK + 100)), BadRequest, "request line", UNREADABLE),
        (b"G" * 2000, BadRequest, "request line", UNREADABLE),
    ],
)
def test_heads_over_the_limits(refused, kind, words, line):
    with pytest.raises(HeadRefused) as caught:
        check_block(refused, max_url=100, max_head=1000)
    assert type(caught.value.reason) is kind
    assert words in caught.value.reason.detail
    assert caught.value.line == line


@pytest.mark.parametrize("name", ["Accept", "Accept_Encoding", "Range"])
def test_lists_are_short(name):
    check_lists(head(**{name: ",".join(["a/b"] * MAX_RANGES)}))
    with pytest.raises(HeadersTooLarge, match=name.lower().replace("_", "-")):
        check_lists(head(**{name: ",".join(["a/b"] * (MAX_RANGES + 1))}))


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("/a?b?c", "/a", "b?c", "h"),
        ("/a", "/a", "", "h"),
        ("http://other/a?b", "/a", "b", "other"),
        ("HTTPS://other:8/a", "/a", "", "other:8"),
        ("http://other", "/", "", "other"),
        ("http://other?b", "/", "b", "other"),
        ("//other/a", "//other/a", "", "h"),
        ("*", "*", "", "h"),
        ("ftp://other/a", "ftp://other/a", "", "h"),
    ],
)
def test_targets(target, path, query, host):
    parsed = head(target=target, Host="h")
    assert (parsed.path, parsed.query, parsed.host) == (path, query, host)


@pytest.mark.parametrize(
    ("version", "method", "headers", "stays"),
    [
        ("HTTP/1.1", "GET", {}, True),
        ("HTTP/1.1", "GET", {"Connection": "CLOSE"}, False),
        ("HTTP/1.1", "GET", {"Connection": "upgrade"}, True),
        ("HTTP/1.1", "GET", {"Connection": "close, x"}, False),
        ("HTTP/1.1", "GET", {"Connection": "x ,\tClose"}, False),
        ("HTTP/1.1", "GET", {"Connection": "closed, x"}, True),
        ("HTTP/1.0", "GET", {"Connection": "keep-alive, close"}, False),
        ("HTTP/1.0", "GET", {}, False),
        ("HTTP/1.0", "GET", {"Connection": "Keep-Alive"}, True),
        ("HTTP/1.0", "POST", {"Connection": "keep-alive"}, False),
        ("HTTP/1.0", "POST", {"Connection": "keep-alive", "Content_Length": "1"}, True),
    ],
)
def test_how_long_the_connection_lasts(version, method, headers, stays):
    assert head(method, version=version, **headers).keep_alive is stays


def test_expectations():
    assert head(Expect="100-Continue").expects_continue
    assert not head(Expect="200-ok").expects_continue
    assert not head(version="HTTP/1.0", Expect="100-continue").expects_continue


def test_the_description_of_a_request():
    request = head(target="/v1/studies/1.2?a=b", Accept="x").request(
        "http://h/v1", (("a", "b"),), 1, "192.0.2.1"
    )
    assert (request.requester.address, request.requester.left) == ("192.0.2.1", False)
    assert (request.method, request.path, request.query) == ("GET", "/v1/studies/1.2", (("a", "b"),))
    assert (request.base_url, request.version, request.headers["accept"]) == ("http://h/v1", 1, "x")
    assert len(request.request_id) == 16

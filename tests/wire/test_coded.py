"""Answers in a content coding (streamsrv/wire/codings.py)"""

from __future__ import annotations

import zlib

import pytest
import zstandard

from streamsrv.wire.answers import Answer, ByteStream, Literal, Request, Span
from streamsrv.wire.codings import coded
from streamsrv.wire.conditional import evaluate

TAG = '"abc"'
LONG = b"results, " * 1000
UNDO = {
    "gzip": lambda body: zlib.decompress(body, 31),
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    "": lambda body: body,
}


def request(method: str = "GET", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, "/v2/studies", (), named, "http://h/v2", 2)


def found(payload: bytes = LONG, *, length: bool = True, status: int = 200) -> Answer:
    plan = (
        (Literal(payload[:10]), Literal(payload[10:]))
        if length
        else (Literal(payload[:10]), ByteStream(lambda start, stop: iter([payload[10:]]), None))
    )
    headers = [("Content-Type", "application/dicom+json"), ("Vary", "Accept")]
    return Answer(status, headers, plan, len(payload) if length else None)


def ask(asked: Request, answer: Answer | None = None) -> tuple[Answer, dict[str, str], bytes]:
    made = answer or found()
    answered = coded(asked, lambda inner: evaluate(inner, made, TAG) if made.length else made)
    chunks = (
        [piece.payload] if isinstance(piece, Literal) else piece.chunks(0, None) for piece in answered.plan
    )
    body = b"".join(chunk for several in chunks for chunk in several)
    assert answered.length in (None, len(body)) or not answered.plan
    return answered, dict(answered.headers), body


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(("sent", "coding"), [("gzip", "gzip"), ("gzip, zstd", "zstd"), ("br", ""), ("", "")])
def test_the_client_chooses(sent: str, coding: str, length: bool) -> None:
    answered, headers, body = ask(request(accept_encoding=sent), found(length=length))
    assert UNDO[coding](body) == LONG
    assert headers.get("Content-Encoding", "") == coding
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert (answered.length is None) == (not length)
    assert ("Accept-Ranges" in headers) == (length and not coding)
    if coding:
        assert len(body) < len(LONG) / 10
    if length:
        assert headers["ETag"] == (f'"abc-{coding}"' if coding else TAG)


@pytest.mark.parametrize(("size", "coding"), [(1023, ""), (1024, "gzip")])
def test_short_ones_go_out_as_they_are(size: int, coding: str) -> None:
    _, headers, body = ask(request(accept_encoding="gzip"), found(LONG[:size]))
    assert headers.get("Content-Encoding", "") == coding
    assert UNDO[coding](body) == LONG[:size]


@pytest.mark.parametrize("status", [204, 404])
def test_other_answers_are_left_alone(status: int) -> None:
    answered, headers, _ = ask(request(accept_encoding="gzip"), found(status=status))
    assert (answered.status, "Content-Encoding" in headers) == (status, False)


def test_head_says_what_get_would() -> None:
    answered, headers, body = ask(request("HEAD", accept_encoding="gzip"))
    _, expected, _ = ask(request(accept_encoding="gzip"))
    assert (headers, body, answered.length) == (expected, b"", None)


@pytest.mark.parametrize(
    ("known", "tag"),
    [
        ('"abc-gzip"', '"abc-gzip"'),
        ('W/"abc-gzip"', '"abc-gzip"'),
        ('"x", "abc-gzip"', '"abc-gzip"'),
        (TAG, TAG),
        ("*", TAG),
        ('"abc-zstd"', TAG),
    ],
)
def test_what_the_client_has_is_304(known: str, tag: str) -> None:
    answered, headers, body = ask(request(accept_encoding="gzip", if_none_match=known))
    assert (answered.status, headers["ETag"], body) == (304, tag, b"")
    assert headers["Vary"] == "Accept, Accept-Encoding"


def test_what_it_has_not_is_sent() -> None:
    for known in ('"x-gzip"', '"abc-br"', '"abc'):
        assert ask(request(accept_encoding="gzip", if_none_match=known))[0].status == 200
    assert ask(request(accept_encoding="gzip", if_match='"abc-gzip"'))[0].status == 200


def test_ranges_are_of_the_plain_answer() -> None:
    answered, headers, body = ask(request(accept_encoding="gzip", range="bytes=5-9"))
    assert (answered.status, body) == (206, LONG[5:10])
    assert (headers["ETag"], "Content-Encoding" in headers) == (TAG, False)


def test_spans_are_nobodys_business_here() -> None:
    with pytest.raises(TypeError):
        ask(request(accept_encoding="gzip"), replaced := Answer(200, [], (Span(1, 2, 2000),), 2000))
    assert replaced.length == 2000

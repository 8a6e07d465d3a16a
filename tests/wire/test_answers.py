"""streamsrv/wire/answers.py"""

from __future__ import annotations

from streamsrv.wire.answers import Answer, Literal, Request, Span, Stream


def test_every_piece_knows_its_length() -> None:
    pieces = [Literal(b"abc"), Span(1, 10, 4), Stream(lambda start, stop: iter(()), 5)]
    assert [piece.length for piece in pieces] == [3, 4, 5]
    assert Stream(lambda start, stop: iter(()), None).length is None


def test_an_answer_is_empty_unless_told_otherwise() -> None:
    first, second = Answer(204), Answer(204)
    first.headers.append(("ETag", '"x"'))
    assert second.headers == []
    assert (second.plan, second.length, second.descriptor, second.release) == ((), 0, None, None)


def test_requests_are_values() -> None:
    one, other = (Request("GET", "/v2/studies", (), {}, "http://h/v2", 2) for _ in range(2))
    assert one == other

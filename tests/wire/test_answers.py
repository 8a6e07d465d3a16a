"""streamsrv/wire/answers.py"""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from streamsrv.errors import NotFound
from streamsrv.wire.answers import (
    Answer,
    ByteStream,
    Deferred,
    Literal,
    Pending,
    Request,
    Span,
    resolved,
    then,
)


def test_every_piece_knows_its_length() -> None:
    pieces = [Literal(b"abc"), Span(1, 10, 4), ByteStream(lambda start, stop: iter(()), 5)]
    assert [piece.length for piece in pieces] == [3, 4, 5]
    assert ByteStream(lambda start, stop: iter(()), None).length is None


def test_an_answer_is_empty_unless_told_otherwise() -> None:
    first, second = Answer(204), Answer(204)
    first.headers.append(("ETag", '"x"'))
    assert second.headers == []
    assert (second.plan, second.length, second.file_at, second.release) == ((), 0, None, None)


def test_requests_are_values() -> None:
    one, other = (Request("GET", "/v2/studies", (), {}, "http://h/v2", 2) for _ in range(2))
    assert one == other


def double(answer: Answer) -> Answer:
    return Answer(answer.status * 2)


def test_a_step_is_applied_to_an_answer_now_or_later() -> None:
    future: Future[int] = Future()
    pending = Pending(future, Answer, future.cancel, lambda error: Answer(100))
    assert resolved(then(Answer(200), double)).status == 400
    assert resolved(then(Deferred(lambda: Deferred(lambda: Answer(200))), double)).status == 400
    future.set_result(201)
    assert resolved(then(Deferred(lambda: pending), double)).status == 402


def test_a_step_is_applied_to_the_answer_that_a_failure_has() -> None:
    future: Future[int] = Future()
    pending = Pending(future, Answer, future.cancel, lambda error: Answer(100))
    future.set_exception(NotFound("gone"))
    assert resolved(then(pending, double)).status == 200
    with pytest.raises(NotFound):
        resolved(Pending(future, Answer, future.cancel))

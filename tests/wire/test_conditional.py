"""streamsrv/wire/conditional.py"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.errors import PreconditionFailed, RangeNotSatisfiable
from streamsrv.wire.answers import Answer, ByteStream, Literal, Piece, Request, Span
from streamsrv.wire.conditional import (
    SlicedPlan,
    dated,
    etag_of,
    evaluate,
    http_date,
    not_modified,
    slice_plan,
)

ETAG = '"abc"'
SEGMENT = bytes(range(256)) * 4


def request(method: str = "GET", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, "/v2/studies/1", (), named, "http://h/v2", 2)


def stream(payload: bytes) -> ByteStream:
    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        wanted = payload[start:stop]
        yield from (wanted[at : at + 3] for at in range(0, len(wanted), 3))

    return ByteStream(chunks, len(payload))


def plan_of(sizes: list[int]) -> tuple[list[Piece], bytes]:
    """A literal, a span and a stream in turn, of these sizes, and the bytes that they stand for."""
    pieces: list[Piece] = []
    whole = b""
    for number, size in enumerate(sizes):
        payload = SEGMENT[number : number + size]
        pieces.append([Literal(payload), Span(7, number, size), stream(payload)][number % 3])
        whole += payload
    return pieces, whole


def written(plan) -> bytes:
    """What a writer would send."""
    sent = b""
    for piece in plan:
        assert piece.length != 0
        if isinstance(piece, Literal):
            sent += piece.payload
        elif isinstance(piece, Span):
            sent += SEGMENT[piece.offset : piece.offset + piece.length]
        else:
            made = b"".join(piece.chunks(0, piece.length))
            assert made == b"".join(piece.chunks(0, None))
            assert len(made) == piece.length
            sent += made
    return sent


PLAN, WHOLE = plan_of([10, 20, 30, 40])


def answer(**changes) -> Answer:
    headers = [("Content-Type", "image/jls"), ("Vary", "Accept"), ("Cache-Control", "private, no-cache")]
    return Answer(**{"status": 200, "headers": headers, "plan": PLAN, "length": 100} | changes)


# ETags


def test_etag_is_strong_and_differs_with_each_ingredient() -> None:
    tags = [
        etag_of([b"a" * 16], "image/jls"),
        etag_of([b"b" * 16], "image/jls"),
        etag_of([b"a" * 16, b"b" * 16], "image/jls"),
        etag_of([b"b" * 16, b"a" * 16], "image/jls"),
        etag_of([b"a" * 16], "image/jl", "s"),
        etag_of([b"a" * 16], "image/jls", ""),
        etag_of([b"a" * 16]),
    ]
    assert len(set(tags)) == len(tags)
    assert all(tag[0] == tag[-1] == '"' and len(tag) == 34 for tag in tags)
    assert tags[0] == etag_of(iter([b"a" * 16]), "image/jls")


@pytest.mark.parametrize(
    "known", [ETAG, f"W/{ETAG}", '"x", "abc"', 'W/"x" , W/"abc","y"', "*", " * ", '"x,y","abc"']
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_none_match_that_holds_is_304(known: str, method: str) -> None:
    asked = request(method, if_none_match=known, range="bytes=0-1")
    released: list[int] = []
    answered = evaluate(asked, answer(release=lambda: released.append(1)), ETAG)
    assert not_modified(asked, ETAG)
    assert (answered.status, list(answered.plan), answered.length) == (304, [], 0)
    assert answered.headers == [("Vary", "Accept"), ("Cache-Control", "private, no-cache"), ("ETag", ETAG)]
    assert not released
    assert answered.release
    answered.release()
    assert released


@pytest.mark.parametrize("known", ["", "abc", '"ab"', '"ABC"', '"x", "y"', '"abc', '"*"', "W/*"])
def test_if_none_match_that_fails_gives_the_answer(known: str) -> None:
    answered = evaluate(request(if_none_match=known), answer(), ETAG)
    assert (answered.status, written(answered.plan)) == (200, WHOLE)


@pytest.mark.parametrize("known", [ETAG, '"x", "abc"', "*", " * "])
def test_if_match_that_holds_changes_nothing(known: str) -> None:
    answered = evaluate(request(if_match=known), answer(), ETAG)
    assert (answered.status, written(answered.plan)) == (200, WHOLE)
    assert evaluate(request(if_match=known, if_none_match=ETAG), answer(), ETAG).status == 304
    assert evaluate(request(if_match=known, range="bytes=0-1"), answer(), ETAG).status == 206


@pytest.mark.parametrize("known", ["", "abc", '"ABC"', '"x", "y"', f"W/{ETAG}", '"*"', "W/*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_match_that_fails_is_412_before_all_else(known: str, method: str) -> None:
    released: list[int] = []
    asked = request(method, if_match=known, if_none_match=ETAG, range="bytes=0-1")
    with pytest.raises(PreconditionFailed):
        evaluate(asked, answer(release=lambda: released.append(1)), ETAG)
    assert released == [1]


def test_validators_are_added() -> None:
    answered = evaluate(request(), answer(), ETAG)
    assert answered.headers[-2:] == [("ETag", ETAG), ("Accept-Ranges", "bytes")]
    assert answered.headers[:3] == answer().headers
    assert (answered.plan, answered.length) == (PLAN, 100)


def test_head_has_the_headers_and_no_plan() -> None:
    answered = evaluate(request("HEAD", range="bytes=0-1"), answer(), ETAG)
    assert (answered.status, tuple(answered.plan), answered.length) == (200, (), 100)
    assert answered.headers == evaluate(request(), answer(), ETAG).headers


@pytest.mark.parametrize("status", [202, 204, 206, 304, 404])
def test_other_answers_are_left_alone(status: int) -> None:
    given_answer = answer(status=status)
    assert evaluate(request(if_none_match="*", range="bytes=0-0"), given_answer, ETAG) is given_answer


def test_conditions_are_for_get_and_head() -> None:
    assert not not_modified(request("POST", if_none_match="*"), ETAG)
    assert evaluate(request("DELETE", if_none_match="*", range="bytes=0-1"), answer(), ETAG).status == 200


# Ranges

RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-99", 0, 100),
    ("bytes=0-", 0, 100),
    ("bytes=99-", 99, 100),
    ("bytes=5-94", 5, 95),
    ("bytes=10-29", 10, 30),
    ("bytes=95-1000", 95, 100),
    ("bytes=-1", 99, 100),
    ("bytes=-100", 0, 100),
    ("bytes=-101", 0, 100),
    ("Bytes = 1 - 2 ,", 1, 3),
    ("bytes=0-" + "9" * 3_000, 0, 100),
]


@pytest.mark.parametrize(("asked", "start", "stop"), RANGES)
def test_one_range_is_206(asked: str, start: int, stop: int) -> None:
    answered = evaluate(request(range=asked), answer(), ETAG)
    assert (answered.status, answered.length) == (206, stop - start)
    assert written(answered.plan) == WHOLE[start:stop]
    assert written(answered.plan) == WHOLE[start:stop]
    assert answered.headers[-1] == ("Content-Range", f"bytes {start}-{stop - 1}/100")
    assert answered.headers[:-1] == evaluate(request(), answer(), ETAG).headers


def test_files_and_release_go_along() -> None:
    given_answer = answer(file_at=lambda segment, at: (segment, at), release=lambda: None)
    for asked in (request(), request("HEAD"), request(range="bytes=0-1"), request(if_none_match="*")):
        answered = evaluate(asked, given_answer, ETAG)
        assert (answered.file_at, answered.release) == (given_answer.file_at, given_answer.release)


def test_ranges_glued_together_are_the_whole() -> None:
    first, rest = (evaluate(request(range=asked), answer(), ETAG) for asked in ("bytes=0-32", "bytes=33-"))
    assert written(first.plan) + written(rest.plan) == WHOLE


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=0-1,5-6",
        "bytes=0-0,-1",
        "items=0-1",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=1.5-2",
        "bytes=" + "9" * 5_000 + "-",
    ],
)
def test_several_or_no_ranges_of_bytes_give_the_whole_answer(asked: str) -> None:
    answered = evaluate(request(range=asked), answer(), ETAG)
    assert (answered.status, written(answered.plan)) == (200, WHOLE)


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 3_000 + "-"])
def test_range_behind_the_end_is_416(asked: str) -> None:
    released: list[int] = []
    with pytest.raises(RangeNotSatisfiable) as caught:
        evaluate(request(range=asked), answer(release=lambda: released.append(1)), ETAG)
    assert caught.value.length == 100
    assert released == [1]
    with pytest.raises(RangeNotSatisfiable):
        evaluate(request(range=asked), answer(), ETAG)


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=-1", "bytes=0-0"])
def test_nothing_has_no_range(asked: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        evaluate(request(range=asked), answer(plan=(), length=0), ETAG)


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (ETAG, 206),
        (f" {ETAG}", 206),
        ('"x"', 200),
        (f"W/{ETAG}", 200),
        ("Tue, 24 Nov 2026 12:00:00 GMT", 200),
        ("", 200),
    ],
)
def test_if_range(condition: str, status: int) -> None:
    answered = evaluate(request(range="bytes=0-1", if_range=condition), answer(), ETAG)
    assert answered.status == status


def test_unknown_length_has_no_ranges() -> None:
    unknown = [Literal(b"x"), ByteStream(lambda start, stop: iter(()), None)]
    answered = evaluate(request(range="bytes=0-1"), answer(plan=unknown, length=None), ETAG)
    assert (answered.status, answered.plan, answered.length) == (200, unknown, None)
    assert "Accept-Ranges" not in dict(answered.headers)


# Plans


def test_plan_is_walked_lazily_and_no_further_than_needed() -> None:
    made: list[int] = []

    def pieces() -> Iterator[Piece]:
        for number in range(1_000_000):
            made.append(number)
            yield Literal(b"0123456789")

    sliced = SlicedPlan(pieces(), 25, 47)
    assert made == []
    assert list(sliced) == [Literal(b"56789"), Literal(b"0123456789"), Literal(b"0123456")]
    assert made == [0, 1, 2, 3, 4, 5]


def test_piece_of_unknown_length_cannot_be_sliced() -> None:
    with pytest.raises(ValueError, match="unknown length"):
        list(slice_plan([ByteStream(lambda start, stop: iter(()), None)], 0, 1))


def test_whole_pieces_go_through_untouched() -> None:
    assert list(slice_plan(PLAN, 10, 60)) == PLAN[1:3]
    assert next(slice_plan(PLAN, 12, 13)) == Span(7, 3, 1)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(0, 200), st.integers(0, 200))
def test_slices_are_the_bytes_between(sizes: list[int], start: int, stop: int) -> None:
    plan, whole = plan_of(sizes)
    assert written(slice_plan(plan, start, stop)) == whole[start:stop]
    inner = SlicedPlan(SlicedPlan(plan, 3, len(whole)), start, stop)
    assert written(inner) == whole[3:][start:stop]


@pytest.mark.parametrize(("since", "status"), [(999, 200), (1_000, 304), (2_000, 304), (5_000, 200)])
def test_a_date_in_the_future_does_not_match(since: int, status: int) -> None:
    """The clock was wrong when it was sent: the representation may have changed since."""
    answered = dated(request(if_modified_since=http_date(since)), answer(), 1_000.5, 3_000)
    assert answered.status == status

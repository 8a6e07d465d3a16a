"""streamsrv/wire/problems.py"""

from __future__ import annotations

import json

import pytest

from streamsrv import errors
from streamsrv.errors import (
    BadRequest,
    MethodNotAllowed,
    MultipartError,
    NotAcceptable,
    NotDicom,
    NotFound,
    Overloaded,
    RangeNotSatisfiable,
    StreamsrvError,
    UnsupportedMediaType,
)
from streamsrv.wire.accept import parse_accept
from streamsrv.wire.answers import Answer, Literal
from streamsrv.wire.problems import problem_answer


def body_of(answer: Answer) -> bytes:
    (piece,) = answer.plan
    assert isinstance(piece, Literal)
    assert answer.length == len(piece.payload)
    return piece.payload


def test_problem_has_the_members_of_rfc_9457() -> None:
    answer = problem_answer(NotFound("there is no such study"), request_id="7f3a")
    assert answer.status == 404
    assert answer.headers == [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
    assert json.loads(body_of(answer)) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no such study",
        "instance": "7f3a",
    }
    assert "instance" not in json.loads(body_of(problem_answer(NotFound("x"))))


@pytest.mark.parametrize(
    ("error", "members", "headers"),
    [
        (BadRequest("x"), {}, []),
        (StreamsrvError("x"), {}, []),
        (NotAcceptable("x", ["a/b", "c/d"]), {"acceptable": ["a/b", "c/d"]}, []),
        (UnsupportedMediaType("x", ["a/b"]), {"supported": ["a/b"]}, []),
        (MultipartError("x", 17), {"offset": 17}, []),
        (NotDicom("x", offset=0, tag="00080018"), {"offset": 0, "tag": "00080018"}, []),
        (NotDicom("x"), {}, []),
        (MethodNotAllowed("x", ["GET", "HEAD"]), {"allow": ["GET", "HEAD"]}, [("Allow", "GET, HEAD")]),
        (Overloaded("x", 5), {}, [("Retry-After", "5")]),
        (RangeNotSatisfiable("x", 100), {}, [("Content-Range", "bytes */100")]),
    ],
)
def test_data_of_the_error_goes_along(
    error: StreamsrvError, members: dict[str, object], headers: list[tuple[str, str]]
) -> None:
    answer = problem_answer(error)
    said = json.loads(body_of(answer))
    assert {name: said[name] for name in said.keys() - {"type", "title", "status", "detail"}} == members
    assert said["detail"] == error.detail
    assert answer.headers[2:] == headers


@pytest.mark.parametrize(
    ("accept", "plain"),
    [
        (None, False),
        ("*/*", False),
        ("application/problem+json", False),
        ("application/json", False),
        ("application/dicom+json", False),
        ("application/*", False),
        ("image/jpeg", False),
        ('multipart/related; type="application/dicom"', False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", True),
        ("text/*", True),
        ("text/plain, */*;q=0.1", True),
        ("image/jpeg, text/plain", True),
        ("text/plain;q=0", False),
        ("text/plain;q=0.5, application/json", False),
    ],
)
def test_plain_text_only_for_who_takes_nothing_better(accept: str | None, plain: bool) -> None:
    answer = problem_answer(NotAcceptable("cannot", ["a/b", "c/d"]), parse_accept(accept), "7f3a")
    media_type = dict(answer.headers)["Content-Type"]
    assert media_type == ("text/plain; charset=utf-8" if plain else "application/problem+json")
    if plain:
        expected = b"406 Not Acceptable: cannot\ninstance: 7f3a\nacceptable: a/b\nacceptable: c/d\n"
        assert body_of(answer) == expected


def test_text_names_the_byte_and_survives_any_character() -> None:
    text = body_of(problem_answer(MultipartError("bad \udcff", 9), parse_accept("text/plain")))
    assert text == b"400 Bad Request: bad ? (at byte 9 of the request body)\noffset: 9\n"
    assert json.loads(body_of(problem_answer(BadRequest("\u00e4 \udcff"))))["detail"] == "\u00e4 \udcff"


def every_error(kind: type[StreamsrvError] = StreamsrvError) -> list[type[StreamsrvError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in every_error(child))]


def test_every_error_can_be_told() -> None:
    arguments = {
        "MethodNotAllowed": (["GET"],),
        "NotAcceptable": (["a/b"],),
        "UnsupportedMediaType": (["a/b"],),
        "MultipartError": (1,),
        "InstanceDamaged": ("series", "instance", "reason"),
        "RangeNotSatisfiable": (1,),
    }
    kinds = [kind for kind in every_error() if kind.__module__ == errors.__name__]
    assert len(kinds) > 20
    for kind in kinds:
        answer = problem_answer(kind("why", *arguments.get(kind.__name__, ())))
        assert answer.status == kind.status >= 400
        assert json.loads(body_of(answer))["title"] == kind.title

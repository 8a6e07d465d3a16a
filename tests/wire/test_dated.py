"""Last-Modified and If-Modified-Since (RFC 9110 8.8.2 and 13.1.3)."""

from __future__ import annotations

import pytest

from streamsrv.errors import PreconditionFailed
from streamsrv.wire.answers import Answer, Literal, Request
from streamsrv.wire.conditional import SETTLED, dated

CHANGED = 1_700_000_000.75
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
LATER, EARLIER = "Tue, 14 Nov 2023 22:13:21 GMT", "Tue, 14 Nov 2023 22:13:19 GMT"


def ask(status: int = 200, now: float = CHANGED + 60, **headers: str) -> Answer:
    request = Request(
        "GET", "/", (), {name.replace("_", "-"): value for name, value in headers.items()}, "", 2
    )
    plan = (Literal(b"x"),)
    answer = Answer(status, [("ETag", '"a"'), ("Content-Type", "text/plain")], plan, 1)
    return dated(request, answer, CHANGED, now)


def test_the_date_is_the_second_of_the_change() -> None:
    found = ask()
    assert found.headers[-1] == ("Last-Modified", DATE)
    assert (found.status, found.length) == (200, 1)


def test_a_second_that_is_not_over_has_no_date() -> None:
    assert "Last-Modified" not in dict(ask(now=CHANGED + SETTLED - 0.01).headers)
    assert "Last-Modified" in dict(ask(now=CHANGED + SETTLED).headers)
    assert ask(now=CHANGED + 1, if_modified_since=LATER).status == 200


@pytest.mark.parametrize("date", [DATE, LATER, "Tue, 14 Nov 2023 23:13:20 +0100"])
def test_not_modified_since(date: str) -> None:
    found = ask(if_modified_since=date)
    assert (found.status, list(found.plan), found.length) == (304, [], 0)
    assert dict(found.headers) == {"ETag": '"a"', "Last-Modified": DATE}


@pytest.mark.parametrize("date", [EARLIER, "yesterday", "", "Tue, 99 Nov 2023 22:13:20 GMT"])
def test_modified_since_or_no_date(date: str) -> None:
    assert ask(if_modified_since=date).status == 200


@pytest.mark.parametrize("status", [200, 206, 304])
def test_unmodified_since(status: int) -> None:
    for date in (DATE, LATER, "yesterday", ""):
        assert ask(status, if_unmodified_since=date).status == status
    for now in (CHANGED, CHANGED + 60):
        with pytest.raises(PreconditionFailed):
            ask(status, now, if_unmodified_since=EARLIER)
    assert ask(status, if_unmodified_since=EARLIER, if_match="*").status == status
    assert ask(404, if_unmodified_since=EARLIER).status == 404


def test_an_etag_is_more_exact() -> None:
    assert ask(if_modified_since=LATER, if_none_match='"b"').status == 200


@pytest.mark.parametrize("status", [206, 304])
def test_parts_of_it_are_dated_too(status: int) -> None:
    assert "Last-Modified" in dict(ask(status).headers)


def test_errors_have_no_date() -> None:
    assert "Last-Modified" not in dict(ask(404).headers)

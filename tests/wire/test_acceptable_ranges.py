"""Acceptable ranges and offers of streamsrv/wire/accept.py"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.errors import BadRequest
from streamsrv.wire.accept import AcceptableRange, Offer, elect, parse_accept

OCTETS = "application/octet-stream"
FORMS = [
    ("application/dicom+json", AcceptableRange(False, "application/dicom+json")),
    ("Application/DICOM+Json ; charset=UTF-8", AcceptableRange(False, "application/dicom+json")),
    ('application/json;charset="utf8";q=0.5', AcceptableRange(False, "application/json", quality=0.5)),
    ("application/dicom; transfer-syntax=*", AcceptableRange(False, "application/dicom", "*")),
    ('multipart/related; type="application/dicom"', AcceptableRange(True, "application/dicom")),
    (
        'multipart/related; type="application/dicom"; transfer-syntax=*',
        AcceptableRange(True, "application/dicom", "*"),
    ),
    (
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        AcceptableRange(True, OCTETS, "*"),
    ),
    (
        'multipart/related; type="application/octet-stream"; transfer-syntax="1.2"',
        AcceptableRange(True, OCTETS, "1.2"),
    ),
    (
        'multipart/related; type="application/octet-stream; transfer-syntax=1.2"',
        AcceptableRange(True, OCTETS, "1.2"),
    ),
    ('multipart/related; transfer-syntax=*; type="image/*"', AcceptableRange(True, "image/*", "*")),
    ('multipart/related; type="application/octet-stream";', AcceptableRange(True, OCTETS)),
    ('multipart/related; type="IMAGE/JPEG"; boundary=**', AcceptableRange(True, "image/jpeg")),
    ('multipart/related; type="*/*"', AcceptableRange(True, "*/*")),
    ("multipart/related", AcceptableRange(True, "*/*")),
    ("multipart/*", AcceptableRange(True, "*/*")),
    ("multipart/mixed", AcceptableRange(False, "multipart/mixed")),
    ("*/*", AcceptableRange(None, "*/*")),
    ("*; q=.2", AcceptableRange(None, "*/*", quality=0.2)),
    ("*", AcceptableRange(None, "*/*")),
    ("image/*;q=0", AcceptableRange(False, "image/*", quality=0.0)),
    ("image/dicom+jpeg", AcceptableRange(False, "image/jpeg")),
    ("image/x-jls; q=1.000", AcceptableRange(False, "image/jls")),
]


@pytest.mark.parametrize(("text", "expected"), FORMS)
def test_reads_each_form(text: str, expected: AcceptableRange) -> None:
    assert parse_accept(text) == [expected]


def test_reads_lists_in_order() -> None:
    header = ", ,".join(text for text, _ in FORMS)
    assert parse_accept(header) == [expected for _, expected in FORMS]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " , ",
        "nonsense",
        "text",
        "a/b; q=x",
        "a/b; q=2",
        "a/b; q=1.1",
        "a/b; q=-1",
        "a/b; q=",
        "a/b; q=.",
        "a/b; x",
        'multipart/related; type="application"',
        'multipart/related; type="application/dicom',
    ],
)
def test_what_cannot_be_read_counts_as_absent(text: str | None) -> None:
    assert parse_accept(text) == []
    assert parse_accept(f"image/png, {text or ''}")[0] == AcceptableRange(False, "image/png")


def test_query_comes_first_repeated_or_as_a_list() -> None:
    found = parse_accept("a/b", ["c/d, e/f;q=0.1", "g/h"])
    assert [(asked.media_type, asked.from_query) for asked in found] == [
        ("c/d", True),
        ("e/f", True),
        ("g/h", True),
        ("a/b", False),
    ]


def test_plus_sign_that_was_decoded_as_a_blank_is_mended() -> None:
    assert parse_accept(None, ["application/dicom json; transfer-syntax=*", " a/b , c/d "]) == [
        AcceptableRange(False, "application/dicom+json", "*", from_query=True),
        AcceptableRange(False, "a/b", from_query=True),
        AcceptableRange(False, "c/d", from_query=True),
    ]


@pytest.mark.parametrize(
    ("asked", "covered", "uncovered"),
    [
        ("*/*", ["image/png", "a/b"], []),
        ("image/*", ["image/png"], ["a/b", "imagex/png"]),
        ("image/png", ["image/png"], ["image/jpeg"]),
    ],
)
def test_covers(asked: str, covered: list[str], uncovered: list[str]) -> None:
    (found,) = parse_accept(asked)
    assert all(found.covers(media_type) for media_type in covered)
    assert not any(found.covers(media_type) for media_type in uncovered)


A, B, C = Offer("image/a"), Offer("image/b"), Offer("image/c", syntax="stored")


def vote(header: str, query: tuple[str, ...] = (), stored: str | None = None) -> Offer | None:
    return elect(
        parse_accept(header, query),
        lambda asked: [o for o in (A, B, C) if asked.covers(o.media_type)],
        stored,
    )


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("image/a", A),
        ("image/b, image/a", B),
        ("image/b;q=0.5, image/a", A),
        ("image/*", A),
        ("image/*, image/a;q=0.1", B),
        ("image/a;q=0, image/*", B),
        ("image/a;q=0, image/*, image/b;q=0", C),
        ("image/*;q=0.1, */*;q=0", A),
        ("image/b;q=0.3, image/b;q=0.9, image/a;q=0.5", A),
        ("image/d", None),
        ("image/a;q=0", None),
        ("*/*;q=0", None),
        ("image/d, */*;q=0.001", A),
    ],
)
def test_best_vote_wins(header: str, chosen: Offer | None) -> None:
    assert vote(header) == chosen


def test_stored_bytes_go_before_everything_but_q_zero() -> None:
    assert vote("image/a, image/b, image/c;q=0.001", stored="stored") == C
    assert vote("image/a, image/c;q=0", stored="stored") == A


def test_query_beats_the_header_unless_it_cannot_be_had() -> None:
    assert vote("image/a", ("image/b",)) == B
    assert vote("image/c;q=1", ("image/b;q=0.1",), stored="stored") == B
    assert vote("image/a", ("image/d",)) == A
    assert vote("image/d", ("image/e",)) is None


def test_offers_are_written_as_headers() -> None:
    assert str(Offer("application/dicom+json")) == "application/dicom+json"
    assert str(Offer("image/jls", multipart=True)) == 'multipart/related; type="image/jls"'
    offer = Offer("image/jls", multipart=True, syntax="1.2")
    assert str(offer) == 'multipart/related; type="image/jls"; transfer-syntax=1.2'
    assert offer.content_type == "image/jls; transfer-syntax=1.2"
    assert Offer("image/jls").content_type == "image/jls"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "a/b",
                "*",
                "*/*",
                "multipart/related",
                "image/*",
                ";",
                ",",
                "=",
                '"',
                "\\",
                " ",
                "q",
                "0.5",
                "type",
                "transfer-syntax",
                "1.2",
                "charset",
            ]
        ),
        max_size=20,
    ).map("".join)
)
def test_any_header_is_read(header: str) -> None:
    for asked in parse_accept(header, [header]):
        assert 0 <= asked.quality <= 1
        assert "/" in asked.media_type


def test_a_long_header_is_read_quickly() -> None:
    begun = time.process_time()
    assert len(parse_accept("image/jpeg;q=0.5, " * 63)) == 63
    with pytest.raises(BadRequest, match="more than 64 acceptable media types"):
        parse_accept("image/jpeg;q=0.5, " * 4_000)
    with pytest.raises(BadRequest, match="more than 64"):
        vote("image/jpeg;q=0.5, " * 4_000)
    parse_accept('a/b;x="' + "\\" * 60_000)
    assert time.process_time() - begun < 1

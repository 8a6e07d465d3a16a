"""streamsrv/wire/mediatypes.py"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.wire.mediatypes import MediaType, media_type_text, parse_media_type, split_list

READ = [
    ("application/dicom", {}),
    ("Application/DICOM", {}),
    ("  application/dicom ;", {}),
    ("application/dicom ; ; ", {}),
    ('application/dicom; type="a b"', {"type": "a b"}),
    ("application/dicom; type=application/dicom", {"type": "application/dicom"}),
    ("application/dicom;TYPE = x ;b= y", {"type": "x", "b": "y"}),
    (r'application/dicom; b="a\"b\\c"', {"b": 'a"b\\c'}),
    ('application/dicom; b="a;b,c"; d=e', {"b": "a;b,c", "d": "e"}),
    ("application/dicom; boundary=----=_Part_1; x=", {"boundary": "----=_Part_1", "x": ""}),
    ("application/dicom; boundary=one; boundary=two", {"boundary": "two"}),
    ('application/dicom; boundary="two words"', {"boundary": "two words"}),
]


@pytest.mark.parametrize(("text", "parameters"), READ)
def test_reads_each_form(text: str, parameters: dict[str, str]) -> None:
    assert parse_media_type(text) == MediaType("application/dicom", parameters)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "application",
        "application/",
        "/dicom",
        "application/dicom x",
        "application/dicom, application/dicom",
        "application/dicom; x",
        "application/dicom; =x",
        'application/dicom; x="open',
        'application/dicom; x="a"b',
        'application/dicom; x=a"b"',
        'application/dicom; x="a\\"',
    ],
)
def test_refuses_what_is_no_media_type(text: str) -> None:
    assert parse_media_type(text) is None


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("", []),
        (" , ,", []),
        ("a, b ,c", ["a", "b", "c"]),
        ('a;x="1,2", b', ['a;x="1,2"', "b"]),
        (r'a;x="1\",2", b', [r'a;x="1\",2"', "b"]),
        ('a;x="open, b', ['a;x="open, b']),
        ('a;x="open, b\\', ['a;x="open, b\\']),
    ],
)
def test_splits_outside_quotes(text: str, elements: list[str]) -> None:
    assert split_list(text) == elements


def test_writes_quotes_where_needed() -> None:
    text = media_type_text("multipart/related", {"type": "application/dicom", "boundary": "abc", "x": 'a"\\'})
    assert text == r'multipart/related; type="application/dicom"; boundary=abc; x="a\"\\"'
    assert str(MediaType("image/jls", {"transfer-syntax": "1.2"})) == "image/jls; transfer-syntax=1.2"


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["type", "boundary", "q", "x"]), st.text(st.characters(codec="latin-1")))
)
def test_what_is_written_is_read_back(parameters: dict[str, str]) -> None:
    assert parse_media_type(media_type_text("a/b", parameters)) == MediaType("a/b", parameters)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(alphabet='a/;=", \\\t*'))
def test_any_text_is_read_or_refused(text: str) -> None:
    for element in [text, *split_list(text)]:
        parse_media_type(element)


@pytest.mark.parametrize(
    "text",
    ['a/b;x="' + "\\" * 60_000, "a/b" + "; " * 60_000 + "x", "a/b;" + " " * 60_000 + "!", '"' * 60_001],
)
def test_long_nonsense_is_refused_without_a_second_try(text: str) -> None:
    """A pattern that goes back over what it has matched would take minutes."""
    begun = time.thread_time()
    assert parse_media_type(text) is None
    split_list(text)
    assert time.thread_time() - begun < 5

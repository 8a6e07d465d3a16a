"""Content codings: which one, and that it is undone by the libraries."""

import zlib

import pytest
import zstandard

from streamsrv.errors import NotAcceptable
from streamsrv.wire.answers import Request
from streamsrv.wire.codings import ENCODERS, check_charset, choose_coding, encoded


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, ""),
        ("", ""),
        ("identity", ""),
        ("br", ""),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("*", "zstd"),
        ("*;q=0.5, zstd;q=0", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0.5, gzip;q=0.5", "zstd"),
        ("gzip;q=0", ""),
        ("gzip;q=0.000", ""),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("identity;q=0, *", "zstd"),
        ("gzip;q=high", ""),
        ("gzip ; q = 0.8 , ;,", "gzip"),
    ],
)
def test_the_choice(header, coding):
    assert choose_coding(header) == coding


@pytest.mark.parametrize(
    ("header", "queries", "accepted"),
    [
        (None, [], True),
        ("utf-8", [], True),
        ("UTF8", [], True),
        ("*", [], True),
        ("iso-8859-1, utf-8;q=0.7, *;q=0.7", [], True),
        ("iso-8859-1, *;q=0.1", [], True),
        ("iso-8859-1", [], False),
        ("utf-8;q=0", [], False),
        ("utf-8;q=0, *", [], False),
        ("*;q=0", [], False),
        ("iso-8859-1", ["utf-8"], True),
        ("utf-8", ["iso-8859-1"], False),
        (None, ["iso-8859-1", "gb18030,utf-8;q=0.1"], True),
        (None, [""], False),
        ("", [], True),
        (" ,", [], True),
    ],
)
def test_text_is_utf_8(header, queries, accepted):
    headers = {} if header is None else {"accept-charset": header}
    request = Request("GET", "/v2/studies", tuple(("charset", each) for each in queries), headers, "", 2)
    if accepted:
        check_charset(request)
        return
    with pytest.raises(NotAcceptable, match="text is sent in utf-8 only") as refusal:
        check_charset(request)
    assert refusal.value.acceptable == ("utf-8",)


@pytest.mark.parametrize("coding", ENCODERS)
def test_codings_are_undone(coding):
    chunks = [b"some text " * 1000, b"", b"more", bytes(range(256)) * 500]
    pieces = list(encoded(chunks, coding))
    assert all(pieces)
    assert undone(b"".join(pieces), coding) == b"".join(chunks)
    assert pieces == list(encoded(chunks, coding))
    assert undone(b"".join(encoded([], coding)), coding) == b""


def undone(payload, coding):
    if coding == "gzip":
        return zlib.decompress(payload, 31)
    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def test_without_a_coding_pieces_are_gathered():
    chunks = [b"ab"] * 100_000
    pieces = list(encoded(chunks, ""))
    assert b"".join(pieces) == b"ab" * 100_000
    assert [len(piece) for piece in pieces[:-1]] == [1 << 16] * (len(pieces) - 1)
    assert list(encoded([], "")) == []

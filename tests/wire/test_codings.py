"""Content codings: which one, and that it is undone by the libraries."""

import zlib

import pytest
import zstandard

from streamsrv.wire.codings import ENCODERS, choose_coding, encoded


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

"""Static files: content codings, conditions, ranges and policies, of bytes in memory and of files."""

import gzip
import os

import pytest
import zstandard

from streamsrv.errors import NotFound, RangeNotSatisfiable
from streamsrv.web.pages.static import FOREVER, StaticFile, file_answer, in_memory, media_type_of
from streamsrv.wire.answers import SANDBOX, Literal, Request, resolved

TEXT = b"const answer = 42;\n" * 200
POLICY = "default-src 'self'"


def asked(method="GET", **headers):
    lowered = {name.lower().replace("_", "-"): value for name, value in headers.items()}
    return Request(method, "/viewer/a.js", (), lowered, "http://h/v2", 2)


def on_disk(folder):
    """The file of TEXT, and one for each content coding."""
    (folder / "a.js").write_bytes(TEXT)
    (folder / "a.js.gzip").write_bytes(gzip.compress(TEXT))
    (folder / "a.js.zstd").write_bytes(zstandard.compress(TEXT))
    codings = {"": folder / "a.js", "gzip": folder / "a.js.gzip", "zstd": folder / "a.js.zstd"}
    return StaticFile("text/javascript; charset=utf-8", "0123", codings, FOREVER)


@pytest.fixture(params=["memory", "disk"])
def file(request, tmp_path):
    return in_memory("a.js", TEXT) if request.param == "memory" else on_disk(tmp_path)


def pread(descriptor, offset, length):
    return os.pread(descriptor, length, offset)


def sent(answer):
    """The payload of an answer, which is released."""
    body = b"".join(
        piece.payload
        if isinstance(piece, Literal)
        else pread(*answer.file_at(piece.segment, piece.offset), piece.length)
        for piece in answer.plan
    )
    if answer.release:
        answer.release()
    assert len(body) == answer.length
    return body


def unzstd(body):
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@pytest.mark.parametrize(
    ("accepted", "coding", "decode"),
    [
        ("", None, bytes),
        ("br", None, bytes),
        ("gzip, deflate, br, zstd", "zstd", unzstd),
        ("gzip, deflate, br", "gzip", gzip.decompress),
    ],
)
def test_the_coding_that_the_client_prefers(file, accepted, coding, decode):
    answer = resolved(file_answer(asked(accept_encoding=accepted), file, POLICY))
    headers = dict(answer.headers)
    assert (answer.status, answer.policy) == (200, POLICY)
    assert headers.get("Content-Encoding") == coding
    assert headers["Vary"] == "Accept-Encoding"
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert decode(sent(answer)) == TEXT


def test_each_coding_has_a_tag_and_is_not_sent_again(file):
    tags = set()
    for accepted in ("", "gzip", "zstd"):
        tag = dict(resolved(file_answer(asked(accept_encoding=accepted), file, POLICY)).headers)["ETag"]
        tags.add(tag)
        again = resolved(
            file_answer(asked(accept_encoding=accepted, if_none_match=tag), file, POLICY, [("X-A", "b")])
        )
        assert (again.status, sent(again)) == (304, b"")
        assert dict(again.headers)["Cache-Control"] == file.cache
    assert len(tags) == 3


def test_ranges_and_head(file):
    part = resolved(file_answer(asked(range="bytes=6-11"), file, POLICY))
    assert (part.status, sent(part), part.policy) == (206, TEXT[6:12], POLICY)
    with pytest.raises(RangeNotSatisfiable):
        resolved(file_answer(asked(range="bytes=99999-"), file, POLICY))
    head = resolved(file_answer(asked("HEAD"), file, POLICY))
    assert (head.status, list(head.plan), head.length) == (200, [], len(TEXT))
    if head.release:
        head.release()


def test_a_file_that_was_removed_and_a_link(tmp_path):
    file = on_disk(tmp_path)
    (tmp_path / "a.js").unlink()
    with pytest.raises(NotFound, match="load the page again"):
        resolved(file_answer(asked(), file, POLICY))
    (tmp_path / "a.js").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        resolved(file_answer(asked(), file, POLICY))


def test_descriptors_are_closed(tmp_path):
    file = on_disk(tmp_path)
    open_before = len(os.listdir("/proc/self/fd"))
    for headers in ({}, {"if_none_match": "*"}, {"range": "bytes=0-1"}):
        sent(resolved(file_answer(asked(**headers), file, POLICY)))
    with pytest.raises(RangeNotSatisfiable):
        resolved(file_answer(asked(range="bytes=99999-"), file, POLICY))
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_media_types():
    for name, expected in {
        "a.wasm": "application/wasm",
        "a.mjs": "text/javascript; charset=utf-8",
        "b.woff2": "font/woff2",
        "c.PNG": "image/png",
        "d.ico": "image/vnd.microsoft.icon",
        "e": "application/octet-stream",
    }.items():
        assert media_type_of(name) == expected
    assert in_memory("a.png", bytes(5000)).codings.keys() == {""}
    assert SANDBOX == "sandbox"

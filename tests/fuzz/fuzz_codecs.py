"""Readers of codestream headers, and of what a pixel process says."""

import os
from contextlib import suppress

from fuzz_targets import target

from framecodecs.coders.jpeg_xl import read_jpegxl_header
from framecodecs.errors import CodestreamError, FrameCodecError
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.codestream import agree, read_rle_header
from framecodecs.headers.jpeg2000_header import read_jpeg2000_header
from framecodecs.headers.jpeg_header import read_jpeg_header
from framecodecs.pool.messages import HEAD, AnswerReader

INFO = FrameInfo(16, 16)
MARKERS = [
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xc0",
    b"\xff\xc3",
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xf7",
    b"\xff\xff",
]


def header_fits(header, content):
    assert 0 <= header.start <= header.end <= len(content)
    agree(header, INFO)


@target(CodestreamError, words=MARKERS)
def jpeg_header(content):
    header_fits(read_jpeg_header(content), content)


@target(
    CodestreamError,
    words=[b"\xffO\xffQ", b"\xffR", b"\xff\\", b"\xff\x90", b"\xff\x93", b"\xff\xd9", b"jp2c", b"\xffP"],
)
def jpeg2000_header(content):
    header_fits(read_jpeg2000_header(content), content)


@target(CodestreamError, words=[b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", b"jxlc", b"jxlp", b"ftypjxl "])
def jpegxl_header(content):
    header_fits(read_jpegxl_header(content), content)


@target(CodestreamError, words=[b"\1\0\0\0", b"\x40\0\0\0"])
def rle_header(content):
    header_fits(read_rle_header(content, INFO), content)


@target(
    FrameCodecError,
    words=[
        bytes(16),
        b"[null]",
        b'{"error":',
        b'"detail":',
        b'"hint":""}',
        b"Unsupported",
        b"\n",
        b" ",
        b"1e9",
        b"[",
        b"null",
    ],
)
def pixel_answer(content):
    """The answer of a pixel process: its text without the head, a zero byte, its frames."""
    text, _, frames = content.partition(b"\0")
    receiving, sending = os.pipe2(os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):
            os.write(sending, HEAD.pack(len(text)) + text + frames)
        os.close(sending)
        with suppress(EOFError):
            for frame, _ in AnswerReader(4, 1 << 16).read(receiving) or ():
                assert isinstance(frame, bytes)
    finally:
        os.close(receiving)

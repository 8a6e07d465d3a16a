"""Animated GIF (GIF89a), composed of pictures that are encoded one by one.

Strategy: each frame is a block: a graphic control extension, and an image with its own colour table. The
blocks stand between an opening and a closing, so no process holds more than one frame. A frame replaces the
whole picture before it.
"""

from __future__ import annotations

import struct
from struct import Struct

from framecodecs.errors import EncodeError

FASTEST, SLOWEST = 2, 65_535  # hundredths of a second; browsers slow down faster loops
NO_TABLE = 0x70  # a logical screen without a global colour table, 8 bits a primary colour
TABLE = 0x80  # a colour table follows; its three low bits are its size
REPEAT_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
CLOSING = b"\x3b"
_SCREEN = Struct("<6sHHBBB")
_CONTROL = Struct("<2sBBHBB")
_IMAGE = Struct("<BHHHHB")
EXTENSION, IMAGE = 0x21, 0x2C


def opening(columns: int, rows: int) -> bytes:
    """Returns the head of an animation that repeats without end. `columns` and `rows` are pixels."""
    return _SCREEN.pack(b"GIF89a", columns, rows, NO_TABLE, 0, 0) + REPEAT_FOREVER


def frame_block(picture: bytes, milliseconds: float) -> bytes:
    """Returns a frame that is shown for that time. `picture` is a GIF of one image. Raises EncodeError."""
    try:
        return _block(picture, milliseconds)
    except (IndexError, ValueError, struct.error) as error:
        raise EncodeError("the encoder made no GIF of one image") from error


def _block(picture: bytes, milliseconds: float) -> bytes:
    signature, _, _, flags, _, _ = _SCREEN.unpack(picture[: _SCREEN.size])
    at = _SCREEN.size
    table = b""
    if flags & TABLE:
        table = picture[at : at + 3 * (2 << (flags & 7))]
        at += len(table)
    while picture[at] == EXTENSION:
        at = _after_blocks(picture, at + 2)
    kind, left, top, columns, rows, local = _IMAGE.unpack(picture[at : at + _IMAGE.size])
    if not signature.startswith(b"GIF8") or kind != IMAGE or not picture.endswith(CLOSING):
        raise ValueError(picture[:16])
    if not local & TABLE:
        local |= flags & (TABLE | 7)
    else:
        table = b""  # the image has its own
    hundredths = min(max(round(milliseconds / 10), FASTEST), SLOWEST)
    return b"".join(
        (
            _CONTROL.pack(b"\x21\xf9", 4, 0, hundredths, 0, 0),
            _IMAGE.pack(IMAGE, left, top, columns, rows, local),
            table,
            picture[at + _IMAGE.size : -len(CLOSING)],
        )
    )


def _after_blocks(picture: bytes, at: int) -> int:
    """Returns the offset behind a sequence of data sub-blocks."""
    while size := picture[at]:
        at += 1 + size
    return at + 1

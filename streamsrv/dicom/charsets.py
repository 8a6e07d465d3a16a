"""Specific Character Set (0008,0005) to decoders (PS3.3 C.12.1.1.2, PS3.5 6.1.2.4 and 6.1.2.5).

Strategy: `decoder_for` turns the values of the attribute into one function bytes -> str, built once for
each character set. Without escape sequences that is one call of Python's codec; with them the text is cut
at each ESC and every piece decoded by what the escape designates. Which codec a defined term or an escape
sequence means comes from pydicom.charset's tables, read, never called: its own functions warn through a
global that threads share.

Rules: decoders are strict, a character that cannot be decoded raises UnicodeDecodeError and the caller
decides; `lenient=True` builds one that puts U+FFFD instead. A term that no table knows means the default
repertoire, decoded as Latin-1 as pydicom does, and a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from pydicom.charset import CODES_TO_ENCODINGS, STAND_ALONE_ENCODINGS, handled_encodings, python_encoding

Decoder = Callable[[bytes], str]

DEFAULT_CODEC = "latin-1"
_ESC = b"\x1b"
_PIECES = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
# Each resets what an escape sequence designated (PS3.5 6.1.2.5.3): CR LF FF TAB; the rest of the piece is
# in
# the first set again.
_DELIMITER = re.compile(rb"[\r\n\t\f]")


@lru_cache(maxsize=256)
def codecs_of(terms: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Python codecs for the defined terms, and what is wrong with the terms ("" if nothing)."""
    codecs, reason = [], ""
    for place, term in enumerate(terms or ("",)):
        codec, complaint = _codec_of(term)
        if place and term in STAND_ALONE_ENCODINGS:
            reason = f"{term} does not allow code extensions"
            continue
        reason = reason or complaint
        codecs.append(codec)
        if not place and term in STAND_ALONE_ENCODINGS and len(terms) > 1:
            return (codec,), f"{term} does not allow code extensions"
    return tuple(codecs), reason


def _codec_of(term: str) -> tuple[str, str]:
    codec = python_encoding.get(term)
    if codec is not None:
        return str(codec), ""
    # Spelling slips that pydicom mends: "ISO-IR 100", "ISO IR 100", "ISO-2022-IR-87", "ISO_2022_IR_87".
    mended = re.sub(r"^ISO[^_]IR.", "ISO_IR ", re.sub(r"^ISO.2022.IR.", "ISO 2022 IR ", term))
    codec = python_encoding.get(mended)
    if codec is not None:
        return str(codec), f"read as {mended}"
    return DEFAULT_CODEC, "not a defined term, read as the default character repertoire"


@lru_cache(maxsize=256)
def decoder_for(codecs: tuple[str, ...], lenient: bool = False) -> Decoder:
    """bytes -> str for text VRs (LO LT PN SH ST UC UT)."""
    errors = "replace" if lenient else "strict"
    first = codecs[0]

    def decode(value: bytes) -> str:
        if _ESC in value:
            return "".join(_piece(piece, codecs, errors) for piece in _PIECES.findall(value))
        return value.decode(first, errors)

    return decode


def _piece(piece: bytes, codecs: tuple[str, ...], errors: str) -> str:
    if piece[:1] != _ESC:
        return piece.decode(codecs[0], errors)
    width = 4 if piece[1:3] in (b"$(", b"$)") else 3
    codec = CODES_TO_ENCODINGS.get(piece[:width])
    if codec is None or (codec not in codecs and codec != "iso8859"):
        if errors == "strict":
            raise UnicodeDecodeError(
                codecs[0], piece, 0, width, "escape sequence of no declared character set"
            )
        return piece.decode(codecs[0], errors)
    if codec in handled_encodings:
        return piece.decode(codec, errors)  # Python's codec reads the escape sequence itself
    body = piece[width:]
    delimiter = _DELIMITER.search(body)
    if delimiter is None:
        return body.decode(codec, errors)
    at = delimiter.start()
    return body[:at].decode(codec, errors) + body[at:].decode(codecs[0], errors)

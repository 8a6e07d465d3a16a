"""Makes decoders of Specific Character Set (0008,0005) (PS3.3 C.12.1.1.2, PS3.5 6.1.2.4 and 6.1.2.5).

Strategy: `decoder_for` makes one function bytes -> str for the values of the attribute. Without escape
sequences it calls Python's codec once. Otherwise it cuts the text at each ESC and decodes each piece with the
codec that the escape sequence designates. The tables of pydicom.charset map terms and escape sequences to
codecs. Its functions are not used, because they warn through a global that threads share.

Rules: decoders are strict: a character that cannot be decoded raises UnicodeDecodeError. With `lenient=True`
they put U+FFFD instead. An unknown term is read as the default repertoire, decoded as Latin-1 as in pydicom,
with a warning.
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
# PS3.5 6.1.2.5.3: CR, LF, FF and TAB end the designation. The rest of the piece is in the first set again.
_DELIMITER = re.compile(rb"[\r\n\t\f]")


@lru_cache(maxsize=256)
def codecs_of(terms: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Python codecs for the defined terms, and the warning for invalid terms ("" if none)."""
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
    # Misspellings that pydicom corrects: "ISO-IR 100", "ISO IR 100", "ISO-2022-IR-87", "ISO_2022_IR_87".
    corrected = re.sub(r"^ISO[^_]IR.", "ISO_IR ", re.sub(r"^ISO.2022.IR.", "ISO 2022 IR ", term))
    codec = python_encoding.get(corrected)
    if codec is not None:
        return str(codec), f"read as {corrected}"
    return DEFAULT_CODEC, "not a defined term, read as the default character repertoire"


@lru_cache(maxsize=256)
def decoder_for(codecs: tuple[str, ...], lenient: bool = False) -> Decoder:
    """A function bytes -> str for text VRs (LO LT PN SH ST UC UT)."""
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
        return piece.decode(codec, errors)  # the codec reads the escape sequence
    body = piece[width:]
    delimiter = _DELIMITER.search(body)
    if delimiter is None:
        return body.decode(codec, errors)
    at = delimiter.start()
    return body[:at].decode(codec, errors) + body[at:].decode(codecs[0], errors)

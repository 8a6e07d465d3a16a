"""Character sets (PS3.3 C.12.1.1.2, PS3.5 6.1.2.4 and 6.1.2.5).

Strategy: text without escape sequences takes one call of Python's codec. Other text is cut at each ESC, and
each piece is decoded by the codec that the sequence designates. An unknown term is read as the default
repertoire, decoded as Latin-1 as in pydicom, with a warning.

Terms and codecs are those of pydicom.charset. It is not imported: it loads all of pydicom, as many modules as
the rest of a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

Decoder = Callable[[bytes], str]

DEFAULT_CODEC = "latin-1"
_ESC = b"\x1b"
_PIECES = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
# PS3.5 6.1.2.5.3: CR, LF, FF and TAB end the designation. The rest of the piece is in the first set again.
_DELIMITER = re.compile(rb"[\r\n\t\f]")
# PS3.3 Tables C.12-2 and C.12-3: number of the defined term, codec, escape sequences without ESC.
_SINGLE_BYTE = (
    ("6", "iso8859", b"(B"),
    ("13", "shift_jis", b")I", b"(J"),
    ("100", "latin_1", b"-A"),
    ("101", "iso8859_2", b"-B"),
    ("109", "iso8859_3", b"-C"),
    ("110", "iso8859_4", b"-D"),
    ("126", "iso_ir_126", b"-F"),
    ("127", "iso_ir_127", b"-G"),
    ("138", "iso_ir_138", b"-H"),
    ("144", "iso_ir_144", b"-L"),
    ("148", "iso_ir_148", b"-M"),
    ("166", "iso_ir_166", b"-T"),
)
# Table C.12-4: sets of several bytes, with code extensions only.
_SEVERAL_BYTES = (
    ("87", "iso2022_jp", b"$B"),
    ("149", "euc_kr", b"$)C"),
    ("159", "iso2022_jp_2", b"$(D"),
    ("58", "iso_ir_58", b"$)A"),
)
# Table C.12-5: sets without code extensions.
_STAND_ALONE = {"ISO_IR 192": "UTF8", "GB18030": "GB18030", "GBK": "GBK"}
_TERMS = {
    "": "iso8859",
    **{f"ISO_IR {number}": codec for number, codec, *_ in _SINGLE_BYTE},
    **{f"ISO 2022 IR {number}": codec for number, codec, *_ in (*_SINGLE_BYTE, *_SEVERAL_BYTES)},
    **_STAND_ALONE,
    # Not in the tables, but in files; pydicom reads them.
    "ISO 2022 GBK": "GBK",
    "ISO 2022 58": "GB2312",
}
_DESIGNATED = {
    _ESC + sequence: codec
    for _, codec, *sequences in (*_SINGLE_BYTE, *_SEVERAL_BYTES)
    for sequence in sequences
}
# These codecs read the escape sequences.
_READ_ESCAPES = ("iso2022_jp", "iso2022_jp_2", "iso_ir_58")


@lru_cache(maxsize=256)
def codecs_of(terms: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Python codecs for the defined terms, and the warning for invalid terms ("" if none)."""
    codecs, reason = [], ""
    for place, term in enumerate(terms or ("",)):
        codec, complaint = _codec_of(term)
        if place and term in _STAND_ALONE:
            reason = f"{term} does not allow code extensions"
            continue
        reason = reason or complaint
        codecs.append(codec)
        if not place and term in _STAND_ALONE and len(terms) > 1:
            return (codec,), f"{term} does not allow code extensions"
    return tuple(codecs), reason


def _codec_of(term: str) -> tuple[str, str]:
    codec = _TERMS.get(term)
    if codec is not None:
        return codec, ""
    # Misspellings that pydicom corrects: "ISO-IR 100", "ISO IR 100", "ISO-2022-IR-87", "ISO_2022_IR_87".
    corrected = re.sub(r"^ISO[^_]IR.", "ISO_IR ", re.sub(r"^ISO.2022.IR.", "ISO 2022 IR ", term))
    codec = _TERMS.get(corrected)
    if codec is not None:
        return codec, f"read as {corrected}"
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
    codec = _DESIGNATED.get(piece[:width])
    if codec is None or (codec not in codecs and codec != "iso8859"):
        if errors == "strict":
            raise UnicodeDecodeError(
                codecs[0], piece, 0, width, "escape sequence of no declared character set"
            )
        return piece.decode(codecs[0], errors)
    if codec in _READ_ESCAPES:
        return piece.decode(codec, errors)  # the codec reads the escape sequence
    body = piece[width:]
    delimiter = _DELIMITER.search(body)
    if delimiter is None:
        return body.decode(codec, errors)
    at = delimiter.start()
    return body[:at].decode(codec, errors) + body[at:].decode(codecs[0], errors)

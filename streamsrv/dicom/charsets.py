"""Character sets (PS3.3 C.12.1.1.2; PS3.5 6.1.2.4, 6.1.2.5 and Annexes H to K).

Strategy: text without escape sequences takes one call of Python's codec. Other text is decoded by ISO 2022:
two sets are active, G0 for the bytes 21 to 7E and G1 for the bytes 80 to FF. An escape sequence replaces one
of them. Sets have their ISO-IR numbers, which the defined terms contain.

Rules
- Value 1 of Specific Character Set gives the first G0 and G1; G0 is ISO-IR 6, but ISO-IR 14 with ISO-IR 13.
- Control characters other than ESC bring them back, and so do the delimiters of the VR (6.1.2.5.3): the
  backslash between values, and ^ and = in names. A byte of a two-byte character is no delimiter.
- ISO_IR 192, GB18030 and GBK have no code extensions.
- A strict decoder raises UnicodeDecodeError. A lenient one then reads the bytes as the most likely text:
  a set that is designated but not declared; a set that is declared but not designated; characters that
  Windows adds to a set. Other bytes become U+FFFD.
- An unknown term is read as the default repertoire, decoded as Latin-1, with a warning. So is text with bytes
  over 7F and no Specific Character Set, but without a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

Decoder = Callable[[bytes], str]
CharacterSets = tuple[str, ...]  # defined terms, in the spelling of the standard

DEFAULT_CODEC = "latin-1"
_ASCII, _KATAKANA, _ROMAJI, _KANJI, _MORE_KANJI, _LATIN_1 = 6, 13, 14, 87, 159, 100
_TWO_BYTES = (_KANJI, _MORE_KANJI)
# Sets for G1, PS3.3 Tables C.12-3 and C.12-4: ISO-IR number, Python's codec, escape sequence without ESC. The
# last two have two bytes a character.
_RIGHT = (
    (100, "latin-1", b"-A"),
    (101, "iso8859-2", b"-B"),
    (109, "iso8859-3", b"-C"),
    (110, "iso8859-4", b"-D"),
    (126, "iso8859-7", b"-F"),
    (127, "iso8859-6", b"-G"),
    (138, "iso8859-8", b"-H"),
    (144, "iso8859-5", b"-L"),
    (148, "iso8859-9", b"-M"),
    (166, "tis-620", b"-T"),
    (203, "iso8859-15", b"-b"),
    (149, "euc-kr", b"$)C"),
    (58, "gb2312", b"$)A"),
)
_CODECS = {number: codec for number, codec, _ in _RIGHT}
# Codecs with the characters that Windows adds.
_WIDER = {"euc-kr": "cp949", "gb2312": "gb18030", "gbk": "gb18030"}
# Table C.12-5, and names that are not in the tables but in files.
_STAND_ALONE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
_OTHER_NAMES = {"ISO_IR 6": "", "ISO 2022 GBK": "GBK", "ISO 2022 58": "ISO 2022 IR 58"}

# Escape sequence -> 0 for G0 or 1 for G1, ISO-IR number
DESIGNATIONS: dict[bytes, tuple[int, int]] = {
    b"\x1b(B": (0, _ASCII),
    b"\x1b(J": (0, _ROMAJI),
    b"\x1b)I": (1, _KATAKANA),
    b"\x1b$B": (0, _KANJI),
    b"\x1b$(D": (0, _MORE_KANJI),
    **{b"\x1b" + sequence: (1, number) for number, _, sequence in _RIGHT},
}
_SINGLE_BYTE = (_KATAKANA, *(number for number, _, sequence in _RIGHT if sequence[:1] == b"-"))
_TERMS = frozenset(
    (
        "",
        *_STAND_ALONE,
        *(f"ISO_IR {number}" for number in _SINGLE_BYTE),
        *(f"ISO 2022 IR {number}" for number in (_ASCII, _KATAKANA, *_TWO_BYTES, *_CODECS)),
    )
)
# "ISO-IR 100", "ISO IR 100", "ISO_IR_192", "ISO-2022-IR-87", "iso 2022 ir 87"
_MISSPELLED = re.compile(r"ISO(.?2022)?.?IR.?(\d+)", re.IGNORECASE)
_ROMAJI_DIFFERS = str.maketrans("\\~", "¥‾")
_KATAKANA_BYTES = bytes(range(0xA1, 0xE0))
_TO_G1 = bytes(byte | 0x80 for byte in range(256))


@lru_cache(maxsize=256)
def character_sets_of(terms: tuple[str, ...]) -> tuple[CharacterSets, str]:
    """The sets of the values of Specific Character Set, and the warning for invalid ones ("" if none)."""
    sets, reason = [], ""
    for place, term in enumerate(terms or ("",)):
        name, complaint = _spelled(term)
        if place and name in _STAND_ALONE:
            reason = f"{name} does not allow code extensions"
            continue
        reason = reason or complaint
        sets.append(name)
        if name in _STAND_ALONE and len(terms) > 1:
            return (name,), f"{name} does not allow code extensions"
    return tuple(sets), reason


def _spelled(term: str) -> tuple[str, str]:
    """The defined term, and the warning. Blanks around a code have no meaning (PS3.5 6.2)."""
    term = term.strip(" ")
    term = _OTHER_NAMES.get(term, term)
    if term in _TERMS:
        return term, ""
    if slip := _MISSPELLED.fullmatch(term):
        corrected = f"{'ISO 2022 IR' if slip[1] else 'ISO_IR'} {slip[2]}"
        if corrected in _TERMS:
            return corrected, f"read as {corrected}"
    return "", "not a defined term, read as the default character repertoire"


def codec_of(sets: CharacterSets) -> str | None:
    """Python's codec for text without escape sequences; None if no codec fits."""
    if sets[0] in _STAND_ALONE:
        return _STAND_ALONE[sets[0]]
    first = _number(sets[0])
    if _g1_of(first):
        return _CODECS.get(first)
    return DEFAULT_CODEC if sets == ("",) else "ascii"


def stands_alone(sets: CharacterSets) -> bool:
    """Whether the sets allow no code extensions."""
    return sets[0] in _STAND_ALONE


def set_numbers(sets: CharacterSets) -> tuple[int, ...]:
    """The ISO-IR numbers of sets that allow code extensions."""
    return tuple(_number(term) for term in sets)


def set_codec(number: int) -> str:
    """Python's codec with the characters of a set, not with its bytes: EUC-JP for both sets of kanji."""
    return "euc-jp" if number in _TWO_BYTES else _CODECS.get(number, "shift-jis")


def _number(term: str) -> int:
    """The ISO-IR number of a set that allows code extensions."""
    return int(term.rpartition(" ")[2]) if term else _ASCII


def _g1_of(number: int) -> int | None:
    return number if number in _CODECS or number == _KATAKANA else None


@lru_cache(maxsize=256)
def decoder_for(sets: CharacterSets, delimiters: bytes = b"", lenient: bool = False) -> Decoder:
    """A function bytes -> str for values with these `delimiters`: a backslash for LO, SH and UC, also ^ and =
    for PN, none for LT, ST and UT. It raises UnicodeDecodeError unless it is lenient."""
    plain = codec_of(sets)
    alone = sets[0] in _STAND_ALONE
    extended = _Extended(("",) if alone else sets, delimiters)

    def decode(value: bytes) -> str:
        if plain and (alone or b"\x1b" not in value):
            return value.decode(plain)
        return extended.decode(value)

    def decode_leniently(value: bytes) -> str:
        try:
            return decode(value)
        except UnicodeDecodeError:
            if plain is None and b"\x1b" not in value:  # Shift-JIS that is declared as JIS X 0201
                return value.decode("cp932", "replace")
            if plain and alone:
                return value.decode(_WIDER.get(plain, plain), "replace")
            return extended.decode(value, lenient=True)

    return decode_leniently if lenient else decode


class _Extended:
    """Decodes text with code extensions."""

    def __init__(self, sets: CharacterSets, delimiters: bytes) -> None:
        numbers = [_number(term) for term in sets]
        self._first = (_ROMAJI if numbers[0] == _KATAKANA else _ASCII, _g1_of(numbers[0]))
        self._declared = {_ASCII, *numbers, *((_ROMAJI,) if _KATAKANA in numbers else ())}
        # Most likely the G1 of text that designates none.
        right = {number for number in numbers if _g1_of(number)}
        self._likely = right.pop() if len(right) == 1 else _LATIN_1
        self._one_byte, self._two_bytes = _tokens(delimiters, b"\x20\x7f"), _tokens(b"", b"")

    def decode(self, value: bytes, lenient: bool = False) -> str:
        """Raises UnicodeDecodeError unless it is lenient."""
        texts: list[str] = []
        g0, g1 = self._first
        designated = None  # the last G1
        end = 0
        while token := (self._two_bytes if g0 in _TWO_BYTES else self._one_byte)(value, end):
            kind, piece, start, end = token.lastgroup, token[0], end, token.end()
            if kind == "left":
                texts.append(_left(g0, piece, lenient))
            elif kind == "right":
                if g1 is None and not lenient:
                    raise _error(value, start, end, "no character set for bytes over 7F")
                texts.append(_right(g1 or designated or self._likely, piece, lenient))
            elif kind == "escape":
                half, number = DESIGNATIONS.get(piece, (0, None))
                if number not in self._declared and not lenient:
                    raise _error(value, start, end, "escape sequence of no declared character set")
                if number is None:
                    texts.append(piece.decode())
                elif half:
                    g1 = designated = number
                else:
                    g0 = number
            else:
                if kind == "reset":
                    g0, g1 = self._first
                texts.append(piece.decode())
        return "".join(texts)


def _tokens(delimiters: bytes, more: bytes) -> Callable[[bytes, int], re.Match[bytes] | None]:
    """A function that matches a run of bytes of one half, an escape sequence (ECMA-35 13), or one other
    byte. `more` bytes belong to a run of G0."""
    left = bytes(each for each in (*range(0x21, 0x7F), *more) if each not in delimiters)
    reset = bytes(each for each in (*range(0x20), *delimiters) if each != 0x1B)
    pattern = b"(?P<left>[%s]+)|(?P<right>[\x80-\xff]+)|(?P<reset>[%s])|"
    pattern += b"(?P<escape>\x1b[\x20-\x2f]+[\x30-\x7e]|\x1b)|(?P<other>[\x20\x7f])"
    return re.compile(pattern % (re.escape(left), re.escape(reset)), re.DOTALL).match


def _error(value: bytes, start: int, end: int, reason: str) -> UnicodeDecodeError:
    return UnicodeDecodeError("ISO 2022", value, start, end, reason)


def _left(number: int, data: bytes, lenient: bool) -> str:
    """Text of G0."""
    if number not in _TWO_BYTES:
        return data.decode().translate(_ROMAJI_DIFFERS if number == _ROMAJI else {})
    if len(data) % 2:
        if not lenient:
            raise _error(data, len(data) - 1, len(data), "half a character of two bytes")
        return _left(number, data[:-1], lenient) + data[-1:].decode()
    codes = data.translate(_TO_G1)
    if number == _MORE_KANJI:
        codes = b"".join(b"\x8f" + codes[at : at + 2] for at in range(0, len(codes), 2))
    try:
        return codes.decode("euc-jp")
    except UnicodeDecodeError:
        if not lenient:
            raise
    return (
        _shift_jis(data).decode("cp932", "replace") if number == _KANJI else codes.decode("euc-jp", "replace")
    )


def _shift_jis(data: bytes) -> bytes:
    """Two-byte characters of JIS X 0208 as Shift-JIS, which has the additions of Windows too."""
    result = bytearray()
    for high, low in zip(data[::2], data[1::2], strict=True):
        row = high - 0x21
        result.append(0x81 + row // 2 + (0x40 if row >= 62 else 0))
        result.append(low + (0x7E if row % 2 else 0x20 if low >= 0x60 else 0x1F))
    return bytes(result)


def _right(number: int, data: bytes, lenient: bool) -> str:
    """Text of G1."""
    codec = _CODECS.get(number, "shift-jis")
    try:
        if number == _KATAKANA and data.translate(None, _KATAKANA_BYTES):
            raise _error(data, 0, len(data), "no katakana")
        return data.decode(codec)
    except UnicodeDecodeError:
        if not lenient:
            raise
    return data.decode(_WIDER.get(codec, codec), "replace")

"""Text into the bytes of character sets (PS3.5 6.1.2.4, 6.1.2.5): the reverse of charsets.py.

Strategy: text of one set takes one call of Python's codec. Other text is encoded by ISO 2022: an escape
sequence stands before each run of another set.

Rules
- A delimiter, a control character and the end of the value come after a return to the first set.
- Some readers follow the last escape sequence alone. So each run has its own one, also if its set is active.
- The yen sign of ISO-IR 14 is not written: its byte is the delimiter of values.
- A character that no set has raises UnicodeEncodeError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from streamsrv.dicom.charsets import (
    DESIGNATIONS,
    CharacterSets,
    codec_of,
    set_codec,
    set_numbers,
    stands_alone,
)

Encoder = Callable[[str], bytes]

_ASCII, _KATAKANA, _ROMAJI, _KANJI, _MORE_KANJI = 6, 13, 14, 87, 159
_LEFT = (_ASCII, _ROMAJI, _KANJI, _MORE_KANJI)
_ESCAPES = {number: sequence for sequence, (_, number) in DESIGNATIONS.items()}


@lru_cache(maxsize=256)
def encoder_for(sets: CharacterSets, delimiters: str = "") -> Encoder:
    """A function str -> bytes for values with these delimiters. It raises UnicodeEncodeError."""
    if sets == ("",):
        return lambda text: text.encode("ascii")
    plain = codec_of(sets)
    if plain and (stands_alone(sets) or len(sets) == 1):
        return lambda text: text.encode(plain)
    return _ExtendedEncoder(sets, delimiters).encode


class _ExtendedEncoder:
    """Encodes text with code extensions."""

    def __init__(self, sets: CharacterSets, delimiters: str) -> None:
        numbers = set_numbers(sets)
        self._first = _ROMAJI if numbers[0] == _KATAKANA else _ASCII
        self._right = None if numbers[0] in (_ASCII, _KANJI, _MORE_KANJI) else numbers[0]
        self._numbers = tuple(dict.fromkeys((self._first, *numbers, _ASCII)))
        self._delimiters = frozenset(delimiters)

    def encode(self, text: str) -> bytes:
        """Raises UnicodeEncodeError."""
        out = bytearray()
        left, right, last = self._first, self._right, 0
        for at, one in enumerate(text):
            if one in self._delimiters or one < " ":
                out += self._back(left) + one.encode()
                left, right, last = self._first, self._right, 0
                continue
            number, content = self._chosen(one, left, right)
            if content is None:
                raise UnicodeEncodeError("ISO 2022", text, at, at + 1, "no declared set has it")
            if number in _LEFT:
                if number != left:
                    out += _ESCAPES[number]
                    left, last = number, number
            elif number != right or last not in (0, number):
                out += self._back(left) + _ESCAPES[number]
                left, right, last = self._first, number, number
            out += content
        return bytes(out + self._back(left))

    def _back(self, left: int) -> bytes:
        return _ESCAPES[self._first] if left != self._first else b""

    def _chosen(self, one: str, left: int, right: int | None) -> tuple[int, bytes | None]:
        """The set and the bytes of a character: an active set if it has the character."""
        active = (left,) if right is None else (left, right)
        for number in (*active, *self._numbers):
            content = _content(one, number)
            if content is not None:
                return number, content
        return left, None


@lru_cache(maxsize=4096)
def _content(one: str, number: int) -> bytes | None:
    """The bytes of a character in a set; None if the set lacks it."""
    if number == _ASCII:
        return one.encode() if one.isascii() else None
    if number == _ROMAJI:
        return b"~" if one == "‾" else one.encode() if one.isascii() and one not in "\\~" else None
    try:
        content = one.encode(set_codec(number))
    except UnicodeEncodeError:
        return None
    if number == _KANJI:
        return _low(content) if len(content) == 2 and content[0] > 0x8F else None
    if number == _MORE_KANJI:
        return _low(content[1:]) if len(content) == 3 else None
    return content if content[0] >= 0x80 and (number != _KATAKANA or len(content) == 1) else None


def _low(content: bytes) -> bytes:
    """Bytes of G1 as those of G0."""
    return bytes(byte & 0x7F for byte in content)

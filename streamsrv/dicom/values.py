"""Converts values of every VR to attribute objects of DICOM JSON (PS3.18 F.2; VRs PS3.5 6.2).

Strategy: `converters_for` makes a table VR -> function(bytes) -> {"vr": ..., "Value": [...]} for a byte
order and a character set. So a value costs one look-up and one call. The functions are strict: ValueError
(UnicodeDecodeError among them) or struct.error means that the value breaks the rules of its VR. `lenient`
then makes the element and the warning. `broken_rule` checks the attributes that searches use.

Where the standard leaves a choice, or other readers differ:
- An empty value among several is null (F.2.5); an attribute without value has only "vr".
- DS and IS are numbers; text that is no number stays a string (F.2.3 allows Number or String).
- JSON has no NaN and no infinity, and F.2.3 has no string for FL and FD: they become null, with a warning.
- InlineBinary is little endian, like everything that a web service sends (PS3.18 8.7.3).
"""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.charsets import DEFAULT_CODEC, CharacterSets, Decoder, codec_of, decoder_for
from streamsrv.dicom.instance import JsonElement
from streamsrv.errors import NotDicom

Converter = Callable[[bytes], JsonElement]

# VR -> (struct code, bytes a value)
NUMBERS = {
    "US": ("H", 2),
    "SS": ("h", 2),
    "UL": ("I", 4),
    "SL": ("i", 4),
    "UV": ("Q", 8),
    "SV": ("q", 8),
    "FL": ("f", 4),
    "FD": ("d", 8),
}
# VR -> bytes of its words, whose order depends on the transfer syntax (PS3.5 7.3). Others are bytes.
WORDS = {
    "AT": 2,
    "OW": 2,
    "OF": 4,
    "OL": 4,
    "OD": 8,
    "OV": 8,
    **{vr: width for vr, (_, width) in NUMBERS.items()},
}
# PS3.5 6.2: VRs in the Specific Character Set, with several values and with one.
_TEXTS = ("LO", "SH", "UC")
_SINGLE_TEXTS = ("LT", "ST", "UT")
_CODES = ("AS", "CS", "DA", "DT", "TM", "UI")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_DECIMAL = b"0123456789+-.eE \\"
_SURELY_FINITE = 4  # longer numerals may exceed a double ("1e999")
_INTEGER = b"0123456789+- \\"
_BEYOND = 1 << 63


def swapped(value: bytes, width: int) -> bytes:
    """`value` with the bytes of each word of `width` bytes reversed, but not those of a cut last word."""
    if width == 1:
        return value
    whole = len(value) // width * width
    words = np.frombuffer(value, f"<u{width}", whole // width)
    return words.byteswap().tobytes() + value[whole:]


def _several(vr: str, codec: str | None, decode: Decoder) -> Converter:
    def convert(value: bytes) -> JsonElement:
        # `decode` would be a second call, and is rarely needed.
        text = decode(value) if codec is None or b"\x1b" in value else value.decode(codec)
        if "\\" in text:
            return _element(vr, [part.rstrip("\0 ") or None for part in text.split("\\")])
        text = text.rstrip("\0 ")
        return {"vr": vr, "Value": [text]} if text else {"vr": vr}

    return convert


def _single(vr: str, decode: Decoder) -> Converter:
    def convert(value: bytes) -> JsonElement:
        text = decode(value).rstrip("\0 ")
        return {"vr": vr, "Value": [text]} if text else {"vr": vr}

    return convert


def _codes(vr: str) -> Converter:
    def convert(value: bytes) -> JsonElement:
        text = value.decode(DEFAULT_CODEC).rstrip(" \0")
        if "\\" in text:
            return _element(vr, [part or None for part in text.split("\\")])
        return {"vr": vr, "Value": [text]} if text else {"vr": vr}

    return convert


def _titles(value: bytes) -> JsonElement:
    """AE: spaces on both sides have no meaning."""
    return _element(
        "AE", [part.strip() or None for part in value.decode(DEFAULT_CODEC).rstrip("\0").split("\\")]
    )


def _locator(value: bytes) -> JsonElement:
    text = value.decode(DEFAULT_CODEC).rstrip().rstrip("\0")
    return {"vr": "UR", "Value": [text]} if text else {"vr": "UR"}


def _names(decode: Decoder) -> Converter:
    def convert(value: bytes) -> JsonElement:
        text = decode(value.rstrip(b"\0 "))
        if "=" not in text and "\\" not in text:
            return {"vr": "PN", "Value": [{"Alphabetic": text}]} if text else {"vr": "PN"}
        return _element("PN", [_name(part) or None for part in text.split("\\")])

    return convert


def _name(text: str) -> dict[str, str]:
    """F.2.2: the component groups that are not empty."""
    return {group: part for group, part in zip(_NAME_GROUPS, text.split("="), strict=False) if part}


def _element(vr: str, values: list[Any]) -> JsonElement:
    return {"vr": vr} if values == [None] else {"vr": vr, "Value": values}


def _numeral(vr: str, characters: bytes, one: Callable[[str], float]) -> Converter:
    """DS and IS. The JSON parser reads all values at once. `one` reads a form that JSON lacks ("+1",
    ".5")."""

    def convert(value: bytes) -> JsonElement:
        value = value.rstrip(b" \0")
        if value.translate(None, characters):
            raise ValueError("characters that are not part of a number")
        if not value:
            return {"vr": vr}
        try:
            numbers = orjson.loads(b"[" + value.replace(b"\\", b",") + b"]")
        except orjson.JSONDecodeError:
            parts = value.decode().split("\\")
            return _element(vr, [one(part) if part.strip() else None for part in parts])
        if len(value) > _SURELY_FINITE and sum(numbers) * 0 != 0:
            raise ValueError("too large for a number")
        return {"vr": vr, "Value": numbers}

    return convert


def _finite_number(text: str) -> float:
    number = float(text)
    if number * 0 != 0:
        raise ValueError("too large for a number")
    return number


def _whole_number(text: str) -> float:
    """A number of more than 64 bits becomes a double, as the JSON parser reads it."""
    number = int(text)
    return number if -_BEYOND <= number < _BEYOND else _finite_number(text)


def _numbers(vr: str, order: str) -> Converter:
    code, width = NUMBERS[vr]
    single = struct.Struct(order + code).unpack

    def convert(value: bytes) -> JsonElement:
        count = len(value) // width
        if count == 1:
            return {"vr": vr, "Value": list(single(value))}
        return (
            {"vr": vr, "Value": list(struct.unpack(f"{order}{count}{code}", value))} if value else {"vr": vr}
        )

    return convert


def _reals(vr: str, order: str) -> Converter:
    convert_all = _numbers(vr, order)

    def convert(value: bytes) -> JsonElement:
        element = convert_all(value)
        # One test for all values: zero times NaN or infinity is not zero. If a sum overflows, the lenient
        # converter gives the same element.
        if sum(element.get("Value", ())) * 0 != 0:
            raise ValueError("NaN and infinity are no JSON numbers")
        return element

    return convert


def _tags(order: str) -> Converter:
    def convert(value: bytes) -> JsonElement:
        words = struct.unpack(f"{order}{len(value) // 4 * 2}H", value)
        if not words:
            return {"vr": "AT"}
        pairs = zip(words[::2], words[1::2], strict=True)
        return {"vr": "AT", "Value": [f"{group:04X}{element:04X}" for group, element in pairs]}

    return convert


def _binary(vr: str, width: int) -> Converter:
    def convert(value: bytes) -> JsonElement:
        return {"vr": vr, "InlineBinary": b64encode(swapped(value, width)).decode()} if value else {"vr": vr}

    return convert


@lru_cache(maxsize=256)
def converters_for(sets: CharacterSets, little: bool, lenient: bool = False) -> dict[str, Converter]:
    """VR -> converter. With `lenient` text that cannot be decoded has U+FFFD."""
    values, text = decoder_for(sets, b"\\", lenient), decoder_for(sets, b"", lenient)
    order = "<" if little else ">"
    codec = None if lenient else codec_of(sets)
    table: dict[str, Converter] = {vr: _several(vr, codec, values) for vr in _TEXTS}
    table |= {vr: _single(vr, text) for vr in _SINGLE_TEXTS}
    table |= {vr: _codes(vr) for vr in _CODES}
    table |= {vr: _reals(vr, order) if vr[0] == "F" else _numbers(vr, order) for vr in NUMBERS}
    table |= {
        vr: _binary(vr, 1 if little else WORDS.get(vr, 1))
        for vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
    }
    names = decoder_for(sets, b"\\^=", lenient)
    table |= {"AE": _titles, "AT": _tags(order), "PN": _names(names), "UR": _locator}
    table["DS"] = _numeral("DS", _DECIMAL, _finite_number)
    table["IS"] = _numeral("IS", _INTEGER, _whole_number)
    return table


def lenient(vr: str, value: bytes, sets: CharacterSets, little: bool) -> tuple[JsonElement, str]:
    """The element of a value that breaks the rules of its VR, and the warning."""
    if vr in ("DS", "IS"):
        return _any_numeral(vr, value), f"not a valid {vr} value"
    if vr in ("FL", "FD"):
        return _finite(vr, value, "<" if little else ">")
    if vr in NUMBERS or vr == "AT":
        return {"vr": vr}, f"{len(value)} bytes are no whole number of {vr} values"
    element = converters_for(sets, little, True)[vr](value)
    return element, "characters that the Specific Character Set cannot decode"


def _any_numeral(vr: str, value: bytes) -> JsonElement:
    """Finite numbers as numbers, other values as text."""
    values: list[float | str | None] = []
    for part in value.decode(DEFAULT_CODEC).rstrip(" \0").split("\\"):
        text = part.strip(" \0")
        numeral = text.isascii() and not text.encode().translate(None, _DECIMAL)
        try:
            number = float(text) if numeral and text else None
        except ValueError:
            number = None
        if number is None or number * 0 != 0:
            values.append(text or None)
        else:
            whole = vr == "IS" and number.is_integer() and abs(number) < _BEYOND
            values.append(int(number) if whole else number)
    return _element(vr, values)


def _finite(vr: str, value: bytes, order: str) -> tuple[JsonElement, str]:
    code, width = NUMBERS[vr]
    if len(value) % width:
        return {"vr": vr}, f"{len(value)} bytes are no whole number of {vr} values"
    numbers = struct.unpack(f"{order}{len(value) // width}{code}", value)
    values = [number if number * 0 == 0 else None for number in numbers]
    return {"vr": vr, "Value": values}, "NaN or infinity, for which JSON has no number"


# Rules of VRs (PS3.5 Table 6.2-1)

# PS3.5 9.1. A text that this matches with `fullmatch` may go into a header field.
UID = re.compile(r"[0-9.]{1,64}")

_LINE = r"[^\\\x00-\x1a\x1c-\x1f]"  # ESC may stand in text
_TIME = r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?"
_DATE = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"

# VR -> (pattern of one value, the warning). PS3.5 6.2 asks to accept the dotted date of ACR-NEMA.
RULES: dict[str, tuple[re.Pattern[str], str]] = {
    vr: (re.compile(pattern), reason)
    for vr, pattern, reason in (
        ("AE", _LINE + r"{1,16}", "longer than 16 characters or with control characters"),
        ("AS", r"\d{3}[DWMY]", "not an age string (nnnD, nnnW, nnnM, nnnY)"),
        ("CS", r"[A-Z0-9 _]{1,16}", "not a code string (16 of A-Z 0-9 space underscore)"),
        ("DA", _DATE + r"|\d{4}\.\d{2}\.\d{2}", "not a date (YYYYMMDD)"),
        (
            "DT",
            r"\d{4}((0[1-9]|1[0-2])((0[1-9]|[12]\d|3[01])(" + _TIME + r"(\.\d{1,6})?)?)?)?([+-]\d{4})?",
            "not a date time",
        ),
        ("LO", _LINE + r"{1,64}", "longer than 64 characters or with control characters"),
        ("SH", _LINE + r"{1,16}", "longer than 16 characters or with control characters"),
        ("TM", _TIME + r"(\.\d{1,6})?|\d{2}:\d{2}:\d{2}(\.\d{1,6})?", "not a time (HHMMSS.FFFFFF)"),
        ("UI", r"[0-9.]{1,64}", "not a UID (digits and dots, at most 64)"),
    )
}
_GROUP_LENGTH = 64


def well_formed_uid(tag: str, text: str) -> str:
    """Returns `text`. Raises NotDicom if it is empty or not a UID."""
    if not text:
        raise NotDicom(f"{tags.keyword_of(tag)} is missing", tag=tag)
    if not UID.fullmatch(text):
        raise NotDicom(f"{tags.keyword_of(tag)} is malformed: digits and dots, at most 64", tag=tag)
    return text


def broken_rule(element: JsonElement) -> str | None:
    """Returns the warning for the values of an attribute; None if they are valid."""
    rule = RULES.get(element["vr"])
    for value in element.get("Value", ()):
        if isinstance(value, str) and rule and not rule[0].fullmatch(value.rstrip(" ")):
            return rule[1]
        if element["vr"] == "PN" and value and any(len(group) > _GROUP_LENGTH for group in value.values()):
            return f"a component group is longer than {_GROUP_LENGTH} characters"
        if element["vr"] in ("IS", "DS") and isinstance(value, str):
            return "not a number"
        if element["vr"] == "IS" and value is not None and not -(2**31) <= value < 2**31:
            return "not an integer of 32 bits"
    return None

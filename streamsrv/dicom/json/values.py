"""Converts values of DICOM JSON (PS3.18 F.2.3) to the bytes of their VR (PS3.5 6.2), the reverse of
dicom/values.py.

Rules: numbers may be text. A DS has at most 16 characters, so longer numbers are rounded. A value that
the VR cannot have raises NotDicom.
"""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from streamsrv.dicom.elements import BINARY_VRS
from streamsrv.dicom.values import NUMBERS
from streamsrv.errors import NotDicom

_DS_LENGTH = 16


def value_bytes(tag: str, vr: str, values: list[Any]) -> bytes:
    """Little endian bytes, with text in UTF-8, without padding."""
    try:
        if vr in NUMBERS:
            return _numbers(vr, values)
        if vr == "AT":
            return b"".join(struct.pack("<HH", *divmod(int(each, 16), 0x10000)) for each in values)
        if vr in BINARY_VRS and values:
            raise ValueError("a binary value is no list of values")
        return "\\".join(_TEXTS.get(vr, _text)(each) for each in values).encode()
    except (ValueError, TypeError, AttributeError, struct.error, OverflowError):
        raise NotDicom(f"a value that no {vr} can have", tag=tag) from None


def inline_bytes(tag: str, inline: Any) -> bytes:
    try:
        return b64decode(inline, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise NotDicom("InlineBinary is not base64", tag=tag) from None


def _numbers(vr: str, values: list[Any]) -> bytes:
    code, _ = NUMBERS[vr]
    read: Callable[[Any], float] = float if vr[0] == "F" else _integer
    return struct.pack(f"<{len(values)}{code}", *map(read, values))


def _integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and number != value):
        raise ValueError("not a whole number")
    return number


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _integer_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(_integer(value))


def _decimal_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    text = repr(value + 0)  # a bool is no number
    digits = _DS_LENGTH
    while len(text) > _DS_LENGTH:
        text = f"{value:.{digits}g}"
        digits -= 1
    return text


def _name(value: Any) -> str:
    """The component groups without trailing empty ones."""
    if value is None or isinstance(value, str):
        return value or ""
    groups = [_text(value.get(group)) for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


_TEXTS: dict[str, Callable[[Any], str]] = {"IS": _integer_text, "DS": _decimal_text, "PN": _name}

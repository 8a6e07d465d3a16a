"""Checks that values obey the rules of their VR (PS3.5 Table 6.2-1). Only the attributes that searches
use are checked. An invalid value is stored, and a warning names it.
"""

from __future__ import annotations

import re

from streamsrv.dicom import tags
from streamsrv.dicom.instance import JsonElement
from streamsrv.errors import NotDicom

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
    """Returns `text`. Raises NotDicom if it is not a UID."""
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

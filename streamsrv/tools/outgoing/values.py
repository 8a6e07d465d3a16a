"""Values of de-identified attributes: dummies, dates that are moved, texts of which only known words stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), bytes(8)),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "UR": "http://anonymized.invalid",
}
TEXT_VRS = frozenset(("LO", "LT", "SH", "ST", "UC", "UT"))
# Year, month, day (with points in files from before 1993), and the rest of a DT.
_DATE = re.compile(r"(\d{4})(?:\.?(\d\d)(?:\.?(\d\d))?)?(\d*(?:\.\d+)?(?:[+-]\d{4})?)")
_TOKEN = re.compile(r"[^\W_]+(?:[.+-][^\W_]+)*")
_PARTS = re.compile(r"[.+-]")


def first_vr(vr: str) -> str:
    """The first of several possible VRs (PS3.6), such as `US or SS`."""
    return vr.partition(" ")[0]


def moved(value: str, days: int) -> str:
    """A DA or DT so many days earlier, with its precision, time of day and zone. Raises ValueError."""
    found = _DATE.fullmatch(value.strip(" \0"))
    if found is None or (found[3] is None and found[4][:1].isdigit()):
        raise ValueError(value)
    year, month, day, rest = found.groups()
    try:
        earlier = date(int(year), int(month or 1), int(day or 1)) - timedelta(days=days)
    except OverflowError as fault:
        raise ValueError(value) from fault
    text = f"{earlier.year:04}{earlier.month:02}{earlier.day:02}"
    return (text if day else text[:6] if month else text[:4]) + rest


def kept_words(text: str, words: frozenset[str]) -> str:
    """The words of `text` that are among `words`, which are in lower case; joined by blanks."""
    kept: list[str] = []
    for token in _TOKEN.findall(text):
        parts = [token] if token.casefold() in words else _PARTS.split(token)
        kept += [part for part in parts if part.casefold() in words]
    return " ".join(kept)


def each_value(value: Any, change: Callable[[str], str]) -> list[str]:
    """The values of an element of text, changed. Empty ones are left out."""
    values = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    changed = [change(str(each)) for each in values if each not in (None, "")]
    return [each for each in changed if each]

"""The conditions of a search, as words of the command line (`--query`)."""

from __future__ import annotations

import calendar
import re
from urllib.parse import parse_qsl

from streamsrv.config import SettingsError
from streamsrv.query.attributes import QUERY_ATTRIBUTES

DATES = frozenset(row.keyword for row in QUERY_ATTRIBUTES if row.vr == "DA")
NOT_IN_QUERY = frozenset(("limit", "offset", "after", "orderby", "includefield", "accept", "charset"))


def query_pairs(text: str) -> list[tuple[str, str]]:
    """Raises SettingsError."""
    try:
        pairs = parse_qsl(text.removeprefix("?"), keep_blank_values=True, strict_parsing=bool(text))
    except ValueError as error:
        raise SettingsError(f"--query: {error}: it is like `StudyDate=2024-&Modality=CT`") from None
    for name, _ in pairs:
        if name.lower() in NOT_IN_QUERY:
            raise SettingsError(f"--query: {name} is not a condition")
    return [(name, days_of(value) if name in DATES else value) for name, value in pairs]


def days_of(text: str) -> str:
    """A range of dates in full (PS3.4 C.2.2.2.5): `2024-` begins on 20240101, `202402` is that month."""
    first, dash, last = text.partition("-")
    if not all(re.fullmatch(r"(\d{4}(\d\d)?)?|\d{8}", each) for each in (first, last)):
        return text
    last = last if dash else first
    if first == last and len(first) in (0, 8):
        return text
    # Day 31 of a shorter month would be no date.
    if len(last) == 4:
        last += "12"
    if len(last) == 6 and 1 <= int(last[4:]) <= 12:
        last += f"{calendar.monthrange(int(last[:4]), int(last[4:]))[1]}"
    return f"{first + '0101'[len(first) - 4 :] if first else ''}-{last}"

"""Normal forms, by which values of an attribute are compared (PS3.4 C.2.2.2, PS3.5 6.2).

Strategy: every value of a searchable attribute has one or more normal forms: short strings, which sort as the
values do if the VR allows ranges. The inverted lists of the index hold them, cut to NORMAL_BYTES. So a list
may hold false matches, and the stored row decides. The first form of the first value is the *sort value* of
the attribute. A value that breaks the rules of its VR has no normal form: it is stored and returned, but not
found.

    PN          each component group by itself: accents and case folded, blanks and empty ends trimmed
    DA          YYYYMMDD
    TM          HHMMSSffffff, missing parts zero
    DT          YYYYMMDDHHMMSSffffff, missing parts lowest, in UTC where an offset is known
    IS DS US... the shortest decimal text of the number
    others      the value, blanks around it trimmed
"""

from __future__ import annotations

import datetime
import functools
import math
import re
import unicodedata
from typing import Any

from streamsrv.dicom.instance import JsonElement

# LMDB holds keys of at most 511 bytes; five of them are the level and the tag (or the digest of a path).
NORMAL_BYTES = 300

NUMBER_VRS = frozenset(("IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"))
NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA, see PS3.5 6.2
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
_DATETIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:\.(\d{1,6}))?([+-]\d{4})?")


def fold(text: str) -> str:
    """Removes case and accents. Folding keeps prefixes: if a text begins with another one, so do their folded
    forms."""
    if text.isascii():
        return text.lower()
    # casefold comes first: it turns some marks into letters (U+0345). Decomposing may give upper case again.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", text).casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


def trim_name(group: str) -> str:
    """Removes blanks around components, and empty components at the end (PS3.5 6.2.1)."""
    return "^".join(component.strip() for component in group.split("^")).rstrip("^")


def name_groups(value: Any) -> list[str]:
    """Returns the component groups of a person name in DICOM JSON (PS3.18 F.2.2)."""
    if isinstance(value, str):
        return [group for group in value.split("=") if group]
    if not isinstance(value, dict):
        return []
    return [value[name] for name in NAME_GROUPS if isinstance(value.get(name), str) and value[name]]


def whole_name(value: Any) -> str:
    """Returns the forms of all component groups, with `=` between them."""
    return "=".join([trim_name(fold(group)) for group in name_groups(value)])


@functools.lru_cache(maxsize=1024)
def date_form(text: str) -> str | None:
    found = _DATE.fullmatch(text.strip())
    if not found:
        return None
    year, month, day = found.groups()
    return year + month + day if "01" <= month <= "12" and "01" <= day <= "31" else None


@functools.lru_cache(maxsize=1024)
def time_span(text: str) -> tuple[str, str] | None:
    """Returns the first and the last microsecond that the text may mean: "1030" is a whole minute."""
    found = _TIME.fullmatch(text.strip())
    if not found:
        return None
    hour, minute, second, fraction = found.groups()
    # 60 is a leap second.
    if hour > "23" or (minute or "00") > "59" or (second or "00") > "60":
        return None
    low = hour + (minute or "00") + (second or "00") + (fraction or "").ljust(6, "0")
    high = hour + (minute or "59") + (second or "59") + (fraction or "").ljust(6, "9")
    return low, high


def datetime_span(text: str) -> tuple[str, str] | None:
    """As time_span. A text with an offset from UTC is converted to UTC."""
    found = _DATETIME.fullmatch(text.strip())
    if not found:
        return None
    *parts, fraction, offset = found.groups()
    given = [part for part in parts if part is not None]
    low = "".join(given) + "00000101000000"[len("".join(given)) :] + (fraction or "").ljust(6, "0")
    ends = ("", "12", "31", "23", "59", "59")
    high = "".join(part or end for part, end in zip(parts, ends, strict=True)) + (fraction or "").ljust(
        6, "9"
    )
    if offset is None:
        return low, high
    earliest, latest = _to_utc(low, offset), _to_utc(high, offset)
    return (earliest, latest) if earliest and latest else None


def _to_utc(form: str, offset: str) -> str | None:
    # Day 31 stands for the end of any month.
    for day in (form[6:8], "30", "29", "28"):
        try:
            moment = datetime.datetime.strptime(form[:6] + day + form[8:], "%Y%m%d%H%M%S%f")
            shift = datetime.timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
            return (
                (moment - shift if offset[0] == "+" else moment + shift)
                .strftime("%Y%m%d%H%M%S%f")
                .rjust(20, "0")
            )
        except ValueError:
            continue
        except OverflowError:
            break  # before the year 1 or after 9999
    return None


def number_form(value: Any) -> str | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return str(int(number)) if number.is_integer() else repr(number)


def is_empty(element: JsonElement) -> bool:
    """Whether the value has zero length or is blank: it neither erases nor matches anything."""
    return not any(map(_has_content, element.get("Value", ())))


def _has_content(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(map(_has_content, value.values()))
    return value is not None


def normal_forms(vr: str, value: Any) -> list[str]:
    """`value` is one of DICOM JSON."""
    if vr == "PN":
        return [name for group in name_groups(value) if (name := trim_name(fold(group)))]
    if vr in NUMBER_VRS:
        form = number_form(value)
    elif not isinstance(value, str):
        form = None
    elif vr in ("DA", "TM", "DT"):
        form = _moment_form(vr, value)
    else:
        form = value.strip()
    return [form] if form else []


def sort_value(vr: str, element: JsonElement) -> str | None:
    """The text by which results are ordered, as the lists hold it; None without a valid first value."""
    forms = [form for value in element.get("Value", ())[:1] for form in normal_forms(vr, value)]
    if not forms:
        return None
    return forms[0] if len(forms[0]) * 4 <= NORMAL_BYTES else cut(forms[0]).decode("utf-8", "replace")


def _moment_form(vr: str, text: str) -> str | None:
    if vr == "DA":
        return date_form(text)
    span = time_span(text) if vr == "TM" else datetime_span(text)
    return span[0] if span else None


def cut(form: str) -> bytes:
    """Returns a normal form as the inverted lists hold it: whole characters, NORMAL_BYTES at most."""
    encoded, end = form.encode("utf-8", "surrogatepass"), NORMAL_BYTES
    if len(encoded) <= end:
        return encoded
    while encoded[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return encoded[:end]

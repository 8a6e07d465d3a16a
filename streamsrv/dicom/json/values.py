"""Values of a dataset in DICOM JSON (PS3.18 Annex F), for display and for decisions.

Rule: datasets are foreign. A value whose type does not match its VR counts as absent, and is no error.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any


def values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    element = dataset.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def item(dataset: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
    """The first item of a sequence; empty without."""
    found = values(dataset, tag)
    return found[0] if found and isinstance(found[0], dict) else {}


def number(dataset: Mapping[str, Any], tag: str) -> float | None:
    """The first value, if it is a number or the text of one."""
    found = values(dataset, tag)
    return as_number(found[0]) if found else None


def as_number(value: object) -> float | None:
    """None unless the value is a finite number, or the text of one."""
    if isinstance(value, (int, float)):
        return value
    try:
        found = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def whole(dataset: Mapping[str, Any], tag: str, default: int) -> int:
    found = number(dataset, tag)
    return default if found is None or found != found or abs(found) > 1 << 62 else int(found)


def text(dataset: Mapping[str, Any], tag: str, default: str = "") -> str:
    found = values(dataset, tag)
    return found[0].strip() if found and isinstance(found[0], str) else default


def inline_binary(dataset: Mapping[str, Any], tag: str) -> bytes:
    """The value of an element with InlineBinary; empty without."""
    element = dataset.get(tag)
    found = element.get("InlineBinary") if isinstance(element, dict) else None
    return base64.b64decode(found) if isinstance(found, str) else b""


# As readers see them


def spelled(value: object) -> tuple[str, str]:
    """The alphabetic (else the phonetic) group of a person name as family name, comma, the rest, and its
    ideographic group with blanks between (PS3.5 6.2.1.1). Empty without."""
    groups = value if isinstance(value, dict) else {}
    alphabetic = groups.get("Alphabetic") or groups.get("Phonetic")
    return _spelled(alphabetic, ", "), _spelled(groups.get("Ideographic"), " ")


def _spelled(group: object, comma: str) -> str:
    family, *others = [part.strip() for part in str(group or "").split("^")]
    return comma.join(filter(None, (family, " ".join(filter(None, others)))))


def person_name(dataset: Mapping[str, Any], tag: str) -> str:
    """The first value, in one group."""
    found = values(dataset, tag)
    alphabetic, ideographic = spelled(found[0]) if found else ("", "")
    return alphabetic or ideographic


def date(dataset: Mapping[str, Any], tag: str) -> str:
    """A DA as 2024-01-31; any other text as it is."""
    given = text(dataset, tag)
    return f"{given[:4]}-{given[4:6]}-{given[6:]}" if len(given) == 8 and given.isdigit() else given


def time(dataset: Mapping[str, Any], tag: str) -> str:
    """A TM as hours and minutes; empty for any other text."""
    given = text(dataset, tag)
    return f"{given[:2]}:{given[2:4]}" if len(given) >= 4 and given[:4].isdigit() else ""

"""Content items and heads of Structured Reports in words (PS3.3 C.18).

A value is a list of pieces: text, and links to instances or to other content items. A reader sees codes by
their meaning, numbers with their unit (UCUM), and dates as 2024-01-31.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.values import date, item, person_name, spelled, text, time, values
from streamsrv.reports.content import Code, ContentItem, InstancePlace, Report, is_uid

# The starts of the SOP classes of documents.
REPORT_CLASSES, ENCAPSULATED_CLASSES = "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104."
COORDINATES = 24  # numbers of a graphic that are shown
FRAMES = 16  # frames of a referenced image that are listed
VALUES = 24  # of other lists
_TIME = re.compile(r"(\d\d)(\d\d)(\d\d)?(?:\.\d+)?\Z")
_MOMENT = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d{4}(?:\d\d)?(?:\.\d+)?)?([+-]\d{4})?\Z")
RELATIONSHIPS = {
    "HAS OBS CONTEXT": "context",
    "HAS ACQ CONTEXT": "acquisition",
    "HAS CONCEPT MOD": "modifier",
    "HAS PROPERTIES": "property",
    "INFERRED FROM": "inferred from",
    "SELECTED FROM": "selected from",
}
TYPES = {
    "CONTAINER": "Section",
    "IMAGE": "Image",
    "WAVEFORM": "Waveform",
    "COMPOSITE": "Document",
    "SCOORD": "Region",
    "SCOORD3D": "Region",
    "TCOORD": "Time",
    "UIDREF": "UID",
}


class Link(NamedTuple):
    """`place` is where the instance is, and `frames` are its frame numbers. `path` leads to a content item
    of the same page instead."""

    shown: str
    sop_class: str = ""
    instance: str = ""
    place: InstancePlace | None = None
    frames: tuple[int, ...] = ()
    path: tuple[int, ...] = ()
    is_picture: bool = False


Pieces = list[str | Link]
Places = Mapping[str, InstancePlace]


def label_of(one: ContentItem) -> str:
    """The concept of an item, else the name of its type."""
    return one.concept.meaning or TYPES.get(one.value_type, "")


def relationship_of(one: ContentItem) -> str:
    """How an item belongs to the one above it; empty if it is contained."""
    return RELATIONSHIPS.get(one.relationship, "")


def value_of(one: ContentItem, places: Places) -> Pieces:
    """The value of an item; empty for a container."""
    given = one.attributes
    if "0040DB73" in given:
        path = tuple(number for number in values(given, "0040DB73") if isinstance(number, int))
        return [Link(f"item {'.'.join(map(str, path))}", path=path)]
    write = _VALUES.get(one.value_type)
    found = write(given, places) if write is not None else []
    if write is None and "00700023" in given:
        found = _region(given, places)
    if write is None and not found and one.value_type not in ("CONTAINER", ""):
        found = [f"({one.value_type})"]
    return [*found, "(too long to be shown)"] if one.cut else found


def _text(given: JsonDataset, places: Places) -> Pieces:
    return [text(given, "0040A160")]


def _code(given: JsonDataset, places: Places) -> Pieces:
    return [in_words(Code.of(item(given, "0040A168")))]


def in_words(code: Code) -> str:
    """The meaning, with value and scheme in brackets."""
    origin = ", ".join(filter(None, (code.value, code.scheme)))
    return f"{code.meaning} ({origin})" if origin and code.meaning != code.value else code.meaning


def _measurement(given: JsonDataset, places: Places) -> Pieces:
    measured = item(given, "0040A300")
    number = _list(measured, "0040A30A") or _list(measured, "0040A161")
    qualifier = Code.of(item(given, "0040A301")).meaning
    shown = " ".join(filter(None, (number, _unit(Code.of(item(measured, "004008EA"))))))
    return ["; ".join(filter(None, (shown, qualifier))) or "no value"]


def _unit(code: Code) -> str:
    if code.scheme != "UCUM":
        return code.meaning
    if code.value == "1":
        return ""
    return code.meaning if "{" in code.value else code.value


def _list(given: Mapping[str, Any], tag: str, most: int = VALUES) -> str:
    found = values(given, tag)
    shown = ", ".join(_number(one) for one in found[:most] if isinstance(one, (int, float, str)))
    return f"{shown} ... ({len(found)} values)" if len(found) > most else shown


def _number(value: float | str) -> str:
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value) if whole else value)


def _name(given: JsonDataset, places: Places) -> Pieces:
    return [full_name(given, "0040A123")]


def full_name(given: Mapping[str, Any], tag: str) -> str:
    """The names in an attribute, each with its ideographic group in brackets."""
    return "; ".join(
        f"{alphabetic} ({ideographic})" if alphabetic and ideographic else alphabetic or ideographic
        for alphabetic, ideographic in map(spelled, values(given, tag))
    )


def _date(given: JsonDataset, places: Places) -> Pieces:
    return [date(given, "0040A121")]


def _time(given: JsonDataset, places: Places) -> Pieces:
    return [clock(text(given, "0040A122"))]


def _moment(given: JsonDataset, places: Places) -> Pieces:
    return [moment(text(given, "0040A120"))]


def clock(given: str) -> str:
    """A TM as 10:15:30; any other text as it is."""
    found = _TIME.match(given)
    return ":".join(filter(None, found.groups())) if found else given


def moment(given: str) -> str:
    """A DT as 2024-01-31 10:15:30 +0100; any other text as it is."""
    found = _MOMENT.match(given)
    if found is None:
        return given
    year, month, day, hour, zone = found.groups()
    return " ".join(filter(None, ("-".join(filter(None, (year, month, day))), clock(hour or ""), zone)))


def _uid(given: JsonDataset, places: Places) -> Pieces:
    return [text(given, "0040A124")]


def _reference(given: JsonDataset, places: Places, *, is_picture: bool = False) -> Pieces:
    found = item(given, "00081199")
    instance, sop_class = text(found, "00081155"), text(found, "00081150")
    frames = tuple(number for number in values(found, "00081160") if isinstance(number, int) and number > 0)
    place = places.get(instance) if is_uid(instance) else None
    link = Link(instance, sop_class, instance, place, frames[:FRAMES], (), is_picture)
    pieces: Pieces = [link if place else instance]
    if frames:
        pieces.append(f", frames {_list(found, '00081160', FRAMES)}")
    if channels := _list(found, "0040A0B0"):
        pieces.append(f", channels {channels}")
    state = text(item(found, "00081199"), "00081155")
    return [*pieces, f", shown by {state}"] if state else pieces


def _image(given: JsonDataset, places: Places) -> Pieces:
    return _reference(given, places, is_picture=True)


def _region(given: JsonDataset, places: Places) -> Pieces:
    """SCOORD and SCOORD3D (C.18.6, C.18.9)."""
    numbers, frame = _list(given, "00700022", COORDINATES), text(given, "30060024")
    shown = f"{text(given, '00700023').lower()} {numbers}".strip()
    return [f"{shown}, frame of reference {frame}" if frame else shown]


def _temporal(given: JsonDataset, places: Places) -> Pieces:
    """TCOORD (C.18.7)."""
    moments = ", ".join(moment(str(one)) for one in values(given, "0040A13A")[:VALUES])
    offsets, samples = _list(given, "0040A138"), _list(given, "0040A132")
    parts = (
        text(given, "0040A130").lower(),
        moments,
        f"{offsets} s" if offsets else "",
        f"samples {samples}" if samples else "",
    )
    return [" ".join(filter(None, parts))]


_VALUES: dict[str, Callable[[JsonDataset, Places], Pieces]] = {
    "TEXT": _text,
    "CODE": _code,
    "NUM": _measurement,
    "PNAME": _name,
    "DATE": _date,
    "TIME": _time,
    "DATETIME": _moment,
    "UIDREF": _uid,
    "IMAGE": _image,
    "WAVEFORM": _reference,
    "COMPOSITE": _reference,
    "SCOORD": _region,
    "SCOORD3D": _region,
    "TCOORD": _temporal,
}


# The head of a document


def title_of(report: Report) -> str:
    return Code.of(item(report.head, "0040A043")).meaning or "Report"


def facts_of(report: Report) -> Iterator[tuple[str, str]]:
    """Labels and values of patient, study and document; only those that the document has."""
    head = report.head
    number = ", ".join(filter(None, (text(head, "00100020"), text(head, "00100021"))))
    study = (date(head, "00080020"), time(head, "00080030"), text(head, "00081030"))
    facts = (
        ("Patient", full_name(head, "00100010")),
        ("Patient ID", number),
        ("Born", date(head, "00100030")),
        ("Sex", text(head, "00100040")),
        ("Study", "  ".join(filter(None, study))),
        ("Accession number", text(head, "00080050")),
        ("Referring physician", person_name(head, "00080090")),
        ("Institution", text(head, "00080080")),
        ("Series", text(head, "0008103E")),
        ("Document of", " ".join(filter(None, (date(head, "00080023"), time(head, "00080033"))))),
        ("Completion", _completion(head)),
        ("Verification", _verification(head)),
    )
    yield from (fact for fact in facts if fact[1])
    for observer in values(head, "0040A073"):
        if isinstance(observer, dict):
            yield "Verified by", _observer(observer)
    for author in values(head, "0040A078"):
        if isinstance(author, dict) and (name := full_name(author, "0040A123")):
            yield "Author", name


def _completion(head: JsonDataset) -> str:
    described = (text(head, "0040A491").lower(), text(head, "0040A492"), text(head, "0040A496").lower())
    return ", ".join(filter(None, described))


def _verification(head: JsonDataset) -> str:
    flag = text(head, "0040A493")
    return {"VERIFIED": "verified", "UNVERIFIED": "not verified"}.get(flag, flag)


def _observer(given: Mapping[str, Any]) -> str:
    parts = (full_name(given, "0040A075"), text(given, "0040A027"), moment(text(given, "0040A030")))
    return ", ".join(filter(None, parts))

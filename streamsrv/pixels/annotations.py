"""Annotations that are written into a picture (PS3.18 8.3.5.1.1): the patient, and the technique.

Rules of this file
- The values come from the top level of the dataset. The window is the one that the picture is drawn with.
- An absent value has no label either.
- A name is written in its alphabetic group, because most readers cannot read other scripts.
"""

from __future__ import annotations

from framecodecs.rendering.annotations import Notes
from framecodecs.rendering.rendering import Rendering
from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest
from streamsrv.pixels.description import number, text, values, whole

KINDS = ("patient", "technique")


def annotations_of(given: str) -> tuple[str, ...]:
    """The kinds in the value of the parameter, a list with commas, in the order of KINDS. Raises
    BadRequest."""
    asked = {one.strip() for one in given.split(",")}
    if not asked or not asked.issubset(KINDS):
        raise BadRequest(f"the parameter annotation is a list of {' and '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


def notes_of(dataset: JsonDataset, kinds: tuple[str, ...], frame_index: int, rendering: Rendering) -> Notes:
    """The patient above, the technique below."""
    upper = patient(dataset) if "patient" in kinds else ()
    lower = technique(dataset, frame_index, rendering) if "technique" in kinds else ()
    return Notes(upper, lower)


def patient(dataset: JsonDataset) -> tuple[str, ...]:
    born, sex = date(dataset, "00100030"), text(dataset, "00100040")
    return _lines(
        name(dataset),
        _labelled("ID", text(dataset, "00100020")),
        _joined(_labelled("born", born), sex, text(dataset, "00101010")),
        _joined(_labelled("Study", date(dataset, "00080020")), time(dataset), text(dataset, "00081030")),
    )


def technique(dataset: JsonDataset, frame_index: int, rendering: Rendering) -> tuple[str, ...]:
    frames = whole(dataset, "00280008", 1)
    frame = f"frame {frame_index + 1} of {frames}" if frames > 1 else ""
    series, image = (_figure(dataset, tag) for tag in ("00200011", "00200013"))
    return _lines(
        _joined(text(dataset, "00080060"), text(dataset, "0008103E")),
        _joined(_labelled("Series", series), _labelled("image", image), frame),
        _joined(
            _measured(dataset, "00180060", "kV"),
            _measured(dataset, "00181151", "mA"),
            _labelled("slice", _measured(dataset, "00180050", "mm")),
            _labelled("at", _measured(dataset, "00201041", "mm")),
        ),
        shown_with(rendering),
    )


def shown_with(rendering: Rendering) -> str:
    if rendering.window is not None:
        return f"W {rendering.window.width:g}  C {rendering.window.center:g}"
    return "VOI LUT" if rendering.voi_lut is not None else ""


def name(dataset: JsonDataset) -> str:
    """Family name, comma, the rest (PS3.5 6.2.1.1)."""
    found = values(dataset, "00100010")
    groups = found[0] if found and isinstance(found[0], dict) else {}
    spelled = next((groups[key] for key in ("Alphabetic", "Phonetic", "Ideographic") if groups.get(key)), "")
    family, *others = [part.strip() for part in str(spelled).split("^")]
    return ", ".join(filter(None, (family, " ".join(filter(None, others)))))


def date(dataset: JsonDataset, tag: str) -> str:
    given = text(dataset, tag)
    return f"{given[:4]}-{given[4:6]}-{given[6:]}" if len(given) == 8 and given.isdigit() else given


def time(dataset: JsonDataset) -> str:
    given = text(dataset, "00080030")
    return f"{given[:2]}:{given[2:4]}" if len(given) >= 4 and given[:4].isdigit() else ""


def _figure(dataset: JsonDataset, tag: str) -> str:
    found = number(dataset, tag)
    return "" if found is None else f"{found:g}"


def _measured(dataset: JsonDataset, tag: str, unit: str) -> str:
    found = _figure(dataset, tag)
    return f"{found} {unit}" if found else ""


def _labelled(label: str, given: str) -> str:
    return f"{label} {given}" if given else ""


def _joined(*parts: str) -> str:
    return "  ".join(filter(None, parts))


def _lines(*lines: str) -> tuple[str, ...]:
    return tuple(filter(None, lines))

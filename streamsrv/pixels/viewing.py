"""How a frame is displayed: from its description and the query parameters to a PictureRequest (PS3.18 8.3.5,
PS3.4 N.2), with the annotations that are written into it (PS3.18 8.3.5.1.1).

Rules of this file
- A grey value passes modality LUT or rescale, then VOI LUT or window, then polarity. Each is at the top of
  the dataset, or in a functional group of the frame. The window of the query has priority over the dataset.
  A LUT of the dataset has priority over its windows, which only approximate it.
- A bad query parameter is a 400 that names it. A bad value of the dataset counts as absent.
- MONOCHROME1 and a Presentation LUT Shape of INVERSE mean the same (PS3.3 C.8.11.3): they never cancel out.
- Annotations have values of the top level of the dataset, and the window that the picture is drawn with. An
  absent value has no label either.
- A name is written in its alphabetic group, and in its ideographic one if there is a font for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from framecodecs.errors import RenderingError
from framecodecs.rendering.lettering import PART, Notes
from framecodecs.rendering.pictures import PictureRequest, Viewport
from framecodecs.rendering.rendering import Lut, Palette, Rendering, Window, palette_of
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.values import (
    as_number,
    date,
    inline_binary,
    item,
    number,
    spelled,
    text,
    time,
    values,
    whole,
)
from streamsrv.errors import BadRequest
from streamsrv.pixels.description import OPTICAL_PATHS, TRANSFORMATION_GROUP, VOI_GROUP, Description

BulkReader = Callable[[str], bytes]  # path of a bulk value -> its bytes
DEFAULT_QUALITY = 90
FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:[eE][+-]?[0-9]{1,2})?\Z")
_QUALITY = re.compile(r"0*([1-9][0-9]?|100)\Z")
WHOLE_NUMBER = re.compile(r"0*([1-9][0-9]{0,8})\Z")
FARTHEST = 65_535  # Rows and Columns have 16 bits
KINDS = ("patient", "technique")
_PALETTE = (
    ("00281101", "00281201", "00281221"),
    ("00281102", "00281202", "00281222"),
    ("00281103", "00281203", "00281223"),
)


@dataclass(frozen=True, slots=True)
class RenderingParameters:
    """The query parameters of a rendered resource (PS3.18 8.3.5.1), checked. Without `icc_profile` the
    picture has the profile of the instance. Without `quality` it may be sent as it is stored."""

    viewport: Viewport | None = None
    window: Window | None = None
    quality: int | None = None
    icc_profile: str = ""
    annotations: tuple[str, ...] = ()


def rendering_parameters(query: tuple[tuple[str, str], ...]) -> RenderingParameters:
    """Raises BadRequest, which names the parameter."""
    given = dict(query)
    return RenderingParameters(
        _viewport(given["viewport"]) if "viewport" in given else None,
        _window(given["window"]) if "window" in given else None,
        _quality(given["quality"]) if "quality" in given else None,
        _icc_profile(given["iccprofile"]) if "iccprofile" in given else "",
        annotations_of(given["annotation"]) if "annotation" in given else (),
    )


def _number(text: str, name: str) -> float:
    stripped = text.strip()
    if not NUMBER.match(stripped):
        raise BadRequest(f"the parameter {name} holds a value that is no number")
    return float(stripped)


def _pixels(text: str) -> int | None:
    if not text.strip():
        return None
    found = _number(text, "viewport")
    if abs(found) > FARTHEST:
        raise BadRequest(f"the parameter viewport goes to {FARTHEST} pixels")
    return round(found)


def _side(text: str, name: str) -> int:
    found = WHOLE_NUMBER.match(text)
    if found is None:
        raise BadRequest(f"the parameter viewport has the {name} {text[:20]!r}, not a whole number from 1")
    return int(found[1])


def _viewport(text: str) -> Viewport:
    """vw,vh or vw,vh,sx,sy,sw,sh; the last four may be empty (8.3.5.1.3)."""
    parts = text.split(",")
    if len(parts) not in (2, 6):
        raise BadRequest("the parameter viewport is width,height or width,height,left,top,width,height")
    width, height = _side(parts[0], "width"), _side(parts[1], "height")
    region = [_pixels(part) for part in parts[2:]]
    try:
        if all(part is None for part in region):
            return Viewport(width, height)
        left, top, wide, high = region
        # An empty size reaches to the edge: `fitted` cuts the rest off.
        sizes = (FARTHEST if wide is None else wide, FARTHEST if high is None else high)
        return Viewport(width, height, (left or 0, top or 0, *sizes))
    except RenderingError as error:
        raise BadRequest(f"the parameter viewport cannot be drawn: {error.detail}") from error


def _window(text: str) -> Window:
    """center,width,function: all three, and the function in lower case (8.3.5.1.4)."""
    parts = text.split(",")
    if len(parts) != 3:
        raise BadRequest("the parameter window is center,width,function, and all three are needed")
    name = parts[2]
    if name not in FUNCTIONS:
        raise BadRequest(
            f"the parameter window has the function {name[:20]!r}, not one of {', '.join(FUNCTIONS)}"
        )
    try:
        return Window(_number(parts[0], "window"), _number(parts[1], "window"), FUNCTIONS[name])
    except RenderingError as error:
        raise BadRequest(f"the parameter window cannot be drawn: {error.detail}") from error


def _quality(text: str) -> int:
    found = _QUALITY.match(text.strip())
    if found is None:
        raise BadRequest("the parameter quality is a whole number from 1 to 100")
    return int(found[1])


def _icc_profile(text: str) -> str:
    if text.lower() not in ("no", "yes", "srgb"):
        raise BadRequest("the parameter iccprofile is no, yes or srgb here")
    return text.lower()


def picture_request(
    description: Description,
    frame_index: int,
    parameters: RenderingParameters,
    media_type: str,
    bulk: BulkReader,
    fonts: tuple[str, ...] = (),
) -> PictureRequest:
    """`fonts` are those that the pixel processes have loaded."""
    dataset = description.dataset
    profile = None if parameters.icc_profile == "no" else icc_profile_of(dataset, bulk)
    # A client that insists on a profile gets sRGB where there is none: viewers assume it.
    assumed = parameters.icc_profile == "yes" and profile is None
    rendering = rendering_of(description, frame_index, parameters.window, bulk)
    return PictureRequest(
        rendering=rendering,
        viewport=parameters.viewport,
        media_type=media_type,
        quality=DEFAULT_QUALITY if parameters.quality is None else parameters.quality,
        icc_profile=profile,
        convert_to_srgb=parameters.icc_profile == "srgb" or assumed,
        milliseconds=milliseconds_of(dataset),
        notes=notes_of(dataset, parameters.annotations, frame_index, rendering, fonts),
    )


def rendering_of(
    description: Description, frame_index: int, window: Window | None, bulk: BulkReader
) -> Rendering:
    dataset = description.dataset
    transformation = description.in_group(frame_index, TRANSFORMATION_GROUP, ("00281052", "00281053"))
    voi = description.in_group(frame_index, VOI_GROUP, ("00281050", "00281051"))
    signed = whole(dataset, "00280103", 0) == 1
    voi_lut = None if window else _lut(item(dataset, "00283010"), bulk, "00283010/0/", signed)
    slope, intercept = number(transformation, "00281053"), number(transformation, "00281052")
    return Rendering(
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        modality_lut=_lut(item(dataset, "00283000"), bulk, "00283000/0/", signed),
        window=window or (None if voi_lut else _stored_window(voi)),
        voi_lut=voi_lut,
        palette=_palette(dataset, bulk),
        padding=_padding(dataset),
        inverse=text(dataset, "20500020") == "INVERSE" and text(dataset, "00280004") != "MONOCHROME1",
    )


def _stored_window(dataset: Mapping[str, Any]) -> Window | None:
    """The first window of the dataset. A bad one counts as absent."""
    center, width = number(dataset, "00281050"), number(dataset, "00281051")
    if center is None or width is None:
        return None
    function = text(dataset, "00281056") or "LINEAR"
    try:
        return Window(center, width, function if function in FUNCTIONS.values() else "LINEAR")
    except RenderingError:
        return None


def _numbers(dataset: Mapping[str, Any], tag: str) -> list[int]:
    found = [as_number(value) for value in values(dataset, tag)]
    return [int(value) for value in found if value is not None and abs(value) <= FARTHEST]


def _lut(given: Mapping[str, Any], bulk: BulkReader, path: str, signed: bool) -> Lut | None:
    """A LUT item: descriptor (entries, first value, bits) and data (PS3.3 C.11.1, C.11.2). For signed pixels
    a first value of VR US means SS."""
    descriptor = _numbers(given, "00283002")
    if len(descriptor) != 3:
        return None
    entries, first, bits = descriptor[0] or 65_536, descriptor[1], descriptor[2]
    first -= 65_536 * (signed and first > 32_767)
    words: Any = [word & 0xFFFF for word in _numbers(given, "00283006")]
    if not words:
        words = _entries(_binary(given, "00283006", bulk, path), entries, bits)
    try:
        return Lut.of(first, words, bits) if len(words) else None
    except RenderingError:
        return None


def _entries(data: bytes, count: int, bits: int) -> Any:
    """Reads words, or bytes if the data are too short for words. Empty if they are too short."""
    if len(data) >= 2 * count:
        return np.frombuffer(data, "<u2", count)
    return np.frombuffer(data, np.uint8, count) if len(data) >= count and bits <= 8 else ()


def _palette(dataset: JsonDataset, bulk: BulkReader) -> Palette | None:
    descriptor = _numbers(dataset, "00281101")
    if len(descriptor) != 3:
        return None
    segmented = "00281221" in dataset
    tables = [_binary(dataset, row[2 if segmented else 1], bulk, "") for row in _PALETTE]
    return palette_of(descriptor, tables, segmented=segmented)


def _padding(dataset: JsonDataset) -> tuple[int, int] | None:
    """Pixel Padding Value and its range's other end (PS3.3 C.7.5.1.1.2)."""
    if number(dataset, "00280120") is None:
        return None
    one = whole(dataset, "00280120", 0)
    other = whole(dataset, "00280121", one)
    return min(one, other), max(one, other)


def icc_profile_of(dataset: JsonDataset, bulk: BulkReader) -> bytes | None:
    """The profile of the image, or of the first optical path of a whole slide image."""
    holder, path = icc_profile_place(dataset)
    return _binary(holder, "00282000", bulk, path) or None


def icc_profile_place(dataset: JsonDataset) -> tuple[Mapping[str, Any], str]:
    """The dataset or item that has the profile, and the prefix of its bulk path."""
    own = "00282000" in dataset
    return (dataset, "") if own else (item(dataset, OPTICAL_PATHS), f"{OPTICAL_PATHS}/0/")


def milliseconds_of(dataset: JsonDataset) -> float:
    """Time between two frames: by Frame Time, else by Recommended Display or Cine Rate, else 25 a second."""
    frame_time = number(dataset, "00181063")
    rate = number(dataset, "00082144") or number(dataset, "00180040") or 25
    milliseconds = frame_time if frame_time and frame_time > 0 else 1000 / max(rate, 0.1)
    return min(milliseconds, 60_000.0)


def _binary(dataset: Mapping[str, Any], tag: str, bulk: BulkReader, path: str) -> bytes:
    """The bytes of an OB, OW or UN value, inline or bulk; empty if there is none."""
    if "BulkDataURI" in dataset.get(tag, {}):
        return bulk(path + tag)
    return inline_binary(dataset, tag)


def annotations_of(given: str) -> tuple[str, ...]:
    """The kinds in the value of the parameter, a list with commas, in the order of KINDS. Raises
    BadRequest."""
    asked = {one.strip() for one in given.split(",")}
    if not asked or not asked.issubset(KINDS):
        raise BadRequest(f"the parameter annotation is a list of {' and '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


def notes_of(
    dataset: JsonDataset,
    kinds: tuple[str, ...],
    frame_index: int,
    rendering: Rendering,
    fonts: tuple[str, ...],
) -> Notes:
    """The patient above, the technique below."""
    upper = patient(dataset) if "patient" in kinds else ()
    lower = technique(dataset, frame_index, rendering) if "technique" in kinds else ()
    return Notes(upper, lower, fonts) if kinds else Notes()


def patient(dataset: JsonDataset) -> tuple[str, ...]:
    born, sex = date(dataset, "00100030"), text(dataset, "00100040")
    return _lines(
        patient_name(dataset),
        _labelled("ID", text(dataset, "00100020")),
        _joined(_labelled("born", born), sex, text(dataset, "00101010")),
        _joined(
            _labelled("Study", date(dataset, "00080020")),
            time(dataset, "00080030"),
            text(dataset, "00081030"),
        ),
    )


def patient_name(dataset: JsonDataset) -> str:
    """The alphabetic group, and the ideographic one if a font has its letters."""
    found = values(dataset, "00100010")
    return PART.join(filter(None, spelled(found[0]))) if found else ""


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

"""How an instance wants to be shown, and how a client wants to see it: from DICOM JSON and query parameters
to a PictureRequest (PS3.18 8.3.5, PS3.4 N.2).

The way of a grey value is modality LUT or rescale, VOI LUT or window, polarity; each may stand at the top of
the dataset or in a functional group of the frame. A query's window wins over the dataset's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from framecodecs.errors import RenderingError
from framecodecs.luts import Lut, Palette, Window, palette_of
from framecodecs.pictures import PictureRequest, Viewport
from framecodecs.rendering import Rendering
from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest
from streamsrv.retrieve.pixels import first, in_group, inline_binary, values

BulkReader = Callable[[str], bytes]  # path of a bulk value -> its bytes
DEFAULT_QUALITY = 90
FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?\Z")
_PALETTE = (
    ("00281101", "00281201", "00281221"),
    ("00281102", "00281202", "00281222"),
    ("00281103", "00281203", "00281223"),
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The query parameters of a rendered resource (PS3.18 8.3.5.1), checked."""

    viewport: Viewport | None = None
    window: Window | None = None
    quality: int = DEFAULT_QUALITY
    icc_profile: str = "yes"


def wishes_of(query: tuple[tuple[str, str], ...]) -> Wishes:
    """Raises BadRequest naming the parameter."""
    given = dict(query)
    try:
        return Wishes(
            _viewport(given["viewport"]) if "viewport" in given else None,
            _window(given["window"]) if "window" in given else None,
            _quality(given.get("quality", str(DEFAULT_QUALITY))),
            _icc_profile(given.get("iccprofile", "yes")),
        )
    except RenderingError as error:
        raise BadRequest(f"the query cannot be drawn: {error.detail}") from error


def _number(text: str, name: str) -> float:
    if not _NUMBER.match(text.strip()):
        raise BadRequest(f"the parameter {name} holds something that is no number")
    return float(text)


def _viewport(text: str) -> Viewport:
    """vw,vh or vw,vh,sx,sy,sw,sh; the last four may be empty (8.3.5.1.3)."""
    numbers = [None if not part.strip() else round(_number(part, "viewport")) for part in text.split(",")]
    width, height, *region = numbers
    if len(numbers) not in (2, 6) or width is None or height is None:
        raise BadRequest("the parameter viewport is width,height or width,height,left,top,width,height")
    if not any(part is not None for part in region):
        return Viewport(width, height)
    left, top, wide, high = region
    # An empty size reaches to the edge: `fitted` cuts what lies beyond.
    return Viewport(width, height, (left or 0, top or 0, wide or 65_535, high or 65_535))


def _window(text: str) -> Window:
    """center,width,function (8.3.5.1.4); the function may be left out."""
    parts = text.split(",")
    if len(parts) not in (2, 3):
        raise BadRequest("the parameter window is center,width,function")
    name = parts[2].strip().lower() if len(parts) == 3 else "linear"
    if name not in FUNCTIONS:
        raise BadRequest(f"the parameter window knows the functions {', '.join(FUNCTIONS)}")
    return Window(_number(parts[0], "window"), _number(parts[1], "window"), FUNCTIONS[name])


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise BadRequest("the parameter quality is a whole number from 1 to 100")
    return int(text)


def _icc_profile(text: str) -> str:
    if text.lower() not in ("no", "yes", "srgb"):
        raise BadRequest("the parameter iccprofile is no, yes or srgb here")
    return text.lower()


def picture_request(
    dataset: JsonDataset, frame_index: int, wishes: Wishes, media_type: str, bulk: BulkReader
) -> PictureRequest:
    profile = icc_profile_of(dataset, bulk) if wishes.icc_profile != "no" else None
    return PictureRequest(
        rendering=rendering_of(dataset, frame_index, wishes.window, bulk),
        viewport=wishes.viewport,
        media_type=media_type,
        quality=wishes.quality,
        icc_profile=profile,
        convert_to_srgb=wishes.icc_profile == "srgb",
        milliseconds=milliseconds_of(dataset),
    )


def rendering_of(
    dataset: JsonDataset, frame_index: int, window: Window | None, bulk: BulkReader
) -> Rendering:
    transformation = in_group(dataset, frame_index, "00289145", ("00281052", "00281053"))
    voi = in_group(dataset, frame_index, "00289132", ("00281050", "00281051"))
    voi_lut = _lut(first(dataset, "00283010"), bulk, "00283010/0/") if window is None else None
    return Rendering(
        slope=float(first(transformation, "00281053", 1.0)),
        intercept=float(first(transformation, "00281052", 0.0)),
        modality_lut=_lut(first(dataset, "00283000"), bulk, "00283000/0/"),
        window=window or _stored_window(voi),
        voi_lut=None if _stored_window(voi) else voi_lut,
        palette=_palette(dataset, bulk),
        padding=_padding(dataset),
        inverse=str(first(dataset, "20500020", "")).strip() == "INVERSE",
    )


def _stored_window(dataset: Mapping[str, Any]) -> Window | None:
    """The first of the dataset's windows. One without sense is as good as none."""
    function = str(first(dataset, "00281056", "LINEAR")).strip()
    try:
        return Window(float(first(dataset, "00281050")), float(first(dataset, "00281051")), function)
    except (TypeError, ValueError, RenderingError):
        return None


def _lut(item: Mapping[str, Any] | None, bulk: BulkReader, path: str) -> Lut | None:
    """A LUT item: descriptor (entries, first value, bits) and data (PS3.3 C.11.1, C.11.2)."""
    descriptor = values(item or {}, "00283002")
    if not item or len(descriptor) != 3:
        return None
    words = values(item, "00283006") or np.frombuffer(_binary(item, "00283006", bulk, path), "<u2").tolist()
    return (
        Lut.of(int(descriptor[1]), [int(word) & 0xFFFF for word in words], int(descriptor[2]))
        if words
        else None
    )


def _palette(dataset: JsonDataset, bulk: BulkReader) -> Palette | None:
    descriptor = values(dataset, "00281101")
    if len(descriptor) != 3:
        return None
    segmented = "00281221" in dataset
    tables = [_binary(dataset, row[2 if segmented else 1], bulk, "") for row in _PALETTE]
    return palette_of([int(number) for number in descriptor], tables, segmented=segmented)


def _padding(dataset: JsonDataset) -> tuple[int, int] | None:
    """Pixel Padding Value and its range's other end (PS3.3 C.7.5.1.1.2)."""
    one = first(dataset, "00280120")
    if one is None:
        return None
    other = first(dataset, "00280121", one)
    return min(int(one), int(other)), max(int(one), int(other))


def icc_profile_of(dataset: JsonDataset, bulk: BulkReader) -> bytes | None:
    """Of the image, or of the first optical path of a whole slide image."""
    for holder, path in ((dataset, ""), (first(dataset, "00480105", {}), "00480105/0/")):
        if "00282000" in holder:
            return _binary(holder, "00282000", bulk, path) or None
    return None


def milliseconds_of(dataset: JsonDataset) -> float:
    """Between two frames of a loop: Frame Time, else Recommended Display or Cine Rate, else 25 a second."""
    if first(dataset, "00181063"):
        return float(first(dataset, "00181063"))
    rate = first(dataset, "00082144") or first(dataset, "00180040") or 25
    return 1000 / max(float(rate), 0.1)


def _binary(dataset: Mapping[str, Any], tag: str, bulk: BulkReader, path: str) -> bytes:
    """The bytes of an OB, OW or UN value, inline or bulk; empty if there is none."""
    if "BulkDataURI" in dataset.get(tag, {}):
        return bulk(path + tag)
    return inline_binary(dataset, tag)

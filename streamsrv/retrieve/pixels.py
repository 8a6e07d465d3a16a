"""What a SOP instance says about its pixels: the Image Pixel Module, and how it wants to be shown.

It is read from the stored DICOM JSON, so a dataset is never parsed twice. Of a long enhanced multi-frame only
what stands before the Per-Frame Functional Groups is read: a million items would be parsed for the window of
one frame.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import NotAcceptable
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store

# Text up to this long is read whole, per-frame groups too: 30 ms.
WHOLE = 4 << 20
PER_FRAME_GROUPS = "52009230"
_CUT = b',"52009230":'


def metadata_of(store: Store, row: InstanceRow) -> JsonDataset:
    """The dataset as DICOM JSON, its URL slots empty; without Per-Frame Functional Groups if it is long."""
    if row.metadata_length <= WHOLE:
        text = b"".join(store.metadata([row]))
    else:
        text = until_per_frame(store.metadata([row]))
    loaded: JsonDataset = orjson.loads(text.replace(b"\0", b""))
    return loaded


def until_per_frame(chunks: Iterator[bytes]) -> bytes:
    text = b""
    for chunk in chunks:
        text += chunk
        found = text.find(_CUT)
        if found >= 0:
            return text[:found] + b"}"
    return text


def values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    return list(dataset.get(tag, {}).get("Value", ()))


def first(dataset: Mapping[str, Any], tag: str, default: Any = None) -> Any:
    found = values(dataset, tag)
    return default if not found or found[0] is None else found[0]


def inline_binary(dataset: Mapping[str, Any], tag: str) -> bytes:
    """The value of an element with InlineBinary; empty without."""
    return base64.b64decode(dataset.get(tag, {}).get("InlineBinary", ""))


def frame_info(dataset: JsonDataset) -> FrameInfo:
    """The attributes that frames cannot be read without. Raises NotAcceptable if they make no sense."""
    allocated = int(first(dataset, "00280100", 8))
    stored = int(first(dataset, "00280101", allocated))
    samples = int(first(dataset, "00280002", 1))
    try:
        return FrameInfo(
            rows=int(first(dataset, "00280010", 0)),
            columns=int(first(dataset, "00280011", 0)),
            samples_per_pixel=samples,
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=int(first(dataset, "00280102", stored - 1)),
            pixel_representation=int(first(dataset, "00280103", 0)),
            planar_configuration=int(first(dataset, "00280006", 0)),
            photometric_interpretation=str(
                first(dataset, "00280004", "MONOCHROME2" if samples == 1 else "RGB")
            ).strip(),
            floating="7FE00008" in dataset or "7FE00009" in dataset,
        )
    except FrameCodecError as error:
        raise NotAcceptable(f"the instance's pixels cannot be read: {error.detail}", ()) from error


def functional_group(dataset: JsonDataset, frame_index: int, tag: str) -> JsonDataset | None:
    """The first item of a functional group macro: the frame's own, else the shared one (PS3.3 C.7.6.16.1)."""
    per_frame = values(dataset, PER_FRAME_GROUPS)
    own = per_frame[frame_index] if frame_index < len(per_frame) else {}
    shared = first(dataset, "52009229", {})
    for groups in (own, shared):
        item = first(groups or {}, tag)
        if item:
            return dict(item)
    return None


def in_group(dataset: JsonDataset, frame_index: int, group: str, tags: Sequence[str]) -> Mapping[str, Any]:
    """Where the attributes `tags` of a frame stand: in its functional group, else at the top."""
    item = functional_group(dataset, frame_index, group)
    return item if item is not None and any(tag in item for tag in tags) else dataset

"""Instances made up for the tests of the index: whatever is not said is the same for all."""

from __future__ import annotations

import hashlib
from typing import Any

import zstandard

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset
from streamsrv.store.rows import METADATA_CHUNK, InstanceKey, InstanceRow, Location, NewInstance

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def name(text: str) -> dict[str, Any]:
    return element("PN", {"Alphabetic": text})


ATTRIBUTES: JsonDataset = {
    "00080020": element("DA", "20240131"),
    "00080030": element("TM", "101500"),
    "00080050": element("SH", "A1"),
    "00080060": element("CS", "CT"),
    "00080090": name("Referrer^Rita"),
    "00100010": name("Doe^Jane"),
    "00100020": element("LO", "P1"),
    "0008103E": element("LO", "thorax"),
    "00200011": element("IS", 3),
    "00200013": element("IS", 1),
    "00280010": element("US", 512),
    "00280011": element("US", 512),
    "00280100": element("US", 16),
}


def record_id(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def row(key: InstanceKey, number: int = 1, *, text: bytes = b"{}", **facts: Any) -> InstanceRow:
    values: dict[str, Any] = {
        "location": Location(1, number * 1000, 900),
        "record_id": record_id(number),
        "stored_at": 1_700_000_000_000_000 + number,
        "digest": record_id(-number) + b"crc3",
        "sop_class_uid": CT,
        "transfer_syntax": EXPLICIT,
        "dataset_offset": 300,
        "deflated": False,
        "pixel_offset": 400,
        "pixel_length": 500,
        "rows": 512,
        "columns": 512,
        "pixel_facts": 12 | 2 << 9,
        "samples_per_pixel": 1,
        "bits_allocated": 16,
        "frame_kind": FrameKind.NATIVE,
        "number_of_frames": 1,
        "frame_base": 400,
        "frame_stride": 500,
        "metadata_length": len(text),
        "metadata_slots": text.count(b"\0"),
    }
    return InstanceRow(key, **(values | facts))


def new_instance(
    key: InstanceKey | tuple[str, str, str],
    number: int = 1,
    attributes: JsonDataset | None = None,
    *,
    text: bytes = b"{}",
    table: bytes = b"",
    bulk: list[BulkValue] | None = None,
    **facts: Any,
) -> NewInstance:
    """`number` makes record id, location and time: a higher one was stored later. Attributes given are laid
    over ATTRIBUTES."""
    pieces = [text[at : at + METADATA_CHUNK] for at in range(0, len(text), METADATA_CHUNK)]
    frames = [zstandard.compress(piece) for piece in pieces]
    made = row(InstanceKey(*key), number, text=text, **facts)
    return NewInstance(made, frames, table, bulk or [], ATTRIBUTES | (attributes or {}))

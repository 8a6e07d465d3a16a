"""Instances as a CT makes them, for the measures of the index: 100 elements, about 5 kB of DICOM JSON."""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import orjson

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset, JsonElement
from streamsrv.query.attributes import KEEP
from streamsrv.store import InstanceKey, InstanceRow, Location, NewInstance

ROOT = "1.2.826.0.1.3680043.8.498"
CT = "1.2.840.10008.5.1.4.1.1.2"
SERIES_SIZE = 400
SYLLABLES = (
    "AL",
    "BER",
    "DO",
    "EL",
    "FRI",
    "GUS",
    "HAN",
    "JO",
    "KA",
    "LU",
    "MA",
    "NO",
    "PE",
    "RI",
    "SA",
    "TO",
    "VO",
    "WI",
    "ZE",
)

# Tags and VRs of what a CT says besides what is searched: 80 elements of the usual lengths.
_FILLER = [
    (f"0018{number:04X}", ("DS", "IS", "CS", "LO", "SH")[number % 5]) for number in range(0x1100, 0x1150)
]
_NUMBERS = ("DS", "IS")


def dataset(study: int, series: int, instance: int, seed: int = 1) -> JsonDataset:
    own = random.Random(instance)
    values: JsonDataset = _of_study(study, seed) | {
        "00080018": _element("UI", f"{ROOT}.{study}.{series}.{instance}"),
        "00080060": _element("CS", ("CT", "MR")[series % 2]),
        "0020000E": _element("UI", f"{ROOT}.{study}.{series}"),
        "00200011": _element("IS", series),
        "00200013": _element("IS", instance),
        "00200032": _element("DS", [-250.5, -249.25, instance * 1.5]),
    }
    values |= {tag: _element(vr, own.randrange(1000)) for tag, vr in _FILLER if vr in _NUMBERS}
    return dict(sorted(values.items()))


@functools.lru_cache(maxsize=16)
def _of_study(study: int, seed: int) -> JsonDataset:
    """What all instances of a study have in common."""
    numbers = random.Random(seed + study)
    name = "".join(numbers.choices(SYLLABLES, k=3)) + "^" + "".join(numbers.choices(SYLLABLES, k=2))
    date = f"20{numbers.randrange(26):02d}{numbers.randrange(1, 13):02d}{numbers.randrange(1, 29):02d}"
    values: dict[str, tuple[str, Any]] = {
        "00080016": ("UI", CT),
        "00080020": ("DA", date),
        "00080021": ("DA", date),
        "00080030": ("TM", "101530"),
        "00080031": ("TM", "101530"),
        "00080050": ("SH", f"A{study:07d}"),
        "00080070": ("LO", "Manufacturer of scanners"),
        "00080090": ("PN", {"Alphabetic": "Referrer^Rita"}),
        "00081030": ("LO", "Thorax and abdomen with contrast"),
        "0008103E": ("LO", "axial 1.5 mm soft tissue"),
        "00100010": ("PN", {"Alphabetic": name}),
        "00100020": ("LO", f"P{study // 2:06d}"),
        "00100030": ("DA", "19700101"),
        "00100040": ("CS", "F"),
        "0020000D": ("UI", f"{ROOT}.{study}"),
        "00200010": ("SH", f"S{study}"),
        "00280010": ("US", 512),
        "00280011": ("US", 512),
        "00280100": ("US", 16),
        "00400244": ("DA", date),
        "00400245": ("TM", "101000"),
        "00400275": ("SQ", _request(study)),
    }
    values |= {tag: (vr, f"VALUE {numbers.randrange(10**6)}") for tag, vr in _FILLER if vr not in _NUMBERS}
    return {tag: _element(vr, value) for tag, (vr, value) in values.items()}


def _element(vr: str, value: Any) -> JsonElement:
    return {"vr": vr, "Value": value if isinstance(value, list) else [value]}


def _request(study: int) -> JsonDataset:
    return {
        "00400009": {"vr": "SH", "Value": [f"SPS{study}"]},
        "00401001": {"vr": "SH", "Value": [f"RP{study}"]},
    }


def text_of(found: JsonDataset) -> bytes:
    bulk = b',"7FE00010":{"vr":"OW","BulkDataURI":"\0/bulkdata/7FE00010"}}'
    return orjson.dumps(found)[:-1] + bulk


def new_instance(study: int, series: int, instance: int, number: int) -> NewInstance:
    found = dataset(study, series, instance)
    text = text_of(found)
    key = InstanceKey(f"{ROOT}.{study}", f"{ROOT}.{study}.{series}", f"{ROOT}.{study}.{series}.{instance}")
    row = InstanceRow(
        key,
        Location(1, number * 526_000 + 96, 525_000),
        os.urandom(16),
        number,
        os.urandom(16),
        CT,
        "1.2.840.10008.1.2.1",
        350,
        False,
        1_500,
        524_288,
        512,
        512,
        0,
        1,
        16,
        FrameKind.NATIVE,
        1,
        1_500,
        524_288,
        len(text),
        1,
    )
    kept = {tag: element for tag, element in found.items() if tag in KEEP}
    return NewInstance(row, [], b"", [BulkValue("7FE00010", "OW", 1_500, 524_288)], kept, text)


def batches(instances: int) -> Iterator[list[NewInstance]]:
    """Series of 400, and studies of two series of 20 for searches to find."""
    number = itertools.count(1)
    for study in range(instances // 40):
        size = SERIES_SIZE // 2 if study % 50 == 0 else 10
        yield [new_instance(study, series, at, next(number)) for series in (1, 2) for at in range(size * 2)]

"""The description of an instance for decoding and rendering: the Image Pixel Module, and how it is displayed.

Strategy: it is read from the stored DICOM JSON, so a dataset is parsed once. Only the attributes in KEPT are
read: the description of a CT is a tenth of its dataset. The latest descriptions stay in memory. For each
frame two of the Per-Frame Functional Groups are kept as text, and equal texts are shared.

Rule: datasets are foreign. A value whose type does not match its VR counts as absent, and is no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import orjson

from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.instance import JsonDataset, unpacked
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.dicom.json.values import item, text, values, whole
from streamsrv.errors import NotAcceptable
from streamsrv.plans.field_filter import Tree, lean_text
from streamsrv.store import InstanceRow, Store

# Text up to this long is parsed whole (30 ms); a longer one is cut down first, and read item by item.
WHOLE = 4 << 20
# Text up to this long is parsed in the event loop, in 0.3 ms.
QUICK = 32 << 10
KEPT_BYTES = 16 << 20  # of descriptions; that of a CT takes about 10 kB
SHARED_GROUPS, PER_FRAME_GROUPS = "52009229", "52009230"
VOI_GROUP, TRANSFORMATION_GROUP = "00289132", "00289145"
GROUPS = (VOI_GROUP, TRANSFORMATION_GROUP)
OPTICAL_PATHS, ICON_IMAGES = "00480105", "00880200"
# Image Pixel Module, and tags of floating-point pixels
_PIXELS = "00280002 00280004 00280006 00280010 00280011 00280100 00280101 00280102 00280103 7FE00008 7FE00009"
_GREY = "00281050 00281051 00281052 00281053 00281056 00283000 00283010 20500020 00280120 00280121"
_COLOUR = "00281101 00281102 00281103 00281201 00281202 00281203 00281221 00281222 00281223 00282000"
# Optical paths, icon, times of a loop, lossy compression, functional groups, kind of image, document
_OTHER = "00480105 00880200 00181063 00082144 00180040 00282110 00282112 00282114 52009229 52009230 00080008"
_DOCUMENT = "00420011 00420015"
# Annotations: patient, study, series, technique
_NOTES = "00100010 00100020 00100030 00100040 00101010 00080020 00080030 00081030 00080060 0008103E 00200011"
_MORE_NOTES = "00200013 00280008 00180060 00181151 00180050 00201041"
KEPT = frozenset(" ".join((_PIXELS, _GREY, _COLOUR, _OTHER, _DOCUMENT, _NOTES, _MORE_NOTES)).split())
_BY_GROUPS = {tag: {key: Tree() for key in GROUPS} for tag in (SHARED_GROUPS, PER_FRAME_GROUPS)}
_TREE: Tree = {**{tag: Tree() for tag in KEPT}, **_BY_GROUPS}


@dataclass(frozen=True)
class Description:
    """`dataset` has the attributes in KEPT except the Per-Frame Functional Groups. `frames` has the groups in
    GROUPS of each frame, as a JSON object. `size` is an estimate in bytes of memory."""

    dataset: JsonDataset
    frames: Sequence[bytes]
    size: int

    @cached_property
    def has_bulk_values(self) -> bool:
        """Whether a table or profile for rendering is stored outside of the metadata."""
        given = {tag: element for tag, element in self.dataset.items() if not tag.startswith("7FE0")}
        return b'"BulkDataURI"' in orjson.dumps(given)

    @cached_property
    def info(self) -> FrameInfo:
        """Raises NotAcceptable."""
        return frame_info(self.dataset)

    def in_group(self, frame_index: int, group: str, tags: Sequence[str]) -> Mapping[str, Any]:
        """Where the attributes `tags` of a frame stand: in its own functional group, in the shared one, or at
        the top (PS3.3 C.7.6.16.1)."""
        own = orjson.loads(self.frames[frame_index]) if frame_index < len(self.frames) else {}
        for groups in (own, item(self.dataset, SHARED_GROUPS)):
            found = item(groups, group)
            if any(tag in found for tag in tags):
                return found
        return self.dataset


class Descriptions:
    """The latest descriptions, kept in memory. Thread-safe."""

    def __init__(self) -> None:
        self._kept: SizedCache[bytes, Description] = SizedCache(KEPT_BYTES, lambda one: one.size)

    def of(self, store: Store, row: InstanceRow) -> Description:
        known = self._kept.get(row.record_id)
        if known is None:
            known = description_of(store.metadata([row]), row.metadata_length)
            self._kept.put(row.record_id, known)
        return known

    def at_hand(self, store: Store, row: InstanceRow) -> Description | None:
        """For the event loop: None if the text is long and is not kept."""
        if row.metadata_length <= QUICK:
            return self.of(store, row)
        return self._kept.get(row.record_id)

    def info(self, store: Store, row: InstanceRow) -> FrameInfo:
        """How the frames are stored: the index row tells, else the metadata. Raises NotAcceptable."""
        return info_in_row(row) or self.of(store, row).info

    def info_at_hand(self, store: Store, row: InstanceRow) -> FrameInfo | None:
        """For the event loop: None if the text is long and is not kept. Raises NotAcceptable."""
        info = info_in_row(row)
        if info is None and (known := self.at_hand(store, row)) is not None:
            return known.info
        return info


def description_of(chunks: Iterable[bytes], length: int) -> Description:
    """Reads the DICOM JSON of one instance, with empty URL slots."""
    if length > WHOLE:
        return _described(_read(JsonReader(lean_text(chunks, _TREE))))
    text = orjson.loads(b"".join(chunks).replace(b"\0", b""))
    return _described(_pairs(text))


def _read(reader: JsonReader) -> Iterator[tuple[str, Any]]:
    """As `_pairs`, for a text that does not fit into memory."""
    dataset = reader.value()
    if dataset is not LARGE:
        yield from _pairs(dataset)
        return
    for tag in reader.members():
        element = reader.value()
        if element is not LARGE:
            yield from _pairs({tag: element})
        elif tag != PER_FRAME_GROUPS:
            yield tag, reader.value(None)
        else:
            for name in reader.members():
                if reader.value() is LARGE and name == "Value":
                    yield from ((tag, reader.value(None)) for _ in reader.elements())


def _pairs(text: JsonDataset) -> Iterator[tuple[str, Any]]:
    """The elements in KEPT. Each item of the Per-Frame Functional Groups is a pair of its own."""
    for tag, element in text.items():
        if tag == PER_FRAME_GROUPS:
            yield from ((tag, groups) for groups in values(text, tag))
        elif tag in KEPT:
            yield tag, element


def _described(pairs: Iterable[tuple[str, Any]]) -> Description:
    dataset: JsonDataset = {}
    frames: list[bytes] = []
    texts: dict[bytes, bytes] = {}
    for tag, value in pairs:
        if tag == PER_FRAME_GROUPS:
            text = orjson.dumps(_groups_of(value))
            frames.append(texts.setdefault(text, text))
        else:
            dataset[tag] = value
    if SHARED_GROUPS in dataset:
        dataset[SHARED_GROUPS] = {"Value": [_groups_of(item(dataset, SHARED_GROUPS))]}
    if OPTICAL_PATHS in dataset:
        profile = {key: one for key, one in item(dataset, OPTICAL_PATHS).items() if key == "00282000"}
        dataset[OPTICAL_PATHS] = {"Value": [profile]}
    # Parsed JSON takes about five times its text.
    size = 5 * len(orjson.dumps(dataset)) + 8 * len(frames) + sum(map(len, texts)) + 64 * len(texts)
    return Description(dataset, tuple(frames), size)


def _groups_of(groups: object) -> JsonDataset:
    given = groups if isinstance(groups, dict) else {}
    return {tag: given[tag] for tag in GROUPS if tag in given}


# The Image Pixel Module

# The instances of a series share it.
info_of = lru_cache(maxsize=256)(FrameInfo)


def frame_info(dataset: JsonDataset) -> FrameInfo:
    """The attributes that are needed to read frames. Raises NotAcceptable if they are inconsistent."""
    allocated = whole(dataset, "00280100", 8)
    stored = whole(dataset, "00280101", allocated)
    samples = whole(dataset, "00280002", 1)
    try:
        return info_of(
            rows=whole(dataset, "00280010", 0),
            columns=whole(dataset, "00280011", 0),
            samples_per_pixel=samples,
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=whole(dataset, "00280102", stored - 1),
            pixel_representation=whole(dataset, "00280103", 0),
            planar_configuration=whole(dataset, "00280006", 0) if samples > 1 else 0,
            photometric_interpretation=text(dataset, "00280004", "MONOCHROME2" if samples == 1 else "RGB"),
            floating="7FE00008" in dataset or "7FE00009" in dataset,
        )
    except FrameCodecError as error:
        raise NotAcceptable(f"the instance's pixels cannot be read: {error.detail}", ()) from error


def info_in_row(row: InstanceRow) -> FrameInfo | None:
    """The same as `frame_info` of the dataset. None if the numbers of the row make no sense, or are not plain
    in the dataset (dicom/instance.py)."""
    return _info_of_numbers(row.rows, row.columns, row.samples_per_pixel, row.bits_allocated, row.pixel_facts)


@lru_cache(maxsize=256)
def _info_of_numbers(rows: int, columns: int, samples: int, allocated: int, facts: int) -> FrameInfo | None:
    found = unpacked(facts)
    if found is None:
        return None
    try:
        return info_of(
            rows=rows,
            columns=columns,
            samples_per_pixel=samples,
            bits_allocated=allocated,
            bits_stored=found.bits_stored,
            high_bit=found.bits_stored - 1,
            pixel_representation=found.pixel_representation,
            planar_configuration=found.planar_configuration,
            photometric_interpretation=found.photometric_interpretation,
            floating=False,
        )
    except FrameCodecError:
        return None  # the reason is in the metadata

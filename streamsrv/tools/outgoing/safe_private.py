"""Private attributes that are known to have no identity (PS3.15 E.3.10): those of Table E.3.10-1 (2020), and
those that an instance declares to be safe (PS3.3 C.12.1).
"""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

BLOCKS = range(0x10, 0x100)
_NQ = "01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F 10 11 12 13 14 15 16"
# Private Creator -> group -> elements of the block.
_SAFE = {
    "ELSCINT1": {0x00E1: "21 50", 0x01E1: "26", 0x01F1: "01 07 26 27"},
    "GEIIS PACS": {0x0903: "10 11 12"},
    "GEMS_ACQU_01": {0x0019: "23 24 27 9E"},
    "GEMS_HELIOS_01": {0x0045: "01 02"},
    "GEMS_PARM_01": {0x0043: "27 39 6F"},
    "GEMS_SERS_01": {0x0025: "07"},
    "HOLOGIC, Inc.": {0x7E01: "01 02 10 11 12"},
    "NQHeader": {0x0099: "01 02 04 05 10 20 21"},
    "NQLeft": {0x0199: _NQ},
    "NQRight": {0x0299: _NQ},
    "Philips Imaging DD 001": {0x2001: "03 04"},
    "Philips MR Imaging DD 001": {0x2005: "0D 0E"},
    "Philips PET Private Group": {0x7053: "00 09"},
    "SIEMENS MR HEADER": {0x0019: "0C 0D 0E 27"},
    "SIEMENS SYNGO ULTRA-SOUND TOYON DATA STREAMING": {0x7FD1: "01 09 10 11"},
    "SIEMENS Ultrasound SC2000": {
        0x0119: "00 01 02 03 04 05 06 07 08 09 10 11 12 13 21",
        0x0129: "00 02 03 04 05 06 07 08 09 10 11 12 20 21 22 29 30",
        0x0139: "01",
        0x0149: "01 02 03",
        0x7FD1: "01 09 10 11",
    },
}
SAFE = frozenset(
    (creator, group, int(element, 16))
    for creator, groups in _SAFE.items()
    for group, elements in groups.items()
    for element in elements.split()
)


class SafeAttributes:
    """The private attributes of one instance that are safe."""

    def __init__(self, instance: Dataset) -> None:
        self._blocks: set[tuple[str, int]] = set()
        self._declared: set[tuple[str, int, int]] = set()
        for item in instance.get("PrivateDataElementCharacteristicsSequence") or ():
            block = (
                str(item.get("PrivateCreatorReference") or ""),
                int(item.get("PrivateGroupReference") or 0),
            )
            if item.get("BlockIdentifyingInformationStatus") == "SAFE":
                self._blocks.add(block)
            elements: Any = item.get("NonidentifyingPrivateElements")
            if elements is not None and item.get("BlockIdentifyingInformationStatus") == "MIXED":
                values = [elements] if isinstance(elements, int) else elements
                self._declared |= {(*block, int(each) & 0xFF) for each in values}

    def in_dataset(self, dataset: Dataset) -> set[int]:
        """The tags that stay: safe attributes, and the creators of their blocks."""
        kept: set[int] = set()
        for tag in list(dataset.keys()):
            block = tag.element >> 8
            if not tag.is_private or block not in BLOCKS:
                continue
            creator_tag = tag.group << 16 | block
            creator = str(dataset[creator_tag].value).strip() if creator_tag in dataset else ""
            key = creator, tag.group, tag.element & 0xFF
            if creator and (key in SAFE or key in self._declared or key[:2] in self._blocks):
                kept |= {int(tag), creator_tag}
        return kept

"""An index in memory, written to be obviously right: what the real one is held against."""

from __future__ import annotations

from typing import Any

from streamsrv.dicom.instance import JsonDataset
from streamsrv.store.rows import InstanceKey, NewInstance

STUDY_TAGS = ("00080020", "00080030", "00080050", "00080090", "00081030", "00100010", "00100020", "00200010")
SERIES_TAGS = ("00080060", "0008103E", "00200011", "00181030")


class Model:
    def __init__(self) -> None:
        self.instances: dict[InstanceKey, NewInstance] = {}

    def store(self, *new: NewInstance) -> None:
        self.instances |= {instance.row.key: instance for instance in new}

    def delete(self, key: InstanceKey) -> None:
        del self.instances[key]

    def under(self, study: str, series: str | None = None) -> list[NewInstance]:
        """In the order in which they were stored."""
        found = [
            new for key, new in self.instances.items() if key.study == study and series in (None, key.series)
        ]
        return sorted(found, key=lambda new: (new.row.stored_at, new.row.record_id))

    def studies(self) -> list[str]:
        """Newest study date first, then by UID."""
        uids = sorted({key.study for key in self.instances})
        return sorted(uids, key=lambda uid: self.text(uid, None, "00080020"), reverse=True)

    def series(self, study: str) -> list[str]:
        return sorted({key.series for key in self.instances if key.study == study})

    def attributes(self, study: str, series: str | None = None) -> JsonDataset:
        """The latest value that is not empty, for each tag of the level."""
        found: JsonDataset = {}
        for new in self.under(study, series):
            for tag in STUDY_TAGS if series is None else SERIES_TAGS:
                if any(_says_something(value) for value in new.attributes.get(tag, {}).get("Value", ())):
                    found[tag] = new.attributes[tag]
        return found

    def modalities(self, study: str) -> list[str]:
        found = {self.text(study, series, "00080060") for series in self.series(study)}
        return sorted(found - {""})

    def text(self, study: str, series: str | None, tag: str) -> str:
        value = self.attributes(study, series).get(tag, {}).get("Value", [""])[0]
        return str(value["Alphabetic"] if isinstance(value, dict) else value)


def _says_something(value: Any) -> bool:
    text = value.get("Alphabetic", "") if isinstance(value, dict) else value
    return bool(str(text).strip()) if text is not None else False

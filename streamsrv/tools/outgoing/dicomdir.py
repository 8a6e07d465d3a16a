"""The DICOMDIR of an export (PS3.3 Annex F, PS3.10 8): directory records of its files, in a table and then as
a file.

Strategy: pydicom makes the four records of an instance. They are kept encoded, each patient, study and series
once. The file is written in the order of the tree: the offset of a record is filled in where it belongs when
the record is written. So memory does not grow with the number of instances.

Rules
- A File ID has components of at most eight characters, and none from the instance: DICOM/D0000000/F0000001.
- Values that a record must have, and the instance does not, are replaced (`SUBSTITUTES`).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.filewriter import write_dataset
from pydicom.uid import generate_uid

from streamsrv.dicom.explicit import part10_head
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.errors import StreamsrvError

NAME = "DICOMDIR"
DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage
IN_A_FOLDER = 1_000
LONG_VALUE = 64 << 10  # bytes of a value that is left on the disk
LONGEST = (1 << 32) - 1  # bytes of a DICOMDIR: its offsets have 32 bits
# Offsets in an item, its header included, of the next record and of the first record below.
NEXT, LOWER = 16, 38
SUBSTITUTES = {
    "PatientID": "UNKNOWN",
    "StudyDate": "19000101",
    "StudyTime": "000000",
    "StudyID": "1",
    "Modality": "OT",
    "SeriesNumber": "0",
    "InstanceNumber": "0",
}
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaves (
    patient TEXT, study TEXT, series TEXT, instance TEXT, path TEXT UNIQUE, content BLOB,
    PRIMARY KEY (patient, study, series, instance)
) WITHOUT ROWID;
"""


class NoRecord(Exception):
    """An instance that cannot stand in a DICOMDIR."""


class InstanceRecords(NamedTuple):
    """The encoded records of the file at `path` from the patient down, or a leaf alone, and the keys that
    order them."""

    path: str
    keys: tuple[str, str, str, str]
    above: list[bytes]
    leaf: bytes


def file_id(number: int) -> str:
    """The path of a file, from 0 on."""
    return f"DICOM/D{number // IN_A_FOLDER:07d}/F{number % IN_A_FOLDER:07d}"


def records_of(file: Path, path: str, study: str) -> InstanceRecords:
    """The records of a file that will be at `path`. Raises NoRecord."""
    try:
        instance = pydicom.dcmread(file, stop_before_pixels=True, defer_size=LONG_VALUE)
        patient = str(instance.get("PatientID") or f"UNKNOWN {study}")
        for keyword, value in SUBSTITUTES.items():
            if keyword not in instance or not instance[keyword].VM:
                setattr(instance, keyword, value)
        # Its public callers keep all instances in memory. It does not use its object.
        *above, leaf = FileSet._recordify(None, instance)
        leaf.ReferencedFileID = path.split("/")
        uids = str(instance.get("StudyInstanceUID", "")), str(instance.get("SeriesInstanceUID", ""))
        keys = (patient, *uids, str(instance.SOPInstanceUID)) if above else ("", "", "", path)
        return InstanceRecords(path, keys, [_encoded(each) for each in above], _encoded(leaf))
    except (ValueError, AttributeError, KeyError, TypeError, NotImplementedError, OSError) as fault:
        raise NoRecord(f"no record in the DICOMDIR: {fault}") from fault


def _encoded(record: Dataset) -> bytes:
    content = DicomBytesIO()
    content.is_little_endian, content.is_implicit_VR = True, False
    write_dataset(content, record)
    return bytes(content.getvalue())


def keep(rows: sqlite3.Connection, records: InstanceRecords) -> None:
    for depth, content in enumerate(records.above, 1):
        key = _key(records.keys[:depth])
        rows.execute("INSERT OR IGNORE INTO records VALUES (?, ?)", (key, content))
    values = *records.keys, records.path, records.leaf
    rows.execute("INSERT OR REPLACE INTO leaves VALUES (?, ?, ?, ?, ?, ?)", values)


def _key(keys: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(keys).encode()).hexdigest()


def write(rows: sqlite3.Connection, out: Path) -> None:
    """Raises StreamsrvError if the offsets of a DICOMDIR do not suffice."""
    part = out / f"{NAME}.part"
    with part.open("w+b") as file:
        directory = DirectoryFile(file)
        for depth, content in _tree(rows):
            directory.add(depth, content)
        directory.end()
    os.replace(part, out / NAME)


def _tree(rows: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    """(depth, record) of all records, each before those below it."""
    last: tuple[str, ...] = ()
    select = "SELECT patient, study, series, content FROM leaves ORDER BY patient, study, series, instance"
    for *keys, content in rows.execute(select):
        above = tuple(keys) if keys[0] else ()
        same = 0
        while same < min(len(above), len(last)) and above[same] == last[same]:
            same += 1
        for depth in range(same, len(above)):
            found = rows.execute("SELECT content FROM records WHERE key = ?", (_key(above[: depth + 1]),))
            yield depth, found.fetchone()[0]
        last = above
        yield len(above), content


class DirectoryFile:
    """A DICOMDIR that is being written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        head = part10_head(DIRECTORY, generate_uid(), EXPLICIT_VR_LITTLE_ENDIAN)
        file.write(head + _element(0x1130, b"CS", b""))
        self._roots = file.tell() + 8  # where the offsets of the first and the last record of the root are
        file.write(_element(0x1200, b"UL", bytes(4)) + _element(0x1202, b"UL", bytes(4)))
        file.write(_element(0x1212, b"US", bytes(2)))
        file.write(struct.pack("<HH2sHI", 4, 0x1220, b"SQ", 0, 0xFFFFFFFF))
        self._end = file.tell()
        self._last: list[int] = []  # offsets of the record before, and of those above it

    def add(self, depth: int, content: bytes) -> None:
        offset = self._end
        if offset + len(content) + 8 > LONGEST:
            raise StreamsrvError("a DICOMDIR cannot be longer than 4 GiB: export fewer instances at once")
        if depth < len(self._last):
            self._fill(self._last[depth] + NEXT, offset)
        elif depth:
            self._fill(self._last[depth - 1] + LOWER, offset)
        else:
            self._fill(self._roots, offset)
        if not depth:
            self._fill(self._roots + 12, offset)
        self._last[depth:] = [offset]
        self._file.seek(self._end)
        self._file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)
        self._end += 8 + len(content)

    def _fill(self, at: int, offset: int) -> None:
        self._file.seek(at)
        self._file.write(struct.pack("<I", offset))

    def end(self) -> None:
        self._file.seek(self._end)
        self._file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0004 with a short VR."""
    return struct.pack("<HH2sH", 4, number, vr, len(value)) + value

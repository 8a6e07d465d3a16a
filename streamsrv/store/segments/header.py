"""The first 64 bytes of a segment file: its store, and its number.

    offset  bytes
       0      8   magic, "SRVSEG\\r\\n"
       8      2   format version, 2
      10      2   zero
      12      4   segment id
      16     16   fingerprint of the store (see folder)
      32      8   record marker of the store (see records): a tool without the secret finds records by it
      40      8   zero
      48     16   check: xxh3-128 of bytes 0-47, without a key
      64          the first record

All numbers are little endian. The header is written with the file, and never changes.

Rules of this file
- A header with a valid check that names another store or segment is *foreign*: the store is refused.
- A header with a wrong check is *damaged*. Each record has a keyed check, so the records still count.
- A file shorter than a header was never used: its creator died.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

from streamsrv.errors import WrongStore
from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments.records import FORMAT_VERSION, RecordFormat

_FIELDS = struct.Struct("<8sH2xI16s8s8x")
MAGIC = b"SRVSEG\r\n"


def pack(form: RecordFormat, segment: int) -> bytes:
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, segment, form.fingerprint, form.marker)
    return fields + xxhash.xxh3_128_digest(fields)


def is_damaged(raw: bytes, form: RecordFormat, path: Path) -> bool:
    """Whether the first bytes of the segment file `path` are damaged. Raises WrongStore if it is foreign."""
    if raw == pack(form, int(path.stem)):
        return False
    fields = raw[: _FIELDS.size]
    if len(raw) < FIRST_RECORD or raw[_FIELDS.size :] != xxhash.xxh3_128_digest(fields):
        return True
    _, version, segment, fingerprint, _ = _FIELDS.unpack(fields)
    if version != FORMAT_VERSION:
        raise WrongStore(
            f"{path} has format version {version}, and this program reads only {FORMAT_VERSION}: nothing was "
            "changed. Bring back the file that belongs here"
        )
    if fingerprint != form.fingerprint:
        raise WrongStore(
            f"{path} belongs to another store, or store.toml does: nothing was changed. "
            "Bring back the file that belongs here"
        )
    raise WrongStore(f"{path} is segment {segment} of this store: give the file its name back")


def damaged_headers(files: dict[int, Path], form: RecordFormat) -> Iterator[tuple[int, str]]:
    """(segment, reason) of each damaged header; a file shorter than a header is left out. Raises WrongStore
    if a file is foreign."""
    for segment, path in files.items():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                raw = os.pread(fd, FIRST_RECORD, 0)
            finally:
                os.close(fd)
        except FileNotFoundError:
            continue  # compacted since it was listed
        except OSError as error:
            yield segment, f"segment header: {error.strerror}"
            continue
        if len(raw) == FIRST_RECORD and is_damaged(raw, form, path):
            yield segment, "segment header: its checksum is wrong"

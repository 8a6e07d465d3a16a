"""The records of a ZIP archive with stored entries (APPNOTE.TXT 6.3.10, ISO/IEC 21320-1).

Sizes and checksums are known before the first byte, so the head of each entry is final and no data descriptor
is needed. Rules: an entry is not compressed; names are ASCII. Numbers that need more than 32 bits, or more
than 16 for a count, stand in the ZIP64 records (4.3.14, 4.5.3) and as ones in the usual place.
"""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_VERSION, _VERSION_64 = 20, 45
_MADE_BY = 3 << 8 | _VERSION_64  # Unix
_MODE = 0o100644 << 16
_ONES_16, _ONES_32 = 0xFFFF, 0xFFFFFFFF
_EXTRA_64 = 1
_EARLIEST, _LATEST = 315_532_800, 4_354_819_198  # 1980-01-01 and 2107-12-31, seconds since 1970


class Entry(NamedTuple):
    """One file. `crc` is its CRC-32, `length` its bytes, `offset` that of its head in the archive."""

    name: str
    crc: int
    length: int
    offset: int
    modified: int  # seconds since 1970, UTC


def head(entry: Entry) -> bytes:
    """The bytes before the file (4.3.7)."""
    name, long = entry.name.encode("ascii"), entry.length >= _ONES_32
    extra = struct.pack("<HHQQ", _EXTRA_64, 16, entry.length, entry.length) if long else b""
    length = _ONES_32 if long else entry.length
    fixed = _LOCAL.pack(
        b"PK\3\4",
        _VERSION_64 if long else _VERSION,
        0,
        0,
        *_dos_time(entry.modified),
        entry.crc,
        length,
        length,
        len(name),
        len(extra),
    )
    return fixed + name + extra


def directory_entry(entry: Entry) -> bytes:
    """The entry of the central directory (4.3.12)."""
    name = entry.name.encode("ascii")
    length, offset = (min(number, _ONES_32) for number in (entry.length, entry.offset))
    numbers = ([entry.length] * 2 if length == _ONES_32 else []) + [entry.offset] * (offset == _ONES_32)
    extra = struct.pack(f"<HH{len(numbers)}Q", _EXTRA_64, 8 * len(numbers), *numbers) if numbers else b""
    fixed = _CENTRAL.pack(
        b"PK\1\2",
        _MADE_BY,
        _VERSION_64 if extra else _VERSION,
        0,
        0,
        *_dos_time(entry.modified),
        entry.crc,
        length,
        length,
        len(name),
        len(extra),
        0,
        0,
        0,
        _MODE,
        offset,
    )
    return fixed + name + extra


def end(count: int, length: int, offset: int) -> bytes:
    """The end of an archive whose central directory has `count` entries and `length` bytes at `offset`
    (4.3.14 to 4.3.16)."""
    long = count >= _ONES_16 or length >= _ONES_32 or offset >= _ONES_32
    records = b""
    if long:
        records = _END_64.pack(
            b"PK\6\6", _END_64.size - 12, _MADE_BY, _VERSION_64, 0, 0, count, count, length, offset
        )
        records += _LOCATOR_64.pack(b"PK\6\7", 0, offset + length, 1)
    short, length, offset = min(count, _ONES_16), min(length, _ONES_32), min(offset, _ONES_32)
    return records + _END.pack(b"PK\5\6", 0, 0, short, short, length, offset, 0)


def _dos_time(seconds: int) -> tuple[int, int]:
    """Time and date with a resolution of 2 s (4.4.6). Years before 1980 and after 2107 do not exist."""
    year, month, day, hour, minute, second, *_ = time.gmtime(min(max(seconds, _EARLIEST), _LATEST))
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day

"""DATA/manifest: the segments of a store, and the acknowledged end of each.

    offset  bytes
       0      8   magic, "SRVMANIF"
       8      2   format version, 2
      10      6   zero
      16     16   fingerprint of the store (see folder)
      32     16   check: xxh3-128 of bytes 0-31
      48     16   zero
      64     16   slot of segment 0, which never exists; that of segment n is at 64 + 16 n

    slot
       0      1   dirty flag (see locks)
       1      1   state: 0 none, 1 GROWING, 2 SEALED, 3 REMOVED
       2      8   acknowledged end: bytes before it are never cut off
      10      6   check: the first bytes of the xxh3-64 of the fingerprint, the segment id and bytes 1-9

All numbers are little endian. A slot is inside one sector, so it is written whole or not at all.

Strategy: a writer updates its slot in place after the index commit and before the answer. That is one write
to the page cache, which survives the death of the process. So the acknowledged ends are known even if the
index is lost. The file is synced when a segment is created, sealed or removed, and when a store is closed; a
power loss may undo other updates.

Rules of this file
- The end in a slot is never behind that in the index, because the index commits first. If it is, the index is
  an older one.
- A segment is REMOVED here, durably, before its file is removed. A missing file of any other segment is
  damage.
- The locks of all writers are on this file (see locks). So a file under this name is refused unless it is the
  one that was opened.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from streamsrv.errors import StoreCorrupt, StoreError, WrongStore
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments.records import FORMAT_VERSION

MAGIC = b"SRVMANIF"
HEADER_LENGTH = 64
SLOT = 16
READ_AGAIN = 3
_HEADER = struct.Struct("<8sH6x16s")
_SLOT = struct.Struct("<BQ")
_CHECKED = struct.Struct("<16sQBQ")
_CHECK_LENGTH = 6


class State(enum.IntEnum):
    NONE = 0
    GROWING = 1
    SEALED = 2
    REMOVED = 3


class Slot(NamedTuple):
    state: State
    end: int

    @property
    def has_records(self) -> bool:
        """There must be a file with acknowledged bytes."""
        return self.state in (State.GROWING, State.SEALED) and self.end > FIRST_RECORD


NO_SLOT = Slot(State.NONE, 0)


class Slots(NamedTuple):
    """The contents of a manifest. `damaged` are segments whose slots cannot be read; `header_damaged` is
    about the beginning of the file."""

    known: dict[int, Slot]
    damaged: list[int]
    header_damaged: bool = False


def slot_offset(segment: int) -> int:
    return HEADER_LENGTH + SLOT * segment


class ManifestFormat:
    """Slots of one store."""

    def __init__(self, fingerprint: bytes) -> None:
        self._fingerprint = fingerprint

    def header(self) -> bytes:
        fields = _HEADER.pack(MAGIC, FORMAT_VERSION, self._fingerprint)
        return (fields + xxhash.xxh3_128_digest(fields)).ljust(HEADER_LENGTH, b"\0")

    def pack(self, segment: int, slot: Slot) -> bytes:
        """With a clear dirty flag."""
        return b"\0" + _SLOT.pack(slot.state, slot.end) + self._check(segment, slot.state, slot.end)

    def unpack(self, segment: int, raw: bytes) -> Slot | None:
        """None if it is damaged."""
        if not any(raw[1:]):
            return NO_SLOT
        state, end = _SLOT.unpack_from(raw, 1)
        if raw[SLOT - _CHECK_LENGTH :] != self._check(segment, state, end):
            return None
        return Slot(State(state), end) if state <= State.REMOVED else None

    def _check(self, segment: int, state: int, end: int) -> bytes:
        whole = _CHECKED.pack(self._fingerprint, segment, state, end)
        return xxhash.xxh3_64_digest(whole)[:_CHECK_LENGTH]

    def slots(self, raw: bytes) -> Slots:
        """Unpack the contents of a manifest. Raises WrongStore if it is another store's."""
        damaged_header = raw[:HEADER_LENGTH] != self.header()
        if damaged_header:
            self._refuse_foreign(raw)
        slots = Slots({}, [], damaged_header)
        for offset in range(slot_offset(1), len(raw) - SLOT + 1, SLOT):
            segment = (offset - HEADER_LENGTH) // SLOT
            slot = self.unpack(segment, raw[offset : offset + SLOT])
            if slot is None:
                slots.damaged.append(segment)
            elif slot.state is not State.NONE:
                slots.known[segment] = slot
        return slots

    def _refuse_foreign(self, raw: bytes) -> None:
        fields, check = raw[: _HEADER.size], raw[_HEADER.size : _HEADER.size + 16]
        if len(fields) == _HEADER.size and check == xxhash.xxh3_128_digest(fields):
            _, version, _ = _HEADER.unpack(fields)
            what = (
                "belongs to another store" if version == FORMAT_VERSION else f"has format version {version}"
            )
            raise WrongStore(
                f"the manifest {what}: nothing was changed. Bring back the one that belongs here"
            )


class Manifest:
    """The manifest of an open store."""

    def __init__(self, path: Path, ops: FileOps, fingerprint: bytes) -> None:
        self.path = path
        self.ops = ops
        self.form = ManifestFormat(fingerprint)
        self._number: tuple[int, int] | None = None

    def create(self) -> None:
        """Make an empty one, unless it exists."""
        with contextlib.suppress(FileExistsError):
            self._write({}, lambda draft: self.ops.link(draft, self.path))

    def replace(self, slots: Mapping[int, Slot]) -> None:
        """Replace all slots durably, in one step. Only for a process that has the store alone."""
        self._write(slots, lambda draft: self.ops.rename(draft, self.path))

    def _write(self, slots: Mapping[int, Slot], publish: Callable[[Path], None]) -> None:
        body = bytearray(self.form.header())
        for segment in range(max(slots, default=-1) + 1):
            slot = slots.get(segment, NO_SLOT)
            body += bytes(SLOT) if slot.state is State.NONE else self.form.pack(segment, slot)
        draft = self.path.with_name(f"manifest.{os.getpid()}.{secrets.token_hex(4)}")
        fd = self.ops.create(draft)
        try:
            write_all(self.ops, fd, [body], 0)
            self.ops.sync(fd)
            publish(draft)
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                self.ops.unlink(draft)
        self.ops.sync_folder(self.path.parent)

    def open(self) -> None:
        """From now on only this file is written to. Raises StoreCorrupt if it is missing."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise StoreCorrupt(
                f"{self.path} is missing: run `streamsrv reindex --data {self.path.parent}`, which makes it "
                "again"
            ) from None
        self._number = found.st_dev, found.st_ino

    def read(self) -> Slots:
        """Raises FileNotFoundError, or WrongStore if it is another store's."""
        slots = self.form.slots(self.path.read_bytes())
        for _ in range(READ_AGAIN if slots.damaged else 0):
            # A slot may be read while it is being written. A damaged slot stays damaged.
            time.sleep(0.001)
            again = self.form.slots(self.path.read_bytes())
            slots = again._replace(damaged=sorted(set(again.damaged) & set(slots.damaged)))
        return slots

    def descriptor(self) -> int:
        """A new descriptor for reading, writing and locks; the caller closes it. Raises StoreError if the
        file was removed or replaced."""
        try:
            fd = self.ops.open(self.path)
        except FileNotFoundError:
            raise StoreError(self._gone()) from None
        found = os.fstat(fd)
        if self._number not in (None, (found.st_dev, found.st_ino)):
            os.close(fd)
            raise StoreError(self._gone())
        return fd

    def _gone(self) -> str:
        return (
            f"{self.path} was removed or replaced while the store is open: nothing is written any more. "
            "Stop all processes that have the store open, and start again"
        )

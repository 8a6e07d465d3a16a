"""Unnamed temporary files of one store transaction. They vanish with it, or with the process.

`PartSpool` keeps the metadata and bulk data parts of a body: metadata may come before or after the bulk data
that it names, and bulk data may be of any size. `CommitQueue` keeps the instances that wait for the commit: a
body may hold 100,000 of them, and nothing of it is committed before its last byte.
"""

from __future__ import annotations

import errno
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import pread
from typing import IO

from streamsrv.dicom.explicit import Copy
from streamsrv.errors import InsufficientStorage, StoreError
from streamsrv.store import Buffer, Prepared, Record, Store, write_all

CHUNK = 1 << 20
# Bytes between two checks of the disk's reserve.
ASK_EVERY = 64 << 20
# Instances of a queue that stay in memory: 512 of a CT hold 2 MB.
SPILL_AFTER = 512


@dataclass(slots=True)
class SpooledPart:
    headers: Mapping[str, str]  # by lower-case name
    offset: int
    length: int = 0

    @property
    def range(self) -> Copy:
        return Copy(self.offset, self.length)


class PartSpool:
    """The parts of a body in the order of their arrival. Call `close`; it is safe to call it twice."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed by close()
            prefix="parts-", dir=store.layout.root, buffering=0
        )
        self._end = 0
        self._asked = 0
        self.parts: list[SpooledPart] = []

    def begin(self, headers: Mapping[str, str]) -> None:
        self.parts.append(SpooledPart(headers, self._end))

    def write(self, views: Sequence[Buffer]) -> None:
        """Appends to the last part."""
        self.parts[-1].length += self._append(views)

    def append(self, content: bytes) -> Copy:
        """Keeps bytes that belong to no part."""
        offset = self._end
        return Copy(offset, self._append([content]))

    def _append(self, views: Sequence[Buffer]) -> int:
        if self._end - self._asked >= ASK_EVERY:
            self._asked = self._end
            self._store.reserve.require()
        try:
            length = write_all(self._store.ops, self._file.fileno(), views, self._end)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientStorage("the disk is full (keeping the parts of a body)") from None
            raise StoreError(f"the parts of a body cannot be kept: {error.strerror}") from error
        self._end += length
        return length

    def chunks(self, source: Copy) -> Iterator[bytes]:
        """Yields the bytes of a range, at most CHUNK at a time."""
        at, end = source.offset, source.offset + source.length
        while at < end:
            chunk = pread(self._file.fileno(), min(CHUNK, end - at), at)
            if not chunk:
                raise StoreError("the temporary file of a body is shorter than its parts")
            yield chunk
            at += len(chunk)

    def close(self) -> None:
        self._file.close()


class CommitQueue:
    """A queue of (Record, Prepared). At most SPILL_AFTER of them stay in memory; the others go to a file."""

    def __init__(self) -> None:
        self._recent: list[tuple[Record, Prepared]] = []
        self._file: IO[bytes] | None = None
        self._records: list[Record] = []  # these hold descriptors: they stay, their instances spill
        self._portions = 0  # in the file

    def append(self, pair: tuple[Record, Prepared]) -> None:
        self._recent.append(pair)
        if len(self._recent) >= SPILL_AFTER:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="streamsrv-")  # noqa: SIM115 - closed by close()
        self._records += (record for record, _ in self._recent)
        # One pickle for all, because neighbours share the text of their metadata.
        pickle.dump([new for _, new in self._recent], self._file, pickle.HIGHEST_PROTOCOL)
        self._portions += 1
        self._recent = []

    def __iter__(self) -> Iterator[tuple[Record, Prepared]]:
        if self._file is not None:
            self._file.seek(0)
            records = iter(self._records)
            for _ in range(self._portions):
                yield from ((next(records), new) for new in pickle.load(self._file))
        yield from self._recent

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._recent, self._records, self._portions = None, [], [], 0

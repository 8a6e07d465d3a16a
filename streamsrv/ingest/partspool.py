"""Parts of a body in the order of their arrival, in one unnamed file of the data folder.

Metadata may come before or after the bulk data that it names, and bulk data may be of any size, so nothing is
made of them before the body has ended. The file has no name: it vanishes with the request, or the process.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import pread

from streamsrv.dicom.explicit import Copy
from streamsrv.errors import InsufficientStorage, StoreError
from streamsrv.store import Buffer, Store, write_all

CHUNK = 1 << 20
# How often it is asked whether the disk still has its reserve.
ASK_EVERY = 64 << 20


@dataclass(slots=True)
class SpooledPart:
    headers: Mapping[str, str]  # by lower-case name
    offset: int
    length: int = 0

    @property
    def range(self) -> Copy:
        return Copy(self.offset, self.length)


class PartSpool:
    """Call `close`; safe to call twice."""

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
        """Behind what the last part has so far."""
        self.parts[-1].length += self._append(views)

    def append(self, content: bytes) -> Copy:
        """Keep bytes that belong to no part."""
        offset = self._end
        return Copy(offset, self._append([content]))

    def _append(self, views: Sequence[Buffer]) -> int:
        if self._end - self._asked >= ASK_EVERY:
            self._asked = self._end
            self._store.segments.require_space()
        try:
            length = write_all(self._store.ops, self._file.fileno(), views, self._end)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientStorage("the disk is full (keeping the parts of a body)") from None
            raise StoreError(f"the parts of a body cannot be kept: {error.strerror}") from error
        self._end += length
        return length

    def chunks(self, source: Copy) -> Iterator[bytes]:
        """The bytes of a range, at most CHUNK at a time."""
        at, end = source.offset, source.offset + source.length
        while at < end:
            chunk = pread(self._file.fileno(), min(CHUNK, end - at), at)
            if not chunk:
                raise StoreError("the kept parts of a body are shorter than what was written")
            yield chunk
            at += len(chunk)

    def close(self) -> None:
        self._file.close()

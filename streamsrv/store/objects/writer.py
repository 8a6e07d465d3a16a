"""An object while its transaction receives the records.

Strategy: bytes go into a file on the disk of the node, which takes no longer than the page cache. From there
`send` brings them to the bucket in parts, once they are final (layout.py). So the records can be read before
the object is there. The file has no name, so a dead process leaves nothing. Memory holds the parts that are
on their way and nothing else.

Rules of this file
- The object is complete before `complete` returns, and only then may the index name it.
- The key has a random part: a database that was set back gives a number twice, and never a key.
- After a failed write the object is lost, and its transaction with it. Nothing of it can be read.
- `send` may run in a thread beside the calls that receive. All others are made by one thread at a time.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from streamsrv.errors import StoreError, system_error
from streamsrv.store.fileops import Buffer, FileOps, write_all
from streamsrv.store.objects.bucket import Bucket, ObjectUpload
from streamsrv.store.objects.layout import PartPlan, final_header, pack_trailer, pending_header
from streamsrv.store.rows import InstanceRow, Location
from streamsrv.store.segments.records import HEADER, PayloadDigest, Record, RecordFormat, pack_file_header
from streamsrv.store.segments.segments import Clock

NONCE = 10  # bytes; a record id is a nonce of its object and the record's number in it


class ObjectWriter:
    """One object. Ends with `complete`, else with `abort`."""

    def __init__(
        self,
        bucket: Bucket,
        form: RecordFormat,
        segment: int,
        key: str,
        folder: Path,
        clock: Clock,
        ops: FileOps | None = None,
    ) -> None:
        self.segment = segment
        self.key = key
        self._bucket = bucket
        self._form = form
        self._clock = clock
        self._ops = ops or FileOps()
        self._plan = PartPlan(bucket.part)
        self._upload: ObjectUpload | None = None
        self._guard = threading.Lock()  # of the plan, and of the bytes that it lets go
        self._sending = threading.Lock()
        self.unsent = 0  # bytes written since the last `send` began
        self.nonce = secrets.token_bytes(NONCE)
        self._number = 0
        self._body = 0
        self._open_at = -1
        self._gathered: list[Buffer] = []
        self._gathered_length = 0
        self._digest = PayloadDigest()
        self._original: InstanceRow | None = None
        self._failed = False
        self._append(pack_file_header(form, segment))
        try:
            self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise system_error(error, "making a file for an upload") from error

    # Receiving, as in `Transaction`

    @property
    def end(self) -> int:
        """Offset of the next byte."""
        return self._plan.end + self._gathered_length

    def open_body(self) -> int:
        """The records that follow belong to another body, whose number is returned."""
        self._body = self._number
        return self._body

    def open_record(self, original: InstanceRow | None = None) -> None:
        """The record is a copy of `original`, if that is given: it has the same id and time. Its header has
        the same digest, so that damage is found again."""
        if self._open_at >= 0:
            raise StoreError("a record is open already")
        self._open_at = self.end
        self._number += 1
        self._original = original
        self._digest = PayloadDigest()
        with self._guard:
            self._plan.open_record(self._open_at)
        self._append(pending_header(self._form, self._record_id(), self.segment, self._open_at))

    def gather(self, piece: Buffer) -> None:
        """Append to the open record with the next `write`; until then the buffer must not change."""
        self._digest.update(piece)
        self._append(piece)

    def _append(self, piece: Buffer) -> None:
        self._gathered.append(piece)
        self._gathered_length += len(piece)

    @property
    def gathered(self) -> tuple[int, int]:
        """Number and bytes of the pieces that wait for the next `write`."""
        return len(self._gathered), self._gathered_length

    @property
    def uploading(self) -> bool:
        """Whether an upload has begun."""
        return self._upload is not None

    def write(self, pieces: Sequence[Buffer] = ()) -> None:
        """Append to the open record, gathered pieces first. Keeps no buffer. Raises InsufficientStorage,
        StoreError."""
        for piece in pieces:
            self.gather(piece)
        gathered, self._gathered, self._gathered_length = self._gathered, [], 0
        if gathered:
            with self._guard:
                length = self._put(gathered, self._plan.end)
                self._plan.end += length
            self.unsent += length

    def send(self) -> None:
        """Send the parts that are final. Waits for the bucket if it takes bytes more slowly. Raises
        BucketUnreachable, StoreError."""
        with self._sending:
            self.unsent = 0
            if self.fd >= 0:
                self._send(last=False)

    def _put(self, pieces: Sequence[Buffer], offset: int) -> int:
        if self._failed or self.fd < 0:
            raise StoreError("the upload has failed or ended")
        try:
            return write_all(self._ops, self.fd, pieces, offset)
        except OSError as error:
            self._failed = True
            raise system_error(error, "writing the file of an upload") from error

    def _send(self, *, last: bool) -> None:
        with self._guard:
            for offset, header in self._plan.patches():
                self._put([header], offset)
            parts = list(self._plan.take(last=last))
        for begin, end in parts:
            if self._upload is None:
                self._upload = self._bucket.upload(self.key)
            try:
                self._upload.write(self._read(begin, end))
            except BaseException:
                self._failed = True
                raise

    def _read(self, begin: int, end: int) -> bytes:
        part = os.pread(self.fd, end - begin, begin)
        if len(part) != end - begin:
            raise StoreError("the file of an upload is shorter than its part")
        return part

    def received(self) -> Record:
        """The open record so far. Only written bytes of it can be read."""
        if self._open_at < 0:
            raise StoreError("no record is open")
        payload = self._open_at + HEADER
        return Record(
            self,
            self._number,
            Location(self.segment, payload, self.end - payload),
            self._record_id(),
            self._digest.digest(),
            self._original.stored_at if self._original else self._clock.now(),
            self._body,
        )

    def close_record(self) -> Record:
        """The record can be read after the gathered pieces have been written."""
        record, self._open_at = self.received(), -1
        header = final_header(self._form, record, self._original.digest if self._original else b"")
        with self._guard:
            self._plan.close_record(record.end, header)
        return record

    def _record_id(self) -> bytes:
        if self._original is not None:
            return self._original.record_id
        return self.nonce + self._number.to_bytes(16 - NONCE, "big")

    def back_to(self, end: int) -> None:
        """Drop the records from `end` on, where a record ended. Bytes that have left stay in the object, and
        no record has them."""
        self.write()  # a record before `end` may be gathered only
        with self._guard:
            self._plan.back_to(end)
        self._open_at = -1

    # Ending

    def complete(self, records: Sequence[Record]) -> int:
        """Make the object durable with these records, in their order; returns its length. Records that are
        left out stay in the object, and no tool finds them."""
        if self._open_at >= 0:
            raise StoreError("a record is still open")
        self._append(pack_trailer(self._form, self.segment, self.end, records))
        self.write()
        with self._sending:
            self._send(last=True)
            if self._upload is None:
                raise StoreError("the object has no bytes")
            self._upload.complete()
        return self._plan.end

    def abort(self) -> None:
        """Remove everything that is not complete, and close the file. Safe to call twice."""
        with self._sending:
            if self._upload is not None:
                self._upload.abort()
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

"""A store transaction: body bytes in, SOP instances in the store, one outcome a part.

Strategy: `feed` is the hot path. It runs inline between two reads of the socket, parses the multipart body
and hands views of the very buffer that the socket filled to the transaction's writev: one for as many bytes
as may wait, because one for each part takes half as long again. When a part has been written, its dataset is
read in place (`read_ended`), from the page cache where it has just landed. Nothing is synced
or indexed before `finish`, so a body that breaks off, or is no multipart body, leaves nothing behind: a store
transaction answers for all its parts or for none (PS3.18 10.5).

Rules of this file
- No HTTP beyond media types, no sockets, no threads: whoever drives it decides where the blocking calls run.
- What waits for the commit is held in memory only up to a limit; the rest lies in a file (spill.py).
- A part that is refused costs that part (InstanceError); a body that is refused costs the request
  (RequestError).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from streamsrv.dicom.arriving import Arriving, what_arrives
from streamsrv.dicom.instance import SOPInstance
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import AlreadyStored, ContentTooLarge, InstanceError, NotDicom, StudyMismatch
from streamsrv.errors import WouldBlock as LongHeader
from streamsrv.ingest.assembly import METADATA_TYPES, assembled
from streamsrv.ingest.bodies import BodyParser, parser_for
from streamsrv.ingest.derivation import Remembered, derive
from streamsrv.ingest.partspool import PartSpool
from streamsrv.ingest.reading import READ_SECONDS, brief_pread, stoppable_pread
from streamsrv.ingest.response import FailedItem, StoredItem, StoreResult
from streamsrv.ingest.spill import Spill
from streamsrv.store import (
    InstanceKey,
    NewInstance,
    OnDuplicate,
    Outcome,
    Prepared,
    Record,
    Store,
    Transaction,
    prepare,
)
from streamsrv.wire.multipart import Buffer, Event, MultipartLimits, PartBegin, PartEnd, Payload

# Reading a dataset of a megabyte of small elements takes about 50 ms: longer instances are read in a thread.
HEAVY_INSTANCE = 1 << 20
# Datasets read in one turn, 2 ms for those of CTs. What they share is in the processor's caches then; half a
# megabyte received between two of them throws it out: one by one, each takes a tenth longer.
READ_TOGETHER = 16
# What waits to be written in one call at most, in bytes and in pieces.
WRITE_BYTES = 4 << 20
WRITE_PIECES = 512
# Events taken in one call: a megabyte may hold 100,000 parts, which would stop everybody else for seconds.
EVENTS_AT_ONCE = 256
# A thread syncs each time so much has arrived, so that the last sync, which the client waits for, is short:
# of one that has just begun it waits for all of this.
SYNC_EVERY = 32 << 20
# What a part may call itself. curl --form names a file application/octet-stream unless told otherwise.
PART_TYPES = frozenset(("application/dicom", "application/octet-stream", ""))


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """Each None or 0 means no limit."""

    instance_bytes: int = 0
    # What an instance has beyond so much is not kept in the page cache, if it belongs to one long value.
    kept_bytes: int = 0
    multipart: MultipartLimits = field(default_factory=MultipartLimits)
    reading: ReadLimits = field(default_factory=ReadLimits)


class Ingest:
    """One store transaction. Call `abort` unless `finish` returned; both are safe to call twice.

    Raises UnsupportedMediaType or BadRequest (the Content-Type) and InsufficientStorage at construction,
    before a byte of the body; RequestError from `feed` and `finish` when the body is refused.
    """

    def __init__(
        self,
        store: Store,
        *,
        content_type: str | None = None,
        parser: tuple[BodyParser, str] | None = None,
        study: str | None = None,
        limits: IngestLimits | None = None,
        on_duplicate: OnDuplicate = OnDuplicate.REFUSE,
        remembered: Remembered | None = None,
        transaction: Transaction | None = None,
    ) -> None:
        """`remembered` goes with one `limits.reading`. `parser`: what parser_for made of the Content-Type. A
        `transaction` that is given is shared with others, and ended by whoever began it."""
        self._remembered = remembered or Remembered()
        self._limits = limits or IngestLimits()
        self._parser, self._part_type = parser or parser_for(content_type, self._limits.multipart)
        self._study = study
        self._on_duplicate = on_duplicate
        self._receiving = False  # between the begin and the end of a part that is being written
        self._received = 0  # bytes of that part
        self._looked = False  # whether it was seen what it is that arrives
        self._arriving: Arriving | None = None
        self._seen: dict[int, Arriving] = {}  # of whole parts, by the number of the record
        self._closed: list[Record] = []  # whole parts that are still to be written
        self._ended: list[Record] = []  # written parts whose dataset is still to be read
        self._repeats = self._remembered.take()
        self._long_header = False  # of the first of these
        self._stopped = threading.Event()
        self._result = StoreResult()
        self._accepted: list[StoredItem] = []  # on their way to the commit, in order
        self._waiting = Spill()
        # Metadata and bulk data wait here until the body has ended.
        self._spool = PartSpool(store) if self._part_type in METADATA_TYPES else None
        try:
            self._transaction = transaction or store.begin()
        except BaseException:
            self._close()
            raise

    # Receiving

    def feed(self, chunk: Buffer, size: int | None = None, *, start: int = 0, stays: bool = False) -> None:
        """Take the next bytes of the body: `chunk`, or `size` bytes of it from `start` on. No view of any
        chunk is kept after the return, unless this one `stays` as it is until the next one that does not.
        Of a chunk with very many parts the rest is copied, and taken by `read_ended`."""
        self._take_rest()
        self._take(self._parser.feed(chunk, size, start=start, most=EVENTS_AT_ONCE), stays)

    def _take_rest(self) -> None:
        while self._parser.more:
            self._take(self._parser.feed(b"", most=EVENTS_AT_ONCE))

    def _take(self, events: list[Event], stays: bool = False) -> None:
        for event in events:
            if isinstance(event, Payload):
                if self._receiving:
                    self._take_payload(event.view)
            elif isinstance(event, PartBegin):
                self._begin_part(event.headers)
            elif isinstance(event, PartEnd) and self._receiving:
                self._end_part()
        pieces, length = self._transaction.gathered
        if not stays or pieces >= WRITE_PIECES or length >= WRITE_BYTES:
            self._write()

    def _take_payload(self, view: bytes | memoryview) -> None:
        if self._arriving is not None:
            self._arriving.take(view, self._received)
        self._count(len(view))
        if self._spool is None:
            self._transaction.gather(view)
        else:
            self._spool.write([view])

    def _write(self) -> None:
        arriving = self._arriving
        self._transaction.write(keep=arriving is None or not arriving.holds(self._received))
        self._ended += self._closed
        self._closed.clear()

    def _begin_part(self, headers: dict[str, str]) -> None:
        if self._spool is not None:
            self._spool.begin(headers)
            self._receiving, self._received = True, 0
            return
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in PART_TYPES:
            # Cut, because the answer keeps what is said of each of 100,000 parts.
            self._refuse(NotDicom(f"a part says that it is {media_type[:80]}, not application/dicom"))
            return
        self._transaction.open_record()
        self._receiving, self._received, self._looked = True, 0, False

    def _end_part(self) -> None:
        self._receiving = False
        if self._spool is None:
            record = self._transaction.close_record()
            self._closed.append(record)
            if self._arriving is not None:
                self._seen[record.number], self._arriving = self._arriving, None

    def _count(self, length: int) -> None:
        self._received += length
        limit = self._limits.instance_bytes
        if limit and self._received > limit:
            raise ContentTooLarge(f"an instance is longer than the {limit} bytes that this server accepts")

    # Reading what has arrived

    @property
    def pending(self) -> bool:
        """Parts wait for `read_ended`: call it until none does."""
        return len(self._ended) >= READ_TOGETHER or self._parser.more or self.heavy

    @property
    def heavy(self) -> bool:
        """`read_ended` may take long: call it in a thread."""
        known = self._look_due or self._long_header
        return known or any(record.location.length > HEAVY_INSTANCE for record in self._ended)

    @property
    def _look_due(self) -> bool:
        kept = self._limits.kept_bytes
        due = self._receiving and not self._looked and self._spool is None
        return due and 0 < kept <= self._received

    def _look(self) -> None:
        """See what the long part is that is being received."""
        self._looked = True
        self._write()
        received = self._transaction.received()
        self._arriving = what_arrives(received.pread, self._received, self._limits.reading)

    @property
    def sync_due(self) -> bool:
        return self._transaction.unsynced >= SYNC_EVERY

    def sync_so_far(self) -> None:
        self._transaction.sync_so_far()

    def read_ended(self) -> None:
        """Read the datasets of parts that have ended, in place, for about READ_SECONDS; then take more of the
        fed bytes. The next call, which is `heavy`, reads a long header; a call that is not leaves it."""
        brief, until = not self.heavy, time.monotonic() + READ_SECONDS
        if self._look_due:
            self._look()
        ended, self._ended = self._ended, []
        read: list[tuple[Record, NewInstance]] = []
        self._long_header = False
        for number, record in enumerate(ended):
            if number and time.monotonic() > until:
                self._ended = ended[number:]
                break
            learned: SOPInstance | None = None
            try:
                seen = self._seen.pop(record.number, None)
                pread = brief_pread(record.pread) if brief else stoppable_pread(record.pread, self._stopped)
                learned, new = derive(record, self._limits.reading, self._repeats, seen, pread)
                if self._study is not None and learned.study_uid != self._study:
                    raise StudyMismatch(
                        "the Study Instance UID (0020,000D) differs from the study of the target URI"
                    )
            except InstanceError as error:
                self._transaction.drop_record(record)
                self._refuse(error, learned)
                continue
            except LongHeader:
                self._long_header, self._ended = True, ended[number:]
                break
            self._accepted.append(StoredItem.of(learned))
            read.append((record, new))
        self._wait_for_commit(read)
        if self._parser.more:
            self._take(self._parser.feed(b"", most=EVENTS_AT_ONCE))

    def stop(self) -> None:
        """The client has left: a long dataset that is being read is given up, with BadRequest from
        `read_ended` or `finish`. A commit that has begun goes on. Any thread may call it."""
        self._stopped.set()

    def _wait_for_commit(self, read: list[tuple[Record, NewInstance]]) -> None:
        """What is read together keeps its metadata together."""
        prepared = prepare([new for _, new in read])
        for (record, _), new in zip(read, prepared, strict=True):
            self._waiting.append((record, new))

    def _refuse(self, error: InstanceError, learned: SOPInstance | None = None) -> None:
        sop_class, instance = (learned.sop_class_uid, learned.instance_uid) if learned else ("", "")
        self._result.failed.append(FailedItem.of(error, sop_class, instance))

    # The end

    def finish(self) -> StoreResult:
        """Sync, index, and tell what became of each part. Blocking; durable when it returns."""
        self._read_to_end()
        if not self._accepted:
            self.abort()
            return self._result
        return self.conclude(iter(self._transaction.commit(self.waiting, self._on_duplicate)))

    def _read_to_end(self) -> None:
        self._take_rest()
        self._parser.close()
        if self._receiving:
            self._end_part()
        self._write()
        if self._spool is not None:
            self._assemble(self._spool)
        self.read_ended()
        while self._ended:
            self.read_ended()
        self._remembered.give(self._repeats)  # nobody reads for this request any more

    def conclude(self, outcomes: Iterator[Outcome]) -> StoreResult:
        """Tell what became of each part, by the next of the commit's outcomes."""
        for item in self._accepted:
            if next(outcomes) is Outcome.DUPLICATE:
                self._result.failed.append(already_stored(item))
            else:
                self._result.stored.append(item)
        self._close()
        return self._result

    def _assemble(self, spool: PartSpool) -> None:
        """Each dataset of the metadata becomes a record, as if its Part 10 file had been received."""
        limit = self._limits.multipart.parts
        for number, made in enumerate(assembled(spool, self._part_type)):
            if number == limit:
                raise ContentTooLarge(f"the metadata describe more than {limit} instances")
            if isinstance(made, FailedItem):
                self._result.failed.append(made)
                continue
            self._received = 0
            self._count(made.length)
            self._transaction.open_record()
            for chunk in made.chunks():
                self._transaction.write([chunk])
            self._ended.append(self._transaction.close_record())
            while self._ended:
                self.read_ended()

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after a commit."""
        self._close()
        self._transaction.abort()

    def _close(self) -> None:
        self._waiting.close()
        if self._spool is not None:
            self._spool.close()

    def take_whole(self, events: list[Event]) -> None:
        """Of a transaction that is shared: all that the parser has found, instead of `feed` and `finish`.
        Blocking."""
        self._parser.close()
        self._take(events)
        self._read_to_end()

    @property
    def waiting(self) -> Iterator[tuple[Record, Prepared]]:
        """What is to be committed."""
        return iter(self._waiting)

    @property
    def keys(self) -> set[InstanceKey]:
        return {new.row.key for _, new in self._waiting}


def already_stored(item: StoredItem) -> FailedItem:
    error = AlreadyStored("this SOP instance is already stored")
    return FailedItem.of(error, item.sop_class_uid, item.instance)

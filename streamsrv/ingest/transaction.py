"""A store transaction: bytes of a body in, SOP instances in the store, one outcome a part.

Strategy: `feed` is the hot path. It runs inline between two reads of the socket. It parses the multipart body
and collects views of the socket's own buffer for one writev: one call for each part takes half as long again.
When a part has been written, `read_ended` reads its dataset in place, from the page cache. Nothing is synced
or indexed before `finish`. A store transaction answers for all its parts or for none (PS3.18 10.5): a body
that breaks off, or is no multipart body, leaves nothing behind.

A short body is parsed before `begin`. It is written, synced and committed with others (batching.py).

Rules
- No HTTP beyond media types, no sockets, no threads: the caller decides where the blocking calls run.
- The instances that wait for the commit are held in memory up to a limit, then in a file (spool.py).
- A body is multipart/related, or one application/dicom instance.
- InstanceError refuses a part; RequestError refuses the whole body.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from streamsrv.dicom.arriving import ArrivingValue, arriving_value
from streamsrv.dicom.instance import SOPInstance
from streamsrv.dicom.window import Pread, ReadLimits
from streamsrv.errors import (
    AlreadyStored,
    BadRequest,
    ContentTooLarge,
    InstanceError,
    NotAuthorized,
    NotDicom,
    SopMismatch,
    StudyMismatch,
    UnsupportedMediaType,
)
from streamsrv.ingest.assembly import METADATA_TYPES, assembled
from streamsrv.ingest.derivation import ReaderPool, derive
from streamsrv.ingest.response import FailedItem, StoredItem, StoreResult
from streamsrv.ingest.spool import CommitQueue, PartSpool
from streamsrv.store import (
    NewInstance,
    OnDuplicate,
    Outcome,
    Prepared,
    Record,
    Store,
    Transaction,
    prepare,
)
from streamsrv.wire.mediatypes import DICOM
from streamsrv.wire.multipart import (
    STORABLE,
    Buffer,
    Event,
    MultipartLimits,
    MultipartParser,
    PartBegin,
    PartEnd,
    Payload,
    boundary_of,
    content_type_of,
)

# Reading a dataset of a megabyte of small elements takes about 50 ms: longer instances are read in a thread.
HEAVY_INSTANCE = 1 << 20
# Bytes of one header that are read in the loop. They may hold 16,000 empty items, at 3 us each.
BRIEF_HEADER = 128 << 10
# Seconds that datasets are read in one turn of the loop.
READ_SECONDS = 0.01
# Datasets read in one turn, 2 ms for those of CTs. They share the processor's caches. One by one, with half a
# megabyte received between two of them, each takes a tenth longer.
READ_TOGETHER = 16
# Upper bounds of one write, in bytes and in pieces.
WRITE_BYTES = 4 << 20
WRITE_PIECES = 512
# Events taken in one call: a megabyte may hold 100,000 parts, which would stop the loop for seconds.
EVENTS_AT_ONCE = 256
# Bytes between two syncs in a thread. The client waits for the last sync, which covers at most twice as many.
SYNC_EVERY = 32 << 20
# Media types of a part. curl --form sends a file as application/octet-stream by default.
PART_TYPES = frozenset(("application/dicom", "application/octet-stream", ""))


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """0 means no limit."""

    instance_bytes: int = 0
    # Bytes of an instance that stay in the page cache, if the others belong to one long value.
    kept_bytes: int = 0
    multipart: MultipartLimits = field(default_factory=MultipartLimits)
    reading: ReadLimits = field(default_factory=ReadLimits)


_REFUSALS = {
    Outcome.DUPLICATE: AlreadyStored("this SOP instance is already stored"),
    Outcome.UNAUTHORIZED: NotAuthorized("this client may not store this SOP instance"),
}


class HeaderTooLong(Exception):
    """Raised by a brief read of a header; `read_ended` then asks for a thread."""


class Ingest:
    """One store transaction. Call `abort` unless `finish` returned; both are safe to call twice.

    Raises UnsupportedMediaType or BadRequest (the Content-Type) at construction, InsufficientStorage from
    `begin`, and RequestError from `feed` and `finish` if the body is refused.
    """

    def __init__(
        self,
        store: Store,
        *,
        content_type: str | None = None,
        study: str | None = None,
        limits: IngestLimits | None = None,
        on_duplicate: OnDuplicate = OnDuplicate.REFUSE,
        readers: ReaderPool | None = None,
        named: tuple[str, str] | None = None,
    ) -> None:
        """Does not block. `readers` goes with one `limits.reading`. `named` are SOP Class and Instance UID
        that every instance must have."""
        self._store = store
        self._readers = readers or ReaderPool()
        self._limits = limits or IngestLimits()
        self._parser, self._part_type = parser_for(content_type, self._limits.multipart)
        self._study = study
        self._named = named
        self._on_duplicate = on_duplicate
        self._transaction: Transaction | None = None
        self._is_shared = False
        self._events: list[Event] = []  # parsed before `begin`
        self._receiving = False  # a part is being written
        self._received = 0  # bytes of that part

        self._looked = False  # whether `_look` has seen that part
        self._arriving: ArrivingValue | None = None
        self._seen: dict[int, ArrivingValue] = {}  # of complete parts, by the number of the record

        self._closed: list[Record] = []  # complete parts that are not written yet
        self._ended: list[Record] = []  # written parts whose dataset is not read yet
        self._long_header = False  # of the first of these
        self._stopped = threading.Event()
        self._result = StoreResult()
        self._accepted: list[StoredItem] = []  # those that wait for the commit, in order
        self._waiting = CommitQueue()
        self._spool: PartSpool | None = None  # metadata and bulk data, until the body ends

    def begin(self, transaction: Transaction | None = None) -> None:
        """Blocks. A given transaction is shared with other bodies, and its owner ends it."""
        if self._part_type in METADATA_TYPES:
            self._spool = PartSpool(self._store)
        try:
            self._transaction = transaction or self._store.begin()
        except BaseException:
            self._close()
            raise
        self._is_shared = transaction is not None
        self._transaction.open_body(self._store.rule, self._on_duplicate)
        self._reader = self._readers.acquire()
        events, self._events = self._events, []
        self._take(events)

    @property
    def fits_batch(self) -> bool:
        """Whether the body may be stored with others: metadata and very many parts would delay them."""
        return self._part_type not in METADATA_TYPES and not self._parser.more

    @property
    def _writer(self) -> Transaction:
        assert self._transaction is not None, "begin comes first"
        return self._transaction

    # Receiving

    def feed(
        self, chunk: Buffer | memoryview, size: int | None = None, *, start: int = 0, stays: bool = False
    ) -> None:
        """Takes the next bytes of the body: `chunk`, or `size` bytes of it from `start` on. No view of any
        chunk is kept after the return, unless this one `stays` as it is until the next one that does not.
        Before `begin` it takes one chunk, which stays until the end.
        Of a chunk with very many parts the rest is copied, and taken by `read_ended`."""
        self._take_rest()
        events = self._parser.feed(chunk, size, start=start, most=EVENTS_AT_ONCE)
        if self._transaction is None:
            self._events = events
        else:
            self._take(events, stays)

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
        pieces, length = self._writer.gathered
        if not stays or pieces >= WRITE_PIECES or length >= WRITE_BYTES:
            self._write()

    def _take_payload(self, view: bytes | memoryview) -> None:
        if self._arriving is not None:
            self._arriving.take(view, self._received)
        self._count(len(view))
        if self._spool is None:
            self._writer.gather(view)
        else:
            self._spool.write([view])

    def _write(self) -> None:
        arriving = self._arriving
        self._writer.write(keep=arriving is None or not arriving.holds(self._received))
        self._ended += self._closed
        self._closed.clear()

    def _begin_part(self, headers: dict[str, str]) -> None:
        if self._spool is not None:
            self._spool.begin(headers)
            self._receiving, self._received = True, 0
            return
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in PART_TYPES:
            # Cut, because the answer keeps the sentences of 100,000 parts.
            self._refuse(NotDicom(f"the type of a part is {media_type[:80]}, not application/dicom"))
            return
        self._writer.open_record()
        self._receiving, self._received, self._looked = True, 0, False

    def _end_part(self) -> None:
        self._receiving = False
        if self._spool is None:
            record = self._writer.close_record()
            self._closed.append(record)
            if self._arriving is not None:
                self._seen[record.number], self._arriving = self._arriving, None

    def _count(self, length: int) -> None:
        self._received += length
        limit = self._limits.instance_bytes
        if limit and self._received > limit:
            raise ContentTooLarge(f"an instance is longer than the {limit} bytes that this server accepts")

    # Reading datasets

    @property
    def pending(self) -> bool:
        """Whether parts wait for `read_ended`: call it until none does."""
        return len(self._ended) >= READ_TOGETHER or self._parser.more or self.heavy

    @property
    def heavy(self) -> bool:
        """Whether `read_ended` may take long: call it in a thread."""
        known = self._look_due or self._long_header
        return known or any(record.location.length > HEAVY_INSTANCE for record in self._ended)

    @property
    def _look_due(self) -> bool:
        kept = self._limits.kept_bytes
        due = self._receiving and not self._looked and self._spool is None
        return due and 0 < kept <= self._received

    def _look(self) -> None:
        """Looks at the begin of a long part that is being received."""
        self._looked = True
        self._write()
        received = self._writer.received()
        self._arriving = arriving_value(received.pread, self._received, self._limits.reading)

    @property
    def sync_due(self) -> bool:
        return self._writer.unsynced >= SYNC_EVERY

    def sync_so_far(self) -> None:
        self._writer.sync_so_far()

    def read_ended(self) -> None:
        """Reads the datasets of parts that have ended, in place, for about READ_SECONDS. Then takes more of
        the fed bytes. A call that is not `heavy` leaves a long header to the next call, which is."""
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
            instance: SOPInstance | None = None
            try:
                seen = self._seen.pop(record.number, None)
                pread = _brief(record.pread) if brief else _stoppable(record.pread, self._stopped)
                instance, new = derive(record, self._limits.reading, self._reader, seen, pread)
                if self._study is not None and instance.study_uid != self._study:
                    raise StudyMismatch(
                        "the Study Instance UID (0020,000D) differs from the study of the target URI"
                    )
                if self._named not in (None, (instance.sop_class_uid, instance.instance_uid)):
                    raise SopMismatch("the SOP Class or Instance UID differs from that of the request")
            except InstanceError as error:
                self._writer.drop_record(record)
                self._refuse(error, instance)
                continue
            except HeaderTooLong:
                self._long_header, self._ended = True, ended[number:]
                break
            self._accepted.append(StoredItem.of(instance))
            read.append((record, new))
        # Instances that are read together keep their metadata together.
        for (record, _), prepared in zip(read, prepare([new for _, new in read]), strict=True):
            self._waiting.append((record, prepared))
        if self._parser.more:
            self._take(self._parser.feed(b"", most=EVENTS_AT_ONCE))

    def stop(self) -> None:
        """Ends the reading of a long dataset: `read_ended` or `finish` raises BadRequest. A commit that has
        begun goes on. Any thread may call it."""
        self._stopped.set()

    def _refuse(self, error: InstanceError, instance: SOPInstance | None = None) -> None:
        uids = (instance.sop_class_uid, instance.instance_uid) if instance else ()
        self._result.failed.append(FailedItem.of(error, *uids))

    # The end

    def finish(self) -> StoreResult:
        """Syncs and index the instances. Blocks; the result is durable when it returns."""
        self.read_to_end()
        if not self._accepted:
            self.abort()
            return self._result
        return self.conclude(iter(self._writer.commit(self.waiting)))

    def read_to_end(self) -> None:
        """Reads all parts of a body that has ended. Blocks."""
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
        self._readers.release(self._reader)

    @property
    def waiting(self) -> Iterator[tuple[Record, Prepared]]:
        return iter(self._waiting)

    def conclude(self, outcomes: Iterator[Outcome]) -> StoreResult:
        """Takes the outcomes of this body's instances from the commit."""
        for item in self._accepted:
            outcome = next(outcomes)
            if error := _REFUSALS.get(outcome):
                self._result.failed.append(FailedItem.of(error, item.sop_class_uid, item.instance))
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
            self._writer.open_record()
            for chunk in made.chunks():
                self._writer.write([chunk])
            self._ended.append(self._writer.close_record())
            while self._ended:
                self.read_ended()

    def abort(self) -> None:
        """Leaves nothing behind. Does nothing after a commit."""
        self._close()
        if self._transaction is not None and not self._is_shared:
            self._transaction.abort()

    def _close(self) -> None:
        self._waiting.close()
        if self._spool is not None:
            self._spool.close()


def _brief(read: Pread) -> Pread:
    """Raises HeaderTooLong after BRIEF_HEADER bytes."""
    left = BRIEF_HEADER

    def pread(offset: int, length: int) -> bytes:
        nonlocal left
        content = read(offset, length)
        left -= len(content)
        if left < 0:
            raise HeaderTooLong
        return content

    return pread


def _stoppable(read: Pread, stopped: threading.Event) -> Pread:
    """Raises BadRequest once `stopped` is set."""

    def pread(offset: int, length: int) -> bytes:
        if stopped.is_set():
            raise BadRequest("the client left before its instances were read")
        return read(offset, length)

    return pread


class WholeBody:
    """The body is one application/dicom instance (a store of a single part)."""

    more = False

    def __init__(self) -> None:
        self._begun = False

    def feed(
        self, chunk: Buffer | memoryview, size: int | None = None, *, start: int = 0, most: int
    ) -> list[Event]:
        payload = Payload(memoryview(chunk)[start : None if size is None else start + size])
        if self._begun:
            return [payload]
        self._begun = True
        return [PartBegin({"content-type": DICOM}), payload]

    def close(self) -> None:
        """A single part has no end of its own: the reader of its dataset finds a truncation."""


BodyParser: TypeAlias = MultipartParser | WholeBody


def parser_for(content_type: str | None, limits: MultipartLimits) -> tuple[BodyParser, str]:
    """Returns the parser and the type of the parts. Raises UnsupportedMediaType unless the body is
    multipart/related of application/dicom or of metadata and bulk data, or one application/dicom."""
    media_type = content_type_of(content_type)
    if media_type.type == DICOM:
        return WholeBody(), DICOM
    boundary = boundary_of(media_type)
    part_type = media_type.parameters.get("type", DICOM).lower()
    if part_type != DICOM and part_type not in METADATA_TYPES:
        raise UnsupportedMediaType(
            f"parts of type {media_type.parameters['type']} cannot be stored", STORABLE
        )
    return MultipartParser(boundary, limits), part_type

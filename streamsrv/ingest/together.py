"""Short bodies that have arrived at the same time, stored together.

Strategy: a body of one CT instance costs less than what surrounds it: a segment borrowed and given back, a
sync, a commit. So those that wait share these. They lie in memory whole, in the buffers that received them;
they are written to one segment one behind the other, synced once and committed once. Each has its own
outcome, as if it had come alone.

Rules of this file
- One that is refused leaves nothing behind, and the others do not notice.
- Of bodies with a key in common the second waits until the first is durable: then it is decided what becomes
  of it.
- A sync or a commit that fails has failed for all that shared it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from streamsrv.errors import StreamsrvError
from streamsrv.ingest.assembly import METADATA_TYPES
from streamsrv.ingest.bodies import BodyParser, parser_for
from streamsrv.ingest.derivation import Remembered
from streamsrv.ingest.response import StoreResult
from streamsrv.ingest.transaction import (
    EVENTS_AT_ONCE,
    HEAVY_INSTANCE,
    Ingest,
    IngestLimits,
)
from streamsrv.store import InstanceKey, OnDuplicate, Store, Transaction
from streamsrv.wire.multipart import Event

# Longer bodies are streamed: reading the dataset of one takes longer than others should wait for it.
SHORT_BODY = HEAVY_INSTANCE
# Bodies stored together at most.
MOST_TOGETHER = 16


@dataclass(slots=True, eq=False)
class ShortBody:
    """Call `received`; unless it is `long` then, Together stores it, and `result` or `error` is set."""

    parser: BodyParser
    part_type: str
    study: str | None
    events: list[Event] = field(default_factory=list)
    long: bool = False
    result: StoreResult | None = None
    error: Exception | None = None

    def received(self, buffer: bytearray, size: int) -> None:
        """The whole body is the first `size` bytes of `buffer`, which are left alone until it is stored. With
        very many parts it is long: others would wait for it. Raises MultipartError and ContentTooLarge."""
        self.events = self.parser.feed(buffer, size, most=EVENTS_AT_ONCE)
        self.long = self.parser.more


class Together:
    """Used by one thread at a time, but for `body`."""

    def __init__(
        self,
        store: Store,
        *,
        limits: IngestLimits | None = None,
        on_duplicate: OnDuplicate = OnDuplicate.REFUSE,
        remembered: Remembered | None = None,
    ) -> None:
        self._store = store
        self._limits = limits or IngestLimits()
        self._on_duplicate = on_duplicate
        self._remembered = remembered or Remembered()

    def body(self, content_type: str | None, study: str | None) -> ShortBody | None:
        """None if bodies of this type have to be taken alone. Raises UnsupportedMediaType."""
        parser, part_type = parser_for(content_type, self._limits.multipart)
        return None if part_type in METADATA_TYPES else ShortBody(parser, part_type, study)

    def store(self, bodies: Sequence[ShortBody]) -> None:
        """Blocking; what is said of each body is durable when it returns. Raises nothing."""
        while bodies:
            bodies = self._store_first(bodies)

    def _store_first(self, bodies: Sequence[ShortBody]) -> list[ShortBody]:
        """Returns those that share a key with one that was stored now."""
        later: list[ShortBody] = []
        taken: list[tuple[ShortBody, Ingest]] = []
        try:
            transaction = self._store.begin()
        except StreamsrvError as error:
            _fail(bodies, error)
            return later
        keys: set[InstanceKey] = set()
        try:
            for body in bodies:
                end = transaction.end
                ingest = self._take(body, transaction)
                if ingest is not None and keys.isdisjoint(ingest.keys):
                    keys |= ingest.keys
                    taken.append((body, ingest))
                    continue
                transaction.back_to(end)
                if ingest is not None:
                    later.append(body)
            self._commit(transaction, taken)
        except Exception as error:
            _fail([body for body in bodies if body.error is None and body not in later], error)
        finally:
            transaction.abort()
        return later

    def _take(self, body: ShortBody, transaction: Transaction) -> Ingest | None:
        try:
            ingest = Ingest(
                self._store,
                parser=(body.parser, body.part_type),
                study=body.study,
                limits=self._limits,
                on_duplicate=self._on_duplicate,
                remembered=self._remembered,
                transaction=transaction,
            )
            ingest.take_whole(body.events)
        except Exception as error:
            body.error = error
            return None
        return ingest

    def _commit(self, transaction: Transaction, taken: Sequence[tuple[ShortBody, Ingest]]) -> None:
        waiting = chain.from_iterable(ingest.waiting for _, ingest in taken)
        outcomes = iter(transaction.commit(waiting, self._on_duplicate))
        for body, ingest in taken:
            body.result = ingest.conclude(outcomes)


def _fail(bodies: Sequence[ShortBody], error: Exception) -> None:
    for body in bodies:
        body.error = error

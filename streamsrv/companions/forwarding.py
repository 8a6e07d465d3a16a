"""Forwarding: the instances of a study go to a peer when the study is complete.

Strategy: a completion names the changes that have added to the study since the one before. A search finds
their instances that match the rule of the hook. They go in batches, and the bytes from the segments to the
socket by pieces. After a failure the next attempt begins behind the last batch that the peer has answered.

Rules of this file
- An instance that the peer has already counts as delivered.
- The peer may be away for days: only a refusal of instances, or an internal error of the peer, can make a
  dead letter. Instances that are refused do not keep the others from it.
- An instance whose bytes have changed on the disk is not sent whole: the connection closes before its end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple, Protocol

import orjson

from streamsrv.client.connection import (
    STORED,
    Progress,
    Reply,
    ReplyError,
    ServiceRefused,
    StoreConnection,
    results_of,
)
from streamsrv.client.credentials import Credentials, arguments_of, credentials_of
from streamsrv.client.files import FileChanged, Limit, batches
from streamsrv.companions.delivery import ATTEMPTS, DEADLINE, NotDelivered, checked_address
from streamsrv.config import SettingsError
from streamsrv.errors import InstanceDamaged, SegmentGone
from streamsrv.events import ToldEvent
from streamsrv.events.hooks import Hook
from streamsrv.events.tail import COMPLETE
from streamsrv.query.attributes import Level, Position
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import Query, query_of
from streamsrv.search.parameters import SearchLimits, parameters_of
from streamsrv.store import (
    InstanceKey,
    InstanceRow,
    Store,
    damaged_record,
    refusal,
    serial_of,
)
from streamsrv.tools.outgoing.store_source import UNLIMITED, copy_bytes

REQUEST = Limit(instances=100, size=64 << 20)
# Instances of a study that the peer refuses: with more of them the rest is not sent.
MOST_REFUSED = 1_000
# Attempts at instances that are refused: 13 seconds.
REFUSALS = 8
# Attempts to read an instance that compaction moves.
READS = 5
SHOWN = 10  # reasons of a dead letter
TIMEOUT = 300.0  # seconds of silence
# A peer may answer duplicates with one of these (this server; PS3.7 C.5.10).
ALREADY = frozenset((45070, 0x0111))
OUT_OF_RESOURCES = range(0xA700, 0xA800)  # PS3.4 B.2.3
# Statuses by which a peer refuses the instances of a request.
REFUSING = frozenset((400, 411, 413, 414, 415, 422))
LOST = "changes are gone before they were forwarded: search for studies that the peer lacks"


class StoredInstance(NamedTuple):
    """An instance of the store, to send (client.connection.Part10Bytes)."""

    store: Store
    row: InstanceRow

    @property
    def uid(self) -> str:
        return self.row.key.instance

    @property
    def length(self) -> int:
        return self.row.location.length

    def send(self, sock: socket.socket, progress: Progress) -> None:
        """Raises FileChanged if it was deleted or replaced, InstanceDamaged, OSError."""
        lost = ""
        for _ in range(READS):
            found = self.store.instance(self.row.key)  # compaction may have moved it
            if found is None or found[0].record_id != self.row.record_id:
                break
            held = b""

            def write(piece: bytes) -> None:
                nonlocal held
                sock.sendall(held)
                held = piece

            try:
                copy_bytes(self.store, found[0], write)
                sock.sendall(held)
                return
            except SegmentGone as gone:
                lost = gone.lost
            if held:
                break
        else:
            raise refusal([damaged_record(self.row, lost)])
        raise FileChanged(f"the instance {self.uid} was deleted or replaced")


class Refusal(NamedTuple):
    """An instance that the peer does not take."""

    instance: StoredInstance
    reason: str


class Peer(Protocol):
    """Takes batches of instances."""

    def send(self, batch: Sequence[StoredInstance]) -> list[Refusal]:
        """Raises NotDelivered if none can be sent now, InstanceDamaged."""

    def close(self) -> None: ...


class DicomwebPeer:
    """A DICOMweb service (STOW-RS, PS3.18 10.5). It opens its connection when it is needed."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._connection: StoreConnection | None = None
        self._login = Credentials()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def send(self, batch: Sequence[StoredInstance]) -> list[Refusal]:
        try:
            reply = self._opened().store(batch)
            if reply.status in (200, 202, 409):
                return list(self._refusals(batch, reply))
        except SettingsError as fault:
            raise NotDelivered(fault.detail) from None
        except (ServiceRefused, ReplyError, OSError) as fault:
            text = self._login.redact(str(fault) or type(fault).__name__)
            raise NotDelivered(text) from None
        reason = self._login.redact(reply.explanation())
        if reply.status not in REFUSING:
            after = reply.retry_after() if reply.status in (429, 503) else 0.0
            raise NotDelivered(reason, after=after, most=ATTEMPTS if reply.status == 500 else 0)
        if len(batch) == 1:
            return [Refusal(batch[0], reason)]
        return [refusal for each in batch for refusal in self.send([each])]

    def _opened(self) -> StoreConnection:
        """Raises SettingsError if the credentials cannot be read."""
        if self._connection is None:
            self._login = credentials_of(arguments_of(self._hook.login), self._hook.url)
            self._connection = StoreConnection(
                self._hook.url, TIMEOUT, lambda sent: None, self._login, self._open_socket
            )
        return self._connection

    def _open_socket(self, place: tuple[str, int], timeout: float) -> socket.socket:
        address = checked_address(*place, local=self._hook.local)
        opened = socket.create_connection(address, DEADLINE)
        opened.settimeout(timeout)
        return opened

    def _refusals(self, batch: Sequence[StoredInstance], reply: Reply) -> Iterator[Refusal]:
        for each, reason, comment in results_of(batch, reply):
            text = self._login.redact(f"reason {reason}: {comment}" if reason > 0 else comment or "refused")
            if reason in OUT_OF_RESOURCES:
                raise NotDelivered(f"the peer is out of resources: {text}")
            if reason != STORED and reason not in ALREADY:
                yield Refusal(each, text)


class Forwarder:
    """Sends the instances of completed studies to a peer. For one thread."""

    def __init__(
        self, hook: Hook, store: Store, peer: Peer, record: Callable[[str], None] = lambda study: None
    ) -> None:
        """`store` is the view that the hook is told of. `record` is called with each study that was sent, and
        raises OSError. Raises BadRequest."""
        asked = parameters_of(hook.query, Level.INSTANCE, SearchLimits())
        self._query = query_of(Level.INSTANCE, None, None, asked.matching, asked.options)
        self._store = store
        self._peer = peer
        self._record = record
        self._event: ToldEvent | None = None
        self._after: Position | None = None
        self._sent = 0  # instances of the event
        self._refused: dict[InstanceKey, str] = {}

    def close(self) -> None:
        self._peer.close()

    def deliver(self, message_id: str, event: ToldEvent) -> bool:
        if event.name != COMPLETE:
            raise NotDelivered(LOST, most=1)
        if self._event != event:
            self._event, self._after, self._sent, self._refused = event, None, 0, {}
        before, again = self._sent, list(self._refused)
        try:
            for batch, last in self._batches(event):
                self._send(batch)
                self._after = last
                if len(self._refused) >= MOST_REFUSED:
                    break
            found = [row for key in again if (row := self._row(key)) is not None]
            for batch in batches((StoredInstance(self._store, row) for row in found), REQUEST):
                self._send(batch)
        except NotDelivered as error:
            error.progress = self._sent > before
            raise
        if self._refused:
            reason = f"{len(self._refused)} instances are refused: {next(iter(self._refused.values()))}"
            raise NotDelivered(reason, most=REFUSALS, letter=self._letter(event))
        if self._sent:
            self._record_sent(event.study)
        return self._sent > 0

    def _record_sent(self, study: str) -> None:
        try:
            self._record(study)
        except OSError as error:
            raise NotDelivered(f"the audit trail cannot be written: {error.strerror}") from None

    def _batches(self, event: ToldEvent) -> Iterator[tuple[list[StoredInstance], Position]]:
        """Batches behind `_after`, each with the position of its last instance."""
        query = replace(self._query, study=event.study, after=self._after)
        for batch in batches(self._instances(query, event), REQUEST):
            yield batch, Position(None, *batch[-1].row.key)

    def _instances(self, query: Query, event: ToldEvent) -> Iterator[StoredInstance]:
        for hit in self._store.index.search(query, Budget(UNLIMITED, UNLIMITED)):
            if hit.instance_row is None or hit.series is None or hit.instance is None:
                continue
            if event.first <= serial_of(hit.instance_row) <= event.position.complete:
                row = self._row(InstanceKey(hit.study, hit.series, hit.instance))
                if row is not None:
                    yield StoredInstance(self._store, row)

    def _row(self, key: InstanceKey) -> InstanceRow | None:
        """None if it was deleted meanwhile."""
        found = self._store.instance(key)
        if found is None:
            self._refused.pop(key, None)
        return found[0] if found else None

    def _send(self, batch: Sequence[StoredInstance]) -> None:
        """Sends all but the damaged instances."""
        whole = [each for each in batch if not each.row.damaged]
        bad = {each.row.key: "its bytes have changed on the disk" for each in batch if each.row.damaged}
        while whole:
            try:
                bad |= {refusal.instance.row.key: refusal.reason for refusal in self._peer.send(whole)}
                break
            except InstanceDamaged as error:
                key = InstanceKey(error.study, error.series, error.sop_instance)
                bad[key] = error.detail
                whole = [each for each in whole if each.row.key != key]
        for each in batch:
            self._refused.pop(each.row.key, None)
        self._refused |= bad
        self._sent += len(batch) - len(bad)

    def _letter(self, event: ToldEvent) -> bytes:
        reasons = {key.instance: reason for key, reason in islice(self._refused.items(), SHOWN)}
        return orjson.dumps(orjson.loads(event.data) | {"refused": len(self._refused), "reasons": reasons})

"""The folder of a store as the place where instances are brought to, also beside its server. Linux only.

Each batch is one transaction of the store: one segment, one sync, one commit.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from streamsrv.audit.entries import Event
from streamsrv.audit.trail import Trail
from streamsrv.client.verb import REASONS, Verdict
from streamsrv.errors import AlreadyStored
from streamsrv.ingest import Ingest, IngestLimits, InstanceBatch
from streamsrv.ingest.derivation import ReaderPool
from streamsrv.ingest.response import StoreResult
from streamsrv.options import audit_trail, ingest_limits
from streamsrv.settings import Settings
from streamsrv.store import OnDuplicate, Store
from streamsrv.tools.audit import entry_of_user
from streamsrv.tools.incoming.landing import BATCH_BYTES, BATCH_INSTANCES, Counted, Landed, Pieces
from streamsrv.tools.ownership import as_owner
from streamsrv.verbs import open_store
from streamsrv.wire.mediatypes import DICOM


class StoreDestination:
    """The store of the settings. `verb` is in the entries of its audit trail."""

    def __init__(self, settings: Settings, verb: str) -> None:
        """Raises StreamsrvError if there is no store, or if it cannot be written to."""
        self._store = open_store(settings, read_only=False)
        self._limits, self._policy = ingest_limits(settings), OnDuplicate(settings.on_duplicate)
        self._trail = audit_trail(settings)
        self._verb = verb

    def landing(self) -> StoreLanding:
        return StoreLanding(self._store, self._limits, self._policy, self._trail, self._verb)

    def close(self) -> None:
        if self._trail is not None:
            self._trail.close()
        self._store.close()


class StoreLanding:
    """Instances go into a segment at once; `flush` makes them valid."""

    def __init__(
        self, store: Store, limits: IngestLimits, policy: OnDuplicate, trail: Trail | None, verb: str
    ) -> None:
        self._store = store
        self._limits = limits
        self._policy = policy
        self._trail = trail
        self._verb = verb
        self._readers = ReaderPool()
        self._batch: InstanceBatch | None = None
        self._labels: list[str] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._labels) >= BATCH_INSTANCES or self._bytes >= BATCH_BYTES

    def _ingest(self) -> Ingest:
        return Ingest(
            self._store,
            content_type=DICOM,
            limits=self._limits,
            on_duplicate=self._policy,
            readers=self._readers,
        )

    def take(self, label: str, pieces: Pieces) -> int:
        if self._batch is None:
            self._batch = InstanceBatch(self._store, self._ingest)
        counted = Counted(pieces)
        self._batch.take(counted)
        self._labels.append(label)
        self._bytes += counted.bytes
        return counted.bytes

    def flush(self) -> list[Landed]:
        batch, labels = self._batch, self._labels
        self._batch, self._labels, self._bytes = None, [], 0
        if batch is None:
            return []
        results = batch.commit()
        self._audit({item.study for result in results for item in result.stored})
        return [_landed(label, result) for label, result in zip(labels, results, strict=True)]

    def _audit(self, studies: set[str]) -> None:
        """Raises OSError: the instances are stored, and a repeated run does not bring them again."""
        if self._trail is not None and studies:
            self._trail.append([entry_of_user(Event.STORED, study, self._verb) for study in sorted(studies)])

    def close(self) -> None:
        if self._batch is not None:
            with contextlib.suppress(OSError):
                self._batch.abort()
            self._batch = None


def _landed(label: str, result: StoreResult) -> Landed:
    if result.stored:
        return Landed(label, Verdict.STORED, result.stored[0].instance)
    if not result.failed:
        return Landed(label, Verdict.FAILED, "", "it is empty")
    failed = result.failed[0]
    if failed.failure_reason == AlreadyStored.failure_reason:
        return Landed(label, Verdict.ALREADY, failed.instance)
    text = f"{REASONS.get(failed.failure_reason, 'refused')}: {failed.comment}"
    return Landed(label, Verdict.FAILED, failed.instance, text)


def opened(settings: Settings, verb: str, held: contextlib.ExitStack) -> tuple[StoreDestination, Path]:
    """The destination, and the folder for tables of runs. `held` closes it. Raises StreamsrvError if there is
    no store, or if it cannot be written to."""
    data = Path(settings.data)
    if data.is_dir():
        held.enter_context(as_owner(data))
    destination = held.enter_context(contextlib.closing(StoreDestination(settings, verb)))
    folder = data / "runs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return destination, folder

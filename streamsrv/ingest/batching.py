"""Stores several bodies with one segment, one sync and one commit.

A body of one CT instance costs less than the lease of a segment, the sync and the commit. So bodies that have
arrived at the same time share these. Each has an outcome of its own, as if it had come alone.

Rules
- A body that is refused leaves nothing behind and does not affect the others.
- Of bodies with a key in common each sees the earlier ones as stored (store/transaction.py).
- A sync or a commit that fails has failed for all bodies that are not durable yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeAlias

from streamsrv.errors import InstanceRefused, RequestError, StreamsrvError
from streamsrv.ingest.response import FailedItem, StoreResult
from streamsrv.ingest.transaction import HEAVY_INSTANCE, Ingest
from streamsrv.store import Store, Transaction

# Longer bodies are streamed: the others would wait too long while the dataset of one is read.
SHORT_BODY = HEAVY_INSTANCE
LARGEST_BATCH = 16  # bodies

StoreOutcome: TypeAlias = StoreResult | Exception


def store_batch(store: Store, ingests: Sequence[Ingest]) -> list[StoreOutcome]:
    """Ends each ingest, which has not begun and has taken its whole body. Blocks; results are durable."""
    try:
        transaction = store.begin()
    except StreamsrvError as error:
        return [error] * len(ingests)
    outcomes: list[StoreOutcome | None] = [None] * len(ingests)
    try:
        for number, ingest in enumerate(ingests):
            end = transaction.end
            outcomes[number] = _written(ingest, transaction)
            if outcomes[number] is not None:
                transaction.back_to(end)
        taken = [number for number, outcome in enumerate(outcomes) if outcome is None]
        waiting = chain.from_iterable(ingests[number].waiting for number in taken)
        committed = transaction.committing(waiting)
        for number in taken:
            outcomes[number] = ingests[number].conclude(committed)
    except Exception as error:
        return [outcome or error for outcome in outcomes]
    finally:
        transaction.abort()
    return [outcome for outcome in outcomes if outcome is not None]


def _written(ingest: Ingest, transaction: Transaction) -> Exception | None:
    """Returns the error that refuses the body."""
    try:
        ingest.begin(transaction)
        ingest.read_to_end()
    except Exception as error:
        return error
    return None


class InstanceBatch:
    """Instances that come one after the other, each of any length. End it with `commit`, else with `abort`,
    which is safe to call twice."""

    def __init__(self, store: Store, ingest: Callable[[], Ingest]) -> None:
        """`ingest` makes the transaction of a body of one instance. Raises InsufficientStorage."""
        self._ingest = ingest
        self._transaction = store.begin()
        self._taken: list[Ingest | FailedItem] = []

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Writes the next instance. If `pieces` raises, so does this, and nothing of the instance is left.
        Blocks."""
        end = self._transaction.end
        ingest = self._ingest()
        try:
            ingest.begin(self._transaction)
            for piece in pieces:
                _feed(ingest, piece)
            ingest.read_to_end()
            self._taken.append(ingest)
        except RequestError as error:
            self._transaction.back_to(end)
            self._taken.append(FailedItem.of(InstanceRefused(error.detail)))
        except BaseException:
            self._transaction.back_to(end)
            ingest.abort()
            raise

    def commit(self) -> list[StoreResult]:
        """The result of each instance, in their order. Blocks; the results are durable."""
        try:
            waiting = chain.from_iterable(each.waiting for each in self._taken if isinstance(each, Ingest))
            committed = self._transaction.committing(waiting)
            results = [
                each.conclude(committed) if isinstance(each, Ingest) else StoreResult(failed=[each])
                for each in self._taken
            ]
        finally:
            self.abort()
        return results

    def abort(self) -> None:
        """Removes everything that is not committed."""
        self._transaction.abort()


def _feed(ingest: Ingest, piece: bytes | memoryview) -> None:
    ingest.feed(piece)
    while ingest.pending:
        ingest.read_ended()
    if ingest.sync_due:
        ingest.sync_so_far()

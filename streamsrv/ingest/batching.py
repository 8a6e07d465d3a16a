"""Stores several short bodies with one segment, one sync and one commit.

A body of one CT instance costs less than the lease of a segment, the sync and the commit. So bodies that have
arrived at the same time share these. Each has an outcome of its own, as if it had come alone.

Rules
- A body that is refused leaves nothing behind and does not affect the others.
- Of bodies with a key in common each sees the earlier ones as stored (store/transaction.py).
- A sync or a commit that fails has failed for all bodies that are not durable yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

from streamsrv.errors import StreamsrvError
from streamsrv.ingest.response import StoreResult
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

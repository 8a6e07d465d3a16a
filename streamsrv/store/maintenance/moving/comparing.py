"""Compares the instances of two stores."""

from __future__ import annotations

from collections.abc import Iterator

from streamsrv.store.index import Index, PackedRow, split_triple, unpacked
from streamsrv.store.rows import InstanceKey


def merged(one: Index, other: Index) -> Iterator[tuple[PackedRow | None, PackedRow | None]]:
    """The instances of both in the order of their keys; None for one that has none of this key. Instances
    that come or go meanwhile may be among them or not."""
    ones, others = every(one), every(other)
    mine, theirs = next(ones, None), next(others, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and mine[0] < theirs[0]):
            yield mine, None
            mine = next(ones, None)
        elif mine is None or theirs[0] < mine[0]:
            yield None, theirs
            theirs = next(others, None)
        else:
            yield mine, theirs
            mine, theirs = next(ones, None), next(others, None)


def every(index: Index, after: InstanceKey | None = None) -> Iterator[PackedRow]:
    """All instances behind a key, in pages."""
    while page := index.page(after):
        yield from page
        after = split_triple(page[-1][0])


def are_equal(one: PackedRow, other: PackedRow) -> bool:
    """Whether both rows are of the same record with the same bytes."""
    mine, theirs = unpacked(one), unpacked(other)
    return (mine.record_id, mine.stored_at, mine.digest, mine.location.length) == (
        theirs.record_id,
        theirs.stored_at,
        theirs.digest,
        theirs.location.length,
    )

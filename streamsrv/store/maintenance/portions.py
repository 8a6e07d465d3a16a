"""Long walks in portions, each for one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from streamsrv.store.rows import SLICE_INSTANCES, InstanceRow

Item = TypeVar("Item")


def portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Of SLICE_INSTANCES items; the last one may be shorter."""
    iterator = iter(items)
    while portion := list(islice(iterator, SLICE_INSTANCES)):
        yield portion


def sized_portions(rows: Iterable[InstanceRow], most: int) -> Iterator[list[InstanceRow]]:
    """Of at most SLICE_INSTANCES instances. The one that reaches `most` bytes is the last of its portion."""
    portion: list[InstanceRow] = []
    size = 0
    for row in rows:
        portion.append(row)
        size += row.location.length
        if len(portion) == SLICE_INSTANCES or size >= most:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion

"""The rows of the database leaving: what a deletion has left behind, which is seen by nobody.

    sequence u64 of its last change -> first serial u64, last serial u64, of each run of serials

Strategy: what tells that an instance is there (its own row, its study's and series', their entries in the
lists) goes with the commit that the deletion is answered after. What is only found by somebody who has that
row, or is looked at beside it, goes with a second one, after the answer: entries by UID, metadata, frame
tables, bulk values. That is half of all work. Between the two stands a row here. Which instances they were is
said by the change of the same sequence; one that has been stored again meanwhile has another serial, and
keeps its entry by UID.

Behind a row stands a checksum (`index_rows`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain, starmap
from typing import NamedTuple

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.changes import unpack_changes
from streamsrv.store.index.rows import number_key, triple, with_sum, without_sum

_RUN = struct.Struct("<QQ")


class Left(NamedTuple):
    """Of one deletion."""

    keys: Sequence[bytes]  # of its instances, in order
    serials: Sequence[int]  # ascending


def pack_serials(sequence: int, serials: Sequence[int]) -> bytes:
    """Ascending, one at least."""
    packed = b"".join(starmap(_RUN.pack, runs(serials)))
    return with_sum(number_key(sequence), packed)


def unpack_left(sequence: int, stored: bytes, changes: bytes) -> Left:
    """Of a row, and the change of the same sequence."""
    serials = unpack_serials(sequence, stored)
    return Left([triple(change.key) for change in unpack_changes(sequence, changes)], serials)


def unpack_serials(sequence: int, stored: bytes) -> list[int]:
    value = without_sum("leaving", number_key(sequence), stored)
    try:
        return list(chain.from_iterable(range(first, last + 1) for first, last in _RUN.iter_unpack(value)))
    except struct.error as error:
        raise StoreCorrupt(f"what change {sequence} has left behind cannot be read") from error


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of numbers that follow one another, in ascending order."""
    if not numbers:
        return
    first = last = numbers[0]
    for number in numbers:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last

"""The write transaction of the index, with its reads in bulk.

A batch asks for rows one by one, which costs nothing in LMDB. Here each request names them before, so that
they come in one round trip.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamsrv.store.index import (
    Batch,
    PackedRow,
    Prepared,
    Removal,
    number_key,
    record_id_of,
    runs,
    segment_in,
    segment_key,
    triple,
    variant_key,
    variant_of,
)
from streamsrv.store.ordered_map import Transaction
from streamsrv.store.postgresql.tables import Table
from streamsrv.store.rows import InstanceRow, Location


class TableBatch(Batch):
    def __init__(self, transaction: Transaction, handles: dict[str, Table], keep_changes: int = 0) -> None:
        super().__init__(transaction, handles, keep_changes)
        self._removal = TableRemoval(transaction, handles, self._levels)

    def _last_change_row(self) -> PackedRow | None:
        """Read with the head row."""
        row: PackedRow | None = self._transaction.last_change
        return row

    def store(
        self, new: Sequence[Prepared], segment: int, end: int, dead: int, replaced: Sequence[InstanceRow]
    ) -> None:
        self._read_before(new, segment, replaced)
        super().store(new, segment, end, dead, replaced)

    def _read_before(self, new: Sequence[Prepared], segment: int, replaced: Sequence[InstanceRow]) -> None:
        keys = [each.row.key for each in new]
        self._transaction.expect(
            [
                ("instances", [each.key for each in new]),
                ("series", [f"{study}\0{series}".encode() for study, series, _ in keys]),
                ("variants", [variant_key(each.row.key, each.variant) for each in new]),
                ("studies", [study.encode() for study, _, _ in keys]),
                ("segments", [segment_key(number) for number in _segments(segment, replaced)]),
            ]
        )

    def delete(self, rows: Sequence[PackedRow], segment: int, end: int, dead: int) -> int:
        series = {key.rpartition(b"\0")[0] for key, _ in rows}
        variants = {key.rpartition(b"\0")[0] + b"\0" + variant_of(value) for key, value in rows}
        segments = {segment, *(segment_in(value) for _, value in rows)}
        self._transaction.expect(
            [
                ("instances", [key for key, _ in rows]),
                ("series", series),
                ("variants", variants),
                ("studies", {key.partition(b"\0")[0] for key in series}),
                ("segments", [segment_key(number) for number in segments]),
            ]
        )
        return super().delete(rows, segment, end, dead)

    def relocate(self, moves: Sequence[tuple[InstanceRow, Location]], segment: int, end: int) -> list[bool]:
        rows = [row for row, _ in moves]
        self._transaction.expect(
            [
                ("instances", [triple(row.key) for row in rows]),
                ("segments", [segment_key(number) for number in _segments(segment, rows)]),
            ]
        )
        return super().relocate(moves, segment, end)


class TableRemoval(Removal):
    """Rows that need not be read go by their keys."""

    def still(self, rows: Sequence[PackedRow]) -> Sequence[PackedRow]:
        found: list[PackedRow] = self._transaction.getmulti(
            self._handles["instances"], [key for key, _ in rows]
        )
        records = {key: record_id_of(value) for key, value in rows}
        return [(key, value) for key, value in found if record_id_of(value) == records[key]]

    def _delete_instances(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._transaction.delete(key, db=self._handles["instances"])

    def _delete_uids(self, series: bytes, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._transaction.delete(b"i" + key[len(series) + 1 :], series, db=self._handles["uids"])

    def _delete_owned(self, name: str, serials: Sequence[int]) -> None:
        ranges = [(number_key(first), number_key(last + 1)) for first, last in runs(serials)]
        self._transaction.delete_ranges(self._handles[name], ranges)


def _segments(segment: int, rows: Sequence[InstanceRow]) -> set[int]:
    return {segment, *(row.location.segment for row in rows)}

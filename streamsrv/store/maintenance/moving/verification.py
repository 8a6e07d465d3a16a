"""Reads the bytes that a move has brought to its target, and compares them with the digests of their arrival.

Rules of this file
- Each instance is read once, also if the move is killed: a cursor in the state of the move says how far the
  reading has come.
- A damaged instance is registered. Its reason tells whether the source has it whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store.index import DamagedRecord, serial_of, split_triple, unpacked
from streamsrv.store.maintenance.moving.copying import BEFORE_THE_MOVE, MoveReport, patiently
from streamsrv.store.maintenance.moving.mark import MoveState, last_sequence
from streamsrv.store.rows import InstanceKey, InstanceRow
from streamsrv.store.segments.verifying import SHORT_OBJECT, damage_of, damaged_record
from streamsrv.store.store import Store


class TargetVerification:
    """Threads share it."""

    def __init__(self, source: Store, target: Store, report: MoveReport, stopped: threading.Event) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._stopped = stopped

    def pages(self, state: MoveState) -> Iterator[list[InstanceRow]]:
        """The instances that are to be read. Moves the cursor when the next page is taken."""
        if not state.until:
            state.until, state.after = last_sequence(self._target), ""
        after = InstanceKey(*state.after.split("/")) if state.after else None
        while state.until > state.verified and (page := self._target.index.page(after)):
            after = split_triple(page[-1][0])
            wanted = (each for each in page if state.verified < serial_of(each[1]) <= state.until)
            if rows := list(map(unpacked, wanted)):
                yield rows
                state.after = "/".join(after)
        state.verified, state.until, state.after = max(state.until, state.verified), 0, ""

    def read(self, rows: Sequence[InstanceRow]) -> None:
        """Raises StreamsrvError."""
        patiently(lambda: self._read(rows), self._stopped)
        self._report.add("verified", len(rows))

    def _read(self, rows: Sequence[InstanceRow]) -> None:
        known = {each.record_id for each in self._target.damaged_among([row.record_id for row in rows])}
        damaged: list[DamagedRecord] = []
        for row in rows:
            if row.record_id not in known and (reason := damage_in(self._target, row)):
                damaged.append(damaged_record(row, self._origin(row) or reason))
        if damaged:
            self._target.index.register_damage(damaged)

    def _origin(self, row: InstanceRow) -> str:
        """BEFORE_THE_MOVE if the source has the same damage, else an empty text."""
        (ours,) = self._source.index.existing([row.key])
        same = ours is not None and ours.record_id == row.record_id
        return BEFORE_THE_MOVE if ours is not None and same and damage_in(self._source, ours) else ""


def damage_in(store: Store, row: InstanceRow) -> str:
    """The reason if the bytes of an instance are not those that arrived, else an empty text."""
    try:
        with store.open_segments([row.location.segment]) as lease:
            return damage_of(store.form, lease, row)
    except SegmentGone as gone:
        return gone.lost
    except StoreCorrupt:
        return SHORT_OBJECT
    except OSError as error:
        return f"its bytes cannot be read: {error.strerror}"

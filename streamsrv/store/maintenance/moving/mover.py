"""Moves a store to another engine while its servers work.

Strategy: all instances of both are compared, and those that the target lacks are copied. Then the changes of
the source are read from the position at which the move began: each changed instance gets in the target the
state that it has in the source. At last the bytes of the target are read again (verification.py), and the
rows of both are compared.

Each run begins so, and finds its work by comparing. So a move that was killed at any moment goes on.

Rules of this file
- An instance leaves the target only if a change of the source names it. If the source has forgotten changes,
  also if the source does not have it.
- A position is noted when the target has all changes before it.
- A few portions of instances are on their way, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeAlias

from streamsrv.errors import StreamsrvError
from streamsrv.store.index import record_id_of, split_triple, unpacked
from streamsrv.store.maintenance.check import Derive
from streamsrv.store.maintenance.moving import mark
from streamsrv.store.maintenance.moving.comparing import are_equal, merged
from streamsrv.store.maintenance.moving.copying import BEFORE_THE_MOVE, InstanceCopier, MoveReport
from streamsrv.store.maintenance.moving.verification import TargetVerification
from streamsrv.store.maintenance.portions import sized_portions
from streamsrv.store.rows import Change, InstanceKey, InstanceRow
from streamsrv.store.store import Store

Portion: TypeAlias = Sequence[InstanceRow]

PORTION_BYTES = 128 << 20
CHANGES = 1_000
REDRAW = 0.2  # seconds
MOST_NAMED = 10_000  # instances that differ
LOOKS = 3  # at an instance that differs, before it is named


class Mover:
    """One run. `show` is called now and then. Close it."""

    def __init__(
        self,
        source: Store,
        target: Store,
        derive: Derive,
        report: MoveReport,
        *,
        parallel: int,
        show: Callable[[], None],
    ) -> None:
        """Raises StoreError if the target is that of another move, or not empty."""
        self._source = source
        self._target = target
        self._report = report
        self._show = show
        self._state = mark.begun(source, target)
        self._copier = InstanceCopier(source, target, derive, report)
        self._verification = TargetVerification(source, target, report, self._copier.stopped)
        self._parallel = parallel
        self._threads = ThreadPoolExecutor(parallel)

    def close(self) -> None:
        """Waits for the portions that are on their way."""
        self._copier.stopped.set()
        self._threads.shutdown()

    @property
    def position(self) -> int:
        """The target has the changes of the source up to this sequence."""
        return self._state.position

    # Copying

    def copy(self) -> None:
        """Bring everything that the target lacks."""
        forgets = self._forgets()
        if forgets:
            self._state.epoch = self._source.index.about()["epoch"]
            self._state.position = mark.last_sequence(self._source)
        self._all(self._copier.copy, self._missing(forgets))
        mark.save(self._target, self._state)
        self.catch_up()

    def _forgets(self) -> bool:
        """Whether changes behind the position are gone, or are counted in another way. A database that was
        set back has fewer."""
        about, last = self._source.index.about(), mark.last_sequence(self._source)
        known = int(about["first_change"]) <= self.position + 1 <= last + 1
        return about["epoch"] != self._state.epoch or not known

    def _missing(self, forgets: bool) -> Iterator[InstanceRow]:
        gone: list[InstanceKey] = []
        for ours, theirs in merged(self._source.index, self._target.index):
            if ours is None:
                if forgets and theirs is not None:
                    gone.append(split_triple(theirs[0]))
            elif theirs is None or record_id_of(ours[1]) != record_id_of(theirs[1]):
                yield unpacked(ours)
            if len(gone) >= CHANGES:
                self._remove(gone)
                gone = []
        self._remove(gone)

    def catch_up(self) -> None:
        """Apply the changes of the source behind the position."""
        while changes := self._source.changes(self.position, CHANGES):
            if self._forgets():
                self.copy()
                return
            self._apply(changes)
            self._state.position = changes[-1].sequence
            mark.save(self._target, self._state)

    def _apply(self, changes: Sequence[Change]) -> None:
        keys = sorted({change.key for change in changes})
        ours = dict(self._source.index.packed_rows(keys))
        theirs = dict(self._target.index.packed_rows(keys))
        self._remove([split_triple(key) for key in theirs if key not in ours])
        wanted = [
            unpacked((key, value))
            for key, value in ours.items()
            if key not in theirs or record_id_of(theirs[key]) != record_id_of(value)
        ]
        self._all(self._copier.copy, wanted)

    def _remove(self, keys: Sequence[InstanceKey]) -> None:
        """Remove instances from the target. A study or series that the source does not have goes as a
        whole."""
        removed = set[tuple[str, ...]]()
        for study, series, instance in keys:
            if (study,) in removed or (study, series) in removed:
                continue
            target: tuple[str, ...] = (study, series, instance)
            if not self._source.index.count(study):
                target = (study,)
            elif not self._source.index.count(study, series):
                target = (study, series)
            removed.add(target)
            self._report.add("deleted", self._target.delete(*target))

    def _all(self, work: Callable[[Portion], None], rows: Iterable[InstanceRow]) -> None:
        """Do the work in threads, a portion of the rows at a time. Raises the first error."""
        under_way = set[Future[None]]()
        for portion in sized_portions(rows, PORTION_BYTES):
            while len(under_way) >= self._parallel:
                under_way = self._others(under_way)
            under_way.add(self._threads.submit(work, portion))
        while under_way:
            under_way = self._others(under_way)

    def _others(self, under_way: set[Future[None]]) -> set[Future[None]]:
        """Waits a little; returns those that have not ended."""
        done, others = wait(under_way, REDRAW, FIRST_COMPLETED)
        for each in done:
            each.result()
        self._show()
        return others

    # The end

    def verify(self) -> None:
        """Read the bytes of the target that were not read before. Damaged instances are registered."""
        for rows in self._verification.pages(self._state):
            self._all(self._verification.read, rows)
            mark.save(self._target, self._state)
        mark.save(self._target, self._state)

    def compare(self) -> int:
        """Compare the instances of both. Names those that differ, and returns their number."""
        different = list(islice(self._different(), MOST_NAMED))
        for _ in range(LOOKS):
            if different:
                self.catch_up()
                different = self._still(different)
        for key in different:
            self._report.fail(f"{'/'.join(key)}: {self._copier.reasons.get(key) or self._difference(key)}")
        return len(different)

    def _different(self) -> Iterator[InstanceKey]:
        for ours, theirs in merged(self._source.index, self._target.index):
            self._report.add("instances", theirs is not None)
            if ours is None or theirs is None or not are_equal(ours, theirs):
                (key, _) = ours or theirs or (b"", b"")
                yield split_triple(key)

    def _still(self, keys: Sequence[InstanceKey]) -> list[InstanceKey]:
        ours, theirs = (
            {split_triple(row[0]): row for row in store.index.packed_rows(keys)}
            for store in (self._source, self._target)
        )
        return [
            key
            for key in keys
            if (key in ours) != (key in theirs) or (key in ours and not are_equal(ours[key], theirs[key]))
        ]

    def _difference(self, key: InstanceKey) -> str:
        if not self._target.index.packed_rows([key]):
            return "it is not in the target"
        if not self._source.index.packed_rows([key]):
            return "it is in the target only"
        return "the rows of both stores differ: run `streamsrv check` on the source"

    def name_damaged(self) -> int:
        """Name the damaged instances of the target. Returns the number of those that the source has whole."""
        after, whole = b"", 0
        while page := self._target.index.damage(after):
            after = page[-1].record_id
            for record in page:
                self._report.fail(f"{'/'.join(record.key or ('?',))}: damaged, {record.reason}")
                whole += record.reason != BEFORE_THE_MOVE
        return whole

    def end(self) -> None:
        """Let servers open the target. Raises StreamsrvError if the source has changed since."""
        if mark.last_sequence(self._source) != self.position:
            raise StreamsrvError(
                "the source was written to meanwhile: stop its servers, or start them with --read-only, and "
                "repeat the command"
            )
        mark.end(self._target)

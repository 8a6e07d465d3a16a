"""Changes as events, one after the other from a position, with the completion of studies between them.

A study is *complete* when nothing was added to it for `quiet` seconds. Its last addition counts: time and
sequence. So the completions follow from the log of changes, and nothing about them is stored.

Rules
- Two readers of the same view get the same events in the same order. A completion comes before the first
  change that is not older than its end. Both numbers of a position only grow.
- Without such a change it comes SETTLED seconds later, when no commit with an older time can appear.
- A study that is gone by then is not told.
- Changes that are gone, or that count in another epoch, cannot be told: `begin` returns False.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from streamsrv.events.changes import ChangedInstances, members_of, time_text
from streamsrv.store import Change, ChangeKind, Store

PAGE = 500
# Seconds between the time of a change and its commit, at most. A longer commit tells its studies twice.
SETTLED = 1.0
SECOND = 1_000_000
COMPLETE, RESET = "complete", "reset"


class EventPosition(NamedTuple):
    """Behind the change `sequence`, and behind the completion of the study whose last addition is the change
    `complete`."""

    sequence: int
    complete: int = 0

    def further(self, other: EventPosition) -> EventPosition:
        return EventPosition(max(self.sequence, other.sequence), max(self.complete, other.complete))


class ToldEvent(NamedTuple):
    """`name` is the action of a change, or `complete`. `position` is behind the event. `first` belongs to a
    completion: the first addition since the one before, or 0 if it is not known."""

    position: EventPosition
    name: str
    study: str
    data: bytes
    first: int = 0

    def is_behind(self, position: EventPosition) -> bool:
        if self.name == COMPLETE:
            return self.position.complete > position.complete
        return self.position.sequence > position.sequence


class ChangeTail:
    """Reads the events of `store`, a view of `whole` or the same. Blocks; for one thread at a time. `quiet`
    is in seconds; with 0 no completion is told. `clock` returns seconds since 1970."""

    def __init__(
        self, store: Store, whole: Store, quiet: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._whole = whole
        self._quiet = int(quiet * SECOND)
        self._clock = clock
        # Study -> time and sequence of its last addition, sequence of its first one.
        self._growing: dict[str, tuple[int, int, int]] = {}
        self.position = EventPosition(0)

    def begin(self, position: EventPosition | None) -> bool:
        """Begins behind the position; None is now. False if changes behind it cannot be told: it has begun
        now."""
        last = self.last_sequence()
        if position is not None and self._whole.first_change() - 1 <= position.sequence <= last:
            self._begin_behind(position)
            return True
        start = min(self._whole.changes_before(self._settled() - self._quiet + 1), last)
        self._begin_at(EventPosition(last, start))
        return position is None

    def _begin_behind(self, position: EventPosition) -> None:
        sequence, complete = position
        at = next((each.at for each in self._whole.changes(sequence - 1, 1)), 0) if sequence else 0
        told = self._whole.changes_before(at - self._quiet + 1) if at else sequence
        self._begin_at(EventPosition(sequence, min(max(complete, told), sequence)))

    def _begin_at(self, position: EventPosition) -> None:
        self.position = position
        self._growing = {}
        after = position.complete
        while page := self._store.changes(after, PAGE):
            for change in page:
                if change.sequence > position.sequence:
                    return
                self._grow(change, 0)
            after = page[-1].sequence

    def read(self, limit: int = PAGE) -> list[ToldEvent]:
        """The next events: those of `limit` changes at most. Empty if there are none yet."""
        last, told = self.last_sequence(), list[ToldEvent]()
        changes = self._store.changes(self.position.sequence, limit)
        instances = ChangedInstances(self._store, changes)
        for change in changes:
            told += self._completed(change.at)
            self._grow(change, change.sequence)
            self.position = self.position._replace(sequence=change.sequence)
            members = members_of(change, instances.state(change))
            told.append(self._event(members["action"], change.key.study, members))
        if len(changes) < limit:
            self.position = self.position._replace(sequence=max(last, self.position.sequence))
            settled = self._settled()
            told += self._completed(settled)
            # Additions up to here are told, or another one came after them.
            past = self._whole.changes_before(settled - self._quiet + 1)
            sequence, complete = self.position
            self.position = EventPosition(sequence, max(complete, min(past, sequence)))
        return told

    def last_sequence(self) -> int:
        """The latest change of the whole store, 0 without one."""
        last = self._whole.latest_change()
        return last.sequence if last is not None else 0

    def _settled(self) -> int:
        return int((self._clock() - SETTLED) * SECOND)

    def _grow(self, change: Change, first: int) -> None:
        if change.kind is not ChangeKind.DELETED and self._quiet:
            *_, first = self._growing.pop(change.key.study, (first,))  # it becomes the last one
            self._growing[change.key.study] = change.at, change.sequence, first

    def _completed(self, until: int) -> Iterator[ToldEvent]:
        while self._growing:
            study, (at, sequence, first) = next(iter(self._growing.items()))
            if at + self._quiet > until:
                return
            del self._growing[study]
            self.position = self.position._replace(complete=sequence)
            if count := self._store.index.count(study):
                members = {
                    "sequence": sequence,
                    "studyInstanceUid": study,
                    "action": COMPLETE,
                    "timestamp": time_text(at + self._quiet),
                    "instances": count,
                }
                yield self._event(COMPLETE, study, members, first)

    def _event(self, name: str, study: str, members: dict[str, Any], first: int = 0) -> ToldEvent:
        return ToldEvent(self.position, name, study, orjson.dumps(members), first)


class TailSource(NamedTuple):
    """`tail` makes a reader. `version` is that of the index, and `epoch` the one in which changes count."""

    tail: Callable[[], ChangeTail]
    version: Callable[[], int]
    epoch: Callable[[], str]

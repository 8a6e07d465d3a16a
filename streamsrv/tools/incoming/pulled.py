"""The instances that a pull has seen and stored: a table of the run.

Rules of this file
- A run that is repeated asks only for instances that are not stored. It finds studies that have not changed
  by the number of their instances.
- An instance is stored before its row says so.
- An instance that the source has replaced since is wanted again, until it was stored (`again`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from streamsrv.client.changes import ChangeMark
from streamsrv.client.verb import Verdict
from streamsrv.config import SettingsError
from streamsrv.run_table import open_table

BATCH = 1_000  # rows of one commit
SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS studies (
    study TEXT PRIMARY KEY, run INTEGER, position INTEGER, offered INTEGER, instances INTEGER DEFAULT -1
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS studies_by_position ON studies (run, position);
CREATE TABLE IF NOT EXISTS instances (
    study TEXT, instance TEXT, series TEXT, run INTEGER, state TEXT DEFAULT '', reason TEXT DEFAULT '',
    again INTEGER DEFAULT 0, PRIMARY KEY (study, instance, series)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_by_series ON instances (study, series, instance);
"""
GONE = "gone"
THERE = f"('{Verdict.STORED.value}', '{Verdict.ALREADY.value}')"
OPEN = "state = ''"
ONE = "(study, instance, series) = (?, ?, ?)"
# Instances that the source has in this run.
OF_RUN = "study = ? AND run = ?"


class WantedResource(NamedTuple):
    """A study, a series or an instance to retrieve; empty UIDs are those below it."""

    study: str
    series: str = ""
    instance: str = ""


class PlannedStudy(NamedTuple):
    """`is_same`: it was brought as a whole, and the source has as many instances now."""

    uid: str
    is_same: bool


class PulledInstances:
    """Thread-safe. Raises StreamsrvError if another run uses the table. Close it."""

    def __init__(self, path: Path, source: str, target: str) -> None:
        self._lock = threading.Lock()
        self._waiting = 0  # changes behind the last commit
        self._rows = open_table(path, SCHEMA, "pull", by_threads=True)
        try:
            for name, value in (("source", source), ("target", target)):
                known = self._about(name, value)
                if known != value:
                    raise SettingsError(f"{path} is the table of {name} {known}: give another file (--run)")
            self._run = int(self._about("run", "0")) + 1
            self._rows.execute("UPDATE about SET value = ? WHERE name = 'run'", (str(self._run),))
            self._commit()
        except BaseException:
            self._rows.close()
            raise

    def _about(self, name: str, value: str) -> str:
        self._rows.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
        row = self._rows.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return str(row[0])

    def close(self) -> None:
        with self._lock:
            self._commit()
            self._rows.close()

    def _commit(self) -> None:
        self._rows.execute("COMMIT")
        self._rows.execute("BEGIN EXCLUSIVE")
        self._waiting = 0

    def _change(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Takes the rows without the lock, because they may come from a service."""
        source = iter(rows)
        while some := list(islice(source, BATCH)):
            with self._lock:
                self._rows.executemany(statement, some)
                self._waiting += len(some)
                if self._waiting >= BATCH:
                    self._commit()

    # Replaced instances

    @property
    def mark(self) -> ChangeMark | None:
        """The newest change of the source that this table knows."""
        row = self._one("SELECT value FROM about WHERE name = 'mark'")
        return ChangeMark(*json.loads(str(row[0]))) if row else None

    def remember(self, mark: ChangeMark) -> None:
        with self._lock:
            self._rows.execute("INSERT OR REPLACE INTO about VALUES ('mark', ?)", (json.dumps(mark),))
            self._commit()

    def want_again(self, instances: Iterable[tuple[str, str, str]]) -> int:
        """Those that were stored; returns their number."""
        number = 0
        for study, series, instance in instances:
            update = f"UPDATE instances SET state = '', again = 1 WHERE state IN {THERE} AND {ONE}"
            with self._lock:
                found = self._rows.execute(update, (study, instance, series)).rowcount
                if found:
                    self._rows.execute("UPDATE studies SET instances = -1 WHERE study = ?", (study,))
            number += found
        return number

    def forget(self) -> None:
        """All instances are wanted again."""
        with self._lock:
            self._rows.execute("UPDATE instances SET state = '', again = 0")
            self._rows.execute("UPDATE studies SET instances = -1")
            self._commit()

    def is_replaced(self, study: str, instance: str) -> bool:
        """Whether the source has replaced an instance that was stored before."""
        select = "SELECT 1 FROM instances WHERE study = ? AND instance = ? AND again"
        return self._one(select, study, instance) is not None

    # Studies

    def plan(self, studies: Iterable[tuple[str, int]]) -> int:
        """The studies that the source has, with their numbers of instances; returns how many these are."""
        insert = "INSERT INTO studies (study, run, position, offered) VALUES (?, ?, ?, ?) "
        again = "ON CONFLICT DO UPDATE SET (run, position, offered) = "
        values = "(excluded.run, excluded.position, excluded.offered)"
        rows = ((study, self._run, at, count) for at, (study, count) in enumerate(studies))
        self._change(insert + again + values, rows)
        row = self._one("SELECT count(*) FROM studies WHERE run = ?", self._run)
        return int(str(row[0])) if row else 0

    def studies(self) -> Iterator[PlannedStudy]:
        """The studies of the plan."""
        select = "SELECT position, study, offered >= 0 AND offered = instances FROM studies "
        at: object = -1
        while row := self._one(f"{select} WHERE (run, position) > (?, ?) LIMIT 1", self._run, at):
            at = row[0]
            yield PlannedStudy(str(row[1]), bool(row[2]))

    def finish(self, study: str) -> bool:
        """Remembers the number of instances, if all are stored; returns whether they are."""
        with self._lock:
            select = f"SELECT count(*), sum(state IN {THERE}) FROM instances WHERE {OF_RUN}"
            number, there = self._rows.execute(select, (study, self._run)).fetchone()
            if number == (there or 0):
                self._rows.execute("UPDATE studies SET instances = ? WHERE study = ?", (number, study))
            return bool(number == (there or 0))

    # Instances

    def expect(self, study: str, found: Iterable[tuple[str, str]]) -> None:
        """The series and instances that the source has now. Those that have failed before are wanted
        again."""
        insert = "INSERT INTO instances (study, series, instance, run) VALUES (?, ?, ?, ?) "
        again = f"ON CONFLICT DO UPDATE SET run = excluded.run, state = iif(state IN {THERE}, state, '')"
        self._change(insert + again, ((study, *each, self._run) for each in found))

    def whole(self, study: str) -> Iterator[WantedResource]:
        """The study, if nothing of it is there."""
        with self._lock:
            select = f"SELECT count(*), sum({OPEN}) FROM instances WHERE {OF_RUN}"
            number, wanted = self._rows.execute(select, (study, self._run)).fetchone()
        if number and number == wanted:
            yield WantedResource(study)

    def whole_series(self, study: str) -> Iterator[WantedResource]:
        """The series of which nothing is there, and that have several instances."""
        select = (
            f"SELECT series FROM instances WHERE {OF_RUN} AND series > ? GROUP BY series "
            f"HAVING count(*) = sum({OPEN}) AND count(*) > 1 ORDER BY series LIMIT 1"
        )
        series = ""
        while row := self._one(select, study, self._run, series):
            series = str(row[0])
            yield WantedResource(study, series)

    def single(self, study: str) -> Iterator[WantedResource]:
        """Each instance that is wanted."""
        select = (
            f"SELECT series, instance FROM instances WHERE {OF_RUN} AND {OPEN} "
            "AND (series, instance) > (?, ?) ORDER BY series, instance LIMIT 1"
        )
        last: tuple[str, str] = ("", "")
        while row := self._one(select, study, self._run, *last):
            last = str(row[0]), str(row[1])
            yield WantedResource(study, *last)

    def _one(self, select: str, *values: object) -> tuple[object, ...] | None:
        with self._lock:
            row: tuple[object, ...] | None = self._rows.execute(select, values).fetchone()
        return row

    def is_open(self, wanted: WantedResource) -> bool:
        """Whether nothing is known about this instance."""
        key = wanted.study, wanted.instance, wanted.series
        select = f"SELECT {OPEN} FROM instances WHERE {ONE}"
        row = self._one(select, *key)
        return bool(row and row[0])

    def settle(self, study: str, states: Iterable[tuple[str, str, str]]) -> None:
        """The state of instances: (SOP Instance UID, state, reason)."""
        stored = Verdict.STORED.value
        update = (
            "UPDATE instances SET state = ?, reason = ?, again = again AND ? WHERE study = ? AND instance = ?"
        )
        rows = ((state, reason, state != stored, study, uid) for uid, state, reason in states)
        self._change(update, rows)

"""The tables of the index, and the statements that read and write them in bulk.

Strategy: a map of the index is a table of two columns, `key` and `value`, both of type bytea. PostgreSQL
compares bytea byte by byte, as `COLLATE "C"` compares text: so the order and the cursors are those of LMDB. A
map with several values under a key has both columns in its primary key. Maps whose keys begin with a study
are partitioned by a hash of it, which has a column of its own.

Every statement takes arrays: a batch of rows costs one round trip.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONS = 8


@dataclass(frozen=True, slots=True)
class Table:
    """One map. `first` and `most` are the rows that a cursor reads at once: at first, and in a long walk."""

    name: str
    several: bool = False
    by_study: bool = False
    first: int = 32
    most: int = 1024

    @property
    def order(self) -> str:
        """The columns by which a cursor walks."""
        return "key, value" if self.several else "key"

    @property
    def conflict(self) -> str:
        return "key, value" if self.several else "key, study" if self.by_study else "key"

    @property
    def same(self) -> str:
        """Joins a row with one of `given`."""
        study = " AND t.study = given.study" if self.by_study else ""
        value = " AND t.value = given.value" if self.several else ""
        return f"t.key = given.key{study}{value}"

    @property
    def created(self) -> list[str]:
        """The statements that make the table."""
        study = ', study text COLLATE "C" NOT NULL' if self.by_study else ""
        columns = f"key bytea NOT NULL, value bytea NOT NULL{study}, PRIMARY KEY ({self.conflict})"
        if not self.by_study:
            return [f"CREATE TABLE {self.name} ({columns})"]
        return [
            f"CREATE TABLE {self.name} ({columns}) PARTITION BY HASH (study)",
            *(
                f"CREATE TABLE {self.name}_{number} PARTITION OF {self.name} "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
                for number in range(PARTITIONS)
            ),
        ]

    @property
    def inserted(self) -> str:
        """Rows that are new; returns how many of them were."""
        columns, given = self._given
        return (
            f"WITH done AS (INSERT INTO {self.name} ({columns}) SELECT * FROM unnest({given}) "
            f"ON CONFLICT ({self.conflict}) DO NOTHING RETURNING 1) SELECT count(*) FROM done"
        )

    @property
    def updated(self) -> str:
        """Rows that exist already."""
        columns, given = self._given
        return (
            f"WITH done AS (INSERT INTO {self.name} ({columns}) SELECT * FROM unnest({given}) "
            f"ON CONFLICT ({self.conflict}) DO UPDATE SET value = excluded.value RETURNING 1) "
            "SELECT count(*) FROM done"
        )

    @property
    def deleted(self) -> str:
        """Rows by key, or by key and value; returns how many there were."""
        if self.several:
            given = "unnest(%b::bytea[], %b::bytea[]) AS given(key, value)"
        elif self.by_study:
            given = "unnest(%b::bytea[], %s::text[]) AS given(key, study)"
        else:
            given = "unnest(%b::bytea[]) AS given(key)"
        return (
            f"WITH done AS (DELETE FROM {self.name} t USING {given} WHERE {self.same} RETURNING 1) "
            "SELECT count(*) FROM done"
        )

    @property
    def ranges_deleted(self) -> str:
        """Rows between two keys, without the second; returns how many there were."""
        given = "unnest(%b::bytea[], %b::bytea[]) AS given(low, high)"
        return (
            f"WITH done AS (DELETE FROM {self.name} t USING {given} "
            "WHERE t.key >= given.low AND t.key < given.high RETURNING 1) SELECT count(*) FROM done"
        )

    @property
    def looked_up(self) -> str:
        """Rows by key."""
        given = "unnest(%b::bytea[]) AS given(key)"
        if self.by_study:
            given = "unnest(%b::bytea[], %s::text[]) AS given(key, study)"
        return f"SELECT t.key, t.value FROM {given} JOIN {self.name} t ON {self.same}"

    @property
    def _given(self) -> tuple[str, str]:
        if self.by_study:
            return "key, value, study", "%b::bytea[], %b::bytea[], %s::text[]"
        return "key, value", "%b::bytea[], %b::bytea[]"

    def arguments(self, keys: list[bytes]) -> tuple[list[bytes] | list[str], ...]:
        """For `looked_up`, and for `deleted` where a key has one value."""
        return (keys, studies_of(keys)) if self.by_study else (keys,)

    def pairs(self, rows: list[tuple[bytes, bytes]]) -> tuple[list[bytes] | list[str], ...]:
        """For `inserted` and `updated`, and for `deleted` where a key has several values."""
        keys = [key for key, _ in rows]
        values = [value for _, value in rows]
        return (keys, values, studies_of(keys)) if self.by_study else (keys, values)


def studies_of(keys: list[bytes]) -> list[str]:
    return [key.partition(b"\0")[0].decode("ascii", "replace") for key in keys]


TABLES = {
    table.name: table
    for table in (
        Table("instances", by_study=True),
        Table("metadata", first=2, most=64),
        Table("frames", first=2, most=64),
        Table("bulk", first=16),
        Table("variants", by_study=True),
        Table("studies", by_study=True),
        Table("series", by_study=True),
        Table("attributes", several=True),
        Table("uids", several=True, first=4),
        Table("changes", first=4),
        Table("damage"),
        Table("segments"),
        Table("about"),
    )
}

# Sequences of changes follow each other without gaps, because every writer locks this row first.
HEAD = (
    "CREATE TABLE head (one boolean PRIMARY KEY DEFAULT true CHECK (one), layout integer NOT NULL, "
    "version bigint NOT NULL, entries jsonb NOT NULL)"
)

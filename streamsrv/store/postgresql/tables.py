"""The tables of the index, and the statements that read and write them in bulk.

Strategy: a map of the index is a table of two columns, `key` and `value`, both of type bytea. PostgreSQL
compares bytea byte by byte, as `COLLATE "C"` compares text: so the order and the cursors are those of LMDB. A
map with several values under a key has both columns in its primary key. Maps whose keys begin with a study
are partitioned by a hash of it, which has a column of its own. `studies` is not: lists are joined with it.

Every statement takes arrays: a batch of rows costs one round trip. Short rows are never compressed or moved
out of their page: the values that are long have been compressed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from streamsrv.store.postgresql.link import Value

PARTITIONS = 8
_LONGEST_ROW = 8160  # bytes of a row that stays in its page
# After so many new rows autovacuum marks their pages, so that searches read the index alone.
_VACUUMED = "autovacuum_vacuum_insert_scale_factor = 0.01"


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
        study = ", study integer NOT NULL" if self.by_study else ""
        columns = (
            "key bytea STORAGE EXTERNAL NOT NULL, value bytea STORAGE EXTERNAL NOT NULL"
            f"{study}, PRIMARY KEY ({self.conflict})"
        )
        if not self.by_study:
            vacuumed = f", {_VACUUMED}" if self.several else ""
            return [
                f"CREATE TABLE {self.name} ({columns}) WITH (toast_tuple_target = {_LONGEST_ROW}{vacuumed})"
            ]
        return [
            f"CREATE TABLE {self.name} ({columns}) PARTITION BY HASH (study)",
            *(
                f"CREATE TABLE {self.name}_{number} PARTITION OF {self.name} "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number}) "
                f"WITH (toast_tuple_target = {_LONGEST_ROW})"
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
        given = "unnest($1::bytea[], $2::bytea[]) AS given(key, value)" if self.several else self._given_keys
        return (
            f"WITH done AS (DELETE FROM {self.name} t USING {given} WHERE {self.same} RETURNING 1) "
            "SELECT count(*) FROM done"
        )

    @property
    def ranges_deleted(self) -> str:
        """Rows between two keys, without the second; returns how many there were."""
        given = "unnest($1::bytea[], $2::bytea[]) AS given(low, high)"
        return (
            f"WITH done AS (DELETE FROM {self.name} t USING {given} "
            "WHERE t.key >= given.low AND t.key < given.high RETURNING 1) SELECT count(*) FROM done"
        )

    @property
    def looked_up(self) -> str:
        """Rows by key."""
        return f"SELECT t.key, t.value FROM {self._given_keys} JOIN {self.name} t ON {self.same}"

    def ranged(self, *, pruned: bool) -> str:
        """Rows between two keys, without the second, at most so many; with `pruned` of one study."""
        study = " AND study = $4::integer" if pruned else ""
        return (
            f"SELECT key, value FROM {self.name} WHERE key >= $1 AND key < $2{study} "
            f"ORDER BY {self.order} LIMIT $3"
        )

    @property
    def ranged_each(self) -> str:
        """As `ranged` with one range of each of these studies, in no order."""
        return (
            "SELECT found.key, found.value FROM unnest($1::bytea[], $2::bytea[], $3::integer[]) "
            f"AS given(low, high, study), LATERAL (SELECT key, value FROM {self.name} "
            "WHERE key >= given.low AND key < given.high AND study = given.study "
            "ORDER BY key LIMIT $4) AS found"
        )

    @property
    def _given_keys(self) -> str:
        if self.by_study:
            return "unnest($1::bytea[], $2::integer[]) AS given(key, study)"
        return "unnest($1::bytea[]) AS given(key)"

    @property
    def _given(self) -> tuple[str, str]:
        if self.by_study:
            return "key, value, study", "$1::bytea[], $2::bytea[], $3::integer[]"
        return "key, value", "$1::bytea[], $2::bytea[]"

    def studies(self, keys: Sequence[bytes]) -> list[int]:
        """The hash of the study of each key, which is before the first NUL."""
        return [xxhash.xxh32_intdigest(key.partition(b"\0")[0]) - (1 << 31) for key in keys]

    def arguments(self, keys: list[bytes]) -> list[Value]:
        """For `looked_up`, and for `deleted` where a key has one value."""
        return [keys, self.studies(keys)] if self.by_study else [keys]

    def pairs(self, rows: list[tuple[bytes, bytes]]) -> list[Value]:
        """For `inserted` and `updated`, and for `deleted` where a key has several values."""
        keys = [key for key, _ in rows]
        values = [value for _, value in rows]
        return [keys, values, self.studies(keys)] if self.by_study else [keys, values]


def behind(start: bytes) -> bytes:
    """The first key behind all keys that begin with `start`. No key begins with 0xFF."""
    start = start.rstrip(b"\xff")
    return start[:-1] + bytes((start[-1] + 1,)) if start else b"\xff"


TABLES = {
    table.name: table
    for table in (
        Table("instances", by_study=True),
        Table("metadata", first=2, most=64),
        Table("frames", first=2, most=64),
        Table("bulk", first=16),
        Table("variants", by_study=True),
        Table("studies"),
        Table("series", by_study=True),
        Table("attributes", several=True),
        Table("uids", several=True, first=4),
        Table("changes", first=4),
        Table("damage"),
        Table("segments"),
        Table("about"),
    )
}

STUDIES, ATTRIBUTES, CHANGES = TABLES["studies"], TABLES["attributes"], TABLES["changes"]
_JOINED = "LEFT JOIN studies s ON s.key = e.value"
_BACK = (
    "(SELECT key, value FROM attributes WHERE key = $1 AND value >= $2 ORDER BY value LIMIT $4) "
    "UNION ALL "
    "(SELECT key, value FROM attributes WHERE key < $1 AND key >= $3 ORDER BY key DESC, value LIMIT $4)"
)
_ON = (
    "SELECT key, value FROM attributes WHERE (key, value) >= ($1, $2) AND key <= $3 "
    "ORDER BY key, value LIMIT $4"
)
# Entries of lists from a place on, by key or back, up to another key; each with the row of its study.
WALKED = {
    True: f"SELECT e.key, e.value, s.value FROM ({_BACK}) e {_JOINED} ORDER BY e.key DESC, e.value LIMIT $4",
    False: f"SELECT e.key, e.value, s.value FROM ({_ON}) e {_JOINED} ORDER BY e.key, e.value",
}
# Between the values of a joined answer, which is read in a tenth of the time of its rows. No key of a list,
# and no entry, holds it.
BETWEEN = b"\xff" * 6
_BETWEEN = f"'\\x{BETWEEN.hex()}'::bytea"
_COMPARED = {False: "key", True: "lower(encode(key, 'escape') COLLATE \"C\")"}
_RANGE = "FROM attributes WHERE key >= $1 AND key <= $2 ORDER BY key"
# $3 entries are read, or $7 if the first keys have many each: where one key has all of MANY entries, it takes
# less to step from key to key. If the first key has $7, none is read.
MANY = 16
_BATCH = (
    f"SELECT first, CASE WHEN first = (SELECT key {_RANGE} OFFSET {MANY - 1} LIMIT 1) THEN "
    f"CASE WHEN first = (SELECT key {_RANGE} OFFSET $7 - 1 LIMIT 1) THEN 0 ELSE least($3, $7) END "
    f"ELSE $3 END AS size FROM (SELECT (SELECT key {_RANGE} LIMIT 1) AS first) f"
)
# Of these the first $7 whose keys hold $4 and $5, caseless or not, joined, and the number of all such ones;
# the number of entries that were read, and that of those to read; the last key if all were there, or the
# first one if none was to be read.
FOUND = {
    caseless: (
        f"WITH batch AS MATERIALIZED ({_BATCH}) SELECT "
        f"(SELECT string_agg(each, {_BETWEEN}) FROM unnest(f.held[1:$7]) each), "
        "coalesce(array_length(f.held, 1), 0), f.number, b.size, "
        "CASE WHEN b.size = 0 THEN b.first WHEN f.number = b.size THEN "
        f"(SELECT key {_RANGE} OFFSET b.size - 1 LIMIT 1) END FROM batch b, "
        f"(SELECT array_agg(key || {_BETWEEN} || value) FILTER (WHERE position($4 IN {compared}) > 0 AND "
        f"position($5 IN {compared}) > 0 OR length(key) >= $6) AS held, count(*) AS number FROM "
        f"(SELECT key, value {_RANGE}, value LIMIT (SELECT size FROM batch)) e) f"
    )
    for caseless, compared in _COMPARED.items()
}


def escaped(text: bytes) -> str:
    """As encode(..., 'escape') in PostgreSQL."""
    return "".join(
        "\\\\" if byte == 0x5C else f"\\{byte:03o}" if not byte or byte > 0x7F else chr(byte) for byte in text
    )


# Keys of lists that have many entries: each step goes to the next key, over all entries between them.
DISTINCT = (
    "WITH RECURSIVE step(key) AS "
    "((SELECT key FROM attributes WHERE key >= $1 ORDER BY key LIMIT 1) UNION ALL "
    "SELECT (SELECT a.key FROM attributes a WHERE a.key > step.key ORDER BY a.key LIMIT 1) FROM step "
    "WHERE step.key <= $2) SELECT key FROM step WHERE key <= $2 LIMIT $3"
)
# One list, joined, if it has at most $2 entries, and their number: right, or up to the next one.
SHORT_LIST = {
    counting: (
        f"WITH whole AS MATERIALIZED (SELECT count(*) AS number FROM {counted}) "
        f"SELECT CASE WHEN number <= $2 THEN (SELECT string_agg(value, {_BETWEEN}) FROM "
        "(SELECT value FROM attributes WHERE key = $1 ORDER BY value) e) END, number FROM whole"
    )
    for counting, counted in {
        True: "attributes WHERE key = $1",
        False: "(SELECT FROM attributes WHERE key = $1 ORDER BY value LIMIT $2 + 1) e",
    }.items()
}
NUMBERS = f"SELECT key, (SELECT count(*) FROM attributes a WHERE a.key = d.key) FROM ({DISTINCT}) d"
# The keys and entries of several lists, joined, and their number; and one list with the rows of its studies.
LISTS = (
    f"SELECT string_agg(l.key || {_BETWEEN} || l.value, {_BETWEEN}), count(*) FROM "
    "(SELECT g.key, e.value FROM unnest($1::bytea[]) WITH ORDINALITY AS g(key, place) CROSS JOIN LATERAL "
    "(SELECT a.value FROM attributes a WHERE a.key = g.key ORDER BY a.value LIMIT $2) e LIMIT $2) l"
)
LISTED = (
    "SELECT e.value, s.value FROM "
    f"(SELECT value FROM attributes WHERE key = $1 ORDER BY value LIMIT $2) e {_JOINED} ORDER BY e.value"
)

# Sequences of changes follow each other without gaps, because every writer locks this row first.
HEAD = (
    "CREATE TABLE head (one boolean PRIMARY KEY DEFAULT true CHECK (one), layout integer NOT NULL, "
    "version bigint NOT NULL, entries jsonb NOT NULL)"
)

"""The tables of documents and leases, and the statements that read and write them.

A change takes the row of its kind first, and writes the number of this row to the documents. A document that
was removed has no body until it is forgotten.
"""

from __future__ import annotations

CREATED = (
    "CREATE TABLE document_kinds (kind text PRIMARY KEY, version bigint NOT NULL)",
    'CREATE TABLE documents (kind text NOT NULL, name text COLLATE "C" NOT NULL, body bytea, '
    "version bigint NOT NULL, changed timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (kind, name))",
    "CREATE INDEX documents_version ON documents (kind, version)",
    "CREATE TABLE leases (name text PRIMARY KEY, holder text NOT NULL, until timestamptz NOT NULL)",
)

HEAD = (
    "INSERT INTO document_kinds (kind, version) VALUES ($1, 1) ON CONFLICT (kind) DO UPDATE "
    "SET version = document_kinds.version + 1 RETURNING version"
)
WRITE = (
    "INSERT INTO documents (kind, name, body, version) VALUES ($1, $2, $3, $4) ON CONFLICT (kind, name) "
    "DO UPDATE SET body = excluded.body, version = excluded.version, changed = now()"
)
APPEND = (
    "INSERT INTO documents (kind, name, body, version) VALUES ($1, $2, $3, $4) ON CONFLICT (kind, name) "
    "DO UPDATE SET body = coalesce(documents.body, '') || excluded.body, version = excluded.version, "
    "changed = now()"
)
COPY = (
    "INSERT INTO documents (kind, name, body, version) SELECT kind, $3, body, $4 FROM documents "
    "WHERE kind = $1 AND name = $2 ON CONFLICT (kind, name) "
    "DO UPDATE SET body = excluded.body, version = excluded.version, changed = now()"
)
REMOVE = (
    "UPDATE documents SET body = NULL, version = $3, changed = now() "
    "WHERE kind = $1 AND name = $2 AND body IS NOT NULL"
)
FORGET = "DELETE FROM documents WHERE kind = $1 AND body IS NULL AND changed < now() - interval '1 hour'"
# Names are ASCII. The range is for the primary key.
_BETWEEN = (
    "FROM documents WHERE kind = $1 AND name >= $2 AND name < $2 || '~' AND right(name, length($3)) = $3 "
    "AND body IS NOT NULL ORDER BY name"
)
NAMES, ALL = f"SELECT name {_BETWEEN}", f"SELECT name, body {_BETWEEN}"
VERSION = "SELECT coalesce(max(version), 0) FROM document_kinds WHERE kind = $1"
SEVERAL = (
    "SELECT d.name, d.body FROM unnest($2::bytea[]) AS given(name) "
    "JOIN documents d ON d.kind = $1 AND d.name = convert_from(given.name, 'UTF8')"
)
CHANGED = "SELECT name, body FROM documents WHERE kind = $1 AND version > $2"
NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

_UNTIL = "clock_timestamp() + {} * interval '1 second'"
CLAIM = (
    f"INSERT INTO leases (name, holder, until) VALUES ($1, $2, {_UNTIL.format('$3')}) "
    "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until "
    "WHERE leases.until <= clock_timestamp() RETURNING holder"
)
RENEW = (
    f"UPDATE leases SET until = {_UNTIL.format('$3')} "
    "WHERE name = $1 AND holder = $2 AND until > clock_timestamp() RETURNING holder"
)
HELD = "SELECT 1 FROM leases WHERE name = $1 AND holder = $2 AND until > clock_timestamp() FOR SHARE"
HOLDER = "SELECT holder FROM leases WHERE name = $1 AND until > clock_timestamp()"
END = "DELETE FROM leases WHERE name = $1 AND holder = $2"

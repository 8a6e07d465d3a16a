"""The index on PostgreSQL: the ordered map of the index, in tables of a database.

psycopg 3 is an optional dependency (the extra `cluster`), so this room is imported only by a store whose
index is a database.
"""

from streamsrv.store.postgresql.database import open_index
from streamsrv.store.postgresql.schema import migrate

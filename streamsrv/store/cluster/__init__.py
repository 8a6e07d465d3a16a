"""A store of several nodes: segments are objects of a bucket, and the index is in PostgreSQL.

Needs the optional packages of `[cluster]`. A process without `--segments` does not load this room.
"""

from streamsrv.store.cluster.store import open_cluster

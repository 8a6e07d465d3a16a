"""The identity of a store whose segments are objects: store.toml in the bucket, and a row of the database.

Strategy: the row is written first, so that of two nodes that found the store one decides. Then the object is
written, and each node compares both when it starts.

Rules of this file
- Nothing is written if bucket and database are not both new: an empty database beside a full bucket is a
  mistake, or a loss.
- Two clusters that found stores in one bucket at the same moment may both succeed. So a node also compares
  while it runs (`ClusterStore.probe`).
"""

from __future__ import annotations

import secrets
import uuid

from streamsrv.errors import BucketUnreachable, SegmentGone, StoreError, WrongStore
from streamsrv.store.folder import SECRET_LENGTH, Identity, identity_from
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.postgresql import cluster_row
from streamsrv.store.postgresql.connections import Connections

KEY = "store.toml"


def agreed(bucket: Bucket, connections: Connections, *, read_only: bool, makes: bool) -> Identity:
    """The identity that bucket and database have in common; makes it for a new store, if `makes` says so.
    Raises WrongStore, StoreError."""
    try:
        known = in_bucket(bucket)
    except BucketUnreachable as error:
        raise BucketUnreachable(f"{error}. AWS_ENDPOINT_URL names it, or else AWS_REGION") from error
    row = cluster_row.read(connections)
    if row is None:
        if known is not None:
            raise WrongStore(
                f"the bucket has store {known.store_id}, and this database is empty: nothing was changed. "
                "Name the database of that store, or another prefix for a new store. If the database is "
                "lost, `streamsrv reindex` makes it again"
            )
        if not makes:
            raise StoreError("the database has no index: start a node once, which makes the store")
        new = Identity(str(uuid.uuid4()), secrets.token_bytes(SECRET_LENGTH))
        cluster_row.found(connections, new)
        row = cluster_row.read(connections)
        assert row is not None
    identity = Identity(row.store_id, row.secret)
    if known is None and row.in_bucket:  # another node may have founded the store since
        known = in_bucket(bucket)
    if known is None:
        if row.in_bucket:
            raise WrongStore(
                f"this database has store {identity.store_id}, and the bucket has no {KEY}: nothing was "
                "changed. Name the bucket and prefix of that store"
            )
        if not makes:
            raise StoreError("the bucket has no store: start a node once, which makes it")
        bucket.put(KEY, identity.text().encode())
    require(bucket, identity)
    if not row.in_bucket and not read_only:
        cluster_row.note_in_bucket(connections)
    return identity


def in_bucket(bucket: Bucket) -> Identity | None:
    try:
        text = bucket.content(KEY).decode("utf-8", "replace")
    except SegmentGone:
        return None
    return identity_from(text, f"{KEY} of the bucket")


def require(bucket: Bucket, identity: Identity) -> None:
    """Raises WrongStore if the bucket has another store, or none."""
    known = in_bucket(bucket)
    if known is None:
        raise WrongStore(f"the bucket has no {KEY} any more: it is not the bucket of this store")
    if known != identity:
        raise WrongStore(
            f"the bucket has store {known.store_id}, and the database has store {identity.store_id}: each "
            "store has a database and a prefix of its own"
        )

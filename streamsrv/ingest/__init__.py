"""Store transactions (PS3.18 10.5): body bytes in, SOP instances in the store, a response dataset out. No
socket.

Begin with `transaction`, the life of a body. `batching` stores short bodies together. `derivation` makes the
index row of an instance, `assembly` makes instances of metadata and bulk data, `response` answers.
"""

from streamsrv.ingest.batching import SHORT_BODY, InstanceBatch, StoreOutcome, store_batch
from streamsrv.ingest.transaction import Ingest, IngestLimits

__all__ = ["SHORT_BODY", "Ingest", "IngestLimits", "InstanceBatch", "StoreOutcome", "store_batch"]

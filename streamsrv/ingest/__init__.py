"""Store transactions (PS3.18 10.5): body bytes in, SOP instances in the store, a response dataset out. No
socket.

Begin reading in `transaction` (the way of a body), then `derivation` (what the index keeps of an instance),
`spill` (what waits for the commit), `assembly` (instances that arrive as metadata and bulk data) and
`response`.
"""

from streamsrv.ingest.transaction import Ingest, IngestLimits

__all__ = ["Ingest", "IngestLimits"]

"""Retrieve transactions (PS3.18 10.4): a request and its target resource in, an answer out. No socket, no
HTTP server.

Begin reading in `selection` (which instances), then `payloads` (their bytes), `parts` (multipart), and
`resources` (one function for each kind of target resource).
"""

from streamsrv.retrieve.resources import answer

__all__ = ["answer"]

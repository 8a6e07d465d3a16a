"""Cache of parsed header blocks.

Strategy: the requests of one client differ in their first line; the bytes behind the target are mostly equal.
After Tornado has parsed such a request and it succeeded, these bytes are the key of its parsed head. The next
request with the same bytes, from the same peer, gets that head with its own target.

Nothing can be smuggled. A request counts only if it arrives as one piece. Its target must be visible ASCII
without a blank, so that it is one word of the first line to Tornado too. A head with a body, a condition, a
range, a request id or the end of the connection is never cached (`is_unique`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from streamsrv.web.access.access import Access
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller
from streamsrv.wire.conditional import is_conditional

LONGEST = 4096  # bytes of a request

_TARGET = re.compile(rb"GET (/[!-~]*)")
_REQUEST = re.compile(rb"GET (/[!-~]*)( HTTP/1\.1\r\n(?:[^\r\n]+\r\n)+\r\n)")
_VERSION = b" HTTP/1.1\r\n"
# Headers that differ in each request, or that change how a request is read or answered.
_UNIQUE = frozenset(
    (
        *("content-length", "expect", "range", "te", "trailer", "transfer-encoding", "upgrade"),
        *("want-repr-digest", "x-request-id"),
    )
)


def is_unique(head: Head) -> bool:
    """Whether an equal head is unlikely, or needs more than the head to be read."""
    names = head.headers.keys()
    return is_conditional(names) or not head.keep_alive or not _UNIQUE.isdisjoint(names)


class KnownHead(NamedTuple):
    """A parsed head, and the decision of the app on it, while `Access.holds`."""

    head: Head
    caller: Caller


class KnownHeaders:
    """The cache of one worker, with room for `most` header blocks of up to LONGEST bytes."""

    def __init__(self, most: int, access: Access) -> None:
        self._most = most
        self._access = access
        self._known: dict[tuple[str, bytes], KnownHead] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, request: bytes, source: str) -> KnownHead | None:
        """None if the header block is not known from this source, or its principal may have changed."""
        end = request.find(_VERSION, 0, LONGEST)
        known = self._known.get((source, request[end:])) if end > 0 else None
        found = _TARGET.fullmatch(request, 0, end) if known else None
        if known is None or found is None:
            return None
        if not self._access.holds(known.caller):
            del self._known[source, request[end:]]
            return None
        return KnownHead(known.head.with_target(found[1].decode("ascii")), known.caller)

    def keep(self, request: bytes, head: Head, caller: Caller) -> None:
        """Tornado has parsed these bytes as one request, which succeeded."""
        key = head.source, request[request.find(_VERSION, 0, LONGEST) :]
        if key in self._known or is_unique(head) or _REQUEST.fullmatch(request) is None:
            return
        while len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[key] = KnownHead(head, caller)

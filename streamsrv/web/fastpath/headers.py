"""Heads that were read before: of a request in the same words for another target, nothing is left to parse.

Strategy: the requests of one client differ in their first line; what follows it is the same, byte for byte.
When Tornado has read such a request, and it was answered, all of its bytes but the target are kept beside the
head that was made of them. The next one that ends in the very same bytes has that head, with its own target.

Why nothing can be smuggled: only GET, and only what came as one whole request; a target is visible ASCII
without a blank, so that it is one word of the first line to Tornado, too; of headers that tell where a
request ends, or that a connection does, there are none (`is_particular`). Everything that is decided by a
head (who may come in, what is answered) is decided anew.
"""

from __future__ import annotations

import re

from streamsrv.web.head import Head
from streamsrv.wire.conditional import is_conditional

LONGEST = 4096  # bytes of a request

_TARGET = re.compile(rb"GET (/[!-~]*)")
_REQUEST = re.compile(rb"GET (/[!-~]*)( HTTP/1\.1\r\n(?:[^\r\n]+\r\n)+\r\n)")
_BEHIND = b" HTTP/1.1\r\n"
# Of these each request has another, or an answer of its own, or is read in another way.
_PARTICULAR = frozenset(
    (
        *("content-length", "expect", "range", "te", "trailer", "transfer-encoding", "upgrade"),
        *("want-repr-digest", "x-request-id"),
    )
)


def is_particular(head: Head) -> bool:
    """Hardly anybody asks in these words again, or more than the head is to be read."""
    names = head.headers.keys()
    return is_conditional(names) or not head.keep_alive or not _PARTICULAR.isdisjoint(names)


class Words:
    """Of one worker."""

    def __init__(self, most: int) -> None:
        self._most = most
        # What follows the target -> its head.
        self._known: dict[bytes, Head] = {}

    def head(self, asked: bytes, peer: str) -> Head | None:
        """None unless all of its words are known."""
        end = asked.find(_BEHIND, 0, LONGEST)
        known = self._known.get(asked[end:]) if end > 0 else None
        found = _TARGET.fullmatch(asked, 0, end) if known else None
        if known is None or found is None:
            return None
        return known.again(found[1].decode("ascii"), peer)

    def learn(self, asked: bytes, head: Head) -> None:
        """Tornado has read this as one request, and it was answered with success."""
        if len(asked) > LONGEST or asked[asked.find(_BEHIND, 0, LONGEST) :] in self._known:
            return
        found = _REQUEST.fullmatch(asked)
        if found is None or is_particular(head):
            return
        while len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        head.words = found[2]
        self._known[found[2]] = head

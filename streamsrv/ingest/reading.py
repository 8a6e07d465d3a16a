"""How datasets of parts are read: briefly between two reads of the socket, or in a thread until their client
has left."""

from __future__ import annotations

import threading

from streamsrv.dicom.window import Pread
from streamsrv.errors import BadRequest, WouldBlock

# Seconds that datasets are read in one turn of the loop, and the bytes of one header there: these may hold
# 16,000 empty items, at 3 us each. A longer header is read in a thread.
READ_SECONDS = 0.01
BRIEF_HEADER = 128 << 10


def brief_pread(read: Pread) -> Pread:
    """Raises WouldBlock when a header turns out to be long."""
    left = BRIEF_HEADER

    def pread(offset: int, length: int) -> bytes:
        nonlocal left
        content = read(offset, length)
        left -= len(content)
        if left < 0:
            raise WouldBlock("a long header is read in a thread")
        return content

    return pread


def stoppable_pread(read: Pread, stopped: threading.Event) -> Pread:
    """Raises BadRequest once `stopped` is set."""

    def pread(offset: int, length: int) -> bytes:
        if stopped.is_set():
            raise BadRequest("the client left before its instances were read")
        return read(offset, length)

    return pread

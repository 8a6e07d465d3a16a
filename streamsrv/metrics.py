"""Counters of all processes in shared memory. The metrics process reads them.

Strategy: one memory file with a block of cells for the whole server and one for each worker. A cell is an
aligned double of 8 bytes: it counts to 2^53 exactly, and a reader never sees half of it. The replacement of a
worker continues the block of its predecessor, so counters never decrease, also after kill -9.

A worker counts in objects of its own, and copies the sums to its block at each heartbeat. So a request costs
three additions, and a killed worker loses the counts of half a second at most.

Rules of this file
- Each cell has one writer at a time, so that nothing is locked.
- The labels of all cells are fixed here: no UID, path or client is counted.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
CELL = 8  # bytes


class RequestKind(StrEnum):
    """The transaction of a request; HEAD counts as GET."""

    __hash__ = str.__hash__  # that of an enumeration is a function in Python

    STORE = "store"
    SEARCH = "search"
    INSTANCES = "instances"
    METADATA = "metadata"
    FRAMES = "frames"
    RENDERED = "rendered"
    THUMBNAIL = "thumbnail"
    BULKDATA = "bulkdata"
    WADO_URI = "wado-uri"
    DELETE = "delete"
    CHANGES = "changes"
    EVENTS = "events"  # counted when the stream ends
    DESCRIPTION = "description"  # capabilities, OpenAPI, OPTIONS
    HEALTH = "health"
    PAGES = "pages"  # of browsers
    C_STORE = "c-store"  # with the status that the same outcome has in HTTP
    C_FIND = "c-find"
    C_GET = "c-get"
    C_MOVE = "c-move"
    C_ECHO = "c-echo"
    COMMITMENT = "commitment"  # requests of Storage Commitment
    ASSOCIATION = "association"  # 200: accepted, and ended; 403 and 503: rejected; 400: aborted
    OTHER = "other"  # no resource of this server


class Way(StrEnum):
    """How a worker arrives at an answer. Each way gives the same bytes."""

    __hash__ = str.__hash__

    PLAIN = "plain"  # Tornado parses the request
    KNOWN_HEADERS = "known-headers"  # the header block was parsed before; only the target is read
    CACHED_FRAME = "cached-frame"  # a template of the answer is filled in


class Gauge(StrEnum):
    """The state of one worker."""

    READY = "ready"
    REQUESTS = "requests"
    CONNECTIONS = "connections"
    UPLOADS = "uploads"
    REQUESTS_WAITING = "requests-waiting"
    TASKS_QUEUED = "tasks-queued"
    TASKS_RUNNING = "tasks-running"
    AUDIT_WAITING = "audit-waiting"
    ASSOCIATIONS = "associations"


class ServerCell(StrEnum):
    """Counts of the supervisor and the scrub process. STARTED is in seconds since 1970."""

    STARTED = "started"
    WORKER_ENDS = "worker-ends"
    WORKER_HANGS = "worker-hangs"
    PIXEL_PROCESS_ENDS = "pixel-process-ends"
    SCRUB_BYTES = "scrub-bytes"
    SCRUB_SEGMENTS = "scrub-segments"


# 499: the client left before the end of the answer. Other statuses count as the last one, 0.
STATUSES = (
    *(200, 202, 204, 206, 301, 302, 303, 304, 307, 308),
    *(
        400,
        401,
        403,
        404,
        405,
        406,
        408,
        409,
        410,
        411,
        412,
        413,
        414,
        415,
        416,
        417,
        421,
        422,
        429,
        431,
        499,
    ),
    *(500, 501, 502, 503, 504, 505, 507, 0),
)
# Upper bounds of the latency buckets in seconds; a last bucket has no bound.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BUCKETS = len(BOUNDS) + 1
FAST = BOUNDS[0]

_KINDS, _WAYS, _GAUGES, _SERVER_CELLS = list(RequestKind), list(Way), list(Gauge), list(ServerCell)
# Cells of one kind of request.
_SENT, _RECEIVED, _SECONDS, _HISTOGRAM = range(4)
_REQUESTS = _HISTOGRAM + BUCKETS
_OF_A_KIND = _REQUESTS + len(_WAYS) * len(STATUSES)
_BASES = {kind: number * _OF_A_KIND for number, kind in enumerate(_KINDS)}
_STATUS_CELLS = {status: number for number, status in enumerate(STATUSES)}
_WAY_CELLS = {way: _REQUESTS + number * len(STATUSES) for number, way in enumerate(_WAYS)}
_FIRST_GAUGE = len(_KINDS) * _OF_A_KIND
_OF_A_WORKER = _FIRST_GAUGE + len(_GAUGES)


class RequestTally:
    """The count of the requests of one kind, status and way. `slow` has the buckets above the first one."""

    __slots__ = ("number", "received", "seconds", "sent", "slow")

    def __init__(self) -> None:
        self.number = self.sent = self.received = 0
        self.seconds = 0.0
        self.slow: list[int] | None = None

    def add(self, sent: int, received: int, seconds: float) -> None:
        """One request: bytes of its answer and of its body, without heads. Few objects are touched here,
        because each may cost a cache miss."""
        self.number += 1
        self.sent += sent
        self.seconds += seconds
        if received:
            self.received += received
        if seconds > FAST:
            self.slow = self.slow or [0] * BUCKETS
            self.slow[bisect_left(BOUNDS, seconds)] += 1

    def add_to(self, cells: list[float], base: int, request: int) -> None:
        """`base` is the first cell of the kind, `request` that of status and way."""
        cells[request] += self.number
        for cell, value in ((_SENT, self.sent), (_RECEIVED, self.received), (_SECONDS, self.seconds)):
            cells[base + cell] += value
        slow = self.slow or [0] * BUCKETS
        cells[base + _HISTOGRAM] += self.number - sum(slow)
        for number, count in enumerate(slow):
            cells[base + _HISTOGRAM + number] += count


class KindTotals(NamedTuple):
    """Totals of one kind of request. `requests` has (status, way, number), zeros included. `buckets` counts
    each request once."""

    sent: int
    received: int
    seconds: float
    buckets: list[int]
    requests: list[tuple[int, Way, int]]


class RequestCounts:
    """The counts of one worker, in its event loop only. `block` is its part of the shared memory."""

    def __init__(self, block: memoryview[float] | None = None) -> None:
        self._block = block
        self._former = [0.0] * _OF_A_WORKER if block is None else list(block)
        self._tallies: dict[tuple[RequestKind, int, Way], RequestTally] = {}
        self._gauges: dict[Gauge, Callable[[], float]] = {}

    def tally(self, kind: RequestKind, status: int, way: Way) -> RequestTally:
        """The count to which such a request is added."""
        return self._tallies.get((kind, status, way)) or self._new(kind, status, way)

    def _new(self, kind: RequestKind, status: int, way: Way) -> RequestTally:
        known = status if status in _STATUS_CELLS else 0
        return self._tallies.setdefault((kind, known, way), RequestTally())

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """`value` is called at each `publish`."""
        self._gauges[gauge] = value

    def publish(self) -> None:
        """Copies the counts to the shared memory."""
        if self._block is None:
            return
        cells = self._former[:_FIRST_GAUGE]
        for (kind, status, way), tally in self._tallies.items():
            base = _BASES[kind]
            tally.add_to(cells, base, base + _WAY_CELLS[way] + _STATUS_CELLS[status])
        cells += [self._gauges[gauge]() if gauge in self._gauges else 0.0 for gauge in _GAUGES]
        self._block[:] = memoryview(array("d", cells))

    def by_way(self) -> Counter[Way]:
        """Requests that this object has counted."""
        found: Counter[Way] = Counter()
        for (_, _, way), tally in self._tallies.items():
            found[way] += tally.number
        return found


class MetricsBoard:
    """The shared memory. A child process inherits `file`."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._cells = memoryview(mmap.mmap(file, 0)).cast("d")
        self.workers = (len(self._cells) - len(_SERVER_CELLS)) // _OF_A_WORKER

    @classmethod
    def make(cls, workers: int) -> MetricsBoard:
        file = os.memfd_create("metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(file, CELL * (len(_SERVER_CELLS) + workers * _OF_A_WORKER))
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        return cls(file)

    def block(self, worker: int) -> memoryview[float]:
        """The cells of one worker; workers are numbered from 0."""
        begin = len(_SERVER_CELLS) + worker * _OF_A_WORKER
        return self._cells[begin : begin + _OF_A_WORKER]

    def worker_ended(self, worker: int) -> None:
        """Its gauges become 0."""
        for number in range(len(_GAUGES)):
            self.block(worker)[_FIRST_GAUGE + number] = 0.0

    def add(self, cell: ServerCell, amount: float = 1.0) -> None:
        self._cells[_SERVER_CELLS.index(cell)] += amount

    # Reading

    def value(self, cell: ServerCell) -> float:
        return float(self._cells[_SERVER_CELLS.index(cell)])

    def gauge(self, gauge: Gauge) -> float:
        """The sum of all workers."""
        number = _FIRST_GAUGE + _GAUGES.index(gauge)
        return float(sum(self.block(worker)[number] for worker in range(self.workers)))

    def totals(self) -> dict[RequestKind, KindTotals]:
        """Of all workers together."""
        blocks = [self.block(worker).tolist() for worker in range(self.workers)]
        cells = [sum(column) for column in zip(*blocks, strict=True)]
        return {kind: _totals(cells[base : base + _OF_A_KIND]) for kind, base in _BASES.items()}


def _totals(cells: list[float]) -> KindTotals:
    requests = [
        (status, way, int(cells[first + number]))
        for way, first in _WAY_CELLS.items()
        for number, status in enumerate(STATUSES)
    ]
    buckets = [int(cell) for cell in cells[_HISTOGRAM:_REQUESTS]]
    return KindTotals(int(cells[_SENT]), int(cells[_RECEIVED]), cells[_SECONDS], buckets, requests)

"""Counters of all processes in shared memory. The metrics process reads them.

Strategy: one memory file with a block of cells for the whole server and one for each worker. A cell is an
aligned double of 8 bytes: it counts to 2^53 exactly, and a reader never sees half of it. The replacement of a
worker continues the block of its predecessor, so counters never decrease, also after kill -9.

A worker counts in a list of its own, and copies it to its block at each heartbeat. An element of a list costs
half the time of one in shared memory. So a request costs four additions, and a killed worker loses the counts
of half a second at most.

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
    DESCRIPTION = "description"  # capabilities, OpenAPI, OPTIONS
    HEALTH = "health"
    PAGES = "pages"  # of browsers
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
    TASKS_QUEUED = "tasks-queued"
    TASKS_RUNNING = "tasks-running"


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
    *(400, 401, 403, 404, 405, 406, 408, 409, 411, 412, 413, 414, 415, 416, 417, 421, 422, 429, 431, 499),
    *(500, 501, 502, 503, 504, 505, 507, 0),
)
# Upper bounds of the latency buckets in seconds; a last bucket has no bound.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BUCKETS = len(BOUNDS) + 1

_KINDS, _WAYS, _GAUGES, _SERVER_CELLS = list(RequestKind), list(Way), list(Gauge), list(ServerCell)
# Cells of one kind of request.
_SENT, _RECEIVED, _SECONDS, _HISTOGRAM = range(4)
_REQUESTS = _HISTOGRAM + BUCKETS
_OF_A_KIND = _REQUESTS + len(_WAYS) * len(STATUSES)
_BASES = {kind: number * _OF_A_KIND for number, kind in enumerate(_KINDS)}
_WAY_CELLS = {way: _REQUESTS + number * len(STATUSES) for number, way in enumerate(_WAYS)}
_FIRST_GAUGE = len(_KINDS) * _OF_A_KIND
_OF_A_WORKER = _FIRST_GAUGE + len(_GAUGES)


class Place(NamedTuple):
    """Where equal requests are counted: the first cell of their kind, and the cell of status and way."""

    base: int
    request: int


# A look-up takes half the time of the additions.
_PLACES = {
    (kind, status, way): Place(base, base + first + number)
    for kind, base in _BASES.items()
    for way, first in _WAY_CELLS.items()
    for number, status in enumerate(STATUSES)
}


def place_of(kind: RequestKind, status: int, way: Way) -> Place:
    return _PLACES.get((kind, status, way)) or _PLACES[kind, 0, way]


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
        self._cells: list[float] = [0.0] * _OF_A_WORKER if block is None else list(block)
        self._at_start = self._cells[:]
        self._gauges: dict[Gauge, Callable[[], float]] = {}

    def add(self, place: Place, sent: int, received: int, seconds: float) -> None:
        """One request: bytes of its answer and of its body, without heads."""
        cells, (base, request) = self._cells, place
        cells[request] += 1
        cells[base] += sent
        cells[base + _SECONDS] += seconds
        cells[base + _HISTOGRAM + bisect_left(BOUNDS, seconds)] += 1
        if received:
            cells[base + _RECEIVED] += received

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """`value` is called at each `publish`."""
        self._gauges[gauge] = value

    def publish(self) -> None:
        """Copies the counts to the shared memory."""
        for number, gauge in enumerate(_GAUGES):
            value = self._gauges.get(gauge)
            self._cells[_FIRST_GAUGE + number] = value() if value else 0.0
        if self._block is not None:
            self._block[:] = memoryview(array("d", self._cells))

    def by_way(self) -> Counter[Way]:
        """Requests that this object has counted."""
        found: Counter[Way] = Counter()
        for base in _BASES.values():
            for way, first in _WAY_CELLS.items():
                cells = slice(base + first, base + first + len(STATUSES))
                found[way] += int(sum(self._cells[cells]) - sum(self._at_start[cells]))
        return +found


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

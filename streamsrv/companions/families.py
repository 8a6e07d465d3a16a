"""The metrics of the server: the table of all families, and their samples.

Rules of this file
- The labels have a small fixed set of values. Of the statuses of a kind of request only those appear that
  have occurred, and EXPECTED: a counter that begins with 1 has no increase.
- docs/monitoring.md describes each family, and a test compares.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from framecodecs.pool.processes import ABSENT, BUSY, IDLE, STARTING, StatusPages
from streamsrv import __version__
from streamsrv.audit.cursor import Cursor
from streamsrv.audit.trail import head_of
from streamsrv.events.hooks import Hooks
from streamsrv.metrics import BOUNDS, Gauge, MetricsBoard, ServerCell, Way
from streamsrv.options import audit_folder, audits
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.store.maintenance.info import store_numbers
from streamsrv.store.maintenance.scrub import DAY, ScrubState, verified_until

# (values of the labels, value)
Sample: TypeAlias = tuple[tuple[str, ...], float]
Samples: TypeAlias = Mapping[str, Sequence[Sample]]

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
EXPECTED = frozenset((200, 500, 503, 507))
PROCESS_STATES = {"absent": ABSENT, "starting": STARTING, "idle": IDLE, "busy": BUSY}


class MetricDefinition(NamedTuple):
    """`name` has no prefix; that of a counter has no suffix `_total` either."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return f"streamsrv_{self.name}" + ("_total" if self.kind == COUNTER else "")


def _c(name: str, text: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, COUNTER, text, labels)


def _g(name: str, text: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, GAUGE, text, labels)


DEFINITIONS = (
    _g("build_info", "1; the labels name the version and that of Python", "version", "python"),
    _g("start_time_seconds", "Start of the server in seconds since 1970"),
    _c("requests", "Requests that have ended", "transaction", "status", "way"),
    _c("request_bytes", "Bytes of request bodies", "transaction"),
    _c("response_bytes", "Bytes of response bodies", "transaction"),
    MetricDefinition(
        "request_duration_seconds",
        HISTOGRAM,
        "Seconds from the head of a request to the last byte of its answer",
        ("transaction",),
    ),
    _g("requests_in_progress", "Requests whose answer has not ended"),
    _g("connections", "Open connections of clients"),
    _g("connections_limit", "Connections that all workers together accept"),
    _g("requests_waiting", "Long requests that wait, because their client has its share of the threads"),
    _g("associations", "Open associations of DIMSE peers"),
    _g("uploads", "Store requests whose body arrives"),
    _g("uploads_limit", "Store requests that all workers together receive at a time"),
    _g("pixel_tasks", "Tasks for pixel processes, by state: queued or running", "state"),
    _g("pixel_processes", "Pixel processes by pool (short or long tasks) and state", "pool", "state"),
    _c("pixel_process_ends", "Pixel processes that ended with an error"),
    _g("workers", "Workers that the server should have"),
    _g("workers_ready", "Workers that accept requests"),
    _c("worker_ends", "Workers that ended while the server ran"),
    _c("worker_hangs", "Workers that were killed because their event loop did not run"),
    _c("audit_entries", "Entries of the audit trail; absent if there is no trail"),
    _g("audit_waiting", "Entries of the audit trail that are not written yet"),
    _g("audit_unsent", "Entries that no syslog receiver has acknowledged; absent without `audit_syslog`"),
    _g("hooks", "Hooks by state: good or failing; absent unless the setting `hooks` is on", "state"),
    _g("hook_waiting", "Changes that the latest hook has not reached; absent unless `hooks` is on"),
    _g("hook_dead_letters", "Events that hooks have given up; absent unless the setting `hooks` is on"),
    _g("store_up", "1 if the store could be read for this answer; else the families of the store are absent"),
    _g("studies", "Studies in the store"),
    _g("series", "Series in the store"),
    _g("instances", "Instances in the store"),
    _g("damaged_instances", "Instances with bytes that differ from those that arrived"),
    _g("segments", "Segments by state: open or sealed", "state"),
    _g("segment_bytes", "Bytes of segments by state: live, dead (freed by compact) or overhead", "state"),
    _g("index_bytes", "Bytes of the index file by state: used or free", "state"),
    _g("lost_and_found_bytes", "Bytes that were cut off segments after a crash"),
    _g("disk_free_bytes", "Free bytes of the file system of the store"),
    _g("disk_size_bytes", "Size of the file system of the store"),
    _g("disk_reserve_bytes", "With less free bytes, store requests are answered with 507"),
    _c("scrub_bytes", "Bytes that scrub has read"),
    _c("scrub_segments", "Segments that scrub has verified"),
    _g("scrub_period_seconds", "Seconds in which scrub verifies each segment; 0 if it is off"),
    _g("scrub_unverified_bytes", "Bytes that were never verified"),
    _g(
        "scrub_oldest_verified_timestamp_seconds",
        "The oldest verification of a segment in seconds since 1970; absent if there was none",
    ),
)


def server_samples(board: MetricsBoard, pools: Mapping[str, StatusPages], settings: Settings) -> Samples:
    """The counts of all processes, and their state."""
    queued, running = board.gauge(Gauge.TASKS_QUEUED), board.gauge(Gauge.TASKS_RUNNING)
    single = {
        "start_time_seconds": board.value(ServerCell.STARTED),
        "requests_in_progress": board.gauge(Gauge.REQUESTS),
        "connections": board.gauge(Gauge.CONNECTIONS),
        "connections_limit": settings.max_connections * board.workers,
        "requests_waiting": board.gauge(Gauge.REQUESTS_WAITING),
        "associations": board.gauge(Gauge.ASSOCIATIONS),
        "uploads": board.gauge(Gauge.UPLOADS),
        "uploads_limit": settings.max_uploads * board.workers,
        "pixel_process_ends": board.value(ServerCell.PIXEL_PROCESS_ENDS),
        "workers": board.workers,
        "workers_ready": board.gauge(Gauge.READY),
        "worker_ends": board.value(ServerCell.WORKER_ENDS),
        "worker_hangs": board.value(ServerCell.WORKER_HANGS),
        "scrub_bytes": board.value(ServerCell.SCRUB_BYTES),
        "scrub_segments": board.value(ServerCell.SCRUB_SEGMENTS),
        "scrub_period_seconds": 0.0 if settings.read_only else settings.scrub_days * DAY,
    }
    states = {name: pages.states() for name, pages in pools.items()}
    return {
        **{name: [((), value)] for name, value in single.items()},
        **_request_samples(board),
        "build_info": [((__version__, platform.python_version()), 1)],
        "pixel_tasks": [(("queued",), queued), (("running",), running)],
        "pixel_processes": [
            ((pool, state), found.count(code))
            for pool, found in states.items()
            for state, code in PROCESS_STATES.items()
        ],
    }


def audit_samples(settings: Settings, board: MetricsBoard) -> Samples:
    """Empty if there is no audit trail."""
    folder = audit_folder(settings)
    head = head_of(folder) if audits(settings) else None
    if head is None:
        return {}
    single: dict[str, float] = {
        "audit_entries": head.number,
        "audit_waiting": board.gauge(Gauge.AUDIT_WAITING),
    }
    if settings.audit_syslog:
        single["audit_unsent"] = head.number - Cursor(folder).load().entry
    return {name: [((), value)] for name, value in single.items()}


def hook_samples(settings: Settings, hooks: Hooks) -> Samples:
    """Empty if no changes are sent to hooks. Raises StoreError."""
    if not settings.hooks:
        return {}
    states = [hooks.state(hook.name) for hook in hooks.all()]
    failing = sum(1 for state in states if state.error)
    return {
        "hooks": [(("good",), len(states) - failing), (("failing",), failing)],
        "hook_waiting": [((), max((state.waiting for state in states), default=0))],
        "hook_dead_letters": [((), sum(state.dead for state in states))],
    }


def _request_samples(board: MetricsBoard) -> Samples:
    totals = board.totals()
    return {
        "requests": [
            ((kind, str(status or "other"), way), number)
            for kind, each in totals.items()
            for status, way, number in each.requests
            if number or (status in EXPECTED and way is Way.PLAIN)
        ],
        "request_bytes": [((kind,), each.received) for kind, each in totals.items()],
        "response_bytes": [((kind,), each.sent) for kind, each in totals.items()],
    }


def store_samples(store: Store) -> Samples:
    """The state of the store. No row of an instance is read. Raises StoreError and OSError."""
    numbers = store_numbers(store)
    index, overhead = numbers.index, numbers.bytes - numbers.live - numbers.dead
    single: dict[str, float] = {
        "store_up": 1,
        "studies": index["studies"],
        "series": index["series"],
        "instances": index["instances"],
        "damaged_instances": index["damage"],
        "lost_and_found_bytes": numbers.lost_and_found,
        "disk_free_bytes": numbers.disk_free,
        "disk_size_bytes": numbers.disk_total,
        "disk_reserve_bytes": store.reserve.least_of(numbers.disk_total),
    }
    if store.scrubs:
        oldest, never = verified_until(ScrubState.load(store.layout.scrub_state), store.index.segments())
        single["scrub_unverified_bytes"] = never
        if oldest is not None:
            single["scrub_oldest_verified_timestamp_seconds"] = oldest
    by_state = {
        "segments": {"open": numbers.segments - numbers.sealed, "sealed": numbers.sealed},
        "segment_bytes": {"live": numbers.live, "dead": numbers.dead, "overhead": overhead},
        "index_bytes": {
            "used": index["bytes_used"],
            "free": max(index["bytes_file"] - index["bytes_used"], 0),
        },
    }
    return {
        **{name: [((), value)] for name, value in single.items()},
        **{name: [((state,), value) for state, value in each.items()] for name, each in by_state.items()},
    }


def described() -> list[Metric]:
    """The families without samples."""
    return [Metric(each.full_name.removesuffix("_total"), each.text, each.kind) for each in DEFINITIONS]


def collected(samples: Samples, board: MetricsBoard) -> Iterator[Metric]:
    for each in DEFINITIONS:
        if each.kind == HISTOGRAM:
            yield _durations(each, board)
        elif each.name in samples:
            family = (CounterMetricFamily if each.kind == COUNTER else GaugeMetricFamily)(
                each.full_name, each.text, labels=each.labels
            )
            for labels, value in samples[each.name]:
                family.add_metric(labels, value)
            yield family


def _durations(definition: MetricDefinition, board: MetricsBoard) -> Metric:
    family = HistogramMetricFamily(definition.full_name, definition.text, labels=definition.labels)
    for kind, totals in board.totals().items():
        number, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), totals.buckets, strict=True):
            number += count
            buckets.append((bound, number))
        family.add_metric([kind], buckets, totals.seconds)
    return family

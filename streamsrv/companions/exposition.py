"""The metrics process: it answers `GET /metrics` in the format of Prometheus, for all workers together.

processes.py says how it starts. Its argument is a JSON list: the memory of the counters, listening sockets,
and the status pages of the pixel processes for short and for long tasks.

Strategy: it is a process of its own. So a scrape never delays a request, and is answered while workers hang
or die. An index that cannot be read (SIGBUS) ends no other process. The store is open for reading only.

Rules of this file
- A scrape waits at most PATIENCE seconds for the store; then it answers without the state of the store, and
  `streamsrv_store_up` is 0. The state is at most FRESH seconds old.
- A client has SECONDS for its request. MOST are served at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric

from framecodecs.pool.processes import StatusPages
from streamsrv.companions.child import STDIN, begin
from streamsrv.companions.families import (
    Samples,
    audit_samples,
    collected,
    described,
    hook_samples,
    server_samples,
    store_samples,
)
from streamsrv.errors import StreamsrvError
from streamsrv.events.hooks import hooks_of
from streamsrv.metrics import MetricsBoard
from streamsrv.options import store_options
from streamsrv.settings import Settings
from streamsrv.store import Store

log = logging.getLogger("streamsrv.metrics")

PATH = "/metrics"
SECONDS = 5.0
MOST = 16
PATIENCE, FRESH = 2.0, 2.0
STORE_DOWN: Samples = {"store_up": [((), 0)]}


class StoreReader:
    """The state of the store, read when it is requested, with that of hooks in a database. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.hooks = hooks_of(settings)
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._at = 0.0
        self._last: Samples = STORE_DOWN
        self._problem = ""

    def samples(self) -> Samples:
        if not self._lock.acquire(timeout=PATIENCE):  # the disk hangs
            return STORE_DOWN
        try:
            if time.monotonic() - self._at > FRESH:
                self._last = self._read()
                self._at = time.monotonic()
            return self._last
        finally:
            self._lock.release()

    def _read(self) -> Samples:
        try:
            if self._store is None:
                options = store_options(self._settings)
                self._store = Store.open(Path(self._settings.data), options, read_only=True)
            found = store_samples(self._store)
            if self.hooks.documents.folder is None:
                found = {**found, **hook_samples(self._settings, self.hooks)}
        except (StreamsrvError, OSError) as error:
            self._close()
            if (problem := str(error)) != self._problem:
                log.error("the state of the store cannot be read: %s", problem)
                self._problem = problem
            return STORE_DOWN
        self._problem = ""
        return found

    def _close(self) -> None:
        """The next scrape opens the store again."""
        store, self._store = self._store, None
        if store is not None:
            with contextlib.suppress(StreamsrvError, OSError):
                store.close()


class ServerCollector:
    """A collector of prometheus_client."""

    def __init__(
        self, board: MetricsBoard, pools: dict[str, StatusPages], settings: Settings, store: StoreReader
    ) -> None:
        self._board = board
        self._pools = pools
        self._settings = settings
        self._store = store

    def describe(self) -> list[Metric]:
        """For requests of single families (`name[]`)."""
        return described()

    def collect(self) -> Iterator[Metric]:
        samples = {
            **server_samples(self._board, self._pools, self._settings),
            **audit_samples(self._settings, self._board),
            **self._store.samples(),
        }
        if self._store.hooks.documents.folder is not None:
            samples |= hook_samples(self._settings, self._store.hooks)
        return collected(samples, self._board)


class MetricsListener(ThreadingMixIn, WSGIServer):
    """A server on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, app: Callable[..., Iterable[bytes]]) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), QuietHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.set_app(app)

    def verify_request(self, request: object, client_address: object) -> bool:
        return threading.active_count() <= MOST


class QuietHandler(WSGIRequestHandler):
    timeout = SECONDS

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client was too slow, or has left
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


def only_metrics(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """404 for every other path."""

    def answer(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            return app(environ, start)
        text = f"only {PATH} is answered here\n".encode()
        start("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        return [text]

    return answer


def serve(listeners: Iterable[socket.socket], collector: ServerCollector) -> None:
    registry = CollectorRegistry()
    registry.register(collector)
    app = only_metrics(make_wsgi_app(registry))
    for listener in listeners:
        server = MetricsListener(listener, app)
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def main() -> int:
    file, sockets, pages = json.loads(sys.argv[1])
    # It answers until the supervisor has ended the workers.
    settings = begin(signal.SIGINT, signal.SIGTERM)
    pools = dict(zip(("short", "long"), map(StatusPages, pages), strict=True))
    collector = ServerCollector(MetricsBoard(file), pools, settings, StoreReader(settings))
    serve([socket.socket(fileno=descriptor) for descriptor in sockets], collector)
    while os.read(STDIN, 1):  # its end means that the supervisor has ended
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

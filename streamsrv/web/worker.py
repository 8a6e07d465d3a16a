"""The life of one worker: listen, serve, drain, end.

SIGTERM stops it, and so does the end of `lifeline`, a pipe whose other end only the supervisor holds: no
worker outlives the supervisor. It also stops when the index of this process has failed, because only a new
process can open that again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from streamsrv.errors import IndexFailed, StreamsrvError
from streamsrv.metrics import Gauge, RequestCounts, Way
from streamsrv.settings import Settings
from streamsrv.web import health
from streamsrv.web.access.access import WayIn
from streamsrv.web.access_log import AccessLog
from streamsrv.web.actions import Actions
from streamsrv.web.app import App
from streamsrv.web.auditing import RequestAudit
from streamsrv.web.connection.certificates import ServerCertificate
from streamsrv.web.connection.handshakes import Handshakes
from streamsrv.web.connection.listener import Acceptor, Server
from streamsrv.web.connection.loop import BatchLoop
from streamsrv.web.health import HealthListener

if TYPE_CHECKING:
    from streamsrv.web.access.login import Login

log = logging.getLogger("streamsrv.worker")

# Seconds between two signs of life.
BEAT = 0.5
# Seconds that requests in flight have when the index has failed. Meanwhile nothing is accepted here.
FAILED_DRAIN = 0.3


class OtherProtocol(Protocol):
    """A protocol beside HTTP, in the same event loop."""

    def start(self) -> None:
        """Accepts connections from now on."""

    async def drain(self, patience: float) -> bool:
        """Accepts no more, and waits so many seconds. Returns False if something was cut off."""

    def stop(self) -> None: ...


class NothingBeside:
    """No protocol but HTTP."""

    def start(self) -> None:
        pass

    async def drain(self, patience: float) -> bool:
        return True

    def stop(self) -> None:
        pass


def run(
    settings: Settings,
    listeners: Sequence[socket.socket],
    actions: Actions,
    *,
    on_ready: Callable[[], None],
    on_beat: Callable[[], None] = lambda: None,
    lifeline: int | None = None,
    health_listeners: Sequence[socket.socket] = (),
    counts: RequestCounts | None = None,
    ways: Sequence[WayIn] = (),
    certificate: ServerCertificate | None = None,
    audit: RequestAudit | None = None,
    login: Login | None = None,
    beside: Callable[[App], OtherProtocol] | None = None,
) -> bool:
    """Serves until it is stopped. Returns False if requests were cut off. Raises IndexFailed if this process
    cannot use the index any more. The loop calls `on_beat`, and publishes `counts`, every BEAT seconds. With
    `certificate`, ports speak TLS, and SIGHUP reads them again. `beside` makes another protocol."""
    # At level INFO Tornado logs malformed headers with their values, and these may be tokens.
    logging.getLogger("tornado.general").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=BatchLoop) as runner:
        counted = counts or RequestCounts()
        return runner.run(
            _serve(
                *(settings, listeners, actions, on_ready, on_beat, lifeline, health_listeners, counted),
                *(ways, certificate, audit, login, beside),
            )
        )


class _Stop:
    """The event that stops the worker, and its reason."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self.failure: IndexFailed | None = None

    def fail(self, error: IndexFailed) -> None:
        """Any thread may call it."""
        if self.failure is None:
            self.failure = error
            log.error("%s: this worker ends, and another one replaces it", error.detail)
        self._loop.call_soon_threadsafe(self.event.set)

    def beat(self, probe: Callable[[], None], on_beat: Callable[[], None], counts: RequestCounts) -> None:
        """A sign of life: calls `on_beat`, and checks whether the index can be used."""
        on_beat()
        counts.publish()
        try:
            probe()
        except IndexFailed as error:
            self.fail(error)
        except StreamsrvError:
            pass  # /health/ready reports it
        self._loop.call_later(BEAT, self.beat, probe, on_beat, counts)


async def _serve(
    settings: Settings,
    listeners: Sequence[socket.socket],
    actions: Actions,
    on_ready: Callable[[], None],
    on_beat: Callable[[], None],
    lifeline: int | None,
    health_listeners: Sequence[socket.socket],
    counts: RequestCounts,
    ways: Sequence[WayIn],
    certificate: ServerCertificate | None,
    audit: RequestAudit | None,
    login: Login | None,
    beside: Callable[[App], OtherProtocol] | None,
) -> bool:
    loop, stop = asyncio.get_running_loop(), _Stop()
    _stop_on_signals(loop, stop, lifeline)
    access_log = _access_log(settings, counts)
    app = App(settings, actions, access_log, stop.fail, port_of(listeners), ways, audit, login)
    server = Server(app, settings)
    handshakes = Handshakes(settings, certificate, app.watch) if certificate else None
    acceptor = Acceptor(
        listeners,
        server,
        settings.max_connections,
        settings.max_connections_per_client,
        alone=settings.workers == 1,
        handshakes=handshakes,
    )
    if handshakes is not None:
        _renew_at_hangup(handshakes)
    other = beside(app) if beside else NothingBeside()
    acceptor.start()
    other.start()
    _watch_gauges(counts, app, acceptor)
    probes = HealthListener(health_listeners, {"/health/live": health.live, "/health/ready": app.ready})
    await probes.start()
    on_ready()
    stop.beat(actions.probe, on_beat, counts)
    await stop.event.wait()
    if lifeline is not None:
        loop.remove_reader(lifeline)
    acceptor.stop()
    for listener in listeners:
        listener.close()
    patience = FAILED_DRAIN if stop.failure else settings.drain_timeout
    finished = all(await asyncio.gather(app.drain(patience), other.drain(patience)))
    await server.close_all_connections()
    probes.stop()
    if handshakes is not None:
        handshakes.stop()
    other.stop()
    app.stop()
    counts.publish()
    _log_ways(counts)
    if not finished:
        log.warning("requests were cut off: they took longer than %s seconds to finish", patience)
    if stop.failure:
        raise stop.failure
    return finished


def _log_ways(counts: RequestCounts) -> None:
    answered = counts.by_way()
    log.info("answered: %s", ", ".join(f"{way} {answered[way]}" for way in Way))


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: _Stop, lifeline: int | None) -> None:
    loop.add_signal_handler(signal.SIGTERM, stop.event.set)
    # Ctrl-C reaches the whole foreground group; the supervisor turns it into SIGTERM for all.
    loop.add_signal_handler(signal.SIGINT, _nothing)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.event.set)


def _access_log(settings: Settings, counts: RequestCounts) -> AccessLog:
    enabled = logging.getLogger("streamsrv").isEnabledFor(logging.INFO)
    return AccessLog(sys.stderr, json=settings.log_format == "json", counts=counts, enabled=enabled)


def _renew_at_hangup(handshakes: Handshakes) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handshakes.renew)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def _watch_gauges(counts: RequestCounts, app: App, acceptor: Acceptor) -> None:
    gauges: Mapping[Gauge, Callable[[], float]] = {
        Gauge.READY: lambda: not app.draining,
        Gauge.REQUESTS: lambda: app.active,
        Gauge.CONNECTIONS: lambda: acceptor.connections,
        Gauge.UPLOADS: lambda: app.uploads,
        Gauge.REQUESTS_WAITING: lambda: app.threads.waiting,
    }
    for gauge, value in gauges.items():
        counts.watch(gauge, value)


def port_of(listeners: Sequence[socket.socket]) -> int:
    """The port of the listening sockets; 0 if there are Unix sockets only."""
    return next((each.getsockname()[1] for each in listeners if each.family != socket.AF_UNIX), 0)


def _nothing() -> None:
    pass

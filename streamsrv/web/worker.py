"""One worker's life: listen, serve, drain when told to, end.

Told to by SIGTERM, or by the end of `lifeline`: a pipe whose other end only the supervisor holds, so that
no worker outlives it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from streamsrv.settings import Settings
from streamsrv.web.access_log import AccessLog
from streamsrv.web.actions import Actions
from streamsrv.web.app import App
from streamsrv.web.listener import Acceptor, Server
from streamsrv.web.loop import Loop

log = logging.getLogger("streamsrv.worker")


def run(
    settings: Settings,
    listeners: Sequence[socket.socket],
    actions: Actions,
    *,
    on_ready: Callable[[], None],
    lifeline: int | None = None,
) -> bool:
    """Serve until told to stop; False if requests had to be cut off."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(_serve(settings, listeners, actions, on_ready, lifeline))


async def _serve(
    settings: Settings,
    listeners: Sequence[socket.socket],
    actions: Actions,
    on_ready: Callable[[], None],
    lifeline: int | None,
) -> bool:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Ctrl-C reaches the whole foreground group; the supervisor turns it into SIGTERM for all.
    loop.add_signal_handler(signal.SIGINT, _nothing)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    enabled = logging.getLogger("streamsrv").isEnabledFor(logging.INFO)
    app = App(settings, actions, AccessLog(sys.stderr, json=settings.log_format == "json", enabled=enabled))
    server = Server(app, settings)
    acceptor = Acceptor(listeners, server, settings.max_connections, alone=settings.workers == 1)
    acceptor.start()
    on_ready()
    await stop.wait()
    if lifeline is not None:
        loop.remove_reader(lifeline)
    acceptor.stop()
    for listener in listeners:
        listener.close()
    finished = await app.drain(settings.drain_timeout)
    await server.close_all_connections()
    app.stop()
    if not finished:
        log.warning(
            "requests were cut off: they took longer than %s seconds to finish", settings.drain_timeout
        )
    return finished


def _nothing() -> None:
    pass

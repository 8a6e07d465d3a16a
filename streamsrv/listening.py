"""The listening sockets of a server: ports, and the Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Sequence

from streamsrv.errors import StreamsrvError
from streamsrv.settings import Settings

BACKLOG = 1024


class CannotServe(StreamsrvError):
    """The server cannot be started; `detail` is the reason."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Listens on every address of the host, with one port; raises CannotServe."""
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            bound = (address[0], listeners[0].getsockname()[1] if listeners else port)
            listeners.append(socket.create_server(bound, family=family, backlog=BACKLOG))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise CannotServe(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listeners


@contextlib.contextmanager
def bound_path(path: str, mode: str) -> Iterator[list[socket.socket]]:
    """Listens on a Unix socket, which is removed at the end; no socket for an empty path. One that is left
    over is replaced, if no process listens there. Raises CannotServe."""
    if not path:
        yield []
        return
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            _remove_stale(path)
            listener.bind(path)
            os.chmod(path, int(mode, 8))
            listener.listen(BACKLOG)
            found = os.stat(path)
        except OSError as error:
            raise CannotServe(f"unix_socket: cannot listen on {path}: {error.strerror or error}") from None
        try:
            yield [listener]
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), found):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Raises CannotServe if the path is in use."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise CannotServe(f"unix_socket: {path} exists, and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise CannotServe(f"unix_socket: another process listens on {path}")


def origin_of(settings: Settings, listeners: Sequence[socket.socket]) -> str:
    """The URL under which a client on this machine reaches the server."""
    host, port = listeners[0].getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if settings.tls_certificate else "http"
    return settings.public_url.rstrip("/") or f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

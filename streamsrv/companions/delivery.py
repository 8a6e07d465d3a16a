"""How a hook delivers: addresses that may be reached, and the POST of a webhook.

Rules of this file
- A host is resolved once for each connection, all of its addresses are checked, and the connection goes to a
  checked address. Loopback, link-local and the like are refused unless the hook allows them.
- Redirects are not followed: they count as failures. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from typing import Protocol
from urllib.parse import urlsplit

from streamsrv import __version__
from streamsrv.events import ToldEvent
from streamsrv.events.hooks import Hook, signature

DEADLINE = 20.0  # seconds
ATTEMPTS = 24  # within an hour


class NotDelivered(Exception):
    """The receiver did not take an event. `most` is the number of such failures after which it is a dead
    letter, 0 for no end. `letter` stands for the event then. `after` is the shortest pause in seconds.
    `progress` is whether the receiver has taken a part of it."""

    def __init__(
        self,
        reason: str,
        *,
        most: int = 0,
        letter: bytes = b"",
        after: float = 0.0,
        progress: bool = False,
    ) -> None:
        super().__init__(reason)
        self.most, self.letter, self.after, self.progress = most, letter, after, progress


class HookTarget(Protocol):
    """Webhook, or Forwarder."""

    def deliver(self, message_id: str, event: ToldEvent) -> bool:
        """One attempt; whether there was something to send. Raises NotDelivered."""

    def close(self) -> None: ...


def checked_address(host: str, port: int, *, local: bool) -> tuple[str, int]:
    """An address of the host. Raises NotDelivered if one of them is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotDelivered(f"{host} has no address: {error.strerror}") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not local and not is_allowed(address):
            raise NotDelivered(f"{host} has the address {address}, which is not allowed")
    return addresses[0], port


def is_allowed(address: str) -> bool:
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(known, "ipv4_mapped", None) or known
    return not (
        mapped.is_loopback
        or mapped.is_link_local
        or mapped.is_unspecified
        or mapped.is_multicast
        or mapped.is_reserved
    )


class _Connection(http.client.HTTPConnection):
    """To an address that was checked before; `context` is None without TLS."""

    def __init__(self, host: str, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        super().__init__(host, address[1], timeout=DEADLINE)
        self._address = address
        self._context = context

    def connect(self) -> None:
        self.sock = socket.create_connection(self._address, DEADLINE)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


class Webhook:
    """Posts each event, signed."""

    def __init__(self, hook: Hook, attempts: int = ATTEMPTS) -> None:
        self._hook = hook
        self._attempts = attempts

    def close(self) -> None:
        """Each event has its own connection."""

    def deliver(self, message_id: str, event: ToldEvent) -> bool:
        try:
            self._post(message_id, event.data)
        except NotDelivered as error:
            error.most = self._attempts
            raise
        return True

    def _post(self, message_id: str, body: bytes) -> None:
        hook = self._hook
        parts, now = urlsplit(hook.url), int(time.time())
        host, secure = parts.hostname or "", parts.scheme == "https"
        address = checked_address(host, parts.port or (443 if secure else 80), local=hook.local)
        connection = _Connection(host, address, ssl.create_default_context() if secure else None)
        headers = {
            "Host": parts.netloc.rpartition("@")[2],
            "Content-Type": "application/json",
            "User-Agent": f"streamsrv/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(hook.secret, message_id, now, body),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("POST", target, body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise NotDelivered(f"the receiver answered {status}")

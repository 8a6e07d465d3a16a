"""The origin of a request: under which name it reached this server, over which scheme, from which client.

Rules of this file
- Forwarding headers count only from a peer in `trusted_proxies`, and only those of one family, `Forwarded`
  (RFC 7239) or `X-Forwarded-*`: a proxy passes on the other family as the client wrote it.
- Of several hops the last one counts, because the trusted proxy wrote it. A client in it that is neither an
  address nor a name of RFC 7239 6 is ignored: it would be logged.
- A Host that is not expected is refused from every client. A page that made its own name point here (DNS
  rebinding) then gets nothing. A server that listens to other machines accepts an address instead of a name,
  because rebinding needs a name.
- Some clients leave the port out of Host. From a loopback address the port of the socket is added to a
  loopback name: no port is mapped between the two. Other names may be those of a proxy on this machine.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from streamsrv.errors import BadRequest, Forbidden
from streamsrv.settings import Settings
from streamsrv.web.access.principal import UNKNOWN, Principal

UNIX = "unix"  # the peer of a connection to the Unix socket
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_WITHOUT_PORT = frozenset(("localhost", "127.0.0.1", "[::1]"))
DEFAULT_PORTS = {"http": 80, "https": 443}
# uri-host and port of RFC 9112 3.2, without user information.
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::([0-9]{0,5}))?")
# An address with or without a port; of IPv6 in brackets, or bare as X-Forwarded-For has it.
_NODE = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+(?=:[0-9]{1,5}\Z|\Z)|[0-9A-Fa-f:.]+)(?::[0-9]{1,5})?"
)
_OBFUSCATED = re.compile(r"unknown|_[A-Za-z0-9._-]{1,63}")
_PAIR = re.compile(r'(\w+)=("[^"]*"|[^;,\s]*)')


class Caller(NamedTuple):
    """The decision on a header block: from where a request comes, and from which principal.

    It depends on the headers and the peer alone. So it is kept with a known header block and with cached
    frames, and holds for all their requests while `Access.holds` (access/access.py).
    """

    base: str  # absolute URLs begin with it, without the version
    client: str  # the address in the access log
    party: str  # clients of one party share its limits: the principal, else the address
    is_proxied: bool = False  # the peer is a trusted proxy
    principal: Principal = UNKNOWN
    epoch: int = -1  # of the Access that admitted it; -1: it is never kept


class Hosts:
    """The settings about names, parsed once. `port` is that of the listening socket; 0 if it is not known."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self._public = settings.public_url.rstrip("/")
        self._forwarded = forwarded if settings.forwarded_headers == "forwarded" else x_forwarded
        self._scheme = "https" if settings.tls_certificate else "http"  # of the port
        self._trusts_unix = UNIX in settings.trusted_proxies
        networks = set(settings.trusted_proxies) - {UNIX}
        self._proxies = tuple(ipaddress.ip_network(item, strict=False) for item in networks)
        self._names = LOOPBACK_NAMES | expected_names(settings)
        self._any_address = not is_loopback(settings.host)
        self._port = "" if port in (0, DEFAULT_PORTS[self._scheme]) else f":{port}"
        self._known: dict[str, bool] = {}  # verdicts by Host header; few differ

    def caller(self, headers: Mapping[str, str], host: str, peer: str) -> Caller:
        """Raises BadRequest or Forbidden for a Host that is malformed or not expected."""
        scheme, client = "http" if peer == UNIX else self._scheme, peer
        is_proxied = (bool(self._proxies) or self._trusts_unix) and self.trusted(peer)
        if is_proxied:
            scheme, host, client = self._forwarded(headers, scheme, host, peer)
        elif self._port and host.lower() in _WITHOUT_PORT and is_loopback(peer):
            host += self._port
        self._check(host)
        return Caller(self._public or f"{scheme}://{host}", client, party(client), is_proxied)

    def trusted(self, peer: str) -> bool:
        if peer == UNIX:
            return self._trusts_unix
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def _check(self, host: str) -> None:
        if self._known.get(host):
            return
        match = AUTHORITY.fullmatch(host)
        if match is None:
            raise BadRequest("the Host header is not a host name with an optional port")
        name = match[1].strip("[]").lower().rstrip(".")
        if (
            name not in self._names
            and "*" not in self._names
            and not (self._any_address and is_address(name))
        ):
            raise Forbidden(
                f"this server does not answer for the host {match[1]!r}: if that is a name of this server, "
                "add it to the setting allowed_hosts"
            )
        if len(self._known) < 1024:
            self._known[host] = True


def expected_names(settings: Settings) -> frozenset[str]:
    names = {name.lower().rstrip(".") for name in settings.allowed_hosts}
    if settings.public_url:
        names.add(urlsplit(settings.public_url).hostname or "")
    if not is_loopback(settings.host):
        names |= {socket.gethostname().lower(), settings.host.lower()}
    return frozenset(names - {""})


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def x_forwarded(headers: Mapping[str, str], scheme: str, host: str, peer: str) -> tuple[str, str, str]:
    """Scheme, host and client as the trusted proxy saw them, from X-Forwarded-*; as given without these."""
    scheme = _last(headers.get("x-forwarded-proto", scheme))
    host = _last(headers.get("x-forwarded-host", host))
    return _scheme(scheme), host, _client(_last(headers.get("x-forwarded-for", peer)), peer)


def forwarded(headers: Mapping[str, str], scheme: str, host: str, peer: str) -> tuple[str, str, str]:
    """The same from Forwarded (RFC 7239 4)."""
    hop = dict(_unquoted(_PAIR.findall(_last(headers.get("forwarded", "")))))
    return _scheme(hop.get("proto", scheme)), hop.get("host", host), _client(hop.get("for", peer), peer)


def _scheme(word: str) -> str:
    return "https" if word.lower() == "https" else "http"


def _client(node: str, peer: str) -> str:
    """The address of a node without its port, or its obfuscated name (RFC 7239 6.3); else the peer."""
    if _OBFUSCATED.fullmatch(node):
        return node
    found = _NODE.fullmatch(node)
    address = (found[1] or found[2]) if found else ""
    return address if is_address(address) else peer


@lru_cache(maxsize=4096)
def party(client: str) -> str:
    """Which clients count as one where slots and connections are shared out: the address, of IPv6 the
    network of 64 bits, which one machine mostly has for itself."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


def _unquoted(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return ((name.lower(), value.strip('"')) for name, value in pairs)

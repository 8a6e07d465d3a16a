"""Under which name a request reached this server, over which scheme, and from whom.

Rules of this file
- `Forwarded` (RFC 7239) and `X-Forwarded-*` count only from a peer in `trusted_proxies`; of several hops the
  last one counts, because it alone was written by the proxy that we trust.
- A Host that is not expected is refused, whoever sent it: a page that made its own name point here (DNS
  rebinding) is then told nothing. An address instead of a name is always fine on a server that listens to
  others, because rebinding needs a name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from streamsrv.errors import BadRequest, Forbidden
from streamsrv.settings import Settings

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
# uri-host and port of RFC 9112 3.2, without user information.
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::([0-9]{0,5}))?")
_PAIR = re.compile(r'(\w+)=("[^"]*"|[^;,\s]*)')


class Origin(NamedTuple):
    """`base` is what absolute URLs begin with, without the version; `client` the address that the access log
    names."""

    base: str
    client: str


class Hosts:
    """What the settings say about names, parsed once."""

    def __init__(self, settings: Settings) -> None:
        self._public = settings.public_url.rstrip("/")
        self._proxies = tuple(ipaddress.ip_network(item, strict=False) for item in settings.trusted_proxies)
        self._names = LOOPBACK_NAMES | expected_names(settings)
        self._any_address = not is_loopback(settings.host)
        self._known: dict[str, bool] = {}  # verdicts by Host header; few differ

    def origin(self, headers: Mapping[str, str], host: str, peer: str) -> Origin:
        """Raises BadRequest or Forbidden for a Host that is malformed or not expected."""
        scheme, client = "http", peer
        if self._proxies and self._trusted(peer):
            scheme, host, client = forwarded(headers, host, peer)
        self._check(host)
        return Origin(self._public or f"{scheme}://{host}", client)

    def _trusted(self, peer: str) -> bool:
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
                f"this server does not answer for the host {match[1]!r}; the setting allowed_hosts names more"
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
    """Whether only this machine can reach what listens on `host`."""
    if host.lower() == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def forwarded(headers: Mapping[str, str], host: str, peer: str) -> tuple[str, str, str]:
    """Scheme, host and client as the trusted proxy saw them."""
    scheme = _last(headers.get("x-forwarded-proto", "http"))
    host = _last(headers.get("x-forwarded-host", host))
    client = _last(headers.get("x-forwarded-for", peer))
    if "forwarded" in headers:
        hop = dict(_unquoted(_PAIR.findall(_last(headers["forwarded"]))))
        scheme, host, client = hop.get("proto", scheme), hop.get("host", host), hop.get("for", client)
    return ("https" if scheme.lower() == "https" else "http"), host, client[:64]


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


def _unquoted(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return ((name.lower(), value.strip('"')) for name, value in pairs)

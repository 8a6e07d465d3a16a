"""One bounded request to an issuer: no redirects, a limit of bytes, one deadline for everything.

Strategy: http.client, whose time-outs count for single reads. A timer shuts the socket at the deadline, so
that an issuer that sends a byte a second ends there too.

A proxy of the environment (`https_proxy`, `no_proxy`) is used for TLS: it sees the host only. The certificate
is that of the issuer.

Rule of this file: an error names the URL, and neither a body nor a header, which may hold secrets.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from streamsrv.errors import StreamsrvError

MOST_BYTES = 256 << 10
DEADLINE = 10.0  # seconds
HTTP_PORT = 80


class FetchFailed(StreamsrvError):
    """The issuer gave no usable answer; `detail` is the reason. `refused` is the code of an OAuth error
    (RFC 6749 5.2), or empty."""

    def __init__(self, detail: str, refused: str = "") -> None:
        super().__init__(detail)
        self.refused = refused


class Trust(NamedTuple):
    """`ca_file` has the certificates that vouch for the issuer, in PEM; empty: those of the system. Without
    `any_http`, plain HTTP is for loopback addresses only."""

    ca_file: str = ""
    any_http: bool = False

    def check(self, url: str) -> None:
        """Raises FetchFailed."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            well_formed = bool(host) and parts.username is None and (parts.port is None or parts.port > 0)
        except ValueError:
            host, well_formed = "", False
        if not well_formed or parts.scheme not in ("http", "https") or not url.isascii() or " " in url:
            raise FetchFailed(f"{url!r} is no http or https URL")
        if parts.scheme == "http" and not self.any_http and not _is_loopback(host):
            raise FetchFailed(f"{url} has no TLS: anyone on the way could exchange the keys")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def get_json(url: str, trust: Trust, deadline: float = DEADLINE) -> dict[str, Any]:
    """The JSON object at `url`. Raises FetchFailed. `deadline` is in seconds."""
    return _object(url, *_exchange("GET", url, trust, deadline))


def post_form(
    url: str,
    fields: Mapping[str, str],
    trust: Trust,
    client: tuple[str, str] | None = None,
    deadline: float = DEADLINE,
) -> dict[str, Any]:
    """The JSON object that answers a form (RFC 6749 4.1.3). `client` are id and secret of a client, sent as
    Basic (2.3.1). Raises FetchFailed; its `refused` has the code of an answer that is an OAuth error."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if client is not None:
        headers["Authorization"] = _basic(":".join(quote(each, safe="") for each in client))
    return _object(url, *_exchange("POST", url, trust, deadline, urlencode(fields).encode(), headers))


def _object(url: str, status: int, body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except ValueError:
        found = None
    if status in (400, 401) and isinstance(found, dict) and isinstance(found.get("error"), str):
        code = "".join(each for each in found["error"][:64] if each.isprintable())
        raise FetchFailed(f"{url} answers with status {status}: {code}", code)
    if 300 <= status < 400:
        raise FetchFailed(f"{url} redirects (status {status}), which is not followed")
    if status != 200:
        raise FetchFailed(f"{url} answers with status {status}")
    if not isinstance(found, dict):
        raise FetchFailed(f"{url} answers without a JSON object")
    return found


def _exchange(
    method: str,
    url: str,
    trust: Trust,
    deadline: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body."""
    trust.check(url)
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, trust, deadline)
    late = _Deadline(connection, deadline)
    try:
        connection.connect()
        late.sock = connection.sock
        connection.request(method, path, body, {"Accept": "application/json", **(headers or {})})
        with connection.getresponse() as response:
            found = response.read(MOST_BYTES + 1)
            if len(found) > MOST_BYTES:
                raise FetchFailed(f"{url} answers with more than {MOST_BYTES >> 10} kB")
            if late.passed:
                raise TimeoutError
            return response.status, found
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.passed or isinstance(error, TimeoutError):
            raise FetchFailed(f"{url} does not answer within {deadline:g} s") from None
        if isinstance(error, ssl.SSLCertVerificationError):
            raise FetchFailed(f"the certificate of {url} is not trusted: {error.verify_message}") from None
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise FetchFailed(f"{url} cannot be reached: {reason}") from None
    finally:
        late.cancel()
        connection.close()


def _connection(
    scheme: str, host: str, port: int | None, trust: Trust, deadline: float
) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=deadline)
    try:
        context = ssl.create_default_context(cafile=trust.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise FetchFailed(f"{trust.ca_file} has no certificates in PEM: {error}") from None
    proxy = urlsplit(getproxies().get("https", ""))
    if not proxy.hostname or proxy_bypass(host):
        return http.client.HTTPSConnection(host, port, timeout=deadline, context=context)
    connection = http.client.HTTPSConnection(
        proxy.hostname, proxy.port or HTTP_PORT, timeout=deadline, context=context
    )
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else ""
    connection.set_tunnel(host, port, {"Proxy-Authorization": _basic(login)} if login else {})
    return connection


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


class _Deadline(threading.Timer):
    """Shuts the socket in `deadline` seconds. The connection forgets `sock` when the head of an answer has
    arrived."""

    def __init__(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        super().__init__(deadline, self._pass)
        self.sock: socket.socket | None = None
        self.passed = False
        self.daemon = True
        self._connection = connection
        self.start()

    def _pass(self) -> None:
        self.passed = True
        sock = self.sock or self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # also under TLS, whose object stays in use

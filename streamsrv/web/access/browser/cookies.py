"""Cookies of browsers, and the origin of their requests.

Strategy: a browser gets its session as a cookie, so that the page and a viewer on the same origin need no
token. The name has a prefix that only this origin can set (RFC 6265bis 4.1.3). So no other host of the same
domain can plant a cookie.

Rules of this file
- Over https a cookie is Secure. Without TLS only a loopback address gets one: browsers do not take a Secure
  cookie there, and no network reads it. For any other address the sign-in is refused.
- Cookies do not depend on the port of a server, so its name has the port: two servers on one host keep apart.
- A request that changes something counts only if this origin made it: Sec-Fetch-Site (Fetch Metadata), or
  Origin (RFC 6454) where a browser does not send that. Without both it is refused.
- A GET that another site embeds counts without its cookie. SameSite=Strict alone would let through the other
  ports and hosts of the same site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from streamsrv.errors import Forbidden
from streamsrv.web.hosts import is_loopback

SESSION_COOKIE, LOGIN_COOKIE = "streamsrv", "streamsrv-login"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
NO_TLS = (
    "a browser can sign in over https only, or on a loopback address: the cookie would be readable in the "
    "network. Behind a proxy with TLS set trusted_proxies"
)
CROSS_ORIGIN = "another site made this request, so the session of the browser does not count"


class BrowserCookie(NamedTuple):
    """The name and place of a cookie of one server."""

    name: str
    path: str
    secure: bool

    def set(self, value: str, *, same_site: str = "Strict", seconds: int | None = None) -> tuple[str, str]:
        """The header Set-Cookie. Without `seconds` the cookie ends with the browser."""
        parts = [f"{self.name}={value}", f"Path={self.path}", "HttpOnly", f"SameSite={same_site}"]
        if self.secure:
            parts.append("Secure")
        if seconds is not None:
            parts.append(f"Max-Age={seconds}")
        return "Set-Cookie", "; ".join(parts)

    def clear(self) -> tuple[str, str]:
        return self.set("", seconds=0)

    def value_in(self, headers: Mapping[str, str]) -> str:
        """The value in the request, or an empty text. Of two cookies with this name neither counts."""
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        found = [value for name, _, value in pairs if name == self.name]
        return found[0] if len(found) == 1 else ""


def cookie_for(base: str, purpose: str = SESSION_COOKIE) -> BrowserCookie | None:
    """The cookie of the server whose absolute URLs begin with `base`, or None if it cannot be kept secret."""
    parts = urlsplit(base)
    suffix = f"-{parts.port}" if parts.port else ""
    path = f"{parts.path.rstrip('/')}/"
    if parts.scheme == "https":
        prefix = "__Host-" if path == "/" else "__Secure-"
        return BrowserCookie(f"{prefix}{purpose}{suffix}", path, secure=True)
    if is_loopback(parts.hostname or ""):
        return BrowserCookie(f"{purpose}{suffix}", path, secure=False)
    return None


def needed_cookie(base: str, purpose: str = SESSION_COOKIE) -> BrowserCookie:
    """As `cookie_for`. Raises Forbidden."""
    cookie = cookie_for(base, purpose)
    if cookie is None:
        raise Forbidden(NO_TLS)
    return cookie


def check_origin(headers: Mapping[str, str], base: str) -> None:
    """Raises Forbidden unless this origin made the request."""
    site = headers.get("sec-fetch-site")
    if site == "same-origin" or (site is None and headers.get("origin") == origin_of(urlsplit(base))):
        return
    raise Forbidden(CROSS_ORIGIN)


def is_embedded(headers: Mapping[str, str]) -> bool:
    """Whether a document of another origin fetches this, in a way other than a link."""
    foreign = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
    return foreign and headers.get("sec-fetch-mode") != "navigate"


def origin_of(parts: SplitResult) -> str:
    """RFC 6454 6.2."""
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{parts.scheme}://{host.removesuffix(f':{default}')}"

"""Cross-origin requests (the Fetch standard): which web viewers on other origins may read answers (CORS) and
embed them (Cross-Origin-Resource-Policy).

A page that is isolated (COEP) shows an `<img>` of another origin only if its answer has a policy that allows
it. The request of an `<img>` has no Origin, so its Referer names the page. A page can leave out its Referer,
but it cannot write that of another origin.

A preflight is answered before anything else, authentication included: it carries no credentials, and a
browser that is refused here never sends the request itself. Error answers carry the headers too, or a viewer
could not tell why it failed.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamsrv.errors import Forbidden
from streamsrv.settings import Settings
from streamsrv.wire.answers import Answer

ALLOW_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
# `*` would not cover Authorization.
ALLOW_HEADERS = (
    "authorization, accept, content-type, content-encoding, if-match, if-modified-since, if-none-match, "
    "if-range, if-unmodified-since, range, want-repr-digest, x-request-id"
)
EXPOSE_HEADERS = (
    "Accept-Ranges, Allow, Content-Length, Content-Location, Content-Range, ETag, Last-Modified, Link, "
    "Location, Repr-Digest, Retry-After, Warning, X-Request-ID, X-Total-Count, api-supported-versions"
)


_POLICY = "Cross-Origin-Resource-Policy"
_EXPOSED = ("Access-Control-Expose-Headers", EXPOSE_HEADERS)
_SAME, _CROSS = (_POLICY, "same-origin"), (_POLICY, "cross-origin")
_VARY = ("Vary", "Origin, Referer")


class Cors:
    def __init__(self, settings: Settings) -> None:
        self._any = "*" in settings.cors_origins
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_origins)
        self._max_age = str(settings.cors_max_age)

    def headers(self, request_headers: Mapping[str, str]) -> list[tuple[str, str]]:
        """The headers of every answer to this request."""
        if not self._origins:
            return [_SAME]
        if self._any:
            # Also without Origin: a browser may reuse the answer of an `<img>` for a script.
            return [("Access-Control-Allow-Origin", "*"), _EXPOSED, _CROSS]
        origin = request_headers.get("origin")
        allowed = self._allowed(origin)
        if allowed:
            return [("Access-Control-Allow-Origin", allowed), _EXPOSED, _CROSS, _VARY]
        embeds = origin is None and self._allowed(_origin_of(request_headers.get("referer", "")))
        return [_CROSS if embeds else _SAME, _VARY]

    def check_change(self, request_headers: Mapping[str, str]) -> None:
        """Raises Forbidden for a change that a page asks for whose origin may not read answers (CSRF). A
        browser sends a certificate, or the password that its user has typed, with the forms of any site."""
        foreign = request_headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and not self._allowed(request_headers.get("origin")):
            raise Forbidden("a page of another origin asks for a change, and cors_origins does not name it")

    def preflight(self, method: str, request_headers: Mapping[str, str]) -> Answer | None:
        """The answer to a preflight; None if this request is none."""
        if method != "OPTIONS" or "access-control-request-method" not in request_headers:
            return None
        if not self._allowed(request_headers.get("origin")):
            return Answer(204)
        return Answer(
            204,
            [
                ("Access-Control-Allow-Methods", ALLOW_METHODS),
                ("Access-Control-Allow-Headers", ALLOW_HEADERS),
                ("Access-Control-Max-Age", self._max_age),
            ],
        )

    def _allowed(self, origin: str | None) -> str | None:
        if origin is None:
            return None
        if self._any:
            return "*"
        return origin if origin.lower() in self._origins else None


def _origin_of(url: str) -> str:
    """The scheme, host and port of the URL in Referer."""
    return "/".join(url.split("/", 3)[:3])

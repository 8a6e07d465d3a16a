"""Sessions of browsers: a grant of the kind `session`, whose secret is the value of a cookie.

Strategy: a session of a key or of a share has no rights of its own: it names the grant from which it came. So
it ends with that grant on every worker. A session of an OIDC login has the rights and the rule of the claims.

Rules of this file
- Each sign-in gets a new secret of 256 bits. A value that a client brings never becomes a session, and the
  session that it had before ends (session fixation).
- A cookie that is unknown or has ended is no error: the request has no credentials then.
- Sessions that have ended are removed now and then, by the worker that begins another one.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from streamsrv.errors import RenewalPending, TooManyRequests
from streamsrv.web.access.browser.cookies import (
    SAFE_METHODS,
    SESSION_COOKIE,
    check_origin,
    cookie_for,
    is_embedded,
)
from streamsrv.web.access.browser.shares import within
from streamsrv.web.access.grants import Grant, GrantChange, GrantDamaged, Grants, digest_of
from streamsrv.web.access.keys import principal_of
from streamsrv.web.access.principal import NO_RIGHTS, Principal, Right
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

log = logging.getLogger("streamsrv.access")

SESSION = "session"
SECRET_BYTES = 32
SWEEP = 600.0  # seconds between two looks for sessions that have ended
FindGrant: TypeAlias = Callable[[str, str], Grant | None]
RenewSession: TypeAlias = Callable[[Grant, str], bool]
SOURCE, PRINCIPAL, DISPLAY = "source", "principal", "display"
# Of a session that can be renewed: the end of its rights, and its refresh token.
ENDS, RENEWAL = "ends", "renewal"
# Sessions that one key or link begins in the lifetime of a session, in one worker: each has a file.
MOST_BEGUN, RETRY_AFTER = 2000, 60
EARLY = 30.0  # seconds before the end of its rights, a session is renewed


class Sessions:
    """`find` returns the grant of a kind and digest. `lifetime` is in seconds. `begin_from`, `begin_as` and
    `end` block."""

    def __init__(
        self,
        grants: Grants,
        find: FindGrant,
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._grants = grants
        self._find_grant = find
        self._lifetime = lifetime
        self._clock = clock
        self._swept = 0.0
        self._begun: dict[str, deque[float]] = {}
        # Begins the renewal of a session; False if that is not possible now.
        self.renew: RenewSession = lambda session, secret: False

    # The way in

    def principal(self, head: Head, caller: Caller) -> Principal | None:
        """None without a session. Raises Forbidden for a change that another origin asks for, and
        RenewalPending for a session whose rights have ended: the same request may succeed in a moment."""
        found = self.current(head, caller.base)
        if found is None:
            return None
        if head.method not in SAFE_METHODS:
            check_origin(head.headers, caller.base)
        elif is_embedded(head.headers):
            return None
        ends, now = found.extra.get(ENDS, math.inf), self._clock()
        if ends - now < EARLY:
            begun = self.renew(found, self._secret(head, caller.base))
            if begun and ends <= now:
                raise RenewalPending("the session is being renewed")
        return self.principal_of(found) if now < ends else None

    def current(self, head: Head, base: str) -> Grant | None:
        """The session of the request, if it goes on."""
        secret = self._secret(head, base)
        return self._alive(self._find(digest_of(secret), SESSION)) if secret else None

    def _secret(self, head: Head, base: str) -> str:
        if "cookie" not in head.headers:
            return ""
        cookie = cookie_for(base, SESSION_COOKIE)
        return cookie.value_in(head.headers) if cookie else ""

    def principal_of(self, session: Grant) -> Principal | None:
        """None if the grant from which the session came is gone or has ended."""
        holder = self.holder(session)
        if holder is None:
            return None
        principal = principal_of(holder)
        name = str(holder.extra.get(PRINCIPAL, principal.name))
        until = min(session.until, holder.until, session.extra.get(ENDS, math.inf))
        return principal._replace(name=name, until=until)

    def holder(self, grant: Grant) -> Grant | None:
        """The grant that has the rights of a session. A share ends with the key that made it,
        and shows no more than that."""
        source = grant.extra.get(SOURCE)
        if source is None:
            return grant
        found = self._alive(self._find(source["digest"], source["kind"]))
        if found is None or grant.kind == SESSION:
            return found and self.holder(found)
        return within(grant, found) if Right.SHARE in found.rights else None

    def _find(self, digest: str, kind: str) -> Grant | None:
        try:
            return self._find_grant(kind, digest)
        except (GrantDamaged, OSError) as error:
            log.error("%s", error)
            return None

    def _alive(self, grant: Grant | None) -> Grant | None:
        return grant if grant is not None and self._clock() < grant.until else None

    # Begin and end

    def begin_from(self, holder: Grant) -> str:
        """A session of a key or share. Returns its secret. Raises TooManyRequests."""
        self._count(holder.digest)
        until = min(holder.until, self._clock() + self._lifetime)
        source = {"kind": holder.kind, "digest": holder.digest}
        return self._begin(Grant(SESSION, holder.name, "", NO_RIGHTS, None, 0, until, {SOURCE: source}))

    def _count(self, digest: str) -> None:
        now = self._clock()
        begun = self._begun.setdefault(digest, deque())
        while begun and begun[0] <= now - self._lifetime:
            begun.popleft()
        if len(begun) >= MOST_BEGUN:
            raise TooManyRequests(
                "this key or link has begun too many sessions: sign out, or wait", RETRY_AFTER
            )
        begun.append(now)

    def begin_as(self, principal: Principal, label: str, renewal: Callable[[str], dict[str, Any]]) -> str:
        """A session of a user that an issuer has named. `renewal` returns more members, from the secret."""
        until = self._clock() + self._lifetime
        extra = {PRINCIPAL: principal.name, DISPLAY: label}
        grant = Grant(SESSION, label, "", principal.rights, principal.rule, 0, until, extra)
        return self._begin(grant, renewal)

    def _begin(self, grant: Grant, renewal: Callable[[str], dict[str, Any]] = lambda secret: {}) -> str:
        secret, now = secrets.token_urlsafe(SECRET_BYTES), self._clock()
        grant = grant._replace(extra={**grant.extra, **renewal(secret)})
        with self._grants.changing() as change:
            if not 0 <= now - self._swept < SWEEP:
                self._swept = now
                self._sweep(now, change)
            change.write(grant._replace(digest=digest_of(secret), created=now))
        return secret

    def _sweep(self, now: float, change: GrantChange) -> None:
        since = now - self._lifetime
        self._begun = {each: begun for each, begun in self._begun.items() if begun and begun[-1] > since}
        for found in self._grants.all(SESSION):
            if isinstance(found, Grant) and found.until <= now:
                change.remove(found)

    def end(self, session: Grant) -> None:
        """Ends it on all workers, of all nodes."""
        with self._grants.changing() as change:
            change.remove(session)


def display_of(grant: Grant) -> str:
    """The name to show to the user."""
    return str(grant.extra.get(DISPLAY, grant.name))

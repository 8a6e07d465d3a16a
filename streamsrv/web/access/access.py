"""Authenticates requests: one object of a worker, asked once a request.

Strategy: each way in is one object (keys, tokens, sessions, certificates). The first one that knows the
credentials decides. A user that a trusted proxy names comes first, a certificate last: it may be that of the
proxy. A caller that was authenticated is kept with its header block and its cached frames. It
holds while the epoch is the same and its end is in the future.

Rules of this file
- The reason of a refusal goes to the log only: a client learns that its credentials are not valid.
- A key or session of a cluster may have to be looked up in the database. Its request waits for that.
- Failed logins of an address are limited: 429 after a burst. Valid credentials from there still work, so
  one client cannot lock out the others.
- Without a principal a request gets 401, whether its target exists or not. Only resources without data of
  patients answer (principal.OPEN).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from streamsrv.errors import GrantPending, KeysPending, RenewalPending, RequestError, Unauthorized
from streamsrv.settings import Settings
from streamsrv.web.access.authorization import Authorization, FailedLogins, authorization_of
from streamsrv.web.access.browser.cookies import NO_TLS, cookie_for
from streamsrv.web.access.browser.sessions import Sessions, display_of
from streamsrv.web.access.browser.visitor import Visitor
from streamsrv.web.access.grants import Grant, Grants, KnownGrants, grants_of
from streamsrv.web.access.keys import AccessKeys
from streamsrv.web.access.peers import CertificateHolders, ProxyUsers
from streamsrv.web.access.policy import needs_principal
from streamsrv.web.access.principal import ALL_RIGHTS, CHANGING, NO_RIGHTS, OPEN, UNKNOWN, Principal
from streamsrv.web.access.shared_grants import SharedGrants
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller
from streamsrv.wire.resources import target_of

if TYPE_CHECKING:
    from streamsrv.web.access.browser.issuer import IssuerSignIn

NO_CREDENTIALS = "this server needs credentials: a key or a token in the header Authorization"
REALM = 'realm="streamsrv"'


class WayIn(Protocol):
    """One way to authenticate."""

    def principal(self, head: Head, authorization: Authorization) -> Principal | None:
        """None if the request has no credentials of this way. Raises Unauthorized if they are not valid."""

    def refresh(self) -> bool:
        """Called every REFRESH seconds. Whether a principal that it has returned may not hold any more."""


@runtime_checkable
class Fetching(Protocol):
    """A way in that raises KeysPending."""

    async def fetched(self) -> None:
        """Waits until it is worth to ask once more."""


class Access:
    """`epoch` grows when a principal may have changed. `needed` is whether a request needs a principal.
    `ways` are asked after the keys, in their order. `grants` are those of the settings by default."""

    def __init__(
        self,
        settings: Settings,
        ways: Sequence[WayIn] = (),
        clock: Callable[[], float] = time.time,
        grants: Grants | None = None,
    ) -> None:
        self.epoch = 0
        self.needed = needs_principal(settings)
        self._clock = clock
        self._withheld = CHANGING if settings.read_only else NO_RIGHTS
        self._everyone = Principal("anonymous", ALL_RIGHTS & ~self._withheld)
        self.failed_logins = FailedLogins(settings.failed_logins)
        grants = grants or grants_of(settings)
        self._known = known = self._known_of(grants)
        self._ways = (AccessKeys(known), *ways)
        self._proxy_users, self._holders = ProxyUsers(settings), CertificateHolders(settings)
        # A cookie counts only without Authorization. Its grants are refreshed with those of keys.
        self._issuer: IssuerSignIn | None = None
        self._sessions = Sessions(grants, known.find, settings.session_time, clock)

    def _known_of(self, grants: Grants) -> KnownGrants | SharedGrants:
        if grants.documents.watched is None:
            return KnownGrants(grants, self._clock)
        return SharedGrants(grants, grants.documents.watched, self._moved)

    def _moved(self) -> None:
        self.epoch += 1

    def admit(self, head: Head, caller: Caller) -> Caller:
        """The caller with its principal. Raises Unauthorized, TooManyRequests after many failed logins, and
        BadRequest for two Authorization headers."""
        if not self.needed:
            return caller._replace(principal=self._everyone, epoch=self.epoch)
        try:
            principal = self._principal(head, caller)
        except Unauthorized as error:
            if isinstance(error, RenewalPending | GrantPending) or not is_open(head.path):
                if "authorization" in head.headers and not isinstance(error, KeysPending):
                    self.failed_logins.count(caller.party)
                raise
            return caller
        return caller._replace(party=principal.name, principal=principal, epoch=self.epoch)

    def _principal(self, head: Head, caller: Caller) -> Principal:
        authorization = authorization_of(head)
        try:
            principal = self._authenticated(head, caller, authorization)
            if principal.until <= self._clock():  # also the certificate of a connection that lives long
                raise Unauthorized(f"the credentials of {principal.name} have ended")
        except Unauthorized as error:
            error.challenges = challenges(head, invalid=bool(authorization.scheme))
            raise
        if principal.rights & self._withheld:
            principal = principal._replace(rights=principal.rights & ~self._withheld)
        return principal

    def _authenticated(self, head: Head, caller: Caller, authorization: Authorization) -> Principal:
        if (principal := self._proxy_users.principal(head, caller)) is not None:
            return principal
        for way in self._ways:
            principal = way.principal(head, authorization)
            if principal is not None:
                return principal
        if not authorization.scheme and (principal := self._sessions.principal(head, caller)) is not None:
            return principal
        if not authorization.scheme and (principal := self._holders.principal(head, caller)) is not None:
            return principal
        if authorization.scheme:
            raise Unauthorized("no way in takes these credentials")
        raise Unauthorized("no credentials", NO_CREDENTIALS)

    def renew_with(self, issuer: IssuerSignIn) -> None:
        """Sessions are renewed at the issuer."""
        self._issuer = issuer
        self._sessions.renew = issuer.renew

    def session(self, head: Head, caller: Caller) -> Grant | None:
        return self._sessions.current(head, caller.base)

    async def settled(self, pending: KeysPending) -> None:
        """Call it after the error, and then ask once more."""
        if isinstance(pending, RenewalPending):
            if self._issuer is not None:
                await self._issuer.renewed()
            return
        if isinstance(pending, GrantPending):
            await self._known.fetched()
            return
        for way in self._ways:
            if isinstance(way, Fetching):
                await way.fetched()

    def visitor(self, head: Head, caller: Caller) -> Visitor:
        """The user of the page."""
        session = None if "authorization" in head.headers else self._sessions.current(head, caller.base)
        signed_in = self.needed and session is not None and caller.principal is not UNKNOWN
        return Visitor(
            caller.principal,
            self.needed,
            session=signed_in,
            display=display_of(session) if session is not None and signed_in else "",
            hindrance="" if cookie_for(caller.base) else NO_TLS,
            issuer=self._issuer is not None,
        )

    def holds(self, caller: Caller) -> bool:
        """Whether the principal of a caller that was admitted before is still the same."""
        is_same = caller.epoch == self.epoch and self._clock() < caller.principal.until
        return is_same and self._known.is_fresh()

    def still(self, head: Head, caller: Caller) -> Callable[[], bool]:
        """Returns a function that tells whether the principal of a request that goes on is the same. After a
        change of grants it looks at the credentials again."""
        known = caller

        def is_same() -> bool:
            nonlocal known
            if self.holds(known) or not self.needed:
                return True
            try:
                now = self._principal(head, known)
            except GrantPending:
                self._known.fetch()
                return True  # until it is known
            except RequestError:
                return False
            same = now._replace(until=0) == known.principal._replace(until=0)
            known = known._replace(principal=now, epoch=self.epoch)
            return same

        return is_same

    def grant_changed(self, kind: str, digest: str) -> None:
        """This process has changed a grant."""
        self._known.forget(kind, digest)
        self.refresh()

    def close(self) -> None:
        self._known.close()

    def refresh(self) -> None:
        """Notices changes of grants. Call it every REFRESH seconds."""
        changed = True  # also after an error
        try:
            changed = sum(way.refresh() for way in self._ways) > 0
        finally:
            self.epoch += changed


def is_open(path: str) -> bool:
    """Whether a path answers without credentials. `path` is percent-encoded and may be malformed."""
    try:
        return target_of(path).kind in OPEN
    except RequestError:
        return False


def challenges(head: Head, *, invalid: bool) -> tuple[str, ...]:
    """Values of WWW-Authenticate (RFC 6750 3, RFC 7617 2). `invalid` if the request had credentials. A script
    of a browser gets no Basic, because the browser would ask its user before the script has the answer."""
    bearer = f'Bearer {REALM}, error="invalid_token"' if invalid else f"Bearer {REALM}"
    if head.headers.get("sec-fetch-mode", "navigate") != "navigate":
        return (bearer,)
    return bearer, f'Basic {REALM}, charset="UTF-8"'

"""The sign-in of a browser at the issuer (OpenID Connect), and the renewal of its session.

    GET /session/login?return=#/...   -> the issuer -> GET /session/callback?code=... -> the page

Rules of this file
- The attempt (state, nonce, code verifier) is in a cookie that lives for some minutes. It is SameSite=Lax,
  because the issuer is another site. The session cookie is Strict: the answer of the callback leads to the
  page, which has no data. Its own requests come from this site and carry the cookie.
- The way back is a fragment of the page, kept in the cookie of the attempt. No parameter of a URL chooses
  another origin or path.
- The refresh token is kept in the session, encrypted with the secret that only the browser has. So the files
  of the server are not enough to act as the user at the issuer.
- A session is renewed by the first request of it whose rights end within EARLY seconds. One worker renews,
  because an issuer may accept a refresh token once. If the user has no session at the issuer any more, the
  session ends. While the issuer is away, it waits, and has no rights.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from cryptography.fernet import Fernet, InvalidToken

from streamsrv.errors import Overloaded
from streamsrv.web.access.browser.cookies import LOGIN_COOKIE, needed_cookie
from streamsrv.web.access.browser.sessions import EARLY, ENDS, PRINCIPAL, RENEWAL, SESSION, Sessions
from streamsrv.web.access.grants import Grant, Grants
from streamsrv.web.access.login import LoggedIn, Login, LoginAttempt, LoginFailed
from streamsrv.web.access.principal import Principal
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller
from streamsrv.wire.answers import Answer

log = logging.getLogger("streamsrv.access")

ATTEMPT_SECONDS = 600
RETRY = 15.0  # seconds after which another worker, or another request, tries to renew a session
WAIT = 3.0  # seconds that a request waits for a renewal
POLL = 0.05
LONGEST_RETURN = 2000  # characters
FAILED, UNAVAILABLE = "#/login-failed", "#/login-unavailable"
_RETURN = re.compile(r"#/[!-~]*")
Result = TypeVar("Result")


class IssuerSignIn:
    """One object of a worker, used in its loop. `sessions` read the files. `changed` is called with the kind
    and digest of a session that has changed, `began` with the name of the principal of each new one."""

    def __init__(
        self,
        login: Login,
        grants: Grants,
        sessions: Sessions,
        pool: Executor,
        changed: Callable[[str, str], None],
        began: Callable[[Caller, Head, str], None] = lambda caller, head, user: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._login = login
        self._grants = grants
        self._sessions = sessions
        self._pool = pool
        self._changed = changed
        self._began = began
        self._clock = clock
        self.close = login.close
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, float] = {}

    # The sign-in

    def begin(self, caller: Caller, fields: Mapping[str, str]) -> Answer:
        """Leads to the issuer. Raises Forbidden without TLS, and Overloaded."""
        cookie = needed_cookie(caller.base, LOGIN_COOKIE)
        try:
            url, attempt = self._login.begin(callback_of(caller))
        except Overloaded:
            return _to_page(caller, UNAVAILABLE)
        value = f"{attempt.text}.{_packed(_return_of(fields.get('return', '')))}"
        return _redirect(url, cookie.set(value, same_site="Lax", seconds=ATTEMPT_SECONDS))

    async def finish(self, head: Head, caller: Caller, fields: Mapping[str, str]) -> Answer:
        """Leads back to the page, with a session if the issuer has signed the user in."""
        kept = needed_cookie(caller.base, LOGIN_COOKIE)
        text, _, place = kept.value_in(head.headers).rpartition(".")
        try:
            found = await self._login.finish(fields, LoginAttempt.parse(text), callback_of(caller))
        except LoginFailed as error:
            log.info("[%s] a login has failed: %s", head.request_id, error.reason)
            return _to_page(caller, FAILED, kept.clear())
        except Overloaded as error:
            log.warning("[%s] a login has failed: %s", head.request_id, error.detail)
            return _to_page(caller, UNAVAILABLE, kept.clear())
        former = self._sessions.current(head, caller.base)
        secret = await self._in_thread(lambda: self._begin(found, former))
        self._began(caller, head, found.principal.name)
        cookie = needed_cookie(caller.base)
        return _to_page(caller, _return_of(_unpacked(place)), kept.clear(), cookie.set(secret))

    def _begin(self, found: LoggedIn, former: Grant | None) -> str:
        secret = self._sessions.begin_as(found.principal, found.label, lambda secret: _renewal(found, secret))
        if former is not None:
            self._sessions.end(former)
        return secret

    def logout_url(self, session: Grant | None, caller: Caller) -> str | None:
        """Where the issuer ends its own session."""
        if session is None or PRINCIPAL not in session.extra:
            return None
        try:
            return self._login.logout_url(f"{caller.base}/") or None
        except Overloaded:
            return None

    # The renewal

    def renew(self, session: Grant, secret: str) -> bool:
        """Begins a renewal. False if one has failed a moment ago."""
        if self._clock() - self._failed.get(session.digest, -RETRY) < RETRY:
            return False
        if session.digest not in self._renewals:
            task = asyncio.get_running_loop().create_task(self._renew(session.digest, secret))
            self._renewals[session.digest] = task
            task.add_done_callback(lambda _: self._renewals.pop(session.digest, None))
        return True

    async def renewed(self) -> None:
        """Waits until the renewals that have begun have ended, for WAIT seconds at most."""
        if self._renewals:
            await asyncio.wait(list(self._renewals.values()), timeout=WAIT)

    async def _renew(self, digest: str, secret: str) -> None:
        try:
            claimed = await self._in_thread(lambda: self._claim(digest))
            if claimed is None:
                await self._other_worker(digest)
            else:
                await self._ask(claimed, secret)
        except Exception:
            log.exception("a session cannot be renewed")
        finally:
            self._changed(SESSION, digest)

    def _claim(self, digest: str) -> Grant | None:
        """None if the session has been renewed, is being renewed, or has ended."""
        with self._grants.changing() as change:
            session, asked = self._grants.find(SESSION, digest), self._grants.documents.now()
            if session is None or self._clock() < session.extra[ENDS] - EARLY:
                return None
            if asked - session.extra.get("asked", -RETRY) < RETRY:
                return None
            change.write(session._replace(extra={**session.extra, "asked": asked}))
            return session

    async def _other_worker(self, digest: str) -> None:
        """Waits while another worker renews the session."""
        until = time.monotonic() + WAIT / 2
        while time.monotonic() < until:
            session = await self._in_thread(lambda: self._grants.find(SESSION, digest))
            if session is None or self._clock() < session.extra[ENDS] - EARLY:
                return
            await asyncio.sleep(POLL)
        self._remember_failure(digest)

    async def _ask(self, session: Grant, secret: str) -> None:
        principal = Principal(session.extra[PRINCIPAL], session.rights, session.rule, session.extra[ENDS])
        try:
            token = _decrypted(session.extra[RENEWAL], secret)
            found = await self._login.renew(token, principal)
        except LoginFailed as error:
            log.info("the session of %s has ended: %s", principal.name, error.reason)
            await self._in_thread(lambda: self._sessions.end(session))
        except Overloaded as error:
            log.warning("the session of %s cannot be renewed: %s", principal.name, error.detail)
            self._remember_failure(session.digest)
        else:
            await self._in_thread(lambda: self._write(session, found, secret))

    def _write(self, session: Grant, found: LoggedIn, secret: str) -> None:
        with self._grants.changing() as change:
            kept = self._grants.find(SESSION, session.digest)
            if kept is not None:  # the user may have signed out meanwhile
                extra = {**session.extra, **_renewal(found, secret)}
                rights, rule = found.principal.rights, found.principal.rule
                change.write(session._replace(rights=rights, rule=rule, extra=extra))

    def _remember_failure(self, digest: str) -> None:
        now = self._clock()
        self._failed = {each: at for each, at in self._failed.items() if now - at < RETRY}
        self._failed[digest] = now

    def _in_thread(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)


def callback_of(caller: Caller) -> str:
    return f"{caller.base}/session/callback"


def _renewal(found: LoggedIn, secret: str) -> dict[str, Any]:
    """The members of a session that a renewal changes. Without a refresh token its rights last as long as
    itself."""
    if not found.refresh_token:
        return {}
    return {ENDS: found.principal.until, RENEWAL: _encrypted(found.refresh_token, secret)}


def _return_of(text: str) -> str:
    return text if len(text) <= LONGEST_RETURN and _RETURN.fullmatch(text) else "#/"


def _redirect(url: str, *headers: tuple[str, str]) -> Answer:
    return Answer(303, [("Location", url), ("Cache-Control", "no-store"), *headers])


def _to_page(caller: Caller, fragment: str, *headers: tuple[str, str]) -> Answer:
    return _redirect(f"{caller.base}/{fragment}", *headers)


def _packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _unpacked(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text).decode()
    except ValueError:
        return ""


def _cipher(secret: str) -> Fernet:
    key = hashlib.blake2b(secret.encode(), digest_size=32, person=b"refresh token").digest()
    return Fernet(base64.urlsafe_b64encode(key))


def _encrypted(token: str, secret: str) -> str:
    return _cipher(secret).encrypt(token.encode()).decode()


def _decrypted(text: str, secret: str) -> str:
    """Raises LoginFailed."""
    try:
        return _cipher(secret).decrypt(text).decode()
    except InvalidToken:
        raise LoginFailed("its refresh token cannot be decrypted") from None

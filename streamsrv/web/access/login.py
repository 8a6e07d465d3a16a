"""Login of people at the issuer: authorization code with PKCE (OpenID Connect Core 3.1, RFC 7636, RFC 9700).

    begin -> the browser goes to the issuer -> finish: code -> tokens -> ID token checked -> principal

Strategy: nothing is kept here between the two requests. State, nonce and code verifier are in an attempt,
which the browser keeps in a cookie. The issuer sees a digest of the verifier only.

Rules of this file
- Requests to the issuer run in threads of their own. A slow issuer makes other logins wait, nothing else.
- The rights come from the access token, if this server accepts it, else from the ID token: issuers put the
  roles into either.
- No reason, code or token reaches the browser or the log.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from streamsrv.errors import Overloaded, Unauthorized
from streamsrv.oidc.discovery import Issuer
from streamsrv.oidc.fetching import FetchFailed, post_form
from streamsrv.settings import Settings
from streamsrv.web.access.issued_tokens import IssuedTokens
from streamsrv.web.access.policy import trust_of
from streamsrv.web.access.principal import Principal
from streamsrv.web.access.tokens import TokenRefused, UnknownKey, read_header

# Logins of one worker that talk to the issuer, and those that may wait.
THREADS, MOST_LOGINS = 4, 32
NOT_READY = "the issuer cannot be reached: logins are not possible now"
# The hash of at_hash by the end of the algorithm's name (OpenID Connect Core 3.1.3.6).
_HASHES = {"256": "sha256", "384": "sha384", "512": "sha512", "DSA": "sha512"}


class LoginFailed(Unauthorized):
    """`detail` is the reason, for the log."""


class LoginAttempt(NamedTuple):
    """Belongs into a cookie of the browser: HttpOnly, SameSite=Lax, because the way back crosses sites."""

    state: str
    nonce: str
    verifier: str

    @property
    def text(self) -> str:
        return ".".join(self)

    @classmethod
    def parse(cls, text: str) -> LoginAttempt:
        """Raises LoginFailed."""
        parts = text.split(".")
        if len(parts) != 3 or not all(parts):
            raise LoginFailed("the browser has lost its login attempt")
        return cls(*parts)


class LoggedIn(NamedTuple):
    """`label` is a name for people. `refresh_token` is a secret, empty if the issuer gives none: `renew`
    takes it shortly before `principal.until`."""

    principal: Principal
    label: str
    refresh_token: str


class Login:
    """One object of a worker. `tokens` has the keys and endpoints of the issuer."""

    def __init__(self, settings: Settings, tokens: IssuedTokens) -> None:
        self._client = settings.oidc_client_id
        self._secret = read_secret(settings.oidc_client_secret_file)
        self._scopes = " ".join(dict.fromkeys(("openid", *settings.oidc_scopes)))
        self._trust = trust_of(settings)
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(THREADS, "login")
        self._busy = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self, redirect_uri: str, prompt: str = "") -> tuple[str, LoginAttempt]:
        """The URL to which the browser goes, and the attempt. `prompt` none asks the issuer to show no page.
        Raises Overloaded as long as the issuer is not known."""
        attempt = LoginAttempt(*(secrets.token_urlsafe(size) for size in (24, 24, 48)))
        digest = hashlib.sha256(attempt.verifier.encode()).digest()
        fields = {
            "response_type": "code",
            "client_id": self._client,
            "redirect_uri": redirect_uri,
            "scope": self._scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": _base64url(digest),
            "code_challenge_method": "S256",
            **({"prompt": prompt} if prompt else {}),
        }
        return _with_query(self._issuer().authorization_endpoint, fields), attempt

    async def finish(
        self, parameters: Mapping[str, str], attempt: LoginAttempt, redirect_uri: str
    ) -> LoggedIn:
        """`parameters` are those with which the browser has come back. Raises LoginFailed, or Overloaded."""
        if not hmac.compare_digest(parameters.get("state", "").encode(), attempt.state.encode()):
            raise LoginFailed("the state is not that of the attempt of this browser")
        if parameters.get("iss", self._issuer().name) != self._issuer().name:  # RFC 9207
            raise LoginFailed("the answer comes from another issuer")
        code = parameters.get("code", "")
        if not code:
            raise LoginFailed("the issuer has refused the login")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        return await self._accepted(await self._request(form), attempt.nonce, "")

    async def renew(self, refresh_token: str, principal: Principal) -> LoggedIn:
        """New rights for a principal that has logged in. Raises LoginFailed if its session has ended at the
        issuer, Overloaded while the issuer cannot be reached."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = {"refresh_token": refresh_token} | await self._request(form)
        return await self._accepted(answer, "", principal.name)

    def logout_url(self, redirect_uri: str) -> str:
        """Where the browser ends its session at the issuer (OpenID Connect RP-Initiated Logout 1.0); empty
        if the issuer has no such page."""
        endpoint = self._issuer().end_session_endpoint
        fields = {"client_id": self._client, "post_logout_redirect_uri": redirect_uri}
        return _with_query(endpoint, fields) if endpoint else ""

    def _issuer(self) -> Issuer:
        issuer = self._tokens.issuer
        if issuer is None or not issuer.authorization_endpoint or not issuer.token_endpoint:
            raise Overloaded(NOT_READY)
        return issuer

    async def _request(self, form: dict[str, str]) -> dict[str, Any]:
        """The answer of the token endpoint."""
        if self._busy >= MOST_LOGINS:
            raise Overloaded("too many logins at once: try again")
        issuer, client = self._issuer(), None
        form = form | {"client_id": self._client}
        if self._secret and issuer.basic:
            client = self._client, self._secret
        elif self._secret:
            form["client_secret"] = self._secret
        call = partial(post_form, issuer.token_endpoint, form, self._trust, client)
        self._busy += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except FetchFailed as error:
            if error.refused:
                raise LoginFailed(f"the issuer refuses: {error.refused}") from None
            raise Overloaded(NOT_READY) from error
        finally:
            self._busy -= 1

    async def _accepted(self, answer: Mapping[str, Any], nonce: str, name: str) -> LoggedIn:
        try:
            try:
                return self._logged_in(answer, nonce, name)
            except UnknownKey:
                if not await self._tokens.new_keys():
                    raise
                return self._logged_in(answer, nonce, name)
        except TokenRefused as error:
            raise LoginFailed(f"the ID token is refused: {error}") from None

    def _logged_in(self, answer: Mapping[str, Any], nonce: str, name: str) -> LoggedIn:
        """Raises TokenRefused. `nonce` is empty, and `name` that of the principal, when a login is renewed;
        the answer then needs no ID token (OpenID Connect Core 12.2)."""
        access, identity = (answer.get(each) for each in ("access_token", "id_token"))
        claims = dict[str, Any]()
        if isinstance(identity, str):
            claims = self._identity(identity, nonce, access)
        elif nonce:
            raise TokenRefused("there is none")
        found = self._tokens.accepted(access) if isinstance(access, str) else None
        if found is not None and claims and found.subject != claims["sub"]:
            raise TokenRefused("its subject is not that of the access token")
        if found is not None:
            principal = self._tokens.principal_of(found.subject, found.claims, found.until)
        elif claims:
            seconds = answer.get("expires_in")
            until = time.time() + seconds if isinstance(seconds, int) else float(claims["exp"])
            principal = self._tokens.principal_of(claims["sub"], claims, until)
        else:
            raise TokenRefused("there is none, and no access token for this server")
        if name and principal.name != name:
            raise TokenRefused("it belongs to another user")
        labels = (claims.get(each) for each in ("preferred_username", "name", "email", "sub"))
        label = next((each for each in labels if isinstance(each, str) and each.isprintable()), "")
        refresh = answer.get("refresh_token")
        return LoggedIn(principal, label[:100], refresh if isinstance(refresh, str) else "")

    def _identity(self, token: str, nonce: str, access: object) -> dict[str, Any]:
        """The claims of the ID token (OpenID Connect Core 3.1.3.7). Raises TokenRefused."""
        header = read_header(token)
        claims = self._tokens.identity(token, header, self._client)
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else self._client) != self._client:
            raise TokenRefused("it was issued to another client")
        if nonce and not hmac.compare_digest(str(claims.get("nonce")).encode(), nonce.encode()):
            raise TokenRefused("its nonce is not that of the attempt")
        if (
            isinstance(access, str)
            and claims.get("at_hash", half := _half_hash(access, header["alg"])) != half
        ):
            raise TokenRefused("it belongs to another access token")
        return claims


def read_secret(file: str) -> str:
    """The first line of a file. Raises OSError."""
    return Path(file).read_text(encoding="utf-8").partition("\n")[0].strip() if file else ""


def _with_query(endpoint: str, fields: Mapping[str, str]) -> str:
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(fields)}"


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _half_hash(token: str, algorithm: str) -> str:
    digest = hashlib.new(_HASHES[algorithm[-3:]], token.encode()).digest()
    return _base64url(digest[: len(digest) // 2])

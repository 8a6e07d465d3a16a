"""Tokens of the issuer as a way in: Bearer (RFC 6750), from the keys on the board to a principal.

Rules of this file
- No request waits for the issuer, except one whose token names an unknown key: it waits for the fetch that
  its key may come with. PAUSE seconds long, further unknown keys cause no fetch, and wait for nothing.
- This module loads PyJWT and cryptography, 23 MB. A worker imports it only if there is an issuer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from streamsrv.errors import KeysMissing, KeysPending, Unauthorized
from streamsrv.oidc.discovery import Issuer
from streamsrv.oidc.key_board import PAUSE, BoardState, KeyBoard
from streamsrv.settings import Settings
from streamsrv.web.access.authorization import Authorization
from streamsrv.web.access.principal import Principal
from streamsrv.web.access.roles import Roles
from streamsrv.web.access.tokens import (
    AccessToken,
    TokenRefused,
    TokenVerifier,
    UnknownKey,
    VerificationKeys,
    looks_like,
)
from streamsrv.web.head import Head

# Seconds that a request waits for a fetch, and requests of a worker that may wait.
WAIT, MOST_WAITING = 3.0, 100
POLL = 0.01  # seconds
MOST_KNOWN = 1024  # tokens that a worker remembers
NO_KEYS = "the server has no keys of the issuer yet, so it cannot judge this token: try again"


class IssuedTokens:
    """One object of a worker."""

    def __init__(self, settings: Settings, board: KeyBoard) -> None:
        self._board = board
        self._generation = -1
        self._keys = VerificationKeys()
        self._verifier = TokenVerifier(settings.oidc_issuer, settings.oidc_audience)
        self._roles = Roles(settings.oidc_roles, settings.oidc_roles_claim)
        self._host = urlsplit(settings.oidc_issuer).hostname or ""
        self._known: dict[str, Principal] = {}
        self._issuer: Issuer | None = None  # until its metadata are known
        self._changed = False  # since the last `refresh`
        self._waiting = 0

    def principal(self, head: Head, authorization: Authorization) -> Principal | None:
        """None if the credentials are no JWT. Raises Unauthorized, and KeysPending if it is worth waiting."""
        token = authorization.value
        if authorization.scheme != "bearer" or not looks_like(token):
            return None
        known = self._known.get(token)
        if known is not None and known.until > time.time() and self._generation == self._board.generation:
            return known
        try:
            found = self._verified(token)
        except UnknownKey as error:
            raise self._unknown(error) from None
        except TokenRefused as error:
            raise Unauthorized(f"the token is refused: {error}") from None
        principal = self.principal_of(found.subject, found.claims, found.until)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[token] = principal
        return principal

    def _verified(self, token: str) -> AccessToken:
        try:
            return self._verifier.verify(token, self._keys)
        except UnknownKey:
            if not self._load():
                raise
            return self._verifier.verify(token, self._keys)

    def _unknown(self, error: UnknownKey) -> Unauthorized:
        reason, state = f"the token is refused: {error}", self._board.state
        settled = self._has_settled(state)
        if not settled and not state.fetching:
            self._board.ask()
        if self._generation < 0:
            return KeysMissing(reason, NO_KEYS)
        return Unauthorized(reason) if settled else KeysPending(reason)

    @staticmethod
    def _has_settled(state: BoardState) -> bool:
        """Whether a fetch has ended, and it is too early for the next one."""
        return not state.fetching and state.begun > 0 and time.monotonic() - state.began < PAUSE

    async def fetched(self) -> None:
        """Waits until the fetch has ended that was asked for, for WAIT seconds at most."""
        if self._waiting >= MOST_WAITING or self._has_settled(self._board.state):
            return
        self._waiting += 1
        ended, until = self._board.state.ended, time.monotonic() + WAIT
        try:
            while self._board.state.ended == ended and time.monotonic() < until:
                await asyncio.sleep(POLL)
        finally:
            self._waiting -= 1

    def refresh(self) -> bool:
        """Whether the keys have changed since the last call."""
        self._load()
        changed, self._changed = self._changed, False
        return changed

    def _load(self) -> bool:
        """Whether the keys have changed since the last look."""
        if self._generation == self._board.generation or (found := self._board.read()) is None:
            return False
        self._generation, value = found
        self._keys = VerificationKeys(value["keys"])
        self._issuer = Issuer(**value["issuer"])
        self._known.clear()
        self._changed = True
        return True

    # For logins

    @property
    def issuer(self) -> Issuer | None:
        """None until its metadata are known."""
        self._load()
        return self._issuer

    def principal_of(self, subject: str, claims: Mapping[str, Any], until: float) -> Principal:
        rights, rule = self._roles.grant(claims)
        return Principal(f"oidc:{subject}@{self._host}", rights, rule, until)

    def accepted(self, token: str) -> AccessToken | None:
        """None if this is no access token for this server."""
        try:
            return self._verified(token)
        except TokenRefused:
            return None

    def identity(self, token: str, header: Mapping[str, Any], client: str) -> dict[str, Any]:
        """The claims of an ID token for this client. Raises TokenRefused."""
        self._load()
        return self._verifier.claims(token, header, self._keys, [client])

    async def new_keys(self) -> bool:
        """After an unknown key: whether a fetch may have brought it."""
        if not isinstance(self._unknown(UnknownKey("")), KeysPending):
            return False
        await self.fetched()
        return True

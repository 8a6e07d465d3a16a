"""Access tokens for this program itself: the client credentials grant (RFC 6749 4.4) of an issuer.

The file of `--oidc-client-credentials` is TOML:

    issuer = "https://login.example/realms/clinic"
    client_id = "scanner-3"
    client_secret = "..."
    scope = "dicom"           # these two if the issuer needs them
    audience = "streamsrv"
"""

from __future__ import annotations

import threading
import time
import tomllib
from pathlib import Path
from typing import Any

from streamsrv.config import SettingsError
from streamsrv.oidc.discovery import Issuer, fetch_issuer
from streamsrv.oidc.fetching import FetchFailed, Trust, post_form

NEEDED, OPTIONAL = ("issuer", "client_id", "client_secret"), ("scope", "audience", "resource")
# Seconds: a token is renewed so long before its end, but serves for SHORTEST.
EARLY, SHORTEST = 30.0, 5.0
LONGEST_FILE = 64 << 10  # bytes


class ClientLogin:
    """Its object is the value of the header Authorization, as a function. Threads share it."""

    def __init__(self, file: Path, cacert: Path | None) -> None:
        """Raises SettingsError."""
        self._words = _read(file)
        self._trust = Trust(str(cacert or ""))
        self._lock = threading.Lock()
        self._issuer: Issuer | None = None
        self._value = ""
        self._until = float("-inf")

    @property
    def secret(self) -> str:
        return self._words["client_secret"]

    def __call__(self) -> str:
        """Raises SettingsError if the issuer gives no token."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._renew()
            return self._value

    def forget(self) -> None:
        """The service refuses the token: the next call asks for another one."""
        with self._lock:
            self._until = float("-inf")

    def _renew(self) -> None:
        try:
            answer = self._request()
        except FetchFailed as error:
            raise SettingsError(f"no token: {error.detail}") from None
        token, seconds = answer.get("access_token"), answer.get("expires_in", 60)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError(f"no token: {self._words['issuer']} answers without an access_token")
        self._value = f"Bearer {token}"
        lifetime = float(seconds) if isinstance(seconds, int | float) else 60.0
        self._until = time.monotonic() + max(SHORTEST, lifetime - EARLY)

    def _request(self) -> dict[str, Any]:
        if self._issuer is None:
            self._issuer = fetch_issuer(self._words["issuer"], self._trust)
        if not self._issuer.token_endpoint:
            raise FetchFailed(f"{self._issuer.name} has no token endpoint")
        form = {"grant_type": "client_credentials"}
        form |= {name: self._words[name] for name in OPTIONAL if name in self._words}
        client = self._words["client_id"], self._words["client_secret"]
        if self._issuer.basic:
            return post_form(self._issuer.token_endpoint, form, self._trust, client)
        form |= {"client_id": client[0], "client_secret": client[1]}
        return post_form(self._issuer.token_endpoint, form, self._trust)


def _read(file: Path) -> dict[str, str]:
    """Raises SettingsError. No message quotes the file."""
    try:
        with file.open("rb") as stream:
            words = tomllib.loads(stream.read(LONGEST_FILE).decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror or 'cannot be read'}") from None
    except ValueError:
        raise SettingsError(f"{file} is not TOML") from None
    for name in NEEDED:
        if name not in words:
            raise SettingsError(f"{file} has no {name}")
    for name, value in words.items():
        if name not in NEEDED + OPTIONAL:
            raise SettingsError(f"{file}: {name!r} is none of {', '.join(NEEDED + OPTIONAL)}")
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{file}: {name} is no text")
    return words

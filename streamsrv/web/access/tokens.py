"""Access tokens of an issuer: JWT (RFC 7519, RFC 9068), checked as RFC 8725 advises. Sans-IO.

    size -> three parts -> header -> key -> signature -> claims -> is it an access token?

Strategy: PyJWT verifies the signature and the registered claims. The cheap checks come first, so that a token
that is refused costs less than one that is accepted.

Rules of this file
- The key decides which algorithms it takes, never the token alone. No algorithm has a shared secret.
- A header that brings a key, a place of a key, or an extension that has to be understood is refused.
- An ID token tells a client about its user, and is no access token. Issuers mark the difference in several
  ways (`_is_access_token`). A token without any mark is refused.
- A reason for a refusal goes to the log, never to the client, and holds no part of the token but names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jwt
import orjson
from jwt.utils import base64url_decode

LEEWAY = 30  # seconds between the clocks of the issuer and of this machine
LONGEST = 8 << 10  # bytes
# Algorithm -> type of the key, and its curve (RFC 7518 3.1, RFC 8037).
ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
REFUSED_HEADERS = ("jku", "jwk", "x5u", "x5c", "crit")
TYPES = frozenset(("", "jwt", "at+jwt", "application/at+jwt"))
ACCESS_TYPES = frozenset(("at+jwt", "application/at+jwt"))
# Claims that only ID tokens have (OpenID Connect Core 2, 3.3.2.11), and logout tokens.
ID_CLAIMS = ("at_hash", "c_hash", "s_hash", "events")
# Claims that only access tokens have: RFC 9068 2.2, Okta, Entra, Auth0.
ACCESS_CLAIMS = ("scope", "scp", "client_id", "cid", "appid", "azpacr", "idtyp", "gty")
LONGEST_SUBJECT = 255  # characters; OpenID Connect Core 2


class TokenRefused(Exception):
    """The argument is the reason, for the log."""


class UnknownKey(TokenRefused):
    """The issuer may have a new key."""


class VerificationKeys:
    """The usable keys of a key set (RFC 7517). Keys for encryption, with shared secrets, or for unknown
    algorithms are left out."""

    def __init__(self, keys: Iterable[Mapping[str, Any]] = ()) -> None:
        self._keys = [dict(key) for key in keys if _is_usable(key)]
        self._loaded: dict[tuple[int, str], jwt.PyJWK] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """Raises UnknownKey. Without a key id there has to be one key for this algorithm."""
        fitting = [
            number
            for number, key in enumerate(self._keys)
            if _takes(key, algorithm) and (key_id is None or key.get("kid") == key_id)
        ]
        if not fitting:
            raise UnknownKey(f"the issuer has no such key for {algorithm}")
        if key_id is None and len(fitting) > 1:
            raise TokenRefused("it names no key, and the issuer has several")
        return self._load(fitting[0], algorithm)

    def _load(self, number: int, algorithm: str) -> jwt.PyJWK:
        found = self._loaded.get((number, algorithm))
        if found is None:
            try:
                found = jwt.PyJWK(self._keys[number], algorithm)
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                raise TokenRefused(f"the key of the issuer is invalid: {type(error).__name__}") from None
            self._loaded[number, algorithm] = found
        return found


def _is_usable(key: Mapping[str, Any]) -> bool:
    operations = key.get("key_ops")
    return (
        key.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
        and any(_takes(key, algorithm) for algorithm in ALGORITHMS)
    )


def _takes(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = ALGORITHMS[algorithm]
    return (
        key.get("kty") == kind
        and (not curve or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
    )


class AccessToken(NamedTuple):
    """`until` is the time in seconds since 1970 at which the token is refused."""

    subject: str
    claims: Mapping[str, Any]
    until: float


class TokenVerifier:
    """Checks tokens of one issuer for one of `audiences`."""

    def __init__(self, issuer: str, audiences: Sequence[str]) -> None:
        self._issuer = issuer
        self._audiences = list(audiences)

    def verify(self, token: str, keys: VerificationKeys) -> AccessToken:
        """Raises TokenRefused, or UnknownKey."""
        header = read_header(token)
        claims = self.claims(token, header, keys, self._audiences)
        if reason := _no_access_token(header, claims):
            raise TokenRefused(reason)
        return AccessToken(claims["sub"], claims, int(claims["exp"]) + LEEWAY)

    def claims(
        self, token: str, header: Mapping[str, Any], keys: VerificationKeys, audiences: Sequence[str]
    ) -> dict[str, Any]:
        """The claims of a token with this header, of any kind. Raises TokenRefused."""
        algorithm, key_id = header["alg"], header.get("kid")
        key = keys.find(key_id, algorithm)
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                key,
                [algorithm],
                {"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
                audience=audiences,
                issuer=self._issuer,
                leeway=LEEWAY,
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TokenRefused(f"{type(error).__name__}: {_reason(error)}") from None
        if not 0 < len(found["sub"]) <= LONGEST_SUBJECT or not found["sub"].isprintable():
            raise TokenRefused("its subject is empty, too long, or not printable")
        return found


def _reason(error: Exception) -> str:
    """The message of PyJWT. One about JSON or base64 may hold bytes of the token."""
    return "malformed" if isinstance(error, jwt.DecodeError) and ":" in str(error) else str(error)[:200]


def looks_like(token: str) -> bool:
    """Whether this has the shape of a JWT, whose header begins with `{"`."""
    return token.startswith("ey") and token.count(".") == 2


def read_header(token: str) -> dict[str, Any]:
    """The header (RFC 7515 4), not yet trusted; raises TokenRefused."""
    if len(token) > LONGEST:
        raise TokenRefused(f"it has {len(token)} bytes, and {LONGEST} are allowed")
    if token.count(".") != 2 or not token.isascii():
        raise TokenRefused("it is no signed JWT of three parts")
    try:
        header = orjson.loads(base64url_decode(token.partition(".")[0]))
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise TokenRefused("its header is no JSON object")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefused("its algorithm is not allowed")
    for name in REFUSED_HEADERS:
        if name in header:
            raise TokenRefused(f"its header has {name}")
    if not isinstance(header.get("kid", ""), str):
        raise TokenRefused("its key id is no text")
    kind = header.get("typ", "")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise TokenRefused("its type is not that of an access token")
    return header


def _no_access_token(header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    """Why this token of the issuer is no access token for this server; empty if it is one."""
    if any(name in claims for name in ID_CLAIMS):
        return "it is an ID token or a logout token"
    if "cnf" in claims:
        return "it is bound to a key (RFC 9449, RFC 8705), and came as a plain bearer token"
    kind, use = claims.get("typ"), claims.get("token_use")  # Keycloak, Cognito
    if (kind is not None and kind != "Bearer") or (use is not None and use != "access"):
        return "it is no access token: typ or token_use say so"
    certain = str(header.get("typ", "")).lower() in ACCESS_TYPES or kind == "Bearer" or use == "access"
    if certain or ("nonce" not in claims and any(name in claims for name in ACCESS_CLAIMS)):
        return ""
    return "it may be an ID token: no claim marks it as an access token"

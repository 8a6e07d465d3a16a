"""The documents of an issuer: its metadata (OpenID Connect Discovery 1.0) and its keys (RFC 7517)."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamsrv.oidc.fetching import FetchFailed, Trust, get_json

WELL_KNOWN = "/.well-known/openid-configuration"
MOST_KEYS = 100


class Issuer(NamedTuple):
    """The metadata. An endpoint that the issuer does not have is empty."""

    name: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str
    end_session_endpoint: str
    basic: bool  # a client may authenticate with Basic at the token endpoint


def read_issuer(name: str, document: dict[str, Any], trust: Trust) -> Issuer:
    """Raises FetchFailed if the document is that of another issuer (Discovery 4.3), or if a URL in it is not
    allowed."""
    if document.get("issuer") != name:
        other = str(document.get("issuer"))[:200]
        raise FetchFailed(
            f"the issuer calls itself {other!r}, and the setting is {name!r}: they have to be equal"
        )
    names = ("jwks_uri", "authorization_endpoint", "token_endpoint", "end_session_endpoint")
    jwks_uri, authorize, token, end_session = (_url(document, each, trust) for each in names)
    if not jwks_uri:
        raise FetchFailed(f"the metadata of {name} have no jwks_uri")
    methods = document.get("token_endpoint_auth_methods_supported")
    basic = not isinstance(methods, list) or "client_secret_basic" in methods
    return Issuer(name, jwks_uri, authorize, token, end_session, basic)


def _url(document: dict[str, Any], name: str, trust: Trust) -> str:
    value = document.get(name, "")
    if not isinstance(value, str):
        raise FetchFailed(f"{name} in the metadata is no text")
    if value:
        trust.check(value)
    return value


def fetch_issuer(name: str, trust: Trust) -> Issuer:
    """Raises FetchFailed."""
    return read_issuer(name, get_json(name.rstrip("/") + WELL_KNOWN, trust), trust)


def fetch_keys(issuer: Issuer, trust: Trust) -> list[dict[str, Any]]:
    """The keys that can verify signatures, of one MOST_KEYS at most; raises FetchFailed."""
    found = get_json(issuer.jwks_uri, trust).get("keys")
    if not isinstance(found, list):
        raise FetchFailed(f"{issuer.jwks_uri} answers without a list of keys")
    return [public_part(each) for each in found[:MOST_KEYS] if isinstance(each, dict)]


def public_part(key: dict[str, Any]) -> dict[str, Any]:
    """The members that identify and describe a public key. A private key that an issuer publishes by mistake
    is not kept."""
    kept = ("kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y")
    return {name: key[name] for name in kept if name in key}

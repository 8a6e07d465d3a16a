"""Keys: random secrets of 256 bits, sent as Bearer tokens (RFC 6750 2.1), or as the password of Basic
authentication (RFC 7617) with the name of the key as user.
"""

from __future__ import annotations

import base64
import binascii
import logging

from streamsrv.errors import Unauthorized
from streamsrv.web.access.authorization import Authorization
from streamsrv.web.access.grants import KEY, KEY_PREFIX, Grant, GrantDamaged, KnownHere, digest_of
from streamsrv.web.access.principal import Principal
from streamsrv.web.head import Head

log = logging.getLogger("streamsrv.access")


class AccessKeys:
    def __init__(self, grants: KnownHere) -> None:
        self._grants = grants

    def principal(self, head: Head, authorization: Authorization) -> Principal | None:
        """None if the credentials are no key. Raises Unauthorized for a key that is unknown, has ended, or
        has another name."""
        user = None
        if authorization.scheme == "basic":
            user, secret = _basic(authorization.value)
        elif authorization.scheme == "bearer" and authorization.value.startswith(KEY_PREFIX):
            secret = authorization.value
        else:
            return None
        grant = self._find(secret)
        if grant is None:
            raise Unauthorized("the key is unknown or revoked")
        if user is not None and user != grant.name:
            raise Unauthorized(f"the user of Basic is not the name of the key {grant.name!r}")
        return principal_of(grant)

    def _find(self, secret: str) -> Grant | None:
        try:
            return self._grants.find(KEY, digest_of(secret))
        except GrantDamaged as error:
            log.error("%s", error.detail)
            raise Unauthorized(error.detail) from None

    def refresh(self) -> bool:
        return self._grants.refresh()


def _basic(value: str) -> tuple[str, str]:
    """User and password in UTF-8. Raises Unauthorized."""
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized("the credentials of Basic are not base64 of UTF-8") from None
    user, _, password = text.partition(":")
    return user, password


def principal_of(grant: Grant) -> Principal:
    return Principal(f"{grant.kind}:{grant.name}", grant.rights, grant.rule, grant.until)

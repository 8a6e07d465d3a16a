"""Identities that come with the connection: users that a trusted proxy names, and certificates of clients.

Both get their rights by a setting of the form of `oidc_roles` (roles.py): `proxy_roles` by group and user,
`certificate_roles` by the name in the certificate.

Rules of this file
- A user is named by a peer in `trusted_proxies` only. From every other peer these headers mean nothing.
- A browser adds both identities to each request, as it does with cookies. So a request that a page of another
  origin has made counts without them (browser/cookies.py). Programs send neither Origin nor Sec-Fetch-Site.
- Two headers with a user are refused: proxy and client might have written one each.
"""

from __future__ import annotations

from streamsrv.errors import Unauthorized
from streamsrv.settings import Settings
from streamsrv.web.access.browser.cookies import SAFE_METHODS, check_origin, is_embedded
from streamsrv.web.access.principal import Principal
from streamsrv.web.access.roles import EVERYONE, Roles
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

# Characters of the name of a user, and groups of one user.
LONGEST_NAME, MOST_GROUPS = 256, 200
# The role of one user: this and the name. No group has such a name.
USER = "user:"


def counts(head: Head, caller: Caller) -> bool:
    """Whether an identity of the connection counts for this request. Raises Forbidden for a change that
    another origin asks for."""
    headers = head.headers
    if head.method in SAFE_METHODS:
        return not is_embedded(headers)
    if "origin" in headers or "sec-fetch-site" in headers:
        check_origin(headers, caller.base)
    return True


class ProxyUsers:
    """Raises SettingsError."""

    def __init__(self, settings: Settings) -> None:
        self._user = settings.proxy_user_header.lower()
        self._groups = settings.proxy_groups_header.lower()
        self._roles = Roles(settings.proxy_roles, (), "proxy_roles")

    def principal(self, head: Head, caller: Caller) -> Principal | None:
        """None if no trusted proxy names a user. Raises Unauthorized, and Forbidden."""
        user = _text(head, self._user).strip() if self._user and caller.is_proxied else ""
        if not user or not counts(head, caller):
            return None
        if "," in user or len(user) > LONGEST_NAME or not user.isprintable():
            raise Unauthorized("the proxy names no user, or more than one")
        groups = self._groups_of(head)
        roles = {EVERYONE, USER + user, *(group for group in groups if not group.startswith(USER))}
        rights, rule = self._roles.granted(frozenset(roles), {"user": user, "groups": groups})
        return Principal(f"proxy:{user}", rights, rule)

    def _groups_of(self, head: Head) -> list[str]:
        text = _text(head, self._groups) if self._groups else ""
        groups = [group.strip() for group in text.split(",") if group.strip()]
        if len(groups) > MOST_GROUPS:
            raise Unauthorized(f"the proxy names more than {MOST_GROUPS} groups")
        return groups


class CertificateHolders:
    """Raises SettingsError."""

    def __init__(self, settings: Settings) -> None:
        self._kind = settings.certificate_name
        self._roles = Roles(settings.certificate_roles, (), "certificate_roles")

    def principal(self, head: Head, caller: Caller) -> Principal | None:
        """None without a certificate. Raises Unauthorized, and Forbidden."""
        certificate = head.certificate
        if certificate is None or not counts(head, caller):
            return None
        name = certificate.name(self._kind)
        if not name or not name.isprintable():
            raise Unauthorized(f"the certificate has no {self._kind}")
        rights, rule = self._roles.granted(frozenset((EVERYONE, name)), {"name": name})
        return Principal(f"cert:{name}", rights, rule, certificate.until)


def _text(head: Head, name: str) -> str:
    """The value of a header, which proxies write in UTF-8. Bytes that are not UTF-8 count as Latin-1."""
    value = head.headers.get(name, "")
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value

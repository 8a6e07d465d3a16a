"""The user of the page: the facts that decide which parts of the page are shown."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamsrv.web.access.principal import ALL_RIGHTS, Principal, named_rights


class Visitor(NamedTuple):
    """`needed` is whether the server needs a principal. `session` is whether a cookie gives this one.
    `hindrance` is why a browser cannot sign in, or empty. `issuer` is whether an issuer can sign users in."""

    principal: Principal
    needed: bool = False
    session: bool = False
    display: str = ""
    hindrance: str = ""
    issuer: bool = False

    def facts(self) -> dict[str, Any]:
        """As JSON. `user` is null without a sign-in."""
        kind, _, name = self.principal.name.partition(":")
        rights = named_rights(self.principal.rights)
        return {
            "allowed": {right: right in rights for right in named_rights(ALL_RIGHTS)},
            "user": self.display or name or None,
            "kind": kind,
            "session": self.session,
            "signIn": {
                "needed": self.needed,
                "possible": not self.hindrance,
                "reason": self.hindrance,
                "oidc": self.issuer,
            },
        }

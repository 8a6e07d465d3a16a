"""Requests about sessions and share links, as functions that block.

    POST   /session                            {"key": ...} or {"share": ..., "pin": ...}: begins a session
    DELETE /session                            ends it
    GET    .../studies/{study}/shares          the links of a study
    POST   .../studies/{study}/shares          {"expires": "7d", "pin": true}: makes a link
    DELETE .../studies/{study}/shares/{share}  ends a link

Rules of this file
- Only the page of this origin begins and ends sessions: another site could sign a user in under another name
  (login CSRF).
- A wrong key, an unknown link and a wrong PIN are all 401; the log has the reason. A link that needs its PIN
  says so, because its reader has the secret.
- Users see and end their own links; with the right admin all of them, of studies that they see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from streamsrv.config import seconds_of
from streamsrv.errors import BadRequest, NotFound, PinRequired, Unauthorized
from streamsrv.settings import Settings
from streamsrv.web.access.browser.cookies import check_origin, needed_cookie
from streamsrv.web.access.browser.sessions import Sessions
from streamsrv.web.access.browser.shares import MAKER, SHARE, Shares, needs_pin, share_url, study_of
from streamsrv.web.access.grants import KEY, Grant, GrantDamaged, Grants, digest_of, grants_of
from streamsrv.web.access.principal import Principal
from streamsrv.web.forms import Fields, json_answer, text_field
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller
from streamsrv.wire.answers import Answer
from streamsrv.wire.resources import Kind, Target

CHALLENGE = ('Bearer realm="streamsrv"',)
USUAL_PERIOD = "7d"


class SignIn:
    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        began: Callable[[Caller, Head, str], None] | None = None,
        grants: Grants | None = None,
    ) -> None:
        """`began` is called with the name of the principal of each new session. `grants` are those of the
        settings by default."""
        self.began = began or _nothing
        self.grants = grants or grants_of(settings)
        # Threads read grants themselves: the grants that a worker knows belong to its loop.
        self.sessions = Sessions(self.grants, self.grants.find, settings.session_time, clock)
        self._shares = Shares(self.grants)
        self._longest_share = settings.share_time
        self._clock = clock

    # Requests

    def form(self, head: Head, caller: Caller, target: Target) -> Callable[[Fields], Answer]:
        """The function that answers a POST, from the members of its body. Raises Forbidden."""
        study = target.study
        if study is not None:
            return lambda fields: self.share(caller, study, fields)
        check_origin(head.headers, caller.base)
        return lambda fields: self.begin(head, caller, fields)

    def answer(
        self, head: Head, caller: Caller, target: Target, there: str | None, everyones: Callable[[], bool]
    ) -> Answer:
        """The answer to another method. `there` is where the issuer ends its session, `everyones` whether
        this user sees the links of others. Raises Forbidden and NotFound."""
        study, principal = target.study, caller.principal
        if study is None:
            return self.end(head, caller, there)
        if target.kind is Kind.SHARE:
            return self.end_share(principal, study, target.share, everyones())
        return self.listed(principal, study, everyones())

    # Sessions

    def begin(self, head: Head, caller: Caller, fields: Fields) -> Answer:
        """Raises Forbidden, BadRequest, Unauthorized and TooManyRequests."""
        cookie = needed_cookie(caller.base)
        holder = self._holder(fields)
        former = self.sessions.current(head, caller.base)
        secret = self.sessions.begin_from(holder)
        if former is not None:
            self.sessions.end(former)
        self.began(caller, head, f"{holder.kind}:{holder.name}")
        study = study_of(holder) if holder.kind == SHARE else None
        return json_answer({"user": holder.name, "study": study}, 200, cookie.set(secret))

    def _holder(self, fields: Fields) -> Grant:
        key, link = text_field(fields, "key"), text_field(fields, "share")
        if bool(key) == bool(link):
            raise BadRequest("the body has either a key or a share")
        found = self._find(KEY, key) if key else self._find(SHARE, link)
        if found is None or self.sessions.holder(found) is None:
            raise _refused("the key or share is unknown, revoked, or has ended")
        if found.kind == SHARE and needs_pin(found):
            self._check_pin(found, text_field(fields, "pin", 64))
        return found

    def _find(self, kind: str, secret: str) -> Grant | None:
        try:
            found = self.grants.find(kind, digest_of(secret))
        except GrantDamaged as error:
            raise _refused(error.detail) from None
        return found if found is not None and self._clock() < found.until else None

    def _check_pin(self, share: Grant, pin: str) -> None:
        if not pin:
            needed = PinRequired("the share has a PIN", "this link needs its PIN")
            needed.challenges = CHALLENGE
            raise needed
        if not self._shares.check_pin(share, pin):
            raise _refused(f"wrong PIN for the share {share.name}")

    def end(self, head: Head, caller: Caller, there: str | None = None) -> Answer:
        """Also without a session: the cookie goes. `there` is where the issuer ends its session."""
        cookie = needed_cookie(caller.base)
        check_origin(head.headers, caller.base)
        session = self.sessions.current(head, caller.base)
        if session is not None:
            self.sessions.end(session)
        # Cached pictures and metadata go with the session.
        cleared = (("Clear-Site-Data", '"cache"'),) if cookie.secure else ()
        return json_answer({"location": there}, 200, cookie.clear(), *cleared)

    # Share links

    def share(self, caller: Caller, study: str, fields: Fields) -> Answer:
        """The link ends with the key of the caller, if it has one. Raises BadRequest and Unauthorized."""
        pin = fields.get("pin", False)
        if not isinstance(pin, bool):
            raise BadRequest("the member 'pin' is true or false: the server makes the PIN")
        seconds = self._seconds(text_field(fields, "expires") or USUAL_PERIOD)
        kind, _, name = caller.principal.name.partition(":")
        source = self.grants.named(KEY, name) if kind == KEY else None
        if kind == KEY and source is None:
            raise _refused(f"the key {name!r} was revoked a moment ago")
        until = min(self._clock() + seconds, source.until if source else math.inf)
        made = self._shares.make(study, until, pin=pin, by=caller.principal, source=source)
        row = described(made.grant) | {"url": share_url(caller.base, made.secret)}
        return json_answer(row | ({"pin": made.pin} if pin else {}), 201)

    def _seconds(self, text: str) -> float:
        seconds = seconds_of(text) or 0
        if not 0 < seconds <= self._longest_share:
            longest = f"{self._longest_share / 3600:g} hours"
            raise BadRequest(f"the member 'expires' is a period such as 12h or 7d, of at most {longest}")
        return seconds

    def listed(self, principal: Principal, study: str, everyones: bool) -> Answer:
        return json_answer([described(share) for share in self._of(principal, study, everyones)])

    def end_share(self, principal: Principal, study: str, name: str, everyones: bool) -> Answer:
        """Raises NotFound."""
        for share in self._of(principal, study, everyones):
            if share.name == name:
                self._shares.revoke(share)
                return Answer(204)
        raise NotFound("there is no such share of this study")

    def _of(self, principal: Principal, study: str, everyones: bool) -> list[Grant]:
        found = self._shares.all(study)
        return [share for share in found if everyones or share.extra.get(MAKER) == principal.name]


def _nothing(caller: Caller, head: Head, user: str) -> None:
    pass


def _refused(reason: str) -> Unauthorized:
    error = Unauthorized(reason)
    error.challenges = CHALLENGE
    return error


def described(share: Grant) -> dict[str, Any]:
    """A share as JSON, without its secret."""
    return {
        "id": share.name,
        "study": study_of(share),
        "created": _time(share.created),
        "expires": _time(share.until),
        "pin": needs_pin(share),
        "by": str(share.extra.get(MAKER, "")),
    }


def _time(seconds: float) -> str | None:
    if math.isinf(seconds):
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

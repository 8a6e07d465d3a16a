"""Share links: a grant of the kind `share` for one study, with an end and perhaps a PIN.

    https://HOST/#/share/SECRET     the fragment never leaves the browser; the page exchanges the secret for
                                    a session and takes it out of the address

Rules of this file
- The PIN is kept as scrypt (RFC 7914). A try is counted, durably, before the PIN is compared. So several
  workers, nodes, or a restart, give no more tries.
- After TRIES wrong PINs a share answers 429 for a while, which doubles with each further try. Other shares,
  and browsers that have opened this one, do not notice. Without the secret there is no try.
- A PIN alone, and a secret alone, tell nothing about a study.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streamsrv.errors import TooManyRequests
from streamsrv.query.rules import limited_to
from streamsrv.web.access.grants import Grant, GrantChange, Grants, digest_of, file_of
from streamsrv.web.access.principal import Principal, Right

SHARE = "share"
SHARED_RIGHTS = Right.SEARCH | Right.READ
SECRET_BYTES = 32
PIN_DIGITS = 6
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 900, 86_400  # seconds
PIN, MAKER, STUDY, SOURCE = "pin", "by", "study", "source"
# scrypt: 16 MB and 50 ms.
_COST = {"n": 1 << 14, "r": 8, "p": 1}


class NewShare(NamedTuple):
    """`pin` is empty without one."""

    grant: Grant
    secret: str
    pin: str


class Shares:
    """All calls block. `clock` gives seconds as `time.time()`; by default it is that of the grants."""

    def __init__(self, grants: Grants, clock: Callable[[], float] | None = None) -> None:
        self._grants = grants
        self._clock = clock or grants.documents.now

    def make(
        self, study: str, until: float, *, pin: bool, by: Principal | None = None, source: Grant | None = None
    ) -> NewShare:
        """`by` is the principal that shares: a share shows no more than it sees. `source` is its key, with
        which the share ends."""
        secret, name = secrets.token_urlsafe(SECRET_BYTES), secrets.token_hex(5)
        extra: dict[str, object] = {STUDY: study, MAKER: by.name if by else ""}
        chosen = f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}}" if pin else ""
        if pin:
            extra[PIN] = _hashed(chosen, secrets.token_bytes(16))
        if source is not None:
            extra[SOURCE] = {"kind": source.kind, "digest": source.digest}
        now = self._clock()
        rights = SHARED_RIGHTS & by.rights if by else SHARED_RIGHTS
        rule = limited_to(by.rule if by else None, study)
        grant = Grant(SHARE, name, digest_of(secret), rights, rule, now, until, extra)
        ended = self._by_end(self._kept(), now)[1]
        with self._grants.changing() as change:
            for each in ended:
                self._remove(each, change)
            change.write(grant)
        return NewShare(grant, secret, chosen)

    def all(self, study: str = "", maker: str = "") -> list[Grant]:
        """The shares that have not ended, of one study or of all, and of one maker or of all; the oldest
        first."""
        found = [
            each
            for each in self._kept()
            if study in ("", study_of(each)) and maker in ("", each.extra.get(MAKER))
        ]
        return sorted(self._by_end(found, self._clock())[0], key=lambda each: each.created)

    def _kept(self) -> list[Grant]:
        return [each for each in self._grants.all(SHARE) if isinstance(each, Grant)]

    def _by_end(self, shares: Sequence[Grant], now: float) -> tuple[list[Grant], list[Grant]]:
        """Those that go on, and those that have ended, or whose key has. Reads all keys at once, behind the
        shares: a share that was read has a key that can be. A damaged key may be mended: it ends none."""
        untils = dict[str, float]()
        sources = [source for each in shares if (source := each.extra.get(SOURCE)) is not None]
        for kind in {source["kind"] for source in sources}:
            untils |= dict.fromkeys(self._grants.names(kind), math.inf)
            untils |= {each.file: each.until for each in self._grants.all(kind) if isinstance(each, Grant)}
        live, ended = list[Grant](), list[Grant]()
        for each in shares:
            source, until = each.extra.get(SOURCE), each.until
            if source is not None:
                until = min(until, untils.get(file_of(source["kind"], source["digest"]), 0.0))
            (ended if until <= now else live).append(each)
        return live, ended

    def revoke(self, share: Grant) -> None:
        with self._grants.changing() as change:
            self._remove(share, change)

    def _remove(self, share: Grant, change: GrantChange) -> None:
        change.remove(share)
        change.texts.remove(_tries(share))

    # The PIN

    def check_pin(self, share: Grant, pin: str) -> bool:
        """Whether the PIN is right. Raises TooManyRequests."""
        file, now = _tries(share), self._clock()
        with self._grants.changing() as change:
            known = json.loads(self._grants.documents.read(file) or b'{"used": 0, "last": 0}')
            wait = waiting(known["used"]) - max(0.0, now - known["last"])
            if wait > 0:
                raise TooManyRequests("too many wrong PINs for this link: try again later", math.ceil(wait))
            change.texts.write(file, json.dumps({"used": known["used"] + 1, "last": now}).encode())
        kept = share.extra[PIN]
        right = hmac.compare_digest(_hashed(pin, bytes.fromhex(kept["salt"]))["hash"], kept["hash"])
        if right:
            with self._grants.changing() as change:
                change.texts.remove(file)
        return right


def _tries(share: Grant) -> str:
    """The document that counts the tries of its PIN."""
    return f"{SHARE}-{share.digest}.tries"


def waiting(used: int) -> float:
    """Seconds after the last of so many wrong tries."""
    return min(FIRST_WAIT * 2 ** min(used - TRIES, 10), LONGEST_WAIT) if used >= TRIES else 0


def _hashed(pin: str, salt: bytes) -> dict[str, str]:
    made = hashlib.scrypt(pin.encode(), salt=salt, dklen=32, maxmem=64 << 20, **_COST)
    return {"salt": salt.hex(), "hash": made.hex()}


def within(share: Grant, source: Grant) -> Grant:
    """The share with the present rights and rule of the key that made it."""
    return share._replace(rights=SHARED_RIGHTS & source.rights, rule=limited_to(source.rule, study_of(share)))


def study_of(share: Grant) -> str:
    """Its Study Instance UID."""
    return str(share.extra[STUDY])


def needs_pin(share: Grant) -> bool:
    return PIN in share.extra


def share_url(base: str, secret: str) -> str:
    """`base` is the absolute URL of the page without a slash at its end."""
    return f"{base}/#/share/{secret}"

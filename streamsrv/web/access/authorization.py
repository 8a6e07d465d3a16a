"""The credentials of a request: its Authorization header (RFC 9110 11.6.2), and how many were not valid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from streamsrv.errors import BadRequest
from streamsrv.query.rates import ClientRates
from streamsrv.web.head import Head

log = logging.getLogger("streamsrv.access")

TOO_MANY = "too many requests of this address had credentials that are not valid"
WARN_EVERY = 10.0  # seconds


class Authorization(NamedTuple):
    """`scheme` is lower case, because it is not case-sensitive (RFC 9110 11.1). Both are empty without
    credentials."""

    scheme: str
    value: str


def authorization_of(head: Head) -> Authorization:
    """Raises BadRequest for two Authorization headers: proxy and server might use different ones."""
    text = head.headers.get("authorization", "")
    # Values of headers with one name are joined by commas. Neither Bearer nor Basic has one.
    if "," in text:
        raise BadRequest("Authorization is one header with one scheme, Bearer or Basic")
    scheme, _, value = text.partition(" ")
    return Authorization(scheme.lower(), value.strip())


class FailedLogins:
    """Credentials of each address that were not valid: `a_minute` on average, and as many at once. 0: no
    limit."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = ClientRates(a_minute / 60, a_minute, clock)
        self._clock = clock
        self._warned = -WARN_EVERY

    def count(self, address: str) -> None:
        """Raises TooManyRequests if the address has spent its share before."""
        self._rates.check(address, TOO_MANY)
        self._rates.spend(address, 1)
        now = self._clock()
        if self._rates.wait(address) and now - self._warned >= WARN_EVERY:
            self._warned = now
            log.warning("too many failed logins from %s: they are limited and not logged one by one", address)

"""How much each client may spend in a second: one bucket for each client, which fills at a constant rate.

Rules
- The cost of a search is known at its end. So a bucket may fall below zero, and its client waits until the
  debt is paid.
- The clients that came last are remembered. A client that was forgotten has a full bucket again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from streamsrv.errors import TooManyRequests

REMEMBERED = 4096  # clients


class ClientRates:
    """`rate` is in units a second, 0: no limit. A bucket holds `burst` units. Thread-safe."""

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        remembered: int = REMEMBERED,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._remembered = remembered
        self._lock = threading.Lock()
        self._spent: dict[str, tuple[float, float]] = {}  # units below a full bucket, at a time

    def wait(self, client: str) -> int:
        """Whole seconds until the client may go on; 0 if it may."""
        if not self._rate:
            return 0
        with self._lock:
            lacking = self._now(client, self._clock()) - self._burst
        # At the very end of a bucket a unit is lacking.
        return math.ceil(max(lacking / self._rate, 1e-9)) if lacking >= 0 else 0

    def check(self, client: str, detail: str) -> None:
        """Raises TooManyRequests with this sentence."""
        seconds = self.wait(client)
        if seconds:
            raise TooManyRequests(detail, seconds)

    def spend(self, client: str, amount: float) -> None:
        if not self._rate:
            return
        now = self._clock()
        with self._lock:
            spent = self._now(client, now) + amount
            self._spent.pop(client, None)  # behind the others, which may be forgotten earlier
            self._spent[client] = spent, now
            while len(self._spent) > self._remembered:
                del self._spent[next(iter(self._spent))]

    def _now(self, client: str, now: float) -> float:
        spent, at = self._spent.get(client, (0.0, now))
        return max(0.0, spent - (now - at) * self._rate)

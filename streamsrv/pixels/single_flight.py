"""What is being made, and for how many: one making of a frame for all who ask for it meanwhile.

Strategy: a thread waits for what is under way; the loop never waits, but is told to ask again when it is
there. Mostly the cache has it then. A failure, and what is too large for the cache, is kept for as many as
were told to ask again, and for nobody else: whoever comes later has it made anew.

Rule: what is never fetched, because the instance was deleted meanwhile, is bounded in number and in bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any

from streamsrv.pixels.orders import WORTH_A_PROCESS

OUTCOMES, OUTCOMES_BYTES = 64, 64 << 20


class UnderWay(Future[bytes]):
    """`again` is how many were told to ask again, `threads` how many wait for it; `size` is the length of
    the result, `order` makes it, of `pixels` bytes."""

    again = threads = size = pixels = 0
    order: Future[Any] | None = None


class Makings:
    """Thread-safe. `stop` ends an order of so many bytes of pixels, if that is worth while, and says whether
    it has."""

    def __init__(self, stop: Callable[[Future[Any], int], bool]) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, UnderWay] = {}
        self._outcomes: OrderedDict[Hashable, UnderWay] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._under_way

    @property
    def outcomes(self) -> list[Hashable]:
        return list(self._outcomes)

    def find(self, key: Hashable) -> UnderWay | None:
        """What is under way, or what has become of it, for one of those who were told to ask again."""
        with self._lock:
            outcome = self._outcomes.get(key)
            if outcome is None:
                return self._under_way.get(key)
            outcome.again -= 1
            if not outcome.again:
                del self._outcomes[key]
            return outcome

    def begin(self, key: Hashable) -> tuple[UnderWay, bool]:
        """What is under way, and whether it is the caller's, who ends it."""
        with self._lock:
            under_way = self._under_way.get(key)
            if under_way is not None:
                return under_way, False
            self._under_way[key] = begun = UnderWay()
            return begun, True

    def await_again(self, key: Hashable, under_way: UnderWay) -> bool:
        """Whether there is something to wait for; then the caller has to ask again."""
        with self._lock:
            is_under_way = self._under_way.get(key) is under_way
            under_way.again += is_under_way
            return is_under_way

    def leave(self, key: Hashable, under_way: UnderWay) -> bool:
        """A caller that was told to ask again will not do so. Returns whether the making is given up."""
        with self._lock:
            under_way.again -= 1
        return self.give_up(key, under_way)

    def give_up(self, key: Hashable, under_way: UnderWay) -> bool:
        """Stops it if no request waits for it, and returns whether it has. Short work that has begun is made
        to its end and kept for the next request."""
        with self._lock:
            if under_way.again or under_way.threads:
                return False
            self._outcomes.pop(key, None)
            order = under_way.order
            if self._under_way.get(key) is not under_way or order is None or order.done():
                return False
            if order.running() and under_way.pixels <= WORTH_A_PROCESS:
                return False
            del self._under_way[key]  # a later request has it made again
        return self._stop(order, under_way.pixels)

    @contextlib.contextmanager
    def wanted(self, under_way: UnderWay) -> Iterator[None]:
        """By a thread, until the end of the block."""
        with self._lock:
            under_way.threads += 1
        try:
            yield
        finally:
            with self._lock:
                under_way.threads -= 1

    def end(self, key: Hashable, ended: UnderWay, *, keep: bool = False) -> None:
        """Its result has to be set now; `keep` if the cache will not have it."""
        with self._lock:
            if self._under_way.get(key) is ended:
                del self._under_way[key]
            if keep and ended.again:
                self._outcomes[key] = ended
                while len(self._outcomes) > 1 and self._too_much_waits():
                    self._outcomes.popitem(last=False)

    def _too_much_waits(self) -> bool:
        held = sum(outcome.size for outcome in self._outcomes.values())
        return len(self._outcomes) > OUTCOMES or held > OUTCOMES_BYTES

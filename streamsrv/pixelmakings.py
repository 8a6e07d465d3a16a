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
from collections.abc import Hashable, Iterator
from typing import Any

from framecodecs.outcomes import Outcome

OUTCOMES, OUTCOMES_BYTES = 64, 64 << 20


class UnderWay(Outcome[bytes]):
    """`again` is how many were told to ask again, `threads` how many wait for it; `size` is the length of
    what was made, `order` what makes it."""

    again = threads = size = 0
    order: Outcome[Any] | None = None


class Makings:
    """Thread-safe."""

    def __init__(self) -> None:
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
        """One of those who were told to ask again will not. What nobody wants and nobody has begun is
        cancelled, and then this is True; what has begun is made to its end and kept for the next one."""
        with self._lock:
            under_way.again -= 1
            if under_way.again or under_way.threads:
                return False
            self._outcomes.pop(key, None)
            order = under_way.order
            if self._under_way.get(key) is not under_way or order is None or order.running() or order.done():
                return False
            del self._under_way[key]
        return order.cancel()

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

"""Whose turn it is: bulk bodies of one worker move one after another, one slice in each turn of the loop.

Strategy: who finds that nobody has moved in this turn of the loop goes ahead at once; the others stand in a
queue, and each turn lets one of them go. So a small request waits for one slice, not for one of every body
that moves, and a body that moves alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """Must be made inside the running loop. `alone` tells that one body moves at most: then no turn is
    counted."""

    def __init__(self, alone: Callable[[], bool] = lambda: False) -> None:
        self._alone = alone
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False

    def take(self) -> bool:
        """True if nobody has moved in this turn of the loop: then it is the caller's."""
        if self._taken:
            return False
        if self._alone():
            return True
        self._taken = True
        self._loop.call_soon(self._next)
        return True

    def queue(self, move: Callable[[], None]) -> None:
        """Call `move`, which must not raise, when its turn has come."""
        self._waiting.append(move)

    async def mine(self) -> None:
        """Returns in a turn of the caller's."""
        if not self.take():
            called = asyncio.Event()
            self.queue(called.set)
            await called.wait()

    def _next(self) -> None:
        if not self._waiting:
            self._taken = False
            return
        self._loop.call_soon(self._next)
        self._waiting.popleft()()

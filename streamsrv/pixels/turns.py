"""Many orders for one answer: made in their order, a few ahead of the one that is being sent.

Rules of this file
- An answer that has begun never holds a thread for longer than a TURN: `in_turn` yields None where nothing is
  ready, the answer sends nothing then, and its thread is free for others.
- An answer that has begun waits up to PATIENCE for a place in the queue instead of being cut off.
- Closing the iterator cancels the orders under way. So does a client that leaves before the answer begins.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from typing import Protocol, TypeAlias, TypeVar

from framecodecs.pool.pool import Answer
from streamsrv.errors import Overloaded
from streamsrv.pixels.orders import Order
from streamsrv.pixels.processes import RETRY_AFTER

# How long an answer that has begun waits for a place in the queue.
PATIENCE = 30.0
# How long it holds a thread meanwhile. Coming back costs 0.1 ms; 200 of them make 64 threads wait 0.3 s.
TURN = 0.1
# Pixels of the orders that one answer has ahead, however many processes there are: three large mammograms.
AHEAD = 128 << 20

Tag = TypeVar("Tag")
Turn: TypeAlias = tuple[Tag, Answer | None] | None


class OrderPool(Protocol):
    """A PixelPool."""

    def submit(self, order: Order) -> Answer: ...
    def stop(self, answer: Answer, pixels: int) -> bool: ...


def left_early() -> Overloaded:
    """The error of a request whose client closes the connection before the answer begins. A client that only
    has shut its side of the connection reads it."""
    return Overloaded("the connection was shut before the turn of this request came", RETRY_AFTER)


def in_turn(pool: OrderPool, most: int, tasks: Iterable[tuple[Tag, Order | None]]) -> Iterator[Turn[Tag]]:
    """The tasks in their order, each when its order is done. At most `most` orders are ahead, and AHEAD bytes
    of pixels. A task without an order only takes its turn. None: nothing is ready, come back."""
    ahead: deque[tuple[Tag, Answer | None, Order | None]] = deque()
    begun = False
    try:
        for tag, order in tasks:
            turns = 0
            while _is_full(ahead, order, most) or (answer := _placed(pool, order)) is None:
                if ahead:
                    yield from _waited(pool, *ahead[0][1:], begun)
                    yield ahead.popleft()[:2]
                elif not begun or turns * TURN > PATIENCE:
                    raise Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
                else:
                    turns += 1
                    time.sleep(TURN)
                    yield None
                begun = True
            ahead.append((tag, answer[0], order))
        while ahead:
            yield from _waited(pool, *ahead[0][1:], begun)
            yield ahead.popleft()[:2]
            begun = True
    finally:
        for _, waiting, order in ahead:
            if waiting is not None and order is not None:
                pool.stop(waiting, order.pixels)


def _is_full(ahead: deque[tuple[Tag, Answer | None, Order | None]], order: Order | None, most: int) -> bool:
    if len(ahead) > most:
        return True
    pixels = sum(one.pixels for *_, one in ahead if one is not None)
    return bool(ahead) and pixels + (0 if order is None else order.pixels) > AHEAD


def _placed(pool: OrderPool, order: Order | None) -> tuple[Answer | None] | None:
    """None if there is no place in the queue."""
    if order is None:
        return (None,)
    try:
        return (pool.submit(order),)
    except Overloaded:
        return None


def _waited(pool: OrderPool, answer: Answer | None, order: Order | None, begun: bool) -> Iterator[None]:
    """None for each turn until it is done."""
    while answer is not None and not wait((answer,), TURN).done:
        if order is not None and order.requester.left and not begun and pool.stop(answer, order.pixels):
            raise left_early()
        yield None

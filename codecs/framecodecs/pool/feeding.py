"""Orders that are longer than their pipes: the rest follows when the process has read from them."""

from __future__ import annotations

import select

from framecodecs.errors import FrameCodecError, FrameUnread, Unavailable
from framecodecs.pool.orders import NONE, Submitted


class Feeder:
    """`told` says when a pipe can take more; its thread calls `feed`. Thread-safe."""

    def __init__(self, told: select.epoll) -> None:
        self._told = told
        self._orders: dict[int, Submitted] = {}  # by the descriptor of the pipe

    def __contains__(self, pipe: int) -> bool:
        return pipe in self._orders

    def add(self, order: Submitted) -> None:
        """If anything of it is missing. Raises OSError."""
        if order.filling != NONE:
            self._orders[order.filling] = order
            self._told.register(order.filling, select.EPOLLOUT)

    def feed(self, pipe: int) -> tuple[Submitted, FrameCodecError] | None:
        """An order that cannot be sent as a whole, and why."""
        order = self._orders.get(pipe)
        if order is None:
            return None
        try:
            if order.fill():
                self._orders.pop(pipe, None)
        except FrameUnread as error:
            return order, error
        except OSError as error:
            return order, Unavailable(f"the order cannot be sent: {error.strerror}")
        return None

    def forget(self, order: Submitted) -> None:
        """It is about to be closed."""
        self._orders.pop(order.filling, None)

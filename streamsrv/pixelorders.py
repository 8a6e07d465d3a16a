"""What pixel processes are asked to do, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from framecodecs.wireform import Frame, Result

# Bytes of pixels a second of the slowest codec. Lossy JPEG 2000 of colour makes over 10 MB on an idle core.
SLOWEST = 2 << 20
# Seconds for an order without pixels: a process may be starting, and others may use its core.
SHORTEST_DEADLINE = 5.0


@dataclass(slots=True, eq=False)
class Order:
    """`work` is a function of framecodecs.work; `pixels` are the decoded bytes that it will handle."""

    work: Callable[..., Any]
    frames: Sequence[Frame]
    arguments: tuple[Any, ...]
    pixels: int


@dataclass(slots=True, eq=False)
class Making:
    """How a frame or picture comes about: `order` reads what is stored, and `finish` makes bytes of results.
    In the loop `order` raises WouldBlock where it would wait for the disk."""

    key: Hashable
    order: Callable[[], Order]
    finish: Callable[[list[Result]], bytes]


def deadline_of(order: Order, most: float) -> float:
    """Seconds: by the size of the order, and never more than `most`."""
    return min(SHORTEST_DEADLINE + order.pixels / SLOWEST, most)

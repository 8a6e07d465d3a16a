"""Orders for pixel processes, and their deadlines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame
from streamsrv.wire.answers import Requester

# Bytes of pixels a second of the slowest codec. Lossy JPEG 2000 of colour makes over 10 MB on an idle core.
SLOWEST = 2 << 20
# Seconds of processor time for an order without pixels.
SHORTEST_DEADLINE = 3.0
# Bytes of pixels that take the slowest codec a third of a second. More has processes of its own.
QUICK = 4 << 20
# Bytes that mostly take a second or so: as long as starting another process. More is worth stopping.
WORTH_A_PROCESS = 16 << 20
PREFETCH = Requester()  # no client waits; shared, so nothing may call its `leave`


@dataclass(slots=True, eq=False)
class Order:
    """`work` is a function of framecodecs.pool.work; `pixels` are the decoded bytes that it will handle."""

    work: Callable[..., Any]
    frames: Sequence[Frame]
    arguments: tuple[Any, ...]
    pixels: int
    requester: Requester = PREFETCH


@dataclass(slots=True, eq=False)
class Making:
    """The steps to a frame or picture: `order` reads the stored frames, and `finish` makes bytes of results.
    In the loop `order` raises WouldBlock where it would wait for the disk."""

    key: Hashable
    order: Callable[[], Order]
    finish: Callable[[list[Result]], bytes]
    requester: Requester = PREFETCH


def deadline_of(order: Order, most: float) -> float:
    """Seconds: for quick work by its size, and never more than `most`. Long work keeps no small picture
    waiting, and has `most`. The pool counts processor time, and grants more time where cores are busy."""
    return most if order.pixels > QUICK else min(SHORTEST_DEADLINE + order.pixels / SLOWEST, most)

"""Health of this worker, for probes: alive, and ready for requests."""

from __future__ import annotations

from collections.abc import Callable

from streamsrv.errors import StreamsrvError
from streamsrv.wire.answers import Answer, Literal

HEADERS = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))


def live() -> Answer:
    """Always 200: a worker that answers is alive."""
    return text(200, b"alive\n")


def ready(probe: Callable[[], None], *, draining: bool, store_open: bool) -> Answer:
    """503 while the worker drains, or if `probe` cannot read the store."""
    if draining:
        return text(503, b"draining\n", ("Retry-After", "5"))
    if not store_open:
        return text(503, b"the store is not open\n", ("Retry-After", "1"))
    try:
        probe()
    except StreamsrvError as error:
        return text(503, f"the store cannot be read: {error.detail}\n".encode(), ("Retry-After", "1"))
    return text(200, b"ready\n")


def text(status: int, said: bytes, *more: tuple[str, str]) -> Answer:
    """A short answer in plain text."""
    return Answer(status, [*HEADERS, *more], (Literal(said),), len(said))

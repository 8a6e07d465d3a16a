"""Whether this worker is alive, and whether it should be sent requests: two answers for whoever supervises
it.
"""

from __future__ import annotations

from streamsrv.wire.answers import Answer, Literal

HEADERS = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))


def live() -> Answer:
    """Always 200: a worker that answers is alive."""
    return _text(200, b"alive\n")


def ready(*, draining: bool, store_open: bool) -> Answer:
    if draining:
        return _text(503, b"draining\n", ("Retry-After", "5"))
    if not store_open:
        return _text(503, b"the store is not open\n", ("Retry-After", "1"))
    return _text(200, b"ready\n")


def _text(status: int, text: bytes, *more: tuple[str, str]) -> Answer:
    return Answer(status, [*HEADERS, *more], (Literal(text),), len(text))

"""Who answers which kind of target resource.

`is_inline` names those whose look-up is a few microseconds of index and no more: a turn through a thread
costs about 100. What of them has to be made after all says WouldBlock, and goes to a thread. All else,
whatever walks a series or a study or searches, is answered in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamsrv.errors import NotFound
from streamsrv.ingest.response import StoreResult
from streamsrv.web.stow import Receiver
from streamsrv.wire.answers import Answer, Request
from streamsrv.wire.resources import Kind, Level, Target

INLINE = frozenset((Kind.INSTANCES, Kind.METADATA, Kind.FRAMES, Kind.RENDERED, Kind.THUMBNAIL))


@dataclass(frozen=True, slots=True)
class Actions:
    """The rooms below, as functions of a request. Each blocks; `ingest` raises what refuses a body before
    it is read.
    """

    retrieve: Callable[[Request, Target], Answer]
    search: Callable[[Request, Target], Answer]
    delete: Callable[[str, str | None, str | None], int]
    ingest: Callable[[Request, Target], Receiver]
    stored: Callable[[StoreResult, Request], Answer]


def is_inline(method: str, target: Target) -> bool:
    return method in ("GET", "HEAD") and target.level is Level.INSTANCE and target.kind in INLINE


def compute(actions: Actions, request: Request, target: Target) -> Answer:
    """The answer to anything but a store."""
    if request.method == "DELETE":
        return delete(actions, target)
    if target.kind is Kind.SEARCH:
        return actions.search(request, target)
    return actions.retrieve(request, target)


def delete(actions: Actions, target: Target) -> Answer:
    if target.study is None:
        raise NotFound("the target resource names no study")
    if not actions.delete(target.study, target.series, target.instance):
        raise NotFound("there is no such SOP instance, series or study in this store")
    return Answer(204)

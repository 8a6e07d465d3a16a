"""The function that answers each kind of target resource.

All are called in the event loop, because a turn through a thread costs about 100 us, and most look-ups a few.
An answer that takes longer is a Deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from streamsrv.errors import Forbidden, NotAcceptable, NotFound, PreconditionFailed, RequestError
from streamsrv.events import TailSource
from streamsrv.ingest.batching import StoreOutcome
from streamsrv.ingest.response import StoreResult
from streamsrv.ingest.transaction import Ingest
from streamsrv.metrics import RequestKind
from streamsrv.query.rules import Rule
from streamsrv.retrieve.cached_frames import Found
from streamsrv.wire.answers import Answer, Computed, Deferred, Request, resolved
from streamsrv.wire.codings import coded
from streamsrv.wire.resources import VERSIONS, Kind, Target, target_of

# If-Modified-Since counts for GET alone.
CONDITIONS = frozenset(("if-match", "if-none-match", "if-unmodified-since"))
CHOOSING = frozenset(("accept", "accept-encoding"))

# The kind of a GET, under which it is counted.
KINDS = {
    Kind.SERVICE: RequestKind.DESCRIPTION,
    Kind.SEARCH: RequestKind.SEARCH,
    Kind.INSTANCES: RequestKind.INSTANCES,
    Kind.METADATA: RequestKind.METADATA,
    Kind.FRAMES: RequestKind.FRAMES,
    Kind.RENDERED: RequestKind.RENDERED,
    Kind.THUMBNAIL: RequestKind.THUMBNAIL,
    Kind.BULKDATA: RequestKind.BULKDATA,
    Kind.PIXELDATA: RequestKind.BULKDATA,
    Kind.WADO_URI: RequestKind.WADO_URI,
    Kind.CHANGEFEED: RequestKind.CHANGES,
    Kind.LATEST: RequestKind.CHANGES,
    Kind.EVENTS: RequestKind.EVENTS,
    Kind.OPENAPI: RequestKind.DESCRIPTION,
    Kind.YAML: RequestKind.DESCRIPTION,
    Kind.LIVE: RequestKind.HEALTH,
    Kind.READY: RequestKind.HEALTH,
    Kind.SHARES: RequestKind.PAGES,
    Kind.SHARE: RequestKind.PAGES,
    Kind.SESSION: RequestKind.PAGES,
    Kind.ISSUER: RequestKind.PAGES,
    Kind.PAGE: RequestKind.PAGES,
    Kind.VIEWER: RequestKind.PAGES,
}
# Their answers are never cached: each tells all acknowledged instances.
FRESH = frozenset((Kind.SEARCH, Kind.CHANGEFEED, Kind.LATEST))
METHODS = {
    "POST": RequestKind.STORE,
    "DELETE": RequestKind.DELETE,
    "OPTIONS": RequestKind.DESCRIPTION,
}


Exists: TypeAlias = Callable[[str, str | None, str | None], bool]


def _nothing(request: Request, target: Target) -> None:
    return None


def _no_changes(request: Request, target: Target, may_read: bool) -> Computed:
    raise NotFound("this service has no changes")


def _well() -> None:
    pass


def _refused(rule: Rule | None, may_replace: bool) -> Actions:
    raise Forbidden("this service has no rules")


def _none(ingests: Sequence[Ingest]) -> list[StoreOutcome]:
    return []


@dataclass(frozen=True, slots=True)
class Actions:
    """The rooms below, as functions of a request. `delete` and `store_batch` block. `ingest` raises an
    error that refuses a body before it is read. `cached_frames` finds the instance of a frame that was
    answered lately. `probe` raises a StreamsrvError if the store cannot be read. `restricted` returns the
    actions of a principal with a rule, and with or without the right to replace instances. `exists` tells
    whether a study, series or instance is stored and visible; it blocks. `changes` is told whether the
    client may read metadata. `tails` make readers of the events of this view.
    """

    retrieve: Callable[[Request, Target], Computed]
    search: Callable[[Request, Target], Computed]
    delete: Callable[[str, str | None, str | None], int]
    ingest: Callable[[Request, Target], Ingest]
    stored: Callable[[StoreResult, Request], Answer]
    cached_frames: Callable[[Request, Target], Found] = _nothing
    store_batch: Callable[[Sequence[Ingest]], list[StoreOutcome]] = _none
    probe: Callable[[], None] = _well
    restricted: Callable[[Rule | None, bool], Actions] = _refused
    exists: Exists = lambda study, series, instance: True
    changes: Callable[[Request, Target, bool], Computed] = _no_changes
    tails: TailSource | None = None


def request_kind(method: str, path: str) -> RequestKind:
    """The kind under which a request is counted. `path` is percent-encoded and may be malformed."""
    try:
        target = target_of(path)
        target.check_method(method)
    except RequestError:
        return RequestKind.DESCRIPTION if method == "OPTIONS" else RequestKind.OTHER
    kind = KINDS[target.kind]
    return kind if kind is RequestKind.PAGES else METHODS.get(method, kind)


def compute(
    actions: Actions,
    request: Request,
    target: Target,
    before_delete: Callable[[], None] = _well,
    may_read: bool = True,
) -> Computed:
    """The answer to anything but a store. Does not block. `before_delete` blocks, and raises the error that
    refuses a delete. `may_read` is whether the client may have metadata of changes."""
    if request.method == "DELETE":
        return Deferred(lambda: delete(actions, request, target, before_delete))
    if target.kind is Kind.SEARCH:
        return coded(request, lambda asked: actions.search(asked, target))
    if target.kind in FRESH:
        return coded(request, lambda asked: actions.changes(asked, target, may_read))
    return actions.retrieve(request, target)


def check_preconditions(actions: Actions, request: Request, target: Target) -> None:
    """The preconditions of a store or delete (RFC 9110 13.1, 13.2.1). They are compared with the
    representation that a GET with the same Accept gets. Raises PreconditionFailed, and NotFound if there is
    nothing to delete. A change between this and the store or delete is not noticed."""
    if CONDITIONS.isdisjoint(request.headers):
        return
    headers = {name: value for name, value in request.headers.items() if name in (*CONDITIONS, *CHOOSING)}
    asked = replace(request, method="HEAD", query=(), headers=headers)
    try:
        found = resolved(compute(actions, asked, target))
    except NotAcceptable:  # meant for the answer of the change itself
        found = resolved(compute(actions, replace(asked, headers=headers | {"accept": "*/*"}), target))
    except NotFound:
        if request.method == "DELETE":
            raise
        if "if-match" in headers:
            raise PreconditionFailed("there is nothing that If-Match could match") from None
        return
    if found.release is not None:
        found.release()
    if found.status == 304:
        raise PreconditionFailed("the representation exists that If-None-Match excludes")
    tagged = any(name == "ETag" for name, _ in found.headers)
    if not tagged and headers.get("if-match", "*").strip() != "*":
        raise PreconditionFailed("the target resource has no entity tag now")


def require_study(actions: Actions, study: str) -> None:
    """Raises NotFound unless there is such a study, and it is visible. Blocks."""
    path = f"/v{VERSIONS[-1]}/studies"
    asked = Request("GET", path, (("StudyInstanceUID", study),), {}, "", VERSIONS[-1])
    found = resolved(actions.search(asked, target_of(path)))
    if found.release is not None:
        found.release()
    if found.status != 200:
        raise NotFound("there is no such study in this store")


def delete(actions: Actions, request: Request, target: Target, before: Callable[[], None] = _well) -> Answer:
    check_preconditions(actions, request, target)
    if target.study is None:
        raise NotFound("the target resource names no study")
    before()
    if not actions.delete(target.study, target.series, target.instance):
        raise NotFound("there is no such SOP instance, series or study in this store")
    return Answer(204)

"""One worker process, and the composition root: it opens the store, makes the objects of all rooms, and
serves.

The supervisor starts it by exec, so that no process is forked after a lock or the index was opened. Its only
argument is a JSON list of inherited descriptors, and the number of the worker. The descriptors are: listening
sockets, those for health, endpoints of the pixel processes (for short and for long tasks), status pipe,
memory of the counters. Behind the number come those of the keys of an issuer, of the certificate, and the
listening sockets of DIMSE. Settings come as one line of JSON on standard input. Standard input then stays
open as a lifeline: its end means that the supervisor has ended. The first byte on the status pipe means
ready, each further byte means that the event loop runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from framecodecs.pool.processes import PoolEndpoints
from streamsrv import config
from streamsrv.audit.recorder import AuditRecorder, Patient
from streamsrv.dicom import tags
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dimse.dialing import Dialer
from streamsrv.dimse.rooms import BackgroundTasks, DimseRooms
from streamsrv.dimse.service import DimseService
from streamsrv.dimse.services.commitment_log import CommitmentLog
from streamsrv.errors import StreamsrvError
from streamsrv.events import ChangeFeed, ChangeTail, TailSource
from streamsrv.ingest import Ingest, store_batch
from streamsrv.ingest import response as store_response
from streamsrv.ingest.derivation import ReaderPool
from streamsrv.metrics import Gauge, MetricsBoard, RequestCounts
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.options import audit_trail, ingest_limits, start_log, store_options
from streamsrv.pixels.limits import pixel_limits, pixel_processes
from streamsrv.pixels.pool import PixelPool
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import query_of
from streamsrv.query.rules import Rule
from streamsrv.retrieve import Retrieve
from streamsrv.search import Searches, SearchLimits
from streamsrv.settings import Settings
from streamsrv.store import OnDuplicate, Store, reader_of
from streamsrv.supervisor import DUMP, protect
from streamsrv.web.access.access import WayIn
from streamsrv.web.access.principal import Principal, Right
from streamsrv.web.actions import Actions
from streamsrv.web.app import App
from streamsrv.web.auditing import RequestAudit
from streamsrv.web.connection.certificates import ServerCertificate
from streamsrv.web.health import WatchedStore
from streamsrv.web.worker import OtherProtocol, run
from streamsrv.wire.answers import Request
from streamsrv.wire.mediatypes import DICOM
from streamsrv.wire.resources import Target

if TYPE_CHECKING:
    from streamsrv.web.access.login import Login

log = logging.getLogger("streamsrv.worker")

# Rules of access that a worker remembers. `rules_memory` is for their studies.
RULES = 1024

STDIN = 0


def pixel_pool(
    settings: Settings, endpoints: PoolEndpoints | None = None, slow_endpoints: PoolEndpoints | None = None
) -> PixelPool:
    """Without endpoints to the processes that all workers share, for quick and for long work, the pool has
    processes of its own."""
    return PixelPool(
        pixel_processes(settings),
        pixel_limits(settings),
        settings.pixel_cache,
        settings.prefetch,
        max_rendered_pixels=settings.max_rendered_pixels,
        rate=settings.pixel_rate,
        endpoints=endpoints,
        slow_endpoints=slow_endpoints,
        watch=lambda descriptor, call: asyncio.get_running_loop().add_reader(descriptor, call),
    )


def search_limits(settings: Settings) -> SearchLimits:
    return SearchLimits(
        default=settings.search_limit,
        most=settings.max_search_limit,
        rows=settings.search_rows,
        metadata=settings.search_metadata,
        rate=settings.search_rate,
    )


def actions(store: Store, settings: Settings, pool: PixelPool, watched: Store | WatchedStore) -> Actions:
    """The rooms below web/ as functions of a request. The event loop asks `watched` for its version."""
    epoch = store.index.about()["epoch"]
    limits, on_duplicate = ingest_limits(settings), OnDuplicate(settings.on_duplicate)
    readers = ReaderPool()

    def ingest(view: Store, on_duplicate: OnDuplicate, request: Request, target: Target) -> Ingest:
        store_response.acceptable(request)  # 406 before the body is read, not after it is stored
        return Ingest(
            view,
            content_type=request.headers.get("content-type"),
            study=target.study,
            limits=limits,
            on_duplicate=on_duplicate,
            readers=readers,
        )

    retrieve, searches = Retrieve(store, pool), Searches(store.index, store.secret, search_limits(settings))
    feed = ChangeFeed(store)

    def restricted(rule: Rule | None, may_replace: bool) -> Actions:
        if may_replace or on_duplicate is not OnDuplicate.REPLACE:
            return within(rule)
        view = store if rule is None else store.restricted(rule)
        return replace(within(rule), ingest=partial(ingest, view, OnDuplicate.REFUSE))

    @lru_cache(maxsize=RULES)
    def within(rule: Rule | None) -> Actions:
        if rule is None:
            return of(store, retrieve, searches, feed)
        view = store.restricted(rule)
        searching = searches.restricted(view.index, rule)
        return of(view, retrieve.restricted(view), searching, feed.restricted(view))

    def of(view: Store, retrieve: Retrieve, searches: Searches, feed: ChangeFeed) -> Actions:
        return Actions(
            retrieve=retrieve.answer,
            search=searches.answer,
            delete=view.delete,
            ingest=partial(ingest, view, on_duplicate),
            stored=store_response.answer,
            cached_frames=retrieve.cached_frames,
            store_batch=partial(store_batch, store),
            restricted=restricted,
            exists=lambda *target: bool(view.lookup(*target, limit=1)),
            changes=feed.answer,
            probe=watched.probe,
            tails=TailSource(
                lambda: ChangeTail(view, store, settings.study_quiet),
                watched.version,
                lambda: epoch,
            ),
        )

    return within(None)


def ways_in(settings: Settings, board: KeyBoard) -> tuple[list[WayIn], Login | None]:
    """The ways to authenticate, beside keys, and the login at the issuer. PyJWT and cryptography take 23 MB,
    so they are loaded only if there is an issuer."""
    if not settings.oidc_issuer:
        return [], None
    tokens = import_module("streamsrv.web.access.issued_tokens").IssuedTokens(settings, board)
    login: Login | None = None
    if settings.oidc_client_id:
        login = import_module("streamsrv.web.access.login").Login(settings, tokens)
    return [tokens], login


def audit_of(store: Store, settings: Settings, stack: contextlib.ExitStack) -> AuditRecorder | None:
    """The audit trail, if there is one. `stack` closes it."""
    trail = audit_trail(settings)
    if trail is None:
        return None
    return stack.enter_context(closing(AuditRecorder(trail, patient_finder(store))))


def dimse_of(
    store: Store,
    settings: Settings,
    pool: PixelPool,
    listeners: Sequence[socket.socket],
    audit: AuditRecorder | None,
    counts: RequestCounts,
    certificate: ServerCertificate | None,
) -> Callable[[App], OtherProtocol] | None:
    """Makes the DIMSE service in the event loop, if there is a port for it. Threads, buffers and batches are
    those of HTTP, so that stores of both share a commit."""
    if not listeners:
        return None
    ingest, searches = dimse_ingest(store, settings), dimse_searches(store, settings)
    retrieve = dimse_retrieve(store, pool)

    def service(app: App) -> OtherProtocol:
        dialer = Dialer(settings, app.pool, certificate)
        rooms = DimseRooms(
            *(ingest, searches, retrieve, dialer, app.pool, BackgroundTasks()),
            batches=app.batches,
            buffers=app.buffers,
            audit=audit,
            commitments=CommitmentLog(None if settings.read_only else Path(settings.data)),
            on_failure=app.on_failure,
        )
        return DimseService(settings, listeners, rooms, counts, certificate if settings.dimse_tls else None)

    return service


def dimse_ingest(store: Store, settings: Settings) -> Callable[[Principal, tuple[str, str]], Ingest]:
    """The store transaction of a C-STORE. The same bytes again are a success, because peers repeat."""
    limits, readers = ingest_limits(settings), ReaderPool()
    replaces = OnDuplicate(settings.on_duplicate) is OnDuplicate.REPLACE

    @lru_cache(maxsize=RULES)
    def view(rule: Rule | None) -> Store:
        return store if rule is None else store.restricted(rule)

    def ingest(principal: Principal, named: tuple[str, str]) -> Ingest:
        may_replace = replaces and Right.REPLACE in principal.rights
        return Ingest(
            view(principal.rule),
            content_type=DICOM,
            limits=limits,
            on_duplicate=OnDuplicate.REPLACE if may_replace else OnDuplicate.ACCEPT_IDENTICAL,
            readers=readers,
            named=named,
        )

    return ingest


def dimse_searches(store: Store, settings: Settings) -> Callable[[Principal], Searches]:
    """The searches of a principal."""
    searches = Searches(store.index, store.secret, search_limits(settings))

    @lru_cache(maxsize=RULES)
    def within(rule: Rule | None) -> Searches:
        return searches if rule is None else searches.restricted(store.restricted(rule).index, rule)

    return lambda principal: within(principal.rule)


def dimse_retrieve(store: Store, pool: PixelPool) -> Callable[[Principal], Retrieve]:
    """The instances of a principal."""
    retrieve = Retrieve(store, pool)

    @lru_cache(maxsize=RULES)
    def within(rule: Rule | None) -> Retrieve:
        return retrieve if rule is None else retrieve.restricted(store.restricted(rule))

    return lambda principal: within(principal.rule)


def patient_finder(store: Store) -> Callable[[str], Patient]:
    """Finds the patient of a study."""
    read = reader_of(Level.STUDY, (tags.PATIENT_ID, tags.PATIENT_NAME))

    def find(study: str) -> Patient:
        for hit in store.index.search(query_of(Level.STUDY, study, None, ())):
            found = read(hit.study_row)
            return Patient(_text(found, tags.PATIENT_ID), _text(found, tags.PATIENT_NAME))
        return Patient()

    return find


def _text(dataset: JsonDataset, tag: str) -> str:
    """The first value; of a name the alphabetic group, else another one."""
    value = next(iter(dataset.get(tag, {}).get("Value", ())), "")
    return str(next(iter(value.values()), "") if isinstance(value, dict) else value)


def sign_of_life(descriptor: int) -> Callable[[], None]:
    """Returns a function that writes a byte to the supervisor."""
    os.set_blocking(descriptor, False)

    def write() -> None:
        with contextlib.suppress(BlockingIOError):  # the supervisor has been stopped for hours
            os.write(descriptor, b"b")

    return write


def log_crashes() -> None:
    """At a fatal signal, the process writes the stack of each thread to standard error: a page of the index
    that cannot be read causes SIGBUS. At DUMP it does the same and continues."""
    faulthandler.enable(sys.stderr)
    faulthandler.register(DUMP, sys.stderr)


def raise_descriptor_limit() -> None:
    """Each connection and each open segment needs a descriptor. The usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    listen, health, shared, status, counters, number, keys, certificate, dimse = json.loads(sys.argv[1])
    endpoints = [PoolEndpoints(tasks, requests, tuple(pages)) for tasks, requests, pages in shared]
    pools = (each for one in endpoints for each in one.descriptors)
    for descriptor in (*listen, *health, *keys, *certificate, *dimse, status, counters, *pools):
        os.set_inheritable(descriptor, False)
    protect()
    settings = config.receive(STDIN)
    start_log(settings)
    log_crashes()
    raise_descriptor_limit()
    listeners = [socket.socket(fileno=descriptor) for descriptor in listen]
    health_listeners = [socket.socket(fileno=descriptor) for descriptor in health]
    dimse_listeners = [socket.socket(fileno=descriptor) for descriptor in dimse]
    # The garbage collector does not visit these objects again: each full collection took 40 ms.
    gc.freeze()
    report, counts = sign_of_life(status), RequestCounts(MetricsBoard(counters).block(number))
    try:
        with (
            Store.open(Path(settings.data), store_options(settings), read_only=settings.read_only) as store,
            closing(pixel_pool(settings, *endpoints)) as pool,
            contextlib.ExitStack() as stack,
        ):
            counts.watch(Gauge.TASKS_QUEUED, lambda: pool.load[0])
            counts.watch(Gauge.TASKS_RUNNING, lambda: pool.load[1])
            audit = audit_of(store, settings, stack)
            ways, login = ways_in(settings, KeyBoard(*keys))
            watched: Store | WatchedStore = store
            if store.remote:
                watched = stack.enter_context(closing(WatchedStore(store.probe, store.version)))
            counts.watch(Gauge.AUDIT_WAITING, lambda: audit.waiting if audit else 0)
            shown = ServerCertificate(*certificate) if certificate else None
            run(
                settings,
                listeners,
                actions(store, settings, pool, watched),
                on_ready=report,
                on_beat=report,
                lifeline=STDIN,
                health_listeners=health_listeners,
                counts=counts,
                certificate=shown,
                ways=ways,
                login=login,
                audit=RequestAudit(audit) if audit else None,
                beside=dimse_of(store, settings, pool, dimse_listeners, audit, counts, shown),
            )
    except (StreamsrvError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One worker's service: the state that all requests of this process share, and the decision on each request.

Order of the checks, each before a byte of a body is read: preflight, sizes, Host, principal, target
resource, method, rights, Content-Encoding, limits, a slot for one more upload. A request that passes becomes
a Job or an Intake; another one gets a problem.

Rules of this file
- Nothing here knows DICOM: `actions` names the function for each kind of target resource.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from streamsrv.errors import (
    OUTSIDE,
    BadRequest,
    ContentTooLarge,
    Forbidden,
    IndexFailed,
    InstanceDamaged,
    LengthRequired,
    NotFound,
    ServerError,
    StreamsrvError,
    Unauthorized,
    system_error,
)
from streamsrv.ingest import SHORT_BODY
from streamsrv.metrics import RequestKind
from streamsrv.retrieve.cached_frames import Found
from streamsrv.settings import Settings
from streamsrv.web import describe, health
from streamsrv.web.access.access import Access, WayIn
from streamsrv.web.access.browser.sign_in import SignIn
from streamsrv.web.access.grants import grants_of
from streamsrv.web.access.principal import CHANGING, Right, named_rights, needed_rights
from streamsrv.web.access.shared_grants import REFRESH
from streamsrv.web.access_log import AccessLog
from streamsrv.web.actions import (
    CONDITIONS,
    FRESH,
    KINDS,
    Actions,
    check_preconditions,
    compute,
    require_study,
)
from streamsrv.web.auditing import RequestAudit
from streamsrv.web.connection.clients import Uploads, UploadSlot, Watch
from streamsrv.web.connection.loop import Threads
from streamsrv.web.connection.shares import ThreadShares
from streamsrv.web.connection.stream import Stream
from streamsrv.web.cors import Cors
from streamsrv.web.event_streams import EventStreams
from streamsrv.web.forms import Fields, ShortForm
from streamsrv.web.head import Head, acceptable, check_lists, check_target, check_url
from streamsrv.web.hosts import Caller, Hosts, party
from streamsrv.web.pages.page import Page
from streamsrv.web.pages.viewer import Viewer
from streamsrv.web.sending.fixed_headers import hsts, let_cache
from streamsrv.web.sending.response import AnswerWriter, Outgoing
from streamsrv.web.stow import Batches, Buffers, Upload, decoder_for
from streamsrv.wire.accept import parse_accept
from streamsrv.wire.answers import Answer, Computed, Deferred, Pending, Request, then
from streamsrv.wire.problems import problem_answer
from streamsrv.wire.resources import (
    VERSIONS,
    Kind,
    Route,
    Target,
    base_url,
    no_version,
    parse_query,
    target_of,
)

if TYPE_CHECKING:
    from streamsrv.web.access.browser.issuer import IssuerSignIn
    from streamsrv.web.access.login import Login

log = logging.getLogger("streamsrv.web")

API_VERSIONS = "1, 2"
# Threads for everything that blocks: commits, syncs, cold reads, searches. They wait more than they work.
THREADS = 64
# Calls of a client that may wait for each of its threads.
WAITING_A_THREAD = 16
ASKING = CONDITIONS | {"expect"}
# Sessions and share links: their bodies are short forms, of which so many may arrive at once.
FORMS = frozenset((Kind.SESSION, Kind.SHARES, Kind.SHARE))
MOST_FORMS = 256
CHANGES = frozenset(("POST", "DELETE"))
HEALTH = frozenset((Kind.LIVE, Kind.READY))


def _nothing() -> None:
    pass


class Job(NamedTuple):
    """`compute` does not block. `left` is called if the client leaves while a thread computes. `kind` is None
    for rare requests, whose kind is found when they are counted. `client` has a share of the threads."""

    compute: Callable[[], Computed]
    left: Callable[[], None] = _nothing
    kind: RequestKind | None = None
    client: str = ""


class Intake(NamedTuple):
    """`answer` gets the result of the upload."""

    upload: Upload | ShortForm
    answer: Callable[[Any], Answer]
    slot: UploadSlot


class App:
    """Must be made inside the running loop. `store_open` is cleared before the store is closed. Any thread
    calls `on_failure` when a request finds that this process cannot use the index any more. `port` is that of
    the listening sockets. `ways` authenticate requests, beside keys. `audit` is None if there is no audit
    trail."""

    def __init__(
        self,
        settings: Settings,
        actions: Actions,
        access_log: AccessLog,
        on_failure: Callable[[IndexFailed], None] = lambda error: None,
        port: int = 0,
        ways: Sequence[WayIn] = (),
        audit: RequestAudit | None = None,
        login: Login | None = None,
    ) -> None:
        self.settings = settings
        self.audit = audit
        self.access_log = access_log
        self.pool = Threads(THREADS, "streamsrv")
        share = settings.client_threads
        self.threads = ThreadShares(self.pool, share, share * WAITING_A_THREAD)
        self.watch = Watch(
            settings.idle_timeout, settings.stall_timeout, settings.min_rate, settings.head_timeout
        )
        self.buffers = Buffers()
        self.batches = Batches(actions.store_batch)
        self.writer = AnswerWriter(self.pool, self.watch)
        # Called with a connection and the principal that it counts for from now on.
        self.own: Callable[[Stream, str], None] = lambda stream, party: None
        self.draining = False
        self.store_open = True
        self.on_failure = on_failure
        self._actions = actions
        self._hosts = Hosts(settings, port)
        self._cors = Cors(settings)
        grants = grants_of(settings)
        self.access = Access(settings, ways, grants=grants)
        self._sign_in = SignIn(settings, began=audit.signed_in if audit else None, grants=grants)
        self._issuer = self._issuer_of(login)
        self._streams = EventStreams(self.pool)
        self._viewer = Viewer(settings)
        self._page = Page(self._viewer.installed) if settings.browser else None
        loop = asyncio.get_running_loop()
        clock = loop.time
        self._refreshing = loop.call_later(REFRESH, self._refresh)
        self._uploads = Uploads(settings.max_uploads, settings.slow_upload_rate, clock)
        self._forms = Uploads(MOST_FORMS, 0, clock)
        self.watch.on_sweep = self._uploads.sweep
        self._active: set[object] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._caching = partial(let_cache, settings.cache_max_age)
        self._fixed_headers = (
            ("Server", "streamsrv"),
            ("api-supported-versions", API_VERSIONS),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "same-origin"),
            *((("Vary", "Authorization, Cookie"),) if self.access.needed else ()),
            *hsts(settings),
        )

    def _issuer_of(self, login: Login | None) -> IssuerSignIn | None:
        """Its module loads cryptography, so only a worker with an issuer imports it."""
        if login is None:
            return None
        issuer: IssuerSignIn = import_module("streamsrv.web.access.browser.issuer").IssuerSignIn(
            login,
            self._sign_in.grants,
            self._sign_in.sessions,
            self.pool,
            self.access.grant_changed,
            self._sign_in.began,
        )
        self.access.renew_with(issuer)
        return issuer

    def _refresh(self) -> None:
        self._refreshing = asyncio.get_running_loop().call_later(REFRESH, self._refresh)
        try:
            self.access.refresh()
        except Exception:
            log.exception("the grants cannot be read")
        if self.audit is not None:
            self.audit.refresh()

    # Called by connections

    def party(self, peer: str) -> str:
        """The client that a connection counts for; empty for a proxy, which has many."""
        return "" if self._hosts.trusted(peer) else party(peer)

    def on_close(self, server_conn: object) -> None:
        self.watch.head_arrived(server_conn)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def active(self) -> int:
        """Requests in progress."""
        return len(self._active)

    @property
    def uploads(self) -> int:
        return len(self._uploads)

    def begun(self, exchange: object) -> None:
        self._active.add(exchange)
        self._idle.clear()

    def ended(self, exchange: object, slot: UploadSlot | None) -> None:
        self._active.discard(exchange)
        if slot is not None:
            self._uploads.free(slot)
            self._forms.free(slot)
        if not self._active:
            self._idle.set()

    def outgoing(self, answer: Answer, head: Head, *, keep_alive: bool = True) -> Outgoing:
        """`keep_alive` is False if the connection has to end in any case."""
        extra = (
            *self._fixed_headers,
            ("Content-Security-Policy", answer.policy),
            ("X-Request-ID", head.request_id),
            *self._cors.headers(head.headers),
        )
        return Outgoing(
            answer,
            extra,
            method=head.method,
            version=head.version,
            keep_alive=keep_alive and not self.draining and head.keep_alive,
            date=self.writer.date.text(),
        )

    def cached_frames(self, head: Head, caller: Caller) -> Found:
        """The instance of a frame that was answered."""
        target = target_of(head.path)
        return self._actions_for(caller).cached_frames(self._request(head, caller, target), target)

    def rendered(self, answer: Answer, head: Head) -> Outgoing:
        """The head of an answer that is cached."""
        return self.outgoing(self._caching(answer), head)

    def problem(self, error: Exception, head: Head) -> Answer:
        """The answer to an error. An error of the server is logged."""
        known = error
        if isinstance(error, OSError) and error.errno in OUTSIDE:
            known = system_error(error, "answering the request")
        if not isinstance(known, StreamsrvError):
            log.error("[%s] unexpected", head.request_id, exc_info=error)
            known = ServerError("the server failed; its log knows more")
        elif known.status >= 500:
            level = logging.ERROR if isinstance(known, InstanceDamaged) else logging.WARNING
            log.log(level, "[%s] %s: %s", head.request_id, type(error).__name__, known.detail)
        elif isinstance(known, Unauthorized):
            log.info("[%s] not authenticated: %s", head.request_id, known.reason)
        if isinstance(known, IndexFailed):
            self.on_failure(known)
        return problem_answer(known, acceptable(head), head.request_id)

    # Admission

    def origin(self, head: Head) -> Caller:
        """The caller without its principal. Raises the error that refuses the request."""
        if self._cors.preflight(head.method, head.headers) is not None:
            return Caller("", head.peer, "")
        check_url(head, self.settings.max_url)
        check_lists(head)
        check_target(head)
        if not head.host and head.version == "HTTP/1.1":
            raise BadRequest("an HTTP/1.1 request has a Host header")
        return self._hosts.caller(head.headers, head.host or "localhost", head.peer)

    def caller(self, head: Head, origin: Caller) -> Caller:
        """The origin with its principal. Raises the error that refuses the request."""
        if self._cors.preflight(head.method, head.headers) is not None:
            return origin
        return self.access.admit(head, origin)

    def admit(self, head: Head, caller: Caller, length: int) -> Job | Intake:
        """Raises the error that refuses the request. `length` is that of the body."""
        preflight = self._cors.preflight(head.method, head.headers)
        if preflight is not None:
            return Job(lambda: preflight)
        if head.path == "*":
            return self._capabilities(head, base_url(caller.base, 2), None)
        target = self._target(head, caller)
        if head.method in CHANGES:
            self._cors.check_change(head.headers)
        if head.method == "POST" and target.kind in FORMS:
            return self._form(head, caller, target)
        if head.method == "POST":
            return self._intake(head, caller, target, length)
        return self._job(head, caller, target)

    def admit_known(self, head: Head, caller: Caller) -> Job:
        """As `admit`, for a GET whose header block was admitted before, with this result. The caller holds
        (`Access.holds`)."""
        check_url(head, self.settings.max_url)
        return self._job(head, caller, self._target(head, caller))

    def _target(self, head: Head, caller: Caller) -> Target:
        """Raises MethodNotAllowed, and Forbidden if the principal has not the rights that it needs."""
        target = target_of(head.path)
        target.check_method(head.method)
        needed = needed_rights(head.method, target.kind)
        lacking = needed.value & ~caller.principal.rights.value
        if lacking:
            self._forbid(Right(lacking))
        return target

    def _forbid(self, lacking: Right) -> NoReturn:
        if self.settings.read_only and lacking & CHANGING:
            raise Forbidden("this server is read-only")
        raise Forbidden(f"this needs the right {' and '.join(named_rights(lacking))}")

    def _actions_for(self, caller: Caller, method: str = "GET") -> Actions:
        """The actions within the rule of the principal."""
        principal = caller.principal
        may_replace = method != "POST" or Right.REPLACE in principal.rights
        if principal.rule is None and may_replace:
            return self._actions
        return self._actions.restricted(principal.rule, may_replace)

    def _request(self, head: Head, caller: Caller, target: Target) -> Request:
        base = base_url(caller.base, target.version or VERSIONS[-1])
        return head.request(base, parse_query(head.query), target.version, caller.party)

    def _job(self, head: Head, caller: Caller, target: Target) -> Job:
        if head.method == "OPTIONS":
            return self._capabilities(head, base_url(caller.base, target.version), target.route)
        kind = target.kind
        if kind in HEALTH:
            return Job(health.live if kind is Kind.LIVE else self.ready)
        request = self._request(head, caller, target)
        if kind in describe.KINDS:
            return Job(lambda: describe.answer(request, target.route))
        if kind in FORMS:
            session = self.access.session(head, caller)
            there = self._issuer.logout_url(session, caller) if self._issuer is not None else None
            everyones = partial(self._manages, caller, target)
            return Job(lambda: Deferred(lambda: self._sign_in.answer(head, caller, target, there, everyones)))
        if kind is Kind.ISSUER:
            return Job(partial(self._at_issuer, head, caller, target, request))
        if kind is Kind.PAGE:
            if self._page is None:
                raise no_version()
            return Job(partial(self._page.answer, request, target, self.access.visitor(head, caller)))
        if kind is Kind.VIEWER:
            return Job(lambda: self._viewer.answer(request, target, caller.principal))
        counted = KINDS[kind] if head.method == "GET" else None
        actions = self._actions_for(caller)
        if kind is Kind.EVENTS:
            began = partial(self.audit.ended, caller, head, 200) if self.audit is not None else _nothing
            still, rule = self.access.still(head, caller), caller.principal.rule
            follow = partial(self._streams.answer, request, rule, actions.tails, still, began)
            return Job(follow, client=caller.party)
        recorded = partial(self._record_delete, caller, head, target, actions)
        may_read = Right.READ in caller.principal.rights
        make = partial(compute, actions, request, target, recorded, may_read)
        return Job(lambda: self._compute(kind, make), request.requester.leave, counted, caller.party)

    def _at_issuer(self, head: Head, caller: Caller, target: Target, request: Request) -> Computed:
        fields = dict(request.query)
        if self._issuer is None or target.file not in ("login", "callback"):
            raise NotFound("this server has no sign-in at an issuer")
        if head.method == "HEAD":  # a code counts once
            return Answer(200)
        if target.file == "login":
            return self._issuer.begin(caller, fields)
        finished = self._issuer.finish(head, caller, fields)
        future = asyncio.run_coroutine_threadsafe(finished, asyncio.get_running_loop())
        return Pending(future, lambda answer: answer, lambda: None)

    def ready(self) -> Answer:
        return health.ready(self._actions.probe, draining=self.draining, store_open=self.store_open)

    def _capabilities(self, head: Head, base: str, route: Route | None) -> Job:
        ranges = parse_accept(head.headers.get("accept"))
        return Job(lambda: describe.capabilities(base, route, ranges))

    def _record_delete(self, caller: Caller, head: Head, target: Target, actions: Actions) -> None:
        if self.audit is not None:
            self.audit.deleting(caller, head, target, actions.exists)

    def _compute(self, kind: Kind, make: Callable[[], Computed]) -> Computed:
        answer = make()
        return answer if kind in FRESH else then(answer, self._caching)

    def _form(self, head: Head, caller: Caller, target: Target) -> Intake:
        answer = self._sign_in.form(head, caller, target)

        def checked(fields: Fields) -> Answer:
            if target.study is not None:
                require_study(self._actions_for(caller), target.study)
            return answer(fields)

        content_type, refused = head.headers.get("content-type", ""), self.access.failed_logins.count
        form = ShortForm(self.pool, content_type, checked, partial(refused, party(caller.client)))
        return Intake(form, lambda answer: answer, self._forms.take(caller.party))

    def _manages(self, caller: Caller, target: Target) -> bool:
        """Whether the principal sees the links of others to this study. Blocks."""
        if Right.ADMIN not in caller.principal.rights or target.study is None:
            return False
        return caller.principal.rule is None or self._actions_for(caller).exists(target.study, None, None)

    def _intake(self, head: Head, caller: Caller, target: Target, length: int) -> Intake:
        request, actions = self._request(head, caller, target), self._actions_for(caller, "POST")
        if not length and "content-length" not in request.headers:
            raise LengthRequired("a store request needs a Content-Length or a chunked body")
        if self.audit is not None:
            self.audit.require()
        limit = self.settings.max_body
        if limit and length > limit:
            raise ContentTooLarge(f"the body has {length} bytes; this server accepts {limit}")
        upload = self._upload(actions, request, target, length)
        slot = self._uploads.take(request.requester.address)
        return Intake(upload, lambda result: actions.stored(result, request), slot)

    def _upload(self, actions: Actions, request: Request, target: Target, length: int) -> Upload:
        settings, coding = self.settings, request.headers.get("content-encoding", "")
        decoder = decoder_for(coding, settings.max_inflated_body, settings.max_inflation)
        ingest = actions.ingest(request, target)
        # A client that waits for 100 Continue, or has conditions, asks for more than the head tells.
        asks = not ASKING.isdisjoint(request.headers)
        alone = length > SHORT_BODY or asks or not ingest.fits_batch
        short = length > 0 and not alone and decoder is None
        return Upload(
            self.pool,
            ingest,
            decoder,
            settings.max_body,
            check=partial(check_preconditions, actions, request, target),
            batches=self.batches if short else None,
        )

    # The end

    async def drain(self, timeout: float) -> bool:
        """Answers the requests that have begun, and closes connections that wait for one. False if some were
        cut off. No connection may be accepted any more."""
        self.draining = True
        self._streams.end()
        await asyncio.sleep(0)  # heads that have arrived are read first
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            for close in self.watch.waiting():
                close()
            left = deadline - asyncio.get_running_loop().time()
            if not self._active or left <= 0:
                break
            try:
                await asyncio.wait_for(self._idle.wait(), left)
            except TimeoutError:
                break
        return not self._active

    def stop(self) -> None:
        self._refreshing.cancel()
        self.watch.stop()
        self.access_log.flush()
        self.batches.close()
        self.pool.shutdown(wait=True)
        self.access.close()
        self._sign_in.grants.documents.close()
        if self._issuer is not None:
            self._issuer.close()

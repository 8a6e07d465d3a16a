"""The requests of one worker as entries of the audit trail (streamsrv/audit).

    login, no right, too many requests    one entry when the answer has ended
    search, retrieve                      one entry when the answer has ended; a cached frame has a Mark
    store                                 entries are on the disk before the answer is sent
    delete                                an entry is on the disk before anything is deleted

Resources without data of patients make no entry, unless they are refused. A client without a principal has
few entries a minute: it chooses paths and methods, and could fill the disk.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from streamsrv.audit.entries import MINUTE, AuditEntry, Event, EventOutcome
from streamsrv.audit.recorder import AuditRecorder
from streamsrv.errors import Overloaded, RequestError, ServerError
from streamsrv.ingest.response import StoreResult
from streamsrv.web.access.principal import UNKNOWN
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.actions import Exists
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller, party
from streamsrv.wire.resources import Kind, Target, parse_query, target_of

# The event of a GET.
EVENTS = {
    Kind.SEARCH: Event.QUERY,
    Kind.CHANGEFEED: Event.QUERY,
    Kind.LATEST: Event.QUERY,
    Kind.EVENTS: Event.QUERY,
    Kind.INSTANCES: Event.SENT,
    Kind.METADATA: Event.ACCESSED,
    Kind.FRAMES: Event.ACCESSED,
    Kind.RENDERED: Event.ACCESSED,
    Kind.THUMBNAIL: Event.ACCESSED,
    Kind.BULKDATA: Event.ACCESSED,
    Kind.PIXELDATA: Event.ACCESSED,
    Kind.WADO_URI: Event.ACCESSED,
}
# The event of a POST or DELETE, with or without a series.
CHANGES = {
    ("POST", True): Event.STORED,
    ("DELETE", True): Event.STUDY_DELETED,
    ("DELETE", False): Event.DELETED,
}
CHANGING = frozenset(("POST", "DELETE"))
SHARING = frozenset((Kind.SHARES, Kind.SHARE))
UNRECORDED = "the audit trail cannot be written, so this store is not acknowledged: send it again"
UNJUDGED = 503  # of a client without a principal: the server has no keys of the issuer
REFUSALS = {401: Event.LOGIN, 403: Event.REFUSED, 429: Event.BURST}


class Mark:
    """The entry of equal requests: call `note` unless `is_noted`, which `RequestAudit.refresh` clears."""

    __slots__ = ("_note", "is_noted")

    def __init__(self, note: Callable[[Mark], None]) -> None:
        self.is_noted = False
        self._note = note

    def note(self) -> None:
        self.is_noted = True
        self._note(self)


MOST_READS = 10_000
# Refused requests of an address without a principal in a minute of a worker that name their studies, and such
# addresses.
MOST_REFUSED, MOST_STRANGERS = 20, 10_000


class RequestAudit:
    def __init__(self, audit: AuditRecorder) -> None:
        self._audit = audit
        self._minute = 0
        self._marks: list[Mark] = []  # noted in this minute
        self._reads: set[tuple[str, ...]] = set()  # that were noted in this minute
        self._reads_minute = 0
        self._strangers = Counter[str]()  # their refused requests of this minute
        self._strangers_minute = 0
        self.require = audit.require

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return self._audit.waiting

    def ended(self, caller: Caller, head: Head, status: int) -> None:
        """The answer has ended."""
        try:
            target = target_of(head.path) if head.method != "OPTIONS" else None
        except RequestError:
            target = None
        event = REFUSALS.get(status) or (event_of(head, target, status) if target else None)
        if event is not None and caller.principal is UNKNOWN and status == UNJUDGED:
            event = Event.LOGIN
        if event is None or (status < 400 and self._is_repeated(caller, head, target, event)):
            return
        outcome = EventOutcome.SUCCESS
        if status >= 500:
            outcome = EventOutcome.SERIOUS_FAILURE
        elif 400 <= status < CLIENT_GONE:
            outcome = EventOutcome.MINOR_FAILURE
        changed = f"{head.method} {target.kind}" if target and event is Event.RIGHTS_CHANGED else ""
        detail = f"{head.method} got {status}" if outcome else changed
        refused = status in REFUSALS or status == UNJUDGED
        if refused and caller.principal is UNKNOWN and self._is_flood(caller):
            target, detail = None, f"more than {MOST_REFUSED} requests in a minute"
        self._audit.note(self._entry(caller, head, target, event, outcome, detail))

    def _is_flood(self, caller: Caller) -> bool:
        minute = int(self._audit.clock()) // MINUTE
        if minute != self._strangers_minute:
            self._strangers, self._strangers_minute = Counter(), minute
        client = party(caller.client)
        if client not in self._strangers and len(self._strangers) >= MOST_STRANGERS:
            return True
        self._strangers[client] += 1
        return self._strangers[client] > MOST_REFUSED

    def _is_repeated(self, caller: Caller, head: Head, target: Target | None, event: Event) -> bool:
        """Whether a read was noted in this minute: without the entry, whose making takes 10 us."""
        if head.method not in ("GET", "HEAD"):
            return False
        minute = int(self._audit.clock()) // MINUTE
        if minute != self._reads_minute or len(self._reads) > MOST_READS:
            self._reads, self._reads_minute = set(), minute
        within = target.study if target and event is not Event.QUERY else None
        place = (within,) if within else (head.path, head.query)
        read = (caller.party, caller.client, event, *place)
        if read in self._reads:
            return True
        self._reads.add(read)
        return False

    def signed_in(self, caller: Caller, head: Head, user: str) -> None:
        """A session of a browser begins. Any thread may call it."""
        entry = self._entry(caller, head, None, Event.LOGIN)
        self._audit.note(entry._replace(user=user))

    def mark(self, caller: Caller, head: Head) -> Mark:
        """For a frame that is answered from a cache."""
        return Mark(partial(self._marked, caller, head))

    def _marked(self, caller: Caller, head: Head, mark: Mark) -> None:
        self._marks.append(mark)
        self.ended(caller, head, 200)

    def refresh(self) -> None:
        """Call it every half a second: a new minute has new entries."""
        minute = int(self._audit.clock()) // MINUTE
        if minute != self._minute:
            self._minute = minute
            for mark in self._marks:
                mark.is_noted = False
            self._marks.clear()

    async def stored(self, caller: Caller, head: Head, result: StoreResult) -> None:
        """Returns when the entries are on the disk. Raises Overloaded: the instances are stored."""
        studies = dict.fromkeys(item.study for item in result.stored)
        future = self._audit.record([self._stored(caller, head, study) for study in studies])
        if future is not None:
            try:
                await asyncio.wrap_future(future)
            except ServerError as error:
                raise Overloaded(UNRECORDED, retry_after=5) from error

    def deleting(self, caller: Caller, head: Head, target: Target, exists: Exists) -> None:
        """Blocks until the entry is on the disk. There is none if the principal sees nothing to delete.
        Raises InsufficientStorage and Overloaded."""
        self._audit.require()
        if target.study and exists(target.study, target.series, target.instance):
            event = CHANGES["DELETE", target.series is None]
            future = self._audit.record([self._entry(caller, head, target, event)])
            if future is not None:
                future.result()

    def _stored(self, caller: Caller, head: Head, study: str) -> AuditEntry:
        return self._entry(caller, head, None, Event.STORED)._replace(study=study)

    def _entry(
        self,
        caller: Caller,
        head: Head,
        target: Target | None,
        event: Event,
        outcome: EventOutcome = EventOutcome.SUCCESS,
        detail: str = "",
    ) -> AuditEntry:
        deleted = event in (Event.DELETED, Event.STUDY_DELETED)
        is_query = event is Event.QUERY
        return AuditEntry(
            at=self._audit.clock(),
            event=event,
            outcome=outcome,
            user=caller.principal.name,
            client=caller.client,
            study=_study_of(head, target) if target else "",
            series=(target.series or "") if target and deleted else "",
            instance=(target.instance or "") if target and deleted else "",
            query=f"{head.path}?{head.query}".removesuffix("?") if is_query else "",
            request=head.request_id,
            detail=detail,
        )


def event_of(head: Head, target: Target, status: int) -> Event | None:
    """The event of a request whose answer has ended; None if it makes no entry now."""
    kind, succeeded = target.kind, status < 400
    if kind is Kind.SESSION:
        if head.method == "DELETE":
            return Event.LOGOUT
        return None if succeeded else Event.LOGIN
    if kind in SHARING:
        return Event.RIGHTS_CHANGED if head.method in CHANGING else None
    if head.method in CHANGING:  # a success was recorded before the answer
        return None if succeeded else CHANGES.get((head.method, target.series is None))
    if kind is Kind.WADO_URI and "application/dicom" in _values(head, "contentType"):
        return Event.SENT
    return EVENTS.get(kind)


def _study_of(head: Head, target: Target) -> str:
    if target.kind is Kind.WADO_URI:
        return next(iter(_values(head, "studyUID")), "")[:64]
    return target.study or ""


def _values(head: Head, name: str) -> Iterable[str]:
    try:
        return [value for each, value in parse_query(head.query) if each == name]
    except RequestError:
        return []

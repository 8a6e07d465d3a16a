"""The change feed: `/changefeed` and `/changefeed/latest`, as another DICOMweb server has them.

Strategy: the store keeps its changes in commit order, with times that never decrease. So a window of time is
a range of sequences. An answer is a literal while its metadata is short, else it is made while it is sent.

Rules
- Changes of studies that the client may not see are left out; `limit` counts the others.
- The oldest changes may be gone (`keep_changes`). A client that names a place among them gets 410, because it
  would miss some. One that names none begins at the oldest change, with a warning.
- The state is that of now. Instances of one answer are looked up together.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import orjson

from streamsrv.errors import ChangesGone, Forbidden, Overloaded, SegmentGone, StoreCorrupt
from streamsrv.events.changes import ChangedInstances, members_of, time_text
from streamsrv.events.parameters import FeedParameters, feed_parameters
from streamsrv.store import Change, InstanceRow, Store
from streamsrv.wire.accept import Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, ByteStream, Deferred, Literal, Request
from streamsrv.wire.codings import IDENTITY, check_charset, encoded
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.mediatypes import DICOM_JSON, JSON
from streamsrv.wire.resources import Kind, Target, instance_url

# Bytes of metadata in an answer that is made at once.
AT_ONCE = 1 << 20
# Changes that are skipped at a time.
PAGE = 1_000
ATTEMPTS = 3
OFFERS = (Offer(JSON), Offer(DICOM_JSON))
_HEADERS = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))


class ChangeFeed:
    """The feed of one store, or of a view of it. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def restricted(self, view: Store) -> ChangeFeed:
        """The feed of a view of the store."""
        feed = copy.copy(self)
        feed._store = view
        return feed

    def answer(self, request: Request, target: Target, may_read: bool) -> Deferred:
        """`may_read` is whether the client may have metadata. Raises RequestError."""
        check_charset(request)
        accepted = tuple(value for name, value in request.query if name == "accept")
        offer = choose_json(parse_accept(request.headers.get("accept"), accepted), OFFERS)
        latest = target.kind is Kind.LATEST
        parameters = feed_parameters(request.query, target.version, latest=latest)
        if parameters.metadata and not may_read:
            raise Forbidden("this needs the right read: ask with includeMetadata=false")
        parameters.metadata = may_read and parameters.metadata is not False
        find = self._latest if latest else self._page
        return Deferred(lambda: find(request, target, parameters, offer.media_type))

    # Finding changes

    def _latest(self, request: Request, target: Target, parameters: FeedParameters, kind: str) -> Answer:
        change = self._store.latest_change()
        if change is None:
            return Answer(204, _headers(parameters))
        return self._made(request, [change], parameters, kind, single=True)

    def _page(self, request: Request, target: Target, parameters: FeedParameters, kind: str) -> Answer:
        changes = self._by_offset(parameters) if target.version == 1 else self._by_time(parameters)
        return self._made(request, changes, parameters, kind, single=False)

    def _by_offset(self, parameters: FeedParameters) -> list[Change]:
        found = self._store.changes(parameters.offset, parameters.limit)
        first = self._store.first_change()
        if 0 < parameters.offset < first - 1:
            raise self._gone(first)
        self._warn(parameters, first if not parameters.offset else 1)
        return found

    def _by_time(self, parameters: FeedParameters) -> list[Change]:
        after = self._store.changes_before(parameters.start) if parameters.start else 0
        skipped = parameters.offset
        if self._store.rule is None:  # sequences have no gaps
            after = max(after, self._store.first_change() - 1) + skipped
            skipped = 0
        behind = self._behind(after, parameters.end, min(PAGE, skipped + parameters.limit))
        found = list(islice(behind, skipped, skipped + parameters.limit))
        first = self._store.first_change()
        if parameters.start and first > 1 and self._store.changes_before(parameters.start) < first:
            raise self._gone(first)
        self._warn(parameters, first if not parameters.start else 1)
        return found

    def _behind(self, after: int, end: int | None, page_size: int) -> Iterator[Change]:
        while page := self._store.changes(after, page_size):
            for change in page:
                if end is not None and change.at >= end:
                    return
                yield change
            after = page[-1].sequence

    def _gone(self, first: int) -> ChangesGone:
        since = "".join(f", at {time_text(change.at)}" for change in self._store.changes(first - 1, 1))
        return ChangesGone(
            f"the changes before {first} are gone: search, and go on behind {first - 1}{since}"
        )

    def _warn(self, parameters: FeedParameters, first: int) -> None:
        if first > 1:
            parameters.warnings.append(f"the changes before {first} are gone")

    # The answer

    def _made(
        self,
        request: Request,
        changes: Sequence[Change],
        parameters: FeedParameters,
        kind: str,
        *,
        single: bool,
    ) -> Answer:
        """Made again if an instance of it has gone meanwhile."""
        for _ in range(ATTEMPTS):
            instances = ChangedInstances(self._store, changes)
            rows = [instances.row(change) if parameters.metadata else None for change in changes]
            members = [members_of(change, instances.state(change)) for change in changes]
            entries = (
                self._entry(request.base_url, each, row) for each, row in zip(members, rows, strict=True)
            )
            pieces = _flat(entries) if single else _array(entries)
            headers = [("Content-Type", kind), *_headers(parameters)]
            if sum(row.metadata_length for row in rows if row is not None) > AT_ONCE:
                return Answer(200, headers, (ByteStream(partial(_whole, pieces), None),), None)
            try:
                body = b"".join(pieces)
            except SegmentGone:
                continue
            etag = etag_of([hashlib.blake2b(body, digest_size=16).digest()], kind)
            return evaluate(request, Answer(200, headers, (Literal(body),), len(body)), etag)
        raise Overloaded("the instances of these changes are changing: try again")

    def _entry(self, base_url: str, members: dict[str, Any], row: InstanceRow | None) -> Iterator[bytes]:
        text = orjson.dumps(members)
        if row is None:
            yield text
            return
        yield text[:-1] + b',"metadata":'
        url, length = instance_url(base_url, *row.key).encode(), 0
        for chunk in self._store.metadata([row]):
            length += len(chunk)
            yield chunk.replace(b"\0", url)
        if length != row.metadata_length:
            raise StoreCorrupt(
                f"the metadata of an instance is not the {row.metadata_length} bytes of its row"
            )
        yield b"}"


def _headers(parameters: FeedParameters) -> list[tuple[str, str]]:
    return [*_HEADERS, *(("Warning", f'299 streamsrv "{text}"') for text in parameters.warnings)]


def _whole(pieces: Iterator[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    return encoded(pieces, IDENTITY)


def _flat(entries: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    for entry in entries:
        yield from entry


def _array(entries: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    before = b"["
    for entry in entries:
        yield before
        yield from entry
        before = b","
    yield b"]" if before == b"," else b"[]"

"""From a search request to its answer.

Strategy: the parameters become a query (`store.query_conditions`), the index walks to what matches
(`store.index_search`), and each match is already DICOM JSON there. All matches are found before the status is
decided. Up to KEPT of them are kept and answered as one literal, with an ETag; more are found once more while
the answer is being sent, so memory does not grow with the limit but for a number a match. What was one
literal is kept until the next commit (`pages`).

A search that looks at a few rows is answered in the loop, because a turn through a thread takes as long as
it does. It is given a Brief instead of a Budget, and what is more than that says WouldBlock.

Rules
- What is sent is what was found first: of the second walk only the matches of the first one count, so that
  a page never reaches beyond the cursor in its Link header, or stops before it.
- dicom+xml is a multipart answer with a Native DICOM Model a match (PS3.18 10.6.3).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import itertools
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol
from urllib.parse import quote

import orjson

from streamsrv.dicom.xml.writer import native_xml
from streamsrv.errors import BadRequest, WouldBlock
from streamsrv.query.attributes import Level
from streamsrv.query.budget import BRIEF_ROWS, BriefBudget, Budget
from streamsrv.query.conditions import Query, query_of
from streamsrv.search.attributes import Attributes
from streamsrv.search.order import Order, order_of
from streamsrv.search.pages import Pages
from streamsrv.search.parameters import Parameters, SearchLimits, parameters_of
from streamsrv.search.pointed import pointed
from streamsrv.store import Hit, Index
from streamsrv.wire.accept import LONGEST_REMEMBERED, METADATA_OFFERS, Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, Literal, Request, Stream
from streamsrv.wire.codings import choose_coding
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.mediatypes import DICOM_XML
from streamsrv.wire.multipart import boundary_from, closing, multipart_type, part_head
from streamsrv.wire.resources import Target

KEPT = 500  # matches in memory: about 1 MB
PAGE = 100  # matches made into text at once while streaming
# Matches that an order other than the index's must hold before the first one that is sent.
FARTHEST_SORTED = 10_000
# In the loop: bytes of a query string, whose patterns have to be made; of a body that is going to be
# compressed; and what making a dataset costs, in rows read.
LONGEST_QUERY = 512
LONGEST_CODED = 16 << 10
JOINED, MODEL = 2, 16
_HEADERS = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))


class Indexed(Protocol):
    """What is needed of a store. With `secret` nobody can guess a boundary."""

    @property
    def index(self) -> Index: ...

    @property
    def secret(self) -> bytes: ...


def answer(
    store: Indexed,
    request: Request,
    target: Target,
    limits: SearchLimits | None = None,
    *,
    brief: bool = False,
) -> Answer:
    """Raises RequestError; `brief`, for the loop: WouldBlock where it would take more than about half a
    millisecond."""
    limits = limits or SearchLimits()
    if not brief:
        return _conditional(request, _long(store, request, target, limits))
    found = _short(store, request, target, limits)
    if found is None:
        raise WouldBlock("this search looks at more than a few rows")
    return _conditional(request, found)


@dataclasses.dataclass(frozen=True, slots=True)
class _Page:
    """An answer before the conditions of its request are evaluated."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    etag: str = ""


# The pages of each open index.
_pages: weakref.WeakKeyDictionary[Index, Pages[_Page]] = weakref.WeakKeyDictionary()


def _short(store: Indexed, request: Request, target: Target, limits: SearchLimits) -> _Page | Answer | None:
    """Returns None if the search is too long for the event loop."""
    long_query = sum(len(name) + len(value) for name, value in request.query) > LONGEST_QUERY
    budget = None if long_query else BriefBudget(min(BRIEF_ROWS, limits.rows))
    found = _kept(store, request, target, limits, budget)
    coded = choose_coding(request.headers.get("accept-encoding"))
    return None if isinstance(found, _Page) and len(found.body) > LONGEST_CODED and coded else found


def _long(store: Indexed, request: Request, target: Target, limits: SearchLimits) -> _Page | Answer:
    found = _kept(store, request, target, limits, Budget(limits.rows, limits.metadata))
    assert found is not None  # a Budget raises
    return found


def _kept(
    store: Indexed, request: Request, target: Target, limits: SearchLimits, budget: Budget | None
) -> _Page | Answer | None:
    """Returns None if the budget is spent, or if there is none and the page is not in the cache."""
    index = store.index
    version, pages = index.moment(), _pages.get(index) or _pages.setdefault(index, Pages())
    key = (request.path, request.query, request.headers.get("accept"), request.base_url, limits)
    found: _Page | Answer | None = pages.get(version, key)
    if found is None and budget is not None:
        found = _made(store, request, target, limits, budget)
        if isinstance(found, _Page):
            pages.put(version, key, found, len(found.body))
    return found


def _conditional(request: Request, found: _Page | Answer) -> Answer:
    if isinstance(found, Answer):
        return found
    built = Answer(found.status, list(found.headers), (Literal(found.body),), len(found.body))
    return evaluate(request, built, found.etag) if found.etag else Answer(found.status, built.headers)


def _made(
    store: Indexed, request: Request, target: Target, limits: SearchLimits, budget: Budget
) -> _Page | Answer | None:
    """Returns None if the budget is spent."""
    offer = _offer(request)
    texts = None if offer.media_type == DICOM_XML else pointed(store.index, request, target, limits)
    if texts is not None:
        headers = [*_HEADERS, ("X-Total-Count", str(len(texts)))]
        return _at_once(store.secret, texts, offer.media_type, headers) if texts else _Page(204, headers)
    parameters = parameters_of(request.query, limits)
    level = Level[target.level.name]
    query = query_of(level, target.study, target.series, parameters.matching, fuzzy=parameters.fuzzy)
    order = order_of(parameters.orderby, level)
    found = _find(store.index, query, order, parameters, budget)
    if budget.spent:
        return None
    headers = [*_HEADERS, *_facts(found, parameters)]
    if found.more:
        headers.append(("Link", f'<{_next_url(request, order.cursor(found.last))}>; rel="next"'))
    if not found.count:
        return _Page(204, headers)
    attributes = Attributes(store.index, query, parameters.included, parameters.everything, request.base_url)
    cost = (not attributes.ready) * JOINED + (offer.media_type == DICOM_XML) * MODEL
    if isinstance(budget, BriefBudget) and not budget.spend(
        rows=found.count * cost, metadata=int(attributes.deep)
    ):
        return None
    if found.count > KEPT or attributes.deep:
        return _streamed(found, attributes, offer.media_type, headers)
    return _at_once(store.secret, list(attributes.texts(found.hits())), offer.media_type, headers)


def _offer(request: Request) -> Offer:
    header = request.headers.get("accept", "")
    accepted = tuple(value for name, value in request.query if name == "accept")
    long = len(header) + sum(map(len, accepted)) > LONGEST_REMEMBERED
    return _chosen.__wrapped__(header, accepted) if long else _chosen(header, accepted)


@functools.lru_cache(maxsize=64)
def _chosen(header: str, accepted: tuple[str, ...]) -> Offer:
    return choose_json(parse_accept(header or None, accepted), METADATA_OFFERS)


def _at_once(secret: bytes, texts: list[bytes], media_type: str, headers: list[tuple[str, str]]) -> _Page:
    body = b"[" + b",".join(texts) + b"]"
    etag = etag_of([hashlib.blake2b(body, digest_size=16).digest()], media_type)
    content_type = media_type
    if media_type == DICOM_XML:
        boundary = boundary_from(secret, etag)
        content_type, body = multipart_type(boundary, media_type), b"".join(_models(boundary, texts))
    return _Page(200, [("Content-Type", content_type), *headers], body, etag)


def _streamed(
    found: _Found, attributes: Attributes, media_type: str, headers: list[tuple[str, str]]
) -> Answer:
    content_type, chunks = media_type, functools.partial(_json_chunks, found, attributes)
    if media_type == DICOM_XML:
        boundary = secrets.token_hex(20).encode()
        content_type = multipart_type(boundary, media_type)
        chunks = functools.partial(_xml_chunks, boundary, found, attributes)
    stream = Stream(lambda start, stop: chunks(), None)
    return Answer(200, [("Content-Type", content_type), *headers], (stream,), None)


def _json_chunks(found: _Found, attributes: Attributes) -> Iterator[bytes]:
    hits, before = found.hits(), b"["
    if attributes.deep:
        for pieces in attributes.datasets(hits):
            yield before
            yield from pieces
            before = b","
    else:
        while page := list(itertools.islice(hits, PAGE)):
            yield before + b",".join(attributes.texts(page))
            before = b","
    yield b"]" if before == b"," else b"[]"


def _xml_chunks(boundary: bytes, found: _Found, attributes: Attributes) -> Iterator[bytes]:
    if not attributes.deep:
        return _models(boundary, attributes.texts(found.hits()))
    return _documents(boundary, attributes.datasets(found.hits()))


def _models(boundary: bytes, texts: Iterable[bytes]) -> Iterator[bytes]:
    datasets = (dataset for text in texts for dataset in orjson.loads(b"[" + text + b"]"))
    return _documents(boundary, ([orjson.dumps(dataset)] for dataset in datasets))


def _documents(boundary: bytes, datasets: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    for pieces in datasets:
        yield part_head(boundary, {"Content-Type": DICOM_XML})
        yield from native_xml(pieces)
    yield closing(boundary)


# -- headers


def _facts(found: _Found, parameters: Parameters) -> list[tuple[str, str]]:
    total = [] if found.total is None else [("X-Total-Count", str(found.total))]
    warnings = list(parameters.warnings)
    if found.more:
        left = "further" if found.remaining is None else found.remaining
        warnings.append(f"there are {left} additional results that can be requested")
    return total + [("Warning", f'299 streamsrv "{text}"') for text in warnings]


def _next_url(request: Request, cursor: str) -> str:
    """The same search behind this page: what was skipped lies before the cursor."""
    path = request.path.split("/", 2)[2]
    kept = [pair for pair in request.query if pair[0] not in ("offset", "after")]
    pairs = [
        f"{quote(name, safe='')}={quote(value, safe=',*:-')}" for name, value in [*kept, ("after", cursor)]
    ]
    return f"{request.base_url}/{path}?{'&'.join(pairs)}"


# -- matches


@dataclasses.dataclass(slots=True)
class _Found:
    """How many match within the page, and how to come by them. `last` is the last of them; `total` counts
    all pages, `remaining` those behind this one, None where that is not known."""

    count: int
    more: bool
    total: int | None
    remaining: int | None
    hits: Callable[[], Iterator[Hit]]
    end: Hit | None

    @property
    def last(self) -> Hit:
        assert self.end is not None
        return self.end


def _find(index: Index, query: Query, order: Order, parameters: Parameters, budget: Budget) -> _Found:
    if order.walked:
        after = order.position(parameters.after) if parameters.after else None
        wanted = parameters.offset + parameters.limit + 1
        return _walk(index, query.page(wanted, after), order, parameters, budget)
    return _sort(index, query, order, parameters, budget)


def _walk(index: Index, query: Query, order: Order, parameters: Parameters, budget: Budget) -> _Found:
    first, limit = parameters.offset, parameters.limit
    matches = index.search(query, budget)
    page = itertools.islice(matches, first, first + limit)
    kept = list(itertools.islice(page, KEPT))
    end, count = kept[-1] if kept else None, len(kept)
    chosen = set(map(_identity, kept)) if count == KEPT else set()
    for end in page:
        count += 1
        chosen.add(_identity(end))
    more = count == limit > 0 and next(matches, None) is not None
    total = index.total(query)
    if total is None and not more and query.after is None and (count or not first):
        total = first + count
    remaining = total - first - count if total is not None and query.after is None else None
    again = functools.partial(_again, index, query, order, chosen, end)
    hits = functools.partial(iter, kept) if count <= KEPT else again
    return _Found(count, more, total, remaining if remaining and remaining > 0 else None, hits, end)


def _again(index: Index, query: Query, order: Order, chosen: set[int], end: Hit | None) -> Iterator[Hit]:
    """What the first walk could pay for, the second one can."""
    if end is None:
        return
    last = order.place(end)
    for hit in index.search(query, Budget(1 << 62, 1 << 62)):
        if _identity(hit) in chosen:
            yield hit
        if not order.place(hit) < last:
            return


def _identity(hit: Hit) -> int:
    """64 bits instead of 200 bytes."""
    return hash((hit.study, hit.series, hit.instance))


def _sort(index: Index, query: Query, order: Order, parameters: Parameters, budget: Budget) -> _Found:
    first, limit = parameters.offset, parameters.limit
    if first > FARTHEST_SORTED:
        raise BadRequest(f"with orderby the offset is at most {FARTHEST_SORTED}: go on with the Link header")
    behind = order.place_of(parameters.after) if parameters.after else None
    counts = [0, 0]  # all, and those behind the cursor

    def placed() -> Iterator[Hit]:
        for hit in index.search(query, budget):
            counts[0] += 1
            if behind is None or order.place(hit) > behind:
                counts[1] += 1
                yield hit

    smallest = heapq.nsmallest(first + limit, placed(), key=order.place)
    kept = smallest[first:]
    remaining = max(counts[1] - first - len(kept), 0)
    more = remaining > 0 and len(kept) == limit > 0
    return _Found(
        len(kept), more, counts[0], remaining, functools.partial(iter, kept), kept[-1] if kept else None
    )

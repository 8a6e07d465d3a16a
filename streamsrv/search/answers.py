"""From a search request to its answer.

Strategy: the parameters become a query (query/conditions.py), the index finds the matches, and each match is
already DICOM JSON there. All matches are found before the status is decided. Up to `kept` of them are one
literal with an ETag. More are found a second time while the answer is sent, so that memory grows by one
number a match only. A literal is cached together with the version of the index that it was found in.

A search of a few rows is answered at once, because a way through a thread takes as long. If its BriefBudget
is spent, the answer is Deferred.

Rules
- The second search yields only the matches of the first one: a page never reaches beyond the cursor in its
  Link header, or stops before it.
- dicom+xml is a multipart answer with one Native DICOM Model a match (PS3.18 10.6.3).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import heapq
import itertools
import secrets
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from urllib.parse import quote

import orjson

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.nativexml import native_xml
from streamsrv.errors import BadRequest
from streamsrv.query.attributes import Level
from streamsrv.query.budget import BRIEF_ROWS, BriefBudget, Budget
from streamsrv.query.conditions import Query, query_of
from streamsrv.query.rates import ClientRates
from streamsrv.query.rules import Rule
from streamsrv.search.attributes import Attributes
from streamsrv.search.exact import exact_matches
from streamsrv.search.order import SortOrder, order_of
from streamsrv.search.parameters import Parameters, SearchLimits, parameters_of
from streamsrv.store import Hit, Index
from streamsrv.wire.accept import LONGEST_REMEMBERED, METADATA_OFFERS, Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, ByteStream, Deferred, Literal, Request
from streamsrv.wire.codings import check_charset, choose_coding
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.mediatypes import DICOM_XML
from streamsrv.wire.multipart import PAYLOAD_END, boundary_from, closing, multipart_type, part_head
from streamsrv.wire.resources import Target

CACHED_BYTES = 8 << 20
ENTRY = 1_000  # bytes of a cached answer beside its body, about

# The largest offset of a search that is sorted here: so many matches are held.
FARTHEST_SORTED = 10_000
# Limits of a brief search in bytes: of the query string, whose patterns are compiled, and of a body that is
# compressed.
LONGEST_QUERY = 512
LONGEST_CODED = 16 << 10
# To count the matches behind a page, so many values of an inverted list are read, or so many rows are
# read and matched: 0.1 ms.
LISTED, COUNTED = 128, 40
# Seconds whose rows a client may read at once.
BURST = 10
# The cost of a dataset that is joined, and of one as XML, in rows.
JOINED, MODEL = 2, 16
READ_TOO_MUCH = "the searches of this client have read too much: search_rate is its share"
_HEADERS = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """A whole answer, before the conditions of its request are evaluated."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    etag: str = ""


class Searches:
    """The searches of one index. Any thread may use it."""

    def __init__(self, index: Index, secret: bytes, limits: SearchLimits | None = None) -> None:
        """The boundary of a multipart answer cannot be guessed without `secret`."""
        self._index = index
        self._rule: Rule | None = None
        self._secret = secret
        self._limits = limits or SearchLimits()
        self._rates = ClientRates(self._limits.rate, self._limits.rate * BURST)
        self._cache: SizedCache[Hashable, _Found] = SizedCache(
            CACHED_BYTES, lambda found: len(found.body) + ENTRY
        )

    def restricted(self, index: Index, rule: Rule) -> Searches:
        """The searches of a view of the index. They share the memory of the cache."""
        view = copy.copy(self)
        view._index, view._rule = index, rule
        return view

    def answer(self, request: Request, target: Target) -> Answer | Deferred:
        """Blocks for half a millisecond, about. Raises RequestError."""
        check_charset(request)
        if self._index.remote:
            return Deferred(lambda: self._long(request, target))
        long_query = sum(len(name) + len(value) for name, value in request.query) > LONGEST_QUERY
        budget = None if long_query else BriefBudget(min(BRIEF_ROWS, self._limits.rows))
        found = self._cached(request, target, budget)
        if found is None or (isinstance(found, _Found) and _is_compressed(request, found)):
            return Deferred(lambda: self._long(request, target))
        return _conditional(request, found)

    def texts(self, query: Query, client: str) -> Generator[bytes, None, None]:
        """All matches of a query in its order, as JSON objects with the attributes that it asks for, for a
        protocol without pages. Blocks; holds one match. Raises ContentTooLarge and TooManyRequests."""
        yield from Attributes(self._index, query, (), False, "").each(self.hits(query, client))

    def hits(self, query: Query, client: str) -> Generator[Hit, None, None]:
        """All matches, within the budget of a search and the rate of the client. Blocks and raises as
        `texts`."""
        budget = Budget(self._limits.rows, self._limits.metadata)
        self._rates.check(client, READ_TOO_MUCH)
        try:
            yield from self._index.search(query, budget)
        finally:
            self._rates.spend(client, budget.used)

    def _long(self, request: Request, target: Target) -> Answer:
        budget, client = Budget(self._limits.rows, self._limits.metadata), request.requester.address
        self._rates.check(client, READ_TOO_MUCH)
        try:
            found = self._cached(request, target, budget)
        finally:
            self._rates.spend(client, budget.used)
        assert found is not None  # such a budget raises when it is spent
        return _conditional(request, found)

    def _cached(self, request: Request, target: Target, budget: Budget | None) -> _Found | Answer | None:
        """Returns None if the budget is spent, or if there is none and no cached answer."""
        key = (
            self._index.version(),
            self._rule,
            request.path,
            request.query,
            request.headers.get("accept"),
            request.base_url,
        )
        found: _Found | Answer | None = self._cache.get(key)
        if found is None and budget is not None:
            found = self._search(request, target, budget)
            if isinstance(found, _Found):
                self._cache.put(key, found)
        return found

    def _search(self, request: Request, target: Target, budget: Budget) -> _Found | Answer | None:
        """Returns None if the budget is spent."""
        offer = _offer(request)
        is_xml = offer.media_type == DICOM_XML
        texts = None if is_xml else exact_matches(self._index, request, target, self._limits)
        if texts is not None:
            headers = [*_HEADERS, ("X-Total-Count", str(len(texts)))]
            return self._whole(texts, offer.media_type, headers) if texts else _Found(204, headers)
        level = Level[target.level.name]
        parameters = parameters_of(request.query, level, self._limits)
        query = query_of(level, target.study, target.series, parameters.matching, parameters.options)
        order = order_of(parameters.orderby, level)
        page = _find(self._index, query, order, parameters, budget)
        if budget.spent:
            return None
        if not page.count:
            return _Found(204, [*_HEADERS, *_facts(page, parameters, "")])
        attributes = Attributes(
            self._index, query, parameters.included, parameters.everything, request.base_url
        )
        cost = page.count * ((not attributes.ready) * JOINED + is_xml * MODEL)
        if isinstance(budget, BriefBudget) and not budget.spend(rows=cost, metadata=int(attributes.deep)):
            return None
        headers = [*_HEADERS, *_facts(page, parameters, _left(page, budget) if page.more else "")]
        if budget.starved:
            return None
        if page.more:
            headers.append(("Link", f'<{_next_url(request, order.cursor(page.last))}>; rel="next"'))
        if page.count > self._limits.kept or attributes.deep:
            return _streamed(page, attributes, offer.media_type, headers)
        return self._whole(list(attributes.texts(page.hits())), offer.media_type, headers)

    def _whole(self, texts: list[bytes], media_type: str, headers: list[tuple[str, str]]) -> _Found:
        body = b"[" + b",".join(texts) + b"]"
        etag = etag_of([hashlib.blake2b(body, digest_size=16).digest()], media_type)
        content_type = media_type
        if media_type == DICOM_XML:
            boundary = boundary_from(self._secret, etag)
            content_type, body = multipart_type(boundary, media_type), b"".join(_models(boundary, texts))
        return _Found(200, [("Content-Type", content_type), *headers], body, etag)


def _is_compressed(request: Request, found: _Found) -> bool:
    """Whether compressing the answer takes long."""
    return len(found.body) > LONGEST_CODED and bool(choose_coding(request.headers.get("accept-encoding")))


def _conditional(request: Request, found: _Found | Answer) -> Answer:
    if isinstance(found, Answer):
        return found
    built = Answer(found.status, list(found.headers), (Literal(found.body),), len(found.body))
    return evaluate(request, built, found.etag) if found.etag else Answer(found.status, built.headers)


def _offer(request: Request) -> Offer:
    header = request.headers.get("accept", "")
    accepted = tuple(value for name, value in request.query if name == "accept")
    long = len(header) + sum(map(len, accepted)) > LONGEST_REMEMBERED
    return _chosen.__wrapped__(header, accepted) if long else _chosen(header, accepted)


@functools.lru_cache(maxsize=64)
def _chosen(header: str, accepted: tuple[str, ...]) -> Offer:
    return choose_json(parse_accept(header or None, accepted), METADATA_OFFERS)


def _streamed(
    page: _ResultPage, attributes: Attributes, media_type: str, headers: list[tuple[str, str]]
) -> Answer:
    content_type, chunks = media_type, functools.partial(_json_chunks, page, attributes)
    if media_type == DICOM_XML:
        boundary = secrets.token_hex(20).encode()
        content_type = multipart_type(boundary, media_type)
        chunks = functools.partial(_xml_chunks, boundary, page, attributes)
    stream = ByteStream(lambda start, stop: chunks(), None)
    return Answer(200, [("Content-Type", content_type), *headers], (stream,), None)


def _json_chunks(page: _ResultPage, attributes: Attributes) -> Iterator[bytes]:
    before = b"["
    for pieces in attributes.datasets(page.hits()):
        yield before
        yield from pieces
        before = b","
    yield b"]" if before == b"," else b"[]"


def _xml_chunks(boundary: bytes, page: _ResultPage, attributes: Attributes) -> Iterator[bytes]:
    if not attributes.deep:
        return _models(boundary, attributes.texts(page.hits()))
    return _documents(boundary, attributes.datasets(page.hits()))


def _models(boundary: bytes, texts: Iterable[bytes]) -> Iterator[bytes]:
    datasets = (dataset for text in texts for dataset in orjson.loads(b"[" + text + b"]"))
    return _documents(boundary, ([orjson.dumps(dataset)] for dataset in datasets))


def _documents(boundary: bytes, datasets: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    for pieces in datasets:
        yield part_head(boundary, {"Content-Type": DICOM_XML})
        yield from native_xml(pieces)
        yield PAYLOAD_END
    yield closing(boundary)


# -- headers


def _facts(page: _ResultPage, parameters: Parameters, left: str) -> list[tuple[str, str]]:
    """`left` is the number of results after this page, if there are any (PS3.18 8.3.4.4.1)."""
    total = [] if page.total is None else [("X-Total-Count", str(page.total))]
    warnings = list(parameters.warnings)
    if left:
        warnings.append(f"There are {left} additional results that can be requested")
    return total + [("Warning", f'299 streamsrv "{text}"') for text in warnings]


def _left(page: _ResultPage, budget: Budget) -> str:
    """The number of matches after the page. Beyond COUNTED it is "at least" so many."""
    if page.remaining is not None:
        return str(page.remaining)
    if page.least > page.counted:
        return f"at least {page.least}"
    budget.allow_only(page.counted)
    counted = 1 + sum(1 for _ in itertools.islice(page.rest, page.counted))  # the first one is taken already
    exact = counted <= page.counted and not budget.spent
    if exact and page.from_start:
        page.total = page.first + page.count + counted
    return str(counted) if exact else f"at least {counted}"


def _next_url(request: Request, cursor: str) -> str:
    """The same search after this page, without `offset`, which lies before the cursor."""
    path = request.path.split("/", 2)[2]
    kept = [pair for pair in request.query if pair[0] not in ("offset", "after")]
    pairs = [
        f"{quote(name, safe='')}={quote(value, safe=',*:-')}" for name, value in [*kept, ("after", cursor)]
    ]
    return f"{request.base_url}/{path}?{'&'.join(pairs)}"


# -- matches


@dataclasses.dataclass(slots=True)
class _ResultPage:
    """The matches of one answer. `total` counts all pages and `remaining` those after this one; each is None
    if it is not known. `rest` yields those after this one without the first. `first` is the offset, from the
    first match or from a cursor. At most `counted` matches behind the page are counted. There are at least
    `least` of them."""

    first: int
    count: int
    more: bool
    total: int | None
    remaining: int | None
    hits: Callable[[], Iterator[Hit]]
    end: Hit | None
    from_start: bool
    rest: Iterator[Hit] = dataclasses.field(default_factory=lambda: iter(()))
    counted: int = COUNTED
    least: int = 0

    @property
    def last(self) -> Hit:
        assert self.end is not None
        return self.end


def _find(
    index: Index, query: Query, order: SortOrder, parameters: Parameters, budget: Budget
) -> _ResultPage:
    if order.walked is not None:
        after = order.position(parameters.after) if parameters.after else None
        wanted = parameters.offset + parameters.limit + 1
        return _walk(index, query.page(wanted, order.walked, after), order, parameters, budget)
    return _sort(index, query, order, parameters, budget)


def _walk(
    index: Index, query: Query, order: SortOrder, parameters: Parameters, budget: Budget
) -> _ResultPage:
    first, limit, kept = parameters.offset, parameters.limit, parameters.kept
    search = index.searching(query, budget)
    matches = search.hits()
    taken = itertools.islice(matches, first, first + limit)
    held = list(itertools.islice(taken, kept))
    end, count = held[-1] if held else None, len(held)
    chosen = set(map(_identity, held)) if count == kept else set()
    for end in taken:
        count += 1
        chosen.add(_identity(end))
    more = count == limit > 0 and next(matches, None) is not None
    from_start = query.after is None
    total = search.total if more else None
    if total is None:
        total = index.total(query, LISTED if more else 0)
    if total is None and not more and from_start and limit and (count or not first):
        total = first + count
    remaining = total - first - count if total is not None and from_start else None
    again = functools.partial(_again, index, query, order, chosen, end)
    hits = functools.partial(iter, held) if count <= kept else again
    remaining = remaining if remaining and remaining > 0 else None
    page = _ResultPage(first, count, more, total, remaining, hits, end, from_start, matches)
    if not index.counts and more and from_start:
        page.least = index.least(query) - first - count
        page.counted = COUNTED if query.conditions else 0
    return page


def _again(index: Index, query: Query, order: SortOrder, chosen: set[int], end: Hit | None) -> Iterator[Hit]:
    """Finds the matches a second time. The first time they were within the budget."""
    if end is None:
        return
    last = order.key(end)
    for hit in index.search(query, Budget(1 << 62, 1 << 62)):
        if _identity(hit) in chosen:
            yield hit
        if not order.key(hit) < last:
            return


def _identity(hit: Hit) -> int:
    """Takes 64 bits instead of 200 bytes."""
    return hash((hit.study, hit.series, hit.instance))


def _sort(
    index: Index, query: Query, order: SortOrder, parameters: Parameters, budget: Budget
) -> _ResultPage:
    first, limit = parameters.offset, parameters.limit
    if first > FARTHEST_SORTED:
        raise BadRequest(f"with orderby the offset is at most {FARTHEST_SORTED}: follow the Link header")
    behind = order.key_of(parameters.after) if parameters.after else None
    counts = [0, 0]  # all matches, and those after the cursor

    def after_cursor() -> Iterator[Hit]:
        for hit in index.search(query, budget):
            counts[0] += 1
            if behind is None or order.key(hit) > behind:
                counts[1] += 1
                yield hit

    held = heapq.nsmallest(first + limit, after_cursor(), key=order.key)[first:]
    count, end = len(held), held[-1] if held else None
    remaining = max(counts[1] - first - count, 0)
    more = remaining > 0 and count == limit > 0
    return _ResultPage(
        first, count, more, counts[0], remaining, functools.partial(iter, held), end, behind is None
    )

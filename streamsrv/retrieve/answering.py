"""What every retrieve answer is made of: one request as a value, single-part and multipart answers with their
validators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamsrv.pixelpool import PixelPool
from streamsrv.retrieve.parts import PartSource, multipart_plan, total_length
from streamsrv.retrieve.selection import Selection
from streamsrv.store.store import Store
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Piece, Request
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Target

# Viewers revalidate with If-None-Match; a shared cache keeps nothing of a patient.
CACHING = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One retrieve transaction: what is asked for, of which instances, and with what it can be made."""

    store: Store
    pool: PixelPool
    request: Request
    target: Target
    selection: Selection

    def ranges(self) -> Sequence[accept.AcceptableRange]:
        queries = [value for name, value in self.request.query if name == "accept"]
        return accept.parse_accept(self.request.headers.get("accept"), queries)

    def single_part(self, media_type: str, pieces: Iterable[Piece], *representation: str) -> Answer:
        """`representation` is whatever the bytes depend on beyond the path and the media type."""
        etag = etag_of([self.selection.digest], self.request.path, media_type, *representation)
        plan = list(pieces)
        built = Answer(200, [("Content-Type", media_type), *CACHING], plan, total_length(plan))
        return evaluate(self.request, built, etag)

    def multipart(self, representation: tuple[str, ...], parts: PartSource, count: int) -> Answer:
        """`representation` begins with the media type of the parts and tells it from every other of the
        same instances."""
        etag = etag_of([self.selection.digest], self.request.base_url, *representation)
        boundary = boundary_from(self.store.secret, etag)
        plan, length = multipart_plan(parts, count, boundary)
        content_type = multipart_type(boundary, representation[0])
        built = Answer(200, [("Content-Type", content_type), *CACHING], plan, length)
        return evaluate(self.request, built, etag)

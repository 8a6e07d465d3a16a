"""Documents as rendered resources (PS3.18 8.7.4, Table 8.7.4-1): Structured Reports and CDA as pages, and
encapsulated documents as they are stored.

Strategy: a page is made from the metadata while it is sent (reports/), so its length is unknown until its
end. An encapsulated document (PS3.3 A.45) is a span of its segment, without its padding byte.

Rules
- A link leads to where the report says that an instance is. Whether this store has it is not looked up,
  because a page depends on its own instance alone, as its ETag does.
- A page has a security policy of its own, in addition to that of every answer. A PDF has one without
  `sandbox`, because Chromium shows no PDF with it in a frame. Its viewer runs a PDF apart from this origin.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from streamsrv.dicom.json.values import inline_binary, whole
from streamsrv.errors import NotFound
from streamsrv.pixels.description import Description
from streamsrv.pixels.transcoding import piece_chunks
from streamsrv.plans.payloads import Part, bulk_piece
from streamsrv.reports.cda import read_cda
from streamsrv.reports.content import Report, read_report
from streamsrv.reports.pages import POLICY, Address, html_page, plain_page, xml_page
from streamsrv.reports.wording import ENCAPSULATED_CLASSES, REPORT_CLASSES, Link
from streamsrv.retrieve.answering import MAKER, Planned, Retrieval
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, ByteStream, Literal, Piece
from streamsrv.wire.codings import check_charset
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.resources import instance_url

DOCUMENT = "00420011"
PDF = "application/pdf"
PDF_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
CDA = f"{ENCAPSULATED_CLASSES}2"
DOCUMENT_CLASSES = (REPORT_CLASSES, ENCAPSULATED_CLASSES)
ENCAPSULATED = {
    f"{ENCAPSULATED_CLASSES}{last}": media_type for last, media_type in enumerate(accept.DOCUMENT_TYPES, 1)
}
PAGES: dict[str, Callable[[Report, Address], Iterator[bytes]]] = dict(
    zip(accept.PAGE_TYPES, (html_page, plain_page, xml_page), strict=True)
)


def document_types(row: InstanceRow) -> tuple[str, ...]:
    """The media types in which a document can be sent, its default first. Empty if it is none."""
    if row.sop_class_uid.startswith(REPORT_CLASSES) or row.sop_class_uid == CDA:
        return tuple(PAGES)
    media_type = ENCAPSULATED.get(row.sop_class_uid)
    return (media_type,) if media_type else ()


def document(retrieval: Retrieval, row: InstanceRow) -> Planned:
    """The answer with one document."""
    offer = accept.choose_image(retrieval.ranges(), document_types(row))
    one = Document(retrieval, row, offer.media_type)
    if one.is_page:
        check_charset(retrieval.request)
        return None if retrieval.brief else page_answer(retrieval, one, offer.multipart)
    return stored_document(retrieval, row, offer, one.url)


def stored_document(retrieval: Retrieval, row: InstanceRow, offer: accept.Offer, url: str) -> Answer | None:
    """The answer with an encapsulated document in its own media type."""
    description = retrieval.description(row)
    if description is None:
        return None
    pieces = encapsulated(retrieval, row, description)
    part = Part(offer.media_type, url, pieces)
    if offer.multipart:
        return retrieval.multipart((offer.media_type, url), lambda: [part], 1)
    built = retrieval.single_part(part)
    if offer.media_type == PDF:
        built.policy = PDF_POLICY
    return built


@dataclass(frozen=True, slots=True)
class Document:
    """One document in one of its media types."""

    retrieval: Retrieval
    row: InstanceRow
    media_type: str

    @property
    def is_page(self) -> bool:
        """Whether it is made: CDA is XML already."""
        return self.row.sop_class_uid not in ENCAPSULATED or (self.is_cda and self.media_type != "text/xml")

    @property
    def is_cda(self) -> bool:
        return self.row.sop_class_uid == CDA

    @property
    def label(self) -> str:
        """An encapsulated document says its character set itself."""
        return f"{self.media_type}; charset=utf-8" if self.is_page else self.media_type

    @property
    def url(self) -> str:
        return f"{instance_url(self.retrieval.request.base_url, *self.row.key)}/rendered"

    def pieces(self) -> Sequence[Piece]:
        """Blocking. Raises NotFound."""
        if self.is_page:
            return [ByteStream(lambda start, stop: self.page(), None)]
        return self._stored()

    def _stored(self) -> Sequence[Piece]:
        description = self.retrieval.pool.descriptions.of(self.retrieval.store, self.row)
        return encapsulated(self.retrieval, self.row, description)

    def page(self) -> Iterator[bytes]:
        """An empty chunk says that nothing is ready. Blocking. Raises NotFound."""
        return self.retrieval.turns.of(self._page())

    def _page(self) -> Iterator[bytes]:
        texts = (text.replace(b"\0", b"") for text in self.retrieval.store.metadata([self.row]))
        report = read_report(texts)
        if self.is_cda:
            selection = self.retrieval.selection
            document = (chunk for piece in self._stored() for chunk in piece_chunks(selection, piece))
            report = read_cda(document, report.head)
        yield from PAGES[self.media_type](report, self._address)

    def _address(self, link: Link) -> str:
        """The URL of a picture or page where there is one, else of the instance."""
        assert link.place is not None
        url = instance_url(self.retrieval.request.base_url, *link.place, link.instance)
        if link.frames and link.is_picture:
            url = f"{url}/frames/{','.join(map(str, link.frames))}"
        return f"{url}/rendered" if link.is_picture or link.sop_class.startswith(DOCUMENT_CLASSES) else url


def page_answer(retrieval: Retrieval, one: Document, multipart: bool) -> Answer:
    identity = (retrieval.request.base_url, MAKER)
    if multipart:
        return retrieval.made_multipart((one.media_type, "rendered", *identity), lambda b: part(one, b))

    def body(_: bytes) -> Generator[bytes, None, None]:
        yield from one.page()

    built = retrieval.made_single((one.label, *identity), body)
    built.headers = [*built.headers, ("Content-Security-Policy", POLICY)]
    return built


def part(one: Document, boundary: bytes) -> Generator[bytes, None, None]:
    yield part_head(boundary, {"Content-Type": one.label, "Content-Location": one.url})
    yield from one.page()
    yield PAYLOAD_END + closing(boundary)


def encapsulated(retrieval: Retrieval, row: InstanceRow, description: Description) -> Sequence[Piece]:
    """An encapsulated document without its padding byte. Raises NotFound."""
    value = retrieval.store.bulk_value(row.key, DOCUMENT)
    if value is None:
        inline = inline_binary(description.dataset, DOCUMENT)
        if not inline:
            raise NotFound("the encapsulated document is empty")
        length = whole(description.dataset, "00420015", len(inline))
        return [Literal(inline[:length] if length > 0 else inline)]
    length = whole(description.dataset, "00420015", value.length)
    shortened = value if not 0 < length < value.length else replace(value, length=length)
    return [bulk_piece(retrieval.selection, row, shortened)]

"""Parsers of a body into parts: MultipartParser, or WholeBody for a single part."""

from __future__ import annotations

from typing import TypeAlias

from streamsrv.errors import UnsupportedMediaType
from streamsrv.ingest.assembly import METADATA_TYPES
from streamsrv.wire.mediatypes import DICOM
from streamsrv.wire.multipart import (
    STORABLE,
    Buffer,
    Event,
    MultipartLimits,
    MultipartParser,
    PartBegin,
    Payload,
    boundary_of,
    content_type_of,
)


class WholeBody:
    """The body is one application/dicom instance (a store of a single part)."""

    more = False

    def __init__(self) -> None:
        self._begun = False

    def feed(self, chunk: Buffer, size: int | None = None, *, start: int = 0, most: int) -> list[Event]:
        payload = Payload(memoryview(chunk)[start : None if size is None else start + size])
        if self._begun:
            return [payload]
        self._begun = True
        return [PartBegin({"content-type": DICOM}), payload]

    def close(self) -> None:
        """A single part has no end of its own: the reader of its dataset finds a truncation."""


BodyParser: TypeAlias = MultipartParser | WholeBody


def parser_for(content_type: str | None, limits: MultipartLimits) -> tuple[BodyParser, str]:
    """Returns the parser and the type of the parts. Raises UnsupportedMediaType unless the body is
    multipart/related of application/dicom or of metadata and bulk data, or one application/dicom."""
    media_type = content_type_of(content_type)
    if media_type.type == DICOM:
        return WholeBody(), DICOM
    boundary = boundary_of(media_type)
    part_type = media_type.parameters.get("type", DICOM).lower()
    if part_type != DICOM and part_type not in METADATA_TYPES:
        raise UnsupportedMediaType(
            f"parts of type {media_type.parameters['type']} cannot be stored", STORABLE
        )
    return MultipartParser(boundary, limits), part_type

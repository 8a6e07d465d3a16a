"""Part 10 instances made of metadata and bulk data parts (PS3.18 10.5.2, 8.6.1.2).

Strategy: metadata are read from the spool, dataset by dataset. Each dataset becomes a short list of pieces:
bytes, and ranges of the spool, which also takes long literals. The list has a known length and is written to
a record in chunks. XML is converted to JSON text first.

Rules
- A bulk part belongs to the BulkDataURI that equals its Content-Location (or `cid:` and its Content-ID).
- Frames of Pixel Data may come in several parts. Parts with the same location count in their order. Others
  end in `/frames/{number}`, behind the location or, as in retrieve answers, behind the URL of the instance.
- The transfer syntax of compressed pixels is that of their part. Else it is that of the metadata (0002,0010
  or 0008,3002) if it fits the media type, else the default of the media type (Tables 8.7.3-4 and 8.7.3-5).
- A dataset that cannot be made does not affect others. Malformed text ends its part; wrong JSON types are not
  malformed text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from streamsrv.dicom import tags
from streamsrv.dicom.explicit import Copy, part10_head
from streamsrv.dicom.json.encoding import Bulk, DatasetEncoder, Later, Piece
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.dicom.nativexml import json_text
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.dicom.values import UID, well_formed_uid
from streamsrv.errors import InstanceError, InstanceRefused, NotDicom
from streamsrv.ingest.response import FailedItem
from streamsrv.ingest.spool import PartSpool, SpooledPart
from streamsrv.wire.accept import MEDIA_SYNTAXES, canonical
from streamsrv.wire.mediatypes import DICOM_JSON, DICOM_XML, JSON, OCTETS, parse_media_type

# The media types of metadata parts, by the `type` of the body.
METADATA_TYPES = {DICOM_JSON: (DICOM_JSON, JSON), DICOM_XML: (DICOM_XML, "application/xml", "text/xml")}
LITERAL = 256 * 1024  # bytes of one dataset in memory; further ones go into the spool
_FRAME = re.compile(r"(.+)/frames/([0-9]{1,10})")
_PIXEL_DATA_PATH = f"/bulkdata/{tags.PIXEL_DATA}"


@dataclass(frozen=True, slots=True)
class Assembled:
    spool: PartSpool
    pieces: list[bytes | Copy]

    @property
    def length(self) -> int:
        return sum(len(each) if isinstance(each, bytes) else each.length for each in self.pieces)

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from self.spool.chunks(piece)


def assembled(spool: PartSpool, body_type: str) -> Iterator[Assembled | FailedItem]:
    """Yields the outcome of each dataset of a whole body. Take each before the next one."""
    metadata, bulk = [], BulkParts()
    for number, part in enumerate(spool.parts):
        media_type = part.headers.get("content-type", body_type if not number else OCTETS)
        if media_type.partition(";")[0].strip().lower() in METADATA_TYPES[body_type]:
            metadata.append(part)
        else:
            bulk.add(part)
    if spool.parts and not metadata:
        yield FailedItem.of(NotDicom(f"no part of the body is {body_type}"))
    for part in metadata:
        try:
            text = spool.chunks(part.range)
            reader = JsonReader(json_text(text) if body_type == DICOM_XML else text, foreign=True)
            yield from _instances(reader, spool, bulk)
        except InstanceError as error:
            yield FailedItem.of(error)


def _instances(reader: JsonReader, spool: PartSpool, bulk: BulkParts) -> Iterator[Assembled | FailedItem]:
    """Reads one dataset, or an array of them."""
    several: Iterator[None] = reader.elements() if reader.peek() == "[" else iter([None])
    for _ in several:
        depth = reader.depth
        one, whole = reader, reader.value()
        if whole is not LARGE:
            one = JsonReader([reader.last.encode()], foreign=True)
        instance = _Instance(spool, bulk)
        try:
            yield instance.assembled(one)
        except InstanceError as error:
            facts = instance.encoder.facts
            stated = (facts.get(tag, "") for tag in (tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID))
            yield FailedItem.of(error, *(uid if UID.fullmatch(uid) else "" for uid in stated))
            reader.leave(depth)
    reader.end()


class _Instance:
    """Makes a Part 10 file of one dataset."""

    def __init__(self, spool: PartSpool, bulk: BulkParts) -> None:
        self._spool = spool
        self._bulk = bulk
        self._syntax = EXPLICIT_VR_LITTLE_ENDIAN
        self._held = 0
        self.encoder = DatasetEncoder(self._resolve)

    def assembled(self, reader: JsonReader) -> Assembled:
        collected: list[Piece] = []
        literal = bytearray()
        for piece in self.encoder.pieces(reader):
            if isinstance(piece, bytes):
                literal += piece
            if len(literal) > LITERAL or not isinstance(piece, bytes):
                collected.append(self._kept(literal))
                literal = bytearray()
            if not isinstance(piece, bytes):
                collected.append(piece)
        collected.append(self._kept(literal))
        sop_class, sop_instance = (self._fact(tag) for tag in (tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID))
        head = part10_head(sop_class, sop_instance, self._syntax)
        pieces = (each.content if isinstance(each, Later) else each for each in collected)
        return Assembled(self._spool, [head, *pieces])

    def _fact(self, tag: str) -> str:
        """Refuses a dataset without the UID early: 100,000 empty datasets would take five times as long if
        they were written and read."""
        return well_formed_uid(tag, self.encoder.facts.get(tag) or "")

    def _kept(self, literal: bytearray) -> bytes | Copy:
        """Keeps a literal in memory, or in the spool if the dataset is long."""
        self._held += len(literal)
        return bytes(literal) if self._held <= LITERAL else self._spool.append(bytes(literal))

    def _resolve(self, path: str, uri: str) -> Bulk:
        parts = self._bulk.of(uri, path)
        if not parts:
            raise InstanceRefused(
                f"no part of the body has the Content-Location {uri[:200]!r}", tag=path[-8:]
            )
        compressed = path == tags.PIXEL_DATA and self._compressed(parts)
        return Bulk([part.range for part in parts], frames=compressed)

    def _compressed(self, parts: list[SpooledPart]) -> bool:
        """Returns whether these are compressed frames. The instance then has their transfer syntax."""
        syntaxes = {self._syntax_of(part) for part in parts}
        if len(syntaxes) > 1:
            raise NotDicom("the frames have several transfer syntaxes", tag=tags.PIXEL_DATA)
        syntax = syntaxes.pop()
        if syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN):
            return False  # the same bytes in both
        if not lookup(syntax).encapsulated:
            raise NotDicom(f"Pixel Data cannot be sent in transfer syntax {syntax[:64]}", tag=tags.PIXEL_DATA)
        self._syntax = syntax
        return True

    def _syntax_of(self, part: SpooledPart) -> str:
        media = parse_media_type(part.headers.get("content-type", OCTETS))
        if media is None:
            raise NotDicom("a bulk data part has a malformed Content-Type", tag=tags.PIXEL_DATA)
        named = media.parameters.get("transfer-syntax", "")
        if named and named != "*":
            return named
        media_type = canonical(media.type)
        facts = self.encoder.facts
        for stated in (facts.get(tags.TRANSFER_SYNTAX_UID), facts.get(tags.AVAILABLE_TRANSFER_SYNTAX_UID)):
            if stated and (media_type == OCTETS or canonical(lookup(stated).media_type) == media_type):
                return stated
        if media_type not in MEDIA_SYNTAXES:
            raise NotDicom(f"{media_type[:80]} is not a media type of pixel data", tag=tags.PIXEL_DATA)
        return MEDIA_SYNTAXES[media_type][0]


class BulkParts:
    """Bulk data parts by Content-Location and Content-ID."""

    def __init__(self) -> None:
        self._located: dict[str, list[SpooledPart]] = {}
        self._frames: dict[str, list[tuple[int, SpooledPart]]] = {}

    def add(self, part: SpooledPart) -> None:
        location = part.headers.get("content-location", "").strip().strip("<>")
        if location:
            self._located.setdefault(location, []).append(part)
            if frame := _FRAME.fullmatch(location):
                self._frames.setdefault(frame[1], []).append((int(frame[2]), part))
        if identity := part.headers.get("content-id", "").strip().strip("<>"):
            self._located.setdefault(f"cid:{identity}", []).append(part)

    def of(self, uri: str, path: str) -> list[SpooledPart]:
        """Returns the parts of a BulkDataURI in the order of their bytes."""
        uri = uri.strip()
        found = self._located.get(uri)
        if found is None and path == tags.PIXEL_DATA:
            frames = self._frames.get(uri) or self._frames.get(uri.removesuffix(_PIXEL_DATA_PATH))
            found = [part for _, part in sorted(frames or (), key=lambda each: each[0])]
        return found or []

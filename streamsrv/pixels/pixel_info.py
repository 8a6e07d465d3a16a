"""How the frames of an instance are stored, without reading its metadata, or all of them.

Strategy: the index row says it (`dicom.pixelfacts`), and what its numbers say is remembered. Where it does
not, it is cut out of the DICOM JSON: the attributes that frames cannot be read without stand next to one
another there, from Samples per Pixel to Pixel Representation, and the instances of a series have the very
same text. So that piece is found by its tags, and its facts are cached by its bytes.

Rule: where the piece could mean anything else than the dataset does, all of it is read (`pixels.describe`):
a tag that stands elsewhere too, sequences in between, numbers that the index does not know.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import orjson

from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.pixelfacts import unpacked
from streamsrv.errors import NotAcceptable
from streamsrv.pixels.description import QUICK, Description, describe, frame_info, info_of
from streamsrv.pixels.pool import PixelPool
from streamsrv.store import InstanceRow, Store

FIRST, LAST = b'"00280002":{', b'"00280103":{'
_NUMBERS = "00280004 00280006 00280010 00280011 00280100 00280101 00280102"
# A quotation mark within a value is escaped, so that none of these is ever part of one.
TAGS = (FIRST, *(b'"%b":{' % tag.encode() for tag in _NUMBERS.split()), LAST)
FLOATING = (b'"7FE00008":{', b'"7FE00009":{')


class Known(NamedTuple):
    """Kept beside the descriptions; `size` is about what it takes in memory."""

    info: FrameInfo
    size: int = 500


def pixel_info(store: Store, row: InstanceRow, pool: PixelPool) -> FrameInfo:
    """Raises NotAcceptable; WouldBlock in the loop if a text has to be read that is long and not known
    yet."""
    info = info_in_row(row.rows, row.columns, row.samples_per_pixel, row.bits_allocated, row.pixel_facts)
    return _read(store, row, pool) if info is None else info


@lru_cache(maxsize=256)
def info_in_row(rows: int, columns: int, samples: int, allocated: int, facts: int) -> FrameInfo | None:
    """What `describe` would find. None if the row does not say it, or if it makes no sense."""
    said = unpacked(facts)
    if said is None:
        return None
    try:
        return info_of(
            rows=rows,
            columns=columns,
            samples_per_pixel=samples,
            bits_allocated=allocated,
            bits_stored=said.bits_stored,
            high_bit=said.bits_stored - 1,
            pixel_representation=said.pixel_representation,
            planar_configuration=said.planar_configuration,
            photometric_interpretation=said.photometric_interpretation,
            floating=False,
        )
    except FrameCodecError:
        return None  # `describe` says why


def _read(store: Store, row: InstanceRow, pool: PixelPool) -> FrameInfo:
    key = row.record_id + b"info"
    known: Known | Description | None = pool.descriptions.get(key) or pool.descriptions.get(row.record_id)
    if known is None and row.metadata_length <= QUICK:
        piece = piece_of(b"".join(store.metadata([row])))
        info = None if piece is None else _said(piece)
        if info is not None and _is_that_of(row, info):
            known = Known(info)
            pool.descriptions.put(key, known)
    return describe(store, row, pool).info if known is None else known.info


def piece_of(text: bytes) -> bytes | None:
    """The elements of the Image Pixel Module in the DICOM JSON of an instance, without braces around them;
    None unless they stand together, on one level, and nowhere else."""
    begin, last = text.find(FIRST), text.find(LAST)
    end = text.find(b"}", last) + 1
    piece = text[begin:end]
    if not 0 <= begin < last < end or b"[{" in piece or b"}]" in piece:
        return None
    if any(text.count(tag) != piece.count(tag) for tag in TAGS) or any(tag in text for tag in FLOATING):
        return None
    return piece if piece.count(FIRST) == piece.count(LAST) == 1 else None


@lru_cache(maxsize=256)
def _said(piece: bytes) -> FrameInfo | None:
    try:
        return frame_info(orjson.loads(b"{%b}" % piece))
    except (ValueError, NotAcceptable):
        return None


def _is_that_of(row: InstanceRow, info: FrameInfo) -> bool:
    """The row's numbers are those of the dataset itself, so that the piece is no part of a sequence."""
    said = (info.rows, info.columns, info.samples_per_pixel, info.bits_allocated)
    return said == (row.rows, row.columns, row.samples_per_pixel, row.bits_allocated)

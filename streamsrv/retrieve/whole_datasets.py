"""The dataset of one instance without file meta information, for a peer that speaks no HTTP.

Rules of the choice
- As stored, if the peer takes that syntax.
- Else uncompressed, as for HTTP: in Explicit VR Little Endian, else in the implicit one, which is made of it.
- Else transcoded into the first of its syntaxes that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from streamsrv.dicom.explicit import Changes, Here, changed_pieces
from streamsrv.dicom.implicit import implicit_chunks
from streamsrv.dicom.part10 import read_file_meta
from streamsrv.dicom.syntaxes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import NotAcceptable, SegmentGone
from streamsrv.pixels.transcoding import piece_chunks
from streamsrv.plans.payloads import as_piece, reader, span
from streamsrv.retrieve.answering import Retrieval, Rooms
from streamsrv.retrieve.instances import possible_targets, sent
from streamsrv.store import FileRange, InstanceKey, InstanceRow, Store
from streamsrv.wire.accept import InstancesChoice
from streamsrv.wire.answers import Piece, Request
from streamsrv.wire.resources import target_of

_GROUP_LENGTH_END = 144  # preamble, prefix and the element (0002,0000)


@dataclass(slots=True)
class WholeDataset:
    """`chunks` are made while they are taken, in a thread. Call `close` when no more are wanted. A dataset
    that is sent as it is stored, and that can be read until then, is `stored` instead of `chunks`."""

    row: InstanceRow
    syntax: str
    chunks: Iterator[bytes]
    stored: FileRange | None
    close: Callable[[], None]


def dataset_at_hand(
    store: Store, key: InstanceKey, taken: Callable[[str], Sequence[str]]
) -> WholeDataset | None:
    """A dataset that is sent as it is stored, for the event loop. None if that would block, or if it has to
    be refused."""
    found = None if store.remote else store.instance(key, ())
    if found is None:
        return None
    row, _ = found
    if row.damaged or row.deflated or row.transfer_syntax not in taken(row.sop_class_uid):
        return None
    try:
        lease = store.open_segments((row.location.segment,))
    except SegmentGone:
        return None
    segment, offset, length = row.location
    fd, start = lease.file_at(segment, offset + row.dataset_offset)
    place = FileRange(fd, start, length - row.dataset_offset)
    return WholeDataset(row, row.transfer_syntax, iter(()), place, lease.release)


def whole_dataset(rooms: Rooms, key: InstanceKey, taken: Callable[[str], Sequence[str]]) -> WholeDataset:
    """The dataset in one of the syntaxes that are taken for its SOP class. Blocks. Raises NotFound,
    InstanceDamaged, and NotAcceptable if it cannot have any of them."""
    target = target_of(f"/v2/studies/{key.study}/series/{key.series}/instances/{key.instance}")
    selection = rooms.selections.select(target)
    request = Request("GET", "", (), {}, "", target.version)
    retrieval = Retrieval(rooms, request, target, selection, False, [selection.release])
    try:
        selection.require_undamaged()
        (row,) = selection.rows()
        syntaxes, stored = taken(row.sop_class_uid), row.transfer_syntax
        if stored in syntaxes:
            return WholeDataset(row, stored, *_as_stored(retrieval, row), retrieval.end)
        syntax, chunks = _chosen(retrieval, row, syntaxes)
        return WholeDataset(row, syntax, chunks, None, retrieval.end)
    except SegmentGone as gone:
        retrieval.end()
        raise selection.loss(gone) from gone
    except BaseException:
        retrieval.end()
        raise


def _as_stored(retrieval: Retrieval, row: InstanceRow) -> tuple[Iterator[bytes], FileRange | None]:
    start = _end_of_meta(retrieval, row) if row.deflated else row.dataset_offset
    place = span(row, start, row.location.length - start)
    windows = retrieval.selection.lease.windows(place.segment, place.offset, place.length)
    first = next(windows, None)
    if first is not None and first.length == place.length:
        retrieval.endings.append(partial(close_windows, windows))
        return iter(()), first
    close_windows(windows)
    return piece_chunks(retrieval.selection, place), None


def close_windows(windows: Iterator[FileRange]) -> None:
    if isinstance(windows, Generator):
        windows.close()


def _chosen(retrieval: Retrieval, row: InstanceRow, syntaxes: Sequence[str]) -> tuple[str, Iterator[bytes]]:
    stored = row.transfer_syntax
    possible = possible_targets(retrieval, [stored])[stored]
    if EXPLICIT_VR_LITTLE_ENDIAN in possible:
        if EXPLICIT_VR_LITTLE_ENDIAN in syntaxes:
            return EXPLICIT_VR_LITTLE_ENDIAN, _made(retrieval, row, EXPLICIT_VR_LITTLE_ENDIAN)
        if IMPLICIT_VR_LITTLE_ENDIAN in syntaxes:
            return IMPLICIT_VR_LITTLE_ENDIAN, implicit_chunks(_written_again(retrieval, row))
    syntax = next((each for each in syntaxes if each in possible), None)
    if syntax is None:
        raise NotAcceptable(f"the peer takes no transfer syntax that it can have ({stored} is stored)", ())
    return syntax, _made(retrieval, row, syntax)


def _end_of_meta(retrieval: Retrieval, row: InstanceRow) -> int:
    size = row.location.length
    return read_file_meta(ReadWindow(reader(retrieval.selection, row), size), size, ReadLimits()).end


def _made(retrieval: Retrieval, row: InstanceRow, syntax: str) -> Iterator[bytes]:
    """The chunks of the dataset in another syntax. Raises NotAcceptable."""
    choice = InstancesChoice(False, {row.transfer_syntax: syntax})
    (one,) = filter(None, sent(retrieval, choice))
    if one.syntax != syntax:
        raise NotAcceptable(f"it cannot be sent in transfer syntax {syntax}", ())
    return _without_meta(_chunks(retrieval, one.pieces))


def _written_again(retrieval: Retrieval, row: InstanceRow) -> Iterator[bytes]:
    """The chunks of the dataset in Explicit VR Little Endian, with undefined lengths of all sequences."""
    if not row.deflated and row.transfer_syntax != EXPLICIT_VR_LITTLE_ENDIAN:
        return _made(retrieval, row, EXPLICIT_VR_LITTLE_ENDIAN)
    unchanged, size = Changes(EXPLICIT_VR_LITTLE_ENDIAN, {}), row.location.length
    made = changed_pieces(reader(retrieval.selection, row), size, unchanged)
    pieces = (as_piece(retrieval.selection, row, each) for each in made if not isinstance(each, Here))
    return _without_meta(_chunks(retrieval, pieces))


def _chunks(retrieval: Retrieval, pieces: Iterable[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        # An empty chunk says that nothing is ready yet.
        yield from filter(None, piece_chunks(retrieval.selection, piece))


def _without_meta(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks of a Part 10 file behind its file meta information."""
    head = b""
    for chunk in chunks:
        head += chunk
        end = _GROUP_LENGTH_END + int.from_bytes(head[_GROUP_LENGTH_END - 4 : _GROUP_LENGTH_END], "little")
        if len(head) >= max(end, _GROUP_LENGTH_END):
            yield head[end:]
            break
    yield from chunks

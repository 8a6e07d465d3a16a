"""Answers to requests for Part 10 instances (PS3.18 10.4.1.1.1): stored ones, or transcoded ones. A client
that accepts bulk data of instances gets that of retrieve/bulk.py (Table 10.4.4-1, note 2). One that accepts a
ZIP archive gets that of retrieve/archives.py.

Rules of the choice
- Without a named syntax, an instance that cannot be transcoded is sent as it is stored.
- Of several instances, those that cannot have the named syntax are sent as they are stored, because a client
  would not notice a gap. If that holds for all of them, the answer is 406.
- An instance without pixels is sent as Explicit VR Little Endian, in any named syntax.
- The bytes of a transcoded instance are verified first, as they are read anyway: InstanceDamaged ends the
  answer.
- Representatives decide which targets fit: one for each kind of pixels among the instances.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotAcceptable
from streamsrv.pixels import transcoding
from streamsrv.pixels.transcoding import has_frames
from streamsrv.plans import payloads
from streamsrv.plans.payloads import Part
from streamsrv.plans.selection import PackedInstances
from streamsrv.retrieve import datasets
from streamsrv.retrieve.answering import MAKER, Accepted, Retrieval, part_chunks
from streamsrv.retrieve.archives import archive
from streamsrv.retrieve.bulk import all_bulk_data
from streamsrv.retrieve.frames import first_frames
from streamsrv.store import PLACE, InstanceRow, split_triple, syntax_in
from streamsrv.wire import accept
from streamsrv.wire.accept import INSTANCE_SENT_AS, InstancesChoice
from streamsrv.wire.answers import Answer, Piece, Place, StoredParts
from streamsrv.wire.mediatypes import DICOM, ZIP
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.resources import ResourceLevel, instance_url

# Kinds of pixels in one answer that are checked; real studies have a few.
REPRESENTATIVES = 64
END_OF_HEAD = b"\r\n\r\n"


@dataclass(slots=True)
class SentInstance:
    row: InstanceRow
    syntax: str
    pieces: Sequence[Piece]

    @property
    def label(self) -> str:
        return label_of(self.syntax)

    def part(self, base_url: str) -> Part:
        return Part(self.label, instance_url(base_url, *self.row.key), self.pieces)


def label_of(syntax: str) -> str:
    return f"{DICOM}; transfer-syntax={syntax}"


def instances(retrieval: Retrieval) -> Answer | None:
    choice, base_url = chosen(retrieval), retrieval.request.base_url
    if choice is None:
        return None
    if choice.form != DICOM:
        if retrieval.brief:
            return None
        return archive(retrieval) if choice.form == ZIP else all_bulk_data(retrieval)
    representation = (DICOM, ",".join(sorted(f"{stored}>{sent}" for stored, sent in choice.syntaxes.items())))
    makes = any(is_made(*pair) for pair in choice.syntaxes.items())
    maker = (MAKER,) if makes else ()
    if makes and retrieval.brief:
        return None
    if retrieval.target.level is ResourceLevel.INSTANCE:
        (one,) = filter(None, sent(retrieval, choice))
        if not choice.multipart:
            return retrieval.single_part(one.part(base_url), *maker)
        return retrieval.multipart((*representation, one.syntax, *maker), lambda: [one.part(base_url)], 1)
    if makes:
        return retrieval.made_multipart(
            (*representation, MAKER), lambda boundary: body(retrieval, choice, boundary)
        )

    found = retrieval.selection.packed
    if found is not None and all(stored == sent for stored, sent in choice.syntaxes.items()):
        return retrieval.planned(representation, lambda boundary: stored_parts(found, base_url, boundary))
    if retrieval.brief:
        return None

    def parts() -> Iterator[Part]:
        return (one.part(base_url) for one in filter(None, sent(retrieval, choice)))

    return retrieval.multipart(representation, parts, retrieval.selection.count)


def stored_parts(found: PackedInstances, base_url: str, boundary: bytes) -> tuple[StoredParts, int]:
    """The plan of stored instances, and its length. The plan is kept until the next commit."""
    known = found.plan
    if known is None or known[0] != boundary:
        plan = StoredParts(*parts_of(found, base_url, boundary), PAYLOAD_END + closing(boundary))
        known = found.plan = boundary, plan
    return known[1], known[1].length


def parts_of(found: PackedInstances, base_url: str, boundary: bytes) -> tuple[list[bytes], list[Place]]:
    """The head and the place of each part. All heads but the first begin with the end of a payload."""
    heads: list[bytes] = []
    one = next(iter(found.syntaxes)) if len(found.syntaxes) == 1 else ""
    kind, before = (b"", ""), b""  # the beginning of all heads of a series
    for row in found.packed:
        above, _, uid = row[0].rpartition(b"\0")
        syntax = one or syntax_in(row)
        if kind != (above, syntax):
            kind = above, syntax
            before = PAYLOAD_END + head_of(boundary, syntax, base_url, *split_triple(row[0])[:2])
        heads.append(before + uid + END_OF_HEAD)
    heads[0] = heads[0].removeprefix(PAYLOAD_END)
    return heads, [place[:3] for place in PLACE.iter_unpack(found.places)]


def head_of(boundary: bytes, syntax: str, base_url: str, study: str, series: str) -> bytes:
    """The head of each part of a series up to its SOP Instance UID."""
    location = instance_url(base_url, study, series, "")
    head = part_head(boundary, {"Content-Type": label_of(syntax), "Content-Location": location})
    return head.removesuffix(END_OF_HEAD)


def body(retrieval: Retrieval, choice: InstancesChoice, boundary: bytes) -> Generator[bytes, None, None]:
    """All parts. The first frames of the next instances are made ahead."""
    for one in sent(retrieval, choice):
        if one is None:
            yield b""
            continue
        yield from part_chunks(retrieval.selection, one.part(retrieval.request.base_url), boundary)
    yield closing(boundary)


def sent(retrieval: Retrieval, choice: InstancesChoice) -> Iterator[SentInstance | None]:
    """None says that the next instance is not ready."""
    if not any(is_made(*pair) for pair in choice.syntaxes.items()):
        for row in retrieval.selection.rows():
            yield as_chosen(retrieval, row, choice.syntaxes[row.transfer_syntax])
        return
    for first in first_frames(retrieval, targets_of(retrieval, choice)):
        if first is None:
            yield None
            continue
        row, made, error = first.row, first.made, first.error
        try:
            if error is None and made is None:
                yield otherwise(retrieval, row, choice.syntaxes[row.transfer_syntax])
            elif made is not None:
                yield SentInstance(row, made.target, datasets.instance_pieces(datasets.transcoded(first)))
        except NotAcceptable as failure:
            error = failure
        if error is not None:
            yield as_stored(retrieval, row, error)


def targets_of(retrieval: Retrieval, choice: InstancesChoice) -> Iterator[tuple[InstanceRow, str | None]]:
    """Verifies the bytes of instances that are transcoded. Raises InstanceDamaged."""
    for row in retrieval.selection.rows():
        syntax = choice.syntaxes[row.transfer_syntax]
        transcodes = is_made(row.transfer_syntax, syntax) and has_frames(row)
        if transcodes:
            retrieval.store.require_whole(row, retrieval.selection.lease)
        yield row, syntax if transcodes else None


def otherwise(retrieval: Retrieval, row: InstanceRow, syntax: str) -> SentInstance:
    """An instance without frames to transcode."""
    if not is_made(row.transfer_syntax, syntax):
        return as_chosen(retrieval, row, syntax)
    if row.frame_kind is not FrameKind.NONE and lookup(row.transfer_syntax).encapsulated:
        return as_chosen(retrieval, row, row.transfer_syntax)  # its fragments are no frames
    return as_chosen(retrieval, row, EXPLICIT_VR_LITTLE_ENDIAN)


def as_chosen(retrieval: Retrieval, row: InstanceRow, syntax: str) -> SentInstance:
    return SentInstance(row, syntax, payloads.instance_pieces(retrieval.selection, row, syntax))


def as_stored(retrieval: Retrieval, row: InstanceRow, error: NotAcceptable) -> SentInstance:
    """The stored instance, if it cannot be transcoded. A single one has to be acceptable."""
    if retrieval.target.level is ResourceLevel.INSTANCE:
        try:
            accept.choose_instances(retrieval.ranges(), [row.transfer_syntax], single=True)
        except NotAcceptable as refusal:
            raise NotAcceptable(error.detail, refusal.acceptable) from error
    return as_chosen(retrieval, row, sent_as(row.transfer_syntax))


def sent_as(stored: str) -> str:
    """The syntax in which an instance is sent that is not transcoded."""
    return INSTANCE_SENT_AS.get(stored, stored)


def is_made(stored: str, syntax: str) -> bool:
    """Whether frames have to be transcoded."""
    return syntax != stored and (syntax != EXPLICIT_VR_LITTLE_ENDIAN or lookup(stored).encapsulated)


# The choice


def chosen(retrieval: Retrieval) -> InstancesChoice | None:
    """For each stored syntax the one in which its instances are sent. The pixels are looked at only if some
    have to be transcoded. None if the retrieval is brief and they have to be."""
    accepted, syntaxes = retrieval.accepted(), tuple(sorted(retrieval.selection.syntaxes))
    single = retrieval.target.level is ResourceLevel.INSTANCE
    few = accepted.is_short and len(syntaxes) == 1
    try:
        choice = (cached_choice if few else choice_if_all_fit)(accepted, syntaxes, single)
        if not any(is_made(*pair) for pair in choice.syntaxes.items()):
            return choice
    except NotAcceptable:
        if single and has_frames(next(retrieval.selection.rows())):
            raise
    if retrieval.brief:
        return None
    return _fitting(retrieval, accepted.ranges(), syntaxes, single)


def choice_if_all_fit(accepted: Accepted, syntaxes: tuple[str, ...], single: bool) -> InstancesChoice:
    """The choice if all targets fit the pixels."""
    possible: dict[str, Collection[str]] = {uid: transcoding.instance_targets(uid) for uid in syntaxes}
    return accept.choose_instances(accepted.ranges(), syntaxes, transcodable=possible, single=single)


cached_choice = lru_cache(maxsize=256)(choice_if_all_fit)


def _fitting(
    retrieval: Retrieval, ranges: Sequence[accept.AcceptableRange], syntaxes: Sequence[str], single: bool
) -> InstancesChoice:
    multipart, sent, refusals = True, dict[str, str](), list[NotAcceptable]()
    for stored, possible in possible_targets(retrieval, syntaxes).items():
        try:
            choice = accept.choose_instances(ranges, [stored], transcodable={stored: possible}, single=single)
            multipart, sent[stored] = choice.multipart, choice.syntaxes[stored]
        except NotAcceptable as refusal:
            refusals.append(refusal)
            sent[stored] = sent_as(stored)
    if len(refusals) == len(sent):
        raise refusals[0]
    return InstancesChoice(multipart, sent)


def possible_targets(retrieval: Retrieval, syntaxes: Sequence[str]) -> dict[str, Collection[str]]:
    """For each stored syntax the targets that fit some of its instances."""
    kinds: dict[tuple[object, ...], InstanceRow] = {}
    for row in retrieval.selection.rows():
        pixels = has_frames(row), row.bits_allocated, row.samples_per_pixel
        kind = (row.transfer_syntax, row.key.series, *pixels)
        kinds.setdefault(kind, row)
        if len(kinds) >= REPRESENTATIVES:
            break
    possible: dict[str, dict[str, None]] = {uid: {} for uid in syntaxes}
    for row in kinds.values():
        possible[row.transfer_syntax] |= dict.fromkeys(_targets_of(retrieval, row))
    return {uid: tuple(found) for uid, found in possible.items()}


def _targets_of(retrieval: Retrieval, row: InstanceRow) -> Sequence[str]:
    if not has_frames(row):
        return transcoding.TARGETS
    try:
        info: FrameInfo | None = retrieval.pool.descriptions.of(retrieval.store, row).info
    except NotAcceptable:
        info = None
    native = not lookup(row.transfer_syntax).encapsulated
    if info is None:
        return (EXPLICIT_VR_LITTLE_ENDIAN,) if native else ()
    return transcoding.instance_targets(row.transfer_syntax, info)

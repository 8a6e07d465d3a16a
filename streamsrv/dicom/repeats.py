"""What an instance repeats of the one before: the instances of a series differ in a dozen elements of a
hundred.

Strategy: one instance is *learned*: the bytes of its top-level elements lie back to back in *runs*, together
with what was made of them. Of the next instances, bytes equal to a run's are passed over by one comparison.
Where they differ, the run is split around the element that differs, which is read anew from then on. So after
a few instances what is left are the elements that always differ, and long runs between them. When these
elements are simple ones, a mould is made of it all (mould.py), which the next instances are cast in.

Rules
- Reading with and without gives the same, whatever the bytes (of more than 128 kB of elements out of order
  others may be left out). A run holds only what its own bytes decide, together with the character set, whose
  change forgets every run: no bulk values, whose offsets differ; no values that cost a warning; nothing whose
  VR other elements help to find (PS3.5 6.2.2, 7.1.3).
- A run's members are shared by many instances: nobody may change them.
- It goes with one thread and one set of limits, and holds at most MOST_BYTES of a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import orjson

from streamsrv.dicom.checks import broken_rule
from streamsrv.dicom.elements import HEADERS, LONG_VRS, SHORT_VRS, Elements, Event
from streamsrv.dicom.filemeta import PREAMBLE, FileMeta, read_file_meta
from streamsrv.dicom.instance import JsonDataset, JsonElement, SOPInstance
from streamsrv.dicom.json.writer import SPECIFIC_CHARACTER_SET, Known, MetadataWriter
from streamsrv.dicom.levels import NOTED, Level
from streamsrv.dicom.mould import Layout, Mould, Piece, Track
from streamsrv.dicom.tags import KEYS, vr_of_number
from streamsrv.dicom.window import Pread, ReadLimits, Window

FIRST_LEARNED = 2  # the first instance of a request is often the only one
# Longer headers hold mostly what differs; and splitting costs the square of the number.
MOST_BYTES = 64 * 1024
MOST_PIECES = 1_000
MOST_WARNINGS = 20
MOST_METAS = 8  # UIDs of a series have two or three lengths
MOST_SINGLES = 500  # of elements read one by one, at three times the cost
# Making a mould costs as much as reading an instance.
FIRST_TRIES = 8
CASTS_A_TRY = 16
_SHORT = frozenset(SHORT_VRS.values())


class _Piece(NamedTuple):
    """A top-level element: its bytes, and what metadata and the VRs of others take from it."""

    tag: int
    raw: bytes
    members: JsonDataset  # one, or none of a group length
    notes: dict[int, bytes]


class _Meta(NamedTuple):
    """A file meta information, whose Media Storage SOP Instance UID of `length` bytes stands between `head`
    and `tail`. The tail goes on into the dataset, so that it ends for certain where it has ended."""

    head: bytes
    length: int
    tail: bytes
    meta: FileMeta


class _Run:
    """Neighbours, compared at once."""

    __slots__ = ("first", "keep", "known", "last", "notes", "piece", "pieces", "raw")

    def __init__(self, pieces: list[_Piece], keep: frozenset[str]) -> None:
        self.pieces = pieces
        self.keep = keep
        self.first, self.last = pieces[0].tag, pieces[-1].tag
        self.raw = b"".join(piece.raw for piece in pieces)
        members: JsonDataset = {}
        self.notes: dict[int, bytes] = {}
        for piece in pieces:
            members |= piece.members
            self.notes |= piece.notes
        self.known = Known(members, keep)
        self.piece = Piece(self.raw, next(iter(members), ""), orjson.dumps(members)[1:-1])

    def split(self, buffer: bytes, at: int) -> list[_Run]:
        """What goes before and behind the first element that the bytes at `at` do not repeat."""
        number = 0
        while number < len(self.pieces) - 1 and buffer.startswith(self.pieces[number].raw, at):
            at += len(self.pieces[number].raw)
            number += 1
        parts = self.pieces[:number], self.pieces[number + 1 :]
        return [_Run(pieces, self.keep) for pieces in parts if pieces]


class Repeats:
    """Hand the same one to `read_instance` for one instance after the other."""

    def __init__(self) -> None:
        self._instances = 0
        self._runs: list[_Run] = []
        self._encoding = (True, True)  # explicit VR, little endian
        self._metas: list[_Meta] = []
        self._track: Track | None = None  # of the reading that goes on
        self._mould: Mould | None = None
        self._syntax = ""  # what the file meta information of that reading says
        self.casts = self._tries = 0  # instances that were cast, and moulds that were made

    def file_meta(self, window: Window, size: int, limits: ReadLimits) -> FileMeta:
        """What read_file_meta says, but for its elements."""
        window.load(PREAMBLE, 4)
        at = PREAMBLE - window.start
        for known in self._metas:
            end = at + len(known.head) + known.length
            if window.buffer.startswith(known.head, at) and window.buffer.startswith(known.tail, end):
                return known.meta
        meta = read_file_meta(window, size, limits)
        uid, end = meta.instance_uid, meta.end + 2
        if uid and end <= window.start + len(window.buffer):
            if len(self._metas) == MOST_METAS:
                del self._metas[0]
            head = window.bytes_at(PREAMBLE, uid.start - PREAMBLE)
            tail = window.bytes_at(uid.stop, end - uid.stop)
            self._metas.append(_Meta(head, len(uid), tail, FileMeta([], meta.end, meta.syntax)))
        return meta

    def cast(
        self, pread: Pread, size: int, window: Window, meta: FileMeta
    ) -> tuple[SOPInstance, bytes] | None:
        """The instance and its JSON text, if it fits the mould that there is."""
        self._track, self._syntax = None, meta.syntax
        if self._mould is None or self._mould.syntax != meta.syntax:
            return None
        found = self._mould.cast(pread, size, window, meta.end)
        self.casts += found is not None
        return found

    def make_mould(
        self,
        pread: Pread,
        size: int,
        window: Window,
        writer: MetadataWriter,
        instance: SOPInstance,
        layout: Layout,
    ) -> None:
        """Of the instance that has just been read, if it lends itself; of a kind that never fits only
        sometimes."""
        track = self._track
        if track is None or self._tries > FIRST_TRIES + (self.casts + self._instances) // CASTS_A_TRY:
            return
        explicit, little = self._encoding
        mould = track.mould(window, writer, instance, layout, explicit=explicit) if little else None
        if mould is not None:
            self._tries += 1
            again = mould.cast(pread, size, window.again(), instance.dataset_offset)
            if again == (instance, writer.flushed):
                mould.syntax = self._syntax
                self._mould = mould

    def events(self, elements: Elements, writer: MetadataWriter) -> Iterator[Event]:
        """Those of `elements.walk()`, but what is known goes straight to the writer."""
        top = elements.levels[0]
        encoding = (top.explicit, top.little)
        self._instances += 1
        if self._runs and encoding == self._encoding:
            return self._known(elements, writer)
        if self._instances < FIRST_LEARNED:
            return elements.walk()
        self._encoding = encoding
        return self._learned(elements, writer)

    def _known(self, elements: Elements, writer: MetadataWriter) -> Iterator[Event]:
        window, notes = elements.window, elements.levels[0].notes
        runs, number, singles = self._runs, 0, 0
        track = self._track = Track(elements.position)
        last = -1  # of what is known so far
        while number < len(runs) and singles < MOST_SINGLES:
            run = runs[number]
            window.load(elements.position, len(run.raw))
            at = elements.position - window.start
            if window.buffer.startswith(run.raw, at):
                number += 1
                track.parts.append(run.piece)
                if run.first == SPECIFIC_CHARACTER_SET:
                    yield from elements.one()
                    continue
                writer.repeat(run.known, len(run.raw))
                notes.update(run.notes)
                elements.position += len(run.raw)
                last = run.last
                continue
            tag, short = _next(elements)
            if tag <= last:
                break
            if SPECIFIC_CHARACTER_SET in (tag, run.first):
                runs.clear()  # what is known was in another character set
            elif tag < run.first:
                singles += 1
                if short is None:
                    track.simple = False
                    yield from elements.one()
                else:
                    track.hole(short, elements)
                    elements.position = short[2] + short[3]
                    yield short
            else:
                runs[number : number + 1] = run.split(window.buffer, at) if tag <= run.last else ()
        if singles > sum(len(run.pieces) for run in runs):
            runs.clear()  # so little is known that the next one is learned
        track.end = elements.position
        rest = elements.walk()
        for event in rest:
            if len(track.rest) < 2:
                track.rest.append(event)
            if event[0] <= last:  # perhaps out of order
                track.simple = False
                writer.part()
                yield event
                break
            yield event
        yield from rest

    def _learned(self, elements: Elements, writer: MetadataWriter) -> Iterator[Event]:
        lesson = _Lesson(elements)
        walk = elements.walk()
        for event in walk:
            yield event
            if not lesson.take(event):
                break
        self._runs = lesson.runs(writer)
        yield from walk


class _Lesson:
    """The top-level elements of one walk."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._explicit = elements.levels[0].explicit
        self._end = elements.position  # of the element before
        self._tag = self._last = -1  # of the element that is open, and of the one before
        self._own = True  # no other element has a say in the VRs of the open one
        self._found: list[tuple[int, bytes, dict[int, bytes]] | None] = []  # None: a gap
        self._length = 0

    def take(self, event: Event) -> bool:
        """False when no more can be learned."""
        tag, _, offset, length, value = event
        elements = self._elements
        if len(elements.levels) > 1 and self._tag >= 0 and offset - self._end > MOST_BYTES:
            return False  # the sequence is too long, and little stands behind one
        if self._tag < 0:
            self._tag, self._own = tag, self._explicit or not _depends(tag)
        elif self._own:
            self._own = not _depends(tag)
        if len(elements.levels) > 1:
            return True
        tag, self._tag = self._tag, -1
        if tag <= self._last:
            # The writer has it already: one of the same tag before it says what its bytes do not.
            self._found = [None if found and found[0] == tag else found for found in self._found]
            return False
        begin, end = self._end, elements.position if value is None else offset + length
        at = begin - elements.window.start
        raw = elements.window.buffer[at : at + end - begin] if at >= 0 and end - begin <= MOST_BYTES else b""
        known = self._own and len(raw) == end - begin and (not self._explicit or _says_its_vr(raw, value))
        self._found.append((tag, raw, _notes(tag, value)) if known else None)
        self._last, self._end, self._length = tag, end, self._length + len(raw)
        return self._length < MOST_BYTES and len(self._found) < MOST_PIECES

    def runs(self, writer: MetadataWriter) -> list[_Run]:
        """What was learned; nothing if some of it was written out already."""
        members = writer.unwritten()
        if not members or len(writer.warnings) > MOST_WARNINGS:
            return []
        paths = [each.path for each in writer.bulk] + [each.tag for each in writer.warnings]
        unfit = {*writer.extra, *(path[:8] for path in paths)}
        groups: list[list[_Piece]] = [[]]
        last = ""
        for found in self._found:
            tag, raw, notes = found or (0, b"", {})
            key = KEYS.get(tag) or f"{tag:08X}"
            member = {key: members[key]} if key in members else {}
            if any(last < extra <= key for extra in writer.extra):
                groups.append([])
            last = key
            if not raw or key in unfit or key < "0003" or (member and broken_rule(members[key])):
                groups.append([])
                continue
            if member and key not in writer.keep:
                member[key] = cast(JsonElement, orjson.Fragment(orjson.dumps(members[key])))
            if tag == SPECIFIC_CHARACTER_SET:  # stands alone
                groups += [_Piece(tag, raw, member, notes)], []
            else:
                groups[-1].append(_Piece(tag, raw, member, notes))
        return [_Run(pieces, writer.keep) for pieces in groups if pieces]


def _next(elements: Elements) -> tuple[int, Event | None]:
    """The tag of the next element, -1 near the end of the dataset; and its event if it is an ordinary one: of
    a short VR that only itself or its tag decides, all in the window."""
    level, window, position = elements.levels[0], elements.window, elements.position
    held = window.load(position, 8)
    if held < 8 or level.end - position < 8:
        return -1, None
    buffer, at = window.buffer, position - window.start
    group, number, vr, length = HEADERS[level.little](buffer, at)
    tag = group << 16 | number
    if level.explicit:
        name = SHORT_VRS.get(vr) if not group & 1 or number > 0xFF else None
    else:
        plain = level.little and group > 2 and not group & 1 and tag not in NOTED
        name = vr_of_number(tag) if plain else None
        name, length = name if name in _SHORT else None, int.from_bytes(buffer[at + 4 : at + 8], "little")
    if name is None or 8 + length > min(held, level.end - position):
        return tag, None
    return tag, (tag, name, position + 8, length, buffer[at + 8 : at + 8 + length])


def _depends(tag: int) -> bool:
    """Whether other elements decide the VR of this one if it does not say it itself."""
    return bool(tag >> 16 & 1) or len(vr_of_number(tag) or "") > 2


def _says_its_vr(raw: bytes, value: bytes | None) -> bool:
    """Of an element of an explicit VR dataset. UN says nothing, nor does it in a sequence."""
    vr = raw[4:6]
    return (vr in SHORT_VRS or vr in LONG_VRS) and vr != b"UN" and (value is not None or b"UN" not in raw)


def _notes(tag: int, value: bytes | None) -> dict[int, bytes]:
    level = Level(0, 0, items=False, delimited=False, explicit=True, little=True)
    level.note(tag, value or b"")
    return level.notes

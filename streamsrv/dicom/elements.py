"""Reads the elements of a dataset in file order, without recursion and without loading large values (PS3.5
section 7).

Strategy: `Elements.events` is a generator of plain tuples. One Struct unpack decides an element. Only a short
value of a known VR inside the window stays in the hot loop; a method handles everything else (delimiters,
long VRs, implicit VR, malformed data). Open sequences and items are `Container`s on a list, so nesting costs
no stack.

Events are (tag, vr, offset, length, value):
- an element with its value as bytes; the value is None if it exceeds the limits (bulk);
- (tag, "SQ", offset, length, None) opens a sequence, (ITEM, ...) an item. (ITEM_END, ...) and
  (SEQUENCE_END, ...) close them, with or without a delimiter in the file.

Rules:
- A value of undefined length is a sequence if its VR is SQ or UN (6.2.2: then implicit VR little endian),
  else fragments (A.4).
- An element without a VR, or with UN, gets the VR of the dictionary (6.2.2, Annex A.1). A private element
  gets the VR that pydicom's private dictionary has for its private creator (7.8.1), else UN.
- An element that is a sequence by the dictionary alone is UN if its value has other bytes than items.
- For an ambiguous VR ("US or SS") Pixel Representation decides, for LUT Data the first value of LUT
  Descriptor.
- It tolerates the errors that pydicom tolerates: an implicit VR item in an explicit dataset, an element
  whose VR is no VR.
- A length beyond the end of its parent, a missing delimiter or a truncated header raises NotDicom with tag
  and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from streamsrv.dicom.tags import private_vr, vr_of_number
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom

Event = tuple[int, str, int, int, bytes | None]
# (tag, offset of the first item, end of the parent, little endian) -> offset of the sequence delimiter
SkipFragments = Callable[[int, int, int, bool], int]

ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF

# PS3.5 Table 7.1-2: these have a 16-bit length, all others 32 bits after two reserved bytes.
SHORT_VRS = {
    vr.encode(): vr
    for row in ("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US",)
    for vr in row.split(" ")
}
LONG_VRS = {vr.encode(): vr for row in ("OB OD OF OL OV OW SQ SV UC UN UR UT UV",) for vr in row.split(" ")}
BINARY_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_VRS = frozenset((*SHORT_VRS, *LONG_VRS))
_NO_VRS: dict[bytes, str] = {}

HEADERS = {True: Struct("<HH2sH").unpack_from, False: Struct(">HH2sH").unpack_from}
_TAGS = {True: Struct("<HHI").unpack_from, False: Struct(">HHI").unpack_from}
_ITEM_TAG = b"\xfe\xff\x00\xe0"
# An item, or the delimiter of a sequence without items.
_STARTS = {
    True: (_ITEM_TAG, b"\xfe\xff\xdd\xe0"),
    False: (b"\xff\xfe\xe0\x00", b"\xff\xfe\xe0\xdd"),
}
_WORDS = {True: Struct("<I").unpack_from, False: Struct(">I").unpack_from}

PIXEL_REPRESENTATION = 0x00280103
LUT_DESCRIPTOR = 0x00283002
NOTED = (PIXEL_REPRESENTATION, LUT_DESCRIPTOR)  # standard elements that decide the VR of others

_NOTHING: dict[int, bytes] = {}  # a sequence has no elements of its own


class Container:
    """An open dataset (`items` False) or sequence (`items` True). It ends at `end`, or before at a delimiter
    if it is `delimited`."""

    __slots__ = ("delimited", "end", "explicit", "items", "little", "notes", "tag")

    # Files have millions of containers: arguments by name would double the time of a call.
    def __init__(
        self, tag: int, end: int, items: bool, delimited: bool, explicit: bool, little: bool
    ) -> None:
        self.tag = tag
        self.end = end
        self.items = items
        self.delimited = delimited
        self.explicit = explicit
        self.little = little
        # Values that decide the VR of others: private creators by group and block (24 bits), others by tag.
        self.notes: dict[int, bytes] = _NOTHING if items else {}

    def note(self, tag: int, value: bytes) -> None:
        """Keep the value if it decides the VR of other elements."""
        if tag in NOTED:
            self.notes[tag] = value
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF < 0x100:
            self.notes[tag >> 16 << 8 | tag & 0xFF] = value


class Elements:
    """The elements from `start` to `end` of `window`. `skip_fragments` finds the end of fragments.

    `levels[0]` is the dataset itself, `levels[-1]` the innermost open container.
    """

    def __init__(
        self,
        window: ReadWindow,
        start: int,
        end: int,
        *,
        explicit: bool,
        little: bool,
        limits: ReadLimits,
        skip_fragments: SkipFragments,
    ) -> None:
        self.window = window
        self.position = start
        self.limits = limits
        self.levels = [Container(0, end, False, False, explicit, little)]
        self._start = start
        self._ahead: bytes | None = None  # Pixel Representation of the dataset, if it was read ahead
        self._skip_fragments = skip_fragments
        self._checking = False  # in _are_items

    def events(self) -> Iterator[Event]:
        """Yields all events up to the end of the dataset. Raises NotDicom and InstanceRefused.

        The loop is long because one call per element would double its time.
        """
        window, levels, limit_count = self.window, self.levels, self.limits.max_elements
        count = 0
        while True:
            if count > limit_count:
                raise InstanceRefused(f"more than {limit_count:,} elements", offset=self.position)
            level, position = levels[-1], self.position
            while position == level.end and not level.delimited:
                if len(levels) == 1:
                    return
                yield self._close(level)
                level = levels[-1]
            buffer, base, little = window.buffer, window.start, level.little
            at = position - base
            limit = min(len(buffer), level.end - base)
            if at < 0 or at + 8 > limit:
                if not self._refill(level):
                    return
            elif level.items:
                while at + 8 <= limit:
                    group, element, length = _TAGS[little](buffer, at)
                    count += 1
                    tag = group << 16 | element
                    if length or tag != ITEM:
                        yield self._item(level, buffer, at, tag, length)
                        break
                    # Files have millions of empty items, so these get no container.
                    at += 8
                    self.position = base + at
                    yield ITEM, "", base + at, 0, None
                    yield ITEM_END, "", base + at, 0, None
            else:
                unpack, notes = HEADERS[little], level.notes
                vrs = SHORT_VRS if level.explicit else _NO_VRS
                while at + 8 <= limit:
                    group, element, vr, length = unpack(buffer, at)
                    count += 1
                    name = vrs.get(vr)
                    if name is not None:
                        start = at + 8
                        stop = start + length
                        if stop <= limit:
                            value = buffer[start:stop]
                            if group & 1 and 0x10 <= element < 0x100:
                                notes[group << 8 | element] = value
                            at = stop
                            yield group << 16 | element, name, base + start, length, value
                            continue
                    self.position = base + at
                    event = self._element(level, buffer, at, group << 16 | element, vr, length)
                    if event is not None:
                        yield event
                    if window.start != base or levels[-1] is not level:
                        break
                    at = self.position - base
                else:
                    self.position = base + at

    def _refill(self, level: Container) -> bool:
        """Load the next header into the window. Returns False at the end of the dataset."""
        position = self.position
        left = level.end - position
        if left == 0:
            reason = "a sequence or item of undefined length has no delimiter"
            raise NotDicom(reason, offset=position, tag=_hex(level.tag))
        have = self.window.load(position, 8)
        if left >= 8 and have >= 8:
            return True
        rest = self.window.bytes_at(position, min(left, 8))
        if len(self.levels) == 1 and not rest.strip(b"\0"):
            return False  # less than a header of padding
        tag = _hex(level.tag) if level.tag else None
        raise NotDicom("the dataset is truncated", offset=position, tag=tag)

    def _close(self, level: Container) -> Event:
        self.levels.pop()
        return SEQUENCE_END if level.items else ITEM_END, "", self.position, 0, None

    def _item(self, level: Container, buffer: bytes, at: int, tag: int, length: int) -> Event:
        """Reads the beginning of an item, or the end of the sequence."""
        position = self.position
        self.position = position + 8
        # Some writers end a sequence of defined length by a delimiter too.
        if tag == SEQUENCE_END and (level.delimited or self.position == level.end):
            return self._close(level)
        if tag != ITEM:
            raise NotDicom("expected an item of a sequence", offset=position, tag=_hex(level.tag))
        end = level.end if length == UNDEFINED else self.position + length
        if end > level.end:
            raise NotDicom("an item is longer than its sequence", offset=position, tag=_hex(level.tag))
        # Some writers switch to implicit VR inside sequences. The first element then has no VR.
        explicit = level.explicit
        if explicit and length and buffer[at + 12 : at + 14] not in _VRS:
            explicit = not self._looks_implicit(min(end, position + 16))
        self.levels.append(Container(level.tag, end, False, length == UNDEFINED, explicit, level.little))
        return ITEM, "", position + 8, length, None

    def _looks_implicit(self, end: int) -> bool:
        """Returns whether the VR of the first element of this item is not two capital letters."""
        head = self.window.bytes_at(self.position, end - self.position)
        return len(head) >= 6 and not (head[4:6].isalpha() and head[4:6].isupper())

    def _element(
        self, level: Container, buffer: bytes, at: int, tag: int, vr: bytes, length: int
    ) -> Event | None:
        """Reads an element that the hot loop does not take. Returns None if it makes no event."""
        position = self.position
        if tag >> 16 == 0xFFFE:
            if tag == ITEM_END and level.delimited:
                self.position = position + 8
                return self._close(level)
            self._stray(level, tag)
            return None
        if tag == 0 and len(self.levels) == 1 and not buffer[at + 4 : at + 8].strip(b"\0"):
            self._padding()
            return None
        name, header = "", 8
        if level.explicit:
            name, header, length = self._explicit_header(level, buffer, at, tag, vr, length)
        if not name:
            short, length = length, _WORDS[level.little](buffer, at + 4)[0]
            if level.explicit and vr == b"  " and length > level.end - position - header:
                length = short  # two blanks are a VR; dcmtk reads it so
        unknown = name == "UN"
        from_dictionary = unknown or not name
        if from_dictionary:
            name = known_vr(level, tag, length, self._signed_pixels) or name or "UN"
        start = position + header
        if length == UNDEFINED:
            return self._undefined(level, tag, name, start, unknown)
        stop = start + length
        if stop > level.end:
            raise NotDicom("a value is longer than its container", offset=position, tag=_hex(tag))
        if name == "SQ":
            standard = not (unknown or tag >> 16 & 1)
            if (
                not from_dictionary
                or (standard and buffer.startswith(_ITEM_TAG, at + header))
                or self._are_items(level, tag, start, length, unknown)
            ):
                return self._open(level, tag, start, length, implicit=unknown)
            name = "UN"
        value = self._load(tag, name, start, length)
        if value:
            level.note(tag, value)
        self.position = stop
        return tag, name, start, length, value

    def _explicit_header(
        self, level: Container, buffer: bytes, at: int, tag: int, vr: bytes, length: int
    ) -> tuple[str, int, int]:
        """Returns VR, header length and value length. VR is "" for an implicit VR element."""
        name = LONG_VRS.get(vr)
        if name is None:
            if vr in SHORT_VRS:
                return SHORT_VRS[vr], 8, length
            if not b"AA" <= vr <= b"ZZ":
                return "", 8, length
            # PS3.5 Table 7.1-1: a VR that 7.1-2 does not list has 32 bits of length. pydicom reads 16.
            name = "UN"
            if length:
                return name, 8, length
        if at + 12 > len(buffer):
            buffer, at = self.window.bytes_at(self.position, 12), 0
            if len(buffer) < 12:
                raise NotDicom("the dataset is truncated", offset=self.position, tag=_hex(tag))
        return name, 12, int(_WORDS[level.little](buffer, at + 8)[0])

    def _signed_pixels(self) -> bool:
        """Returns whether the innermost Pixel Representation is 1. Reads ahead if it has not come yet."""
        for level in reversed(self.levels):
            if PIXEL_REPRESENTATION in level.notes:
                return level.notes[PIXEL_REPRESENTATION][:1] == b"\1"
        if self._ahead is None:
            self._ahead = b""
            ahead = self.again()
            ahead._ahead = b""
            for tag, _, _, _, value in ahead.events():
                if len(ahead.levels) == 1 and tag >= PIXEL_REPRESENTATION and tag >> 16 != 0xFFFE:
                    self._ahead = value or b"" if tag == PIXEL_REPRESENTATION else b""
                    break
        return self._ahead[:1] == b"\1"

    def again(self) -> Elements:
        """The same elements from their start, through another window."""
        top = self.levels[0]
        return Elements(
            self.window.again(),
            self._start,
            top.end,
            explicit=top.explicit,
            little=top.little,
            limits=self.limits,
            skip_fragments=self._skip_fragments,
        )

    def _undefined(self, level: Container, tag: int, name: str, start: int, unknown: bool) -> Event:
        """Reads a value of undefined length: a sequence or fragments."""
        if name == "UN" and not level.explicit and self._tag_at(level, start) not in (ITEM, SEQUENCE_END):
            raise NotDicom("undefined length, yet no item follows", offset=self.position, tag=_hex(tag))
        if name in ("SQ", "UN"):
            return self._open(level, tag, start, UNDEFINED, implicit=unknown or name == "UN")
        if name not in BINARY_VRS:
            reason = f"undefined length is not allowed for VR {name}"
            raise NotDicom(reason, offset=self.position, tag=_hex(tag))
        if not level.explicit:
            name = "OB"  # PS3.5 A.4: fragments are bytes, also where the dictionary has OW
        end = self._skip_fragments(tag, start, level.end, level.little)
        self.position = end + 8
        return tag, name, start, end - start, None

    def _tag_at(self, level: Container, position: int) -> int:
        head = self.window.bytes_at(position, 8)
        if len(head) < 8:
            raise NotDicom("the dataset is truncated", offset=position)
        group, element, _ = _TAGS[level.little](head, 0)
        return int(group) << 16 | int(element)

    def _open(self, level: Container, tag: int, start: int, length: int, *, implicit: bool = False) -> Event:
        """Opens a sequence. The items of UN are implicit VR little endian by the standard; `_looks_implicit`
        checks each."""
        if len(self.levels) >= 2 * self.limits.max_depth:
            reason = f"sequences nest deeper than {self.limits.max_depth} levels"
            raise NotDicom(reason, offset=self.position, tag=_hex(tag))
        undefined = length == UNDEFINED
        end = level.end if undefined else start + length
        little = level.little or (implicit and self.window.bytes_at(start, 4) in _STARTS[True])
        self.levels.append(Container(tag, end, True, undefined, level.explicit, little))
        self.position = start
        return tag, "SQ", start, length, None

    def _are_items(self, level: Container, tag: int, start: int, length: int, unknown: bool) -> bool:
        """Returns whether a value is a sequence, as only the dictionary says.

        A standard element without VR is one if an item is first. The items of a private one, or with VR UN,
        have to be valid. Such values inside are skipped: each is checked when the reader opens the sequence
        around it. So a byte is read twice at most, however deep it is."""
        first = self.window.bytes_at(start, min(length, 4))
        if length and first not in _STARTS[level.little] and not (unknown and first in _STARTS[True]):
            return False
        if not (unknown or tag >> 16 & 1):
            return True
        if self._checking:
            return False
        levels, depth, position = self.levels, len(self.levels), self.position
        self._checking = True
        try:
            self._open(level, tag, start, length, implicit=unknown)
            for _ in self.events():
                if len(levels) == depth:
                    return True
        except NotDicom:
            return False
        finally:
            del levels[depth:]
            self.position = position
            self._checking = False
        return False

    def _load(self, tag: int, name: str, start: int, length: int) -> bytes | None:
        """Returns the value; None if it exceeds the limits or is Pixel Data of the dataset."""
        limits = self.limits
        if length > (limits.bulk_threshold if name in BINARY_VRS else limits.text_threshold):
            return None
        if 0x7FE00000 < tag <= 0x7FE0FFFF and name in BINARY_VRS and length and len(self.levels) == 1:
            return None
        value = self.window.bytes_at(start, length)
        if len(value) < length:
            raise NotDicom("a value is truncated", offset=start, tag=_hex(tag))
        return value

    def _stray(self, level: Container, tag: int) -> None:
        """Skips an item delimiter at the end of an item of defined length. Raises NotDicom for any other."""
        if tag != ITEM_END or len(self.levels) == 1 or self.position + 8 != level.end:
            raise NotDicom("unexpected delimiter", offset=self.position, tag=_hex(tag))
        self.position += 8

    def _padding(self) -> None:
        """Skips zeros behind the last element, a window at a time."""
        self.window.load(self.position, 8)
        rest = self.window.buffer[self.position - self.window.start :]
        self.position += (len(rest) - len(rest.lstrip(b"\0"))) // 8 * 8


def _hex(tag: int) -> str:
    return f"{tag:08X}"


# The VR of elements without one


def known_vr(level: Container, tag: int, length: int, signed_pixels: Callable[[], bool]) -> str | None:
    """Returns the VR that the dictionaries have for an element without VR, or with UN."""
    if tag >> 16 & 1:
        return _private_vr(level, tag)
    vr = vr_of_number(tag)
    # UN stays UN where pydicom keeps it, and in big endian datasets, because its value is little endian.
    if vr is None or (level.explicit and vr != "SQ" and (length >= 0xFFFF or not level.little)):
        return None
    return _unambiguous(level, vr, signed_pixels) if len(vr) > 2 else vr


def _private_vr(level: Container, tag: int) -> str | None:
    element = tag & 0xFFFF
    if 0x10 <= element < 0x100:
        return "LO"
    creator = level.notes.get(tag >> 16 << 8 | element >> 8)
    if not creator or element < 0x1000:
        return None
    vr = private_vr(tag, creator.decode("latin-1").strip(" \0"))
    return vr if vr is None or len(vr) == 2 else vr[-2:]


def _unambiguous(level: Container, vr: str, signed_pixels: Callable[[], bool]) -> str:
    """One VR for "US or SS", "OB or OW", "US or OW" and "US or SS or OW" (LUT Data: PS3.3 C.11.1.1.1)."""
    if vr == "US or SS":
        return "SS" if signed_pixels() else "US"
    if vr == "US or OW" and level.notes.get(LUT_DESCRIPTOR, b"")[:2] == b"\1\0":
        return "US"
    return "OW"

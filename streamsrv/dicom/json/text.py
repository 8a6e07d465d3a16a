"""Reads DICOM JSON text (PS3.18 Annex F) of any length in bounded memory: a value at a time, or only the
attributes at the top level.

Strategy of `JsonReader`: the caller asks for the next value. Python's C scanner parses a value that ends
within WHOLE characters at once. For a longer object or array the reader returns LARGE, and the caller asks
for its members or elements one by one. So a dataset of a few kilobytes is one call, and a sequence of a
hundred megabytes is read item by item.

Strategy of `members`: a dataset of 60 MB of text takes about a gigabyte as Python objects, and a search needs
one of its attributes. So nothing is parsed, and NumPy finds the quotes and brackets of a piece. A string that
begins at depth 1 is the tag of an attribute.

Rules
- The text is UTF-8 in pieces of any size. Strings and numbers of any length are read whole.
- Malformed text raises NotDicom with its place, a single value over LONGEST InstanceRefused.
- `members` reads only text of MetadataWriter: without blanks, with ascending tags of eight digits (F.2.2),
  and each element is an object.
"""

from __future__ import annotations

import codecs
import enum
import json
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsrv.errors import InstanceRefused, NotDicom

# Characters of a value that is parsed at once; it takes about 5 MB as Python objects.
WHOLE = 256 * 1024
# Characters of a single value, which is in memory several times. Long binary values are bulk data.
LONGEST = 32 * 1024 * 1024
STEP = 64 * 1024  # characters that are taken from the pieces at least

_NUMBER = re.compile(r"[-+.0-9eE]+")
_BLANKS = re.compile(r"[ \t\r\n]*")
_STRUCTURE = re.compile(r'[^"{}\[\]]*+(?:"(?:[^"\\]|\\.)*+"|[{}\[\]])', re.DOTALL)
_DEEPER = {"{": 1, "[": 1, "}": -1, "]": -1}
_OPENING = ("{", "[")

_QUOTE, _BACKSLASH = 0x22, 0x5C
_NESTING = np.zeros(256, np.int8)
_NESTING[[0x7B, 0x5B]] = 1
_NESTING[[0x7D, 0x5D]] = -1
_NAME = len('"00100010":')
_SEQUENCE = b'{"vr":"SQ"'
_HELD = 32  # bytes of a piece that are read with the next one, so that no name and no VR is cut

Positions = NDArray[np.int64]


class Unparsed(enum.Enum):
    """Stands for a value that the reader does not return."""

    LARGE = "too long, or too deep, to be parsed at once"
    AMBIGUOUS = "an object with a repeated name, whose value depends on the reader (RFC 8259 section 4)"
    NO_NUMBER = "NaN and Infinity, which JSON does not have (RFC 8259 section 6)"


LARGE, AMBIGUOUS, NO_NUMBER = Unparsed


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _unambiguous(pairs: list[tuple[str, Any]]) -> Any:
    members = dict(pairs)
    return members if len(members) == len(pairs) else AMBIGUOUS


_parse = json.JSONDecoder(parse_constant=_no_number, strict=False).raw_decode
_parse_foreign = json.JSONDecoder(
    parse_constant=lambda text: NO_NUMBER, strict=False, object_pairs_hook=_unambiguous
).raw_decode


class JsonReader:
    """`last` is the text of the last value, `depth` the number of open objects and arrays. In the `foreign`
    text of a client an object with a repeated name is AMBIGUOUS, and NaN is NO_NUMBER."""

    def __init__(self, pieces: Iterable[bytes], *, foreign: bool = False) -> None:
        self._pieces = iter(pieces)
        self._parse = _parse_foreign if foreign else _parse
        self.depth = 0
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before `_text`
        self._ended = False
        self._broken = False
        self.last = ""

    def value(self, limit: int | None = WHOLE) -> Any:
        """The next value; LARGE if it is an object or array longer than `limit` characters, or too deep.
        Without a `limit` it is never LARGE, and text that nests too deeply raises NotDicom."""
        first = self.peek()
        container = first in _OPENING
        while True:
            try:
                complete = self._parsed()
            except RecursionError:
                if limit is None:
                    raise NotDicom("the JSON text nests too deeply") from None
                return LARGE
            if complete is not None:
                found, end = complete
                if container or first == '"' or not self._may_go_on() or not self._more():
                    self.last, self._at = self._text[self._at : end], end
                    return found
            elif container and limit is not None and len(self._text) - self._at > limit:
                return LARGE
            elif not self._more():
                raise self.malformed()

    def _may_go_on(self) -> bool:
        """Returns whether the value is a number at the end of `_text`, as "-2.5" of "-2.5e3"."""
        digits = _NUMBER.match(self._text, self._at)
        return digits is not None and digits.end() == len(self._text)

    def _parsed(self) -> tuple[Any, int] | None:
        try:
            return self._parse(self._text, self._at)
        except ValueError:
            return None

    def members(self) -> Iterator[str]:
        """Yields the names of the next object. Read the value of each before the next name."""
        for _ in self._several("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise self.malformed()
            self._take(":")
            yield name

    def elements(self) -> Iterator[None]:
        """Yields once for each element of the next array. Read each before the next one."""
        return self._several("[", "]")

    def _several(self, begin: str, end: str) -> Iterator[None]:
        self._take(begin)
        if self.peek() != end:
            yield
            while self.peek() == ",":
                self._take(",")
                yield
        self._take(end)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]  # always matches
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def end(self) -> None:
        """Raises NotDicom if more text follows."""
        if self.peek():
            raise self.malformed()

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self.malformed()
        self._at += 1
        self.depth += _DEEPER.get(character, 0)

    def skip(self) -> None:
        """Skips the next value."""
        if self.peek() not in _OPENING:
            self.value()
            return
        depth = self.depth
        self._take(self.peek())
        self.leave(depth)

    def leave(self, depth: int) -> None:
        """Skips the rest of the objects and arrays that are open below `depth`. Raises NotDicom in
        malformed text."""
        if self._broken:
            raise NotDicom("the rest of this JSON text was not read")
        while self.depth > depth:
            found = _STRUCTURE.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                self.depth += _DEEPER.get(self._text[self._at - 1], 0)
            elif not self._more():
                raise self.malformed()

    def _more(self) -> bool:
        """Takes pieces, at least as long as `_text`. Returns False at their end."""
        held = self._text[self._at :]
        if len(held) > LONGEST:
            raise InstanceRefused(f"a JSON value of more than {LONGEST:,} characters")
        self._passed += self._at
        parts, length = [held], 0
        try:
            while length < max(STEP, len(held)) and not self._ended:
                piece = next(self._pieces, None)
                self._ended = piece is None
                parts.append(self._decode(piece or b"", final=self._ended))
                length += len(parts[-1])
        except UnicodeDecodeError:
            raise NotDicom("the text is not UTF-8") from None
        self._text, self._at = "".join(parts), 0
        return length > 0

    def malformed(self) -> NotDicom:
        self._broken = True
        return NotDicom(f"malformed JSON at character {self._passed + self._at}")


def names_any(pieces: Iterable[bytes], tags: Collection[str]) -> bool:
    """Returns whether one of the tags is a name in the text, at any depth."""
    names = [b'"%b":{' % tag.encode() for tag in tags]
    before = b""
    for piece in pieces:
        text = before + piece
        if any(name in text for name in names):
            return True
        before = text[-_HELD:]
    return False


def elements_in(
    pieces: Iterable[bytes], tags: Collection[str], most: int, no_sequences: Collection[str] = ()
) -> dict[str, bytes] | None:
    """The JSON text of these attributes at the top level; None if they have more than `most` bytes in all.
    Sequences with a tag in `no_sequences` are left out."""
    found: dict[str, list[bytes]] = {}
    length, last, before, wanted = 0, max(tags), "", False
    for tag, text in members(pieces):
        if tag > last:
            break
        if tag != before:
            before, wanted = tag, tag in tags and not (tag in no_sequences and text.startswith(_SEQUENCE))
        if wanted:
            found.setdefault(tag, []).append(text)
            length += len(text)
            if length > most:
                return None
    return {tag: b"".join(texts) for tag, texts in found.items()}


def members(pieces: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields tag and JSON text of each element; a long text in several consecutive pieces."""
    scanner, rest, tag = _Scanner(), b"", ""
    for piece in chain(pieces, [None]):
        text = rest + (piece or b"")
        end = len(text) - 1 if piece is None else len(text) - _HELD  # without the last brace
        if end <= 0:
            rest = text
            continue
        end -= text[end - 1] == 0x2C and piece is not None  # a comma belongs to the name behind it
        starts = [-1, *scanner.names(text[:end]), end + 1]
        if 0 <= starts[-2] > end - _NAME - len(_SEQUENCE):
            starts.pop()
            end = starts[-1]
            scanner.stand_at_name()
        for start, stop in pairwise(starts):
            at = 0
            if start >= 0:
                tag, at = text[start + 1 : start + 9].decode("ascii", "replace"), start + _NAME
            if tag and at < stop - 1:
                yield tag, text[at : stop - 1]  # without the comma
        rest = text[end:]


class _Scanner:
    """The state of the text at the begin of a piece."""

    def __init__(self) -> None:
        self._depth = 0
        self._inside = 0  # 1 within a string
        self._odd = 0  # 1 behind an odd number of backslashes

    def stand_at_name(self) -> None:
        """Sets the state to that at the begin of a name."""
        self._depth, self._inside, self._odd = 1, 0, 0

    def names(self, text: bytes) -> list[int]:
        """The offsets of the names of the outermost object, at their quotes."""
        data = np.frombuffer(text, np.uint8)
        quotes = self._quotes(text, data)
        deeper = _NESTING[data]
        brackets = np.flatnonzero(deeper)
        outside = (np.searchsorted(quotes, brackets) + self._inside) & 1 == 0
        brackets = brackets[outside]
        depths = self._depth + np.concatenate(([0], np.cumsum(deeper[brackets], dtype=np.int64)))
        opening = quotes[self._inside :: 2]
        names = opening[depths[np.searchsorted(brackets, opening)] == 1]
        self._depth = int(depths[-1])
        self._inside = (self._inside + len(quotes)) & 1
        return [int(name) for name in names]

    def _quotes(self, text: bytes, data: NDArray[np.uint8]) -> Positions:
        """The quotes that begin or end a string."""
        quotes = np.flatnonzero(data == _QUOTE)
        if not self._odd and b"\\" not in text:
            return quotes
        index = np.arange(len(data))
        # For each byte the index of the last byte up to it that is no backslash.
        other = np.maximum.accumulate(np.where(data == _BACKSLASH, -1 - self._odd, index))
        run = np.concatenate(([self._odd], index - other))  # backslashes in a row before each byte
        self._odd = int(run[-1]) & 1
        unescaped: Positions = quotes[run[quotes] & 1 == 0]
        return unescaped

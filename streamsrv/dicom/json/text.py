"""Reads DICOM JSON text (PS3.18 Annex F) of any length, a value at a time, in bounded memory.

Strategy: whoever reads asks for the next value. One that ends within WHOLE characters is parsed at once by
Python's C scanner; of a longer object or array the reader says LARGE, and its members or elements are
asked for one by one. So a dataset of a few kilobytes is one call, and a sequence of a hundred megabytes is
read item by item.

Rules
- Text comes as UTF-8 in pieces of any size. Strings and numbers are read whole, whatever their length.
- Malformed text raises NotDicom with its place, a
  single value over LONGEST InstanceRefused.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from streamsrv.errors import InstanceRefused, NotDicom

# Values up to this many characters are parsed at once: in Python objects that is about 5 MB.
WHOLE = 256 * 1024
# No single value is longer: binary values belong into bulk data, and this is held several times over.
LONGEST = 32 * 1024 * 1024
STEP = 64 * 1024  # at least so much is taken from the pieces at a time

_NUMBER = re.compile(r"[-+.0-9eE]+")
_BLANKS = re.compile(r"[ \t\r\n]*")
_STRUCTURE = re.compile(r'[^"{}\[\]]*+(?:"(?:[^"\\]|\\.)*+"|[{}\[\]])', re.DOTALL)
_DEEPER = {"{": 1, "[": 1, "}": -1, "]": -1}
_OPENING = ("{", "[")


class Large:
    """Of a value: too long, or too deep, to be parsed at once."""


class Ambiguous:
    """Stands for an object in which a name occurs twice: readers disagree about its value (RFC 8259
    section 4)."""


class NoNumber:
    """Stands for NaN and Infinity, which are no JSON (RFC 8259 section 6)."""


LARGE: Final = Large()
AMBIGUOUS: Final = Ambiguous()
NO_NUMBER: Final = NoNumber()


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
    """`last` is the text of the value parsed last, `depth` the number of objects and arrays that are open.
    In `foreign` text, which others wrote, an object with a repeated name is AMBIGUOUS, and NaN NO_NUMBER."""

    def __init__(self, pieces: Iterable[bytes], *, foreign: bool = False) -> None:
        self._pieces = iter(pieces)
        self._parse = _parse_foreign if foreign else _parse
        self.depth = 0
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before the text in hand
        self._ended = False
        self._broken = False
        self.last = ""

    def value(self, limit: int | None = WHOLE) -> Any:
        """The next value, or LARGE if it is an object or array longer than `limit` characters, or too deep.
        With a `limit` of None it is never LARGE: text that nests too deeply raises NotDicom."""
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
        """A number at the very end of what has been read: "-2.5" of "-2.5e3"."""
        digits = _NUMBER.match(self._text, self._at)
        return digits is not None and digits.end() == len(self._text)

    def _parsed(self) -> tuple[Any, int] | None:
        try:
            return self._parse(self._text, self._at)
        except ValueError:
            return None

    def members(self) -> Iterator[str]:
        """The names of the object that comes next. Take the value of each before the next one."""
        for _ in self._several("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise self.malformed()
            self._take(":")
            yield name

    def elements(self) -> Iterator[None]:
        """Once for each element of the array that comes next. Take each before the next one."""
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
        """The next character that is no blank; "" at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]  # always matches
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self.malformed()

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self.malformed()
        self._at += 1
        self.depth += _DEEPER.get(character, 0)

    def skip(self) -> None:
        """Leave the next value out, whatever it is."""
        if self.peek() not in _OPENING:
            self.value()
            return
        depth = self.depth
        self._take(self.peek())
        self.leave(depth)

    def leave(self, depth: int) -> None:
        """Leave out the rest of the objects and arrays that are open below `depth`. Raises NotDicom in
        malformed text, where their ends cannot be found."""
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
        """Take pieces, as much again as is in hand; False at their end."""
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

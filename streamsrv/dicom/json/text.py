"""Reads DICOM JSON text (PS3.18 Annex F) of any length, a value at a time, in bounded memory.

Strategy: the caller asks for the next value. Python's C scanner parses a value that ends within WHOLE
characters at once. For a longer object or array the reader returns LARGE, and the caller asks for its
members or elements one by one. So a dataset of a few kilobytes is one call, and a sequence of a hundred
megabytes is read item by item.

Rules
- The text is UTF-8 in pieces of any size. Strings and numbers of any length are read whole.
- Malformed text raises NotDicom with its place, a single value over LONGEST InstanceRefused.
"""

from __future__ import annotations

import codecs
import enum
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

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

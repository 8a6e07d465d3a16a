"""Wildcard patterns: `*` is any number of characters, `?` exactly one (PS3.4 C.2.2.2.4); all else stands for
itself.

Strategy: the pieces between the stars are found from left to right, each at its first place, the last at the
end. That is exact, and linear in the length of the text for each piece: no pattern can be made that takes
long. Only pieces with `?` need regular expressions: making one takes longer than looking through many texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Glob:
    text: str
    parts: tuple[str, ...] = field(init=False, compare=False, repr=False)
    pieces: tuple[re.Pattern[str], ...] = field(init=False, compare=False, repr=False)  # none without a `?`

    def __post_init__(self) -> None:
        parts = re.sub(r"\*+", "*", self.text).split("*")
        asking = parts if "?" in self.text else []
        escaped = ["".join("." if one == "?" else re.escape(one) for one in part) for part in asking]
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "pieces", tuple(re.compile(part, re.DOTALL) for part in escaped))

    @property
    def start(self) -> str:
        """What every text that matches begins with."""
        return re.split(r"[*?]", self.text, maxsplit=1)[0]

    @property
    def literal(self) -> bool:
        return self.start == self.text

    def matches(self, text: str) -> bool:
        if self.pieces:
            return self._matches_asking(text)
        first, *middle = self.parts
        if not middle:
            return text == first
        last = middle.pop()
        at, end = len(first), len(text) - len(last)
        if end < at or not text.startswith(first) or not text.endswith(last):
            return False
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    def _matches_asking(self, text: str) -> bool:
        first, *middle = self.pieces
        if not middle:
            return first.fullmatch(text) is not None
        last = middle.pop()
        at, end = len(self.parts[0]), len(text) - len(self.parts[-1])
        if end < at or not first.match(text) or not last.match(text, end):
            return False
        for piece in middle:
            found = piece.search(text, at, end)
            if found is None:
                return False
            at = found.end()
        return True

"""Finds the attributes at the top level of a dataset in its DICOM JSON text, without parsing the text.

Strategy: a dataset of 60 MB of text takes about a gigabyte as Python objects, and a search needs one of its
attributes. So the text is read in pieces, and NumPy finds the quotes and brackets of a piece. A string that
begins at depth 1 is the tag of an attribute.

Rule: the text comes from MetadataWriter: without blanks, with ascending tags of eight digits (PS3.18
F.2.2), and each element is an object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

_QUOTE, _BACKSLASH = 0x22, 0x5C
_DEEPER = np.zeros(256, np.int8)
_DEEPER[[0x7B, 0x5B]] = 1
_DEEPER[[0x7D, 0x5D]] = -1
_NAME = len('"00100010":')
_SEQUENCE = b'{"vr":"SQ"'
_HELD = 32  # bytes of a piece that are read with the next one, so that no name and no VR is cut

Positions = NDArray[np.int64]


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
        deeper = _DEEPER[data]
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

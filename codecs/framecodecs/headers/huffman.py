"""Huffman tables of JPEG (ISO/IEC 10918-1 annex C): what was made for a part of a picture, for all of it.

A table is what a DHT segment holds: how many codes there are of each length from 1 to 16, and the symbols in
the order of their codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LONGEST_CODE = 16
ALL = 1 << LONGEST_CODE  # codes of the greatest length; one of length n takes the room of 2^(16 - n) of them
DC_SYMBOLS = range(16)  # bit lengths of differences, of up to 12 bits a sample (F.1.2.1, table F.6)
END_OF_BLOCK, SIXTEEN_ZEROS = 0x00, 0xF0
AC_SYMBOLS = (
    END_OF_BLOCK,
    SIXTEEN_ZEROS,
    *(zeros << 4 | length for zeros in range(16) for length in range(1, 15)),
)
"""What may come after the first coefficient of a block: zeros, and the bit length of what follows them."""


class HuffmanTable(NamedTuple):
    counts: tuple[int, ...]
    symbols: bytes


def completed(table: HuffmanTable, symbols: Iterable[int]) -> HuffmanTable:
    """The table with a code for each of `symbols`; those that it lacks get the longest ones, all alike. Where
    they find no room, the rarest others become a bit longer. The code of ones alone stays free."""
    missing = bytes(sorted(set(symbols).difference(table.symbols)))
    counts = [0, *table.counts]
    room = ALL - sum(count << (LONGEST_CODE - length) for length, count in enumerate(counts) if length) - 1
    while room < len(missing):
        room += _lengthened(counts, len(missing) - room)
    length = LONGEST_CODE
    while missing and len(missing) << (LONGEST_CODE + 1 - length) <= room and length > 1:
        length -= 1
    place = sum(counts[: length + 1])
    counts[length] += len(missing)
    return HuffmanTable(tuple(counts[1:]), table.symbols[:place] + missing + table.symbols[place:])


def _lengthened(counts: list[int], wanted: int) -> int:
    """Makes codes a bit longer until there is as much room as is wanted, but none twice; gives that room.
    Those of a length that are last in the table's order become the first of the next one, so that the order
    of symbols is kept."""
    room = 0
    for length in range(LONGEST_CODE - 1, 0, -1):
        gain = 1 << (LONGEST_CODE - 1 - length)
        moved = min(counts[length], -(-max(wanted - room, 0) // gain))
        counts[length] -= moved
        counts[length + 1] += moved
        room += moved * gain
    return room

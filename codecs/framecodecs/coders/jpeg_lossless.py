"""An encoder of JPEG lossless, process 14 with selection value 1 (ISO/IEC 10918-1 annex H), that works on
whole arrays.

Strategy
- A table of all 65,536 differences maps each difference to the left neighbour to a word of 64 bits: its
  Huffman code and the bits of its value at the top, and their number in the lowest bits.
- Neighbours are joined in pairs, and pairs in fours where they fit into a word.
- The texts are shifted to their places. Those with places in one word are added: a cumulative sum over all of
  them, and its differences where a word ends.
- Arrays are read in the order of memory: the first, second, third and fourth of each four are kept apart.

Rules: one Huffman table serves all components. It is made for the frame (K.2), or for some rows of a large
one. No code is longer than 16 bits, and none is all ones (annex C). Components are named R, G and B, so that
no decoder converts them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from framecodecs import samples
from framecodecs.errors import EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.samples import Samples

BLOCK = 1 << 16  # differences in one step, about: whole rows
SAMPLE = 16  # one row in so many is counted
LENGTHS = 16
WORD = 64
NUMBER = np.uint64(63)  # the bits of a word that hold the length of its text
TEXT = ~NUMBER
LONGEST_TEXT = 58
COMPONENTS = {1: b"\x01", 3: b"RGB"}
PAIR, QUAD = 2, 4

Words = NDArray[np.uint64]
Code = tuple[int, int]  # a Huffman code and its length
_Branch = tuple[int, int, tuple[int, ...]]  # count, order among equals, categories

CATEGORIES = 17
_MAGNITUDES = np.minimum(np.arange(1 << 16), np.arange(1 << 16, 0, -1))
CATEGORY = np.searchsorted(1 << np.arange(16), _MAGNITUDES, side="right").astype(np.uint8)
"""The bit length of each difference modulo 65,536 (table H.2)."""
_VALUES = np.arange(1 << 15, dtype=np.uint64)


def encode(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    if info.samples_per_pixel not in COMPONENTS:
        raise EncodeError(f"JPEG lossless of {info.samples_per_pixel} samples a pixel is not written here")
    values = samples.unsigned(samples.to_array(frame, info), info.bits_stored).astype("<u2", copy=False)
    lengths, order = code_lengths(likely_counts(values, info.bits_stored), longest_code(info.bits_stored))
    table = _table(canonical_codes(lengths, order), info.bits_stored)
    pieces = _entropy_coded(values, info.bits_stored, table)
    return b"".join((_head(info, lengths, order), *pieces, b"\xff\xd9")), samples.stored_low(info)


def differences_of(
    values: Samples, precision: int, start: int = 0, stop: int | None = None
) -> NDArray[np.uint16]:
    """Returns differences of some rows, modulo 65,536, in the order of the scan: to the left neighbour; in
    the first column to the sample above; of the first sample to half of the range (H.1.2.1)."""
    rows = values.reshape(len(values), -1)[:stop]
    across, flat = values[0, 0].size, rows[start:].reshape(-1)
    out = np.empty(flat.size, np.uint16)
    np.subtract(flat[across:], flat[:-across], out=out[across:])
    first = out.reshape(-1, rows.shape[1])[:, :across]
    below = max(start, 1)
    np.subtract(rows[below:, :across], rows[below - 1 : -1, :across], out=first[below - start :])
    if not start:
        first[0] = rows[0, :across] - np.full(across, 1 << (precision - 1), np.uint16)
    return out


def likely_counts(values: Samples, precision: int) -> list[int]:
    """Returns the number of differences of each bit length. In a large frame it counts one row in SAMPLE, and
    each bit length at least once."""
    if values.size <= BLOCK or len(values) < 2 * SAMPLE:
        return category_counts(differences_of(values, precision))
    rows = values[SAMPLE // 2 :: SAMPLE]
    counts = category_counts(rows[:, 1:] - rows[:, :-1])
    return [max(count, category <= precision) for category, count in enumerate(counts)]


def category_counts(differences: Samples) -> list[int]:
    """Returns the number of differences of each bit length."""
    categories = CATEGORY.take(differences.reshape(-1), mode="clip")
    return [int(count) for count in np.bincount(categories, minlength=CATEGORIES)]


def longest_code(precision: int) -> int:
    """Returns the code length with which two differences and their length fit into a word."""
    return min(LENGTHS, LONGEST_TEXT // PAIR - min(precision, CATEGORIES - 2))


def code_lengths(counts: Sequence[int], longest: int = LENGTHS) -> tuple[list[int], list[int]]:
    """Returns the number of codes of each length from 1 to 16, and the categories in the order of their
    codes. One more symbol takes the code of ones alone, and is removed."""
    depths = dict.fromkeys((category for category, count in enumerate(counts) if count), 0)
    heap: list[_Branch] = [(counts[category], -category, (category,)) for category in depths]
    heap.append((0, -CATEGORIES, (CATEGORIES,)))
    heapq.heapify(heap)
    depths[CATEGORIES] = 0
    while len(heap) > 1:
        (one, tie, left), (other, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for category in left + right:
            depths[category] += 1
        heapq.heappush(heap, (one + other, tie, left + right))
    by_depth = [list(depths.values()).count(depth) for depth in range(max(depths.values()) + 1)]
    lengths = _shortened(by_depth, longest)
    del depths[CATEGORIES]
    return lengths, sorted(depths, key=lambda category: (depths[category], category))


def _shortened(lengths: list[int], longest: int) -> list[int]:
    """Returns the lengths without longer codes: pairs move up, and a shorter code makes room for them (figure
    K.3). The last and longest code is the reserved one."""
    lengths += [0] * (LENGTHS + 1 - len(lengths))
    for length in range(len(lengths) - 1, longest, -1):
        while lengths[length]:
            shorter = next(at for at in range(length - 2, 0, -1) if lengths[at])
            lengths[length] -= 2
            lengths[length - 1] += 1
            lengths[shorter + 1] += 2
            lengths[shorter] -= 1
    lengths[max(length for length, count in enumerate(lengths) if count)] -= 1
    return lengths[1 : LENGTHS + 1]


def canonical_codes(lengths: Sequence[int], order: Sequence[int]) -> dict[int, Code]:
    """Returns the code of each category (figure C.2)."""
    codes: dict[int, Code] = {}
    code, waiting = 0, iter(order)
    for length, count in enumerate(lengths, 1):
        for _ in range(count):
            codes[next(waiting)] = code, length
            code += 1
        code <<= 1
    return codes


def _table(codes: dict[int, Code], precision: int) -> Words:
    """Returns the text of each possible difference: bits from the top, and their number in NUMBER. A positive
    value stands behind its code, of a negative one all bits are inverted."""
    shifts, zeros, ones = np.zeros((3, CATEGORIES), np.uint64)
    for category, (code, length) in codes.items():
        behind = category if category < CATEGORIES - 1 else 0
        shifts[category] = shift = WORD - length - behind
        zeros[category] = (code << behind << shift) + length + behind
        ones[category] = zeros[category] + np.uint64(((1 << behind) - 1) << shift)
    table = np.empty(1 << 16, np.uint64)
    count = min(1 << precision, 1 << 15)
    categories = CATEGORY[:count]
    texts = _VALUES[:count] << shifts[categories]
    np.add(zeros[categories], texts, out=table[:count])
    np.subtract(ones[categories[:0:-1]], texts[:0:-1], out=table[table.size - count + 1 :])
    table[1 << 15] = zeros[-1]
    return table


def _entropy_coded(values: Samples, precision: int, table: Words) -> list[bytes]:
    """Returns all differences as bits. Ones fill the last byte, and 00 follows FF (F.1.2.3)."""
    height = max(BLOCK // values[0].size, 1)
    pieces, begun, offset = list[bytes](), 0, 0
    for start in range(0, len(values), height):
        texts, numbers = _joined(differences_of(values, precision, start, start + height), table)
        words, offset = _packed(texts, numbers, offset)
        words[0] |= np.uint64(begun)
        begun = int(words[-1])
        pieces.append(words[:-1].byteswap(inplace=True).tobytes())
    begun |= (1 << (WORD - offset)) - 1
    pieces.append(begun.to_bytes(8, "big")[: -(-offset // 8)])
    return [piece.replace(b"\xff", b"\xff\x00") for piece in pieces]


def _joined(differences: NDArray[np.uint16], table: Words) -> tuple[Words, Words]:
    """Returns texts of four neighbours, or of two if four are too long, and their lengths."""
    coded = np.empty((PAIR, PAIR, -(-differences.size // QUAD)), np.uint64)
    for place in range(QUAD):
        found, there = differences[place::QUAD], coded[place % PAIR, place // PAIR]
        table.take(found, mode="clip", out=there[: found.size])
        there[found.size :] = 0
    pairs, seconds = coded
    numbers = (pairs + seconds) & NUMBER
    seconds >>= pairs & NUMBER
    pairs |= seconds  # the bits of NUMBER are invalid now
    of_quads = numbers[0] + numbers[1]
    if of_quads.max() > LONGEST_TEXT:
        return (pairs & TEXT).T.reshape(-1), numbers.T.reshape(-1)
    quads = pairs[1] >> numbers[0]
    quads |= pairs[0]
    quads &= TEXT
    return quads, of_quads


def _packed(texts: Words, numbers: Words, offset: int) -> tuple[Words, int]:
    """Concatenates texts into words, from bit `offset` on. Returns the words, and the number of used bits of
    the last one, which is not full.

    No text is longer than a word. So a text begins in every word, and only the last of them can reach into
    the next word.
    """
    numbers[0] += np.uint64(offset)
    ends = np.cumsum(numbers)
    numbers[0] -= np.uint64(offset)
    end = int(ends[-1])
    starts = np.subtract(ends, numbers, out=numbers)
    word = np.right_shift(starts, np.uint64(6), out=ends)
    starts &= np.uint64(WORD - 1)
    last = np.append(np.flatnonzero(word[1:] != word[:-1]), word.size - 1)
    beyond = (texts.take(last) << np.uint64(1)) << (np.uint64(WORD - 1) - starts.take(last))
    texts >>= starts
    sums = np.cumsum(texts).take(last)
    words = np.zeros(last.size + 1, np.uint64)
    words[0] = sums[0]
    np.subtract(sums[1:], sums[:-1], out=words[1:-1])
    words[1:] |= beyond
    return words[: end // WORD + 1], end % WORD


def _head(info: FrameInfo, lengths: Sequence[int], order: Sequence[int]) -> bytes:
    """Returns SOI, frame header, Huffman table and scan header."""
    names = COMPONENTS[info.samples_per_pixel]
    frame = bytes((info.bits_stored,)) + info.rows.to_bytes(2, "big") + info.columns.to_bytes(2, "big")
    frame += bytes((len(names),)) + b"".join(bytes((name, 0x11, 0)) for name in names)
    table = bytes((0, *lengths, *order))
    scan = bytes((len(names),)) + b"".join(bytes((name, 0)) for name in names) + b"\x01\x00\x00"
    segments = ((0xC3, frame), (0xC4, table), (0xDA, scan))
    return b"\xff\xd8" + b"".join(_segment(marker, body) for marker, body in segments)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body

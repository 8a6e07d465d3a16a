"""Huffman tables completed: every symbol has a code, and the codes are such as JPEG allows."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framecodecs.coders.jpeg_lossless import canonical_codes
from framecodecs.coders.libjpeg import AC_SYMBOLS, DC_SYMBOLS, LONGEST_CODE, HuffmanTable, completed

ALPHABETS = {"AC": tuple(AC_SYMBOLS), "DC": tuple(DC_SYMBOLS)}


def table_of(lengths, symbols):
    return HuffmanTable(
        tuple(lengths.count(length) for length in range(1, LONGEST_CODE + 1)), bytes(symbols[: len(lengths)])
    )


@st.composite
def tables(draw, alphabet):
    """Of any tree: leaves are split again and again, and the last and longest is the code of ones alone."""
    symbols = draw(st.permutations(alphabet))
    lengths = [1, 1]
    for which in draw(st.lists(st.integers(0, 400), max_size=len(alphabet) - 1)):
        splittable = sorted(length for length in lengths if length < LONGEST_CODE)
        if splittable:
            length = splittable[-1 - which % len(splittable)]
            lengths.remove(length)
            lengths += [length + 1] * 2
    return table_of(sorted(lengths)[:-1], symbols)


def check(table, alphabet):
    whole = completed(table, alphabet)
    codes = canonical_codes(whole.counts, whole.symbols)
    assert len(whole.counts) == LONGEST_CODE
    assert sum(whole.counts) == len(whole.symbols) == len(codes)
    assert set(codes) == set(alphabet)
    texts = sorted(f"{code:0{length}b}" for code, length in codes.values())
    assert all("0" in text for text in texts)
    assert not any(b.startswith(a) for a, b in pairwise(texts))
    kept = [symbol for symbol in whole.symbols if symbol in table.symbols]
    assert bytes(kept) == table.symbols
    return {symbol: length for symbol, (_, length) in codes.items()}


@pytest.mark.no_cover
@settings(max_examples=120, derandomize=True, deadline=None, database=None)
@pytest.mark.parametrize("kind", ALPHABETS)
@given(data=st.data())
def test_every_symbol_gets_a_code_that_jpeg_allows(kind, data):
    check(data.draw(tables(ALPHABETS[kind])), ALPHABETS[kind])


@pytest.mark.parametrize("kind", ALPHABETS)
def test_a_sample_of_one_symbol_leaves_room_for_short_codes(kind):
    alphabet = ALPHABETS[kind]
    lengths = check(table_of([1], alphabet), alphabet)
    assert lengths.pop(alphabet[0]) == 1
    assert set(lengths.values()) == {9 if kind == "AC" else 5}


@pytest.mark.parametrize("kind", ALPHABETS)
@pytest.mark.parametrize("count", range(2, 17))
def test_the_most_skewed_sample_there_is(kind, count):
    alphabet = ALPHABETS[kind]
    skewed = list(range(1, count))
    lengths = check(table_of(skewed, alphabet), alphabet)
    assert all(lengths[symbol] <= length + 1 for symbol, length in zip(alphabet, skewed, strict=False))


def test_a_table_without_any_room():
    """225 codes of 16 bits, and no room but that of the code of ones alone."""
    lengths = [1, 2, 3, 4, 5, 6, 7, 8]
    lengths += [LONGEST_CODE] * (256 - 1)
    alphabet = range(len(lengths) + 1 - 8)
    check(table_of(lengths[8:], alphabet), range(256))


@pytest.mark.parametrize("kind", ALPHABETS)
def test_a_complete_table_stays_as_it_is(kind):
    alphabet = ALPHABETS[kind]
    table = completed(table_of([1], alphabet), alphabet)
    assert completed(table, alphabet) == table

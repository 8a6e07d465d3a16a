"""What plans of whole instances read from rows that stay packed."""

from __future__ import annotations

import pytest
from index_examples import row

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.rows import (
    PLACE,
    PackedRow,
    metadata_in,
    pack_instance,
    places_in,
    syntax_in,
    unpacked,
    with_serial,
)
from streamsrv.store.rows import InstanceKey, InstanceRow

KEYS = [InstanceKey("1.1", "1.2", f"1.3.{number}") for number in range(3)]


def packed(facts: InstanceRow) -> PackedRow:
    value = with_serial(99, pack_instance(facts, b"v" * 16, b"answer"))
    return "\0".join(facts.key).encode(), value


def test_places_and_syntax_are_those_of_the_row() -> None:
    rows = [row(key, number, transfer_syntax=f"1.2.{number}") for number, key in enumerate(KEYS)]
    stored = [packed(each) for each in rows]
    assert list(map(unpacked, stored)) == rows
    assert list(map(syntax_in, stored)) == ["1.2.0", "1.2.1", "1.2.2"]
    places = list(PLACE.iter_unpack(places_in(stored)))
    assert places == [(*each.location, each.record_id) for each in rows]
    assert places_in([]) == b""


def test_how_long_metadata_are() -> None:
    rows = [row(key, number, text=b"\0" * number + b"{}") for number, key in enumerate(KEYS)]
    assert metadata_in(list(map(packed, rows))) == [(2, 0), (3, 1), (4, 2)]
    assert metadata_in([]) == []
    with pytest.raises(StoreCorrupt):
        metadata_in([(b"1\x001\x001", packed(rows[0])[1][:120])])


def test_rows_that_are_cut_short_are_told() -> None:
    whole = packed(row(KEYS[0]))
    with pytest.raises(StoreCorrupt):
        places_in([whole, (b"1\x001\x001", whole[1][:40])])
    for value in (b"", whole[1][:100]):
        with pytest.raises(StoreCorrupt):
            syntax_in((b"1\x001\x001", value))
    with pytest.raises(StoreCorrupt):
        syntax_in((whole[0], whole[1].replace(b"1.2.840.10008.1.2.1", b"\xff" * 19)))

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments.records import (
    HEADER,
    NO_ID,
    SEARCH_WINDOW,
    DamagedBytes,
    FoundRecord,
    HeaderDamaged,
    RecordFormat,
    RecordHeader,
    RecordKind,
    TombstoneDamaged,
    pack_ids,
    unpack_ids,
)

FORM = RecordFormat(b"s" * 32)
SEGMENT = 7


def header(length=0, kind=RecordKind.INSTANCE, number=1, began=0):
    return RecordHeader(
        kind, number.to_bytes(16, "big"), 1_700_000_000_000_000 + number, length, b"d" * 20, began
    )


class File:
    """A segment in the making."""

    def __init__(self, path):
        self.path = path
        self.bytes = bytearray(FIRST_RECORD)  # the file's own header

    def add(self, payload, kind=RecordKind.INSTANCE, **fields):
        found = FoundRecord(len(self.bytes), header(len(payload), kind, **fields))
        self.bytes += FORM.pack(found.header, SEGMENT, found.offset) + payload
        return found

    def walk(self, end=None, **options):
        self.path.write_bytes(self.bytes)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return list(FORM.walk(fd, SEGMENT, len(self.bytes) if end is None else end, **options))
        finally:
            os.close(fd)


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "segment")


def test_the_layout_as_drawn():
    packed = FORM.pack(
        RecordHeader(RecordKind.TOMBSTONE, b"i" * 16, 0x0102, 0x0304, b"x" * 20, 0x0506, b"r" * 16),
        SEGMENT,
        0,
    )
    assert len(packed) == HEADER == 104
    assert packed[:8] == FORM.marker
    assert packed[8:12] == b"\3\4" + bytes(2)
    assert packed[12:44] == b"i" * 16 + b"r" * 16
    assert packed[44:60] == b"\2\1" + bytes(6) + b"\4\3" + bytes(6)
    assert packed[60:88] == b"x" * 20 + b"\6\5" + bytes(6)


@settings(max_examples=50, derandomize=True)
@given(
    kind=st.sampled_from(RecordKind),
    ids=st.binary(min_size=52, max_size=52),
    numbers=st.tuples(*[st.integers(0, 2**64 - 1)] * 3),
    place=st.tuples(st.integers(0, 2**32), st.integers(0, 2**63)),
)
def test_pack_and_unpack(kind, ids, numbers, place):
    one = RecordHeader(kind, ids[:16], numbers[0], numbers[1], ids[16:36], numbers[2], ids[36:])
    assert FORM.unpack(FORM.pack(one, *place), *place) == one


def test_a_header_holds_only_at_its_place_and_in_its_store():
    packed = FORM.pack(header(), SEGMENT, 1000)
    FORM.unpack(packed, SEGMENT, 1000)
    for form, segment, offset in [
        (FORM, SEGMENT, 1001),
        (FORM, SEGMENT + 1, 1000),
        (RecordFormat(b"t" * 32), SEGMENT, 1000),
    ]:
        with pytest.raises(HeaderDamaged):
            form.unpack(packed, segment, offset)


def test_every_wrong_byte_is_found_and_mended():
    packed = FORM.pack(header(5), SEGMENT, 0)
    for place in range(HEADER):
        damaged = bytearray(packed)
        damaged[place] ^= 0x41
        with pytest.raises(HeaderDamaged):
            FORM.unpack(bytes(damaged), SEGMENT, 0)
        if place in (0, 9, 60, 103):
            assert FORM.mend(bytes(damaged), SEGMENT, 0) == header(5)


def test_two_wrong_bytes_are_not_mended():
    damaged = bytearray(FORM.pack(header(5), SEGMENT, 0))
    damaged[20] ^= 1
    damaged[90] ^= 1
    assert FORM.mend(bytes(damaged), SEGMENT, 0) is None


def test_another_version_is_told(monkeypatch):
    monkeypatch.setattr("streamsrv.store.segments.records.FORMAT_VERSION", 9)
    packed = FORM.pack(header(), SEGMENT, 0)
    monkeypatch.undo()
    with pytest.raises(HeaderDamaged, match="version 9"):
        FORM.unpack(packed, SEGMENT, 0)


def test_walk(file):
    expected = [
        file.add(b"one"),
        file.add(b"", RecordKind.VOID),
        file.add(b"i" * 32, RecordKind.TOMBSTONE),
        file.add(b"four" * 1000),
    ]
    assert file.walk() == expected
    assert file.walk(end=expected[2].end) == expected[:3]


def test_walk_ends_after_a_pending_record(file):
    expected = [file.add(b"one"), file.add(b"", RecordKind.PENDING)]
    file.add(b"behind")
    assert file.walk() == expected


@pytest.mark.parametrize("place", [0, 9, 20, 50, 60, 80, 103])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_header_costs_its_own_record(file, place, number):
    found = [file.add(b"p" * 300, number=n) for n in range(3)]
    file.bytes[found[number].offset + place] ^= 0x10
    steps = file.walk()
    assert [step for step in steps if isinstance(step, FoundRecord)] == found[:number] + found[number + 1 :]
    (damage,) = (step for step in steps if isinstance(step, DamagedBytes))
    assert (damage.offset, damage.end, damage.mended) == (found[number].offset, found[number].end, None)
    (damage,) = (step for step in file.walk(mend=True) if isinstance(step, DamagedBytes))
    assert (damage.offset, damage.end, damage.mended) == (
        found[number].offset,
        found[number].end,
        found[number].header,
    )


def test_a_payload_cannot_pass_for_records(file):
    """Not even with whole valid headers of this very store in it: they were made for other places."""
    inside = FORM.pack(header(10), SEGMENT, 0) + FORM.marker * 5
    expected = [file.add(b"one"), file.add(inside), file.add(b"three")]
    file.bytes[expected[1].offset] ^= 1
    assert [step for step in file.walk() if isinstance(step, FoundRecord)] == [expected[0], expected[2]]


@pytest.mark.parametrize("shift", range(-10, 110, 7))
def test_resync_across_windows(file, shift):
    first = file.add(b"x" * (SEARCH_WINDOW - HEADER - shift))
    second = file.add(b"second")
    file.bytes[first.offset + 3] ^= 1
    assert file.walk()[1:] == [second]


def test_every_truncation_is_told(file):
    found = [file.add(b"one"), file.add(b"two")]
    for end in range(found[0].end, len(file.bytes)):
        steps = file.walk(end=end)
        assert steps[0] == found[0]
        assert [(step.offset, step.end) for step in steps[1:]] == (
            [(found[1].offset, end)] if end > found[1].offset else []
        )


def test_a_tombstone_survives_a_flipped_bit_anywhere():
    ids = [bytes([n]) * 16 for n in range(5)]
    packed = pack_ids(ids)
    for place in range(len(packed)):
        wrong = packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :]
        assert unpack_ids(wrong) == ids


def test_a_tombstone_of_which_both_copies_are_damaged_still_tells_most():
    ids = [bytes([n]) * 16 for n in range(5)]
    wrong = bytearray(pack_ids(ids))
    wrong[3] ^= 1
    wrong[5 * 16 + 16 + 20] ^= 1
    with pytest.raises(TombstoneDamaged) as caught:
        unpack_ids(bytes(wrong))
    assert caught.value.certain == ids[2:]
    for length in (0, 15, 17, 47, 49):
        with pytest.raises(TombstoneDamaged, match="length"):
            unpack_ids(bytes(length))


def test_ids():
    ids = [bytes([n]) * 16 for n in range(5)]
    assert unpack_ids(pack_ids(ids)) == ids
    assert unpack_ids(pack_ids([])) == []
    assert len(NO_ID) == 16

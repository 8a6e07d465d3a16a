"""Instances that are cast: what comes out of a mould is what reading gives, whatever the bytes."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import (
    EXPLICIT,
    IMPLICIT,
    JPEG,
    RLE,
    UNDEFINED,
    VIDEO,
    element,
    fragments,
    item,
    padded,
    part10,
    sequence,
)
from test_part10_mutations import CHANGES, mutated
from test_repeats import compared, outcome

from streamsrv.dicom.json.writer import MetadataWriter
from streamsrv.dicom.mould import Mould
from streamsrv.dicom.part10 import ReadLimits
from streamsrv.dicom.repeats import Repeats

NATIVE = b"\1\2\3\4"


@pytest.fixture
def read(monkeypatch):
    """How many instances were really read."""
    written = []
    original = MetadataWriter.write
    monkeypatch.setattr(
        MetadataWriter, "write", lambda self, events: (written.append(1), original(self, events))[1]
    )
    return written


def slice_of(number, syntax=EXPLICIT, pixels=NATIVE, **own):
    """An instance of a series; `own` replaces values: a, bytes, under a name of its own."""
    uid = own.get("uid", padded(f"1.2.4.{number}"))
    dataset = syntax if syntax == IMPLICIT else EXPLICIT

    def one(tag, vr, value):
        return element(tag, vr, value, dataset)

    head = (
        one(0x00080005, "CS", own.get("charset", b"ISO_IR 100"))
        + one(0x00080016, "UI", b"1.2.3\0")
        + one(0x00080018, "UI", uid)
        + one(0x00080020, "DA", own.get("date", b"20240131"))
        + one(0x00080033, "TM", padded(f"1015{number % 60:02d}.{number}", b" "))
        + one(0x00100010, "PN", own.get("name", b"M\xfcller^A "))
        + (b"" if syntax == IMPLICIT else one(0x00191001, "LO", own.get("private", b"one ")))
        + one(0x0020000D, "UI", b"1.2.5\0")
        + one(0x0020000E, "UI", b"1.2.6\0")
        + one(0x00200013, "IS", own.get("instance_number", padded(str(number), b" ")))
        + one(0x00200032, "DS", own.get("position", padded(f"{number}\\-2.5\\1e3", b" ")))
        + one(0x00204000, "LT", own.get("comment", b""))
        + one(0x00209057, "UL", struct.pack("<I", number))
        + one(0x00280010, "US", struct.pack("<H", own.get("rows", 2)))
        + one(0x00280011, "US", b"\2\0")
        + one(0x00280100, "US", b"\10\0")
        + sequence(0x00400275, [item(one(0x00400009, "SH", b"A1"))], dataset)
    )
    if pixels is None:
        end = b""
    elif syntax in (EXPLICIT, IMPLICIT):
        end = one(0x7FE00010, "OW", pixels)
    else:
        end = element(0x7FE00010, "OB", pixels, length=UNDEFINED)
    meta = element(0x00020003, "UI", uid) + element(0x00020010, "UI", padded(syntax))
    return part10(head + own.get("before", b"") + end + own.get("after", b""), "", meta)


def frames_of(number):
    """Fragments of other lengths in each instance."""
    return fragments([b"\xff\xd8" + bytes(2 * number) + b"\xff\xd9"])


KINDS = [
    (EXPLICIT, lambda number: NATIVE),
    (EXPLICIT, lambda number: None),
    (IMPLICIT, lambda number: NATIVE),
    (JPEG, frames_of),
    (RLE, lambda number: fragments([b"\0" * 64], basic=b"\0\0\0\0")),
    (VIDEO, lambda number: fragments([b"a" * 8, b"b" * (8 + 2 * number)])),
    (EXPLICIT + ".77", frames_of),  # private
]


@pytest.mark.parametrize(("syntax", "pixels"), KINDS)
def test_of_a_series_few_are_read(syntax, pixels, read):
    repeats = Repeats()
    for number in range(8, 40):
        content = slice_of(number, syntax, pixels(number))
        read.clear()
        result = outcome(content, repeats)
        cast = not read
        assert result == outcome(content)
        assert cast or number < 12


def test_series_in_turns_are_cast_in_one_mould(read):
    repeats = Repeats()
    for number in range(8, 40):
        content = slice_of(
            number, date=b"20240131" if number % 2 else b"20240201", name=b"A^B " * (number % 2)
        )
        read.clear()
        assert outcome(content, repeats) == outcome(content)
    read.clear()
    outcome(slice_of(50), repeats)
    assert not read


OTHERS = {
    "a number that is none": {"instance_number": b"many"},
    "a number beyond 32 bits": {"instance_number": b"4000000000"},
    "no number": {"instance_number": b""},
    "two numbers": {"instance_number": b"1\\2 "},
    "a date that is none": {"date": b"yesterday "},
    "a UID with blanks": {"uid": b"1.2.4.9 "},
    "an empty UID": {"uid": b""},
    "two UIDs": {"uid": b"1.2\\1.3\0"},
    "no UID": {"uid": b"what\0\0"},
    "a long UID": {"uid": b"1" * 66},
    "another character set": {"charset": b"ISO_IR 192", "name": "Müller^A".encode() + b" "},
    "characters that cannot be decoded": {"charset": b"ISO_IR 192"},
    "a longer name": {"name": b"M\xfcller^Anna^Berta=="},
    "a name with ESC": {"name": b"M\x1b$B^A "},
    "a long comment": {"comment": b"x" * 60_000},
    "other rows": {"rows": 1},
    "no frame": {"rows": 0},
    "a private value": {"private": b"\xff\xfe"},
    "three numbers and a word": {"position": b"1\\2\\three "},
    "a number beyond all": {"position": b"1e999 "},
    "one more element": {"before": element(0x00400280, "ST", b"x ")},
    "a bulk value": {"before": element(0x00420011, "OB", bytes(5000))},
    "padding behind": {"after": bytes(8)},
    "an element behind": {"after": element(0xFFFCFFFC, "OB", bytes(8))},
    "a byte behind": {"after": b"\1"},
    "longer pixels": {"pixels": NATIVE * 2},
    "no pixels": {"pixels": b""},
    "no pixel data": {"pixels": None},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_does_not_fit_is_read(other, syntax):
    if syntax == IMPLICIT and other.get("before"):
        other = {"before": element(0x00400280, "ST", b"x ", IMPLICIT)}
    series = [slice_of(number, syntax) for number in range(8, 14)]
    odd = [slice_of(number, syntax, **other) for number in (20, 21, 22)]
    compared([*series, odd[0], *series, *odd, *odd, *series])


@pytest.mark.parametrize(("syntax", "pixels"), KINDS)
def test_files_that_are_cut(syntax, pixels):
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    for end in range(140, len(series[-1]), 3):
        repeats = compared(series[:4])
        cut = series[-1][:end]
        assert outcome(cut, repeats) == outcome(cut)


def test_fragments_that_are_not_what_they_were():
    series = [slice_of(number, JPEG, frames_of(number)) for number in range(8, 13)]
    jpeg = b"\xff\xd8\xff\xd9"
    pixels = [
        fragments([jpeg, jpeg]),
        fragments([jpeg], basic=b"\0\0\0\0"),
        fragments([jpeg], basic=b"\7\0\0\0"),
        fragments([jpeg], end=False),
        fragments([]),
        fragments([jpeg]) + b"\0\0",
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"",
    ]
    compared(series + [slice_of(30, JPEG, each) for each in pixels] + series)


def test_values_out_of_order_that_were_equal_once():
    def out_of_order(number, one, other, *, turned):
        pair = [element(0x00400301 + at, "IS", padded(str(n), b" ")) for at, n in enumerate((one, other))]
        behind = element(0x00400400, "LT", b"same")
        return slice_of(number, before=b"".join(reversed(pair) if turned else pair) + behind)

    series = [out_of_order(number, number, number + 3, turned=False) for number in range(8, 13)]
    equal = [out_of_order(number, number, number, turned=True) for number in range(14, 18)]
    compared([*series, *equal, *(out_of_order(n, n, n + 5, turned=True) for n in range(20, 24))])


@pytest.mark.parametrize(("tag", "vr"), [(0x00083002, "UI"), (0x00081190, "LO")])
def test_what_the_server_adds_is_in_the_file(tag, vr):
    def with_it(number):
        behind = element(0x00100010, "PN", b"M\xfcller^A ")
        return slice_of(number).replace(behind, element(tag, vr, padded(f"1.2.{number}")) + behind)

    files = [with_it(number) for number in range(8, 16)]
    compared(files)


def test_another_transfer_syntax_of_the_same_length():
    series = [slice_of(number) for number in range(8, 13)]
    other = [content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0") for content in series]
    missing = [content.replace(b"\x02\0\x10\0UI", b"\x02\0\x11\0UI") for content in series]
    compared(series + other + series + missing + series)


def test_a_warning_of_what_all_have_in_common():
    bad = element(0x00400280, "ST", b"\xff\xff", EXPLICIT)
    files = [slice_of(number, charset=b"ISO_IR 192", name=b"", before=bad) for number in range(8, 20)]
    compared(files)
    assert outcome(files[0])[0].warnings


@pytest.mark.parametrize("limits", [ReadLimits(text_threshold=16), ReadLimits(max_metadata=1_100)])
def test_limits_hold(limits):
    series = [slice_of(number, comment=b"c" * (number % 8)) for number in range(8, 24)]
    compared([*series, slice_of(30, comment=b"x" * 40), *series, slice_of(31, comment=b"x" * 600)], limits)


def test_moulds_that_never_fit_are_made_seldom(monkeypatch):
    made = []
    original = Mould.__init__
    monkeypatch.setattr(
        Mould, "__init__", lambda self, *given, **named: (made.append(1), original(self, *given, **named))[1]
    )
    repeats = Repeats()
    for number in range(200):
        outcome(slice_of(number, comment=b"x" * (number % 7) * 300, pixels=b"\0" * (number % 5)), repeats)
    assert 0 < len(made) < 30


@pytest.mark.parametrize(("syntax", "pixels"), KINDS[:4])
def test_every_byte_changed_once(syntax, pixels):
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    repeats = compared(series)
    for place in range(128, len(series[0])):
        changed = bytearray(series[place % 5])
        changed[min(place, len(changed) - 1)] ^= 1 << place % 8
        for content in (series[place % 4], bytes(changed)):
            assert outcome(content, repeats) == outcome(content)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.sampled_from(KINDS), st.lists(CHANGES, min_size=1, max_size=4))
def test_random_changes(kind, changes):
    syntax, pixels = kind
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    odd = [mutated(series[at % 5], each) for at, each in enumerate(changes)]
    compared([*series, *odd, *series, *odd])


def test_after_many_that_never_fitted_there_are_moulds_still(read):
    """What one request has learned is handed on for as long as the server runs."""
    repeats = Repeats()
    for number in range(8, 208):
        outcome(slice_of(number, pixels=bytes(2 * number)), repeats)
    for number in range(208, 240):
        outcome(slice_of(number), repeats)
    read.clear()
    outcome(slice_of(240), repeats)
    assert not read

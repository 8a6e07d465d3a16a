"""What a template of a series gives equals plain reading, whatever the bytes."""

import os
import struct

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    RLE,
    UNDEFINED,
    VIDEO,
    element,
    fragments,
    identity,
    item,
    padded,
    part10,
    pread_of,
    readable_paths,
    sequence,
)
from test_part10_mutations import CHANGES, MADE, REAL, mutated

from streamsrv.dicom import series_template
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.dicom.series_template import FIRST_TRIES, READS_A_TRY, SeriesReader
from streamsrv.errors import InstanceRefused, NotDicom

KEEP = frozenset(("00080005", "00080020", "00100010", "00081140", "00200013", "00400275"))
LIMITS = ReadLimits(max_inflated=10_000_000)
NATIVE = b"\1\2\3\4"


def outcome(content, reader=None, limits=LIMITS):
    emitted = []
    read = reader.read if reader else read_instance
    try:
        instance = read(pread_of(content), len(content), keep=KEEP, emit=emitted.append, limits=limits)
    except (NotDicom, InstanceRefused) as error:
        return type(error), str(error)
    return instance, b"".join(emitted), orjson.dumps(instance.attributes)


def compared(contents, limits=LIMITS):
    """Read one after the other with one reader: each result equals that of plain reading."""
    reader = SeriesReader()
    for content in contents:
        assert outcome(content, reader, limits) == outcome(content, None, limits)
    return reader


def is_match(reader, content):
    before = reader.matches
    outcome(content, reader)
    return reader.matches > before


def us(tag, value, syntax=EXPLICIT):
    return element(tag, "US", struct.pack("<H", value), syntax)


def slice_of(number, syntax=EXPLICIT, pixels=NATIVE, **own):
    """An instance of a series. `own` replaces values by name."""
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
def test_two_instances_of_a_series_are_read_and_the_others_match(syntax, pixels):
    reader = compared([slice_of(number, syntax, pixels(number)) for number in range(8, 40)])
    assert reader.matches == 30


def test_one_instance_alone_costs_no_comparison(monkeypatch):
    monkeypatch.setattr(series_template, "learned", None)
    assert outcome(slice_of(1), SeriesReader()) == outcome(slice_of(1))


def test_two_series_in_turns_match_one_template():
    dates, names = (b"20240131", b"20240201"), (b"", b"A^B ")
    reader = compared(
        slice_of(number, date=dates[number % 2], name=names[number % 2]) for number in range(8, 40)
    )
    assert reader.matches == 30


def test_a_field_that_differs_late_joins_the_others():
    reader = compared([slice_of(8), slice_of(9), slice_of(10)])
    assert not is_match(reader, slice_of(11, date=b"20240201"))
    assert all(is_match(reader, slice_of(number, date=b"20240202")) for number in range(12, 20))
    assert is_match(reader, slice_of(12))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_group_lengths_are_ignored(syntax):
    def with_length(number):
        image = us(0x00280010, 2, syntax)
        length = element(0x00280000, "UL", struct.pack("<I", 100 + number), syntax)
        return slice_of(number, syntax).replace(image, length + image)

    assert compared([with_length(number) for number in range(8, 16)]).matches == 6


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


@pytest.mark.no_cover
@pytest.mark.parametrize(("syntax", "pixels"), KINDS)
def test_files_that_are_cut(syntax, pixels):
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    for end in range(140, len(series[-1]), 3):
        reader = compared(series[:4])
        cut = series[-1][:end]
        assert outcome(cut, reader) == outcome(cut)


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


def test_a_series_that_never_matches_is_compared_seldom(monkeypatch):
    compared_pairs = []
    original = series_template.learned
    monkeypatch.setattr(
        series_template, "learned", lambda *given: (compared_pairs.append(1), original(*given))[1]
    )
    reader = SeriesReader()
    for number in range(200):
        outcome(slice_of(number, pixels=b"\0" * (2 * number)), reader)
    assert 0 < len(compared_pairs) <= FIRST_TRIES + 200 // READS_A_TRY + 1
    for number in range(208, 250):
        outcome(slice_of(number), reader)
    assert is_match(reader, slice_of(251))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("tag", [0x00080016, 0x00100010, 0x00400275])
def test_an_element_that_is_there_twice(syntax, tag):
    def twice(number):
        again = {
            0x00080016: element(tag, "UI", b"1.2.9\0", syntax),
            0x00400275: sequence(tag, [], syntax),
            0x00100010: element(tag, "PN", b"Z^Z ", syntax),
        }[tag]
        behind = element(0x7FE00010, "OW", NATIVE, syntax)
        return slice_of(number, syntax).replace(behind, behind + again)

    compared([slice_of(8, syntax), twice(9), *(slice_of(number, syntax) for number in range(10, 14))])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
def test_a_character_set_that_changes(syntax):
    terms = (b"ISO_IR 100", b"ISO_IR 144", b"", b"ISO_IR 192", b"A ", b"ISO 2022 IR 6\\ISO 2022 IR 87 ")
    files = [edited(number, syntax, [("value", 0, term)]) for number, term in enumerate(terms)]
    compared([file for file in files for _ in range(3)] + files)


def test_a_character_set_that_comes_and_goes():
    name = element(0x00100010, "PN", b"M\xfcller^A ")
    rest = element(0x00080020, "DA", b"20240131") + identity()[16:]
    head = element(0x00080016, "UI", b"1.2.3\0")
    with_set = part10(element(0x00080005, "CS", b"ISO_IR 144") + head + rest + name)
    late = part10(head + rest + element(0x00080005, "CS", b"ISO_IR 144") + name)
    without = part10(head + rest + name)
    for first in (with_set, late, without):
        for second in (with_set, late, without):
            compared([first, first, first, second, second, first])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_decides_the_vr_of_others(syntax):
    """Pixel Representation, LUT Descriptor and private creators, before and behind what depends on them."""

    def made(signed, creator, entries):
        lut = us(0x00283002, entries, syntax)[:8] + struct.pack("<HHH", entries, 0, 16)
        lut = lut[:4] + (struct.pack("<I", 6) if syntax == IMPLICIT else b"US\6\0") + lut[8:]
        return part10(
            identity(syntax)[: -len(element(0x0020000E, "UI", b"1.2.6\0", syntax))]
            + element(0x0020000E, "UI", b"1.2.6\0", syntax)
            + element(0x00190010, "LO", creator, syntax)
            + element(0x00191002, "UN", b"\xff\0\0\0", syntax)
            + element(0x00189810, "UN", b"\xff\xff", syntax)
            + us(0x00280103, signed, syntax)
            + element(0x00280106, "UN", b"\xff\xff", syntax)
            + lut
            + element(0x00283006, "UN", b"\1\0", syntax)
            + sequence(0x00409096, [item(element(0x00409216, "UN", b"\xff\xff", syntax))], syntax),
            syntax,
        )

    files = [made(0, b"GEMS_ACQU_01", 1), made(1, b"GEMS_ACQU_01", 1), made(1, b"SOMEONE ELSE", 2)]
    for first in files:
        for second in files:
            compared([first] * 3 + [second] * 2 + [first])


def test_elements_that_come_go_and_change_places():
    date, name = element(0x00080020, "DA", b"20240131"), element(0x00100010, "PN", b"A^B ")
    number, text = element(0x00200013, "IS", b"1 "), element(0x00204000, "LT", b"x" * 500)
    files = [
        part10(identity() + part)
        for part in (date + name + number, number + name + date, name, b"", date + text + number, text + text)
    ]
    for first in files:
        for second in files:
            compared([first] * 3 + [second, first, second])


def test_values_that_cost_a_warning_cost_it_each_time():
    bad = part10(identity() + element(0x00200013, "IS", b"many") + element(0x00081140, "CS", b"low case"))
    assert len(outcome(bad, compared([bad] * 4))[0].warnings) == 3


@pytest.mark.no_cover
def test_every_pydicom_file_behind_every_other():
    contents = [path.read_bytes() for path in readable_paths()]
    short = [content for content in contents if len(content) < 300_000]
    assert len(short) > 50
    compared(content for content in short for _ in range(3))


def test_file_metas():
    """Whatever differs in one: it is only Media Storage SOP Instance UID that says nothing of the rest."""
    uid, version = element(0x00020003, "UI", b"1.2.3.4\0"), element(0x00020012, "UI", b"1.2.3\0")
    syntaxes = [element(0x00020010, "UI", padded(syntax)) for syntax in (EXPLICIT, JPEG, EXPLICIT + ".77")]
    other = element(0x00020003, "UI", b"9.9\0\2\0\1\0")
    metas = [uid + syntax + version for syntax in syntaxes] + [other + syntax for syntax in syntaxes]
    metas += [
        syntaxes[1] + uid,
        uid + uid + syntaxes[0],
        element(0x00020003, "UI", padded(JPEG)) + syntaxes[0],
    ]
    metas += [uid, syntaxes[1], b"", uid + syntaxes[1] + element(0x00030001, "LO", b"")]
    files = [part10(identity(), "", meta) for meta in metas]
    files += [part10(identity(), "", meta)[:-1] for meta in metas] + [part10(identity(), DEFLATED, uid)]
    for first in files:
        compared([first] * 2 + files)


@pytest.mark.no_cover
def test_headers_longer_than_what_is_learned():
    many = b"".join(element(0x00210000 + n, "LO", b"v" * 60) for n in range(0x1000, 0x1800))
    long = b"".join(element(tag, "LT", b"x" * 30_000) for tag in (0x00204000, 0x00324000, 0x00380500))
    nested = sequence(0x00400275, [item(element(0x00400009, "SH", b"A1"))] * 4000)
    files = [part10(identity() + part) for part in (many, long, nested, many + long + nested)]
    compared([file for file in files for _ in range(3)] + files)


def test_limits_hold_for_what_is_read_one_by_one():
    head = identity()
    few = part10(head + element(0x00400001, "AE", b"A "))
    many = part10(head + element(0x00210001, "LO", b"") * 3_000 + element(0x00400001, "AE", b"A "))
    nested = part10(head + sequence(0x00300001, [item(element(0x00400009, "SH", b"A1"))] * 400))
    limits = ReadLimits(max_elements=1_000)
    compared([few, few, few, many, few, few, few, nested, nested, many], limits)
    assert outcome(many, None, limits)[0] is InstanceRefused


SOAK = int(os.environ.get("SOAK", "1"))


def random_examples(count):
    """The same ones in each run; with SOAK other and more ones."""
    return settings(derandomize=SOAK == 1, max_examples=count * SOAK, deadline=None)


@random_examples(60)
@given(st.integers(0, len(MADE) - 1), st.lists(CHANGES, min_size=2, max_size=4))
def test_random_changes_of_made_files(number, changes):
    base = MADE[number]
    compared([base, base, base, *(mutated(base, each) for each in changes), base])


@random_examples(40)
@given(st.integers(0, len(REAL) - 1), st.lists(CHANGES, min_size=2, max_size=4))
def test_random_changes_of_real_files(number, changes):
    base = REAL[number]
    compared([base, base, base, *(mutated(base, each) for each in changes), base])


@pytest.mark.no_cover
@pytest.mark.parametrize(("syntax", "pixels"), KINDS[:4])
def test_every_byte_changed_once(syntax, pixels):
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    reader = compared(series)
    for place in range(128, len(series[0])):
        changed = bytearray(series[place % 5])
        changed[min(place, len(changed) - 1)] ^= 1 << place % 8
        for content in (series[place % 4], bytes(changed)):
            assert outcome(content, reader) == outcome(content)


@random_examples(75)
@given(st.sampled_from(KINDS), st.lists(CHANGES, min_size=1, max_size=4))
def test_random_changes(kind, changes):
    syntax, pixels = kind
    series = [slice_of(number, syntax, pixels(number)) for number in range(8, 13)]
    odd = [mutated(series[at % 5], each) for at, each in enumerate(changes)]
    compared([*series, *odd, *series, *odd])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("edits", [[], [("gone", 0, b"")]], ids=["", "no character set"])
def test_sequences_and_bulk_values_that_differ_match(syntax, edits):
    assert compared([edited(number, syntax, edits) for number in range(8, 20)]).matches == 10


def test_a_sequence_with_more_items_is_read():
    series = [edited(number, EXPLICIT, []) for number in range(8, 12)]
    longer = [
        edited(20, EXPLICIT, [("value", 3, references(20, EXPLICIT) * count)]) for count in (0, 1, 2, 30)
    ]
    compared([*series, *longer, *series, *longer])


def test_a_text_does_not_take_the_place_of_a_bulk_value():
    def made(number, comment, bulk):
        return slice_of(number, comment=comment, before=element(0x00420011, "OB", bytes(bulk)))

    series = [made(number, b"x" * number, 50_000) for number in range(10, 14, 2)]
    reader = compared([*series, made(16, b"", 50_000), made(18, b"x" * 40_000, 2_000)])
    assert reader.matches == 1


def spilling(number, comment):
    """About 128 kB of pending text, and items out of order: those that spill lose an element."""
    content = element(0x00400009, "SH", b"A1") + sequence(0x00400100, []) + element(0x00400007, "LO")
    return slice_of(number, comment=comment, before=sequence(0x00400280, [item(content)] * 730))


def test_a_longer_value_does_not_change_where_a_text_spills():
    short, long = spilling(11, b""), spilling(12, b"x" * 900)
    assert [bool(outcome(content)[0].warnings) for content in (short, long)] == [False, True]
    compared([spilling(8, b""), spilling(10, b"xx"), short, long])


VALUES = st.one_of(
    st.binary(max_size=20), st.sampled_from((b"1.2.3.4\0", b"20240131", b"ISO_IR 192", b"12 "))
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("value", "byte", "twice", "gone", "swap", "insert")), st.integers(0, 40), VALUES
    ),
    min_size=1,
    max_size=3,
)
TAGS = (0x00080005, 0x00080016, 0x00081190, 0x00100010, 0x00190010, 0x00191001, 0x00200013, 0x00280103)


def references(number, syntax):
    """Items of a sequence that differs, with names in the character set of the dataset."""
    content = element(0x00081155, "UI", padded(f"1.2.{number}"), syntax) + element(
        0x0040A123, "PN", b"M\xfc", syntax
    )
    return item(content, undefined=syntax != BIG) * (2 if syntax != BIG else 0)


def edited(number, syntax, edits):
    """An instance whose elements, not its bytes, are changed."""
    uid, other = padded(f"1.2.4.{number}"), padded(f"{number}.5", b" ")
    elements = [
        (0x00080005, "CS", b"ISO_IR 100"),
        (0x00080016, "UI", b"1.2.3\0"),
        (0x00080018, "UI", uid),
        (0x00081140, "SQ", references(number, syntax)),
        (0x00090010, "LO", b"GEMS_IDEN_01"),
        (0x00091002, "SH", b"CT01"),
        (0x00100010, "PN", b"M\xfcller^A "),
        (0x0020000D, "UI", b"1.2.5\0"),
        (0x0020000E, "UI", b"1.2.6\0"),
        (0x00200013, "IS", padded(str(number), b" ")),
        (0x00201041, "DS", other),
        (0x00280010, "US", b"\2\0"),
        (0x00280011, "US", b"\2\0"),
        (0x00280100, "US", b"\10\0"),
        (0x00280103, "US", b"\0\0"),
        (0x00280106, "US", b"\1\0"),
        (0x00420011, "OB", bytes([number]) * 2 * (600 + number)),
        (0x7FE00010, "OW", NATIVE),
    ]
    for kind, at, value in edits:
        at %= len(elements)
        tag, vr, _ = elements[at]
        if kind == "value":
            elements[at] = tag, vr, value
        elif kind == "byte" and elements[at][2]:
            content = bytearray(elements[at][2])
            content[len(value) * 7 % len(content)] ^= 1 << len(value) % 8
            elements[at] = tag, vr, bytes(content)
        elif kind == "twice":
            elements.insert(at, elements[at])
        elif kind == "gone" and len(elements) > 1:
            del elements[at]
        elif kind == "swap":
            elements[at], elements[at - 1] = elements[at - 1], elements[at]
        else:
            elements.insert(at, (TAGS[len(value) % len(TAGS)], "LO", value))
    return part10(b"".join(element(*each, syntax) for each in elements), syntax)


@random_examples(100)
@given(st.sampled_from((EXPLICIT, IMPLICIT)), st.lists(EDITS, min_size=1, max_size=4))
def test_random_elements(syntax, edits):
    series = [edited(number, syntax, []) for number in range(8, 12)]
    odd = [edited(number, syntax, each) for number, each in enumerate(edits, 20)]
    assert compared([*series, *odd, *series, *odd, *odd]).matches >= 2


@random_examples(35)
@given(st.sampled_from((EXPLICIT, IMPLICIT)), EDITS, EDITS)
def test_a_template_of_any_two_instances(syntax, one, other):
    files = [edited(number, syntax, (one, other)[number % 2]) for number in range(8, 16)]
    compared([*files, edited(20, syntax, []), edited(21, syntax, []), *files])

"""The walk itself: nesting, delimiters, implicit and explicit mixed, lies, limits."""

import struct
import tracemalloc

import pytest
from made_files import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    delimiter,
    element,
    fragments,
    item,
    pread_of,
    sequence,
)

from streamsrv.dicom.elements import Elements
from streamsrv.dicom.frames import scan_items
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom


def walker(content, syntax=EXPLICIT, limits=None):
    pread = pread_of(content)
    return Elements(
        ReadWindow(pread, len(content)),
        0,
        len(content),
        explicit=syntax != IMPLICIT,
        little=syntax != BIG,
        limits=limits or ReadLimits(),
        skip_fragments=lambda tag, start, end, little: scan_items(pread, start, end, 100, little=little).end,
    )


def walk(content, syntax=EXPLICIT, limits=None):
    """Events in short: values with their VR, structure as words."""
    words = {ITEM: "item", ITEM_END: "/item", SEQUENCE_END: "/sequence"}
    told = []
    for tag, vr, offset, length, value in walker(content, syntax, limits).events():
        if tag in words:
            told.append(words[tag])
        elif value is None and vr == "SQ":
            told.append(f"{tag:08X} SQ")
        elif value is None:
            told.append((f"{tag:08X}", vr, content[offset : offset + length]))
        else:
            assert content[offset : offset + length] == value
            told.append((f"{tag:08X}", vr, value))
    return told


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("undefined_sequence", [False, True])
@pytest.mark.parametrize("undefined_item", [False, True])
def test_sequences_of_every_shape_give_the_same_events(syntax, undefined_sequence, undefined_item):
    order = ">" if syntax == BIG else "<"
    inner = sequence(0x00081115, [item(b"", undefined_item, order)], syntax, undefined_sequence)
    items = [
        item(element(0x00080100, "SH", b"X1", syntax) + inner, undefined_item, order),
        item(b"", not undefined_item, order),
    ]
    content = (
        element(0x00080060, "CS", b"CT", syntax)
        + sequence(0x00081140, items, syntax, undefined_sequence)
        + element(0x00100020, "LO", b"id", syntax)
    )
    assert walk(content, syntax) == [
        ("00080060", "CS", b"CT"),
        "00081140 SQ",
        "item",
        ("00080100", "SH", b"X1"),
        "00081115 SQ",
        "item",
        "/item",
        "/sequence",
        "/item",
        "item",
        "/item",
        "/sequence",
        ("00100020", "LO", b"id"),
    ]


def test_un_of_undefined_length_holds_implicit_vr():
    items = [item(element(0x00080100, "SH", b"X1", IMPLICIT), True)]
    content = sequence(0x00091010, items, undefined=True, vr="UN")
    assert walk(content) == ["00091010 SQ", "item", ("00080100", "SH", b"X1"), "/item", "/sequence"]
    swapped = element(0x00091010, "UN", items[0], BIG, UNDEFINED) + delimiter(SEQUENCE_END)
    assert walk(swapped, BIG) == ["00091010 SQ", "item", ("00080100", "SH", b"X1"), "/item", "/sequence"]


def test_un_of_a_known_tag_is_read_as_its_vr():
    assert walk(element(0x00100010, "UN", b"Doe^")) == [("00100010", "PN", b"Doe^")]
    assert walk(sequence(0x00081140, [item(b"")], vr="UN"))[0] == "00081140 SQ"
    assert walk(element(0x00080003, "UN", b"??")) == [("00080003", "UN", b"??")]
    # Where it would mean other bytes it stays: longer than 16 bits of length, or in big endian.
    assert walk(element(0x00100010, "UN", bytes(0x10000)))[0][1] == "UN"
    assert walk(element(0x00280010, "UN", b"\1\0", BIG), BIG) == [("00280010", "UN", b"\1\0")]


def test_private_tags_of_implicit_vr():
    content = b"".join(
        (
            element(0x00190000, "UL", b"\4\0\0\0", IMPLICIT),
            element(0x00190010, "LO", b"GEMS_ACQU_01", IMPLICIT),
            element(0x00191002, "SL", b"\1\0\0\0", IMPLICIT),
            element(0x001910FF, "UN", b"..", IMPLICIT),
            element(0x00191102, "UN", b"..", IMPLICIT),
            element(0x00290102, "UN", b"..", IMPLICIT),
        )
    )
    assert [vr for _, vr, _ in walk(content, IMPLICIT)] == ["UN", "LO", "SL", "UN", "UN", "UN"]
    # In explicit VR the creator helps with UN only.
    content = element(0x00190010, "LO", b"GEMS_ACQU_01") + element(0x00191002, "UN", b"\1\0\0\0")
    assert walk(content)[1] == ("00191002", "SL", b"\1\0\0\0")


def test_private_sequence_of_undefined_length_in_implicit_vr():
    items = [item(element(0x00080100, "SH", b"X1", IMPLICIT))]
    assert walk(sequence(0x00091010, items, IMPLICIT, undefined=True), IMPLICIT)[0] == "00091010 SQ"
    with pytest.raises(NotDicom, match="no item follows"):
        walk(element(0x00091010, "", b"", IMPLICIT, UNDEFINED) + bytes(8), IMPLICIT)
    with pytest.raises(NotDicom, match="truncated"):
        walk(element(0x00091010, "", b"", IMPLICIT, UNDEFINED) + bytes(7), IMPLICIT)


@pytest.mark.parametrize(
    ("representation", "before", "tag", "vr"),
    [
        (0, False, 0x00280106, "US"),
        (1, False, 0x00280106, "SS"),
        (None, False, 0x00280106, "US"),
        (1, True, 0x00189810, "SS"),  # the tag stands before Pixel Representation
        (0, True, 0x00189810, "US"),
        (None, True, 0x00189810, "US"),
    ],
)
def test_us_or_ss_by_pixel_representation(representation, before, tag, vr):
    ambiguous = element(tag, "", b"\1\0", IMPLICIT)
    decides = b"" if representation is None else element(0x00280103, "", bytes((representation, 0)), IMPLICIT)
    rest = element(0x00280107, "", b"\1\0", IMPLICIT)
    content = (ambiguous + decides if before else decides + ambiguous) + rest
    found = {tag: vr for tag, vr, _ in walk(content, IMPLICIT)}
    assert found[f"{tag:08X}"] == vr
    assert found["00280107"] == vr


def test_pixel_representation_of_an_item_counts_inside_it():
    icon = element(0x00280103, "", b"\0\0", IMPLICIT) + element(0x00280106, "", b"\1\0", IMPLICIT)
    outer = element(0x00280103, "", b"\1\0", IMPLICIT) + element(0x00280106, "", b"\1\0", IMPLICIT)
    told = walk(sequence(0x00081140, [item(icon)], IMPLICIT) + outer, IMPLICIT)
    assert [event[1] for event in told if event[0] == "00280106"] == ["US", "SS"]


def test_lut_data_by_its_descriptor():
    for entries, vr in ((b"\1\0", "US"), (b"\2\0", "OW")):
        content = element(0x00283002, "", entries + bytes(4), IMPLICIT) + element(
            0x00283006, "", b"\1\2", IMPLICIT
        )
        assert walk(content, IMPLICIT)[1][1] == vr


def test_implicit_item_in_an_explicit_dataset():
    items = [item(element(0x00080100, "SH", b"X1", IMPLICIT)), item(element(0x00080100, "SH", b"X2"))]
    told = walk(sequence(0x00081140, items))
    assert told[2] == ("00080100", "SH", b"X1")
    assert told[5] == ("00080100", "SH", b"X2")


def test_an_element_without_vr_in_an_explicit_dataset():
    content = element(0x00080060, "CS", b"CT") + element(0x00100020, "LO", b"id", IMPLICIT)
    assert walk(content) == [("00080060", "CS", b"CT"), ("00100020", "LO", b"id")]


def test_a_vr_of_the_future():
    content = struct.pack("<HH2sHI", 0x0008, 0x0003, b"ZZ", 0, 4) + b"abcd"
    assert walk(content) == [("00080003", "UN", b"abcd")]
    assert walk(struct.pack("<HH2sH", 0x0008, 0x0003, b"ZZ", 4) + b"abcd") == [("00080003", "UN", b"abcd")]


def test_values_over_the_thresholds_are_not_loaded():
    limits = ReadLimits(bulk_threshold=4, text_threshold=8)
    content = (
        element(0x00080060, "UT", b"eight888")
        + element(0x00080061, "UT", b"nine99999 ")
        + element(0x00420011, "OB", b"four")
        + element(0x00420012, "OB", b"five5 ")
        + element(0x7FE00001, "OV", bytes(8))
    )
    values = [value for _, _, _, _, value in walker(content, limits=limits).events()]
    assert values == [b"eight888", None, b"four", None, None]


def test_fragments_are_one_event():
    content = element(0x00420011, "OB", fragments([b"ab", b"cd"]), length=UNDEFINED) + element(
        0x00420012, "LO", b"ab"
    )
    told = walk(content)
    assert told == [("00420011", "OB", fragments([b"ab", b"cd"], end=False)), ("00420012", "LO", b"ab")]
    implicit = element(0x7FE00010, "", fragments([b"ab"]), IMPLICIT, UNDEFINED)
    assert walk(implicit, IMPLICIT)[0][1] == "OB"


def test_a_dataset_much_larger_than_the_window():
    content = b"".join(
        element(0x00090000 | 0x1000 + place % 0xE000, "LT", bytes(40)) for place in range(40_000)
    )
    assert len(walk(content)) == 40_000
    content = b"".join(element(0x00420010, "UT", b"x" * 60_000) for _ in range(20))
    assert [len(value) for _, _, value in walk(content)] == [60_000] * 20


@pytest.mark.parametrize("tail", [bytes(3), bytes(8), bytes(300_000)])
def test_zeros_at_the_end_are_padding(tail):
    content = element(0x00100020, "LO", b"id")
    assert walk(content + tail) == [("00100020", "LO", b"id")]
    content = element(0x00100020, "LO", b"id", IMPLICIT)
    assert walk(content + tail, IMPLICIT) == [("00100020", "LO", b"id")]


GOOD = element(0x00080060, "CS", b"CT")
DAMAGED = [
    (GOOD + b"\x10\0", "truncated", 10, None),
    (GOOD + b"\x10\0\x20\0LO\4\0id", "longer than its container", 10, "00100020"),
    (GOOD + b"\x10\0\x20\0UT\0\0", "truncated", 10, "00100020"),
    (GOOD + element(0x00100020, "UT", b"id", length=400), "longer than its container", 10, "00100020"),
    (GOOD + sequence(0x00081140, [item(b"", length=40)]), "longer than its sequence", 22, "00081140"),
    (GOOD + sequence(0x00081140, [GOOD]), "expected an item", 22, "00081140"),
    (GOOD + sequence(0x00081140, [item(GOOD[:-1])]), "longer than its container", 30, "00080060"),
    (GOOD + sequence(0x00081140, [item(GOOD + b"\1")]), "truncated", 40, "00081140"),
    (
        GOOD + sequence(0x00081140, [item(GOOD)], undefined=True)[:-8],
        "truncated|no delimiter",
        40,
        "00081140",
    ),
    (GOOD + sequence(0x00081140, [item(b"") + b"\1\2"]), "truncated", 30, "00081140"),
    (GOOD + delimiter(ITEM_END), "unexpected delimiter", 10, "FFFEE00D"),
    (GOOD + delimiter(SEQUENCE_END), "unexpected delimiter", 10, "FFFEE0DD"),
    (GOOD + element(0x00100020, "UT", b"", length=UNDEFINED), "not allowed for VR UT", 10, "00100020"),
    (GOOD + sequence(0x00081140, [item(GOOD + delimiter(SEQUENCE_END))]), "unexpected", 40, "FFFEE0DD"),
]


@pytest.mark.parametrize(("content", "message", "offset", "tag"), DAMAGED)
def test_damage_is_told_with_tag_and_offset(content, message, offset, tag):
    with pytest.raises(NotDicom, match=message) as refusal:
        walk(content)
    assert (refusal.value.offset, refusal.value.tag) == (offset, tag)


def test_an_item_delimiter_at_the_end_of_an_item_of_defined_length_does_no_harm():
    told = walk(sequence(0x00081140, [item(GOOD + delimiter(ITEM_END))]) + GOOD)
    assert told == [
        "00081140 SQ",
        "item",
        ("00080060", "CS", b"CT"),
        "/item",
        "/sequence",
        ("00080060", "CS", b"CT"),
    ]


def nested(depth, undefined):
    content = b""
    for _ in range(depth):
        content = sequence(0x00081140, [item(content, undefined)], undefined=undefined)
    return content


@pytest.mark.parametrize("undefined", [False, True])
def test_depth_has_a_limit(undefined):
    assert walk(nested(64, undefined)).count("item") == 64
    with pytest.raises(NotDicom, match="nest deeper than 64 levels"):
        walk(nested(65, undefined))


def test_a_nesting_bomb_of_a_million_sequences():
    bomb = (element(0x00081140, "SQ", b"", length=UNDEFINED) + item(b"", length=UNDEFINED)) * 1_000_000
    with pytest.raises(NotDicom, match="nest deeper than 64"):
        walk(bomb)


@pytest.mark.no_cover
@pytest.mark.parametrize("shape", ["elements", "items"])
def test_a_million_empty_elements_or_items_in_bounded_memory(shape):
    def content(count):
        empty = element(0x00091000, "LO") if shape == "elements" else item(b"")
        return empty * count if shape == "elements" else sequence(0x00081140, [empty * count])

    million = content(1_000_000)
    assert sum(1 for _ in walker(million).events()) >= 1_000_000
    walk_less = walker(content(50_000))
    tracemalloc.start()
    assert sum(1 for _ in walk_less.events()) >= 50_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [element(0x00091000, "LO") * 3000, sequence(0x00081140, [item(b"") * 3000], undefined=True)]
)
def test_too_many_elements_are_refused(content):
    with pytest.raises(InstanceRefused, match="more than 1,000 elements"):
        walk(content * 20, limits=ReadLimits(max_elements=1000))

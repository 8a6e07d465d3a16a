"""Frames against pydicom.encaps on every test file, and on made files with every table, true and lying."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    JPEG,
    RLE,
    UNDEFINED,
    VIDEO,
    delimiter,
    element,
    encapsulated,
    fragments,
    image,
    item,
    part10,
    pread_of,
    pydicom_read,
    read,
    readable_paths,
)
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.utils import get_expected_length

from streamsrv.dicom.explicit import inflater
from streamsrv.dicom.frames import Geometry, fragment_spans, native_frame_bits, native_frames
from streamsrv.dicom.instance import FRAGMENTED, FrameKind
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.errors import NotDicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def table_of(instance):
    return [
        tuple(int(number) for number in row)
        for row in np.frombuffer(instance.frames.table, "<u8").reshape(-1, 2)
    ]


def frames_of(content, instance):
    """The bytes of every frame, by what the instance says of them."""
    frames = instance.frames
    source = inflater(pread_of(content), len(content)).pread if instance.deflated else pread_of(content)
    if frames.kind is FrameKind.NATIVE:
        return [source(frames.base + i * frames.stride, frames.stride) for i in range(frames.number)]
    found = []
    for offset, length in table_of(instance):
        spans = fragment_spans(source, offset, length) if length & FRAGMENTED else [(offset, length)]
        found.append(b"".join(source(*span) for span in spans))
    assert len(found) == frames.number
    return found


def test_frames_of_every_pydicom_file():
    encapsulated_files = native_files = 0
    for path in readable_paths():
        content = path.read_bytes()
        dataset = pydicom_read(content)
        if "PixelData" not in dataset:
            continue
        try:
            instance, _ = read(content)
        except NotDicom:
            continue
        if not isinstance(dataset.get("NumberOfFrames"), int):
            dataset.NumberOfFrames = 1  # absent, or "1A"
        number = int(dataset.NumberOfFrames)
        if dataset["PixelData"].is_undefined_length:
            expected = list(generate_frames(dataset.PixelData, number_of_frames=number))
            assert frames_of(content, instance) == expected, path.name
            encapsulated_files += 1
        elif instance.frames.kind is FrameKind.NATIVE:
            assert instance.frames.number == number, path.name
            assert instance.frames.stride * number == get_expected_length(dataset), path.name
            assert (
                b"".join(frames_of(content, instance)) == dataset.PixelData[: instance.frames.stride * number]
            )
            native_files += 1
    assert encapsulated_files > 40
    assert native_files > 80


# --- native ---


@pytest.mark.parametrize(
    ("geometry", "length", "expected"),
    [
        (Geometry(2, 3, 1, 8), 6, (FrameKind.NATIVE, 1, 6)),
        (Geometry(2, 3, 1, 16, number=4), 48, (FrameKind.NATIVE, 4, 12)),
        (Geometry(3, 3, 3, 8), 28, (FrameKind.NATIVE, 1, 27)),  # the padding byte is no part of it
        (Geometry(2, 3, 1, 8, number=5), 13, (FrameKind.NATIVE, 2, 6)),  # only two are whole
        (Geometry(2, 3, 1, 8, number=1), 60, (FrameKind.NATIVE, 1, 6)),
        (Geometry(2, 3, 1, 8), 5, (FrameKind.EMPTY, 0, 0)),
        (Geometry(0, 3, 1, 8), 5, (FrameKind.EMPTY, 0, 0)),
        (Geometry(2, 4, 1, 1, number=3), 4, (FrameKind.NATIVE, 3, 1)),
        (Geometry(3, 3, 1, 1, number=3), 4, (FrameKind.BITS, 3, 9)),
        (Geometry(3, 3, 1, 1, number=9), 4, (FrameKind.BITS, 3, 9)),
        (Geometry(2, 4, 3, 8, "YBR_FULL_422", 2), 32, (FrameKind.NATIVE, 2, 16)),
        (Geometry(2, 4, 3, 8, "YBR_FULL"), 24, (FrameKind.NATIVE, 1, 24)),
        (Geometry(2, 2, 1, 32), 16, (FrameKind.NATIVE, 1, 16)),
    ],
)
def test_native_layout(geometry, length, expected):
    frames = native_frames(geometry, 100, length)
    assert (frames.kind, frames.number, frames.stride) == expected
    assert frames.base == (100 if frames.number else 0)


def test_native_frames_are_measured_in_bits():
    assert native_frame_bits(Geometry(3, 3, 1, 1)) == 9


@pytest.mark.parametrize(("tag", "vr", "size"), [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
def test_floating_point_pixel_data(tag, vr, size):
    content = part10(image(2, 3, bits=16, frames=2) + element(tag, vr, bytes(12 * size)))
    instance, _ = read(content)
    assert (instance.frames.kind, instance.frames.number, instance.frames.stride) == (
        FrameKind.NATIVE,
        2,
        6 * size,
    )
    assert instance.bits_allocated == 8 * size


def test_no_and_empty_pixel_data():
    assert read(part10(image()))[0].frames.kind is FrameKind.NONE
    instance, _ = read(part10(image() + element(0x7FE00010, "OW")))
    assert (instance.frames.kind, instance.pixel_offset, instance.pixel_length) == (FrameKind.EMPTY, 0, 0)


# --- encapsulated ---

END = delimiter(0xFFFEE0DD)
VALUES = [b"frame one ", b"the second", b"and number three"]


def basic(values, per_frame=1):
    offsets, at = [], 0
    for place, value in enumerate(values):
        if place % per_frame == 0:
            offsets.append(at)
        at += 8 + len(value)
    return struct.pack(f"<{len(offsets)}I", *offsets)


def extended(values, offsets=None, lengths=None):
    if offsets is None:
        offsets = [sum(8 + len(value) for value in values[:place]) for place in range(len(values))]
    lengths = [len(value) for value in values] if lengths is None else lengths
    return element(0x7FE00001, "OV", struct.pack(f"<{len(offsets)}Q", *offsets)) + element(
        0x7FE00002, "OV", struct.pack(f"<{len(lengths)}Q", *lengths)
    )


def check(content, expected):
    instance, _ = read(content)
    assert frames_of(content, instance) == expected
    return instance


def test_one_fragment_a_frame_with_and_without_table():
    check(encapsulated(VALUES, 3), VALUES)
    check(encapsulated(VALUES, 3, basic=basic(VALUES)), VALUES)
    check(encapsulated(VALUES, 3, before=extended(VALUES)), VALUES)


def test_several_fragments_a_frame():
    values = VALUES * 2
    joined = [b"".join(values[place : place + 2]) for place in (0, 2, 4)]
    instance = check(encapsulated(values, 3, basic=basic(values, 2)), joined)
    assert all(length & FRAGMENTED for _, length in table_of(instance))
    check(encapsulated(values, 1), [b"".join(values)])
    check(encapsulated(values, None), [b"".join(values)])
    check(encapsulated(values, 30, syntax=VIDEO), [b"".join(values)])
    check(encapsulated([b"one", b"two", b"three"], 2, basic=struct.pack("<2I", 0, 22)), [b"onetwo", b"three"])


def test_the_end_marker_tells_frames_apart():
    values = [b"a" * 20, b"b\xff\xd9\0", b"c\xff\xd9", b"d" * 9, b"e" * 30 + b"\xff\xd9"]
    check(encapsulated(values, 3), [values[0] + values[1], values[2], values[3] + values[4]])
    check(encapsulated(VALUES, 2, syntax=RLE), VALUES[:2])


def test_numbers_that_disagree():
    check(encapsulated(VALUES, 9), VALUES)
    check(encapsulated(VALUES, 9, basic=basic(VALUES)), VALUES)
    check(encapsulated(VALUES, 2, basic=basic(VALUES)), VALUES[:2])
    check(encapsulated(VALUES, None, basic=basic(VALUES)), VALUES)
    instance, _ = read(encapsulated([], 3))
    assert (instance.frames.kind, instance.frames.number) == (FrameKind.EMPTY, 0)
    instance, _ = read(
        part10(image() + element(0x7FE00010, "OB", delimiter(0xFFFEE0DD), length=UNDEFINED), JPEG)
    )
    assert instance.frames.kind is FrameKind.EMPTY


@pytest.mark.parametrize(
    "table",
    [
        struct.pack("<3I", 0, 17, 36),  # not at an item
        struct.pack("<3I", 0, 36, 18),  # not ascending
        struct.pack("<3I", 4, 18, 36),  # does not begin at zero
        struct.pack("<3I", 0, 18, 4_000_000_000),  # beyond the end
        struct.pack("<4I", 0, 18, 36, 60),  # a frame too many
        struct.pack("<3I", 0, 18, 54),
    ],
)
def test_lying_basic_tables_fall_back_to_the_items(table):
    check(encapsulated(VALUES, 3, basic=table), VALUES)


def test_a_basic_table_with_too_few_entries_groups_what_follows():
    check(encapsulated(VALUES, 3, basic=struct.pack("<2I", 0, 18)), [VALUES[0], VALUES[1] + VALUES[2]])


@pytest.mark.parametrize(
    "before",
    [
        extended(VALUES, offsets=[0, 17, 36]),
        extended(VALUES, offsets=[0, 36, 18]),
        extended(VALUES, offsets=[0, 18, 2**63]),
        extended(VALUES, offsets=[0, 18]),
        extended(VALUES, lengths=[10, 10, 2**64 - 1]),
        extended(VALUES, lengths=[10, 4, 16]),
        extended(VALUES[:2]),
        element(0x7FE00001, "OV") + element(0x7FE00002, "OV"),
        element(0x7FE00001, "OV", bytes(8)),
        element(0x7FE00001, "OV", bytes(6)) + element(0x7FE00002, "OV", bytes(6)),
    ],
)
def test_lying_extended_tables_fall_back_to_the_items(before):
    check(encapsulated(VALUES, 3, before=before), VALUES)


def test_extended_table_without_the_padding_byte():
    check(encapsulated(VALUES, 3, before=extended(VALUES, lengths=[9, 10, 16])), [VALUES[0][:9], *VALUES[1:]])


def test_pydicoms_own_tables():
    pixels, offsets, lengths = encapsulate_extended(VALUES)
    before = element(0x7FE00001, "OV", offsets) + element(0x7FE00002, "OV", lengths)
    content = part10(
        image(frames=3) + before + element(0x7FE00010, "OB", pixels + END, length=UNDEFINED), JPEG
    )
    check(content, VALUES)
    pixels = encapsulate(VALUES, fragments_per_frame=2, has_bot=True)
    content = part10(image(frames=3) + element(0x7FE00010, "OB", pixels + END, length=UNDEFINED), JPEG)
    check(content, VALUES)


def test_a_first_item_that_is_too_long_for_a_table_is_a_frame():
    value = bytes(9_000_000)
    content = part10(image(frames=1) + element(0x7FE00010, "OB", item(value) + END, length=UNDEFINED), JPEG)
    check(content, [value])


def test_undefined_length_in_a_native_syntax():
    pixels = element(0x7FE00010, "OW", fragments(VALUES), length=UNDEFINED)
    instance = check(part10(image(frames=3) + pixels, EXPLICIT), VALUES)
    assert instance.frames.kind is FrameKind.TABLE


def test_undefined_length_in_big_endian_is_passed_over():
    pixels = element(0x7FE00010, "OB", item(b"", order=">") + item(b"ab", order=">"), BIG, UNDEFINED)
    after = element(0xFFFCFFFC, "OB", b"\0\0", BIG)
    content = part10(image(syntax=BIG) + pixels + delimiter(0xFFFEE0DD, ">") + after, BIG)
    instance, ours = read(content)
    assert instance.frames.kind is FrameKind.EMPTY
    assert "FFFCFFFC" in ours


def test_defined_length_in_a_compressed_syntax():
    instance = check(
        part10(image() + element(0x7FE00010, "OB", b"\xff\xd8 jpeg \xff\xd9"), JPEG),
        [b"\xff\xd8 jpeg \xff\xd9"],
    )
    assert [warning.tag for warning in instance.warnings] == ["7FE00010"]
    instance, _ = read(part10(image(frames=2) + element(0x7FE00010, "OB", b"xxxx"), JPEG))
    assert instance.frames.kind is FrameKind.EMPTY


def test_fragments_in_a_deflated_dataset():
    pixels = element(0x7FE00010, "OB", fragments(VALUES, basic(VALUES)), length=UNDEFINED)
    check(part10(image(frames=3) + extended(VALUES) + pixels, DEFLATED), VALUES)


def test_elements_after_pixel_data():
    after = element(0xFFFCFFFC, "OB", bytes(3000))
    instance, ours = read(encapsulated(VALUES, 3, basic=basic(VALUES), after=after))
    assert ours["FFFCFFFC"]["BulkDataURI"] == "<slot>/bulkdata/FFFCFFFC"
    assert instance.pixel_length == len(fragments(VALUES, basic(VALUES))) - 8


def test_icon_images_are_not_the_frames():
    icon = element(0x7FE00010, "OB", fragments([b"icon"]), length=UNDEFINED)
    content = encapsulated(VALUES, 3, before=element(0x00880200, "SQ", item(icon)))
    instance = check(content, VALUES)
    assert [value.path for value in instance.bulk] == ["00880200/0/7FE00010", "7FE00010"]


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=3), min_size=1, max_size=6),
    st.booleans(),
)
def test_any_frames_with_a_basic_table(frames, table):
    values = [value + b"\0" * (len(value) % 2) for frame in frames for value in frame]
    groups, at, offsets = [], 0, []
    for frame in frames:
        groups.append(b"".join(values[at : at + len(frame)]))
        offsets.append(sum(8 + len(value) for value in values[:at]))
        at += len(frame)
    if table or len(values) == len(frames):
        check(
            encapsulated(
                values, len(frames), basic=struct.pack(f"<{len(offsets)}I", *offsets) if table else b""
            ),
            groups,
        )


# --- large ones, by arithmetic instead of bytes ---


class Slide:
    """An encapsulated file that no disk holds: `number` frames of `size` bytes, each its own fragment."""

    def __init__(self, number, size, table):
        values = np.arange(number, dtype="<u8") * np.uint64(size + 8)
        first = item(values.astype("<u4").tobytes() if table == "basic" else b"")
        before = b""
        if table == "extended":
            before = element(0x7FE00001, "OV", values.tobytes())
            before += element(0x7FE00002, "OV", np.full(number, size, "<u8").tobytes())
        self.head = (
            part10(image(frames=number) + before + element(0x7FE00010, "OB", length=UNDEFINED), JPEG) + first
        )
        self.item = item(b"", length=size)
        self.step = size + 8
        self.end = len(self.head) + number * self.step
        self.size = self.end + 8
        self.reads = 0

    def pread(self, offset, length):
        self.reads += 1
        pieces = []
        length = min(length, self.size - offset)
        while length > 0:
            if offset < len(self.head):
                piece = self.head[offset : offset + length]
            elif offset >= self.end:
                piece = delimiter(0xFFFEE0DD)[offset - self.end :][:length]
            else:
                at = (offset - len(self.head)) % self.step
                piece = self.item[at : at + length] if at < 8 else bytes(min(length, self.step - at))
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)


def read_slide(slide):
    return read_instance(slide.pread, slide.size, keep=frozenset(), emit=len, limits=ReadLimits())


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_table_of_many_frames_costs_a_handful_of_reads(table):
    slide = Slide(100_000, 10_000, table)
    instance = read_slide(slide)
    expected = np.arange(100_000, dtype="<u8") * np.uint64(slide.step) + np.uint64(len(slide.head) + 8)
    found = np.frombuffer(instance.frames.table, "<u8").reshape(-1, 2)
    assert (found[:, 0] == expected).all()
    assert (found[:, 1] == 10_000).all()
    assert slide.reads < 90


def test_an_empty_table_costs_one_short_read_a_frame():
    slide = Slide(20_000, 20_000, "empty")
    instance = read_slide(slide)
    assert instance.frames.number == 20_000
    assert slide.reads < 20_100


def test_over_four_gigabytes_in_fragments():
    slide = Slide(3000, 2_000_000, "extended")
    instance = read_slide(slide)
    assert slide.size > 1 << 32
    assert table_of(instance)[-1] == (slide.end - 2_000_000, 2_000_000)
    assert instance.pixel_length == slide.end - instance.pixel_offset

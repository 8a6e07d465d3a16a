"""The writer: order, spilling in bounded memory, slots, what is kept, limits."""

import struct
import tracemalloc

import orjson
import pytest
from made_files import (
    EXPLICIT,
    IMPLICIT,
    UNDEFINED,
    element,
    fragments,
    identity,
    item,
    padded,
    part10,
    pread_of,
    read,
    sequence,
)

from streamsrv.dicom.json import writer as dicomjson
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.dicom.series_template import SeriesReader
from streamsrv.errors import InstanceRefused


def us(tag, *values):
    return element(tag, "US", struct.pack(f"<{len(values)}H", *values))


def test_attributes_ascend_and_the_added_ones_stand_in_their_places():
    content = part10(
        us(0x00083001, 1) + us(0x00083003, 2) + identity() + element(0x00081140, "SQ", item(b""))
    )
    _, ours = read(content)
    assert list(ours) == sorted(ours)
    assert ours["00081190"] == {"vr": "UR", "Value": ["<slot>"]}
    assert ours["00083002"] == {"vr": "UI", "Value": [EXPLICIT]}
    assert ours["00081140"] == {"vr": "SQ", "Value": [{}]}


def test_implicit_vr_is_available_as_explicit():
    assert read(part10(identity(IMPLICIT), IMPLICIT))[1]["00083002"]["Value"] == [EXPLICIT]


def test_strays_of_group_0002_are_left_out():
    _, ours = read(part10(identity() + element(0x00020013, "SH", b"stray ") + us(0x00280010, 1)))
    assert "00020013" not in ours


def test_added_attributes_replace_those_of_the_file():
    content = part10(
        element(0x00081190, "UR", b"http://else/") + element(0x00083002, "UI", b"1.2\0") + identity()
    )
    _, ours = read(content)
    assert ours["00081190"]["Value"] == ["<slot>"]
    assert ours["00083002"]["Value"] == [EXPLICIT]


def test_the_last_of_several_equal_tags_counts():
    content = part10(
        identity() + element(0x00420011, "OB", bytes(2000)) * 2 + us(0x00420012, 1) + us(0x00420012, 2)
    )
    instance, ours = read(content)
    assert ours["00420012"]["Value"] == [2]
    assert len(instance.bulk) == 1
    assert instance.bulk[0].offset == content.rindex(bytes(2000))


def test_character_sets_hold_for_their_dataset_and_the_items_below():
    def charset(term):
        return element(0x00080005, "CS", padded(term, b" "))

    def described(text, codec):
        return element(0x00081030, "LO", padded(text.encode(codec), b" "))

    items = [item(described("д", "iso8859_5")), item(charset("ISO_IR 192") + described("ß", "utf-8"))]
    content = part10(
        charset("ISO_IR 144")
        + sequence(0x00081140, items)
        + element(0x00104000, "LT", padded("ж".encode("iso8859_5"), b" "))
        + identity()
    )
    _, ours = read(content)
    first, second = ours["00081140"]["Value"]
    assert first["00081030"]["Value"] == ["д"]
    assert second["00081030"]["Value"] == ["ß"]
    assert ours["00104000"]["Value"] == ["ж"]
    assert ours["00080005"]["Value"] == ["ISO_IR 144"]  # F.2.2 note 3: the source's, not the JSON text's


def test_broken_values_cost_a_warning_with_their_place():
    bad = element(0x00280008, "IS", b"1A") + element(0x00180050, "DS", b"x ")
    content = part10(
        element(0x00080005, "CS", b"NONSENSE") + identity() + bad + sequence(0x00081140, [item(bad)])
    )
    instance, ours = read(content)
    assert ours["00280008"] == {"vr": "IS", "Value": ["1A"]}
    assert [warning.tag for warning in instance.warnings] == [
        "00080005",
        "00280008",
        "00180050",
        "00081140/0/00280008",
        "00081140/0/00180050",
    ]


def test_warnings_have_a_limit():
    content = part10(identity() + sequence(0x00081140, [item(element(0x00280008, "IS", b"1A"))] * 500))
    assert len(read(content)[0].warnings) == ReadLimits().max_warnings


def test_nested_bulk_values_have_paths():
    big = element(0x00282000, "OB", b"icc " * 500)
    items = [
        item(us(0x00280010, 1)),
        item(sequence(0x00480105, [item(b""), item(big)], undefined=True), True),
    ]
    content = part10(identity() + sequence(0x00480105, items) + big)
    instance, ours = read(content)
    paths = ["00480105/1/00480105/1/00282000", "00282000"]
    assert [value.path for value in instance.bulk] == paths
    nested = ours["00480105"]["Value"][1]["00480105"]["Value"][1]["00282000"]
    assert nested == {"vr": "OB", "BulkDataURI": f"<slot>/bulkdata/{paths[0]}"}
    assert all(
        content[value.offset : value.offset + value.length] == b"icc " * 500 for value in instance.bulk
    )


def test_thresholds():
    content = part10(
        identity() + element(0x00420011, "OB", bytes(1024)) + element(0x00420012, "OB", bytes(1026))
    )
    _, ours = read(content)
    assert "InlineBinary" in ours["00420011"]
    assert "BulkDataURI" in ours["00420012"]
    long, longer = b"x" * 65_536, b"x" * 65_538
    content = part10(identity() + element(0x00420011, "UT", long) + element(0x00420012, "UT", longer))
    instance, ours = read(content)
    assert ours["00420011"]["Value"] == [long.decode()]
    assert ours["00420012"] == {"vr": "UT", "BulkDataURI": "<slot>/bulkdata/00420012"}
    assert instance.bulk[0].vr == "UT"


def test_kept_elements_are_plain_json():
    big = element(0x00282000, "OB", bytes(2000))
    content = part10(identity() + sequence(0x00081140, [item(big)]) + us(0x00280010, 3) + big)
    instance, _ = read(content, keep={"00081140", "00280010", "00282000", "00100020", "0020000D"})
    assert instance.attributes == {
        "00081140": {
            "vr": "SQ",
            "Value": [{"00282000": {"vr": "OB", "BulkDataURI": "\0/bulkdata/00081140/0/00282000"}}],
        },
        "0020000D": {"vr": "UI", "Value": ["1.2.5"]},
        "00280010": {"vr": "US", "Value": [3]},
        "00282000": {"vr": "OB", "BulkDataURI": "\0/bulkdata/00282000"},
    }
    orjson.dumps(instance.attributes)


def test_kept_values_that_break_their_rules_are_named():
    content = part10(element(0x00080020, "DA", b"2025-01-") + identity())
    instance, _ = read(content, keep={"00080020"})
    assert [warning.tag for warning in instance.warnings] == ["00080020"]
    assert read(content)[0].warnings == []


# --- spilling ---


def text_of(content, **limits):
    pieces = []
    instance, ours = read(content, limits=ReadLimits(**limits), pieces=pieces)
    return instance, ours, pieces


SEQUENCE = 0x0040A730
CLASSES = identity(study=None, series=None)  # group 0008
GROUPING = identity(sop_class=None, instance=None)  # group 0020


def deep(levels, width):
    content = us(0x00280010, 1)
    for _ in range(levels):
        content = (
            us(0x00280011, 7)
            + sequence(SEQUENCE, [item(content)] * width, undefined=True)
            + us(0x00420001, 2)
        )
    return content


DATASETS = {
    "flat": identity() + us(0x00280010, 1),
    "empty items": identity() + sequence(SEQUENCE, [item(b"")] * 50),
    "empty sequences": identity() + sequence(SEQUENCE, []) + sequence(SEQUENCE + 1, [], undefined=True),
    "empty in items": identity()
    + sequence(SEQUENCE, [item(sequence(SEQUENCE, [])), item(sequence(SEQUENCE + 1, [item(b"")]))]),
    "deep": element(0x00080005, "CS", b"ISO_IR 192") + identity() + deep(3, 4),
    "around the added": CLASSES + sequence(0x00083001, [item(b"")] * 9) + us(0x00083003, 1) + GROUPING,
    "private": identity() + b"".join(element(0x00431000 + place, "LO", b"x" * 50) for place in range(300)),
}


@pytest.mark.parametrize("spill", [0, 1, 100, 1000, 10_000])
@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_spilling_changes_nothing(monkeypatch, dataset, spill):
    content = part10(dataset)
    expected = read(content)[1]
    monkeypatch.setattr(dicomjson, "SPILL", spill)
    instance, ours, _ = text_of(content)
    assert ours == expected
    assert list(ours) == list(expected)
    assert instance.warnings == []


def test_what_comes_too_late_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(dicomjson, "SPILL", 50)
    content = part10(
        identity() + us(0x00280010, 1) + us(0x00100010, 2) + us(0x00280011, 3) + us(0x00280010, 4)
    )
    instance, ours, _ = text_of(content)
    assert "00100010" not in ours
    assert [warning.tag for warning in instance.warnings] == ["00100010", "00280010"]
    assert list(ours) == sorted(ours)


def test_pieces_are_at_most_256_kb():
    content = part10(
        identity() + element(0x00420011, "UT", b"\1" * 65_000) + element(0x00420012, "LT", b"\2" * 65_000)
    )
    _, _, pieces = text_of(content)
    assert sum(map(len, pieces)) > 6 * 130_000
    assert max(map(len, pieces)) <= 256 * 1024


@pytest.mark.no_cover
def test_a_large_sequence_lies_never_whole_in_memory():
    one = (
        us(0x00280010, 1)
        + element(0x00081030, "LO", b"some text ")
        + sequence(0x00081140, [item(us(0x00280011, 2))])
    )
    content = part10(identity() + sequence(0x52009230, [item(one)] * 6000, undefined=True))
    length = 0

    def count(piece):
        nonlocal length
        length += len(piece)

    tracemalloc.start()
    instance = read_instance(
        pread_of(content), len(content), keep=frozenset(("52009230",)), emit=count, limits=ReadLimits()
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == instance.metadata_length > 800_000
    assert peak < 4_000_000
    assert instance.attributes == {}  # too large to be kept


def test_metadata_have_a_limit():
    content = part10(
        identity() + b"".join(element(0x00431000 + place, "LO", b"x" * 50) for place in range(3000))
    )
    with pytest.raises(InstanceRefused, match="more than 100,000 bytes of metadata"):
        text_of(content, max_metadata=100_000)


@pytest.mark.parametrize("number", [500, 501])
def test_attributes_at_the_top_level_have_a_limit(number):
    """Exactly. Those of items do not count."""
    read_next = SeriesReader().read
    items = sequence(0x00081140, [item(element(0x00081150, "UI", b"1.2\0"))] * 1_000)

    def content(attributes):
        tags = ((0x7001 + 2 * (at >> 15)) << 16 | 0x1000 + (at & 0x7FFF) for at in range(attributes))
        return part10(identity() + items + b"".join(element(tag, "LO") for tag in tags))

    first = len(read(content(0))[1]) - 2
    for _ in range(3):
        limited(read_next, content(100))
    if number > 500:
        with pytest.raises(
            InstanceRefused, match=r"more than 500 attributes at the top level.*max_attributes"
        ):
            limited(read_next, content(number - first))
    else:
        assert len(limited(read_next, content(number - first))) == number + 2


def limited(read_next, content):
    pieces = []
    read_next(
        pread_of(content),
        len(content),
        keep=frozenset(),
        emit=pieces.append,
        limits=ReadLimits(max_attributes=500),
    )
    return orjson.loads(b"".join(pieces).replace(b"\0", b""))


def test_nul_characters_in_text_are_no_slots():
    content = part10(
        identity()
        + element(0x00081030, "LO", b"a\0b ")
        + element(0x00420011, "OB", fragments([b"ab"]), length=UNDEFINED)
    )
    instance, ours = read(content)
    assert ours["00081030"]["Value"] == ["a\0b"]
    assert instance.metadata_slots == 2

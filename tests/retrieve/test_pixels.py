"""Descriptions of pixels from DICOM JSON: short and long texts alike, and datasets that make no sense."""

import orjson
import pytest

from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.json import values as json_values
from streamsrv.errors import NotAcceptable
from streamsrv.pixels import description as pixels
from streamsrv.pixels.description import description_of, frame_info


def sequence(*items):
    return {"vr": "SQ", "Value": list(items)}


def numbers(*given):
    return {"vr": "DS", "Value": list(given)}


def window(center):
    return {pixels.VOI_GROUP: sequence({"00281050": numbers(center), "00281051": numbers(400)})}


def frame(number):
    """A frame's groups, most of which nobody needs to show it."""
    position = {"00209113": sequence({"00200032": numbers(1, 2, number)})}
    return {**window(number % 7), **position, "00204000": {"vr": "LT", "Value": ['q"u\\o{t[e,']}}


def dataset(frames):
    return {
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
        "00104000": {"vr": "PN", "Value": [{"Alphabetic": '\\",{"52009230":['}]},
        "00280010": {"vr": "US", "Value": [5]},
        "00280011": {"vr": "US", "Value": [6]},
        "00480105": sequence({"00220016": sequence({}), "00282000": {"vr": "OB", "InlineBinary": "AAAA"}}),
        "52009229": sequence(
            {pixels.TRANSFORMATION_GROUP: sequence({"00281053": numbers(3)}), "00289110": {}}
        ),
        "52009230": sequence(*map(frame, range(frames))),
        "7FE00010": {"vr": "OW", "BulkDataURI": "\0/bulkdata/7FE00010"},
    }


def text_of(given):
    return orjson.dumps(given).replace(b"\\u0000", b"\0")


@pytest.mark.parametrize("frames", [0, 1, 40, 3_000])
@pytest.mark.parametrize("size", [7, 256 << 10])
def test_long_texts_are_described_as_short_ones(frames, size):
    text = text_of(dataset(frames))
    short = description_of([text], 0)
    long = description_of([text[at : at + size] for at in range(0, len(text), size)], pixels.WHOLE + 1)
    assert (short.dataset, short.frames) == (long.dataset, long.frames)
    assert len(short.frames) == frames
    assert "00104000" not in short.dataset
    assert len(set(map(id, long.frames))) <= 7  # equal texts are one


@pytest.mark.parametrize(
    "per_frame", [{"vr": "SQ"}, sequence(), sequence({}, {}), {"vr": "LO", "Value": "x"}]
)
def test_odd_groups(per_frame):
    text = text_of({**dataset(0), "52009230": per_frame})
    for length in (0, pixels.WHOLE + 1):
        description = description_of([text], length)
        assert description.in_group(1, pixels.VOI_GROUP, ("00281050",)) is description.dataset


def test_where_attributes_of_a_frame_stand():
    description = description_of([text_of(dataset(9))], 0)
    assert json_values.number(description.in_group(8, pixels.VOI_GROUP, ("00281050",)), "00281050") == 1
    group = pixels.TRANSFORMATION_GROUP
    assert json_values.number(description.in_group(8, group, ("00281053",)), "00281053") == 3
    assert description.in_group(8, group, ("00281056",)) is description.dataset
    assert description.in_group(99, pixels.VOI_GROUP, ("00281050",)) is description.dataset


@pytest.mark.parametrize(
    ("element", "found"),
    [
        ({"vr": "DS", "Value": [2.5, 3]}, 2.5),
        ({"vr": "DS", "Value": [" 7.5 "]}, 7.5),
        ({"vr": "DS", "Value": ["seven"]}, None),
        ({"vr": "DS", "Value": [None, 4]}, None),
        ({"vr": "SQ", "Value": [{}]}, None),
        ({"vr": "DS", "Value": []}, None),
        ({"vr": "DS"}, None),
        ("no element", None),
    ],
)
def test_numbers_of_foreign_datasets(element, found):
    given = {"00281053": element}
    assert json_values.number(given, "00281053") == found
    assert json_values.text(given, "00281053", "none") in ("none", "7.5", "seven")
    assert json_values.item(given, "00281053") == {}
    assert json_values.inline_binary(given, "00281053") == b""


@pytest.mark.parametrize("value", [1e300, float("nan"), "1e400", "-1e400"])
def test_numbers_that_are_no_whole_ones(value):
    assert json_values.whole({"00280010": {"vr": "US", "Value": [value]}}, "00280010", 3) == 3


def image(**changes):
    given = {
        "00280002": 1,
        "00280004": "MONOCHROME2",
        "00280010": 5,
        "00280011": 6,
        "00280100": 16,
        "00280101": 12,
        "00280102": 11,
        "00280103": 1,
        **changes,
    }
    return {tag: {"vr": "US", "Value": [value]} for tag, value in given.items() if value is not None}


def test_frame_info():
    assert frame_info(image()) == FrameInfo(5, 6, 1, 16, 12, 11, 1)
    assert frame_info(image(**{"00280101": None, "00280102": None})) == FrameInfo(5, 6, 1, 16, 16, 15, 1)
    colour = image(**{"00280002": 3, "00280004": None, "00280100": 8, "00280101": 8, "00280102": 7})
    assert frame_info(colour).photometric_interpretation == "RGB"


@pytest.mark.parametrize(
    "changes", [{"00280010": 0}, {"00280004": "GREEN"}, {"00280100": 12}, {"00280002": 2}]
)
def test_frame_info_without_sense(changes):
    with pytest.raises(NotAcceptable, match="cannot be read"):
        frame_info(image(**changes))

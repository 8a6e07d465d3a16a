"""How samples are stored, as a number: what the metadata say, or nothing."""

import struct

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    element,
    identity,
    padded,
    part10,
    pread_of,
    readable_paths,
)

from framecodecs.frameinfo import PHOTOMETRIC_SAMPLES
from streamsrv.dicom.instance import (
    PHOTOMETRIC_INTERPRETATIONS,
    UNKNOWN,
    PixelFacts,
    facts_in,
    unpacked,
)
from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.series_template import SeriesReader
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import InstanceRefused, NotAcceptable, NotDicom
from streamsrv.pixels.description import description_of, info_in_row

# As DICOM JSON
CT = {
    "00280002": {"vr": "US", "Value": [1]},
    "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]},
    "00280010": {"vr": "US", "Value": [5]},
    "00280011": {"vr": "US", "Value": [6]},
    "00280100": {"vr": "US", "Value": [16]},
    "00280101": {"vr": "US", "Value": [12]},
    "00280102": {"vr": "US", "Value": [11]},
    "00280103": {"vr": "US", "Value": [0]},
}


def us(*values):
    return {"vr": "US", "Value": list(values)}


def cs(*values):
    return {"vr": "CS", "Value": list(values)}


COLOUR = CT | {"00280002": us(3), "00280004": cs("RGB"), "00280006": us(1)}
SAID = {
    "a CT": (CT, PixelFacts(12, 0, 0, "MONOCHROME2"), 12 | 2 << 9),
    "with a sign": (
        CT | {"00280103": us(1)},
        PixelFacts(12, 1, 0, "MONOCHROME2"),
        12 | 1 << 7 | 2 << 9,
    ),
    "planes": (COLOUR, PixelFacts(12, 0, 1, "RGB"), 12 | 1 << 8 | 4 << 9),
    "planes of one sample": (CT | {"00280006": us(1)}, PixelFacts(12, 0, 0, "MONOCHROME2"), 12 | 2 << 9),
    "another colour": (CT | {"00280004": cs("XYB")}, PixelFacts(12, 0, 0, "XYB"), 12 | 11 << 9),
}


@pytest.mark.parametrize(("dataset", "said", "number"), SAID.values(), ids=SAID)
def test_what_is_said_plainly_is_a_number_that_stays(dataset, said, number):
    assert facts_in(dataset.get) == number < 1 << 16
    assert unpacked(number) == said


ODD = {
    "high bit": CT | {"00280102": us(15)},
    "no high bit": {tag: one for tag, one in CT.items() if tag != "00280102"},
    "two values": CT | {"00280101": us(12, 12)},
    "no value": CT | {"00280101": {"vr": "US"}},
    "another VR": CT | {"00280101": {"vr": "IS", "Value": [12]}},
    "a number as text": CT | {"00280101": {"vr": "IS", "Value": ["12"]}},
    "null": CT | {"00280101": us(None)},
    "no bits": CT | {"00280101": us(0), "00280102": us(65535)},
    "more bits than fit": CT | {"00280101": us(128), "00280102": us(127)},
    "a sign of its own": CT | {"00280103": us(2)},
    "no sign": {tag: one for tag, one in CT.items() if tag != "00280103"},
    "planes that are none": COLOUR | {"00280006": us(2)},
    "no word about planes": {tag: one for tag, one in COLOUR.items() if tag != "00280006"},
    "an unknown colour": CT | {"00280004": cs("HSV")},
    "the colour that none is": CT | {"00280004": cs("")},
    "a colour with a blank": CT | {"00280004": cs(" MONOCHROME2")},
    "no colour": {tag: one for tag, one in CT.items() if tag != "00280004"},
    "a colour as number": CT | {"00280004": us(1)},
    "no samples": CT | {"00280002": us(0)},
    "no rows": CT | {"00280010": us(0)},
    "columns of another VR": CT | {"00280011": {"vr": "UL", "Value": [6]}},
    "no bits allocated": {tag: one for tag, one in CT.items() if tag != "00280100"},
    "floating": CT | {"7FE00008": {"vr": "OF"}},
    "floating, double": CT | {"7FE00009": {"vr": "OD", "BulkDataURI": ""}},
}


@pytest.mark.parametrize("dataset", ODD.values(), ids=ODD)
def test_what_is_not_said_plainly_is_not_known(dataset):
    assert facts_in(dataset.get) == UNKNOWN


def test_every_colour_that_can_be_read_has_a_number_of_its_own():
    assert len(set(PHOTOMETRIC_INTERPRETATIONS)) == len(PHOTOMETRIC_INTERPRETATIONS)
    assert set(PHOTOMETRIC_INTERPRETATIONS) == {"", *PHOTOMETRIC_SAMPLES}


@given(st.integers(0, 0xFFFF))
@example(12)
@example(2 << 9)
@example(12 | len(PHOTOMETRIC_INTERPRETATIONS) << 9)
def test_any_number_says_something_that_is_that_number_or_nothing(number):
    said = unpacked(number)
    colour = number >> 9
    assert (said is None) == (not number & 0x7F or not 0 < colour < len(PHOTOMETRIC_INTERPRETATIONS))
    if said is not None:
        term = said.photometric_interpretation
        dataset = COLOUR | {
            "00280004": cs(term),
            "00280101": us(said.bits_stored),
            "00280102": us(said.bits_stored - 1),
            "00280103": us(said.pixel_representation),
            "00280006": us(said.planar_configuration),
        }
        assert facts_in(dataset.get) == number


# Of whole files


def learn(content, read=read_instance):
    """The instance, and its DICOM JSON."""
    text = []
    limits = ReadLimits(max_inflated=10_000_000)
    instance = read(pread_of(content), len(content), keep=frozenset(), emit=text.append, limits=limits)
    return instance, b"".join(text)


def agreed(content, read=read_instance):
    """What the row of a file says of its frames, if it says it: what its metadata say."""
    instance, text = learn(content, read)
    said = info_in_row(instance)
    try:
        described = description_of([text], len(text)).info
    except NotAcceptable:
        described = None
    assert said is None or said == described
    return said


def test_pydicoms_files_say_the_same_or_nothing():
    said = total = 0
    for path in readable_paths():
        try:
            info = agreed(path.read_bytes())
        except (NotDicom, InstanceRefused):
            continue
        total += 1
        said += info is not None
    assert total // 2 < said < total


NAMES = {
    0x00280002: "samples", 0x00280006: "planes", 0x00280010: "rows", 0x00280011: "columns",
    0x00280100: "allocated", 0x00280101: "stored", 0x00280102: "high", 0x00280103: "sign",
}  # fmt: skip
PLAIN = {"samples": 1, "rows": 5, "columns": 6, "allocated": 16, "stored": 12, "high": 11, "sign": 0}


def file_of(syntax=EXPLICIT, uid="1.2.4", colour=b"MONOCHROME2 ", **values):
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    order = ">H" if syntax == BIG else "<H"
    values = PLAIN | values
    numbers = {
        tag: element(tag, "US", struct.pack(order, values[name]), encoding)
        for tag, name in NAMES.items()
        if values.get(name) is not None
    }
    elements = numbers | {0x00280004: element(0x00280004, "CS", colour, encoding)}
    pixels = element(0x7FE00010, "OW", bytes(60), encoding)
    dataset = identity(encoding, instance=uid) + b"".join(elements[tag] for tag in sorted(elements)) + pixels
    return part10(dataset, syntax)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_any_encoding(syntax):
    info = agreed(file_of(syntax))
    assert (info.rows, info.columns, info.bits_stored, info.high_bit) == (5, 6, 12, 11)


@pytest.mark.parametrize(
    ("name", "value"), [("stored", 11), ("high", 15), ("sign", 1), ("sign", None), ("planes", 1)]
)
def test_one_of_a_series_that_says_something_else(name, value):
    """Whatever the template says that matched those before."""
    reader = SeriesReader()
    for number in range(24):
        own = {name: value} if number in (9, 17, 18) else {}
        own |= {"high": value - 1} if name == "stored" and own else {}
        content = file_of(uid=f"1.2.4.{number + 10}", **own)
        assert agreed(content, reader.read) == agreed(content)
        info = learn(content, reader.read)[0].pixel_facts
        assert info == learn(content)[0].pixel_facts
    assert reader.matches


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 11, 12, 15, 16, 32, 63, 64, 127, 128, 255, 256, 65535])
ELEMENTS = st.one_of(
    st.builds(
        lambda tag, number: element(tag, "US", struct.pack("<H", number)), st.sampled_from([*NAMES]), NUMBERS
    ),
    st.builds(
        lambda tag, vr, value: element(tag, vr, value),
        st.sampled_from([*NAMES, 0x00280004]),
        st.sampled_from(["US", "UL", "SS", "IS", "CS", "OW", "UN"]),
        st.sampled_from([b"", b"\1\0", b"\1\0\1\0", b"12", b"8 ", b"RGB ", b"\0\0\0\0"]),
    ),
    st.builds(
        lambda term: element(0x00280004, "CS", padded(term, b" ")),
        st.sampled_from(["RGB", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1 ", "HSV", "RGB\\RGB", " RGB"]),
    ),
    st.builds(lambda tag: element(tag, "OF", bytes(8)), st.sampled_from([0x7FE00008, 0x7FE00009])),
)  # fmt: skip


@given(
    st.lists(ELEMENTS, max_size=4),
    st.sampled_from([{}, {"samples": 3, "planes": 0, "colour": b"RGB "}, {"planes": 1}]),
    st.booleans(),
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_whatever_elements_stand_there_or_twice(elements, values, behind):
    """In the place of those that are there, or in front of them and behind."""
    plain = file_of(**values)
    cut = plain.index(element(0x0020000E, "UI", b"1.2.6\0"))
    at = len(plain) if behind else cut
    agreed(plain[:at] + b"".join(elements) + plain[at:])
    agreed(plain[:at] + b"".join(sorted(elements)) + plain[at:])
    tags = {each[:4] for each in elements}
    kept = [each for each in split(plain[cut:]) if each[:4] not in tags]
    agreed(
        plain[:cut] + b"".join(sorted([*kept, *elements], key=lambda each: struct.unpack("<HH", each[:4])))
    )


def split(dataset):
    """Its elements, explicit VR little endian."""
    at = 0
    while at < len(dataset):
        long = dataset[at + 4 : at + 6] == b"OW"
        length = struct.unpack_from("<I" if long else "<H", dataset, at + (8 if long else 6))[0]
        end = at + (12 if long else 8) + length
        yield dataset[at:end]
        at = end


def test_a_text_that_is_written_in_pieces():
    """More than 128 kB of elements in front: what comes twice counts as it stands in the text."""
    many = b"".join(element(0x00290000 | 0x1000 + n, "UT", b"x" * 900) for n in range(300))
    plain = file_of()
    cut = plain.index(element(0x7FE00010, "OW", bytes(60)))
    again = element(0x00280101, "US", b"\x0a\0") + element(0x00280102, "US", b"\x09\0")
    for behind in (b"", again):
        info = agreed(plain[:cut] + many + behind + plain[cut:])
        assert info.bits_stored == 12
        text = learn(plain[:cut] + many + behind + plain[cut:])[1]
        assert orjson.loads(text.replace(b"\0", b""))["00280101"]["Value"] == [12]

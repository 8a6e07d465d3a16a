"""DICOM JSON to datasets, against pydicom: what it reads of our bytes is what it makes of the JSON itself."""

import base64
import io
import struct

import orjson
import pydicom
import pytest
from made_files import read, readable_paths
from pydicom.dataset import Dataset

from streamsrv.dicom.explicit import Copy, fragments
from streamsrv.dicom.json import text as jsontext
from streamsrv.dicom.json.encoding import Bulk, DatasetEncoder, Later
from streamsrv.dicom.json.text import JsonReader
from streamsrv.errors import InstanceRefused, NotDicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# An IS that is no number: pydicom reads it, and refuses to write it as JSON.
UNREADABLE = frozenset(("badVR.dcm",))
SOURCE = bytes(range(256)) * 16


def nothing(path, uri):
    raise AssertionError("no bulk data are expected")


def encoded(dataset, resolve=nothing, step=1 << 20):
    """The bytes of the dataset, and the encoder."""
    text = dataset if isinstance(dataset, bytes) else orjson.dumps(dataset)
    encoder = DatasetEncoder(resolve)
    reader = JsonReader(text[at : at + step] for at in range(0, len(text), step))
    pieces = list(encoder.pieces(reader))
    return b"".join(map(piece_bytes, pieces)), encoder


def piece_bytes(piece):
    if isinstance(piece, Copy):
        return SOURCE[piece.offset : piece.offset + piece.length]
    return piece.content if isinstance(piece, Later) else piece


def reread(content):
    return pydicom.filereader.read_dataset(io.BytesIO(content), is_implicit_VR=False, is_little_endian=True)


def inlined(dataset, instance, content):
    """Our JSON of a file, without what was added and with its bulk values inline."""
    by_path = {value.path: content[value.offset : value.offset + value.length] for value in instance.bulk}

    def visit(dataset, path):
        for tag, element in dataset.items():
            if "BulkDataURI" in element:
                del element["BulkDataURI"]
                element["InlineBinary"] = base64.b64encode(by_path[path + tag]).decode()
            for place, item in enumerate(element.get("Value", ()) if element["vr"] == "SQ" else ()):
                visit(item, f"{path}{tag}/{place}/")

    dataset.pop("00081190")
    dataset.pop("00083002")
    visit(dataset, "")
    return dataset


@pytest.mark.no_cover
def test_every_file_of_pydicom_by_way_of_json():
    """pydicom's Dataset.from_json of the same JSON equals what it reads of our bytes."""
    count = 0
    for path in readable_paths():
        content = path.read_bytes()
        try:
            instance, dataset = read(content)
        except NotDicom:
            continue
        if instance.deflated or instance.frames.kind == 3 or any(v.vr == "UT" for v in instance.bulk):
            continue
        dataset = inlined(dataset, instance, content)
        if path.name in UNREADABLE:
            continue
        compare(Dataset.from_json(dataset), reread(encoded(dataset)[0]), path.name)
        count += 1
    assert count > 60


def compare(expected, found, name):
    """By their JSON, because pydicom compares how values were spelt. Text that is not ASCII is UTF-8."""
    ours, theirs = found.to_json_dict(), expected.to_json_dict()
    if "00080005" in ours and ours["00080005"].get("Value") == ["ISO_IR 192"]:
        theirs["00080005"] = ours["00080005"]
    assert plain(ours) == plain(theirs), name


def plain(value):
    """Nested character sets go, numbers are compared to 14 digits (a DS has 16 characters)."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key != "00080005" or each.get("Value")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return float(f"{value:.12g}") if isinstance(value, float) else "" if value is None else value


@pytest.mark.parametrize("limit", [0, 40, 400])
def test_long_datasets_are_encoded_the_same(monkeypatch, limit):
    item = {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}, "00080050": {"vr": "SH", "Value": ["a"]}}
    dataset = {
        "00020010": {"vr": "UI", "Value": ["1.2.3"]},
        "00080001": {"vr": "UL", "Value": [4]},
        "00080005": {"vr": "CS", "Value": ["ISO_IR 100"]},
        "00080016": {"vr": "UI", "Value": ["1.2"]},
        "00291001": {"vr": "DS", "Value": [0.5] * 30},
        "00400275": {"vr": "SQ", "Value": [item, {}]},
        "00400276": {"vr": "SQ"},
        "00400280": {"vr": "ST", "Value": ["é"]},
    }
    whole, _ = encoded(dataset)
    monkeypatch.setattr(jsontext, "STEP", 1)
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (limit,))
    again, encoder = encoded(dataset, step=7)
    assert again == whole
    assert encoder.facts == {"00020010": "1.2.3", "00080016": "1.2"}
    assert reread(whole).SpecificCharacterSet == "ISO_IR 192"
    assert "SpecificCharacterSet" not in reread(whole)[0x00400275][0]


def test_the_character_set_is_kept_where_it_does_not_matter():
    assert "SpecificCharacterSet" not in reread(encoded({"00100020": {"vr": "LO", "Value": ["A"]}})[0])
    declared = {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}, "00100020": {"vr": "LO", "Value": ["A"]}}
    assert reread(encoded(declared)[0]).SpecificCharacterSet == "ISO_IR 100"
    undeclared = {"00100020": {"vr": "LO", "Value": ["ä"]}}
    assert reread(encoded(undeclared)[0]).PatientID == "ä"


def test_short_datasets_are_sorted_and_long_ones_must_ascend(monkeypatch):
    dataset = {"00280010": {"vr": "US", "Value": [1]}, "00100020": {"vr": "LO", "Value": ["A"]}}
    content, _ = encoded(dataset)
    assert content.index(b"LO") < content.index(b"US")
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (5,))
    monkeypatch.setattr(jsontext, "STEP", 1)
    with pytest.raises(NotDicom, match="do not ascend"):
        encoded(dataset, step=3)


@pytest.mark.parametrize(
    ("vr", "values", "expected"),
    [
        ("US", [1, "2"], b"\1\0\2\0"),
        ("SV", ["-1"], b"\xff" * 8),
        ("FD", ["0.5", 1], struct.pack("<2d", 0.5, 1)),
        ("AT", ["00100020"], b"\x10\0\x20\0"),
        ("IS", [1, None, "2", 3.0], b"1\\\\2\\3"),
        ("DS", [0.1, "1.50", -0.12345678901234567], b"0.1\\1.50\\-0.1234567890123"),
        ("PN", [{"Ideographic": "山"}, None, "A^B"], "=山\\\\A^B".encode()),
        ("UI", ["1.2.3"], b"1.2.3\0"),
        ("LO", ["a", None], b"a\\"),
        ("UC", ["abc"], b"abc "),
    ],
)
def test_values(vr, values, expected):
    content, _ = encoded({"00990001": {"vr": vr, "Value": values}})
    assert expected.rstrip(b" ") in content
    assert len(content) % 2 == 0
    assert list(reread(content).keys())[-1] == 0x00990001


@pytest.mark.parametrize(
    "dataset",
    [
        b"[]",
        b'{"x":{}}',
        b'{"00100020":[]}',
        {"00100020": {"vr": "XX"}},
        {"00100020": {"vr": "LO", "Value": "x"}},
        {"00100020": {"vr": "LO", "Value": [1]}},
        {"00100020": {"vr": "US", "Value": [70_000]}},
        {"00100020": {"vr": "US", "Value": [1.5]}},
        {"00100020": {"vr": "US", "Value": [None]}},
        {"00100020": {"vr": "AT", "Value": ["x"]}},
        {"00100020": {"vr": "OB", "Value": [1]}},
        {"00100020": {"vr": "OB", "InlineBinary": "??"}},
        {"00100020": {"vr": "PN", "Value": [{"Alphabetic": 1}]}},
        {"00081140": {"vr": "SQ", "Value": {}}},
        {"00081140": {"vr": "SQ", "Value": [1]}},
        {"FFFEE000": {"vr": "UL", "Value": [1]}},
        b'{"00100020":{"vr":"LO"',
    ],
)
def test_what_is_no_dataset_is_refused(dataset):
    with pytest.raises(NotDicom):
        encoded(dataset)


def test_depth_has_a_limit():
    dataset = {}
    for _ in range(70):
        dataset = {"00081140": {"vr": "SQ", "Value": [dataset]}}
    with pytest.raises(NotDicom, match="64 levels"):
        encoded(dataset)


# Bulk data


def test_bulk_values_are_copied():
    dataset = {
        "00480105": {"vr": "SQ", "Value": [{"00282000": {"vr": "OB", "BulkDataURI": "icc"}}]},
        "00660023": {"vr": "OL", "BulkDataURI": "two"},
    }
    asked = []

    def resolve(path, uri):
        asked.append((path, uri))
        return Bulk([Copy(1, 3)] if uri == "icc" else [Copy(0, 4), Copy(8, 4)])

    found = reread(encoded(dataset, resolve)[0])
    assert asked == [("00480105/0/00282000", "icc"), ("00660023", "two")]
    assert found[0x00480105][0].ICCProfile == SOURCE[1:4] + b"\0"
    assert found[0x00660023].value == SOURCE[:4] + SOURCE[8:12]


@pytest.mark.parametrize("tables", [{}, {"7FE00001": {"vr": "OV", "InlineBinary": "AAAAAAAAAAA="}}])
def test_compressed_frames_become_fragments(tables):
    dataset = {**tables, "7FE00010": {"vr": "OB", "BulkDataURI": "x"}}
    content, _ = encoded(dataset, lambda path, uri: Bulk([Copy(0, 5), Copy(16, 8)], frames=True))
    found = reread(content)
    assert "ExtendedOffsetTable" not in found
    assert list(pydicom.encaps.generate_frames(found.PixelData, number_of_frames=2)) == [
        SOURCE[:5] + b"\0",
        SOURCE[16:24],
    ]
    assert found.PixelData[8:16] == struct.pack("<2I", 0, 14)


def test_native_pixel_data_keep_the_tables_of_the_json():
    dataset = {
        "7FE00001": {"vr": "OV", "InlineBinary": "AAAAAAAAAAA="},
        "7FE00010": {"vr": "OW", "BulkDataURI": "x"},
    }
    found = reread(encoded(dataset, lambda path, uri: Bulk([Copy(0, 5), Copy(16, 8)]))[0])
    assert found.PixelData == SOURCE[:5] + SOURCE[16:24] + b"\0"
    assert "ExtendedOffsetTable" in found


def test_beyond_4_gb_the_extended_offset_table():
    pieces = list(fragments([Copy(0, 3 << 30), Copy(0, 3 << 30), Copy(0, 2)]))
    extended = reread(b"".join(piece for piece in pieces[:2]))
    assert extended.ExtendedOffsetTable == struct.pack("<3Q", 0, (3 << 30) + 8, (6 << 30) + 16)
    assert extended.ExtendedOffsetTableLengths == struct.pack("<3Q", 3 << 30, 3 << 30, 2)
    assert pieces[2].endswith(b"\xfe\xff\x00\xe0\0\0\0\0")
    with pytest.raises(InstanceRefused):
        list(fragments([Copy(0, 1 << 32)]))
    with pytest.raises(InstanceRefused):
        encoded({"7FE00010": {"vr": "OW", "BulkDataURI": "x"}}, lambda path, uri: Bulk([Copy(0, 1 << 32)]))

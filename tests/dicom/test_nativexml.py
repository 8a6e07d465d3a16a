"""The writer of Native DICOM Models, by way of xml.etree back to DICOM JSON."""

import re
import tracemalloc

import orjson
import pytest
from made_files import element, identity, item, padded, part10, read, readable_paths, sequence
from xml_models import check_model, json_of, parsed

from streamsrv.dicom.json import text as jsontext
from streamsrv.dicom.nativexml import native_xml
from streamsrv.errors import NotDicom

# pydicom warns of every odd value in its own files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def document(dataset, step=1 << 20):
    text = orjson.dumps(dataset)
    return b"".join(native_xml(text[at : at + step] for at in range(0, len(text), step)))


def expected(value):
    """What XML can hold of it."""
    if isinstance(value, dict):
        return {name: expected(each) for name, each in value.items()}
    if isinstance(value, list):
        return [expected(each) for each in value]
    return CONTROLS.sub("\ufffd", value) if isinstance(value, str) else value


def checked(dataset, **options):
    root = parsed(document(dataset, **options))
    check_model(root)
    assert json_of(root) == expected(dataset)
    return root


def test_every_file_of_pydicom_comes_back():
    count = 0
    for path in readable_paths():
        try:
            _, dataset = read(path.read_bytes())
        except NotDicom:
            continue
        try:
            checked(dataset)
        except AssertionError as difference:
            raise AssertionError(path.name) from difference
        count += 1
    assert count > 120


@pytest.mark.parametrize("limit", [0, 30, 200])
@pytest.mark.parametrize("step", [5, 1000])
def test_long_datasets_are_written_the_same(monkeypatch, limit, step):
    dataset = {
        "00100020": {"vr": "LO", "Value": ["a", None]},
        "00290010": {"vr": "LO", "Value": ["ACME"]},
        "00291001": {"vr": "DS", "Value": [0.5] * 30},
        "00400275": {"vr": "SQ", "Value": [{"00290010": {"vr": "LO"}, "00080050": {"vr": "SH"}}, {}]},
        "00400276": {"vr": "SQ"},
    }
    whole = document(dataset)
    monkeypatch.setattr(jsontext, "STEP", 1)
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (limit,))
    checked(dataset, step=step)
    assert document(dataset, step=step) == whole


def test_names():
    root = checked(
        {
            "00100010": {
                "vr": "PN",
                "Value": [
                    {"Alphabetic": "A^B^C^D^E", "Ideographic": "山田^太郎", "Phonetic": "^x"},
                    None,
                    {"Alphabetic": "A^^^^E^F"},
                ],
            }
        }
    )
    assert [part.text for part in root.iter() if part.tag.endswith("NameSuffix")] == ["E", "E^F"]


def test_private_elements_name_their_creator():
    content = part10(
        identity()
        + element(0x00290010, "LO", padded('A"B<C', b" "))
        + element(0x00290011, "LO", b"OTHER ")
        + element(0x00291001, "LO", b"x ")
        + element(0x00291101, "LO", b"y ")
        + element(0x00311001, "LO", b"z ")
    )
    root = checked(read(content)[1])
    rows = [(node.get("tag"), node.get("privateCreator")) for node in root if node.get("tag") > "0021"]
    assert rows == [
        ("00290010", None),
        ("00290011", None),
        ("00290001", 'A"B<C'),
        ("00290001", "OTHER"),
        ("00311001", None),
    ]


def test_text_is_escaped():
    checked({"00104000": {"vr": "LT", "Value": ["a & <b> ]]> \"c\" 'd'\r\n\t\x0c\x1b\x00 e"]}})
    checked({"00081190": {"vr": "UR", "BulkDataURI": 'http://h/?a=1&b="2"'}})


def test_numbers_keep_all_their_digits():
    checked(
        {
            "00000001": {"vr": "SV", "Value": [-(2**63), 2**63 - 1]},
            "00000002": {"vr": "UV", "Value": [2**64 - 1]},
            "00000003": {"vr": "FD", "Value": [0.1, 1e-300, 1e22, 123456789.123456789]},
            "00000004": {"vr": "IS", "Value": [0, -1, "1A"]},
        }
    )


def test_keywords_of_standard_attributes():
    root = checked({"00100010": {"vr": "PN"}, "00100011": {"vr": "UN"}})
    assert [node.get("keyword") for node in root] == ["PatientName", None]


@pytest.mark.no_cover
def test_a_large_sequence_lies_never_whole_in_memory():
    one = element(0x00081030, "LO", b"some text ") + sequence(0x00081140, [item(b"")])
    pieces = []
    read(part10(identity() + sequence(0x52009230, [item(one)] * 20_000, undefined=True)), pieces=pieces)
    assert sum(map(len, pieces)) > 800_000
    tracemalloc.start()
    length = sum(len(piece) for piece in native_xml(pieces))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length > 1_500_000
    assert peak < 8_000_000

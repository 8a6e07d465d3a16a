"""Native DICOM Models back to DICOM JSON: what nativexml writes comes back, the rest is refused."""

import orjson
import pytest
from made_files import read, readable_paths
from xml_models import json_of, parsed

from streamsrv.dicom import nativexml
from streamsrv.dicom.nativexml import NAMESPACE, json_text, native_xml
from streamsrv.errors import InstanceRefused, NotDicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def back(document, step=1 << 16):
    pieces = (document[at : at + step] for at in range(0, len(document), step))
    return orjson.loads(b"".join(json_text(pieces)))


def model(content):
    return f'<NativeDicomModel xmlns="{NAMESPACE}">{content}</NativeDicomModel>'.encode()


def attribute(tag, vr, content="", more=""):
    return f'<DicomAttribute tag="{tag}" vr="{vr}" {more}>{content}</DicomAttribute>'


def as_text(value):
    """Numbers are text on this way."""
    if isinstance(value, dict):
        return {name: as_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_text(each) for each in value]
    return str(value) if isinstance(value, (int, float)) else value


@pytest.mark.no_cover
def test_every_file_of_pydicom_comes_back():
    count = 0
    for path in readable_paths():
        try:
            _, dataset = read(path.read_bytes())
        except NotDicom:
            continue
        document = b"".join(native_xml([orjson.dumps(dataset)]))
        assert back(document) == as_text(json_of(parsed(document))), path.name
        count += 1
    assert count > 120


@pytest.mark.parametrize("step", [1, 3, 50])
def test_every_cut_gives_the_same(step):
    dataset = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^^B", "Phonetic": "^x"}, None]},
        "00290010": {"vr": "LO", "Value": ["ACME"]},
        "00291001": {"vr": "LO", "Value": ["ä & <", None, "c"]},
        "00400275": {"vr": "SQ", "Value": [{}, {"00080050": {"vr": "SH"}, "00081140": {"vr": "SQ"}}]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "http://h/?a&b"},
    }
    assert back(b"".join(native_xml([orjson.dumps(dataset)])), step) == dataset


def test_without_namespace_and_with_blanks():
    document = (
        b"<NativeDicomModel>\n " + attribute("00100020", "LO", "\n<Value number='1'>x</Value>\n").encode()
    )
    assert back(document + b"\n</NativeDicomModel>") == {"00100020": {"vr": "LO", "Value": ["x"]}}


def test_a_creator_without_element_gets_a_free_block():
    creator = attribute("00290010", "LO", '<Value number="1">ACME</Value>')
    other = attribute("00290001", "LO", '<Value number="1">y</Value>', 'privateCreator="OTHER"')
    third = attribute("00290002", "SQ", '<Item number="1"/>', 'privateCreator="OTHER"')
    assert back(model(creator + other + third)) == {
        "00290010": {"vr": "LO", "Value": ["ACME"]},
        "00290011": {"vr": "LO", "Value": ["OTHER"]},
        "00291101": {"vr": "LO", "Value": ["y"]},
        "00291102": {"vr": "SQ", "Value": [{}]},
    }


def test_values_that_were_left_out_are_null():
    content = attribute("00080008", "CS", '<Value number="1">A</Value><Value number="3">B</Value>')
    assert back(model(content)) == {"00080008": {"vr": "CS", "Value": ["A", None, "B"]}}


def test_inline_binary_may_have_line_ends():
    content = attribute("00420011", "OB", "<InlineBinary>\nAAEC\n AwQF\n</InlineBinary>")
    assert back(model(content)) == {"00420011": {"vr": "OB", "InlineBinary": "AAECAwQF"}}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<NativeDicomModel>",
        b"<other/>",
        model("<Value/>"),
        model("<Surprise/>"),
        model(attribute("00100020", "LO", "<Value number='1'><b/></Value>")),
        model("</DicomAttribute>"),
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><NativeDicomModel/>',
        model("&undefined;"),
        b'<?xml version="1.0" encoding="no-such"?>' + model(""),
        b'<?xml version="1.0" encoding="EUC-JP"?>' + model(""),
        b'<?xml version="1.0" encoding="UTF-16"?>' + model(""),
    ],
)
def test_what_is_no_model_is_refused(document):
    with pytest.raises(NotDicom):
        back(document)


def test_limits(monkeypatch):
    monkeypatch.setattr(nativexml, "MAX_TEXT", 100)
    with pytest.raises(InstanceRefused):
        back(model(attribute("00100020", "LT", f"<Value number='1'>{'x' * 101}</Value>")))
    with pytest.raises(InstanceRefused):
        back(model(attribute("00100020", "LO", "<Value number='99999999'>x</Value>")))
    inner = ""
    for _ in range(70):
        inner = attribute("00081140", "SQ", f"<Item number='1'>{inner}</Item>")
    with pytest.raises(NotDicom, match="64 levels"):
        back(model(inner))
    creators = "".join(attribute("00290001", "LO", "", f'privateCreator="{each}"') for each in range(300))
    with pytest.raises(NotDicom, match="private"):
        back(model(creators))

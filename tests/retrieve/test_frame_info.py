"""How frames are stored: the index row tells the same as the metadata, or nothing."""

import orjson
import pytest

from streamsrv.dicom.instance import facts_in
from streamsrv.errors import NotAcceptable
from streamsrv.pixels import description
from streamsrv.pixels.description import Descriptions, frame_info

MODULE = {
    "00280002": {"vr": "US", "Value": [1]},
    "00280004": {"vr": "CS", "Value": ["MONOCHROME1"]},
    "00280008": {"vr": "IS", "Value": [7]},
    "00280010": {"vr": "US", "Value": [5]},
    "00280011": {"vr": "US", "Value": [6]},
    "00280030": {"vr": "DS", "Value": [0.5, 0.5]},
    "00280100": {"vr": "US", "Value": [16]},
    "00280101": {"vr": "US", "Value": [12]},
    "00280102": {"vr": "US", "Value": [11]},
    "00280103": {"vr": "US", "Value": [1]},
}
BEFORE = {
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
    "00081140": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": ["1.2"]}}]},
    "00104000": {"vr": "LT", "Value": ['"00280101":{"vr":"US","Value":[3]}']},
}
AFTER = {
    "00281050": {"vr": "DS", "Value": [40]},
    "7FE00010": {"vr": "OW", "BulkDataURI": "\0/bulkdata/7FE00010"},
}
CT = {**BEFORE, **MODULE, **AFTER}


def text_of(given):
    return orjson.dumps(given).replace(b"\\u0000", b"\0")


class Row:
    """What an index knows of it; an old one by default."""

    def __init__(self, given, pixel_facts=0):
        self.pixel_facts = pixel_facts
        self.record_id, self.metadata_length = bytes(16), len(text_of(given))
        for name, tag in (
            ("rows", "10"),
            ("columns", "11"),
            ("samples_per_pixel", "02"),
            ("bits_allocated", "100"),
        ):
            found = given.get(f"0028{tag.zfill(4)}", {}).get("Value", [0])
            setattr(self, name, found[0])


class Texts:
    """A store of one instance."""

    def __init__(self, given):
        self.text, self.asked = text_of(given), 0

    def metadata(self, rows):
        self.asked += 1
        yield from (self.text[at : at + 100] for at in range(0, len(self.text), 100))


def test_what_the_row_says_is_not_looked_up():
    """The very object that the metadata would have given."""
    texts = Texts(CT)
    info = Descriptions().info(texts, Row(CT, facts_in(CT.get)))
    assert info is frame_info(CT)
    assert texts.asked == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"00280010": {"vr": "US", "Value": [0]}},
        {"00280100": {"vr": "US", "Value": [12]}},
        {"00280004": {"vr": "CS", "Value": ["RGB"]}},
    ],
)
def test_what_makes_no_sense_in_the_row_is_told_from_the_metadata(changes):
    given, facts = CT | changes, facts_in((CT | {"00280004": changes.get("00280004", CT["00280004"])}).get)
    assert facts
    with pytest.raises(NotAcceptable) as said:
        Descriptions().info(Texts(given), Row(given, facts))
    with pytest.raises(NotAcceptable) as expected:
        frame_info(given)
    assert str(said.value) == str(expected.value)


def test_facts_of_a_later_version_are_not_guessed():
    texts = Texts(CT)
    assert Descriptions().info(texts, Row(CT, 12 | 0x7F << 9)) == frame_info(CT)
    assert texts.asked == 1


def test_the_loop_reads_no_long_text(monkeypatch):
    """Unless the row tells enough, or the text was read before."""
    monkeypatch.setattr(description, "QUICK", 10)
    known = Descriptions()
    assert known.info_at_hand(Texts(CT), Row(CT)) is None
    assert known.info_at_hand(Texts(CT), Row(CT, facts_in(CT.get))) == frame_info(CT)
    assert known.info(Texts(CT), Row(CT)) == frame_info(CT)
    assert known.info_at_hand(Texts(CT), Row(CT)) == frame_info(CT)


def test_a_text_is_read_once():
    texts, known = Texts(CT), Descriptions()
    assert [known.info(texts, Row(CT)) for _ in range(2)] == [frame_info(CT)] * 2
    assert texts.asked == 1

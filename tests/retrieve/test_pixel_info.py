"""How frames are stored, said by the row or cut out of DICOM JSON: the same as all of it says, or nothing."""

import random

import orjson
import pytest

from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.pixelfacts import facts_in
from streamsrv.errors import NotAcceptable, WouldBlock
from streamsrv.pixels import description as pixels
from streamsrv.pixels import pixel_info as cutting
from streamsrv.pixels.description import description_of, frame_info
from streamsrv.pixels.pool import PixelPool

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


def refused():
    raise WouldBlock("a thread has to")


def info_of(given):
    return cutting.pixel_info(Texts(given), Row(given), PixelPool(1))


def test_a_ct_is_cut_out_of_its_dataset_and_remembered(monkeypatch):
    monkeypatch.setattr(cutting, "describe", lambda *_: pytest.fail("all of it is read"))
    texts, pool = Texts(CT), PixelPool(1)
    found = [cutting.pixel_info(texts, Row(CT), pool) for _ in range(2)]
    assert found == [FrameInfo(5, 6, 1, 16, 12, 11, 1, photometric_interpretation="MONOCHROME1")] * 2
    assert texts.asked == 1
    assert found[0] == frame_info(CT)


def test_what_the_row_says_is_not_looked_up():
    """The very object that the metadata would have given."""
    texts = Texts(CT)
    info = cutting.pixel_info(texts, Row(CT, facts_in(CT.get)), PixelPool(1))
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
        cutting.pixel_info(Texts(given), Row(given, facts), PixelPool(1))
    with pytest.raises(NotAcceptable) as expected:
        frame_info(given)
    assert str(said.value) == str(expected.value)


def test_facts_of_a_later_version_are_not_guessed():
    texts = Texts(CT)
    assert cutting.pixel_info(texts, Row(CT, 12 | 0x7F << 9), PixelPool(1)) == frame_info(CT)
    assert texts.asked == 1


def test_a_row_that_says_it_needs_no_text_in_the_loop(monkeypatch):
    """Of an old one with a long text a thread has to read it."""
    monkeypatch.setattr(pixels, "QUICK", 10)
    monkeypatch.setattr(cutting, "QUICK", 10)
    pool = PixelPool(1)
    monkeypatch.setattr(pool, "must_not_block", refused)
    with pytest.raises(WouldBlock):
        cutting.pixel_info(Texts(CT), Row(CT), pool)
    assert cutting.pixel_info(Texts(CT), Row(CT, facts_in(CT.get)), pool) == frame_info(CT)


ICON = {"00880200": {"vr": "SQ", "Value": [MODULE | {"00280010": {"vr": "US", "Value": [64]}}]}}
WITHOUT_ROWS = {tag: element for tag, element in CT.items() if tag != "00280010"}
DOUBTFUL = {
    "an icon": CT | ICON,
    "only an icon": {**BEFORE, **ICON, **AFTER},
    "a part of it in a sequence": {
        **BEFORE,
        "00081140": {"vr": "SQ", "Value": [{"00280002": {"vr": "US", "Value": [3]}}]},
        **{tag: element for tag, element in MODULE.items() if tag != "00280002"},
    },
    "a sequence in between": {
        **dict(list(MODULE.items())[:3]),
        "00280009": {"vr": "SQ", "Value": [{"00280010": {"vr": "US", "Value": [9]}}]},
        **{tag: element for tag, element in list(MODULE.items())[3:] if tag != "00280010"},
    },
    "another order": dict(sorted(CT.items(), reverse=True)),
    "an attribute behind": {**WITHOUT_ROWS, "00280010": MODULE["00280010"]},
    "no sign": {tag: element for tag, element in CT.items() if tag != "00280103"},
    "floating": CT | {"7FE00008": {"vr": "OF", "BulkDataURI": "\0/bulkdata/7FE00008"}},
    "a slot": CT | {"00280103": {"vr": "US", "BulkDataURI": "\0/bulkdata/00280103"}},
    "a value of another type": CT | {"00280103": {"vr": "US", "Value": ["}"]}},
    "rows that nobody knows": WITHOUT_ROWS,
}


@pytest.mark.parametrize("given", DOUBTFUL.values(), ids=DOUBTFUL)
def test_where_it_could_mean_something_else_all_is_read(given):
    def of(read):
        try:
            return read()
        except Exception as error:
            return type(error), str(error)

    assert of(lambda: info_of(given)) == of(lambda: description_of([text_of(given)], 0).info)


def test_any_dataset_says_the_same_either_way():
    random.seed(seed := random.randrange(1 << 32))
    elements = [
        *CT.items(),
        *ICON.items(),
        ("00280006", {"vr": "US", "Value": [1]}),
        ("00280009", {"vr": "AT"}),
    ]
    cut = 0
    for _ in range(2_000):
        chosen = random.sample(elements, random.randint(len(elements) - 3, len(elements)))
        given = dict(sorted(chosen) if random.random() < 0.9 else chosen)
        piece = cutting.piece_of(text_of(given))
        cut += piece is not None
        try:
            expected = description_of([text_of(given)], 0).info
        except Exception as error:
            with pytest.raises(type(error)):
                info_of(given)
            continue
        assert info_of(given) == expected, (seed, given)
    assert cut > 100, seed

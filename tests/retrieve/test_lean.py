"""Lean metadata against a plain selection from the whole."""

import tracemalloc

import orjson
import pytest

from streamsrv.dicom.json import text as jsontext
from streamsrv.plans.field_filter import UIDS, fields_of, lean_text

DATASET = {
    "00080018": {"vr": "UI", "Value": ["1.2"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A"}]},
    "00281050": {"vr": "DS", "Value": [1.5, 40]},
    "52009229": {
        "vr": "SQ",
        "Value": [{"00289110": {"vr": "SQ", "Value": [{"00280030": {"vr": "DS", "Value": [1]}}]}}, {}],
    },
    "52009230": {
        "vr": "SQ",
        "Value": [
            {
                "00209113": {"vr": "SQ", "Value": [{"00200032": {"vr": "DS", "Value": [0, 0, number]}}]},
                "00209111": {"vr": "SQ", "Value": [{"00189074": {"vr": "DT", "Value": ["2024"]}}]},
            }
            for number in range(3)
        ],
    },
    "7FE00010": {"vr": "OW", "BulkDataURI": "http://h/x"},
}
TEXT = orjson.dumps(DATASET)


def tree_of(*names):
    return fields_of([("includefield", name) for name in names]).tree


def lean(tree, step=1 << 20):
    return orjson.loads(b"".join(lean_text((TEXT[at : at + step] for at in range(0, len(TEXT), step)), tree)))


def plainly(dataset, tree):
    found = {}
    for tag, element in dataset.items():
        if tag in tree:
            found[tag] = element
            if tree[tag] and element["vr"] == "SQ":
                found[tag] = element | {"Value": [plainly(item, tree[tag]) for item in element["Value"]]}
    return found


NAMES = [
    ["PatientName"],
    ["00100010,windowcenter,WindowCenter"],
    ["PerFrameFunctionalGroupsSequence.PlanePositionSequence.ImagePositionPatient", "7fe00010"],
    ["SharedFunctionalGroupsSequence", "SharedFunctionalGroupsSequence.PixelMeasuresSequence"],
    ["SharedFunctionalGroupsSequence.PixelMeasuresSequence", "SharedFunctionalGroupsSequence"],
    ["52009230.00209111", "52009230.00209113.00200032", "WindowCenter.PatientName", "PatientID"],
    ["PerFrameFunctionalGroupsSequence"],
]


@pytest.mark.parametrize("limit", [0, 50, 300, 1 << 18])
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0][:30])
def test_only_what_was_asked_for(monkeypatch, names, limit):
    tree = tree_of(*names)
    expected = plainly(DATASET, tree)
    monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (limit,))
    monkeypatch.setattr(jsontext, "STEP", 1)
    assert lean(tree, 1 << 20) == lean(tree, 11) == expected
    assert "00080018" in expected


def test_trees():
    uids = {tag: {} for tag in UIDS}
    assert tree_of("52009229.00289110.00280030") == uids | {"52009229": {"00289110": {"00280030": {}}}}
    assert tree_of("52009229.00289110", "52009229") == uids | {"52009229": {}}
    assert tree_of("52009229,52009229.00289110") == uids | {"52009229": {}}
    assert tree_of() is None
    assert tree_of("", " , ") is None
    assert tree_of("PatientName", "ALL") is None


def test_unknown_names_are_said():
    fields = fields_of([("includefield", "PatientNam,Nonsense"), ("includefield", 'x"\r\n'), ("limit", "y")])
    assert fields.tree == {tag: {} for tag in UIDS}
    assert fields.warnings == (
        "the includefield PatientNam is unknown and was ignored",
        "the includefield Nonsense is unknown and was ignored",
        "the includefield given is unknown and was ignored",
    )


def test_the_identity_has_no_order():
    assert tree_of("PatientName", "PatientID") == tree_of("00100020,00100010")
    one, two = (
        fields_of([("includefield", "PatientName,PatientID")]),
        fields_of([("includefield", "00100020,00100010")]),
    )
    assert one.identity == two.identity != fields_of([]).identity


def test_memory_is_bounded():
    item = orjson.dumps(DATASET["52009230"]["Value"][0])

    def pieces():
        yield b'{"52009230":{"vr":"SQ","Value":['
        for number in range(10_000):
            yield b"," * bool(number) + item
        yield b"]}}"

    tracemalloc.start()
    length = sum(map(len, lean_text(pieces(), tree_of("52009230.00209113"))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length > 700_000
    assert peak < 8_000_000

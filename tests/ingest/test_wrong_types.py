"""Metadata whose JSON has wrong types: each costs its own dataset, with a reason; the others are stored."""

import contextlib
import json
import math
import os

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_assembly import XML_BODY, metadata, part, send

from streamsrv.dicom.json import text as jsontext
from streamsrv.dicom.json.encoding import DatasetEncoder
from streamsrv.dicom.json.text import JsonReader
from streamsrv.dicom.nativexml import json_text, native_xml
from streamsrv.errors import InstanceError, InstanceRefused
from streamsrv.store.store import Store, StoreOptions

SOAK = int(os.environ.get("SOAK", "1"))
NESTED = b'{"00081140":{"vr":"SQ","Value":['


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("types") / "data", StoreOptions(min_free=0)) as opened:
        yield opened


def changed(**elements):
    return metadata("1.2.3.4.666", pixels="", **elements) | {"00400275": {"vr": "SQ"}}


WRONG = {
    "a VR that is an object": changed(x00280010={"vr": {}, "Value": [1]}),
    "a VR that is an array": changed(x00280010={"vr": ["US"], "Value": [1]}),
    "a VR that is false": changed(x00280010={"vr": False, "Value": [1]}),
    "a UID that is a number": changed(x00080018={"vr": "UI", "Value": 5}),
    "a UID in an object": changed(x00080018={"vr": "UI", "Value": {"a": 1}}),
    "a UID without array": changed(x00080018={"vr": "UI", "Value": "1.2.3"}),
    "a UID in two arrays": changed(x00080018={"vr": "UI", "Value": [["1.2.3"]]}),
    "a UID with a line end": changed(x00080018={"vr": "UI", "Value": ["1.2.3\n"]}),
    "a UID that is no UTF-8": changed(x00080018={"vr": "UI", "Value": ["1.2.\ud800"]}),
    "file meta that are a number": changed(x00020010={"vr": "UI", "Value": 7}),
    "a number without array": changed(x00280010={"vr": "US", "Value": 5}),
    "a number for a text": changed(x00104000={"vr": "LT", "Value": [5]}),
    "an object for a text": changed(x00104000={"vr": "LT", "Value": [{}]}),
    "a text for a name": changed(x00100010={"vr": "PN", "Value": [["a"]]}),
    "a number for a name group": changed(x00100010={"vr": "PN", "Value": [{"Alphabetic": 1}]}),
    "a bool for a number": changed(x00280010={"vr": "US", "Value": [True]}),
    "a huge number": changed(x00280010={"vr": "US", "Value": [1 << 60]}),
    "a number for bulk data": changed(x00420011={"vr": "OB", "BulkDataURI": 5}),
    "a number for base64": changed(x00420011={"vr": "OB", "InlineBinary": 5}),
    "an array for base64": changed(x00420011={"vr": "OB", "InlineBinary": ["AAAA"]}),
    "values of a binary VR": changed(x00420011={"vr": "OB", "Value": [1]}),
    "a number for an item": changed(x00081140={"vr": "SQ", "Value": [5]}),
    "false for an item": changed(x00081140={"vr": "SQ", "Value": [False]}),
    "a text for items": changed(x00081140={"vr": "SQ", "Value": "items"}),
    "a number for an attribute": changed() | {"00104000": 5},
    "an array for an attribute": changed() | {"00104000": []},
    "null for an attribute": changed() | {"00104000": None},
    "one attribute in two spellings": changed() | {"0010001a": {"vr": "LO"}, "0010001A": {"vr": "LO"}},
    "NaN": changed(x00189073={"vr": "FD", "Value": [math.nan]}),
    "an array": [],
    "a number": 5,
    "null": None,
    "a text": "text",
}


def texts():
    found = {name: json.dumps(dataset).encode() for name, dataset in WRONG.items()}
    whole = orjson.dumps(changed())
    return found | {
        "an attribute twice": whole[:-1] + b',"00100020":{"vr":"LO"}}',
        "a value twice": whole[:-1] + b',"00104000":{"vr":"LT","Value":["a"],"Value":["b"]}}',
        "5,000 sequences in each other": NESTED * 5_000 + b"{}" + b"]}}" * 5_000,
        "200,000 arrays in each other": b'{"00104000":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "file meta that nest": b'{"00020010":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    }


@pytest.mark.parametrize("name", texts())
@pytest.mark.parametrize("in_steps", [False, True])
def test_wrong_types_cost_their_dataset(store, name, in_steps, monkeypatch):
    if in_steps:  # as datasets are read that are longer than WHOLE
        monkeypatch.setattr(jsontext.JsonReader.value, "__defaults__", (60,))
        monkeypatch.setattr(jsontext, "STEP", 100)
        monkeypatch.setattr("streamsrv.ingest.spool.CHUNK", 5_000)
    unique = f"1.2.3.{list(texts()).index(name) + 1}.{int(in_steps) + 1}"
    good = [
        orjson.dumps(metadata(f"{unique}.{number}", pixels="") | {"00400275": {"vr": "SQ"}})
        for number in (1, 2)
    ]
    body = b"[" + b",".join([good[0], texts()[name], good[1]]) + b"]"
    result = send(store, part(body, "application/dicom+json"))
    assert [item.instance for item in result.stored] == [f"{unique}.1", f"{unique}.2"]
    (failed,) = result.failed
    assert failed.failure_reason in (43264, 272)
    assert failed.comment


# Any JSON, where a dataset is expected

VRS = st.sampled_from(("US", "UI", "SQ", "PN", "LO", "OB", "DS", "AT", "FD", "SV", "UN", "IS", "XX", ""))
TAGS = st.sampled_from(
    (
        "00080016",
        "00080018",
        "0020000D",
        "00080005",
        "00081140",
        "00020010",
        "7FE00010",
        "7FE00001",
        "FFFEE000",
        "x",
    )
) | st.from_regex(r"[0-9A-F]{8}", fullmatch=True)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("1.2.3", "AAAA", "b/1", "\ud800", math.inf, 1 << 70))
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TAGS, inner, max_size=2), max_leaves=6
)


def elements(values):
    keys = {
        "vr": VRS | LEAVES,
        "Value": st.lists(values, max_size=3) | values,
        "InlineBinary": values,
        "BulkDataURI": values,
    }
    return st.fixed_dictionaries({}, optional=keys)


DATASETS = st.dictionaries(
    TAGS, elements(VALUES | st.dictionaries(TAGS, elements(VALUES), max_size=2)) | VALUES, max_size=4
)


def encoded(text):
    def resolve(path, uri):
        raise InstanceRefused("no such part", tag=path[-8:])

    reader = JsonReader([text[at : at + 40] for at in range(0, len(text), 40)], foreign=True)
    for _ in DatasetEncoder(resolve).pieces(reader):
        pass


@settings(max_examples=80 * SOAK, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=DATASETS, limit=st.sampled_from((30, 1 << 18)))
def test_any_json_is_encoded_or_refused(dataset, limit):
    text = json.dumps(dataset).encode()
    usual = JsonReader.value.__defaults__
    JsonReader.value.__defaults__ = (limit,)
    try:
        encoded(text)
    except InstanceError:
        pass  # the one documented error
    finally:
        JsonReader.value.__defaults__ = usual


@settings(max_examples=25 * SOAK, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=DATASETS)
def test_any_json_costs_at_most_itself(store, dataset):
    """Whatever the first dataset is, the second one is answered for, and the answer can be written."""
    good = metadata("1.2.3.4.7", pixels="") | {"00400275": {"vr": "SQ"}}
    result = send(store, part(json.dumps([dataset, good]).encode(), "application/dicom+json"))
    told = [item.instance for item in result.stored] + [item.instance for item in result.failed]
    assert len(told) == 2
    assert "1.2.3.4.7" in told


# XML

DOCUMENT = b"".join(native_xml([orjson.dumps(metadata("1.2.3.4.777", pixels="", x00091010={"vr": "UN"}))]))
TOKENS = [
    b"<Item>",
    b"</Item>",
    b'vr="SQ"',
    b'vr="XX"',
    b'tag="00080018"',
    b'tag=""',
    b'number="999999999"',
    b"\n",
    b"&#10;",
    b"",
    b"<Value>",
]
PLACES = st.integers(0, len(DOCUMENT))


@settings(max_examples=150 * SOAK, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(
        st.tuples(PLACES, st.integers(0, 30), st.sampled_from(TOKENS) | st.binary(max_size=4)), max_size=3
    )
)
def test_any_xml_is_encoded_or_refused(changes):
    text = DOCUMENT
    for at, length, token in changes:
        text = text[:at] + token + text[at + length :]
    with contextlib.suppress(InstanceError):
        encoded(b"".join(json_text([text])))


XML_WRONG = {
    "a UID with a line end": ("1.2.3.4.777", "1.2.3&#10;"),
    "no VR": ('vr="PN"', 'vr="XX"'),
    "an attribute twice": ('tag="00100020"', 'tag="00100010"'),
    "no tag": ('tag="00100020"', 'tag="0010002"'),
    "items of a name": ('vr="SQ"', 'vr="PN"'),
    "a text for a number": (
        '<DicomAttribute tag="00280010" vr="US" keyword="Rows"><Value number="1">2',
        '<DicomAttribute tag="00280010" vr="US"><Value number="1">two',
    ),
}


@pytest.mark.parametrize("name", XML_WRONG)
def test_wrong_xml_costs_its_document(store, name):
    document = DOCUMENT.decode()
    before, after = XML_WRONG[name]
    assert before in document
    unique = f"1.2.4.{list(XML_WRONG).index(name) + 1}"
    wrong = document.replace(before, after).replace('<BulkData uri="b/icc"/>', "").encode()
    good = DOCUMENT.replace(b"1.2.3.4.777", unique.encode()).replace(b'<BulkData uri="b/icc"/>', b"")
    result = send(
        store,
        part(wrong, "application/dicom+xml"),
        part(good, "application/dicom+xml"),
        content_type=XML_BODY,
    )
    assert [item.instance for item in result.stored][-1:] == [unique]
    if name != "items of a name":  # a sequence all the same
        assert [item.failure_reason for item in result.failed] == [43264]

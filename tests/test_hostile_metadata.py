"""Stores of metadata with bulk data: JSON and XML that break, nest, swell, or name what they must not."""

import json

import pytest
from hostile_files import UIDS, new_uid
from hostile_world import BOUNDARY, Probes, World, marked, part, post, resident

JSON_TYPE = f'Content-Type: multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'
XML_TYPE = f'Content-Type: multipart/related; type="application/dicom+xml"; boundary={BOUNDARY}'
JSON_PART = "Content-Type: application/dicom+json"
XML_PART = "Content-Type: application/dicom+xml"
END = f"--{BOUNDARY}--\r\n".encode()
SAID = 4_000  # characters of an answer to one broken dataset


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("metadata"), "--max-parts", "20000")
    yield world
    world.end()


@pytest.fixture(autouse=True)
def unharmed(hostile):
    yield
    hostile.unharmed()


def described(**more):
    uids = {f"{tag:08X}": {"vr": "UI", "Value": [new_uid()]} for tag in UIDS.values()}
    return uids | more


def text(**more):
    return json.dumps([described(**more)]).encode()


def bulk(uri, tag="00420011"):
    return text(**{tag: {"vr": "OB", "BulkDataURI": uri}})


def nested(depth):
    inner = b'{"00080005":{"vr":"CS","Value":["ISO_IR 192"]}}'
    return b'[{"00081140":{"vr":"SQ","Value":[' * depth + inner + b"]}}]" * depth


BROKEN_JSON = {
    "nothing": b"",
    "no JSON": marked(100),
    "cut": text()[:-20],
    "cut within an escape": b'[{"0008\\u00',
    "no array": b'"text"',
    "numbers": b"[1, 2, 3]",
    "null": b"[null]",
    "no UIDs": b"[{}]",
    "no UTF-8": text().replace(b"UI", b"\xff\xfe"),
    "a lone surrogate": text(**{"00100010": {"vr": "LO", "Value": ["\ud800"]}}),
    "an open array": b"[" * 1_000_000,
    "an open object": b'{"a":' * 1_000_000,
    "sequences in each other": nested(10_000),
    "a long number": text(**{"00280010": {"vr": "US", "Value": [0]}}).replace(
        b"[0]", b"[" + b"9" * 1_000_000 + b"]"
    ),
    "a huge exponent": text(**{"00101030": {"vr": "DS", "Value": [0]}}).replace(b"[0]", b"[1e999999999]"),
    "no number": text(**{"00280010": {"vr": "US", "Value": ["abc"]}}),
    "NaN": text(**{"00189073": {"vr": "FD", "Value": [float("nan")]}}),
    "too large a number": text(**{"00280010": {"vr": "US", "Value": [1 << 40]}}),
    "no VR": text(**{"00280010": {"vr": "XX", "Value": [1]}}),
    "no tag": text(PatientName={"vr": "PN"}),
    "a delimiter": text(FFFEE00D={"vr": "OB"}),
    "file meta": text(**{"00020010": {"vr": "UI", "Value": ["../../etc"]}}),
    "no base64": text(**{"00420011": {"vr": "OB", "InlineBinary": "%%%"}}),
    "a file": bulk("file:///etc/passwd"),
    "a path": bulk("/etc/passwd"),
    "a path up": bulk("../../../../etc/passwd"),
    "another server": bulk("http://127.0.0.1:1/"),
    "a part that is not there": bulk("cid:nothing"),
    "no URI": bulk(None),
    "pixels that are not there": bulk("http://localhost/x", "7FE00010"),
}


@pytest.mark.parametrize("kind", BROKEN_JSON)
def test_broken_json(hostile, kind):
    """It costs what it breaks, and is told shortly; none of it is a fault of the server."""
    body = part(BROKEN_JSON[kind], JSON_PART)
    reply = hostile.answered(post(JSON_TYPE, body + END))
    assert reply.status in ((200, 202) if kind in STORED else (400, 409)), reply
    assert len(reply.body) < SAID
    assert b"root:" not in reply.body


# What could also have been refused: file meta information in JSON is not the instance's, and a value out of
# its rule costs a warning.
STORED = {"file meta", "a huge exponent"}

XML = '<?xml version="1.0" encoding="UTF-8"?>%s<NativeDicomModel>%s</NativeDicomModel>'
ATTRIBUTE = '<DicomAttribute tag="%s" vr="%s">%s</DicomAttribute>'


def xml(doctype="", more=""):
    uids = (
        ATTRIBUTE % (f"{tag:08X}", "UI", f'<Value number="1">{new_uid()}</Value>') for tag in UIDS.values()
    )
    return (XML % (doctype, "".join(uids) + more)).encode()


LAUGHS = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
COMMENT = ATTRIBUTE % ("00104000", "LT", '<Value number="1">%s</Value>')
BROKEN_XML = {
    "nothing": b"",
    "no XML": marked(100),
    "cut": xml()[:-30],
    "another root": b"<html></html>",
    "a billion laughs": xml(f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>', COMMENT % "&l9;"),
    "an outer entity": xml('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>', COMMENT % "&f;"),
    "an outer doctype": xml('<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">', COMMENT % "&f;"),
    "quadratic": xml(f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]>', COMMENT % ("&a;" * 20_000)),
    "elements in each other": b"<NativeDicomModel>" + b"<a>" * 300_000,
    "an endless attribute": b'<NativeDicomModel x="' + b"y" * 2_000_000,
    "UTF-16 that is none": xml().replace(b"UTF-8", b"UTF-16"),
    "an unknown encoding": xml().replace(b"UTF-8", b"no-such"),
    "NUL": xml().replace(b"</Native", b"\0</Native"),
}


@pytest.mark.parametrize("kind", BROKEN_XML)
def test_broken_xml(hostile, kind):
    before = resident(hostile.server.process.pid)
    with Probes(hostile) as probes:
        reply = hostile.answered(post(XML_TYPE, part(BROKEN_XML[kind], XML_PART) + END))
    assert reply.status in (400, 409), reply
    assert len(reply.body) < SAID
    assert b"root:" not in reply.body
    assert max(probes.seconds) < 2
    assert resident(hostile.server.process.pid) - before < 100_000_000


def test_many_bulk_parts_that_nobody_asks_for(hostile):
    """And metadata that come last."""
    unasked = b"".join(part(b"x" * 10, f"Content-Location: /{number}") for number in range(19_000))
    with Probes(hostile) as probes:
        reply = hostile.answered(post(JSON_TYPE, unasked + part(text(), JSON_PART) + END))
    assert reply.status in (200, 202, 400, 409)
    assert max(probes.seconds) < 2


def test_many_datasets_that_are_none(hostile):
    """Each is answered for, so their number is limited as that of parts is."""
    body = part(b"[" + b"{}," * 100_000 + b"{}]", JSON_PART)
    with Probes(hostile) as probes:
        reply = hostile.answered(post(JSON_TYPE, body + END))
    assert reply.status == 413
    assert reply.problem() == "the metadata describe more than 20000 instances"
    assert max(probes.seconds) < 2

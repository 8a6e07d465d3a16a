"""Instances that are merely strange: values that are far too long or no values of their VR, unknown transfer
syntaxes. They are stored, and every answer about them works."""

import struct
import urllib.parse

import pytest
from hostile_files import EXPLICIT, LONG_VRS, SECRET, SHORT_VRS, element, instance, new_uid, padded
from hostile_world import DICOM, World, post

PRIVATE = 0x70010000  # behind everything else that these files hold


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("values"))
    yield world
    world.end()


@pytest.fixture(autouse=True)
def unharmed(hostile):
    yield
    hostile.unharmed()


# Values of 10 kB in every VR: stored, told in the metadata, searched around

LONG = {
    "AT": struct.pack("<HH", 0x10, 0x20) * 2560,
    "FL": struct.pack("<f", 1.5) * 2560,
    "FD": struct.pack("<d", 1.5) * 1280,
    "DS": b"1.5" + b" " * 10_237,
    "IS": b"\\".join([b"12"] * 3413) + b" ",
    "DA": b"20200101" * 1280,
    "TM": b"120000\\" * 1462 + b"120000",
    "UI": b"1.2.3.4." * 1280,
    "AS": b"001Y" * 2560,
}


def standard(vr):
    """An attribute that searches may ask for, where the standard has one of this VR at this level."""
    tags = {
        "AE": 0x00080054,
        "AS": 0x00101010,
        "CS": 0x00080060,
        "DA": 0x00080020,
        "DS": 0x00101030,
        "DT": 0x0008002A,
        "IS": 0x00200013,
        "LO": 0x00100020,
        "LT": 0x001021B0,
        "PN": 0x00080090,
        "SH": 0x00080050,
        "ST": 0x00080081,
        "TM": 0x00080030,
        "UC": 0x00080119,
        "UI": 0x00081155,
        "UR": 0x00080120,
        "US": 0x00280010,
    }
    return tags.get(vr)


def huge_values(**uids):
    more = {}
    for number, vr in enumerate(sorted(SHORT_VRS + LONG_VRS)):
        value = LONG.get(
            vr, b"long\\words" * 1024 if vr in ("UC", "LO", "SH", "CS", "AE") else b"longvalue " * 1024
        )
        more[PRIVATE | 0x3000 | number] = element(PRIVATE | 0x3000 | number, vr, value)
        if tag := standard(vr):
            more[tag] = element(tag, vr, value)
    return instance(more, **uids), more


def test_values_of_10_kb_in_every_vr(hostile):
    uids = {name: new_uid() for name in ("study", "series", "instance")}
    file, more = huge_values(**uids)
    reply = hostile.store(file)
    assert reply.status == 202  # stored, with warnings that name what breaks its VR
    assert b"longvalue" not in reply.body
    assert "00081198" not in reply.json()
    path = "/v2/studies/{study}/series/{series}/instances/{instance}".format(**uids)
    assert hostile.get(path, "Accept: application/dicom; transfer-syntax=*").body == file
    for level in (f"/v2/studies/{uids['study']}", path):
        (metadata,) = hostile.get(f"{level}/metadata").json()
        assert {f"{tag:08X}" for tag in more} <= metadata.keys()
        for tag in more:
            bulk = metadata[f"{tag:08X}"].get("BulkDataURI")
            if bulk and level == path:
                assert hostile.get("/v2" + bulk.partition("/v2")[2], "Accept: */*").status == 200
    for resource in ("studies", "series", "instances"):
        query = f"StudyInstanceUID={uids['study']}&includefield=all"
        (found,) = hostile.get(f"/v2/{resource}?{query}").json()
        assert found["0020000D"]["Value"] == [uids["study"]]
    for query in (
        "PatientID=long*",
        "AccessionNumber=long*",
        "PatientID=" + "longvalue " * 50,
        "ReferringPhysicianName=*",
    ):
        assert hostile.get("/v2/studies?" + urllib.parse.quote(query, safe="=&*")).status in (200, 204, 400)
    assert (
        hostile.answered(
            b"DELETE /v2/studies/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % uids["study"].encode()
        ).status
        == 204
    )
    assert hostile.get(f"/v2/studies?StudyInstanceUID={uids['study']}").status == 204


@pytest.mark.parametrize("vr", sorted(SHORT_VRS + LONG_VRS))
def test_rubbish_in_every_vr(hostile, vr):
    """Bytes that are no value of their VR never cost the instance, and no answer fails because of them."""
    uid = new_uid()
    rubbish = bytes(range(256)) * 4
    more = {PRIVATE | 0x10: element(PRIVATE | 0x10, vr, rubbish)}
    if tag := standard(vr):
        more[tag] = element(tag, vr, rubbish)
    reply = hostile.store(instance(more, study=uid))
    assert reply.status in (200, 202)
    assert "00081198" not in reply.json()
    (metadata,) = hostile.get(f"/v2/studies/{uid}/metadata").json()
    assert "70010010" in metadata
    (found,) = hostile.get(f"/v2/instances?StudyInstanceUID={uid}&includefield=all").json()
    assert found["00080018"]


def test_a_transfer_syntax_that_nobody_knows(hostile):
    for syntax in ("1.2.3.4", "9" * 64, "x" * 64, "", EXPLICIT + "\0\0\0"):
        uid = new_uid()
        reply = hostile.store(instance(study=uid, syntax=syntax))
        assert reply.status in (200, 202, 409), reply
        if reply.status != 409:
            assert hostile.get(f"/v2/studies/{uid}", "Accept: */*").status in (200, 406)
            assert hostile.get(f"/v2/studies/{uid}/metadata").status == 200


# Texts that answers repeat in header fields: transfer syntax and UIDs. Nothing else of a dataset gets there.
FIELD_TEXTS = {
    "a line feed": "{uid}\n",
    "CR and LF": "{uid}\r\n",
    "a whole field": "{uid}\r\nSet-Cookie: a=b",
    "NUL within": "{uid}\0.1",
    "DEL": "{uid}\x7f",
    "Latin-1": "{uid}\xe9",
    "a parameter": '{uid}"; x=y',
    "a comma": "{uid}, text/html",
    "65 characters": "1" * 65,
    "2,000 characters": "1." * 1000,
}


@pytest.mark.parametrize("kind", FIELD_TEXTS)
@pytest.mark.parametrize("name", ["syntax", "sop_class", "instance", "study", "series"])
def test_a_text_that_no_header_field_can_hold_costs_its_instance(hostile, name, kind):
    """Beside it a good instance of the same study is stored, and every answer about the study works."""
    study, uid = new_uid(), EXPLICIT if name == "syntax" else "1.2.3"
    text = FIELD_TEXTS[kind].format(uid=uid).encode("latin-1")
    bad = instance(**({"study": study} | {name: text}))
    reply = hostile.store(instance(study=study), bad)
    assert reply.status == 202, reply
    ((reason, comment),) = reply.failures()
    assert reason == 43264
    assert "is malformed: digits and dots, at most 64" in comment
    for resource, accept in (("", "application/dicom; transfer-syntax=*"), ("/metadata", "*/*")):
        whole = hostile.get(
            f"/v2/studies/{study}{resource}",
            f'Accept: multipart/related; type="{accept.partition(";")[0]}"; transfer-syntax=*, */*',
        )
        assert whole.status == 200
    assert b"Set-Cookie" not in reply.body


def test_file_meta_information_is_bounded(hostile):
    """All of its elements are held while an instance is read."""
    meta = b"".join(element(0x00020100 + at, "SH", b"meta") for at in range(1_200))
    whole = instance()
    at = whole.index(struct.pack("<HH2s", 8, 0x16, b"UI"))
    reply = hostile.answered(post(DICOM, whole[:at] + meta + whole[at:]))
    assert reply.status == 409
    assert reply.failures()[0][0] == 272
    assert "more than 1,000 elements in the file meta information" in reply.failures()[0][1]


def test_no_refusal_repeats_a_patients_value(hostile):
    """Every attribute that identifies holds the same words; whatever goes wrong, they are not in the
    answer."""
    more = {tag: element(tag, vr, padded(SECRET, b" ")) for tag, vr in IDENTIFYING.items()}
    for broken in ({"study": "1.2.x"}, {"instance": None}, {}):
        content = instance(more, **broken) + (b"" if broken else element(PRIVATE | 0x10, "LO", SECRET, 60000))
        reply = hostile.store(content)
        assert reply.status == 409
        assert SECRET not in reply.body
    reply = hostile.store(instance(more))
    assert reply.status == 202
    assert SECRET not in reply.body


IDENTIFYING = {
    0x00080020: "DA",
    0x00080050: "SH",
    0x00080060: "CS",
    0x00080090: "PN",
    0x00100020: "LO",
    0x00100030: "DA",
    0x00100040: "CS",
    0x00101010: "AS",
    0x00101030: "DS",
    0x00200013: "IS",
}

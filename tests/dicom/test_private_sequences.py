"""Elements that a dictionary has as sequences, although the file says UN or has no VRs: they are read
as sequences, or kept as they are if their items are damaged. And group lengths, which are no metadata."""

import base64
import io
import json
import shutil
import struct
import subprocess
import urllib.request

import pydicom
import pytest
from made_files import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    JPEG,
    SEQUENCE_END,
    UNDEFINED,
    element,
    identity,
    part10,
    read,
)
from small_client import multipart

from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import InstanceRefused

CREATOR, STACK = 0x20010010, 0x2001105F  # Philips Imaging DD 001: Stack Sequence


def header(tag, length):
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def item(content, length=None):
    return header(ITEM, len(content) if length is None else length) + content


def private(value, syntax):
    """The private sequence with `value`: UN in explicit VR, without VR in implicit VR."""
    return element(CREATOR, "LO", b"Philips Imaging DD 001", syntax) + element(STACK, "UN", value, syntax)


INSIDE = element(0x00081030, "LO", b"Description ", IMPLICIT)
SOUND = item(INSIDE) + item(INSIDE, UNDEFINED) + header(ITEM_END, 0)
ODD = {
    "half an item header behind the items": SOUND + b"\xfe\xff\0\xe0",
    "other bytes behind the items": SOUND + b"any other bytes.",
    "an item longer than the value": item(INSIDE, len(INSIDE) + 2),
    "an element longer than its item": item(header(0x00081030, 500) + b"Description "),
    "an element instead of an item": INSIDE,
    "no delimiter of an item": item(INSIDE, UNDEFINED),
    "text": b"no items at all ",
    "a sequence without an end": item(header(0x00081140, UNDEFINED) + item(INSIDE)),
    "fragments without an end": item(header(0x7FE00010, UNDEFINED) + item(b"ab")),
    "too deep": b"",
}
for _ in range(70):
    ODD["too deep"] = item(header(0x00081140, len(ODD["too deep"])) + ODD["too deep"])


def shown(value, syntax=EXPLICIT):
    """The private element in DICOM JSON; what follows it must be there too."""
    behind = element(0x30060002, "SH", b"Label ", syntax)
    instance, metadata = read(part10(identity(syntax) + private(value, syntax) + behind, syntax))
    assert metadata["30060002"]["Value"] == ["Label"]
    assert not instance.warnings
    return metadata[f"{STACK:08X}"]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_sound_items_are_a_sequence(syntax):
    found = shown(SOUND, syntax)
    assert found["vr"] == "SQ"
    assert [each["00081030"]["Value"] for each in found["Value"]] == [["Description"]] * 2
    assert shown(b"", syntax)["vr"] == "SQ"


def test_a_needless_delimiter_of_the_sequence_is_no_damage():
    """pydicom reads it too."""
    value = SOUND + header(SEQUENCE_END, 0)
    assert [each["00081030"]["Value"] for each in shown(value)["Value"]] == [["Description"]] * 2


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("name", ODD)
def test_damaged_items_are_kept_as_they_are(name, syntax):
    value = ODD[name]
    found = shown(value, syntax)
    assert found["vr"] == "UN"
    if len(value) <= 1024:
        assert base64.b64decode(found["InlineBinary"]) == value
    else:
        assert found["BulkDataURI"]


def test_only_the_damaged_sequence_of_several_is_kept_as_it_is():
    inner = item(INSIDE) + b"odd!"
    nested = element(CREATOR, "LO", b"Philips Imaging DD 001", IMPLICIT) + element(
        STACK, "UN", inner, IMPLICIT
    )
    outer = shown(item(nested) + item(INSIDE))
    assert outer["Value"][0][f"{STACK:08X}"] == {"vr": "UN", "InlineBinary": base64.b64encode(inner).decode()}
    assert outer["Value"][1]["00081030"]["Value"] == ["Description"]


def test_each_level_is_checked_once():
    """Checking again at each level would double the time sixty times."""
    value = item(INSIDE)
    for _ in range(60):
        value = item(private(value, IMPLICIT))
    found, depth = shown(value), 0
    while "Value" in (inner := found["Value"][0].get(f"{STACK:08X}", {})):
        found, depth = inner, depth + 1
    assert depth == 60


def test_fragments_in_a_private_sequence_are_not_the_pixels():
    fragments = element(
        0x7FE00010, "OB", item(b"") + item(b"PIXELS") + header(SEQUENCE_END, 0), length=UNDEFINED
    )
    icon = item(header(0x7FE00010, UNDEFINED) + item(b"") + item(b"ICON") + header(SEQUENCE_END, 0))
    content = part10(identity() + private(icon + b"odd!", EXPLICIT) + fragments, JPEG)
    instance, _ = read(content)
    assert content[instance.pixel_offset :].startswith(item(b"") + item(b"PIXELS"))
    assert instance.frames.number == 1


def test_limits_hold_while_items_are_checked():
    many = item(b"") * 2000
    with pytest.raises(InstanceRefused, match="more than 1,000 elements"):
        read(part10(identity() + private(many, EXPLICIT)), limits=ReadLimits(max_elements=1000))


def check_odd_instance(server, tmp_path, syntax):
    value = ODD["other bytes behind the items"] + bytes(2000)
    pixels = element(0x7FE00010, "OW", b"pixels", syntax)
    content = part10(identity(syntax) + private(value, syntax) + pixels, syntax)
    request = urllib.request.Request(
        f"{server.url}/studies",
        data=multipart([content]),
        headers={
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=between-the-parts',
            "Accept": "application/dicom+json",
        },
    )
    with urllib.request.urlopen(request) as answer:
        (stored,) = json.load(answer)["00081199"]["Value"]
    url = stored["00081190"]["Value"][0]
    with urllib.request.urlopen(f"{url}/metadata") as answer:
        uri = json.load(answer)[0][f"{STACK:08X}"]["BulkDataURI"]
    ask = urllib.request.Request(uri, headers={"Accept": "application/octet-stream"})
    with urllib.request.urlopen(ask) as answer:
        assert answer.read() == value
    ask = urllib.request.Request(url, headers={"Accept": f'application/dicom; transfer-syntax="{EXPLICIT}"'})
    with urllib.request.urlopen(ask) as answer:
        got = answer.read()
    assert pydicom.dcmread(io.BytesIO(got)).PixelData == b"pixels"
    (tmp_path / "got.dcm").write_bytes(got)
    if shutil.which("dcm2json"):
        done = subprocess.run(["dcm2json", tmp_path / "got.dcm"], capture_output=True, check=True)
        found = json.loads(done.stdout)[f"{STACK:08X}"]
        assert (found["vr"], base64.b64decode(found["InlineBinary"])) == ("UN", value)


def test_a_damaged_sequence_costs_no_instance(server_factory, tmp_path):
    server = server_factory("--on-duplicate", "replace", workers=1)
    for syntax in (EXPLICIT, IMPLICIT):
        check_odd_instance(server, tmp_path, syntax)


# --- group lengths ---


@pytest.mark.parametrize("vr", ["UL", "UN", "OB"])
@pytest.mark.parametrize("tag", [0x7FE00000, 0x00090000])
def test_a_group_length_is_no_metadata(tag, vr):
    for value in (struct.pack("<I", 100), bytes(3000)):
        rest = element(0x7FE00010, "OW", b"pixels")
        instance, metadata = read(part10(identity() + element(tag, vr, value) + rest))
        assert f"{tag:08X}" not in metadata
        assert [each.path for each in instance.bulk] == ["7FE00010"]


# --- other elements whose VR the file does not have ---


def test_a_standard_sequence_without_items_in_implicit_vr():
    """Concept Code Sequence with a text, from a file of dcm4che."""
    body = identity(IMPLICIT) + element(0x0040A168, "CS", b"GOOD", IMPLICIT)
    _, metadata = read(part10(body + element(0x0040A170, "SH", b"ab", IMPLICIT), IMPLICIT))
    assert metadata["0040A168"] == {"vr": "UN", "InlineBinary": base64.b64encode(b"GOOD").decode()}
    assert metadata["0040A170"]["vr"] == "UN"


@pytest.mark.parametrize("length", ["defined", "undefined"])
def test_items_of_un_in_a_big_endian_dataset_are_little_endian(length):
    """PS3.5 6.2.2; dcmtk reads it so."""
    value = item(INSIDE, UNDEFINED) + header(ITEM_END, 0)
    if length == "undefined":
        sequence = element(0x00081140, "UN", value + header(SEQUENCE_END, 0), BIG, UNDEFINED)
    else:
        sequence = element(0x00081140, "UN", value, BIG)
    _, metadata = read(part10(identity(BIG) + sequence, BIG))
    assert metadata["00081140"]["Value"][0]["00081030"]["Value"] == ["Description"]


def test_two_blanks_as_a_vr():
    """Pixel Padding Value of a file of fo-dicom; dcmtk reads it so."""
    odd = struct.pack("<HH2sHH", 0x0028, 0x0120, b"  ", 2, 7)
    behind = element(0x00281050, "DS", b"-2")
    _, metadata = read(part10(identity() + odd + behind))
    assert metadata["00280120"] == {"vr": "US", "Value": [7]}
    assert metadata["00281050"]["Value"] == [-2]

"""De-identified exports: each attribute of Table E.1-1 of PS3.15, the pixels, the folders of an export."""

import copy
import csv
import io
import json
import stat
import struct
import subprocess
import sys
from pathlib import Path

import clinic as world
import pydicom
import pytest
from live_server import start_server
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from streamsrv.cli import USAGE, main
from streamsrv.tools.outgoing.deidentified import (
    METADATA,
    OFTEN_TEXT,
    UNKNOWN,
    CannotDeidentify,
    Deidentifier,
)
from streamsrv.tools.outgoing.profile import ACTIONS, table_of_actions

TABLE = {
    int(tag, 16): action
    for line in (Path(__file__).parent / "table_e_1_1.txt").read_text().splitlines()[1:]
    for action, *tags in [line.split()]
    for tag in tags
}
CT, MARK = "1.2.840.10008.5.1.4.1.1.2", "SECRET"
UIDS = {0x0020000D: "1.2.77.1", 0x0020000E: "1.2.77.2", 0x00080018: "1.2.77.3"}
VALUES = {
    **dict.fromkeys(("DS", "IS"), "7712"),
    **dict.fromkeys(("FD", "FL"), 77.125),
    **dict.fromkeys(("UL", "US", "SL", "SS"), 7712),
    **dict.fromkeys(("OB", "OW", "UN"), MARK.encode() * 2),
    "AS": "042Y",
    "DA": "19771231",
    "DT": "19771231121314",
    "TM": "121314.5",
    "UR": f"http://{MARK}",
    "AT": 0x00104321,
}
# An item of it is kept, and has to be clean.
KEPT_SEQUENCE = 0x00081115  # Referenced Series Sequence


@pytest.fixture(scope="module")
def deidentifier():
    return Deidentifier(b"secret" * 6)


def value_of(tag, vr):
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.ReferencedSOPInstanceUID = MARK, "1.2.77.9"
        if TABLE[tag] != "X/Z/U*":  # sequences of references stay, with other UIDs
            item.CodeValue, item.CodeMeaning = MARK, MARK
        return [item]
    return f"1.2.77.{tag}" if vr == "UI" else VALUES.get(vr, MARK)


def filled(tags):
    made = Dataset()
    for tag in tags:
        if tag >> 16 > 2:  # the others are of messages and of the file meta information
            vr = dictionary_VR(tag).split(" or ")[0]
            made.add_new(tag, vr, UIDS.get(tag) or value_of(tag, vr))
    return made


def full(syntax):
    """An instance with all attributes of the table, on the top level and in an item."""
    made = filled(TABLE)
    item = filled(tag for tag in TABLE if tag not in UIDS)
    made.add_new(KEPT_SEQUENCE, "SQ", [item])
    made.SOPClassUID, made.Modality, made.Rows = CT, "CT", 4
    for each in (made, item):
        each.add_new(0x50002000, "OW", MARK.encode())  # Curve Data
        each.add_new(0x60023000, "OW", MARK.encode())  # Overlay Data
        each.add_new(0x60024000, "LT", MARK)
        each.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", MARK)
        each.add_new(0x00081234, "LO", MARK)  # unknown to the dictionary
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = CT, "1.2.77.3"
    made.file_meta.SendingApplicationEntityTitle = MARK
    made.file_meta.PrivateInformationCreatorUID = "1.2.77.4"
    made.file_meta.PrivateInformation = MARK.encode()
    made.preamble = MARK.encode().ljust(128, b"\0")
    return made


def cleaned(deidentifier, content, tmp_path):
    """The bytes of the de-identified file, and the remark."""
    path, pieces = tmp_path / "one", []
    path.write_bytes(content)
    remark = deidentifier.copy(path, pieces.append)
    return b"".join(pieces), remark


def written(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_no_value_of_the_table_stays(deidentifier, tmp_path, syntax):
    original = full(syntax)
    content, _ = cleaned(deidentifier, written(original), tmp_path)
    assert MARK.encode() not in content
    assert b"1.2.77." not in content
    assert b"19771231" not in content
    result = pydicom.dcmread(io.BytesIO(content))
    assert (result.Modality, result.Rows, result.SOPClassUID) == ("CT", 4, CT)
    levels = [(original, result), (original[KEPT_SEQUENCE][0], result[KEPT_SEQUENCE][0])]
    for before, after in levels:
        for tag, action in TABLE.items():
            if tag in before and tag not in (0x00120062, 0x00120063, 0x00120064):
                name = f"{keyword_for_tag(tag)} {action}"
                assert tag not in after or after[tag].value != before[tag].value, name
                assert action != "X" or tag not in after, name
                assert action not in ("D", "U", "Z/D") or after[tag].VM or after[tag].VR == "SQ", name
    (tmp_path / "clean.dcm").write_bytes(content)
    subprocess.run(["dcmdump", "-q", tmp_path / "clean.dcm"], check=True, stdout=subprocess.DEVNULL)


def test_the_package_has_the_actions_of_the_standard():
    actions = table_of_actions()
    assert {tag for tag in TABLE if (tag >> 16, tag & 0xFFFF) not in actions} == set()
    assert set(actions.values()) == set(ACTIONS.values())


def test_the_same_uid_is_the_same_everywhere(deidentifier, tmp_path):
    content, _ = cleaned(deidentifier, written(full(ExplicitVRLittleEndian)), tmp_path)
    result = pydicom.dcmread(io.BytesIO(content))
    mapped = deidentifier.uid("1.2.77.3")
    assert result.SOPInstanceUID == result.file_meta.MediaStorageSOPInstanceUID == mapped
    assert mapped.startswith("2.25.")
    assert len(mapped) <= 64
    assert Deidentifier(b"other" * 8).uid("1.2.77.3") != mapped
    assert result.PatientID == result.PatientName == deidentifier.patient(MARK, "")
    assert result.PatientIdentityRemoved == "YES"
    assert result.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_names_and_uids_beyond_the_table(deidentifier, tmp_path):
    made = world.ct(1)
    item = Dataset()
    item.PersonName, item.StorageMediaFileSetUID = "Doe^Jane", "1.2.77.5"
    made.ContentSequence, made.ReferencedSeriesSequence = [copy.deepcopy(item)], [item]
    made.ReferencedSOPClassUID = CT
    result = pydicom.dcmread(io.BytesIO(cleaned(deidentifier, written(made), tmp_path)[0]))
    assert result.ReferencedSeriesSequence[0].PersonName != "Doe^Jane"
    assert result.ReferencedSeriesSequence[0].StorageMediaFileSetUID == deidentifier.uid("1.2.77.5")
    assert result.ReferencedSOPClassUID == CT


def hidden(length):
    """The bytes of a sequence with one item, which has a name: implicit, as a value of the VR UN is."""
    name = b"\x10\x00\x10\x00" + struct.pack("<I", 8) + b"Doe^Jane"
    item = name + b"\x20\x00\x00\x40" + struct.pack("<I", length) + bytes(length)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item


@pytest.mark.parametrize(("vr", "length"), [("UN", 1 << 16), ("OB", 16)])
def test_a_sequence_that_is_not_written_as_one(deidentifier, tmp_path, vr, length):
    made = world.ct(1)
    made.add_new(KEPT_SEQUENCE, vr, hidden(length))
    with pytest.raises(CannotDeidentify, match=f"has the VR {vr}, not SQ"):
        cleaned(deidentifier, written(made), tmp_path)
    inner = Dataset()
    inner.add_new(KEPT_SEQUENCE, vr, hidden(length))
    made = world.ct(1)
    made.ReferencedStudySequence = []
    made.add_new(0x00081140, "SQ", [inner])  # Referenced Image Sequence
    with pytest.raises(CannotDeidentify):
        cleaned(deidentifier, written(made), tmp_path)
    made = world.ct(1)
    made.add_new(0x60023000, vr, hidden(length))  # it is removed in any case
    assert b"Doe^Jane" not in cleaned(deidentifier, written(made), tmp_path)[0]


def test_addresses_are_removed(deidentifier, tmp_path):
    made, item = world.ct(1), Dataset()
    item.RetrieveURL = f"http://pacs.example/{MARK}"
    item.add_new(0x0040E010, "UT", f"http://pacs.example/{MARK}")  # as in older files
    item.URNCodeValue = "urn:oid:1.2.3"
    made.ReferencedSeriesSequence = [item]
    made.RetrieveURI = f"http://pacs.example/{MARK}"
    content, _ = cleaned(deidentifier, written(made), tmp_path)
    assert MARK.encode() not in content
    assert pydicom.dcmread(io.BytesIO(content)).ReferencedSeriesSequence[0].URNCodeValue == "urn:oid:1.2.3"


@pytest.mark.parametrize(
    ("segments", "remark"),
    [
        (b"\xff\xe1\x00\x06Exif\xff\xda\x00\x02", METADATA),
        (b"\xff\xe0\x00\x06JFIF\xff\xff\xfe\x00\x06text\xff\xda\x00\x02", METADATA),
        (b"\xff\xe0\x00\x06JFIF\xff\xee\x00\x07Adobe\xff\xda\x00\x02\xff\xe1\x00\x06Exif", ""),
        (b"\xff\xe0\x00", ""),
    ],
)
def test_metadata_in_jpeg_is_told(deidentifier, tmp_path, segments, remark):
    made = world.ct(1)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.BurnedInAnnotation = "NO"
    made.PixelData = encapsulate([b"\xff\xd8" + segments])
    made["PixelData"].VR = "OB"
    content, found = cleaned(deidentifier, written(made), tmp_path)
    assert found == remark
    assert pydicom.dcmread(io.BytesIO(content)).PixelData == made.PixelData


def with_syntax(number, syntax):
    made = world.ct(number)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = world.ct_pixels(number).byteswap().tobytes()
    made.add_new(0xFFFCFFFC, "OB", MARK.encode())  # behind the pixels
    return made


PIXELS = [
    *world.everything(),
    *(
        with_syntax(1, syntax)
        for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    ),
]


@pytest.mark.parametrize("made", PIXELS, ids=lambda made: made.file_meta.TransferSyntaxUID.name)
def test_the_pixels_are_as_they_were(deidentifier, tmp_path, made):
    content, remark = cleaned(deidentifier, written(made), tmp_path)
    result = pydicom.dcmread(io.BytesIO(content))
    assert result.file_meta.TransferSyntaxUID == made.file_meta.TransferSyntaxUID
    assert result.get("PixelData") == made.get("PixelData")
    is_told = "PixelData" not in made or made.get("BurnedInAnnotation") == "NO"
    assert remark in (("",) if is_told else (UNKNOWN, OFTEN_TEXT))
    assert 0xFFFCFFFC not in result
    for value in (
        b"Doe^Jane",
        "Müller".encode(),
        world.CT_STUDY.encode(),
        world.SLIDE_STUDY.encode(),
        world.PDF,
    ):
        assert value not in content
    (tmp_path / "clean.dcm").write_bytes(content)
    subprocess.run(["dcmdump", "-q", tmp_path / "clean.dcm"], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [0, 3])
def test_a_file_that_is_cut_off_is_refused(deidentifier, tmp_path, number):
    for length in (100, 400, 3000):
        with pytest.raises(CannotDeidentify):
            cleaned(deidentifier, world.file_of(world.everything()[number])[:length], tmp_path)


# --- the verb ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("deidentified"), workers=1)
    world.store(f"{running.url}/studies", map(world.file_of, world.everything()))
    yield running
    running.end()


def export(capsys, out, *words):
    capsys.readouterr()
    code = main(["export", str(out), *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [(), ("--dicomdir",)])
def test_nothing_in_the_folder_tells_who_it_was(server, tmp_path, capsys, words):
    out, private = tmp_path / "out", tmp_path / "out.private"
    words = ("--data", server.data, "--deidentify", "basic", "--original-uids", *words)
    code, report = export(capsys, out, *words, "--query", "Modality=CT")
    assert (code, report["exported"], report[UNKNOWN]) == (0, 3, 3)
    code, report = export(capsys, out, *words)
    assert (code, report["exported"], report["unchanged"], report["failed"]) == (0, 4, 3, 0)
    assert (report[UNKNOWN], report[OFTEN_TEXT]) == (0, 1)
    (line,) = (private / "look-at.csv").read_text().splitlines()[1:]
    assert line.split(",")[1] == OFTEN_TEXT
    assert (out / line.split(",")[0]).exists()
    known = [
        world.CT_STUDY,
        world.SLIDE_STUDY,
        world.OTHER_STUDY,
        "Doe",
        "Müller",
        "P-1",
        "P-2",
        "A-1",
        "19700101",
    ]
    paths = [path for path in out.rglob("*") if path.is_file()]
    for path in paths:
        text = path.read_bytes() + str(path.relative_to(out)).encode()
        assert not [each for each in known if each.encode() in text], path
    with (out / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    with (private / "originals.csv").open(newline="") as file:
        originals = {line["path"]: line["SOPInstanceUID"] for line in csv.DictReader(file)}
    files = {line["path"]: pydicom.dcmread(out / line["path"]) for line in lines}
    assert len(files) == 7
    for line in lines:
        assert files[line["path"]].SOPInstanceUID == line["SOPInstanceUID"]
    assert set(originals.values()) == {str(each.SOPInstanceUID) for each in world.everything()}
    assert len({each.StudyInstanceUID for each in files.values()}) == 3
    assert len({each.PatientID for each in files.values()}) == 2
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (private, *private.iterdir())}
    assert modes["out.private"] == 0o700
    assert modes["secret.json"] == modes["originals.csv"] == 0o600
    assert sorted(modes) == ["export.sqlite", "look-at.csv", "originals.csv", "out.private", "secret.json"]


def test_an_export_has_one_profile(server, tmp_path, capsys):
    words = ["export", str(tmp_path / "out"), "--url", server.url, "--quiet"]
    assert main([*words, "--deidentify", "basic,retain-dates"]) == 0
    one = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert one.StudyDate.startswith("2024")
    for more, sentence in (
        (["--deidentify", "basic"], "profile basic,retain-dates"),
        ([], "de-identified export"),
        (["--deidentify", "strict"], "not basic"),
        (["--deidentify", "basic,retain-everything"], "retain-everything"),
        (["--deidentify", "basic", "--layout", "{PatientName}.dcm"], "PatientName"),
        (["--original-uids"], "--deidentify"),
    ):
        assert main([*words, *more]) == USAGE, more
        assert sentence in capsys.readouterr().err


def test_words_are_a_part_of_the_profile(server, tmp_path, capsys):
    words = tmp_path / "words"
    words.write_text("thorax")
    command = ["export", str(tmp_path / "out"), "--data", str(server.data), "--query", "Modality=OT"]
    command += ["--deidentify", "basic,clean-descriptors", "--keep-words", str(words)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "files whose pixels may show a name: 1." in said.err
    assert f"1 {OFTEN_TEXT}" in said.out
    one = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert (one.StudyDescription, "SeriesDescription" in one) == ("Thorax", False)
    words.write_text("thorax first")
    assert main(command) == USAGE
    assert "basic,clean-descriptors,words=" in capsys.readouterr().err
    assert main([*command[:6], "--keep-words", str(words)]) == USAGE


def test_the_package_is_an_extra(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dicomanonymizer.simpledicomanonymizer", None)
    words = ["export", str(tmp_path / "out"), "--data", str(server.data), "--deidentify", "basic"]
    assert main(words) == USAGE
    assert "streamsrv[deidentify]" in capsys.readouterr().err
    assert not (tmp_path / "out.private").exists()

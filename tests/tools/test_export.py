"""The verb `export`: from a store beside its server, and from the server."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path, PureWindowsPath

import clinic as world
import pydicom
import pytest
from fake_service import ScriptedHandler, served
from live_server import start_server
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from streamsrv.cli import FAILED, USAGE, main
from streamsrv.config import SettingsError
from streamsrv.run_table import open_table
from streamsrv.tools.file_names import LONGEST, FilePattern, folded, safe_name
from streamsrv.tools.outgoing import dicomdir
from streamsrv.tools.outgoing.export import ATTRIBUTES
from streamsrv.tools.search_words import query_pairs

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
CT = "1.2.840.10008.5.1.4.1.1.2"


def made(number, syntax):
    """An instance of a study of its own, with a difficult patient."""
    study = f"1.2.826.{number}"
    dataset = world.dataset(CT, study, f"{study}.1", f"{study}.1.1", syntax)
    dataset.Modality, dataset.PatientID = "CT", ("a/b:c", "A/B:C", "..", "con")[number]
    dataset.StudyDate = f"202{number}0101"
    pixels = world.ct_pixels(number)
    world.with_pixels(dataset, pixels, bits_stored=12)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.byteswap().tobytes()
    return world.file_of(dataset)


FILES = {f"1.2.826.{number}.1.1": made(number, syntax) for number, syntax in enumerate(SYNTAXES)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("export"), workers=1)
    world.store(f"{running.url}/studies", FILES.values())
    yield running
    running.end()


@pytest.fixture(params=["--data", "--url"])
def source(request, server):
    return request.param, str(server.data if request.param == "--data" else server.url)


def export(capsys, out, *words):
    capsys.readouterr()
    code = main(["export", str(out), *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def manifest(out):
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_file_is_as_it_was_stored(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(capsys, out, *source) == (
        0,
        {"ok": True, "exported": 4, "unchanged": 0, "gone": 0, "failed": 0, "failures": []},
    )
    lines = manifest(out)
    assert {line["SOPInstanceUID"]: (out / line["path"]).read_bytes() for line in lines} == FILES
    for line in lines:
        content = (out / line["path"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), str(len(content))) == (line["sha256"], line["bytes"])
        dataset = pydicom.dcmread(out / line["path"])
        assert dataset.file_meta.TransferSyntaxUID == line["TransferSyntaxUID"]
        assert dataset.SOPClassUID == line["SOPClassUID"]
        subprocess.run(["dcmdump", "-q", out / line["path"]], check=True, stdout=subprocess.DEVNULL)
    assert {line["TransferSyntaxUID"] for line in lines} == set(SYNTAXES)
    assert sorted(each.name for each in out.iterdir() if each.is_file()) == ["export.sqlite", "manifest.csv"]
    folders = {line["path"].split("/")[0] for line in lines}
    assert folders == {"a_b_c", "A_B_C", "_", "_con"}
    assert len(set(map(folded, (line["path"] for line in lines)))) == 4


def test_a_second_run_copies_the_rest(source, tmp_path, capsys):
    out = tmp_path / "out"
    export(capsys, out, *source)
    lost, short, *_ = (out / line["path"] for line in manifest(out))
    lost.unlink()
    short.write_bytes(b"short")
    code, report = export(capsys, out, *source)
    assert (code, report["exported"], report["unchanged"]) == (0, 2, 2)
    assert {line["SOPInstanceUID"]: (out / line["path"]).read_bytes() for line in manifest(out)} == FILES


def test_a_query_and_a_layout(source, tmp_path, capsys):
    out = tmp_path / "out"
    words = (
        "--query",
        "StudyDate=2021-2022&Modality=CT",
        "--layout",
        "{Modality}/{StudyDate} {PatientName}.dcm",
    )
    code, report = export(capsys, out, *source, *words)
    assert (code, report["exported"]) == (0, 2)
    assert [line["path"] for line in manifest(out)] == [
        "CT/20210101 Doe^Jane.dcm",
        "CT/20220101 Doe^Jane.dcm",
    ]


def test_files_of_one_name_do_not_replace_each_other(source, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert export(capsys, out, *source, "--layout", "{PatientName}.dcm")[0] == 0
        lines = manifest(out)
        assert {line["SOPInstanceUID"]: (out / line["path"]).read_bytes() for line in lines} == FILES
    assert [bool(re.fullmatch(r"Doe\^Jane(-[0-9a-f]{16})?\.dcm", line["path"])) for line in lines] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ("2024-", "20240101-"),
        ("-2024", "-20241231"),
        ("2024", "20240101-20241231"),
        ("202402", "20240201-20240229"),
        ("20240203-202502", "20240203-20250228"),
        ("20240203", "20240203"),
        ("", ""),
        ("yesterday", "yesterday"),
    ],
)
def test_dates_may_be_short(given, days):
    assert query_pairs(f"StudyDate={given}&PatientID=2024") == [("StudyDate", days), ("PatientID", "2024")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--layout", "{Nonsense}"), "none of"),
        (("--layout", "/{PatientID}"), "empty name"),
        (("--layout", "{PatientID"), "layout"),
        (("--query", "limit=3"), "not a condition"),
        (("--query", "StudyDate"), "--query"),
        (("--query", "Nonsense=1"), "Nonsense"),
        (("--parallel", "0"), "at least 1"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_written(server, tmp_path, capsys, words, sentence):
    out = tmp_path / "out"
    assert main(["export", str(out), "--data", str(server.data), *words]) == USAGE
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_service_that_refuses_the_search(server, tmp_path, capsys):
    words = ["export", str(tmp_path / "out"), "--url", server.url, "--query", "Nonsense=1"]
    assert main(words) == FAILED
    assert "Nonsense" in capsys.readouterr().err


# --- DICOMDIR ---


def leaves(out):
    """SOP Instance UID -> file, as pydicom reads the DICOMDIR."""
    return {each.SOPInstanceUID: Path(each.path) for each in file_set(out)}


def file_set(out):
    found = FileSet(out / "DICOMDIR")
    found._stage["t"].cleanup()  # its folder for changes
    return found


def test_a_dicomdir_lists_every_file(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(capsys, out, *source, "--dicomdir")[:1] == (0,)
    assert {uid: path.read_bytes() for uid, path in leaves(out).items()} == FILES
    names = [str(path.relative_to(out)) for path in out.rglob("F*")]
    assert sorted(names) == [f"DICOM/D0000000/F000000{number}" for number in range(4)]
    assert file_set(out).find_values("PatientID") == sorted(["a/b:c", "A/B:C", "..", "con"])
    subprocess.run(["dcmdump", "-q", out / "DICOMDIR"], check=True, stdout=subprocess.DEVNULL)
    # dcmmkdir reads every record, and refuses a DICOMDIR whose offsets are wrong.
    other = out / "DICOM" / "OTHER"
    other.write_bytes(world.file_of(world.letter()))
    done = subprocess.run(
        ["dcmmkdir", "+A", "+I", "+D", out / "DICOMDIR", "+id", out, "DICOM/OTHER"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert leaves(out).keys() == {*FILES, world.LETTER}


def test_a_dicomdir_grows_with_its_export(server, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--data", str(server.data), "--dicomdir")
    assert export(capsys, out, *words, "--query", "StudyDate=20210101")[1]["exported"] == 1
    assert leaves(out).keys() == {"1.2.826.1.1.1"}
    assert export(capsys, out, *words)[1] | {"failures": []} == {
        "ok": True,
        "exported": 3,
        "unchanged": 1,
        "gone": 0,
        "failed": 0,
        "failures": [],
    }
    assert leaves(out).keys() == FILES.keys()


def test_a_dicomdir_of_every_kind_of_instance(tmp_path):
    """Many levels and siblings, missing values, and an instance without a place."""
    datasets = [*world.everything(), *map(bare, range(5))]
    rows = open_table(tmp_path / "table", dicomdir.SCHEMA, "run")
    for number, dataset in enumerate(datasets):
        path = tmp_path / dicomdir.file_id(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(world.file_of(dataset))
        dicomdir.keep(rows, dicomdir.records_of(path, dicomdir.file_id(number), dataset.StudyInstanceUID))
    dicomdir.write(rows, tmp_path)
    rows.execute("COMMIT")
    rows.close()
    assert leaves(tmp_path).keys() == {each.SOPInstanceUID for each in datasets}
    path = tmp_path / dicomdir.file_id(0)
    datasets[0].PatientID = "ANOTHER"  # the instance was replaced
    path.write_bytes(world.file_of(datasets[0]))
    rows = open_table(tmp_path / "table", dicomdir.SCHEMA, "run")
    dicomdir.keep(rows, dicomdir.records_of(path, dicomdir.file_id(0), datasets[0].StudyInstanceUID))
    dicomdir.write(rows, tmp_path)
    rows.close()
    assert len(file_set(tmp_path)) == len(datasets)
    assert len(file_set(tmp_path).find(PatientID="ANOTHER")) == 1
    found = file_set(tmp_path)
    assert len(found.find(PatientID="P-1", Modality="CT")) == 2
    assert len(found.find(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")) == 3
    assert found.find(SOPInstanceUID=world.SLIDE)[0].PatientName == "Müller^Jörg"
    report = bare(9)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    (tmp_path / "report").write_bytes(world.file_of(report))
    with pytest.raises(dicomdir.NoRecord, match="Completion Flag"):
        dicomdir.records_of(tmp_path / "report", "X", "1.2.3")


def bare(number):
    """An instance with hardly more than its UIDs."""
    made = world.dataset(CT, "1.2.3", f"1.2.3.{number % 2 + 1}", f"1.2.3.9.{number}")
    for keyword in ("PatientID", "StudyDate", "StudyTime", "StudyID", "SeriesNumber"):
        delattr(made, keyword)
    return made


def test_a_folder_has_a_dicomdir_or_not(server, tmp_path, capsys):
    words = ["export", str(tmp_path / "out"), "--data", str(server.data)]
    assert main([*words, "--dicomdir", "--layout", "x"]) == USAGE
    assert "layout of its own" in capsys.readouterr().err
    assert main(words) == 0
    assert main([*words, "--dicomdir"]) == USAGE
    assert "without --dicomdir" in capsys.readouterr().err


def test_a_key_exports_the_studies_of_its_rule(server, tmp_path, capsys):
    shutil.copytree(server.data, tmp_path / "locked" / "data")
    locked = start_server(tmp_path / "locked", "--auth", "required", workers=1)
    words = ("--data", str(locked.data), "--rights", "search,read", "--where", "StudyDate=20210101")
    assert main(["key", "add", "reader", *words]) == 0
    token = tmp_path / "token"
    token.write_text(capsys.readouterr().out)
    words = ("--url", locked.url, "--token-file", str(token))
    code, report = export(capsys, tmp_path / "out", *words)
    assert (code, report["exported"]) == (0, 1)
    token.write_text("wrong")
    assert main(["export", str(tmp_path / "other"), *words]) == FAILED
    assert "401" in capsys.readouterr().err
    assert locked.end() == 0


class Unsteady(ScriptedHandler):
    """One instance. `script` has the behaviour of each request for it."""

    file = FILES["1.2.826.0.1.1"]

    def do_GET(self):
        uids = {"0020000D": "1.2", "0020000E": "1.2.3", "00080018": "1.2.3.4"}
        found = [{tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}]
        if "/studies/" not in self.path:
            self.answer(
                200, "application/dicom+json", json.dumps([] if "offset" in self.path else found).encode()
            )
            return
        behaviour = self.server.script.pop(0)
        if behaviour == "whole":
            self.answer(200, "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", self.file)
        elif isinstance(behaviour, int):
            self.answer(behaviour, "text/plain", b"no", ("Retry-After", "0"))
        else:
            self.answer(200, "application/dicom", self.file, sent=behaviour)


@pytest.fixture
def unsteady():
    with served(Unsteady) as service:
        yield service


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ([0.5, 0.0, 503, 429, "whole"], ""),
        ([500], "500"),
        ([406], "406"),
        ([404], "gone"),
        ([0.5, 0.5], "ended early"),
    ],
)
def test_a_service_that_is_busy_or_lost(unsteady, tmp_path, capsys, script, fault):
    unsteady.script = list(script)
    url = f"http://127.0.0.1:{unsteady.server_address[1]}"
    retries = str(len(script) - 1)
    code, report = export(capsys, tmp_path / "out", "--url", url, "--retries", retries)
    files = [path.read_bytes() for path in tmp_path.rglob("*.dcm")]
    assert not unsteady.script
    assert not list(tmp_path.rglob(".part*"))
    if not fault:
        assert (code, report["exported"], files) == (0, 1, [Unsteady.file])
    elif fault == "gone":
        assert (code, report["gone"], files) == (0, 1, [])
    else:
        assert (code, report["failed"], files) == (FAILED, 1, [])
        assert fault in report["failures"][0]


def test_an_instance_that_is_damaged_is_named(server, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(server.data, data)
    (segment,) = (data / "segments").glob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[raw.index(b"1.2.826.1.1.1\0") + 200] ^= 1
    segment.write_bytes(raw)
    code, report = export(capsys, tmp_path / "out", "--data", str(data))
    assert (code, report["exported"], report["failed"]) == (FAILED, 3, 1)
    assert "1.2.826.1.1.1" in report["failures"][0]
    assert len(manifest(tmp_path / "out")) == 3
    segment.unlink()
    code, report = export(capsys, tmp_path / "none", "--data", str(data))
    assert (code, report["exported"], report["gone"], report["failed"]) == (FAILED, 0, 0, 4)
    assert "the file of its segment is missing" in report["failures"][0]


# Names


@pytest.mark.parametrize(
    "text",
    [
        "..",
        ".",
        "",
        " ",
        "a/../b",
        "C:\\x",
        "nul.txt",
        "COM1",
        "end.",
        "end ",
        ".hidden",
        "a\0b",
        "日" * 99,
        "\ud800",
    ],
)
def test_a_value_is_one_name_on_every_system(text):
    name = safe_name(text)
    assert name
    assert not set(name) & set('<>:"/\\|?*\0')
    assert name not in (".", "..")
    assert name[-1] not in ". "
    assert name[0] != "."
    assert len(name.encode()) <= LONGEST + 1
    assert not PureWindowsPath(name).is_reserved()
    assert safe_name(name) == name


def test_long_values_that_differ_give_names_that_differ():
    assert safe_name("x" * 300 + "1") != safe_name("x" * 300 + "2")


def test_a_pattern():
    pattern = FilePattern("studies/{PatientID}-{StudyDate}/{SOPInstanceUID}.dcm", ATTRIBUTES)
    values = {"PatientID": "../..", "SOPInstanceUID": "1.2"}
    assert pattern.path(values) == "studies/_.._.._-_/1.2.dcm" or pattern.path(values).count("/") == 2
    assert pattern.keywords == {"PatientID", "StudyDate", "SOPInstanceUID"}
    with pytest.raises(SettingsError):
        FilePattern("{PatientID!r}", ATTRIBUTES)

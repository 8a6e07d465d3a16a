"""`streamsrv store` with files whose file meta information is missing or wrong, and without the modules and
functions that only Linux has."""

import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import clinic as world
import pydicom
import pytest
from hostile_files import dataset, element, instance, item
from live_server import ROOT, environment, start_server
from pydicom.data import get_testdata_file

from streamsrv.cli import main
from streamsrv.client.files import examine
from streamsrv.dicom.explicit import part10_head
from streamsrv.errors import InstanceRefused, NotDicom

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("server"), "--on-duplicate", "replace", workers=1)
    yield running
    running.end()


def store(capsys, *words):
    """Exit code and lines of the summary."""
    capsys.readouterr()
    code = main(["store", *map(str, words)])
    return code, capsys.readouterr().out.splitlines()


def stored(server, uid):
    """The file as it was stored."""
    with urllib.request.urlopen(f"{server.url}/instances?SOPInstanceUID={uid}") as answer:
        (found,) = json.load(answer)
    study, series = found["0020000D"]["Value"][0], found["0020000E"]["Value"][0]
    url = f"{server.url}/studies/{study}/series/{series}/instances/{uid}"
    request = urllib.request.Request(url, headers={"Accept": "application/dicom; transfer-syntax=*"})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


# --- which instance a file is ---


def test_a_dicomdir_is_no_instance(server, tmp_path, capsys):
    (tmp_path / "DICOMDIR").write_bytes(part10_head("1.2.840.10008.1.3.10", "1.2.3", EXPLICIT) + dataset())
    (tmp_path / "one").write_bytes(instance())
    assert store(capsys, tmp_path, "--url", server.url)[1][-1].endswith("0 failed, 1 skipped")
    with pytest.raises(NotDicom, match="DICOMDIR"):
        examine(tmp_path / "DICOMDIR")


def test_the_uid_of_the_dataset_names_the_file_in_the_response(server, capsys):
    path = Path(get_testdata_file("rtdose.dcm"))
    file = pydicom.dcmread(path, stop_before_pixels=True)
    assert file.SOPInstanceUID != file.file_meta.MediaStorageSOPInstanceUID
    assert examine(path).uid == file.SOPInstanceUID
    code, lines = store(capsys, path, "--url", server.url)
    assert (code, lines) == (0, ["1 stored, 0 already stored, 0 failed, 0 skipped"])
    assert pydicom.dcmread(io.BytesIO(stored(server, file.SOPInstanceUID))).PatientID == file.PatientID


ENCODINGS = ["CT_small", "image_dfl", "MR_small_bigendian", "MR_small_implicit", "SC_rgb_rle"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_uid_in_every_encoding(name):
    path = Path(get_testdata_file(f"{name}.dcm"))
    assert examine(path).uid == pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID


def test_the_uid_of_the_file_meta_information_if_the_dataset_has_none(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(part10_head("1.2", "1.2.3.44", EXPLICIT) + element(0x00080016, "UI", b"1.2\0"))
    assert examine(path).uid == "1.2.3.44"


# --- files without preamble or file meta information ---

BARE = {
    "ExplVR_LitEndNoMeta.dcm": EXPLICIT,
    "ExplVR_BigEndNoMeta.dcm": BIG,
    "rtstruct.dcm": IMPLICIT,
    "OT-PAL-8-face.dcm": IMPLICIT,
}


@pytest.mark.embedded("it looks into segment files")
@pytest.mark.parametrize("name", BARE)
def test_file_meta_information_is_added(server, name, capsys):
    path = Path(get_testdata_file(name))
    before = path.read_bytes()
    uid = pydicom.dcmread(path, force=True, stop_before_pixels=True).SOPInstanceUID
    code, lines = store(capsys, path, "--url", server.url)
    assert (code, lines[0].split(": ")[1]) == (1, "a dataset without preamble or file meta information")
    assert "--add-meta" in lines[0]
    assert store(capsys, path, "--url", server.url, "--add-meta")[0] == 0
    assert path.read_bytes() == before
    sop_class = pydicom.dcmread(path, force=True, stop_before_pixels=True).SOPClassUID
    head = part10_head(sop_class, uid, BARE[name])
    assert any(head + before in segment.read_bytes() for segment in server.data.glob("segments/*.seg"))
    file = pydicom.dcmread(io.BytesIO(stored(server, uid)))
    assert (file.SOPInstanceUID, file.file_meta.MediaStorageSOPInstanceUID) == (uid, uid)


@pytest.mark.parametrize("missing", [128, 132])
def test_a_preamble_is_added(server, missing, tmp_path, capsys):
    path = tmp_path / "file.dcm"
    whole = instance()
    path.write_bytes(whole[missing:])
    assert store(capsys, tmp_path, "--url", server.url)[1][-1].endswith("0 failed, 1 skipped")
    assert store(capsys, tmp_path, "--url", server.url, "--add-meta")[0] == 0
    uid = str(pydicom.dcmread(io.BytesIO(whole)).SOPInstanceUID)
    assert stored(server, uid) == whole


FRAGMENTS = element(0x7FE00010, "OB", item() + item(b"ab") + SEQUENCE_END, 0xFFFFFFFF)
NO_INSTANCES = {
    "compressed": (
        dataset() + FRAGMENTS,
        InstanceRefused,
        "their transfer syntax is unknown",
    ),
    "cut": (dataset()[:-3], InstanceRefused, "cannot add file meta information"),
    "a UID is missing": (element(0x00080016, "UI", b"1.2\0"), InstanceRefused, "SOPInstanceUID is missing"),
    "text": (b"08 and so on, for a while", NotDicom, "not a DICOM Part 10 file"),
    "nothing": (b"", NotDicom, "not a DICOM Part 10 file"),
    "numbers": (b"\x08\0\x05\0" + b"\xff" * 100, NotDicom, "not a DICOM Part 10 file"),
}


@pytest.mark.parametrize("name", NO_INSTANCES)
def test_a_head_is_added_only_if_it_is_certain(name, tmp_path):
    content, error, reason = NO_INSTANCES[name]
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    with pytest.raises(error, match=reason):
        examine(path, add_meta=True)


def test_what_cannot_get_a_head_is_a_failure_in_a_folder_too(server, tmp_path, capsys):
    (tmp_path / "a.dcm").write_bytes(NO_INSTANCES["compressed"][0])
    (tmp_path / "notes.txt").write_bytes(b"no instance")
    (tmp_path / "z.dcm").write_bytes(instance())
    code, lines = store(capsys, tmp_path, "--url", server.url, "--add-meta")
    assert (code, lines[-1]) == (1, "1 stored, 0 already stored, 1 failed, 1 skipped")


# --- without Linux ---

ELSEWHERE = """
import os, signal, sys
del os.sendfile
import concurrent.futures.thread, http.client, numpy, orjson, pydicom, socket, ssl
for name in "fcntl grp pwd resource termios tty pty syslog tornado lmdb imagecodecs".split():
    sys.modules[name] = None
for module, names in {
    os: "fork pread preadv pwrite pwritev splice posix_fadvise posix_fallocate getuid geteuid getgid "
        "memfd_create pipe2 fchmod fchown chown mkfifo statvfs fstatvfs sysconf copy_file_range eventfd "
        "killpg setsid uname nice wait4 waitid getppid sched_getaffinity",
    signal: "SIGHUP SIGBUS SIGKILL SIG_BLOCK SIG_SETMASK pthread_sigmask",
    socket: "AF_UNIX",
}.items():
    for name in names.split():
        delattr(module, name)
sys.platform = "win32"
from streamsrv.cli import entry
sys.exit(entry())
"""


def elsewhere(*words):
    command = [sys.executable, "-c", ELSEWHERE, *map(str, words)]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_files_are_sent_without_the_functions_of_linux(server, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(instance())
    (tmp_path / "bare.dcm").write_bytes(dataset())
    done = elsewhere("store", tmp_path, "--url", server.url, "--add-meta")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 stored, 0 already stored, 0 failed, 0 skipped\n"


def test_studies_are_pulled_without_the_functions_of_linux(server, tmp_path):
    world.store(f"{server.url}/studies", [world.file_of(world.ct(1))])
    words = ("pull", "--from", server.url, "--query", f"StudyInstanceUID={world.CT_STUDY}")
    done = elsewhere(*words, "--to", server.url, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "1 studies, 0 unchanged, 0 replaced at the source, 1 stored, 0 already stored, 0 gone, 0 failed, "
    )
    done = elsewhere(*words, "--data", tmp_path)
    assert done.returncode == 2
    assert "need Linux" in done.stderr


def test_studies_are_exported_without_the_functions_of_linux(server, tmp_path):
    world.store(f"{server.url}/studies", [world.file_of(world.ct(1))])
    words = ("--query", f"StudyInstanceUID={world.CT_STUDY}", "--layout", "{PatientID}.dcm")
    done = elsewhere("export", tmp_path / "out", "--url", server.url, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "P-1.dcm").read_bytes() == world.file_of(world.ct(1))


@pytest.mark.parametrize("verb", ["serve", "check"])
def test_a_server_says_that_it_needs_linux(verb):
    done = elsewhere(verb)
    assert done.returncode == 2, done.stderr
    assert "this is win32, and a server and its store need Linux" in done.stderr

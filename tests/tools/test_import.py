"""The verb `import`: files, and the storage folder of Orthanc; test_orthanc.py has a real one."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import zlib
from pathlib import Path

import clinic as world
import pytest
from hostile_files import dataset
from live_server import environment, executable, start_server

from streamsrv.cli import FAILED, USAGE, main
from streamsrv.store import Store

FILES = [world.file_of(each) for each in world.everything()]
SOMEBODY = 65_534
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("import"), workers=1)
    yield running
    running.end()


@pytest.fixture
def store(server):
    """The server, with nothing in its store."""
    for study in studies_of(server):
        assert world.ask(f"{server.url}/studies/{study}", "DELETE").status == 204
    shutil.rmtree(server.data / "runs", ignore_errors=True)
    return server


def studies_of(server):
    found = world.ask(f"{server.url}/studies")
    return [study["0020000D"]["Value"][0] for study in (found.json() if found.body else [])]


def files_of(server):
    urls = [f"{server.url}/studies/{study}" for study in studies_of(server)]
    return {payload for url in urls for _, payload in world.ask(url, Accept=AS_STORED).parts()}


def run(capsys, *words):
    capsys.readouterr()
    code = main(["import", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_files_of_a_folder(store, tmp_path, capsys, monkeypatch):
    """Beside the running server. Refused and skipped files do not stop the others."""
    monkeypatch.setenv("STREAMSRV_AUDIT", "on")
    files = tmp_path / "archive" / "below"
    files.mkdir(parents=True)
    for number, content in enumerate(FILES):
        (files / f"{number}").write_bytes(content)
    (files / "again").write_bytes(FILES[0])
    (files / "notes.txt").write_text("no DICOM")
    (files / "cut.dcm").write_bytes(FILES[0][:-10])
    (files / "bare").write_bytes(dataset())
    words = ("folder", tmp_path / "archive", "--data", store.data)
    code, report = run(capsys, *words)
    size = sum(map(len, FILES)) + 2 * len(FILES[0]) - 10
    counts = {"stored": len(FILES), "already stored": 1, "done before": 0, "skipped": 2, "failed": 1}
    (failure,) = report.pop("failures")
    assert (code, report) == (1, {"ok": False, **counts, "bytes": size})
    assert failure.startswith(f"{files / 'cut.dcm'}: not a DICOM file")
    assert files_of(store) == set(FILES)
    (files / "cut.dcm").unlink()
    code, report = run(capsys, *words, "--add-meta")
    assert (code, report["stored"], report["done before"], report["skipped"]) == (0, 1, len(FILES) + 1, 1)
    assert main(["check", "--data", str(store.data)]) == 0
    capsys.readouterr()
    assert main(["audit", "--data", str(store.data), "--study", world.CT_STUDY]) == 0
    (entry,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (entry["event"], entry["detail"]) == ("instances-stored", "import")


def test_a_changed_file_is_taken_again(store, tmp_path, capsys):
    file = tmp_path / "archive" / "one"
    file.parent.mkdir()
    file.write_bytes(FILES[0])
    words = ("folder", file.parent, "--data", store.data)
    assert run(capsys, *words)[1]["stored"] == 1
    file.write_bytes(FILES[3])
    assert run(capsys, *words)[1]["stored"] == 1
    assert files_of(store) == {FILES[0], FILES[3]}


@pytest.mark.parametrize(("point", "stored"), [("after-data-sync", 7), ("after-commit", 0)])
def test_an_import_that_was_killed_goes_on(store, tmp_path, capsys, point, stored):
    for number, content in enumerate(FILES):
        (tmp_path / f"{number}").write_bytes(content)
    words = ("folder", tmp_path, "--data", store.data)
    command = [*executable(), "import", *map(str, words)]
    killed = subprocess.run(command, env=environment() | {"STREAMSRV_FAILPOINT": point})
    assert killed.returncode == -signal.SIGKILL
    code, report = run(capsys, *words)
    assert (code, report["stored"], report["already stored"]) == (0, stored, 7 - stored)
    assert files_of(store) == set(FILES)


def test_root_imports_for_the_user_of_the_server(store, tmp_path, monkeypatch):
    """Files of root go into the store of another user, to whom each new file belongs."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    data, archive = Path(tempfile.mkdtemp(dir="/tmp")), tmp_path / "archive"
    archive.mkdir(mode=0o700)
    (archive / "one").write_bytes(FILES[0])
    (archive / "one").chmod(0o600)
    monkeypatch.chdir("/")
    try:
        Store.open(data / "data").close()
        for path in (data, *data.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
        command = [*executable(), "import", "folder", str(archive), "--data", str(data / "data")]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stdout[:8]) == (0, "1 stored"), done.stderr
        assert {path.stat().st_uid for path in data.rglob("*")} == {SOMEBODY}
        assert list((data / "data" / "runs").iterdir())
    finally:
        shutil.rmtree(data)


# --- the storage of Orthanc ---


def orthanc_storage(folder, *, compressed):
    """Each file of FILES with its begin beside it, as Orthanc has them, and a summary."""
    rows = []
    for number, content in enumerate(FILES):
        kinds = {1: content, 2: b'{"0008,0018": {}}', 3: content[: len(content) // 2]}
        for kind, payload in kinds.items():
            uuid = f"{number:02x}{kind:02x}0000-0000-4000-8000-000000000000"
            stored = len(payload).to_bytes(8, "little") + zlib.compress(payload) if compressed else payload
            path = folder / uuid[:2] / uuid[2:4] / uuid
            path.parent.mkdir(parents=True)
            path.write_bytes(stored)
            digests = [hashlib.md5(each).hexdigest() for each in (payload, stored)]
            rows.append((number, kind, uuid, len(stored), len(payload), 2 if compressed else 1, *digests))
    index = sqlite3.connect(folder / "index")
    names = "id, fileType, uuid, compressedSize, uncompressedSize, compressionType, uncompressedMD5"
    index.execute(f"CREATE TABLE AttachedFiles ({names}, compressedMD5, PRIMARY KEY (id, fileType))")
    index.executemany("INSERT INTO AttachedFiles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    index.commit()
    index.close()
    return folder


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_the_begin_of_a_file_never_takes_its_place(store, tmp_path, capsys, compressed, indexed):
    folder = orthanc_storage(tmp_path / "storage", compressed=compressed)
    if not indexed:
        (folder / "index").unlink()
    before = sorted(folder.rglob("*"))
    code, report = run(capsys, "orthanc", folder, "--data", store.data)
    assert (code, report["stored"], report["failed"]) == (0, len(FILES), 0)
    assert files_of(store) == set(FILES)
    assert run(capsys, "orthanc", folder, "--data", store.data)[1]["done before"] == len(FILES)
    assert sorted(folder.rglob("*")) == before


def test_damaged_and_missing_attachments_are_named(store, tmp_path, capsys):
    folder = orthanc_storage(tmp_path / "storage", compressed=True)
    paths = [folder / name for name in ("00/01", "01/01", "02/01", "03/01")]
    cut, changed, lost, wrong = (next(path.iterdir()) for path in paths)
    cut.write_bytes(cut.read_bytes()[:-20])
    changed.write_bytes(len(FILES[1]).to_bytes(8, "little") + zlib.compress(FILES[1][:-1] + b"x"))
    lost.unlink()
    wrong.write_bytes((1).to_bytes(8, "little") + wrong.read_bytes()[8:])
    code, report = run(capsys, "orthanc", folder, "--data", store.data)
    assert (code, report["stored"], report["failed"]) == (1, len(FILES) - 4, 4)
    assert files_of(store) == set(FILES[4:])
    reasons = ("uncompressed", "MD5", "No such file", "states 1")
    for path, reason, failure in zip((cut, changed, lost, wrong), reasons, report["failures"], strict=True):
        assert failure.startswith(f"{path}: ")
        assert reason in failure


def test_the_log_of_an_index_counts(store, tmp_path, capsys):
    """Orthanc was killed: the newest instances are in the write-ahead log alone."""
    folder = orthanc_storage(tmp_path / "storage", compressed=False)
    index = sqlite3.connect(folder / "index")
    index.execute("PRAGMA journal_mode = WAL")
    index.execute("PRAGMA wal_autocheckpoint = 0")
    index.execute("DELETE FROM AttachedFiles WHERE id > 1")
    index.commit()
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    index.close()
    assert (copied / "index-wal").stat().st_size
    assert run(capsys, "orthanc", copied, "--data", store.data)[1]["stored"] == 2


def test_wrong_words(store, tmp_path, capsys):
    (tmp_path / "index").write_text("no index")
    (tmp_path / "empty").mkdir()
    for words, code, sentence in (
        (("folder", tmp_path / "none", "--data", store.data), FAILED, "is no folder"),
        (("folder", tmp_path, "--data", tmp_path / "empty"), FAILED, "store.toml"),
        (("orthanc", tmp_path, "--data", store.data), FAILED, "no index of Orthanc"),
        (("orthanc", tmp_path, "--data", store.data, "--add-meta"), USAGE, "import folder"),
        (("folder", tmp_path, "--data", store.data, "--orthanc-index", "x"), USAGE, "import orthanc"),
        (("orthanc", tmp_path, "--data", store.data, "--orthanc-index", "x"), FAILED, "x is no file"),
        (("folder", tmp_path / "empty", "--data", store.data), FAILED, "has no DICOM file"),
    ):
        assert main(["import", *map(str, words)]) == code, words
        assert sentence in capsys.readouterr().err

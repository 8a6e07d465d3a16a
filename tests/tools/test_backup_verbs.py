"""The verbs `backup` and `restore`: exit codes, reports and the progress on a terminal."""

import contextlib
import errno
import fcntl
import io
import json
import os

import pytest
from access_world import files_of
from live_server import start_server
from small_client import Client, file_of, key_of

from streamsrv.audit import copying
from streamsrv.audit.cursor import Cursor, SentPosition
from streamsrv.audit.entries import AuditEntry, Event
from streamsrv.audit.trail import Trail, TrailLimits
from streamsrv.cli import FAILED, LOCKED, USAGE, main
from streamsrv.events.hooks import HookState, hooks_in
from streamsrv.tools.progress import ProgressLine
from streamsrv.web.access.grants import KEY, grants_in


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("saved"), workers=1)
    client = Client(server.origin)
    assert client.store([file_of(key_of(1, 1, 1), 1, 3000)]).status == 200
    client.close()
    assert server.end() == 0
    return server.data


def run(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, "".join(capsys.readouterr())


def test_a_backup_and_its_restore(data, tmp_path, capsys):
    target, new = tmp_path / "backup", tmp_path / "new"
    code, said = run(capsys, "backup", target, "--data", data, "--json")
    assert code == 0
    report = json.loads(said)
    assert (report["ok"], report["segments"], report["findings"]) == (True, 1, [])
    assert report["bytes"] == report["copied"] > 3000
    assert "copied: 0\n" in run(capsys, "backup", target, "--data", data, "--rate", "10M")[1]
    code, said = run(capsys, "backup", "--verify", target)
    assert (code, said.splitlines()[1:3]) == (0, ["segments: 1", f"bytes: {report['bytes']}"])
    assert (
        said.splitlines()[0]
        == f"state of: {json.loads((target / 'backup.json').read_text())['backup']['began']}"
    )
    expected = "instances: 1\nsegments: 1\nall is well\n"
    assert run(capsys, "restore", target, "--data", new) == (0, expected)
    assert run(capsys, "check", "--data", new) == (0, "all is well\n")


def test_a_backup_has_the_keys_and_no_sessions(data, tmp_path, capsys):
    target, new = tmp_path / "backup", tmp_path / "new"
    for name in ("ann", "bob"):
        assert run(capsys, "key", "add", name, "--data", data, "--rights", "read")[0] == 0
    grants = grants_in(data)
    ann = grants.named(KEY, "ann")
    with grants.changing() as change:
        change.write(ann._replace(kind="session"))
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    assert run(capsys, "key", "revoke", "bob", "--data", data)[0] == 0
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    assert run(capsys, "restore", target, "--data", new)[0] == 0
    assert list(grants_in(new).all()) == [ann]
    assert {path.stat().st_mode & 0o777 for path in files_of(grants_in(new))} == {0o600}
    files_of(grants_in(target))[0].write_bytes(b"damaged")
    code, said = run(capsys, "backup", "--verify", target)
    assert (code, "1 errors" in said) == (FAILED, True)
    for path in files_of(grants):
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
def test_the_owner_of_the_new_folder_gets_its_files(data, tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    os.chown(new, 12345, 23456)
    assert main(["backup", str(tmp_path / "backup"), "--data", str(data)]) == 0
    assert main(["restore", str(tmp_path / "backup"), "--data", str(new)]) == 0
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (new, *new.rglob("*"))}
    assert owners == {(12345, 23456)}


def test_refusals(data, tmp_path, capsys):
    target = tmp_path / "backup"
    assert main(["backup", str(target), "--data", str(data)]) == 0
    refused = {
        ("backup", data / "inside", "--data", data): (FAILED, "is in the folder of the store"),
        ("backup", tmp_path, "--data", data): (FAILED, "neither empty nor a backup: it has 'backup'"),
        ("backup", target, "--data", tmp_path / "none"): (FAILED, "is not the folder of a store"),
        ("backup", target, "--verify", "--data", data): (USAGE, "leave out --data"),
        ("backup", "--verify", tmp_path): (FAILED, "has no complete backup"),
        ("restore", target, "--data", data): (FAILED, "is not empty"),
        ("restore", tmp_path, "--data", tmp_path / "new"): (FAILED, "has no complete backup"),
        ("restore", target): (USAGE, "needs --data"),
    }
    for words, (code, sentence) in refused.items():
        found, said = run(capsys, *words)
        assert (found, said.count("\n")) == (code, 1), said
        assert sentence in said
    assert not (tmp_path / "new").exists()
    with (target / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(capsys, "backup", target, "--data", data)[0] == LOCKED
    (target / "segments" / "00000001.seg").write_bytes(b"x")
    code, said = run(capsys, "backup", "--verify", target)
    assert (code, "it ends at byte 1" in said) == (FAILED, True)


def test_the_progress_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream, silent = Terminal(), io.StringIO()
    for each in (stream, silent):
        with ProgressLine(each) as line:
            line.draw(50_000_000, 200_000_000)
            line.draw(60_000_000, 200_000_000)  # too soon
    assert stream.getvalue().startswith("\r50 of 200 MB   25%\r")
    assert stream.getvalue().endswith("\r")
    assert "60" not in stream.getvalue()
    assert silent.getvalue() == ""


def written(folder, *studies):
    with contextlib.closing(Trail(folder, TrailLimits(file_size=1000))) as trail:
        for study in studies:
            trail.append([AuditEntry(1.7e9, Event.STORED, user="key:anna", study=study)])


def lines(folder):
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_trail_that_always_loses_a_file_is_no_copy(tmp_path, monkeypatch):
    """A copy without a file that the head counts would look whole."""
    trail = tmp_path / "trail"
    written(trail, "1.1")

    def gone(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(copying, "_copy", gone)
    target = tmp_path / "copy"
    with pytest.raises(FileNotFoundError):
        copying.copy_trail(trail, target)
    assert not (target / "head").exists()


def test_a_backup_has_the_audit_trail(data, tmp_path, capsys):
    """Only its new lines are copied. The trail goes on in the restored store, and its chain is whole."""
    target, new, trail = tmp_path / "backup", tmp_path / "new", data / "audit"
    written(trail, *(f"1.{number}" for number in range(20)))
    Cursor(trail).save(SentPosition(1, 10, 0))
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    first, *others = sorted((target / "audit").glob("*.jsonl"))
    assert len(others) > 2
    before = first.stat()
    with others[-1].open("ab") as file:
        file.write(b'{"n":99')  # of a backup that was interrupted
    written(trail, "2.1")
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert lines(target / "audit") == lines(trail)
    assert {path.stat().st_mode & 0o777 for path in (target / "audit").iterdir()} == {0o600}
    assert run(capsys, "backup", "--verify", target)[0] == 0
    written(trail, "2.2")
    assert run(capsys, "restore", target, "--data", new)[0] == 0
    *former, last = lines(new / "audit")
    assert former == lines(target / "audit")
    assert json.loads(last)["detail"] == "restored from a backup"
    assert run(capsys, "audit", "verify", "--data", new)[0] == 0
    assert Cursor(new / "audit").load() == SentPosition(1, 10, 0)
    first.write_bytes(first.read_bytes().replace(b"key:anna", b"key:bert", 1))
    code, said = run(capsys, "backup", "--verify", target)
    assert (code, "audit" in said) == (FAILED, True)
    others[-1].unlink()
    assert "missing" in run(capsys, "backup", "--verify", target)[1]


def test_a_trail_that_is_there_stays(data, tmp_path, capsys):
    target, new, other = tmp_path / "backup", tmp_path / "new", tmp_path / "trail"
    written(data / "audit", "1.1")
    written(other, "3.1")
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    (tmp_path / "conf.toml").write_text(f'[audit]\naudit_folder = "{other}"\n')
    code, said = run(capsys, "restore", target, "--data", new, "--config", tmp_path / "conf.toml")
    assert (code, "which stays" in said, len(lines(other))) == (0, True, 1)


def test_a_backup_has_the_hooks_and_their_cursors(data, tmp_path, capsys):
    target, new, hooks = tmp_path / "backup", tmp_path / "new", hooks_in(data)
    for name in ("ris", "gone"):
        assert run(capsys, "hook", "add", "https://ris.example/in", "--name", name, "--data", data)[0] == 0
    hooks.save(hooks.named("ris"), HookState("epoch-7", 3, 1))
    hooks.bury("ris", b"{}")
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    hooks.remove("gone")
    assert run(capsys, "backup", target, "--data", data)[0] == 0
    assert run(capsys, "restore", target, "--data", new)[0] == 0
    there = hooks_in(new)
    assert (list(there.all()), there.state("ris")) == (list(hooks.all()), HookState("epoch-7", 3, 1))
    assert there.dead("ris") == ["{}"]
    assert there.documents.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in there.documents.folder.iterdir()} == {0o600}
    (target / "hooks" / "ris.json").write_text("damaged")
    code, said = run(capsys, "backup", "--verify", target)
    assert (code, "ris.json cannot be read" in said) == (FAILED, True)
    hooks.remove("ris")

"""What others on the same machine can see of a server: its processes from outside, and its files."""

import contextlib
import itertools
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kill_world import verb
from live_server import environment, executable, start_server
from small_client import Client, file_of, key_of
from waiting import waited

import streamsrv.supervisor
from streamsrv.supervisor import remarks


def processes_of(server):
    """Process ids below the server's, by module name."""
    found = subprocess.run(
        ["ps", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    return {int(row[0]): row[row.index("-m") + 1] for row in rows if "-m" in row}


def is_confined(pid):
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that has stored an instance and started a pixel process."""
    running = start_server(tmp_path_factory.mktemp("privileges"), workers=1)
    client = Client(running.origin)
    key = key_of(1, 1, 1)
    try:
        assert client.store([file_of(key, 1, 100)]).status == 200
        study, series, instance = key
        target = f"/studies/{study}/series/{series}/instances/{instance}/rendered"
        client.ask("GET", target, Accept="image/jpeg")
        yield running
    finally:
        client.close()
        assert running.end() == 0


@pytest.fixture
def pixel_process(server):
    def started():
        return [pid for pid, module in processes_of(server).items() if module == "framecodecs.pool.worker"]

    (pid,) = waited(started)
    waited(lambda: is_confined(pid))
    return pid


def test_a_pixel_process_of_a_server_owns_nothing(server, pixel_process):
    status = Path(f"/proc/{pixel_process}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert re.search(r"CapEff:\t0+$", status, re.MULTILINE)
    if os.geteuid() == 0:
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert re.search(r"Groups:\t *$", status, re.MULTILINE)
        held = [os.readlink(path) for path in Path(f"/proc/{pixel_process}/fd").iterdir()]
        assert not [name for name in held if str(server.data) in name]
        assert not [name for name in held if "log" in name]


def test_no_process_of_a_server_dumps_core_or_is_readable(server, pixel_process):
    """The kernel gives the files in /proc of a process that is not dumpable to root."""
    processes = processes_of(server)
    assert {"framecodecs.pool.worker", "streamsrv.server"} <= set(processes.values())
    for pid in (server.process.pid, *processes):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0


PROTECTED = """
import ctypes
from streamsrv.supervisor import protect
dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(dumpable())
protect()
print(dumpable())
"""


def test_a_protected_process_is_not_dumpable():
    found = subprocess.run(
        [sys.executable, "-c", PROTECTED], env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["1", "0"]


def test_a_server_that_runs_as_root_says_so_at_start(server, monkeypatch):
    said = "the server runs as root"
    assert server.log.read_text().count(said) == (os.geteuid() == 0)
    monkeypatch.setattr(streamsrv.supervisor, "lacking", lambda: ["without all of it"])
    for user, expected in ((0, [said, "pixel processes run"]), (1000, ["pixel processes run"])):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert [remark[: len(start)] for remark, start in zip(remarks(), expected, strict=True)] == expected


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_and_folders_are_for_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        server = start_server(tmp_path / "new" / "place", "--segment-size", str(1 << 16), workers=1)
        try:
            with contextlib.closing(Client(server.origin)) as client:
                for number in range(6):
                    assert client.store([file_of(key_of(1, 1, number), number, 50_000)]).status == 200
            assert_private(server.data)
        finally:
            assert server.end() == 0
        for words in (("check",), ("compact", "--all"), ("reindex",)):
            verb(*words, "--data", str(server.data))
            assert_private(server.data)
    finally:
        os.umask(before)


def test_verbs_need_no_capability_of_root(tmp_path):
    """Root without capabilities is refused where another owner of the files would be."""
    server = start_server(tmp_path, workers=1)
    try:
        with contextlib.closing(Client(server.origin)) as client:
            assert client.store([file_of(key_of(1, 1, 1), 1, 50_000)]).status == 200
    finally:
        assert server.end() == 0
    plain = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    for words in (("info",), ("check",), ("compact", "--all"), ("reindex",), ("check", "--segments")):
        command = [*plain, *executable(), *words, "--data", str(server.data)]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, (words, ended.stdout, ended.stderr)


def assert_private(data):
    found = [data, *itertools.chain(data.rglob("*"))]
    assert {"store.toml", "data.mdb", "lock.mdb"} <= {path.name for path in found}
    for path in found:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"

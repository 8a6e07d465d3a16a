"""Scrub and `check --segments` on a real server: bytes are flipped under it, found, refused, stored again."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kill_world import children
from live_server import environment, executable
from small_client import WHOLE, Client, file_of, key_of
from waiting import waited

PATIENCE = 60.0
KEYS = [key_of(1, 1, number) for number in range(1, 5)]
BAD = KEYS[1]
# All is due at once, again and again.
OFTEN = ("--scrub-days", "0.0001", "--scrub-rate", "0")


def path_of(key):
    return "/studies/{}/series/{}/instances/{}".format(*key)


def run(verb, server, *flags):
    command = [*executable(), verb, "--data", str(server.data), *flags]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def info(server):
    return json.loads(run("info", server, "--json").stdout)


def fill(server, client):
    assert client.store([file_of(key, 1, 20_000) for key in KEYS]).status == 200


def flip(server, key=BAD, version=1, size=20_000):
    """Flip a bit in the middle of its pixels, where the file is found by its last bytes."""
    content = file_of(key, version, size)
    for path in sorted((Path(server.data) / "segments").iterdir()):
        begin = path.read_bytes().find(content)
        if begin >= 0:
            with path.open("r+b") as file:
                file.seek(begin + len(content) - 500)
                (byte,) = file.read(1)
                file.seek(begin + len(content) - 500)
                file.write(bytes([byte ^ 4]))
            return
    raise AssertionError("it is not there")


def scrubbers(server):
    """Pids of the scrub processes of the server."""
    found = []
    for pid in children(server.process.pid):
        with contextlib.suppress(OSError):
            if b"streamsrv.companions.scrubber" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def hurried(server):
    """Gives the scrub processes their share of the processor, which a busy machine never leaves them. Returns
    those that gave way to all others until now."""
    gave_way = []
    for pid in scrubbers(server):
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getscheduler(pid) == os.SCHED_IDLE:
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
                gave_way.append(pid)
    return gave_way


@pytest.fixture
def client_of():
    with contextlib.ExitStack() as opened:

        def connect(server):
            return opened.enter_context(contextlib.closing(Client(server.origin)))

        yield connect


def test_check_segments_beside_a_server(server, client_of):
    client = client_of(server)
    fill(server, client)
    sound = run("check", server, "--segments", "--rate", "100M")
    assert (sound.returncode, sound.stdout) == (0, "all is well\n")
    flip(server)
    tag = client.ask("GET", path_of(BAD), Accept=WHOLE).headers["ETag"]
    assert tag  # nothing has read the bytes: they go out as if they were right
    found = run("check", server, "--segments", "--json")
    assert (found.returncode, json.loads(found.stdout)["errors"]) == (1, 1)
    assert "/".join(BAD) in json.loads(found.stdout)["findings"][0]["what"]
    assert "/".join(BAD) in found.stderr  # at level ERROR
    refused = client.ask("GET", path_of(BAD), Accept=WHOLE, If_None_Match=tag)
    assert (refused.status, refused.json()["sop_instance"]) == (500, BAD[2])
    assert client.ask("GET", path_of(KEYS[0]), Accept=WHOLE).status == 200
    told = info(server)
    assert told["damaged"] == 1
    assert WRONG in told["damaged_instances"]["/".join(BAD)]
    shown = run("info", server)
    assert shown.returncode == 1
    assert "damaged instances " + "/".join(BAD) in shown.stdout
    assert client.store([file_of(BAD, 1, 20_000)]).status == 200
    assert client.ask("GET", path_of(BAD), Accept=WHOLE).body == file_of(BAD, 1, 20_000)
    for flags in ((), ("--segments",)):
        well = run("check", server, *flags)
        assert (well.returncode, well.stdout.splitlines()[-1]) == (0, "all is well"), well.stdout
    assert info(server)["damaged"] == run("info", server).returncode == 0


WRONG = "its checksum is not that of its arrival"


def test_the_server_finds_damage_by_itself_and_goes_on_after_a_kill(server_factory, client_of):
    server = server_factory(*OFTEN)
    client = client_of(server)
    fill(server, client)
    gave_way = set()
    waited(lambda: gave_way.update(hurried(server)) or "segment 1 is verified" in server.log.read_text())
    waited(lambda: gave_way.update(hurried(server)) or gave_way & set(scrubbers(server)))
    (pid,) = scrubbers(server)
    os.kill(pid, signal.SIGKILL)
    waited(lambda: f"the scrub process {pid} ended with code -9" in server.log.read_text())
    assert client.ask("GET", path_of(BAD), Accept=WHOLE).status == 200
    flip(server)
    assert server.end() == 0
    assert not any(Path(f"/proc/{each}").exists() for each in gave_way)
    again = server_factory(*OFTEN)
    client = client_of(again)
    waited(lambda: [hurried(again), client.ask("GET", path_of(BAD), Accept=WHOLE).status][1] == 500)
    text = again.log.read_text()
    assert f"ERROR streamsrv.store damaged: instance {'/'.join(BAD)}" in text
    assert client.store([file_of(BAD, 1, 20_000)]).status == 200
    assert client.ask("GET", path_of(BAD), Accept=WHOLE).status == 200
    scrub = info(again)["scrub"]
    assert scrub["oldest_verified_at"] is not None


def test_no_scrub_where_it_is_switched_off(server_factory, client_of):
    server = server_factory("--scrub-days", "0", workers=1)
    fill(server, client_of(server))
    time.sleep(0.5)
    assert scrubbers(server) == []


def test_a_server_that_is_killed_takes_its_scrub_process_along(server_factory, client_of):
    server = server_factory("--scrub-days", "0.0001", "--scrub-rate", "1", workers=1)
    fill(server, client_of(server))
    waited(lambda: scrubbers(server))
    (pid,) = scrubbers(server)
    server.process.kill()
    waited(lambda: not Path(f"/proc/{pid}").exists() or "Z (" in Path(f"/proc/{pid}/stat").read_text())

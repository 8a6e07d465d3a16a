"""The verb `move` between folders and a database: its arguments, exit codes and reports."""

import json
import signal
import subprocess
from contextlib import ExitStack, closing

import pytest
from kill_world import verb, waited
from live_server import environment, executable, free_port, start_server
from small_client import Client, file_of, key_of

from streamsrv.events.hooks import HookState, hooks_in

KEYS = [key_of(study, 1, number) for study in (1, 2) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory, port):
    running = start_server(tmp_path_factory.mktemp("moved"), workers=1, port=port)
    with closing(Client(running.origin)) as client:
        assert client.store([file_of(key, 1, 20_000) for key in KEYS]).status == 200
    yield running
    running.end()


def told_by(folder, port, *flags):
    """All answers of a server of this folder."""
    running = start_server(folder, *flags, workers=1, port=port)
    try:
        with closing(Client(running.origin)) as client:
            return client.answers()
    finally:
        running.end()


def moved(*words):
    code, said = verb("move", *map(str, words), "--json")
    return code, json.loads(said)


def test_following_ends_with_a_signal(server, tmp_path):
    target = tmp_path / "target"
    command = [*executable(), "move", "--from", str(server.data), "--to", str(target), "--follow", "--json"]
    with (
        closing(Client(server.origin)) as client,
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process,
        ExitStack() as failed,
    ):
        failed.callback(process.kill)
        waited(lambda: instances_in(target) == 6, "the instances")
        assert client.store([file_of(key_of(7, 1, 1), 1, 500)]).status == 200
        waited(lambda: instances_in(target) == 7, "the next one")
        assert client.delete(key_of(7, 1, 1))
        waited(lambda: instances_in(target) == 6, "its end")
        process.send_signal(signal.SIGTERM)
        report = json.loads(process.communicate(timeout=30)[0])
    assert process.returncode == 0
    assert (report["instances"], report["copied"], report["deleted"], report["verified"]) == (6, 7, 1, 6)


def instances_in(folder):
    code, said = verb("info", "--data", str(folder), "--json")
    return json.loads(said)["index"]["instances"] if code == 0 else -1


def test_to_a_database_beside_the_server_and_back(server, port, database_server, tmp_path):
    url = database_server.url("moved_to")
    there = ("--from", server.data, "--to", tmp_path / "there" / "data", "--to-index", url)
    code, report = moved(*there)
    assert (code, report["copied"], report["verified"], report["ended"]) == (0, 6, 6, False)
    with closing(Client(server.origin)) as client:
        assert client.delete(KEYS[0])
        assert client.store([file_of(key_of(3, 1, 1), 1, 20_000)]).status == 200
        told = client.answers()
    code, said = verb("compact", "--data", str(there[3]), "--index", url)
    assert (code, "the target of a move that has not ended" in said) == (1, True), said
    code, said = verb("move", *map(str, there), "--finish")
    assert (code, "or start it with --read-only" in said) == (3, True), said
    flags = ("--name", "ris", "--where", "ModalitiesInStudy=CT", "--data", str(server.data))
    code, secret = verb("hook", "add", "https://ris.example/in", *flags)
    assert code == 0
    hooks_in(server.data).save(hooks_in(server.data).named("ris"), HookState("e0.5.5"))
    server.end()
    reading = start_server(server.data.parent, "--read-only", workers=1, port=port)
    try:
        code, said = verb("move", *map(str, there), "--finish")
        lines = said.splitlines()
        assert code == 0, said
        assert lines[0].startswith("6 instances, 1 copied, 1 deleted, 1 verified, 0 failed")
        assert lines[1] == "hooks that came with it: ris"
        assert "keys, share links and the audit trail have not moved" in lines[2]
        assert lines[3:] == ["the move has ended: servers may open the target"]
    finally:
        reading.end()
    assert told_by(tmp_path / "there", port, "--index", url) == told
    back = ("--from", tmp_path / "there" / "data", "--from-index", url, "--to", tmp_path / "back" / "data")
    code, report = moved(*back, "--finish", "--parallel", "1")
    assert (code, report["instances"], report["ended"], report["hooks"]) == (0, 6, True, ["ris"])
    hooks = hooks_in(tmp_path / "back" / "data")
    assert hooks.named("ris") == hooks_in(server.data).named("ris")
    assert hooks.named("ris").secret == secret.splitlines()[0]
    assert hooks.state("ris").last_id.endswith(".6.6")  # behind the copies
    assert verb("check", "--data", str(tmp_path / "back" / "data")) == (0, "all is well\n")
    code, said = verb("move", *map(str, back))
    assert (code, "has, or had, instances of its own" in said) == (1, True)


def test_wrong_arguments(tmp_path):
    refused = {
        (): (2, "name the source: --from DIR, or --from-index URL and --from-segments URL"),
        ("--from", "a"): (2, "name the target: --to DIR"),
        ("--from", "a", "--to", "a/../a"): (2, "--from and --to are the same folder"),
        ("--from", "a", "--to", "b", "--to-index", "mysql://x"): (2, "--to-index: 'mysql://x' is refused"),
        ("--from", "a", "--to-segments", "s3://b/c"): (2, "segments in a bucket need an index"),
        ("--from", "a", "--to", "b", "--parallel", "0"): (2, "--parallel is at least 1"),
        ("--from", "a", "--to", "b", "--follow", "--finish"): (2, "--finish needs their end"),
        ("--from", str(tmp_path), "--to", "b"): (1, "is not the folder of a store: it has no store.toml"),
    }
    for words, (code, sentence) in refused.items():
        found, said = verb("move", *words)
        assert (found, sentence in said) == (code, True), said

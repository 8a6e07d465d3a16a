"""A verb that dies of a signal ends with a sentence; its process never outlives the one that started it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from live_server import environment, start_server
from small_client import Client, file_of, key_of

PROGRAM = "import os, signal, sys, time\nfrom streamsrv.cli import guarded\n"


def verb(name, data):
    command = [sys.executable, "-m", "streamsrv", name, "--data", str(data)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


def started(body):
    """A process that guards `run`; `body` is the program."""
    command = [sys.executable, "-c", PROGRAM + body]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def cut_index(tmp_path_factory):
    """A store whose index has no page but the two meta pages."""
    server = start_server(tmp_path_factory.mktemp("guard"), workers=1)
    client = Client(server.origin)
    statuses = {client.store([file_of(key_of(1, 1, n), n, 2_000)]).status for n in range(1, 40)}
    client.close()
    assert statuses == {200}
    assert server.end() == 0
    with (server.data / "index" / "data.mdb").open("r+b") as file:
        file.truncate(2 * 4096)
    return server.data


@pytest.mark.parametrize("name", ["info", "check", "compact"])
def test_a_verb_names_an_index_that_cannot_be_read(cut_index, name):
    ended = verb(name, cut_index)
    assert ended.returncode == 1
    assert f"streamsrv: {name} ended by SIGBUS: a page of the index could not be read" in ended.stderr


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_that_of_the_verb(code):
    process = started(f"print('whole', end='')\nsys.exit(guarded(lambda: {code}, lambda: 9))")
    assert process.communicate(timeout=30)[0] == "whole"
    assert process.returncode == code


def test_another_signal_ends_the_command_as_well():
    process = started("sys.exit(guarded(lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 9))")
    assert process.wait(30) == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_verb_ends_with_the_command(number):
    process = started(
        "sys.exit(guarded(lambda: print(os.getpid(), flush=True) or time.sleep(60), lambda: 9))"
    )
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(30) == -number
    process.stdout.close()
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(child, 0)
            time.sleep(0.01)
        pytest.fail("the process of the verb lives on")


def test_an_error_of_the_program_is_shown():
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM + "sys.exit(guarded(lambda: 1 // 0, lambda: 9))"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "ZeroDivisionError" in process.stderr

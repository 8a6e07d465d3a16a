"""Each verb of the command line when the n-th call to the disk fails: it ends with a sentence, and the store
is as well as before.

`SOAK=20 python -m pytest tests/test_failing_verbs.py` takes every n."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from failing_verbs import EVERY
from faulty_disk import NAMES, READ, SYNC, WRITE, FaultyDisk
from live_server import environment, start_server
from small_client import Client, file_of, key_of

SOAK = int(os.environ.get("SOAK", "1"))
MOST = EVERY if SOAK > 1 else 2  # of the calls of a kind
FAULTS = {WRITE: errno.ENOSPC, SYNC: errno.EIO, READ: errno.EIO, NAMES: errno.ENOSPC}
VERBS = [("compact", "--all"), ("reindex",), ("check",)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a store `whole`: several segments, replaced and deleted instances."""
    folder = tmp_path_factory.mktemp("verbs")
    server = start_server(folder, "--segment-size", "65536", "--on-duplicate", "replace", workers=1)
    client = Client(server.origin)
    for number in range(8):
        assert client.store([file_of(key_of(1, 1, number % 6), number, 20_000)]).status == 200
    assert client.delete(key_of(1, 1, 3))
    client.close()
    assert server.end() == 0
    server.data.rename(folder / "whole")
    return folder


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_verb_at_every_failing_call(store, verb):
    variables = environment() | FaultyDisk(store).variables
    variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    faults = ",".join(f"{kind}:{error}" for kind, error in FAULTS.items())
    script = Path(__file__).with_name("failing_verbs.py")
    command = [sys.executable, str(script), str(store), faults, str(MOST), *verb]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"{verb[0]}: {len(rounds)} calls failed")
    for each in rounds:
        assert each["code"] in (0, 1), each
        assert each["said"].strip(), each
        assert each["check"] == [0, "all is well\n"], each
    assert {each["kind"] for each in rounds} == set(FAULTS)
    assert any(each["code"] == 1 for each in rounds), "no call that fails is noticed"
    if verb[0] == "check":
        assert any(each["code"] == 1 for each in rounds if each["kind"] == READ)

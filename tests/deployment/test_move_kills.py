"""A store that moves to PostgreSQL and SeaweedFS and back, with kills of the verb while its server works."""

import os
import random
import signal
import subprocess
import threading
from contextlib import closing
from unittest.mock import patch

from kill_world import KEYS, verb, waited
from live_server import environment, executable, free_port, start_server
from seaweed import BUCKET, variables
from small_client import Client, file_of, key_of

SOAK = int(os.environ.get("SOAK", "1"))
BACK_POINTS = ("mid-body@20", "before-data-sync", "after-data-sync", "after-commit")
POINTS = ("mid-body@20", "after-data-sync", "after-commit", "in-delete")


class Load:
    """A client that stores, replaces and deletes, until its end."""

    def __init__(self, origin, seed):
        self._origin, self._choice = origin, random.Random(seed)
        self._ended = threading.Event()
        self._version = 1
        self.done = 0
        self._errors = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        assert not self._errors, self._errors

    def _run(self):
        try:
            with closing(Client(self._origin)) as client:
                while not self._ended.wait(0.01):
                    self._act(client)
                    self.done += 1
        except Exception as error:
            self._errors.append(error)

    def _act(self, client):
        keys = self._choice.sample(KEYS, 3)
        if self._choice.random() < 0.3:
            client.delete(keys[0][: self._choice.choice((1, 2, 3))])
            return
        self._version += 1
        size = self._choice.choice((500, 20_000, 60_000))
        assert client.store([file_of(key, self._version, size) for key in keys]).status == 200


def told_by(folder, port, *flags, **named):
    running = start_server(folder, *flags, workers=1, port=port, variables=named)
    try:
        with closing(Client(running.origin)) as client:
            return client.answers()
    finally:
        assert running.end() == 0


def test_to_a_bucket_with_kills_and_back(tmp_path, database_server, object_store):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    port, url = free_port(), database_server.url("moved")
    named = variables(object_store.endpoint) | {"STREAMSRV_REMOVAL_GRACE": "1"}
    bucket = ("--index", url, "--segments", f"s3://{BUCKET}/moved")
    sides = ("--to-index", url, "--to-segments", f"s3://{BUCKET}/moved")
    words = ["--from", str(tmp_path / "a" / "data"), *sides]
    server = start_server(tmp_path / "a", "--on-duplicate", "replace", workers=1, port=port)
    try:
        with closing(Client(server.origin)) as client:
            many = [file_of(key_of(9, 1, number), 1, 3000) for number in range(40)]
            assert client.store([*many, file_of(key_of(9, 1, 99), 1, 65_535 * 128)]).status == 200
        with Load(server.origin, seed) as load:
            for _ in range(SOAK):
                for point in POINTS:
                    before = load.done
                    killed_at(point, words, named)
                    waited(lambda before=before: load.done > before + 3, "requests")
        with closing(Client(server.origin)) as client:
            told = client.answers()
    finally:
        assert server.end() == 0
    with patch.dict(os.environ, named):
        code, said = verb("move", *words, "--finish")
        assert (code, said.splitlines()[-1]) == (0, "the move has ended: servers may open the target"), said
    assert told_by(tmp_path / "b", port, *bucket, **named) == told
    with patch.dict(os.environ, named | {"STREAMSRV_INDEX": url, "STREAMSRV_SEGMENTS": bucket[3]}):
        assert verb("check", "--data", str(tmp_path / "b" / "data")) == (0, "all is well\n")
        back = ["--from-index", url, "--from-segments", bucket[3], "--to", str(tmp_path / "c" / "data")]
        for point in BACK_POINTS:
            killed_at(point, back, named)
        code, said = verb("move", *back, "--finish")
        assert (code, said.splitlines()[-1]) == (0, "the move has ended: servers may open the target"), said
    assert told_by(tmp_path / "c", port) == told
    assert verb("check", "--data", str(tmp_path / "c" / "data")) == (0, "all is well\n")
    assert verb("reindex", "--data", str(tmp_path / "c" / "data"))[1].endswith("all is well\n")
    assert verb("check", "--data", str(tmp_path / "c" / "data")) == (0, "all is well\n")


def killed_at(point, words, named):
    """A run that dies there, or ends well if it does not pass the point."""
    process = subprocess.run(
        [*executable(), "move", *words],
        env=environment() | named | {"STREAMSRV_FAILPOINT": point},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode in (0, -signal.SIGKILL, 137), process.stderr
    print(point, process.returncode)

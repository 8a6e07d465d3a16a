"""The restore drill, through the command line and HTTP: backups beside a server whose clients store and
delete, with a compaction between them, one backup killed; then a second server on the restored store."""

import json
import os
import signal
import subprocess
import threading

from kill_world import waited
from live_server import environment, executable, start_server
from small_client import Client, file_of, key_of


def streamsrv(*words, code=0):
    done = subprocess.run([*executable(), *words], env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def backup(target, data):
    return json.loads(streamsrv("backup", str(target), "--data", str(data), "--json").splitlines()[-1])


class Writer(threading.Thread):
    """Stores instances of its own study and deletes every third one, until it is stopped. `stored` and
    `deleted` are acknowledged."""

    def __init__(self, origin, study):
        super().__init__()
        self.client, self.study = Client(origin), study
        self.stored, self.deleted = {}, set()
        self.stopped = threading.Event()
        self.start()

    def run(self):
        number = 0
        while not self.stopped.wait(0.05):
            number += 1
            key = key_of(self.study, 1, number)
            body = file_of(key, number, 60_000)
            assert self.client.store([body]).status == 200
            self.stored[key] = body
            if number % 3 == 0:
                gone = key_of(self.study, 1, number - 1)
                assert self.client.delete(gone)
                self.deleted.add(gone)
        self.client.close()

    def stop(self):
        self.stopped.set()
        self.join()


def answers_of(client, keys):
    """Key -> bytes and ETag, None if it is not there."""
    return {key: (body, client._etag(key)) if (body := client.read(key)) else None for key in keys}


def test_restore_drill(tmp_path):
    target = tmp_path / "backup"
    server = start_server(tmp_path, "--segment-size", "1000000")
    client = Client(server.origin)
    base = {key_of(1, 1, number): file_of(key_of(1, 1, number), number, 60_000) for number in range(60)}
    assert client.store(list(base.values())[:30]).status == 200
    assert client.store(list(base.values())[30:]).status == 200
    assert backup(target, server.data)["ok"]
    for key in list(base)[:40]:
        assert client.delete(key)
        del base[key]
    writers = [Writer(server.origin, study) for study in (2, 3)]
    waited(lambda: all(len(each.stored) > 8 for each in writers), "stores")
    streamsrv("compact", "--data", str(server.data))

    # A backup is killed, and the next one goes on.
    command = [*executable(), "backup", str(target), "--data", str(server.data)]
    killed = subprocess.Popen(command, env=environment() | {"STREAMSRV_FAILPOINT": "in-backup@2"})
    assert killed.wait() == -signal.SIGKILL
    assert "all is well" in streamsrv("backup", "--verify", str(target))

    expected = answers_of(client, base)
    acknowledged = [(dict(each.stored), set(each.deleted)) for each in writers]
    report = backup(target, server.data)
    over = [(dict(each.stored), set(each.deleted)) for each in writers]
    for each in writers:
        each.stop()
    assert report["errors"] == 0
    assert report["removed_files"] > 0
    assert "all is well" in streamsrv("backup", "--verify", str(target), "--rate", "100M")
    assert "is not empty" in streamsrv("restore", str(target), "--data", str(server.data), code=1)
    assert server.end() == 0
    client.close()

    again = tmp_path / "again"
    assert "all is well" in streamsrv("restore", str(target), "--data", str(again / "data"))
    assert "all is well" in streamsrv("check", "--data", str(again / "data"))
    assert os.stat(again / "data" / "store.toml").st_mode & 0o777 == 0o600
    second = start_server(again, "--segment-size", "1000000")
    client = Client(second.origin)
    assert answers_of(client, expected) == expected
    here = client.keys()
    assert {key for key in here if key[0] == "1.2.1"} == set(base)
    for (stored, deleted), (_, deleted_meanwhile), writer in zip(acknowledged, over, writers, strict=True):
        found = {key for key in here if key[0] == f"1.2.{writer.study}"}
        assert not found & deleted
        assert stored.keys() - deleted_meanwhile - writer.deleted <= found
        assert all(client.read(key) == writer.stored[key] for key in found)
    assert client.store([file_of(key_of(9, 1, 1), 1, 1000)]).status == 200
    client.close()
    assert second.end() == 0

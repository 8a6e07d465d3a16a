"""Files that are removed under a running server: no second server, no second writer, and nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import threading

import pytest
from kill_world import children, has_the_index_open, verb, waited
from live_server import END_WITHIN, environment, executable, free_port, start_server
from small_client import LOST, Client, NotSent, file_of, key_of

from streamsrv.cli import LOCKED


@pytest.fixture
def server(tmp_path):
    server = start_server(tmp_path, workers=2)
    waited(lambda: " serves " in server.log.read_text(), "two workers that have opened the store")
    yield server
    server.end()


class Clients:
    """Threads that store one instance after the other, and know which of them are acknowledged."""

    def __init__(self, server):
        self.origin = server.origin
        self.acknowledged = {}
        self.refused = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in (1, 2, 3, 4)]
        for thread in self._threads:
            thread.start()

    def _work(self, study):
        choice, number = random.Random(study), 0
        while not self._stop.is_set():
            client, number = Client(self.origin), number + 1
            key = key_of(study, 1, number)
            body = file_of(key, "1", choice.choice((500, 20_000)))
            try:
                if client.outcomes([body]).get(key[2]):
                    self.acknowledged[key] = body
                else:
                    self.refused += 1
            except (AssertionError, KeyError, NotSent, *LOST):
                self.refused += 1
            finally:
                client.close()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def second_server(server):
    command = [*executable(), "serve", "--port", str(free_port()), "--data", str(server.data)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=END_WITHIN, check=False
    )


def test_a_second_server_is_refused_whatever_is_tidied_away(server):
    assert set(os.listdir(server.data)) - {"ballast", "scrub.json"} == {
        *("index", "manifest", "segments", "store.toml"),
    }
    for name in ("manifest", "store.toml"):
        (server.data / name).unlink()
        ended = second_server(server)
        assert (ended.returncode, f"process {server.process.pid}" in ended.stderr) == (LOCKED, True), name


def ready_workers(server):
    return [each for each in children(server.process.pid) if has_the_index_open(each, server.data)]


@pytest.mark.parametrize("name", ["manifest", "store.toml", "index/lock.mdb"])
def test_nothing_acknowledged_is_lost_when_a_file_is_replaced_under_load(server, name):
    """One worker is replaced as well, so the two have different files open."""
    clients = Clients(server)
    waited(lambda: len(clients.acknowledged) > 20, "stores")
    path = server.data / name
    shutil.copy(path, path.with_name("draft"))
    path.with_name("draft").rename(path)
    os.kill(ready_workers(server)[0], signal.SIGKILL)
    before = len(clients.acknowledged) + clients.refused
    waited(lambda: len(clients.acknowledged) + clients.refused > before + 60, "answers")
    clients.stop()
    assert server.end() in (0, 1)
    server = start_server(server.data.parent, workers=1)
    try:
        client = Client(server.origin)
        for key, body in clients.acknowledged.items():
            assert client.read(key) == body
        client.close()
        assert verb("check", "--data", str(server.data)) == (0, "all is well\n")
    finally:
        server.end()


def test_stores_are_refused_loudly_without_the_manifest_and_reads_go_on(server):
    client, key = Client(server.origin), key_of(1, 1, 1)
    assert client.outcomes([file_of(key, "1", 500)]) == {key[2]: True}
    (server.data / "manifest").unlink()
    body = file_of(key_of(1, 1, 2), "1", 500)
    reply = client.ask("POST", "/studies", body, **{"Content-Type": "application/dicom"})
    assert reply.status == 500
    assert "removed or replaced" in server.log.read_text() + reply.body.decode()
    assert client.read(key) == file_of(key, "1", 500)
    client.close()
    assert server.end() == 0
    code, said = verb("info", "--data", str(server.data))
    assert (code, "run `streamsrv reindex" in said) == (1, True)
    assert verb("reindex", "--data", str(server.data))[0] == 0
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")

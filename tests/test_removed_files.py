"""Each file and folder of the data folder is moved away under a running server, and back when it has ended.

Meanwhile an answer is right or a 5xx. Afterwards everything acknowledged is there, also what was acknowledged
meanwhile."""

import os

import pytest
from kill_world import verb
from live_server import start_server
from power_cut import states
from small_client import Client, file_of, key_of

SOAK = int(os.environ.get("SOAK", "1"))
ROUNDS = 4 * SOAK
NAMES = [
    "manifest",
    "store.toml",
    "index/data.mdb",
    "index/lock.mdb",
    "index",
    "segments/00000001.seg",
    "segments/last",
    "segments",
    ".",
]


class Journal:
    """What is known of each instance: its bytes, None if it was deleted; nothing if an answer was a 5xx."""

    def __init__(self, client):
        self._client = client
        self._number = 0
        self.known = {}
        self.refused = 0

    def go(self):
        """Store two instances, read all that are known, delete one."""
        for _ in range(2):
            self._number += 1
            key = key_of(1, 1, self._number)
            body = file_of(key, self._number, 30_000)
            if self._answered("POST", "/studies", 200, body):
                self.known[key] = body
        self.read()
        for key in [key for key, body in self.known.items() if body][:1]:
            del self.known[key]
            if self._answered("DELETE", path(key), 204):
                self.known[key] = None

    def read(self):
        """AssertionError for a wrong answer."""
        for key, body in self.known.items():
            reply = self._client.ask("GET", path(key), Accept="application/dicom; transfer-syntax=*")
            if reply.status >= 500:
                self.refused += 1
            elif body is None:
                assert reply.status == 404, (key, reply.status)
            else:
                assert (reply.status, reply.body) == (200, body), (key, reply.status)

    def _answered(self, method, target, status, body=None):
        reply = self._client.ask(method, target, body, Content_Type="application/dicom")
        assert reply.status == status or reply.status >= 500, (method, target, reply.status, reply.body)
        self.refused += reply.status >= 500
        return reply.status == status


def path(key):
    return "/studies/{}/series/{}/instances/{}".format(*key)


def named(data, name):
    if name == "segments/last":
        return max((data / "segments").iterdir())
    return data / name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_moved_away_and_back(tmp_path, name):
    server = start_server(tmp_path, "--segment-size", "65536", workers=1)
    client = Client(server.origin)
    journal = Journal(client)
    kept = tmp_path / "kept"
    try:
        journal.go()
        journal.go()
        assert journal.refused == 0
        file = named(server.data, name)
        file.rename(kept)
        for _ in range(ROUNDS):
            journal.go()
    finally:
        client.close()
        assert server.end() in (0, 1)
    print(f"{name}: {journal.refused} refused, {len(journal.known)} acknowledged")
    if file.is_dir():  # made again by the server: nothing of it was acknowledged
        file.rename(tmp_path / "made-again")
    kept.replace(file)
    found = states(server.data, ["1.2.1"])
    assert all(found.get(key) == body for key, body in journal.known.items())
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")

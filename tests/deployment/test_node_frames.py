"""Cached frames of one node while another one deletes and replaces their instances: nothing that a node has
told is taken back. `SOAK=20` (as `make soak` does) takes twenty times as many instances."""

import contextlib
import os
import random
import signal
import threading
import time

import pytest
from cluster_world import is_worker
from kill_world import children, waited
from live_server import start_server
from seaweed import BUCKET, variables
from small_client import Client, file_of, key_of, path_of

SOAK = int(os.environ.get("SOAK", "1"))
KEYS = 24  # of one round
SIZE = 20_000
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
SETTLED = 2.1  # seconds after a store, from which on frames are answered from memory


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, database_server, object_store):
    folder = tmp_path_factory.mktemp("nodes")
    url = database_server.url("node_frames")
    flags = ("--index", url, "--segments", f"s3://{BUCKET}/node_frames", "--on-duplicate", "replace")
    named = variables(object_store.endpoint) | {"LOOP_GUARD": str(folder / "guarded")}
    (folder / "guarded").mkdir()
    running = [start_server(folder / name, *flags, workers=1, variables=named) for name in "ab"]
    yield running
    for node in running:
        node.end()
    assert [each.read_text() for each in (folder / "guarded").glob("waited-*")] == []


def frame(client, key):
    """The bytes of the frame, None if it is not there."""
    reply = client.ask("GET", f"{path_of(key)}/frames/1", Accept=FRAME)
    assert reply.status in (200, 404), (reply.status, reply.body)
    return reply.body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0] if reply.status == 200 else None


def pixels(key, version):
    return file_of(key, version, SIZE)[-(SIZE // 128) * 128 :]


def stored(client, study, count):
    """Instances whose frames both nodes answer from memory."""
    keys = [key_of(study, 1, number) for number in range(count)]
    assert client.store([file_of(key, 1, SIZE) for key in keys]).status == 200
    time.sleep(SETTLED)
    return keys


def warm(client, keys):
    for key in keys:
        for _ in range(3):
            assert frame(client, key) == pixels(key, 1)


def cached(node):
    return node.log.read_text().count("cached-frame")


class Readers:
    """Clients that read frames of a node all the time, so that it always has a version at hand."""

    def __init__(self, node, keys):
        self._node, self._keys = node, keys
        self._stop = threading.Event()
        self._errors = []
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(2)]

    def _read(self, seed):
        choice = random.Random(seed)
        try:
            with contextlib.closing(Client(self._node.origin)) as client:
                while not self._stop.is_set():
                    frame(client, choice.choice(self._keys))
        except Exception as error:
            self._errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors


class Watcher:
    """Asks one node until it tells the new state, and then another one, which must tell it too."""

    def __init__(self, asked, compared, key, expected):
        self._key, self._expected, self.told = key, expected, None
        self._clients = asked, compared
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        asked, compared = self._clients
        file = None if self._expected is None else file_of(self._key, 2, SIZE)
        while asked.read(self._key) != file:
            pass
        self.told = frame(compared, self._key)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._thread.join()
        assert self.told == self._expected


def test_no_node_takes_back_what_another_one_has_told(nodes):
    one, two = nodes
    clients = [Client(node.origin) for node in (one, two, one, two)]
    changing, reading, *watching = clients
    for turn in range(SOAK):
        keys = stored(changing, 100 + turn, KEYS)
        warm(reading, keys)
        before = cached(two)
        with Readers(two, keys[:4]):
            for number, key in enumerate(keys[4:]):
                expected = pixels(key, 2) if number % 2 else None
                assert frame(reading, key) == pixels(key, 1)
                with Watcher(*watching, key, expected):
                    if expected is None:
                        assert changing.delete(key)
                    else:
                        assert changing.store([file_of(key, 2, SIZE)]).status == 200
                    assert frame(reading, key) == expected
        assert cached(two) > before + KEYS // 2
    for client in clients:
        client.close()


def test_a_node_that_was_stopped_wakes_up_without_an_old_frame(nodes):
    one, two = nodes
    changing, reading, woken = (Client(node.origin) for node in (one, two, two))
    keys = stored(changing, 99, 4 * SOAK)
    warm(reading, keys)
    (worker,) = [each for each in children(two.process.pid) if is_worker(each)]
    for key in keys:
        assert frame(woken, key) == frame(reading, key) == pixels(key, 1)  # it has a version at hand
        os.kill(worker, signal.SIGSTOP)
        try:
            assert changing.delete(key)
            found = []
            thread = threading.Thread(target=lambda key=key, found=found: found.append(frame(woken, key)))
            thread.start()
            waited(lambda: has_sent(two), "the request")
        finally:
            os.kill(worker, signal.SIGCONT)
        thread.join()
        assert found == [None]
    for client in (changing, reading, woken):
        client.close()


def has_sent(node):
    """Whether bytes wait for the node in a socket."""
    port = int(node.origin.rpartition(":")[2])
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and int(row[4].partition(":")[2], 16) for row in rows)

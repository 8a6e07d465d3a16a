"""A disk that fails for a moment, under a real server: everything is answered again within 5 seconds, and
everything acknowledged is there.

The calls of one round of stores, reads and deletes are counted; then the n-th of them fails, for every n.
`SOAK=1 python -m pytest tests/test_failing_disk.py` goes through all of them, with bursts of several calls;
without it each kind has some."""

import errno
import os
import time

import pytest
from faulty_disk import FOR_EVER, NAMES, READ, SYNC, WRITE, FaultyDisk
from kill_world import verb, waited
from live_server import start_server
from small_client import LOST, Client, file_of, key_of

SOAK = int(os.environ.get("SOAK", "0"))
HEALED_WITHIN = 5.0
# How many of the calls of a round fail, one after the other, without SOAK.
TRIED = {
    (WRITE, errno.EIO): 7,
    (WRITE, errno.ENOSPC): 5,
    (SYNC, errno.EIO): 3,
    (READ, errno.EIO): 3,
    (NAMES, errno.ENOSPC): 1,
}
INDEX = "/index/data.mdb"


class Round:
    """Stores, reads and deletes, of which any may fail; `there` is known of each instance that was
    answered."""

    def __init__(self, client):
        self._client = client
        self._number = 0
        self.there = {}  # key -> its bytes, or None: deleted
        self.statuses = []

    def go(self):
        """Every answer is one of those that are meant for the client."""
        self._number += 1
        key, other = key_of(1, 1, 2 * self._number), key_of(1, 1, 2 * self._number + 1)
        for each in (key, other):
            body = file_of(each, self._number, 40_000)
            if self._status(lambda body=body: self._client.store([body])) == 200:
                self.there[each] = body
        self._status(lambda: self._client.ask("GET", f"/studies/{key[0]}/metadata"))
        if key in self.there and self._status(lambda: self._client.ask("DELETE", path(key))) == 204:
            self.there[key] = None

    def _status(self, call):
        try:
            status = call().status
        except LOST:
            status = 0
        self.statuses.append(status)
        return status

    def well(self):
        """One round in which nothing fails."""
        self.statuses = []
        try:
            self.go()
        except LOST:
            return False
        return self.statuses == [200, 200, 200, 204]

    def verify(self):
        for key, body in self.there.items():
            assert self._client.read(key) == body, key


def path(key):
    return "/studies/{}/series/{}/instances/{}".format(*key)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    disk = FaultyDisk(folder)
    server = start_server(folder / "server", "--segment-size", "65536", workers=1, variables=disk.variables)
    client = Client(server.origin)
    yield disk, server, Round(client)
    client.close()
    assert server.end() == 0
    assert "unexpected" not in server.log.read_text()
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")


@pytest.fixture
def world(served):
    """One server for all tests, and the function that reads its log since the test began."""
    disk, server, round = served
    begin = len(server.log.read_text())
    yield disk, server, round, lambda: server.log.read_text()[begin:]
    disk.disarm()


def healed(round):
    begin = time.monotonic()
    while not round.well():
        assert time.monotonic() - begin < HEALED_WITHIN, round.statuses
        time.sleep(0.02)


@pytest.mark.parametrize(("kind", "error"), TRIED)
def test_a_burst_of_errors_at_every_call(world, kind, error):
    disk, _, round, _ = world
    assert round.well()
    disk.arm(kind, fails=0)
    round.go()
    calls = disk.seen
    tried = TRIED[kind, error]
    assert calls >= tried
    chosen = range(calls) if SOAK else [calls * turn // tried for turn in range(tried)]
    for number in chosen:
        for fails in (1, 2, 5) if SOAK else (1,):
            disk.arm(kind, skip=number, fails=fails, error=error)
            round.go()
            disk.disarm()
            healed(round)
    round.verify()
    print(f"{len(chosen)} of {calls} calls failed, {len(round.there)} acknowledged, 0 lost")


def test_a_meta_page_that_cannot_be_written(world):
    """LMDB refuses everything from then on, in this process: the worker says so, and another takes its
    place."""
    disk, _, round, said = world
    assert round.well()
    disk.arm(WRITE, fails=0, path=INDEX)
    round.go()
    for number in range(disk.seen):
        disk.arm(WRITE, skip=number, fails=2, path=INDEX)
        round.go()
        disk.disarm()
        healed(round)
        if "cannot be used any more" in said():
            break
    round.verify()
    assert "the index of this process cannot be used any more" in said()
    assert "ended with exit code 1" in said()


def test_a_disk_that_stays_bad(world):
    """Reads go on, writes are refused, and all is well when the disk is."""
    disk, server, round, _ = world
    assert round.well()
    disk.arm(WRITE, fails=FOR_EVER, path="/data/")
    before = dict(round.there)
    for _ in range(8):
        round.go()
    assert round.there == before
    round.verify()
    disk.disarm()
    healed(round)
    round.verify()
    waited(server.is_ready, "readiness")


def test_a_page_of_the_index_that_cannot_be_read(world):
    """It kills the worker (SIGBUS), like every read error of a mapped file: the log says what that means."""
    _, server, round, said = world
    assert round.well()
    index = server.data / "index" / "data.mdb"
    whole = index.read_bytes()
    with index.open("r+b") as file:
        file.truncate(2 * 4096)  # all but the two meta pages
        waited(lambda: "signal SIGBUS" in said(), "the death of the worker")
        assert not server.is_ready()
        file.seek(0)
        file.write(whole)
    healed(round)
    round.verify()
    assert "ended with signal SIGBUS: the index could not be read from the disk" in said()
    assert "Fatal Python error: Bus error" in said()  # and where, in every thread

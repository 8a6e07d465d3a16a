"""The clock of the machine is set by hours, years and back under a running server: the latest stays the
latest, nothing deleted returns, and no connection, upload or worker ends because of it."""

import http.client
import os
import random

import pytest
from faulty_disk import FaultyDisk
from kill_world import children, has_the_index_open, verb, waited
from live_server import start_server
from power_cut import states
from small_client import WHOLE, Client, file_of, key_of, path_of

SOAK = int(os.environ.get("SOAK", "1"))
HOUR, YEAR = 3600, 366 * 86400
STEPS = [HOUR, 0, -HOUR, 10 * YEAR, 0, -10 * YEAR, 60 * YEAR, -50 * YEAR, 2]
LATEST = key_of(1, 1, 1)


@pytest.fixture
def world(tmp_path):
    disk = FaultyDisk(tmp_path)
    server = start_server(
        tmp_path, "--segment-size", "65536", "--on-duplicate", "replace", variables=disk.variables
    )
    client = Client(server.origin)
    yield disk, server, client
    client.close()
    server.end()


def test_the_clock_is_set(world):
    disk, server, client = world
    waited(lambda: len(workers_of(server)) == 2, "two workers")
    workers = workers_of(server)
    there = {}
    before = None
    for number, seconds in enumerate(steps(), 2):
        key = key_of(1, 1, number)
        wrong_clock_within_an_upload(disk, client, seconds, key, there)
        for stored in (LATEST, key):
            there[stored] = file_of(stored, number, 20_000)
            assert client.outcomes([there[stored]]) == {stored[2]: True}
        gone = key_of(1, 1, number - 1)
        if gone != LATEST:
            assert client.delete(gone)
            there[gone] = None
        for each, body in there.items():
            assert client.read(each) == body
        before = conditions_hold(client, there[LATEST], before)
        assert client.keys() == {each for each, body in there.items() if body}
    assert workers_of(server) == workers
    assert server.end() == 0
    alive = {each: body for each, body in there.items() if body}
    for verbs in (("compact", "--all"), ("check",), ("reindex",), ("check",)):
        code, said = verb(*verbs, "--data", str(server.data))
        assert code == 0, said
        assert states(server.data, ["1.2.1"]) == alive


def workers_of(server):
    return [each for each in children(server.process.pid) if has_the_index_open(each, server.data)]


def steps():
    """Those above; with SOAK random ones too."""
    more = [random.randrange(-50 * YEAR, 60 * YEAR) for _ in range(10 * (SOAK - 1))]
    return [*STEPS, *more]


def wrong_clock_within_an_upload(disk, client, seconds, key, there):
    """The clock is set while a body arrives: nothing times out."""
    key = (*key[:2], f"{key[2]}.1")
    body = file_of(key, 1, 20_000)
    sender = http.client.HTTPConnection(client.address, timeout=30)
    try:
        sender.putrequest("POST", "/v2/studies")
        sender.putheader("Content-Type", "application/dicom")
        sender.putheader("Content-Length", str(len(body)))
        sender.endheaders(body[:10_000])
        disk.set_clock(seconds)
        sender.send(body[10_000:])
        assert sender.getresponse().status == 200
    finally:
        sender.close()
    there[key] = body


def conditions_hold(client, body, before):
    """Validators of the version before are of no use for this one. Returns those of this one."""
    reply = client.ask("GET", path_of(LATEST), Accept=WHOLE)
    assert (reply.status, reply.body) == (200, body)
    current = {name: reply.headers[name] for name in ("ETag", "Last-Modified") if name in reply.headers}
    same = client.ask("GET", path_of(LATEST), Accept=WHOLE, If_None_Match=current["ETag"])
    assert same.status == 304
    for name, condition in (("ETag", "If_None_Match"), ("Last-Modified", "If_Modified_Since")):
        if before and name in before:
            reply = client.ask("GET", path_of(LATEST), Accept=WHOLE, **{condition: before[name]})
            assert (reply.status, reply.body) == (200, body), (condition, before, current)
    return current

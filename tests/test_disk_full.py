"""A real disk that is full, over HTTP: stores are refused with 507, all else goes on, and stores again
afterwards."""

import os
import shutil
import subprocess

import pytest
from kill_world import verb, waited
from live_server import start_server
from small_client import Client, file_of, key_of

DISK = 64 << 20
SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"mounting is not permitted here: {mounting.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def full(disk):
    """A server that was stored to until it refused: (its client, the instances, their files)."""
    server = start_server(disk, "--min-free", "1", "--segment-size", str(4 << 20))
    client = Client(server.origin)
    files, refusal = {}, None
    for number in range(1, DISK // SIZE + 1):
        key = key_of(1, 1, number)
        body = file_of(key, number, SIZE)
        reply = client.store([body])
        if reply.status != 200:
            refusal = reply
            break
        files[key] = body
    yield server, client, files, refusal
    client.close()
    assert server.end() == 0


def free(disk):
    return shutil.disk_usage(disk).free


def test_a_full_disk(full, disk):
    server, client, files, refusal = full
    assert len(files) > DISK // SIZE // 2
    assert refusal.status == 507
    assert refusal.headers["Content-Type"] == "application/problem+json"
    assert refusal.json()["title"] == "Insufficient Storage"
    assert str(disk) not in refusal.body.decode()
    # Several in one body that do not fit together: none of them is there.
    more = {key_of(2, 1, number): file_of(key_of(2, 1, number), number, SIZE) for number in range(8)}
    assert client.store(list(more.values())).status == 507
    assert client.search("/studies?StudyInstanceUID=1.2.2") == []

    # Reading goes on.
    assert client.keys() == set(files)
    assert all(client.read(key) == body for key, body in files.items())

    # Deleting goes on, and compaction gives the space back.
    gone = list(files)[::2]
    for key in gone:
        assert client.delete(key)
        assert client.read(key) is None
    for key in list(files)[1::2][:8]:
        assert client.delete(key)
        gone.append(key)
    before = free(disk)
    code, said = verb("compact", "--data", str(server.data))
    assert code == 0, said
    # A worker that has just read a segment keeps it open for a moment.
    waited(lambda: free(disk) > before + len(gone) * SIZE // 3, "the space of what was deleted")

    # And so does storing.
    for key, body in more.items():
        assert client.outcomes([body]) == {key[2]: True}
    alive = more | {key: body for key, body in files.items() if key not in gone}
    assert client.keys() == set(alive)
    assert all(client.read(key) == body for key, body in alive.items())
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")


def test_the_reserve(disk):
    """Stores end while there is still room to delete and to compact in."""
    reserve = 40 << 20
    server = start_server(disk, "--min-free", str(reserve))
    client = Client(server.origin)
    try:
        stored = 0
        while client.store([file_of(key_of(1, 1, stored), 1, SIZE)]).status == 200:
            stored += 1
        assert reserve - 4 * SIZE < free(disk) < reserve
        reply = client.store([file_of(key_of(1, 1, stored), 1, 1000)])
        assert reply.status == 507
        assert f"less than {reserve} bytes are free" in reply.json()["detail"]
        assert len(client.keys()) == stored > 5
        assert client.delete(key_of(1, 1, 0))
    finally:
        client.close()
        assert server.end() == 0
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")

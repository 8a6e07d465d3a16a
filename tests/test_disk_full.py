"""A real disk that is full, over HTTP: stores are refused with 507, all else goes on, and stores again
afterwards."""

import contextlib
import errno
import json
import os
import shutil
import subprocess

import pytest
from faulty_disk import SYNC, WRITE, FaultyDisk
from kill_world import verb, waited
from live_server import environment, executable, free_port, start_server
from small_client import Client, file_of, key_of

DISK = 64 << 20
SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path, request):
    """A small file system of its own; its parameter adds options of the mount."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},{getattr(request, 'param', '')}", "tmpfs", str(place)],
        capture_output=True,
        text=True,
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
    server = start_server(disk, "--min-free", str(reserve), workers=1)
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


# Without a free block, or a free inode: what others do to the disk of a store


def fill(disk):
    """Not one byte is left."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    assert free(disk) == 0


def fill_inodes(disk):
    (disk / "fillers").mkdir()
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (disk / "fillers" / str(number)).touch()
    assert os.statvfs(disk).f_favail == 0


def must_go_on_without_room(disk, filled, emptied):
    """A store is filled with `filled`: deletes and compaction go on; when it is `emptied` so do stores."""
    server = start_server(disk, "--min-free", "1", "--segment-size", str(2 << 20))
    client = Client(server.origin)
    files = {}
    for number in range(1, 25):
        key = key_of(number, 1, 1)
        files[key] = file_of(key, number, SIZE // 2)
        assert client.store([files[key]]).status == 200
    filled(disk)
    keys = list(files)
    more = {key_of(99, 1, number): file_of(key_of(99, 1, number), 1, SIZE // 2) for number in range(3)}
    try:
        for body in more.values():
            reply = client.store([body])
            assert reply.status in (200, 507), reply.body
            assert reply.status == 507 or filled is fill_inodes  # a segment that is there takes it
        for key in keys[:20]:
            assert client.delete(key), key
            assert client.store([file_of(key, 2, SIZE // 2)]).status in (200, 507)
        for key in keys[20:]:
            assert client.read(key) == files[key]
        done = ran("compact", "--data", str(server.data))
        assert done.returncode == 0, done
        waited(lambda: ran("info", "--data", str(server.data), "--json").returncode == 0, "info")
        for key in keys[20:22]:
            assert client.delete(key), key
        emptied(disk)
        waited(lambda: client.store([file_of(key_of(98, 1, 1), 1, SIZE)]).status == 200, "stores")
        for key in keys[22:]:
            assert client.read(key) == files[key]
        assert ran("check", "--data", str(server.data)).stdout.endswith("all is well\n")
    finally:
        client.close()
        assert server.end() == 0
    assert "unexpected" not in server.log.read_text()
    assert "SIGBUS" not in server.log.read_text()
    assert (server.data / "ballast").stat().st_blocks > 0  # made again


def ran(*words):
    """A verb in a process of its own: it may die of a signal."""
    return subprocess.run(
        [*executable(), *words], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


def test_deletes_and_compaction_without_a_free_byte(disk):
    must_go_on_without_room(disk, fill, lambda disk: (disk / "filler").unlink())


@pytest.mark.parametrize("disk", ["nr_inodes=100"], indirect=True)
def test_deletes_and_compaction_without_a_free_inode(disk):
    must_go_on_without_room(disk, fill_inodes, lambda disk: shutil.rmtree(disk / "fillers"))


def test_verbs_on_a_full_disk_end_with_a_sentence(disk):
    server = start_server(disk, "--min-free", "1", workers=1)
    client = Client(server.origin)
    for number in range(30):
        assert client.store([file_of(key_of(number, 1, 1), 1, 1_000)]).status == 200
    client.close()
    assert server.end() == 0
    (server.data / "ballast").unlink(missing_ok=True)
    fill(disk)
    data = ("--data", str(server.data))
    info, check = ran("info", *data), ran("check", *data)
    assert info.returncode == 0
    assert (check.returncode, check.stdout) == (0, "all is well\n")  # in the folder for temporary files
    others = [ran("compact", *data), ran("reindex", *data)]
    (server.data / "index" / "lock.mdb").unlink()
    fill(disk)
    for done in (*others, *(ran(name, *data) for name in ("info", "check", "compact", "reindex"))):
        assert done.returncode in (0, 1), done
        assert done.returncode == 0 or len(done.stderr.splitlines()) == 1, done
        assert "Traceback" not in done.stderr
    (disk / "filler").unlink()
    assert ran("check", *data).stdout == "all is well\n"


def test_a_new_store_on_a_full_disk(disk):
    fill(disk)
    served = ran("serve", "--data", str(disk / "data"), "--port", str(free_port()), "--workers", "1")
    assert served.returncode == 1
    assert "Traceback" not in served.stderr
    assert "space" in served.stderr


def test_a_store_that_does_not_fit_seals_no_segment(tmp_path):
    """Whatever write or sync of a store says that the disk is full."""
    full = FaultyDisk(tmp_path)
    server = start_server(tmp_path, workers=1, variables=full.variables)
    client = Client(server.origin)
    bodies = (file_of(key_of(1, 1, number), number, 3_000) for number in range(1000))
    try:
        assert client.store([next(bodies)]).status == 200
        refused = 0
        for kind in (WRITE, SYNC):
            full.arm(kind, fails=0)
            assert client.store([next(bodies)]).status == 200
            for number in range(full.seen):
                full.arm(kind, skip=number, error=errno.ENOSPC)
                reply = client.store([next(bodies)])
                full.disarm()
                client.close()
                waited(server.is_ready, "readiness")  # of another worker, after a failed write to a meta page
                assert reply.status in (200, 500, 507), reply.body
                refused += reply.status == 507
        assert refused > 5
        assert client.store([next(bodies)]).status == 200
    finally:
        client.close()
        assert server.end() == 0
    code, said = verb("info", "--data", str(server.data), "--json")
    assert (code, json.loads(said)["sealed"]) == (0, 0)
    assert json.loads(said)["segments"] <= 3  # one may be left alone for a second
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")

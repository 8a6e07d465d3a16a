"""The library that makes calls fail: does it?"""

import os
import subprocess
import sys

import pytest
from faulty_disk import NAMES, READ, SYNC, WRITE, FaultyDisk

SCRIPT = """
import os, sys
name = sys.argv[1] + ".name"
fd = os.open(sys.argv[1], os.O_RDWR)
for call in (lambda: os.pwrite(fd, b"x", 0), lambda: os.pwritev(fd, [b"x"], 0), lambda: os.write(fd, b"x"),
             lambda: os.fsync(fd), lambda: os.fdatasync(fd), lambda: os.ftruncate(fd, 9),
             lambda: os.pread(fd, 1, 0), lambda: os.preadv(fd, [bytearray(1)], 0),
             lambda: os.mkdir(name), lambda: os.link(sys.argv[1], name + ".link"),
             lambda: os.rename(name, name + "2"), lambda: os.rmdir(name + "2"),
             lambda: os.close(os.open(name, os.O_RDWR | os.O_CREAT)), lambda: os.unlink(name)):
    try:
        call()
        print("done")
    except OSError as error:
        print(error.errno)
"""
KINDS = [WRITE, WRITE, WRITE, SYNC, SYNC, WRITE, READ, READ, *[NAMES] * 6]


@pytest.mark.parametrize("kind", [WRITE, SYNC, READ, NAMES])
def test_the_calls_of_a_kind_fail_in_their_turn(tmp_path, kind):
    disk = FaultyDisk(tmp_path)

    def tried(path):
        path.touch()
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)],
            env=os.environ | disk.variables,
            check=True,
            capture_output=True,
            text=True,
        )
        return ran.stdout.split()

    disk.arm(kind, skip=1, fails=1, error=5, path="/chosen")
    mine = [number for number, each in enumerate(KINDS) if each == kind]
    wanted = ["5" if number == mine[1] else "done" for number in range(len(KINDS))]
    assert tried(tmp_path / "chosen") == wanted
    assert (disk.seen, disk.failed) == (len(mine), 1)
    disk.arm(kind, path="/chosen")
    assert tried(tmp_path / "other") == ["done"] * len(KINDS)
    disk.disarm()
    assert tried(tmp_path / "chosen-too") == ["done"] * len(KINDS)

"""A disk whose calls fail on command, for tests that start a real server: the library of faults.c and its
control file.

    disk = FaultyDisk(tmp_path)
    server = start_server(tmp_path / "server", variables=disk.variables)
    disk.arm(WRITE, skip=3, path="/index/data.mdb")   # the fourth write to the index fails with EIO
    ...
    disk.disarm()
"""

import errno
import mmap
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

WRITE, SYNC, READ, NAMES = 1, 2, 4, 8  # names: calls that make, move and remove them
FOR_EVER = 1 << 40

_CONTROL = struct.Struct("<iiqqqq256sq")
_COUNTS = struct.Struct("<qq")
_COUNTS_AT = 24
_CLOCK_AT = 296


@cache
def library():
    """The compiled library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "these tests need a C compiler"
    built = Path(tempfile.mkdtemp(prefix="streamsrv-faults-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(built), str(source), "-ldl"], check=True
    )
    return built


class FaultyDisk:
    """`variables` go into the environment of the server. All its processes share the control file."""

    def __init__(self, folder):
        self._file = folder / "faults.control"
        if not self._file.exists():  # it may be mapped by a process already
            self._file.write_bytes(bytes(_CONTROL.size))
        with self._file.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _CONTROL.size)
        self.variables = {"LD_PRELOAD": str(library()), "FAULTS_CONTROL": str(self._file)}

    def arm(self, kinds, *, skip=0, fails=1, error=errno.EIO, path="/data/"):
        """From the next call on: `skip` calls of these kinds succeed, then `fails` fail. Only calls on files
        whose path contains `path` count."""
        self.disarm()
        self._map[4:_CLOCK_AT] = _CONTROL.pack(0, error, skip, fails, 0, 0, path.encode(), 0)[4:_CLOCK_AT]
        self._map[:4] = struct.pack("<i", kinds)

    def set_clock(self, seconds):
        """The time of day is wrong by so much, from now on. Monotonic clocks stay right."""
        self._map[_CLOCK_AT:] = struct.pack("<q", seconds)

    def disarm(self):
        self._map[:4] = bytes(4)

    @property
    def seen(self):
        """Calls that counted since `arm`."""
        return _COUNTS.unpack_from(self._map, _COUNTS_AT)[0]

    @property
    def failed(self):
        """Calls that were made to fail since `arm`."""
        return _COUNTS.unpack_from(self._map, _COUNTS_AT)[1]

"""A block device that writes down each write and each flush that reaches it, for tests that cut the power.

    disk file system, e.g. ext4  ->  loop device  ->  the file `disk` of a FUSE file system  ->  this process
                                                                                               |-> image
                                                                                               `-> log

The FUSE protocol is spoken directly (Linux, include/uapi/linux/fuse.h): the file system has one file. The log
is a list of entries, each a header of 24 bytes and the data: arrival time (float64, seconds of the monotonic
clock), offset (uint64, or FLUSH) and length (uint64). Requests are answered one after the other, so a flush
in the log covers each write before it.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ENTRY = struct.Struct("<dQQ")
FLUSH = (1 << 64) - 1
ROOT_NODE, FILE_NODE = 1, 2
MOST = 128 * 1024  # bytes a request: loop devices take a short write of a longer one for a whole one
PATIENCE = 30.0

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY_OUT = struct.Struct("<4Q2I")
_ATTR_OUT = struct.Struct("<Q2I")
_OPEN_OUT = struct.Struct("<Q2I")
_INIT_OUT = struct.Struct("<4I2H2I2H2I24x")
_PLACE = struct.Struct("<QQI")  # how requests to read and write begin: handle, offset, size
_WRITE_HEAD = 40
_FOR_EVER = 1 << 32
BIG_WRITES = 1 << 5
FORGET, BATCH_FORGET, INTERRUPT, DESTROY = 2, 42, 36, 38
LOOKUP, GETATTR, OPEN, READ, WRITE, RELEASE, FSYNC, FLUSH_FILE, INIT = 1, 3, 14, 15, 16, 18, 20, 25, 26


class Entry(NamedTuple):
    """`offset` is FLUSH for a flush. `at` is where in the log the data lie."""

    time: float
    offset: int
    length: int
    at: int


def entries_of(log):
    """Every entry of a log file."""
    size, place = log.stat().st_size, 0
    with log.open("rb") as file:
        while place < size:
            file.seek(place)
            arrived, offset, length = ENTRY.unpack(file.read(ENTRY.size))
            yield Entry(arrived, offset, length, place + ENTRY.size)
            place += ENTRY.size + (0 if offset == FLUSH else length)


class BlockLog:
    """The process behind a mounted FUSE file system."""

    def __init__(self, image, log):
        self._image = os.open(image, os.O_RDWR)
        self._size = os.fstat(self._image).st_size
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._answers = {
            INIT: lambda node, body: _INIT_OUT.pack(7, 31, MOST, BIG_WRITES, 12, 9, MOST, 1, 0, 0, 0, 0),
            LOOKUP: self._lookup,
            GETATTR: lambda node, body: _ATTR_OUT.pack(_FOR_EVER, 0, 0) + self._attributes(node),
            OPEN: lambda node, body: _OPEN_OUT.pack(0, 0, 0),
            READ: self._read,
            WRITE: self._write,
            FSYNC: self._flush,
            FLUSH_FILE: lambda node, body: b"",
            RELEASE: lambda node, body: b"",
        }

    def serve(self, device):
        """Answer requests until the file system is unmounted."""
        while True:
            try:
                request = os.read(device, MOST + (1 << 16))
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            answer = self._answers.get(code)
            failure, body = -errno.ENOSYS, b""
            if answer is not None:
                found = answer(node, request[_IN.size :])
                failure, body = (found, b"") if isinstance(found, int) else (0, found)
            os.write(device, _OUT.pack(_OUT.size + len(body), failure, unique) + body)

    def _attributes(self, node):
        folder = node == ROOT_NODE
        mode = stat.S_IFDIR | 0o700 if folder else stat.S_IFREG | 0o600
        size = 0 if folder else self._size
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _lookup(self, node, body):
        if node != ROOT_NODE or body.rstrip(b"\0") != b"disk":
            return -errno.ENOENT
        return _ENTRY_OUT.pack(FILE_NODE, 0, _FOR_EVER, _FOR_EVER, 0, 0) + self._attributes(FILE_NODE)

    def _read(self, node, body):
        _, offset, size = _PLACE.unpack_from(body)
        return os.pread(self._image, size, offset)

    def _write(self, node, body):
        _, offset, size = _PLACE.unpack_from(body)
        data = memoryview(body)[_WRITE_HEAD : _WRITE_HEAD + size]
        os.writev(self._log, [ENTRY.pack(time.monotonic(), offset, size), data])
        os.pwrite(self._image, data, offset)
        return struct.pack("<II", size, 0)

    def _flush(self, node, body):
        os.write(self._log, ENTRY.pack(time.monotonic(), FLUSH, 0))
        return b""


def main(folder, image, log):
    """Mount at `folder` and serve; prints a line when it is mounted."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"blocklog", os.fsencode(folder), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), f"FUSE cannot be mounted at {folder}")
    print("mounted", flush=True)
    BlockLog(image, log).serve(device)


def run(*command):
    """A tool of the system; AssertionError with its words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout.strip()


class Mounted:
    """A file system image on a loop device, mounted at `folder` until `close`."""

    def __init__(self, image, folder):
        self._device = run("losetup", "--find", "--show", image)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        try:
            limit = Path("/sys/block", Path(self._device).name, "queue/max_sectors_kb")
            limit.write_text(str(MOST // 1024))
            run("mount", self._device, folder)
        except BaseException:
            run("losetup", "--detach", self._device)
            raise

    def close(self):
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(["umount", self.folder], capture_output=True).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", self.folder], check=True)
                break
            time.sleep(0.05)
        run("losetup", "--detach", self._device)


class LoggedDisk:
    """A file system whose every block is written down: mounted at `folder`, from `with` to its end."""

    def __init__(self, place, image):
        self.log = place / "blocks.log"
        self.folder = place / "mounted"
        self._fuse = place / "fuse"
        self._image = image

    def __enter__(self):
        assert os.geteuid() == 0, "only root may mount: run these tests as root"
        self._fuse.mkdir()
        command = [sys.executable, __file__, self._fuse, self._image, self.log]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "mounted\n", "FUSE cannot be mounted here"
        try:
            self._mounted = Mounted(self._fuse / "disk", self.folder)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._mounted.close()
        finally:
            self._end()

    def _end(self):
        subprocess.run(["umount", "--lazy", self._fuse], check=True)
        self._process.wait(PATIENCE)
        self._process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the processes of a server use, from /proc."""

import time
from contextlib import suppress
from pathlib import Path

PIXEL_PROCESS = b"framecodecs.pool.worker"


def family(pid):
    """The process and all that descend from it."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # a process or thread has ended meanwhile
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def private_bytes(server):
    """RssAnon + RssShmem of the process tree."""
    total = 0
    for pid in family(server.process.pid):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) << 10
    return total


def ticks_by_process(server):
    """Process id -> ticks of processor time, of the pixel processes."""
    found = {}
    for pid in family(server.process.pid):
        with suppress(OSError):
            if PIXEL_PROCESS in Path(f"/proc/{pid}/cmdline").read_bytes():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[pid] = sum(map(int, fields[11:13]))
    return found


def seconds_until_idle(server, patience):
    """How long the pixel processes work on; None if longer than `patience` seconds. One that ends meanwhile
    seems to give ticks back, so that does not count as idle."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        before = sum(ticks_by_process(server).values())
        time.sleep(0.4)
        if 0 <= sum(ticks_by_process(server).values()) - before <= 2:
            return time.monotonic() - began - 0.4
    return None


def wait_until_busy(server, before, ticks=5, patience=20):
    """Until a pixel process has used so many ticks of 10 ms since `before` (of `ticks_by_process`)."""
    end = time.monotonic() + patience
    while not any(used >= before.get(pid, 0) + ticks for pid, used in ticks_by_process(server).items()):
        assert time.monotonic() < end, "no pixel process works"
        time.sleep(0.01)

"""A client in a process of its own: asks for a path again and again until its standard input ends, then
prints when each request began and how long its answer took, in seconds. What shares a process with sixteen
bulk clients would measure those; where it may, it goes before them to a core, because clients on other
machines wait for none.

usage: python -m perf.ping PORT PATH ACCEPT
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from perf.load import Address, Client
from perf.servers import ROOT

PAUSE = 0.005
PRIORITY = -10


class Ping(NamedTuple):
    began: float  # by time.perf_counter, which is one clock for all processes
    seconds: float


def main(words: list[str]) -> int:
    port, path, accept = words
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    pings: list[Ping] = []
    with Client(("127.0.0.1", int(port))) as client:
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            pings.append(Ping(time.perf_counter(), client.get(path, accept).seconds))
    print("\n".join(f"{ping.began:.6f} {ping.seconds:.6f}" for ping in pings))
    return 0


@contextmanager
def pinging_apart(address: Address, path: str, accept: str) -> Iterator[list[Ping]]:
    """The list is filled at the end."""
    command = [sys.executable, "-m", "perf.ping", str(address[1]), path, accept]
    pings: list[Ping] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield pings
        finally:
            printed, _ = process.communicate()
            pings += [Ping(*map(float, line.split())) for line in printed.splitlines() if line]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

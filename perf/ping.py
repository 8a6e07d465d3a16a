"""A client of its own process: asks for a path again and again until its standard input ends, then prints the
milliseconds of each answer. What shares a process with sixteen bulk clients would measure those.

usage: python -m perf.ping PORT PATH ACCEPT
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from perf.load import Address, pinging
from perf.servers import ROOT


def main(words: list[str]) -> int:
    port, path, accept = words
    with pinging(("127.0.0.1", int(port)), path, accept) as latencies:
        sys.stdin.read()
    print("\n".join(f"{seconds * 1e3:.4f}" for seconds in latencies))
    return 0


@contextmanager
def pinging_apart(address: Address, path: str, accept: str) -> Iterator[list[float]]:
    """As `load.pinging`; the list is filled at the end."""
    command = [sys.executable, "-m", "perf.ping", str(address[1]), path, accept]
    latencies: list[float] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield latencies
        finally:
            printed, _ = process.communicate()
            latencies += [float(line) / 1e3 for line in printed.split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

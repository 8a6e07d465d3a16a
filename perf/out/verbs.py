"""Processes of the command line."""

from __future__ import annotations

import os
import subprocess
import sys

from perf.servers import PYTHONPATH


def verb(*words: object, output: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "streamsrv", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdout=output)


def run_verb(*words: object) -> bytes:
    """Its output. Raises RuntimeError."""
    process = verb(*words, output=subprocess.PIPE)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{words[0]} {words[1]} failed")
    return output

"""Protects a server process from others on the same machine, and names the weaknesses that remain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from framecodecs.pool.confinement import hide, lacking


def protect() -> None:
    """Of this process: no core dump (it would hold patients' data), no other process of the same user reads
    its memory, and only this user can open the files that it creates."""
    os.umask(0o077)
    with suppress(OSError):
        hide()


def remarks() -> Iterator[str]:
    """Sentences for the log at start."""
    if os.geteuid() == 0:
        yield (
            "the server runs as root. It needs no privileges: let it run as a user of its own. "
            "Pixel processes run as nobody"
        )
    for lack in lacking():
        yield f"pixel processes run {lack}"

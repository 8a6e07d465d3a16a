"""Protects a server process from other processes of the machine, and names the weaknesses that remain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from framecodecs.pool.confinement import hide, lacking


def protect() -> None:
    """Prevents a core dump, which would hold patients' data, and access of other processes to the memory.
    Files that this process creates are for its user only."""
    os.umask(0o077)
    with suppress(OSError):
        hide()


def remarks() -> Iterator[str]:
    """Yields sentences for the log at start."""
    if os.geteuid() == 0:
        yield (
            "the server runs as root. It needs no privileges: let it run as a user of its own. "
            "Pixel processes run as the user `nobody`"
        )
    for lack in lacking():
        yield f"pixel processes run {lack}"

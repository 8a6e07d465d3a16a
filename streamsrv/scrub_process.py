"""The scrub process as the supervisor sees it: started when it is due, heard by the selector, killed at will.

The supervisor never waits for it. Its work is in scrubber.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass, field

from streamsrv import config
from streamsrv.settings import Settings

log = logging.getLogger("streamsrv.supervisor")

AFTER_FAILURE = 60.0  # seconds
FIRST_PAUSE = 60.0  # seconds, and less if a turn is short: a thousandth of it
TURN_SHARE = 86.4


@dataclass
class ScrubProcess:
    """The process as the supervisor sees it. Not at all if `scrub_days` is 0 or the server is read-only."""

    settings: Settings
    selector: selectors.BaseSelector
    due: float = field(init=False)  # by the monotonic clock
    process: subprocess.Popen[bytes] | None = None
    told: bytes = b""

    def __post_init__(self) -> None:
        # A server that starts has other things to do.
        self.due = time.monotonic() + min(FIRST_PAUSE, self.settings.scrub_days * TURN_SHARE)

    @property
    def is_wanted(self) -> bool:
        return self.settings.scrub_days > 0 and not self.settings.read_only

    def waits(self) -> list[float]:
        """When it is due, if it does not run."""
        return [self.due] if self.is_wanted and self.process is None else []

    def start_if_due(self) -> None:
        if not self.is_wanted or self.process is not None or self.due > time.monotonic():
            return
        command = [sys.executable, "-m", "streamsrv.scrubber"]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            log.error("the scrub process cannot be started: %s", error.strerror)
            self.due = time.monotonic() + AFTER_FAILURE
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(config.to_json(self.settings).encode() + b"\n")
            self.process.stdin.flush()
        self.told = b""
        self.selector.register(self.process.stdout, selectors.EVENT_READ, self.heard)

    def heard(self) -> None:
        """Called when its standard output can be read."""
        assert self.process is not None
        assert self.process.stdout is not None
        piece = os.read(self.process.stdout.fileno(), 4096)
        self.told += piece
        if piece:
            return
        pid, told = self.process.pid, self.told
        code = self.close()
        try:
            self.due = time.monotonic() + float(told)
        except ValueError:
            log.error("the scrub process %d ended with code %d; the next one starts in a minute", pid, code)
            self.due = time.monotonic() + AFTER_FAILURE

    def close(self) -> int:
        """Kill it, if it runs; returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        self.selector.unregister(process.stdout)
        process.kill()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()

"""Starts the scrub process (scrubber.py) when it is due, and kills it. The supervisor never waits for it."""

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

# Seconds until the next start.
AFTER_FAILURE, FIRST_PAUSE = 60.0, 60.0
# Short scrub periods have a shorter first pause: a thousandth of the period, in seconds a day.
PAUSE_A_DAY = 86.4


@dataclass
class ScrubProcess:
    """There is no process if `scrub_days` is 0 or the server is read-only."""

    settings: Settings
    selector: selectors.BaseSelector
    due: float = field(init=False)  # seconds of the monotonic clock
    process: subprocess.Popen[bytes] | None = None
    output: bytes = b""

    def __post_init__(self) -> None:
        self.due = time.monotonic() + min(FIRST_PAUSE, self.settings.scrub_days * PAUSE_A_DAY)

    @property
    def is_wanted(self) -> bool:
        return self.settings.scrub_days > 0 and not self.settings.read_only

    def due_times(self) -> list[float]:
        """The time of the next start; empty if the process runs."""
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
        config.send(self.settings, self.process.stdin)
        self.output = b""
        self.selector.register(self.process.stdout, selectors.EVENT_READ, self.read_output)

    def read_output(self) -> None:
        """The selector calls this when standard output can be read."""
        assert self.process is not None
        assert self.process.stdout is not None
        piece = os.read(self.process.stdout.fileno(), 4096)
        self.output += piece
        if piece:
            return
        pid = self.process.pid
        code = self.close()
        try:
            self.due = time.monotonic() + float(self.output)
        except ValueError:
            log.error("the scrub process %d ended with code %d; the next one starts in a minute", pid, code)
            self.due = time.monotonic() + AFTER_FAILURE

    def close(self) -> int:
        """Kills the process, if it runs, and returns its exit code."""
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

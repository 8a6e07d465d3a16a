"""Starts, watches and ends the companions, for the supervisor. Nothing waits for them, and each starts again
after it has ended.

A companion starts by exec. It gets the settings as one line of JSON on standard input, which then stays open:
its end means that the supervisor has ended. The end of its standard output means that it has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from framecodecs.pool.processes import PoolEndpoints
from streamsrv import config
from streamsrv.metrics import MetricsBoard
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.options import audits
from streamsrv.settings import Settings

log = logging.getLogger("streamsrv.supervisor")

# Seconds until the next start of the scrub process.
SCRUB_AFTER_FAILURE, SCRUB_FIRST_PAUSE = 60.0, 60.0
# Short scrub periods have a shorter first pause: a thousandth of the period, in seconds a day.
PAUSE_A_DAY = 86.4
# Seconds until the metrics process, and the process of the issuer, start again.
METRICS_PAUSE = ISSUER_PAUSE = 2.0
HOOK_PAUSE = 2.0
# Seconds in which the process that sends hooks may end a delivery, when the server ends.
HOOK_GRACE = 5.0
# The audit process ends if a certificate or key cannot be read.
AUDIT_PAUSE = 10.0


class Companion(ABC):
    """`name` is that in the log. `words` are sent as its argument, a JSON list; it inherits `passed`. `due`
    is in seconds of the monotonic clock."""

    def __init__(
        self,
        name: str,
        module: str,
        settings: Settings,
        selector: selectors.BaseSelector,
        *,
        wanted: bool,
        words: Sequence[object] = (),
        passed: Sequence[int] = (),
    ) -> None:
        self.due = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self._name = name
        self._wanted = wanted
        self._command = [sys.executable, "-m", module, json.dumps(words)]
        self._passed = passed
        self._settings = settings
        self._selector = selector
        self._output = b""

    def due_times(self) -> list[float]:
        """The time of the next start; empty if the process runs."""
        return [self.due] if self._wanted and self.process is None else []

    def start_if_due(self) -> None:
        if not self._wanted or self.process is not None or self.due > time.monotonic():
            return
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, pass_fds=self._passed)
        except OSError as error:
            log.error("the %s process cannot be started: %s", self._name, error.strerror)
            self.due = time.monotonic() + self.pause(b"")
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        config.send(self._settings, self.process.stdin)
        self._output = b""
        self._selector.register(self.process.stdout, selectors.EVENT_READ, self.read_output)

    def read_output(self) -> None:
        """The selector calls this when standard output can be read."""
        assert self.process is not None
        assert self.process.stdout is not None
        piece = os.read(self.process.stdout.fileno(), 4096)
        self._output += piece
        if piece:
            return
        pid = self.process.pid
        code = self.close()
        pause = self.pause(self._output)
        if code or not self._output:
            log.error(
                "the %s process %d ended with code %d; the next one starts in %d s",
                *(self._name, pid, code, pause),
            )
        self.due = time.monotonic() + pause

    @abstractmethod
    def pause(self, output: bytes) -> float:
        """Seconds until the next start, after a process with this output has ended, or none could start."""

    def close(self) -> int:
        """Kills the process, if it runs, and returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        self._selector.unregister(process.stdout)
        process.kill()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()


class ScrubProcess(Companion):
    """There is no process if `scrub_days` is 0, the server is read-only, or the segments are in a bucket."""

    def __init__(self, settings: Settings, selector: selectors.BaseSelector, board: MetricsBoard) -> None:
        wanted = settings.scrub_days > 0 and not settings.read_only and not settings.segments
        files = (board.file,)
        super().__init__(
            *("scrub", "streamsrv.companions.scrubber", settings, selector),
            wanted=wanted,
            words=files,
            passed=files,
        )
        self.due += min(SCRUB_FIRST_PAUSE, settings.scrub_days * PAUSE_A_DAY)

    def pause(self, output: bytes) -> float:
        """The process writes in how many seconds the next segment is due."""
        try:
            return float(output)
        except ValueError:
            return SCRUB_AFTER_FAILURE


class MetricsProcess(Companion):
    """It answers on `listeners`; there is no process without them. `pools` are the pixel processes for short
    tasks and for long ones."""

    def __init__(
        self,
        settings: Settings,
        selector: selectors.BaseSelector,
        board: MetricsBoard,
        listeners: Sequence[socket.socket],
        pools: Sequence[PoolEndpoints],
    ) -> None:
        sockets = [each.fileno() for each in listeners]
        pages = [each.status_pages for each in pools]
        super().__init__(
            *("metrics", "streamsrv.companions.exposition", settings, selector),
            wanted=bool(listeners),
            words=(board.file, sockets, pages),
            passed=(board.file, *sockets, *(page for pool in pages for page in pool)),
        )

    def pause(self, output: bytes) -> float:
        return METRICS_PAUSE


class AuditProcess(Companion):
    """It sends the audit trail to `audit_syslog`; there is no process without one."""

    def __init__(self, settings: Settings, selector: selectors.BaseSelector) -> None:
        super().__init__(
            *("audit", "streamsrv.companions.audit_sender", settings, selector),
            wanted=bool(settings.audit_syslog) and audits(settings),
        )

    def pause(self, output: bytes) -> float:
        return AUDIT_PAUSE


class HookProcess(Companion):
    """It sends changes to hooks. There is none unless the setting `hooks` is on and the server may write."""

    def __init__(self, settings: Settings, selector: selectors.BaseSelector) -> None:
        super().__init__(
            *("hooks", "streamsrv.companions.hook_sender", settings, selector),
            wanted=settings.hooks and not settings.read_only,
        )

    def pause(self, output: bytes) -> float:
        return HOOK_PAUSE

    def close(self) -> int:
        """It ends by itself first: it gives its lease back, so that another node goes on at once."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(HOOK_GRACE)
        return super().close()


class IssuerProcess(Companion):
    """It fetches the keys of `oidc_issuer`; there is no process without one."""

    def __init__(self, settings: Settings, selector: selectors.BaseSelector, board: KeyBoard) -> None:
        super().__init__(
            *("issuer", "streamsrv.companions.issuer", settings, selector),
            wanted=bool(settings.oidc_issuer),
            words=board.descriptors,
            passed=board.descriptors,
        )

    def pause(self, output: bytes) -> float:
        return ISSUER_PAUSE

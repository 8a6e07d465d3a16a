"""Starts, watches, restarts and ends the workers, the pixel processes that all workers share, and the
companions (scrub, metrics, audit, keys of an issuer). Protects them from other processes of the machine
(`protect`).

This process holds the store's lock and the listening sockets. The sockets stay open while a worker restarts:
new connections wait in the kernel's queue.

Strategy: one loop over a few descriptors, without threads and without SIGCHLD. Each worker writes to a status
pipe. The first byte means ready, each further byte means that its event loop runs, the end of the pipe means
that the worker has ended. Signals arrive through a pipe of their own.

Rules of this file
- Workers are started by exec, not by fork: a forked child would keep locks and index state of its parent.
- A worker that dies after LIVED seconds is restarted at once, others after growing pauses.
- Until all workers have been ready once, START_ATTEMPTS deaths in a row or an exit code end the server. Later
  it tries again without end, because a disk that fails now may recover.
- A worker whose event loop does not run for `hang_timeout` seconds writes the stacks of its threads to the
  log, and is killed. Time in which this process itself was stopped (Ctrl-Z) does not count.
- SIGHUP renews the certificate. It is blocked, except while this process waits. All processes that it starts
  inherit that; workers unblock it.
- Pixel processes end after the workers, because workers may have answers to finish.
- The companions start when all workers are ready. The scrub process is killed before the workers end, the
  others after them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from framecodecs.pool.confinement import hide, lacking
from framecodecs.pool.processes import PixelProcesses
from framecodecs.rendering.fonts import NoFont, check_font, find_fonts, has_cjk
from streamsrv import __version__, config
from streamsrv.audit.entries import SERVER, AuditEntry, Event
from streamsrv.companions.processes import (
    AuditProcess,
    Companion,
    HookProcess,
    IssuerProcess,
    MetricsProcess,
    ScrubProcess,
)
from streamsrv.dimse.peers import check_dimse
from streamsrv.listening import CannotServe, bind, bound_path, origin_of
from streamsrv.metrics import MetricsBoard, ServerCell
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.options import audit_trail, check_store, start_log
from streamsrv.pixels.limits import pixel_limits, pixel_processes, slow_limits
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.web.access.policy import check_start
from streamsrv.web.access.policy import remarks as access_remarks
from streamsrv.web.connection.certificates import BadCertificate, ServerCertificate

log = logging.getLogger("streamsrv.supervisor")

EXIT_FAILED = 1
# All times are in seconds. The death of a worker that lived this long is a new fault.
LIVED = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
START_ATTEMPTS = 6
# A worker is killed if it has not closed its store this long after the drain time-out.
GRACE = 10.0
ENDING = (signal.SIGTERM, signal.SIGINT)
# At this signal a worker writes the stack of each of its threads to standard error, within DUMP_TIME.
DUMP = signal.SIGUSR1
DUMP_TIME = 1.0
# If select() returns this much later than its time-out, this process was stopped.
STOPPED = 1.0
REASONS = {signal.SIGBUS: "the index could not be read from the disk, or the disk is full"}
NO_CJK = (
    "there is no font for Chinese, Japanese and Korean: annotations do not show such names. Install the "
    "system package fonts-noto-cjk, or streamsrv[cjk], or set annotation_fonts"
)


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    status: int  # read end of its status pipe
    started: float
    ready: bool = False
    last_sign: float = 0.0  # time of its last byte
    kill_at: float | None = None  # set while it hangs


@dataclass
class WorkerSlot:
    """One of `workers` slots: its worker, or the time of the next start."""

    worker: Worker | None = None
    due: float = 0.0
    failures: int = 0  # deaths in a row of workers that lived less than LIVED


@dataclass
class Supervisor:
    settings: Settings
    listeners: Sequence[socket.socket]
    on_ready: Callable[[], None]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    slots: list[WorkerSlot] = field(default_factory=list)
    serving: bool = False  # all workers have been ready once
    kill_time: float | None = None  # set while the server ends
    exit_code: int = 0
    health_listeners: Sequence[socket.socket] = ()
    metrics_listeners: Sequence[socket.socket] = ()
    dimse_listeners: Sequence[socket.socket] = ()
    pixels: Sequence[PixelProcesses] = ()  # for short tasks, for long tasks
    certificate: ServerCertificate | None = None
    scrub: ScrubProcess | None = None
    metrics: MetricsProcess | None = None
    issuer: IssuerProcess | None = None
    audit: AuditProcess | None = None
    hooks: HookProcess | None = None
    board: MetricsBoard = field(init=False)
    keys: KeyBoard = field(default_factory=KeyBoard.make)

    def __post_init__(self) -> None:
        self.board = MetricsBoard.make(worker_count(self.settings))
        self.board.add(ServerCell.STARTED, time.time())

    def run(self) -> int:
        """Runs until a signal, or until workers cannot start; returns the exit code."""
        self.slots = [WorkerSlot() for _ in range(worker_count(self.settings))]
        limits, count = pixel_limits(self.settings), pixel_processes(self.settings)
        quick, slow = (
            PixelProcesses(count, each, self.selector, self._on_pixel_death)
            for each in (limits, slow_limits(limits))
        )
        self.pixels = quick, slow
        self.scrub = ScrubProcess(self.settings, self.selector, self.board)
        self.metrics = MetricsProcess(
            self.settings,
            self.selector,
            self.board,
            self.metrics_listeners,
            [each.endpoints for each in self.pixels],
        )
        self.issuer = IssuerProcess(self.settings, self.selector, self.keys)
        self.audit = AuditProcess(self.settings, self.selector)
        self.hooks = HookProcess(self.settings, self.selector)
        with signal_pipe(self.selector), contextlib.closing(quick), contextlib.closing(slow):
            while self.kill_time is None or any(slot.worker for slot in self.slots):
                self._start_due()
                began, timeout = time.monotonic(), self._timeout()
                for key, _ in self._select(timeout):
                    key.data() if callable(key.data) else self._read(key.data, key.fd)
                if timeout is not None and time.monotonic() - began > timeout + STOPPED:
                    self._restart_hang_timers()
                self._kill_hanging()
                self._kill_late()
            self.issuer.close()
            self.audit.close()
            self.hooks.close()
            self.metrics.close()
        self.selector.close()
        return self.exit_code

    def _select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        try:
            return self.selector.select(timeout)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])

    # Starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, slot in enumerate(self.slots):
            if self.kill_time is None and slot.worker is None and slot.due <= now:
                slot.worker = self._start(number)
                self.selector.register(slot.worker.status, selectors.EVENT_READ, slot)
        for companion in self._companions():
            companion.start_if_due()

    def _companions(self) -> list[Companion]:
        """Those that may start now."""
        if not self.serving or self.kill_time is not None:
            return []
        return [
            each
            for each in (self.issuer, self.audit, self.hooks, self.scrub, self.metrics)
            if each is not None
        ]

    def _start(self, number: int) -> Worker:
        status, their_status = os.pipe()
        listen, health, dimse = (
            [each.fileno() for each in sockets]
            for sockets in (self.listeners, self.health_listeners, self.dimse_listeners)
        )
        endpoints = [each.endpoints for each in self.pixels]
        keys, certificate = self.keys.descriptors, [*(self.certificate or ())]
        behind = (self.board.file, number, keys, certificate, dimse)
        words = json.dumps([listen, health, endpoints, their_status, *behind])
        command = [sys.executable, "-m", "streamsrv.server", words]
        shared = [descriptor for each in endpoints for descriptor in each.descriptors]
        passed = (*listen, *health, *dimse, *shared, *keys, *certificate, their_status, self.board.file)
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=passed)
        finally:
            os.close(their_status)
        assert process.stdin is not None
        config.send(self.settings, process.stdin)
        return Worker(process, status, time.monotonic())

    # Reading

    def _read(self, slot: WorkerSlot | None, descriptor: int) -> None:
        received = os.read(descriptor, 64)
        if slot is None:
            self._on_signals(received)
        elif received:
            self._on_sign_of_life(slot)
        else:
            self._on_death(slot)

    def _on_sign_of_life(self, slot: WorkerSlot) -> None:
        assert slot.worker is not None
        slot.worker.last_sign = time.monotonic()
        if not slot.worker.ready:
            self._on_ready(slot.worker)

    def _on_ready(self, worker: Worker) -> None:
        worker.ready = True
        if not self.serving and all(each.worker and each.worker.ready for each in self.slots):
            self.serving = True
            self.on_ready()

    def _on_death(self, slot: WorkerSlot) -> None:
        worker, slot.worker = slot.worker, None
        assert worker is not None
        self.selector.unregister(worker.status)
        os.close(worker.status)
        code = worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        if self.kill_time is not None:
            return
        lived = worker.ready and time.monotonic() - worker.started > LIVED
        slot.failures = 0 if lived else slot.failures + 1
        log.error("worker %d ended with %s", worker.process.pid, describe(code))
        self.board.add(ServerCell.WORKER_ENDS)
        self.board.worker_ended(self.slots.index(slot))
        hopeless = slot.failures >= START_ATTEMPTS or (not worker.ready and code > 0)
        if hopeless and not self.serving:
            log.error("giving up: workers cannot start")
            self.exit_code = EXIT_FAILED
            self._end()
        else:
            pause = 0.0 if lived else min(FIRST_PAUSE * 2 ** (slot.failures - 1), LONGEST_PAUSE)
            slot.due = time.monotonic() + pause

    def _on_pixel_death(self, pid: int, code: int) -> None:
        log.warning("pixel process %d ended with %s", pid, describe(code))
        self.board.add(ServerCell.PIXEL_PROCESS_ENDS)

    def _on_signals(self, numbers: bytes) -> None:
        if any(number in ENDING for number in numbers):
            if self.kill_time is not None:  # the second signal: at once
                self.kill_time = time.monotonic()
            else:
                self._end()
        elif signal.SIGHUP in numbers and self.certificate is not None:
            self._renew(self.certificate)

    def _renew(self, certificate: ServerCertificate) -> None:
        """Workers take the new certificate for new connections. If it is bad, the old one stays."""
        try:
            certificate.renew(self.settings)
        except BadCertificate as error:
            log.error("the certificate was not renewed, and the old one stays: %s", error.detail)
            return
        log.info("the certificate was read again")
        for remark in certificate.remarks(self.settings):
            log.warning("%s", remark)
        for worker in self._workers():
            worker.process.send_signal(signal.SIGHUP)

    # Hanging

    def _kill_hanging(self) -> None:
        """Kills workers whose event loop does not run, DUMP_TIME after the signal that logs their stacks."""
        limit, now = self.settings.hang_timeout, time.monotonic()
        if not limit or self.kill_time is not None:
            return
        for worker in self._workers():
            if worker.kill_at is not None and worker.kill_at <= now:
                worker.process.kill()
            elif worker.kill_at is None and worker.ready and worker.last_sign + limit <= now:
                log.error("worker %d hangs: it gave no sign of life for %g s", worker.process.pid, limit)
                self.board.add(ServerCell.WORKER_HANGS)
                worker.process.send_signal(DUMP)
                worker.kill_at = now + DUMP_TIME

    def _restart_hang_timers(self) -> None:
        """This process was stopped: pipes may hold unread bytes, and workers may have been stopped too."""
        for worker in self._workers():
            worker.last_sign = time.monotonic()

    # Ending

    def _end(self) -> None:
        """Takes no new connections; workers finish their requests."""
        self.kill_time = time.monotonic() + self.settings.drain_timeout + GRACE
        for listener in (*self.listeners, *self.dimse_listeners):
            listener.close()
        if self.scrub:
            self.scrub.close()
        for worker in self._workers():
            worker.process.send_signal(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self.kill_time is not None and time.monotonic() >= self.kill_time:
            for worker in self._workers():
                worker.process.kill()

    def _workers(self) -> Iterable[Worker]:
        return [slot.worker for slot in self.slots if slot.worker is not None]

    def _timeout(self) -> float | None:
        """Seconds until the next timer, or None."""
        if self.kill_time is not None:
            return max(0.05, self.kill_time - time.monotonic())
        due = [slot.due for slot in self.slots if slot.worker is None]
        if limit := self.settings.hang_timeout:
            due += [worker.kill_at or worker.last_sign + limit for worker in self._workers() if worker.ready]
        due += [at for companion in self._companions() for at in companion.due_times()]
        return max(0.0, min(due) - time.monotonic()) if due else None


@contextlib.contextmanager
def signal_pipe(selector: selectors.BaseSelector) -> Iterator[None]:
    """Writes the number of each signal to a pipe that the selector reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    former = {number: signal.signal(number, lambda *_: None) for number in (*ENDING, signal.SIGHUP)}
    wakeup = signal.set_wakeup_fd(write)
    selector.register(read, selectors.EVENT_READ, None)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        selector.unregister(read)
        os.close(read)
        os.close(write)


def describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    number = signal.Signals(-code)
    return f"signal {number.name}" + (f": {REASONS[number]}" if number in REASONS else "")


def worker_count(settings: Settings) -> int:
    return settings.workers or len(os.sched_getaffinity(0))


def serve(settings: Settings, write: Callable[[str], None] = print) -> int:
    """Runs the server until SIGTERM or Ctrl-C; returns the exit code. Raises StoreLocked, CannotServe, or
    SettingsError for a server that no client, or every client, could use."""
    start_log(settings)
    check_store(settings)
    check_start(settings)
    check_dimse(settings)
    settings = with_fonts(settings)
    protect()
    for remark in (*remarks(), *access_remarks(settings)):
        log.warning(remark)
    certificate = checked_certificate(settings)
    for remark in certificate.remarks(settings) if certificate else ():
        log.warning("%s", remark)
    with (
        Store.lock(Path(settings.data), shared=settings.read_only),
        recorded(settings),
        bound_path(settings.unix_socket, settings.unix_socket_mode) as local,
    ):
        listeners = [*bind(settings.host, settings.port), *local]
        origin = origin_of(settings, listeners)

        def announce() -> None:
            if settings.log_format == "json":
                log.info("streamsrv %s serves %s/v2", __version__, origin)
                return
            write(f"streamsrv {__version__} serves {origin}/v2 with {worker_count(settings)} workers")
            if settings.dimse_port:
                write(f"DIMSE: {settings.aet} on {settings.dimse_host} port {settings.dimse_port}")
            write(f"the studies are in {settings.segments or Path(settings.data).resolve()}")
            write(f"try: curl '{origin}/v2/studies'")

        try:
            health = bind("127.0.0.1", settings.health_port) if settings.health_port else []
            metrics = bind(settings.metrics_host, settings.metrics_port) if settings.metrics_port else []
            dimse = bind(settings.dimse_host, settings.dimse_port) if settings.dimse_port else []
            return Supervisor(
                *(settings, listeners, announce),
                health_listeners=health,
                metrics_listeners=metrics,
                dimse_listeners=dimse,
                certificate=certificate,
            ).run()
        finally:
            for listener in listeners:
                listener.close()


def checked_certificate(settings: Settings) -> ServerCertificate | None:
    """Raises CannotServe."""
    try:
        return ServerCertificate.make(settings)
    except BadCertificate as error:
        raise CannotServe(error.detail) from None


@contextlib.contextmanager
def recorded(settings: Settings) -> Iterator[None]:
    """Writes start and stop of the server to the audit trail, if there is one. Raises CannotServe."""
    trail = audit_trail(settings)
    if trail is None:
        yield
        return
    detail = f"streamsrv {__version__} process {os.getpid()}"
    try:
        trail.append([AuditEntry(time.time(), Event.STARTED, user=SERVER, detail=detail)])
    except OSError as error:
        raise CannotServe(
            f"the audit trail cannot be written to {trail.folder}: {error.strerror}. Set audit_folder, or "
            "audit = off"
        ) from None
    with contextlib.closing(trail):
        yield
        with contextlib.suppress(OSError):
            trail.append([AuditEntry(time.time(), Event.STOPPED, user=SERVER, detail=detail)])


def with_fonts(settings: Settings) -> Settings:
    """The settings with the fonts that pixel processes load, so that all processes have the same ones. Raises
    CannotServe."""
    for font in settings.annotation_fonts:
        try:
            check_font(font)
        except NoFont as error:
            raise CannotServe(f"annotation_fonts: {font} {error}") from error
    if settings.annotation_fonts:
        return settings
    fonts = find_fonts()
    if not has_cjk(fonts):
        log.warning(NO_CJK)
    return replace(settings, annotation_fonts=fonts)


def protect() -> None:
    """Prevents a core dump, which would hold patients' data, and access of other processes to the memory.
    Files that this process creates are for its user only."""
    os.umask(0o077)
    with contextlib.suppress(OSError):
        hide()


def remarks() -> Iterator[str]:
    """Yields sentences about remaining weaknesses, for the log at start."""
    if os.geteuid() == 0:
        yield (
            "the server runs as root. It needs no privileges: let it run as a user of its own. "
            "Pixel processes run as the user `nobody`"
        )
    for lack in lacking():
        yield f"pixel processes run {lack}"

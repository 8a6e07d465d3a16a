"""The parent of the workers: holds the store's lock and the listening sockets, starts workers, restarts those
that die, ends them all. So does it with the pixel processes, which all workers share
(framecodecs.pool.processes).

Strategy: one loop over a few descriptors, without threads and without SIGCHLD. Each worker has a status pipe:
the first byte on it says ready, each further one that its loop turns, its end that the worker is gone.
Signals arrive through a wake-up pipe. The sockets are bound here and stay open here, so that a connection
that arrives while a worker restarts waits in the queue instead of being reset.

Rules of this file
- Workers are exec'd, never forked off: a forked child would keep locks and index state of its parent.
- A worker that dies is restarted at once if it had lived, else with growing pauses, up to LONGEST_PAUSE.
  Until all workers have been ready once, START_ATTEMPTS deaths in a row or an exit with a code end the
  server with an exit code. Later it tries for ever: a disk that fails now may work again.
- A worker whose loop has not turned for `hang_timeout` seconds writes the stacks of its threads to the log,
  and is killed. Time in which this process itself was stopped (Ctrl-Z) does not count.
- SIGHUP has no effect, on workers and pixel processes neither: they inherit that.
- Pixel processes end after the workers, which may have answers to finish.
- The scrub process starts when all workers are ready, and is killed before they end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framecodecs.pool.processes import Processes
from streamsrv import __version__, config
from streamsrv.errors import StreamsrvError
from streamsrv.pixels.processes import pixel_limits, pixel_processes, slow_limits
from streamsrv.privileges import protect, remarks
from streamsrv.scrub_process import ScrubProcess
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.web.hosts import is_loopback

log = logging.getLogger("streamsrv.supervisor")

EXIT_FAILED = 1
BACKLOG = 1024
# A worker that lived so long died of something new.
LIVED = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
START_ATTEMPTS = 6
# After the drain time-out: how long a worker has to close its store before it is killed.
GRACE = 10.0
ENDING = (signal.SIGTERM, signal.SIGINT)
# A worker that gets this writes the stack of each of its threads to standard error.
DUMP = signal.SIGUSR1
# Seconds that a worker has to do so before it is killed.
DUMP_TIME = 1.0
# A turn of this loop that takes so many seconds longer than it waits for: this process was stopped.
STOPPED = 1.0
# Signals whose reason is known.
REASONS = {signal.SIGBUS: "the index could not be read from the disk, or the disk is full"}


class CannotServe(StreamsrvError):
    """The server cannot be started; `detail` says why."""


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    status: int  # read end of its status pipe
    started: float
    ready: bool = False
    heard: float = 0.0  # when its last sign of life came
    kill_at: float | None = None  # it hangs


@dataclass
class Place:
    """A worker's place in the row: its worker, or when the next one is due."""

    worker: Worker | None = None
    due: float = 0.0
    failures: int = 0  # deaths in a row of workers that had not lived


@dataclass
class Supervisor:
    settings: Settings
    listeners: Sequence[socket.socket]
    on_ready: Callable[[], None]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    places: list[Place] = field(default_factory=list)
    serving: bool = False  # all workers have been ready once
    ending: float | None = None  # when patience ends
    exit_code: int = 0
    health_listeners: Sequence[socket.socket] = ()
    pixels: Sequence[Processes] = ()  # for quick work and for long work
    scrub: ScrubProcess | None = None

    def run(self) -> int:
        """Until told to end, or until workers cannot start; returns the exit code."""
        self.places = [Place() for _ in range(worker_count(self.settings))]
        limits, count = pixel_limits(self.settings), pixel_processes(self.settings)
        quick, slow = (
            Processes(count, each, self.selector, pixel_process_died)
            for each in (limits, slow_limits(limits))
        )
        self.pixels = quick, slow
        self.scrub = ScrubProcess(self.settings, self.selector)
        with wake_up_pipe(self.selector), contextlib.closing(quick), contextlib.closing(slow):
            while self.ending is None or any(place.worker for place in self.places):
                self._start_due()
                began, patience = time.monotonic(), self._patience()
                for key, _ in self.selector.select(patience):
                    key.data() if callable(key.data) else self._heard(key.data, key.fd)
                if patience is not None and time.monotonic() - began > patience + STOPPED:
                    self._forgive()
                self._end_hanging()
                self._kill_late()
        self.selector.close()
        return self.exit_code

    # Starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in self.places:
            if self.ending is None and place.worker is None and place.due <= now:
                place.worker = self._start()
                self.selector.register(place.worker.status, selectors.EVENT_READ, place)
        if self.scrub and self.serving and self.ending is None:
            self.scrub.start_if_due()

    def _start(self) -> Worker:
        status, their_status = os.pipe()
        sockets = [("--listen", found.fileno()) for found in self.listeners]
        sockets += [("--health", found.fileno()) for found in self.health_listeners]
        command = [sys.executable, "-m", "streamsrv.server", "--status", str(their_status)]
        command += [word for flag, descriptor in sockets for word in (flag, str(descriptor))]
        for each in self.pixels:
            command += ["--pixels", each.entrance.text]
        pixels = [descriptor for each in self.pixels for descriptor in each.entrance.descriptors]
        passed = (*(descriptor for _, descriptor in sockets), *pixels, their_status)
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=passed)
        finally:
            os.close(their_status)
        assert process.stdin is not None
        try:
            process.stdin.write(config.to_json(self.settings).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; the status pipe says so
        return Worker(process, status, time.monotonic())

    # Listening

    def _heard(self, place: Place | None, descriptor: int) -> None:
        received = os.read(descriptor, 64)
        if place is None:
            self._signalled(received)
        elif received:
            self._lives(place)
        else:
            self._died(place)

    def _lives(self, place: Place) -> None:
        assert place.worker is not None
        place.worker.heard = time.monotonic()
        if not place.worker.ready:
            self._became_ready(place.worker)

    def _became_ready(self, worker: Worker) -> None:
        worker.ready = True
        if not self.serving and all(each.worker and each.worker.ready for each in self.places):
            self.serving = True
            self.on_ready()

    def _died(self, place: Place) -> None:
        worker, place.worker = place.worker, None
        assert worker is not None
        self.selector.unregister(worker.status)
        os.close(worker.status)
        code = worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        if self.ending is not None:
            return
        lived = worker.ready and time.monotonic() - worker.started > LIVED
        place.failures = 0 if lived else place.failures + 1
        log.error("worker %d ended with %s", worker.process.pid, describe(code))
        hopeless = place.failures >= START_ATTEMPTS or (not worker.ready and code > 0)
        if hopeless and not self.serving:
            log.error("giving up: workers cannot start")
            self.exit_code = EXIT_FAILED
            self._end()
        else:
            pause = 0.0 if lived else min(FIRST_PAUSE * 2 ** (place.failures - 1), LONGEST_PAUSE)
            place.due = time.monotonic() + pause

    def _signalled(self, numbers: bytes) -> None:
        if any(number in ENDING for number in numbers):
            if self.ending is not None:  # told twice: at once
                self.ending = time.monotonic()
            else:
                self._end()

    # Hanging

    def _end_hanging(self) -> None:
        """Kills workers whose loop has not turned for too long, a moment after their stacks are in the
        log."""
        limit, now = self.settings.hang_timeout, time.monotonic()
        if not limit or self.ending is not None:
            return
        for worker in self._workers():
            if worker.kill_at is not None and worker.kill_at <= now:
                worker.process.kill()
            elif worker.kill_at is None and worker.ready and worker.heard + limit <= now:
                log.error("worker %d hangs: it gave no sign of life for %g s", worker.process.pid, limit)
                worker.process.send_signal(DUMP)
                worker.kill_at = now + DUMP_TIME

    def _forgive(self) -> None:
        """This process was stopped: signs of life may wait in the pipes, and workers may have been stopped
        too."""
        for worker in self._workers():
            worker.heard = time.monotonic()

    # Ending

    def _end(self) -> None:
        """Nothing new comes in; what is being answered is finished."""
        self.ending = time.monotonic() + self.settings.drain_timeout + GRACE
        for listener in self.listeners:
            listener.close()
        if self.scrub:
            self.scrub.close()
        for worker in self._workers():
            worker.process.send_signal(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self.ending is not None and time.monotonic() >= self.ending:
            for worker in self._workers():
                worker.process.kill()

    def _workers(self) -> Iterable[Worker]:
        return [place.worker for place in self.places if place.worker is not None]

    def _patience(self) -> float | None:
        """Until something is due."""
        if self.ending is not None:
            return max(0.05, self.ending - time.monotonic())
        due = [place.due for place in self.places if place.worker is None]
        if limit := self.settings.hang_timeout:
            due += [worker.kill_at or worker.heard + limit for worker in self._workers() if worker.ready]
        due += self.scrub.waits() if self.scrub and self.serving else []
        return max(0.0, min(due) - time.monotonic()) if due else None


class wake_up_pipe:
    """Turns signals into bytes on a pipe that the selector hears."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def __enter__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former = {number: signal.signal(number, lambda *_: None) for number in ENDING}
        self._former[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._wakeup = signal.set_wakeup_fd(self._write)
        self._selector.register(self._read, selectors.EVENT_READ, None)

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._selector.unregister(self._read)
        os.close(self._read)
        os.close(self._write)


def pixel_process_died(pid: int, code: int) -> None:
    log.warning("pixel process %d ended with %s", pid, describe(code))


def describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    number = signal.Signals(-code)
    return f"signal {number.name}" + (f": {REASONS[number]}" if number in REASONS else "")


def worker_count(settings: Settings) -> int:
    return settings.workers or len(os.sched_getaffinity(0))


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of the host, all on one port; raises CannotServe."""
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            bound = (address[0], listeners[0].getsockname()[1] if listeners else port)
            listeners.append(socket.create_server(bound, family=family, backlog=BACKLOG))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise CannotServe(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listeners


def origin_of(settings: Settings, listeners: Sequence[socket.socket]) -> str:
    """How a client on this machine reaches the server."""
    host, port = listeners[0].getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return settings.public_url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(settings: Settings, say: Callable[[str], None] = print) -> int:
    """`streamsrv serve`: in the foreground until SIGTERM or Ctrl-C. Raises StoreLocked or CannotServe."""
    if not is_loopback(settings.host) and not settings.allow_remote_without_authentication:
        raise CannotServe(
            f"{settings.host} can be reached by others, and there is no authentication: everyone could read "
            "and delete every study. If that is meant, say --allow-remote-without-authentication"
        )
    protect()
    for remark in remarks():
        log.warning(remark)
    with Store.lock(Path(settings.data)):
        listeners = bind(settings.host, settings.port)
        origin = origin_of(settings, listeners)

        def announce() -> None:
            say(f"streamsrv {__version__} serves {origin}/v2 with {worker_count(settings)} workers")
            say(f"the studies lie in {Path(settings.data).resolve()}")
            say(f"try: curl '{origin}/v2/studies'")

        try:
            health = bind("127.0.0.1", settings.health_port) if settings.health_port else []
            return Supervisor(settings, listeners, announce, health_listeners=health).run()
        finally:
            for listener in listeners:
                listener.close()

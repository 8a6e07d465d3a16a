"""A task that a pool has sent: its Future, and its two pipes (messages.py).

A process that was taken over may lie. So the kernel answers each question about the process that took a task:
- the process has begun if bytes are missing in IN;
- it holds the lock on byte WORKING of OUT, and F_GETLK of fcntl(2) names the holder;
- it has ended if OUT has no writer any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from framecodecs.errors import DeadlineExceeded, PoolError, Unavailable, WorkerCrashed
from framecodecs.pool.messages import ANSWERING, HEAD, WORKING, AnswerReader, Result, TaskMessage
from framecodecs.pool.pipes import WITHOUT_WAITING, Frame, PipeWriter, make_room, unread_in
from framecodecs.pool.processes import PoolLimits

ATTEMPTS = 3
NONE = -1  # no descriptor
EARLY = 0.05  # seconds by which a timer of the kernel may seem early
PIPE = os.O_CLOEXEC | os.O_NONBLOCK
SOCKET, RIGHTS, AT_ONCE = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS), int(socket.MSG_DONTWAIT)
GRACE = 2.0  # seconds after its patience in which a process ends by its own timer.
HIDDEN = 10.0  # seconds in which a task has to begin after a later one has begun.
LOCK_PATIENCE = 20  # milliseconds; a process writes an answer that fits into the pipe in microseconds
_LOCK = struct.Struct("hhqqi4x")  # struct flock, on 64 bits: type, whence, start, length, process


class SubmittedTask(Future[list[Result]]):
    """`cancel` withdraws it while no process has begun it, and calls `on_cancel`. `epoll` waits for its
    answer, which has at most `size` bytes of frames. `ahead` marks a task that no request waits for.
    Raises OSError and FrameUnread."""

    descriptor = _theirs = _input = filling = NONE
    number = 0  # in the order of the queue
    _overtaken: float | None = None  # when a later task of the pool was first seen to have begun
    _closed = False
    _attempts = 1
    _begun_at: float | None = None
    _stored: Sequence[int] = ()

    def __init__(
        self,
        message: TaskMessage,
        frames: Sequence[Frame],
        epoll: select.epoll,
        on_cancel: Callable[[SubmittedTask], object],
        ahead: bool,
        size: int,
    ) -> None:
        super().__init__()
        self._lock = threading.Lock()  # of the descriptors
        self.epoll = epoll
        self.ahead = ahead
        self.deadline, self.patience = message.deadline, message.patience
        self.sent = self._not_begun_at = time.monotonic()
        self._on_cancel = on_cancel
        self._expected = max(len(frames), 1), size
        self._answer = AnswerReader(*self._expected)
        text = message.to_text()
        self._head = HEAD.pack(len(text))
        self._outgoing = PipeWriter((text, *frames))
        try:
            self.descriptor, self._theirs = os.pipe2(PIPE)
            self._input, self.filling = os.pipe2(os.O_CLOEXEC)
            make_room(self.filling, len(text) + sum(message.lengths))
            if not self.fill():
                # The caller may close the files as soon as the task is submitted.
                self._stored = self._outgoing.keep_open()
        except BaseException:
            self.close()
            raise

    def fill(self) -> bool:
        """Writes more of the message into IN, and returns whether that was the rest. Raises FrameUnread."""
        with self._lock:
            if self._closed or self.filling == NONE:
                return True
            if not self._outgoing.send(self.filling, WITHOUT_WAITING):
                return False
            for descriptor in (self.filling, *self._stored):
                os.close(descriptor)
            self.filling, self._stored = NONE, ()
            return True

    def may_be_resent(self) -> bool:
        """Returns whether the process that took it has ended before it began it: another one caused that."""
        return self._attempts < ATTEMPTS and self.begun() is None

    def reconnect(self) -> None:
        """Makes a new OUT, so that it can be sent again. IN is unchanged. Raises Unavailable, closed."""
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = NONE
        try:
            self.descriptor, self._theirs = os.pipe2(PIPE)
            self._answer = AnswerReader(*self._expected)
            self._attempts += 1
        except OSError as error:
            self.close()
            raise Unavailable(f"there is no pipe for it: {error.strerror}") from error

    def send(self, queue: socket.socket) -> None:
        """Raises OSError; BlockingIOError if the queue is full."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "it was cancelled")
            theirs, self._theirs = self._theirs, NONE  # the answer may be there before it is closed here
            rights = array("i", (self._input, theirs))
            try:
                queue.sendmsg((self._head,), ((SOCKET, RIGHTS, rights),), AT_ONCE)
            finally:
                os.close(theirs)

    def begun(self) -> float | None:
        """Returns a time shortly before a process began it; None if none did, or if it has been answered."""
        with self._lock:
            return None if self._closed else self._begun()

    def _begun(self) -> float | None:
        if self._begun_at is None:
            now = time.monotonic()
            if unread_in(self._input) < self._outgoing.sent:
                self._begun_at = self._not_begun_at
            else:
                self._not_begun_at = now
        return self._begun_at

    def running(self) -> bool:
        return self.begun() is not None and not self.done()

    def cancel(self) -> bool:
        if self.running() or not super().cancel():
            return False
        self._on_cancel(self)
        return True

    def received(self) -> list[Result] | None:
        """Returns the answer, or None while parts of it are missing. Raises EOFError if it can be sent again,
        and FrameCodecError if there is no result."""
        try:
            with self._lock:
                return None if self._closed else self._answer.read(self.descriptor)
        except EOFError:
            if self.may_be_resent():
                raise
            raise self._failure() from None
        except OSError as error:
            raise WorkerCrashed(f"the worker's answer cannot be read: {error.strerror}") from error

    def _failure(self) -> PoolError:
        """Returns the error of a task whose process has ended without an answer."""
        begun = self.begun()
        if begun is None:
            return Unavailable("the processes ended before one of them had begun this")
        took = time.monotonic() - begun
        if took > self.patience - EARLY:
            return self._late()
        if took > self.deadline - EARLY:  # a crash so late looks the same
            return DeadlineExceeded(f"it took more than {self.deadline:g} s of processor time")
        return WorkerCrashed("the process that worked on it died")

    def overdue(
        self, now: float, latest_begun: int, last_alive: float, limits: PoolLimits
    ) -> PoolError | None:
        """Returns the error of a task that has worked or waited too long. `latest_begun` is the number of a
        task of the same pool, `last_alive` the time at which a process was seen. The queue delivers tasks in
        their order, so a process has taken each task that was overtaken."""
        begun = self.begun()
        if begun is not None:
            return self._late() if now > begun + self.patience + GRACE else None
        if self.number < latest_begun:
            self._overtaken = self._overtaken or now
        if self._overtaken is not None and now > self._overtaken + HIDDEN:
            return WorkerCrashed("a process has taken this and does not work on it")
        if now > max(self.sent, last_alive) + limits.starting:
            return Unavailable("no process could be started")
        return None

    def _late(self) -> PoolError:
        return DeadlineExceeded(f"it took more than {self.patience:g} s")

    def kill(self) -> bool:
        """Ends the process that works on it, and no other: the process cannot answer and take another task
        meanwhile. Returns False if a process works on it that hides from this."""
        with self._lock, contextlib.suppress(OSError):
            if self._closed:
                return True
            if self._begun() is None:
                return self._overtaken is None
            self._prevent_answer()
            try:
                return self._kill() or not self._is_unanswered()
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, ANSWERING)
        return True

    def _prevent_answer(self) -> None:
        for _ in range(LOCK_PATIENCE):
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, ANSWERING)
            except OSError:
                time.sleep(0.001)
            else:
                return

    def _kill(self) -> bool:
        holder = self._holder()
        if not holder:
            return False
        process = os.pidfd_open(holder)
        try:
            if self._holder() == holder:  # so the descriptor is of this process, not of a later one
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
        return True

    def _holder(self) -> int:
        """Returns the id of the process that holds the lock, by the kernel; 0 if there is none."""
        request = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, WORKING, 1, 0)
        kind, _, _, _, process = _LOCK.unpack(fcntl.fcntl(self.descriptor, fcntl.F_GETLK, request))
        return 0 if kind == fcntl.F_UNLCK else int(process)

    def _is_unanswered(self) -> bool:
        answer = select.poll()
        answer.register(self.descriptor, select.POLLIN)
        return not answer.poll(0)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for descriptor in (self.descriptor, self._theirs, self._input, self.filling, *self._stored):
                if descriptor != NONE:
                    os.close(descriptor)
            self._theirs = self._input = self.filling = NONE
            self._stored = ()

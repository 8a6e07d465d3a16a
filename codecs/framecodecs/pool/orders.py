"""One order of a pool that was sent: its result to come, and its two pipes (wireform.py).

The kernel tells everything about the process that took it, because a process that was taken over may lie:
- it has begun if bytes are missing in IN;
- it is the one that holds the lock on byte WORKING of OUT (F_GETLK of fcntl(2) names the process);
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
from framecodecs.pool.pipes import WITHOUT_WAITING, Frame, PipeWriter, make_room, unread_in
from framecodecs.pool.processes import PoolLimits
from framecodecs.pool.wireform import ANSWERING, HEAD, WORKING, AnswerReader, Order, Result, text_of

TIMES = 3
NONE = -1  # no descriptor
EARLY = 0.05  # seconds by which a timer of the kernel may seem to be early
PIPE = os.O_CLOEXEC | os.O_NONBLOCK
SOCKET, RIGHTS, AT_ONCE = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS), int(socket.MSG_DONTWAIT)
GRACE = 2.0  # seconds after its patience that a process has to end by its own timer
HIDDEN = 10.0  # seconds after a later order has begun that an earlier one has to begin
TAKEN_AND_LEFT = "a process has taken this and does not work on it"
LOCK_PATIENCE = 20  # milliseconds; an answer that fits into the pipe takes microseconds
_LOCK = struct.Struct("hhqqi4x")  # struct flock, on 64 bits: type, whence, start, length, process


class Submitted(Future[list[Result]]):
    """`cancel` takes it back as long as no process has begun it, and calls `taken_back`. `told` waits for its
    answer; `in_advance` says that no request waits for it so far; `most` bytes may come back. Raises OSError,
    FrameUnread."""

    descriptor = _theirs = _input = filling = NONE
    number = 0  # of the pool, in the order in which the queue has them
    _overtaken: float | None = None  # when it was first seen that a later one had begun
    _closed = False
    _sent_times = 1
    _begun_at: float | None = None
    _stored: Sequence[int] = ()

    def __init__(
        self,
        order: Order,
        frames: Sequence[Frame],
        told: select.epoll,
        taken_back: Callable[[Submitted], object],
        in_advance: bool,
        most: int,
    ) -> None:
        super().__init__()
        self._lock = threading.Lock()  # of the descriptors
        self.told = told
        self.in_advance = in_advance
        self.deadline, self.patience = order.deadline, order.patience
        self.sent = self._not_begun_at = time.monotonic()
        self._taken_back = taken_back
        self._expected = max(len(frames), 1), most
        self._answer = AnswerReader(*self._expected)
        text = text_of(order)
        self._message = HEAD.pack(len(text))
        self._outgoing = PipeWriter((text, *frames))
        try:
            self.descriptor, self._theirs = os.pipe2(PIPE)
            self._input, self.filling = os.pipe2(os.O_CLOEXEC)
            make_room(self.filling, len(text) + sum(order.lengths))
            if not self.fill():
                # The caller may close the files as soon as the order is sent.
                self._stored = self._outgoing.keep_open()
        except BaseException:
            self.close()
            raise

    def fill(self) -> bool:
        """Puts more of the order into IN; whether all of it is there. Raises FrameUnread."""
        with self._lock:
            if self._closed or self.filling == NONE:
                return True
            if not self._outgoing.send(self.filling, WITHOUT_WAITING):
                return False
            self._filled()
            return True

    def _filled(self) -> None:
        for descriptor in (self.filling, *self._stored):
            os.close(descriptor)
        self.filling, self._stored = NONE, ()

    def may_be_sent_anew(self) -> bool:
        """Whether the process that had taken it has ended before it had begun it, which is not its fault."""
        return self._sent_times < TIMES and self.begun() is None

    def connect_anew(self) -> None:
        """No process has the other end of OUT any more, and IN is as it was. It can be sent once more then.
        Raises Unavailable, closed."""
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = NONE
        try:
            self.descriptor, self._theirs = os.pipe2(PIPE)
            self._answer = AnswerReader(*self._expected)
            self._sent_times += 1
        except OSError as error:
            self.close()
            raise Unavailable(f"there is no pipe for it: {error.strerror}") from error

    def send(self, queue: socket.socket) -> None:
        """Raises OSError; BlockingIOError if there is no room."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "it was taken back")
            theirs, self._theirs = self._theirs, NONE  # the answer may be there before it is closed here
            rights = array("i", (self._input, theirs))
            try:
                queue.sendmsg((self._message,), ((SOCKET, RIGHTS, rights),), AT_ONCE)
            finally:
                os.close(theirs)

    def begun(self) -> float | None:
        """When a process began it, or shortly before; None if none did, or if it has been answered."""
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
        self._taken_back(self)
        return True

    def received(self) -> list[Result] | None:
        """The answer; None as long as parts of it are missing. Raises EOFError if the process has ended
        before it had begun this, so that it can be sent once more; FrameCodecError if there is no result."""
        try:
            with self._lock:
                return None if self._closed else self._answer.read(self.descriptor)
        except EOFError:
            if self.may_be_sent_anew():
                raise
            raise self.why_not() from None
        except OSError as error:
            raise WorkerCrashed(f"the worker's answer cannot be read: {error.strerror}") from error

    def why_not(self) -> PoolError:
        """No process has the other end any more, and no answer has come."""
        begun = self.begun()
        if begun is None:
            return Unavailable("the processes ended before one of them had begun this")
        took = time.monotonic() - begun
        if took > self.patience - EARLY:
            return self.too_late()
        if took > self.deadline - EARLY:  # a crash so late is not told apart
            return DeadlineExceeded(f"it took more than {self.deadline:g} s of processor time")
        return WorkerCrashed("the process that worked on it died")

    def overdue(
        self, now: float, latest_begun: int, last_there: float, limits: PoolLimits
    ) -> PoolError | None:
        """The error of an order that has worked or waited too long. `latest_begun` is the number of an order
        of the same pool, `last_there` when there was a process. The queue hands orders out in turn, so one
        that was overtaken was taken."""
        begun = self.begun()
        if begun is not None:
            return self.too_late() if now > begun + self.patience + GRACE else None
        if self.number < latest_begun:
            self._overtaken = self._overtaken or now
        if self._overtaken is not None and now > self._overtaken + HIDDEN:
            return WorkerCrashed(TAKEN_AND_LEFT)
        if now > max(self.sent, last_there) + limits.starting:
            return Unavailable("no process could be started")
        return None

    def too_late(self) -> PoolError:
        return DeadlineExceeded(f"it took more than {self.patience:g} s")

    def kill(self) -> bool:
        """Ends the process that works on it, and no other: it cannot answer and take another order meanwhile.
        False if a process works on it that hides from this."""
        with self._lock, contextlib.suppress(OSError):
            if self._closed:
                return True
            if self._begun() is None:
                return self._overtaken is None
            self._keep_from_answering()
            try:
                return self._kill() or not self._is_unanswered()
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, ANSWERING)
        return True

    def _keep_from_answering(self) -> None:
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
            if self._holder() == holder:  # still, so it is the one that was opened
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
        return True

    def _holder(self) -> int:
        """The process that holds the lock, as the kernel says; 0 if there is none."""
        asked = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, WORKING, 1, 0)
        kind, _, _, _, process = _LOCK.unpack(fcntl.fcntl(self.descriptor, fcntl.F_GETLK, asked))
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

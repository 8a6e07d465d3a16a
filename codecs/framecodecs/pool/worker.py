"""A pixel process: `python -m framecodecs.pool.worker QUEUE PAGE MEMORY LIFETIME [MODULE ...] --fonts
[FONT ...]`.

It loads all libraries, the modules and the fonts, and drops its rights (confinement.py). Libraries load parts
of themselves at their first use, and a confined process cannot open a file. So `prepare` uses each transfer
syntax and each picture format once. The self-checks of charls.py and libjpeg.py run then, too.

Only then it takes tasks from the queue, one at a time, until the queue ends or it has done LIFETIME of them.
C code that hangs or grows cannot be stopped from Python, so the kernel does: two timers, of processor time
and of time, end the process at each deadline. The limit of its address space is the size at the start plus
MEMORY bytes.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import signal
import socket
import sys
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from framecodecs import registry
from framecodecs.errors import FrameCodecError, MemoryExceeded
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import LIBRARIES, available
from framecodecs.pool.confinement import confine
from framecodecs.pool.messages import (
    ANSWERING,
    HEAD,
    WORKING,
    FrameBatch,
    Result,
    TaskMessage,
    answer_of,
    answer_of_error,
)
from framecodecs.pool.pipes import MOST_ROOM, PipeWriter, make_room, receive_whole
from framecodecs.pool.processes import BUSY, FONTS, IDLE, StatusPages
from framecodecs.rendering import pictures
from framecodecs.rendering.lettering import Notes, load_faces
from framecodecs.rendering.pictures import PictureRequest, Viewport

DESCRIPTORS = 2  # with a task: the read end of IN, the write end of OUT
ROOM = socket.CMSG_SPACE(DESCRIPTORS * array("i").itemsize)
MOST_LENT = 2  # answers of which some may be unread
NATIVE = "1.2.840.10008.1.2.1"
SIDE = 16
SCRIPTS = "a я ש ع ท 王"  # letters of several scripts, so that a shaper loads its tables
KINDS = (
    FrameInfo(SIDE, SIDE),
    FrameInfo(SIDE, SIDE, 1, 16, 12, 11),
    FrameInfo(SIDE, SIDE, 1, 16, 16, 15, 1),
    FrameInfo(SIDE, SIDE, 3, photometric_interpretation="RGB"),
)


class TakenTask:
    """A task that this process has taken from the queue."""

    pieces: Sequence[bytes] = ()  # of the answer; they stay unchanged until the pool has read them

    def __init__(self, head: bytes, descriptors: Sequence[int]) -> None:
        (self._length,) = HEAD.unpack(head)
        self._input, self.output = descriptors
        self._hang_up = select.poll()
        self._hang_up.register(self.output, 0)

    @classmethod
    def next(cls, queue: socket.socket) -> TakenTask | None:
        """Waits for a task of any pool. Returns None at the end of the queue."""
        head, ancillary, _, _ = queue.recvmsg(HEAD.size, ROOM)
        descriptors = array("i", ancillary[0][2]) if ancillary else ()
        return cls(head, descriptors) if len(descriptors) == DESCRIPTORS else None

    @property
    def is_wanted(self) -> bool:
        """Whether the pool still waits for the answer, and has not read it."""
        return not self._hang_up.poll(0)

    def read(self) -> tuple[TaskMessage, FrameBatch]:
        """Raises EOFError if it is cancelled meanwhile."""
        fcntl.lockf(self.output, fcntl.LOCK_EX, 1, WORKING)
        message = TaskMessage.from_text(receive_whole(self._input, self._length))
        if message.deadline < message.patience:
            signal.setitimer(signal.ITIMER_PROF, message.deadline)
        signal.setitimer(signal.ITIMER_REAL, message.patience)
        batch = FrameBatch(receive_whole(self._input, length) for length in message.lengths)
        batch.cores = message.cores
        return message, batch

    def answer(self, text: bytes, frames: Sequence[bytes]) -> None:
        """The pool kills this process for a task only while WORKING is locked here and the pool has locked
        ANSWERING. So it never kills a process that has taken another task."""
        self.pieces = HEAD.pack(len(text)), text, *frames
        make_room(self.output, self.size)
        fcntl.lockf(self.output, fcntl.LOCK_EX, 1, ANSWERING)
        outgoing = PipeWriter(self.pieces, may_lend=True)
        with suppress(OSError):  # the pool does not wait for it any more
            while not outgoing.send(self.output):
                pass
        if not outgoing.lends:
            self.pieces = ()
        fcntl.lockf(self.output, fcntl.LOCK_UN, 2, WORKING)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    def wait_until_read(self) -> None:
        self._hang_up.poll()

    def close_input(self) -> None:
        os.close(self._input)

    def close(self) -> None:
        os.close(self.output)


class LentAnswers:
    """Answers whose memory is in pipes until the pool has read it."""

    def __init__(self) -> None:
        self._tasks: deque[TakenTask] = deque()

    def add(self, task: TakenTask) -> None:
        if not task.pieces:
            task.close()
            return
        self._tasks.append(task)
        if len(self._tasks) > MOST_LENT or task.size > MOST_ROOM:
            self._tasks[-1 if task.size > MOST_ROOM else 0].wait_until_read()
        while self._tasks and not self._tasks[0].is_wanted:
            self._tasks.popleft().close()


def silence_stderr() -> None:
    """Libraries write complaints about broken codestreams to stderr."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def perform(message: TaskMessage, batch: FrameBatch) -> Sequence[Result]:
    """Runs the work. Every exception becomes a FrameCodecError."""
    try:
        return message.work(batch, *message.arguments)
    except FrameCodecError:
        raise
    except MemoryError as error:
        raise MemoryExceeded("out of memory") from error
    except Exception as error:
        raise FrameCodecError(f"{type(error).__name__}: {str(error)[:200]}") from error


def answered(task: TakenTask) -> tuple[bytes, list[bytes]]:
    """Returns the text of the answer, and its frames. Raises EOFError if it is cancelled meanwhile."""
    try:
        results = perform(*task.read())
        return answer_of(results), [bytes(frame) for frame, _ in results]
    except FrameCodecError as error:
        return answer_of_error(error), []
    except MemoryError:
        return answer_of_error(MemoryExceeded("out of memory")), []
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)


def prepare(modules: Sequence[str] = (), fonts: Sequence[str] = ()) -> None:
    """Imports `modules` and all installed libraries, loads the fonts, and uses each library."""
    for module in modules:
        importlib.import_module(module)
    for package, library in LIBRARIES.items():
        if available(package):
            with suppress(ImportError):  # a task that needs it raises Unsupported
                importlib.import_module(library.module)
    with suppress(FrameCodecError):
        load_faces(fonts)
    for uid in registry.SYNTAXES:
        for info in KINDS:
            _use_syntax(uid, info)
    for media_type in pictures.FORMATS:
        for info in (KINDS[0], KINDS[-1]):
            _use_format(media_type, info, tuple(fonts))


def _use_syntax(uid: str, info: FrameInfo) -> None:
    with suppress(FrameCodecError):
        coded, now = registry.encode(bytes(info.frame_length), uid, info)
        registry.decode(coded, uid, now)
        for target in registry.SYNTAXES:
            if (uid, target) in registry.DIRECT:
                restored = registry.transcode(coded, uid, target, now)
                registry.transcode(restored[0], target, uid, restored[1])


def _use_format(media_type: str, info: FrameInfo, fonts: tuple[str, ...]) -> None:
    notes = Notes((SCRIPTS,), ("b",), fonts)
    request = PictureRequest(media_type=media_type, viewport=Viewport(64, 64), notes=notes)
    with suppress(FrameCodecError):
        profiled = replace(request, icc_profile=pictures.srgb_profile(), convert_to_srgb=True)
        for one in (request, profiled):
            pictures.rendered(bytes(info.frame_length), NATIVE, info, one)
        pictures.animated(bytes(info.frame_length), NATIVE, info, request)


def main(arguments: Sequence[str]) -> None:
    descriptor, page, memory, lifetime = map(int, arguments[:4])
    for ignored in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they reach the whole process group
        signal.signal(ignored, signal.SIG_IGN)
    for ended_by in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(ended_by, signal.SIG_DFL)
    at = arguments.index(FONTS)
    prepare(arguments[4:at], arguments[at + 1 :])
    status, queue, lent = StatusPages([page]), socket.socket(fileno=descriptor), LentAnswers()
    os.close(page)
    silence_stderr()
    confine(memory)
    status[0] = IDLE
    for number in range(1, lifetime + 1):
        if (task := TakenTask.next(queue)) is None:
            return
        status[0] = BUSY
        serve(task, status, number < lifetime)
        lent.add(task)


def serve(task: TakenTask, status: StatusPages, goes_on: bool) -> None:
    text, frames = None, list[bytes]()
    with suppress(EOFError):
        if task.is_wanted:
            text, frames = answered(task)
    task.close_input()
    if goes_on:
        status[0] = IDLE  # before the pool can know it
    if text is not None:
        task.answer(text, frames)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # exit handlers of libraries have been seen to hang; there is nothing left to write

"""Work for workers that goes wrong on purpose; imported by the worker processes."""

import ctypes
import os
import signal
import sys
import time

from framecodecs.errors import CodestreamError, Unsupported


def echo(frames, *arguments):
    return [(frame, None) for frame in frames]


def with_info(frames, info):
    return [(frame, info) for frame in frames]


def who(frames):
    return [(str(os.getpid()).encode(), None)]


def nap_and_say_who(frames, seconds):
    time.sleep(seconds)
    return who(frames)


def environment(frames):
    """The modules that a worker must not have: nothing of the server, and no threads of numpy."""
    return [(",".join(sorted(sys.modules)).encode(), None)]


def crash(frames):
    ctypes.string_at(0)


def abort(frames):
    os.abort()


def leave(frames):
    os._exit(3)


def hang(frames):
    """In C, holding the interpreter's lock, as a library that loops does."""
    ctypes.PyDLL(None).poll(None, 0, -1)


def spin(frames):
    while True:
        pass


def nap(frames, seconds):
    time.sleep(seconds)
    return echo(frames)


def grow(frames, size):
    return [(b"x" * size, None)]


def grow_in_c(frames, size):
    memory = ctypes.CDLL(None).malloc
    memory.restype = ctypes.c_void_p
    return [(b"given" if memory(ctypes.c_size_t(size)) else b"refused", None)]


def refuse(frames):
    raise CodestreamError("in words")


def hint(frames):
    raise Unsupported("no library", "pip install it")


def surprise(frames):
    raise KeyError("unexpected")


def nonsense(frames):
    return "no list of results"


def noisy(frames):
    os.write(1, b"to stdout\n")
    os.write(2, b"to stderr\n")
    return echo(frames)


def ignore_terminate(frames):
    os.kill(os.getpid(), signal.SIGTERM)
    return echo(frames)


def write_rubbish(frames):
    """Writes bytes as a worker might that a codestream has taken over."""
    for fd in range(3, 32):
        try:
            os.write(fd, b"\0\0\0\x08rubbish!")
        except OSError:
            continue
    os._exit(0)

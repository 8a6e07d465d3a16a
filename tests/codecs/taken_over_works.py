"""Pixel processes that were taken over, and act against the pool; imported by these processes."""

import fcntl
import gc
import mmap
import os
import socket
import sys
import time

from framecodecs.pool.messages import ANSWERING, WORKING


def descriptors():
    """Those of the queue and of the order's OUT, as the worker has them."""
    frame = sys._getframe()
    while "task" not in frame.f_locals or "queue" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["queue"], frame.f_locals["task"].output


def hide(frames, seconds):
    """Works on, without the lock by which the pool finds it."""
    _, output = descriptors()
    fcntl.lockf(output, fcntl.LOCK_UN, 2, WORKING)
    time.sleep(seconds)
    return []


def refuse_to_be_killed(frames, seconds):
    """Holds the lock that keeps the pool from killing a process that may have another order."""
    _, output = descriptors()
    fcntl.lockf(output, fcntl.LOCK_EX, 1, ANSWERING)
    time.sleep(seconds)
    return []


def steal(frames, seconds):
    """Takes the next order as well, and does nothing with it."""
    queue, _ = descriptors()
    stolen = queue.recvmsg(100, socket.CMSG_SPACE(8))
    time.sleep(seconds)
    return [(b"stolen" if stolen[1] else b"", None)]


def lie(frames, state):
    """Says in its status page that it is absent, starting, idle or busy."""
    for found in gc.get_objects():
        if isinstance(found, mmap.mmap):
            found[:] = state
    return [(str(os.getpid()).encode(), None)]

"""Runs a verb in a child process, so that the parent can report its death by SIGBUS.

The index is a mapped file. If the disk cannot read a page of it, the kernel sends SIGBUS, which Python code
cannot catch. The kernel kills the child when the parent dies (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGTERM, signal.SIGHUP)


def guarded(run: Callable[[], int], complain: Callable[[], int]) -> int:
    """Returns the exit code of `run`, or of `complain` if SIGBUS ends it. Another signal also ends this
    process. Call it before the process has threads, locks or an open index."""
    parent = os.getpid()
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *FORWARDED)}
    child = os.fork()
    if child == 0:
        _restore(former)
        _run_in_child(run, parent)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    _restore(former)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    if os.WTERMSIG(status) == signal.SIGBUS:
        return complain()
    os.kill(os.getpid(), os.WTERMSIG(status))
    return 128 + os.WTERMSIG(status)  # the signal is blocked


def _run_in_child(run: Callable[[], int], parent: int) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() == parent:
            code = run()
            sys.stdout.flush()
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)

"""Runs a verb in a child process, so that its death by a signal ends with a sentence too.

The index is mapped. If the disk cannot give a page of it, the kernel sends SIGBUS, and no Python code can
catch that. The child dies with its parent (PR_SET_PDEATHSIG, prctl(2)).
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
    """The exit code of `run`, or of `complain` if SIGBUS ends it. Another signal ends this process as well.
    Called before the process has threads, locks or an open index."""
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
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)

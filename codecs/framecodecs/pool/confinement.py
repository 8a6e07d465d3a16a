"""The rights that a process drops before it decodes foreign bytes.

A hostile codestream can take over a decoder. So the process keeps memory, threads of its own, and the
descriptors that it holds. Without any privilege it drops the rest:
- root, all groups and all capabilities;
- new privileges by exec (PR_SET_NO_NEW_PRIVS), and access by debuggers (PR_SET_DUMPABLE);
- every path, TCP, abstract sockets and signals to others (Landlock, as far as the kernel offers it);
- all system calls but some forty (seccomp.py).

If the kernel lacks one of them, the others still hold. `lacking` lists the missing ones.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from contextlib import suppress

from framecodecs.pool import seccomp
from framecodecs.pool.seccomp import LIBC

UNPRIVILEGED = 65534  # the user and group that own nothing on every usual system
DESCRIPTORS = 32  # a process has about ten
THREADS = 4096  # beyond the tasks that exist; the kernel counts those of all processes of the user
# linux/prctl.h
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 4, 38, 47, 4
# linux/landlock.h; the numbers of the calls are the same on all architectures
CREATE_RULESET, RESTRICT_SELF = 444, 446
ASK_VERSION = 1
# The versions of Landlock that added rights of a group, and the number of rights since then.
PATH_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
TCP_RIGHTS = ((4, 2),)  # bind, connect
SCOPES = ((6, 2),)  # abstract sockets, signals
CAPABILITY_VERSION = 0x20080522  # linux/capability.h


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("paths", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def confine(memory: int) -> None:
    """Drops everything, for good. `memory` is bytes of address space beyond those in use. A part that the
    kernel refuses is left out. Call it with one thread, when all libraries are loaded."""
    parts: tuple[Callable[[], object], ...] = (
        lambda: _limit_resources(memory),
        _drop_root,
        _drop_capabilities,
        hide,
        lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1),
        _restrict_paths,
        seccomp.install,
    )
    for part in parts:
        with suppress(OSError):
            part()


def lacking() -> list[str]:
    """Returns the parts that this kernel does not offer, each as the end of a sentence."""
    version, found = landlock_version(), []
    if version < 1:
        found.append("without Landlock: the kernel does not offer it")
    elif version < SCOPES[0][0]:
        found.append(f"with version {version} of Landlock, which does not cover TCP and signals")
    if not seccomp.is_available():
        found.append("without a system call filter: the kernel refuses it, or the architecture is not known")
    return found


def hide() -> None:
    """From now on only root can trace this process or read its memory. It leaves no core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(PR_SET_DUMPABLE, 0)


def landlock_version() -> int:
    """Returns 0 if there is none."""
    version: int = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)
    return max(0, version)


def _limit_resources(memory: int) -> None:
    with open("/proc/self/statm", "rb") as statm:
        have = int(statm.read().split()[0]) * resource.getpagesize()
    with open("/proc/loadavg", "rb") as loadavg:
        tasks = int(loadavg.read().split()[3].partition(b"/")[2])
    for limit, most in (
        (resource.RLIMIT_AS, have + memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_NPROC, tasks + THREADS),
    ):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _drop_root() -> None:
    if os.geteuid() == 0:
        with suppress(OSError):
            os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)


def _drop_capabilities() -> None:
    with suppress(OSError):
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, none = _CapabilityHeader(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _check(LIBC.capset(ctypes.byref(header), ctypes.byref(none)))


def _restrict_paths() -> None:
    """Installs a Landlock ruleset that handles every right and grants none (landlock(7))."""
    version = landlock_version()
    handled = [_all_rights(version, rights) for rights in (PATH_RIGHTS, TCP_RIGHTS, SCOPES)]
    rules = _Ruleset(*handled)
    size = 8 * max(1, sum(map(bool, handled)))  # an older kernel knows fewer fields
    ruleset = _check(LIBC.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0))
    try:
        _check(LIBC.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _all_rights(version: int, rights: tuple[tuple[int, int], ...]) -> int:
    return (1 << max((count for since, count in rights if version >= since), default=0)) - 1


def _prctl(option: int, value: int) -> None:
    none = ctypes.c_ulong(0)
    _check(LIBC.prctl(option, ctypes.c_ulong(value), none, none, none))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

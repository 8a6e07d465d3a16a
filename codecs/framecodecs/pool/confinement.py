"""The rights that a process drops before it decodes foreign bytes.

A hostile codestream can take over a decoder. So the process keeps memory, threads of its own, and the
descriptors that it holds. Without any privilege it drops the rest:
- root, all groups and all capabilities;
- new privileges by exec (PR_SET_NO_NEW_PRIVS), and access by debuggers (PR_SET_DUMPABLE);
- every path, TCP, abstract sockets and signals to others (Landlock, as far as the kernel offers it);
- all system calls but some forty (seccomp(2), Linux 3.5 or later).

If the kernel lacks one of them, the others still hold. `lacking` lists the missing ones.

The filter lists allowed calls: memory, threads, clocks, signals to itself, and the descriptors that the
process holds. Every other call fails with EPERM, also one in the numbering of another architecture.
clone3 fails with ENOSYS, because seccomp cannot see its flags and glibc then uses clone.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from errno import ENOSYS, EPERM
from typing import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
F_SETPIPE_SZ = 1031  # linux/fcntl.h

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
        install_filter,
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
    if not filter_is_available():
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


# The filter of system calls

# linux/seccomp.h
SET_MODE_FILTER, GET_ACTION_AVAILABLE = 1, 2
ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
# linux/filter.h
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
CLONE_THREAD = 0x10000
LOCKS_AND_FLAGS = (fcntl.F_GETFD, fcntl.F_GETFL, fcntl.F_SETLK, fcntl.F_SETLKW, F_SETPIPE_SZ)


class Architecture(NamedTuple):
    """`audit` is AUDIT_ARCH_* of linux/audit.h. The others are numbers of calls."""

    audit: int
    seccomp: int
    clone: int
    clone3: int
    fcntl: int
    kill: int
    tgkill: int
    mmap: int
    mprotect: int
    plain: tuple[int, ...]  # allowed with any arguments


# The plain calls, in the order of the rows below:
# read, write, close, poll or ppoll, brk, munmap, mremap, madvise, readv, writev, recvmsg, vmsplice;
# rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack, setitimer, futex, sched_yield, sched_getaffinity;
# nanosleep, clock_nanosleep, clock_gettime, clock_getres, getpid, gettid, exit, exit_group, restart_syscall;
# set_robust_list, rseq, getrandom.
# fmt: off
ARCHITECTURES = {
    "x86_64": Architecture(
        0xC000003E, 317, 56, 435, 72, 62, 234, 9, 10,
        (0, 1, 3, 7, 271, 12, 11, 25, 28, 19, 20, 47, 278,
         13, 14, 15, 131, 38, 202, 24, 204,
         35, 230, 228, 229, 39, 186, 60, 231, 219,
         273, 334, 318),
    ),
    "aarch64": Architecture(
        0xC00000B7, 277, 220, 435, 25, 129, 131, 222, 226,
        (63, 64, 57, 73, 214, 215, 216, 233, 65, 66, 212, 75,
         134, 135, 139, 132, 103, 98, 124, 123,
         101, 115, 113, 114, 172, 178, 93, 94, 128,
         99, 293, 278),
    ),
}
# fmt: on


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))


def architecture() -> Architecture | None:
    return ARCHITECTURES.get(platform.machine())


def filter_is_available() -> bool:
    """Returns whether this kernel filters system calls, and this module knows their numbers."""
    known, action = architecture(), ctypes.c_uint32(FAIL)
    return known is not None and not LIBC.syscall(
        known.seccomp, GET_ACTION_AVAILABLE, 0, ctypes.byref(action)
    )


def install_filter() -> None:
    """Filters the calls of all threads of this process, for good. Needs no_new_privs. Raises OSError."""
    known = architecture()
    if known is None:
        raise OSError(ENOSYS, f"the system calls of {platform.machine()} are not known")
    code = list(program(known, os.getpid()))
    filter_ = (Instruction * len(code))(*code)
    if LIBC.syscall(known.seccomp, SET_MODE_FILTER, ALL_THREADS, ctypes.byref(_Program(len(code), filter_))):
        raise OSError(ctypes.get_errno(), "the system call filter was refused")


def program(known: Architecture, pid: int) -> Iterator[Instruction]:
    """Yields the filter, as classic BPF."""
    allowed, refused = Instruction(RETURN, 0, 0, ALLOW), Instruction(RETURN, 0, 0, FAIL | EPERM)
    yield Instruction(LOAD, 0, 0, ARCHITECTURE_AT)
    yield Instruction(EQUAL, 1, 0, known.audit)
    yield refused
    yield Instruction(LOAD, 0, 0, NUMBER_AT)
    for number in known.plain:
        yield Instruction(EQUAL, 0, 1, number)
        yield allowed
    yield Instruction(EQUAL, 0, 1, known.clone3)
    yield Instruction(RETURN, 0, 0, FAIL | ENOSYS)
    # A thread of this process, never another process.
    yield from _checked(known.clone, 0, [Instruction(ANY_BIT, 0, 1, CLONE_THREAD), allowed])
    for number in (known.mmap, known.mprotect):
        yield from _checked(number, 2, [Instruction(ANY_BIT, 1, 0, mmap.PROT_EXEC), allowed])
    for number in (known.kill, known.tgkill):
        yield from _checked(number, 0, _one_of((pid,), allowed))
    # No F_SETOWN, by which a descriptor sends signals to any process of the same user.
    yield from _checked(known.fcntl, 1, _one_of(LOCKS_AND_FLAGS, allowed))
    yield refused


def _checked(number: int, argument: int, checks: Iterable[Instruction]) -> Iterator[Instruction]:
    """Yields the filter of the call `number`: it loads the low half of an argument and checks it."""
    body = [
        Instruction(LOAD, 0, 0, ARGUMENTS_AT + 8 * argument),
        *checks,
        Instruction(RETURN, 0, 0, FAIL | EPERM),
    ]
    yield Instruction(EQUAL, 0, len(body), number)
    yield from body


def _one_of(values: Iterable[int], allowed: Instruction) -> Iterator[Instruction]:
    for value in values:
        yield Instruction(EQUAL, 0, 1, value)
        yield allowed

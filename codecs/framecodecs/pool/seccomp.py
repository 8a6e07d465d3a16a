"""A system call filter for the process that decodes foreign bytes (seccomp(2), Linux 3.5 or later).

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
from collections.abc import Iterable, Iterator
from errno import ENOSYS, EPERM
from typing import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)

# linux/seccomp.h
SET_MODE_FILTER, GET_ACTION_AVAILABLE = 1, 2
ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
# linux/filter.h
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
CLONE_THREAD = 0x10000
F_SETPIPE_SZ = 1031
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


def is_available() -> bool:
    """Returns whether this kernel filters system calls, and this module knows their numbers."""
    known, action = architecture(), ctypes.c_uint32(FAIL)
    return known is not None and not LIBC.syscall(
        known.seccomp, GET_ACTION_AVAILABLE, 0, ctypes.byref(action)
    )


def install() -> None:
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

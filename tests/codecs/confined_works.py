"""Attempts of code in a pixel process after a decoder was taken over; imported by these processes.

Each attempt is a function that succeeds where nothing stops it. `attempt` answers with the error's name.
"""

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE, PTRACE_ATTACH = 4, 16
IOV = struct.Struct("PP")
# x86-64 and arm64 agree on these (asm-generic/unistd.h, since Linux 5.0)
PIDFD_SEND_SIGNAL, IO_URING_SETUP, PIDFD_OPEN, PIDFD_GETFD, OPENAT2, CLONE3 = 424, 425, 434, 438, 437, 435


def attempt(frames, name, *arguments):
    try:
        found = ATTEMPTS[name](*arguments)
    except OSError as error:
        return [(errno.errorcode[error.errno].encode(), None)]
    return [(f"done: {found!r}".encode(), None)]


def call(function, *arguments):
    """A call of libc, which raises OSError."""
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return "done"


def syscall(number, *arguments):
    return call(LIBC.syscall, number, *(ctypes.c_long(argument) for argument in arguments))


def by_number(x86_64, aarch64, *arguments):
    return syscall(x86_64 if os.uname().machine == "x86_64" else aarch64, *arguments)


def read_memory_of(pid):
    """process_vm_readv of one byte."""
    buffer = ctypes.create_string_buffer(16)
    iov = ctypes.create_string_buffer(IOV.pack(ctypes.addressof(buffer), 1))
    return call(LIBC.process_vm_readv, pid, iov, ctypes.c_ulong(1), iov, ctypes.c_ulong(1), ctypes.c_ulong(0))


def write_memory_of(pid):
    buffer = ctypes.create_string_buffer(16)
    iov = ctypes.create_string_buffer(IOV.pack(ctypes.addressof(buffer), 1))
    return call(
        LIBC.process_vm_writev, pid, iov, ctypes.c_ulong(1), iov, ctypes.c_ulong(1), ctypes.c_ulong(0)
    )


def clone3():
    arguments = ctypes.create_string_buffer(88)
    return syscall(CLONE3, ctypes.addressof(arguments), 88)


def openat2(path):
    name, how = ctypes.create_string_buffer(path.encode()), ctypes.create_string_buffer(24)
    return syscall(OPENAT2, -100, ctypes.addressof(name), ctypes.addressof(how), 24)


def set_no_files(pid):
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))


def executable_memory():
    return call(LIBC.mprotect, ctypes.c_void_p(page()), ctypes.c_size_t(4096), 7)


def page():
    address = LIBC.mmap
    address.restype = ctypes.c_void_p
    return address(None, ctypes.c_size_t(4096), 3, 0x22, -1, 0)


def own(descriptor, pid):
    """F_SETOWN: signals by way of a descriptor."""
    return call(LIBC.fcntl, descriptor, 8, pid)


def run_a_thread():
    said = []
    thread = threading.Thread(target=said.append, args=("ran",))
    thread.start()
    thread.join()
    return said[0]


ATTEMPTS = {
    "thread": run_a_thread,
    "open": lambda path: os.open(path, os.O_RDONLY),
    "open to write": lambda path: os.open(path, os.O_RDWR),
    "create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "openat2": openat2,
    "stat": os.stat,
    "list": os.listdir,
    "unlink": os.unlink,
    "change mode": lambda path: os.chmod(path, 0o777),
    "change directory": os.chdir,
    "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socketpair": socket.socketpair,
    "connect": lambda: by_number(42, 203, 3, 0, 0),
    "bind": lambda: by_number(49, 200, 3, 0, 0),
    "send a descriptor": lambda: by_number(46, 211, 3, 0, 0),
    "shut down the queue": lambda: by_number(48, 210, 3, 2),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "clone3": clone3,
    "ptrace": lambda pid: call(LIBC.ptrace, PTRACE_ATTACH, pid, None, None),
    "read memory": read_memory_of,
    "write memory": write_memory_of,
    "kill": lambda pid: os.kill(pid, signal.SIGTERM),
    "kill all": lambda: os.kill(-1, 0),
    "thread kill": lambda pid: by_number(200, 130, pid, 0),
    "queue a signal": lambda pid: by_number(129, 138, pid, 0, 0),
    "pidfd": lambda pid: syscall(PIDFD_OPEN, pid, 0),
    "pidfd signal": lambda: syscall(PIDFD_SEND_SIGNAL, 3, 0, 0, 0),
    "pidfd getfd": lambda: syscall(PIDFD_GETFD, 3, 0, 0),
    "own a descriptor": lambda pid: own(0, pid),
    "ioctl": lambda: by_number(16, 29, 0, 0x8901, 0),
    "duplicate": lambda: os.dup(0),
    "limits of another": set_no_files,
    "dumpable": lambda: call(LIBC.prctl, PR_SET_DUMPABLE, 1, 0, 0, 0),
    "become root": lambda: os.setuid(0),
    "namespace": lambda: by_number(272, 97, 0x10000000),
    "mount": lambda: by_number(165, 40, 0, 0, 0, 0, 0),
    "io_uring": lambda: syscall(IO_URING_SETUP, 1, 0),
    "bpf": lambda: by_number(321, 280, 0, 0, 0),
    "userfaultfd": lambda: by_number(323, 282, 0),
    "key": lambda: by_number(250, 219, 0, 0, 0, 0),
    "perf": lambda: by_number(298, 241, 0, 0, 0, 0, 0),
    "module": lambda: by_number(175, 105, 0, 0, 0),
    "memory file": lambda: os.memfd_create("x"),
    "splice": lambda: by_number(275, 76, 0, 0, 0, 0, 0, 0),
    "executable memory": executable_memory,
    "seccomp": lambda: by_number(317, 277, 0, 0, 0),
    "no such call": lambda: syscall(5000),
    "call of 32 bits": lambda: syscall(0x40000000 + 1, 1, 0, 0),
}

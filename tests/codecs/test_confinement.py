"""A decoder that is taken over owns nothing: each attempt runs inside a real pixel process."""

import errno
import fcntl
import mmap
import os
import re
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import confined_works
import pool_works
import pytest
from frame_makers import GREY_12, LITTLE, picture_like
from waiting import waited

from framecodecs import registry
from framecodecs.pool import confinement, messages
from framecodecs.pool.confinement import lacking
from framecodecs.pool.pool import FramePool, PoolLimits
from framecodecs.pool.processes import INHERITED, SETTINGS
from framecodecs.rendering.lettering import Notes
from framecodecs.rendering.pictures import FORMATS, PictureRequest

FILES = ("open", "open to write", "openat2", "stat", "unlink", "change mode")
FOLDERS = ("list", "change directory")
PROCESSES = (
    "ptrace",
    "read memory",
    "write memory",
    "kill",
    "thread kill",
    "queue a signal",
    "pidfd",
    "own a descriptor",
    "limits of another",
)
ALONE = [
    name
    for name in confined_works.ATTEMPTS
    if name not in (*FILES, *FOLDERS, *PROCESSES, "create", "clone3", "thread")
]


LIMITS = PoolLimits(modules=("confined_works", "pool_works"))


@pytest.fixture(scope="module")
def pool():
    with FramePool(1, LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def sibling():
    """The id of a pixel process of the same user."""
    with FramePool(1, LIMITS) as another:
        yield pid_of(another)


def pid_of(pool):
    return int(pool.submit(pool_works.who, []).result(30)[0][0])


def result_of(pool, name, *arguments):
    ((result, _),) = pool.submit(confined_works.attempt, [], name, *arguments).result(30)
    return result.decode()


def test_this_kernel_offers_everything():
    """Else the other tests of this file would say nothing."""
    assert lacking() == []


@pytest.mark.parametrize("name", ALONE)
def test_nothing_can_be_done_alone(pool, name):
    assert result_of(pool, name) == "EPERM"


@pytest.mark.parametrize("name", FILES)
def test_no_file_can_be_touched(pool, name, tmp_path):
    secret = tmp_path / "store.toml"
    secret.write_text("secret")
    secret.chmod(0o666)
    for path in (secret, "/etc/passwd", "/etc/shadow", f"/proc/{os.getpid()}/mem", "/proc/self/mem"):
        assert result_of(pool, name, str(path)) == "EPERM"
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("name", [*FOLDERS, "create"])
def test_no_folder_can_be_touched(pool, name, tmp_path):
    tmp_path.chmod(0o777)
    path = tmp_path / "made" if name == "create" else tmp_path
    assert result_of(pool, name, str(path)) == "EPERM"
    assert result_of(pool, "list", "/proc/self/fd") == "EPERM"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PROCESSES)
def test_no_other_process_can_be_touched(pool, sibling, name):
    for pid in (os.getpid(), os.getppid(), sibling, 1):
        assert result_of(pool, name, pid) == "EPERM"
    assert Path(f"/proc/{sibling}").exists()


def test_threads_can_be_made_and_processes_cannot(pool):
    """glibc makes them by clone where clone3 is missing."""
    assert result_of(pool, "clone3") == "ENOSYS"
    assert result_of(pool, "thread") == "done: 'ran'"
    assert result_of(pool, "fork") == "EPERM"


def status_of(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}


def assert_confined(pid):
    status = status_of(pid)
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == (["1"], ["2"], ["1"])
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[capabilities][0], 16) == 0
    if os.geteuid() == 0:
        assert status["Uid"] == status["Gid"] == ["65534"] * 4
        assert status["Groups"] == []


def test_a_pixel_process_is_no_longer_root_and_has_no_capability(pool):
    assert_confined(pid_of(pool))


def test_its_limits(pool):
    text = Path(f"/proc/{pid_of(pool)}/limits").read_text()
    soft = {line[:25].strip(): line[25:].split()[:2] for line in text.splitlines()[1:]}
    assert soft["Max core file size"] == ["0", "0"]
    assert soft["Max open files"] == ["32", "32"]
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    for limit in soft["Max processes"]:
        assert 4096 <= int(limit) <= 4096 + 2 * tasks + 500


@pytest.fixture
def with_a_secret(monkeypatch):
    monkeypatch.setenv("STREAMSRV_TEST_SECRET", "hunter2")
    descriptor = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    with FramePool(1, LIMITS) as pool:
        yield pid_of(pool)
    os.close(descriptor)


def test_it_inherits_neither_secrets_nor_descriptors(with_a_secret):
    pid = with_a_secret
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
        return
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    names = {entry.partition(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
    assert names <= {*SETTINGS, *INHERITED, "PYTHONPATH"}
    idle = ["/dev/null", "/dev/null", "/dev/null", "/memfd:status (deleted)", "socket:[N]"]
    assert waited(lambda: held_by(pid) == idle), held_by(pid)


def held_by(pid):
    """Returns the files behind the descriptors of a process."""
    with suppress(FileNotFoundError):  # closed just now
        held = sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
        return [re.sub(r"\[\d+\]", "[N]", name) for name in held]
    return []


def test_nothing_is_loaded_once_a_process_is_confined(pool):
    """All codecs and pictures work there (test_pool.py, test_mutants.py), with nothing left to import."""
    before = pool.submit(pool_works.environment, []).result(30)
    info = replace(GREY_12, rows=300, columns=300)
    frame = picture_like(info)
    for uid in registry.SYNTAXES:
        if registry.transcodable(LITTLE, uid, info):
            ((coded, now),) = pool.submit(messages.transcode_frames, [frame], LITTLE, uid, info).result(30)
            assert pool.submit(messages.decode_frames, [coded], uid, now).result(30)
    for media_type in FORMATS:
        request = PictureRequest(media_type=media_type, notes=Notes(("Name",), ("kVp",)))
        assert pool.submit(messages.render_frames, [frame], LITTLE, info, request).result(30)
    assert pool.submit(pool_works.environment, []).result(30) == before


def test_what_a_kernel_lacks_is_said(monkeypatch):
    monkeypatch.setattr(confinement, "landlock_version", lambda: 0)
    monkeypatch.setattr(confinement, "architecture", lambda: None)
    assert [sentence.split(":")[0] for sentence in lacking()] == [
        "without Landlock",
        "without a system call filter",
    ]
    with pytest.raises(OSError, match="not known"):
        confinement.install_filter()
    monkeypatch.setattr(confinement, "landlock_version", lambda: 4)
    assert "version 4 of Landlock" in lacking()[0]


ALONE_AND_LACKING = """
from framecodecs.pool import confinement
refuse = lambda *_: -1
confinement.LIBC = type("Old", (), {"syscall": refuse, "prctl": refuse, "capset": refuse})
confinement.architecture = lambda: None
confinement.confine(1 << 28)
print(open("/proc/self/status").read())
"""


def test_a_kernel_that_lacks_parts_does_not_stop_the_others():
    command = [sys.executable, "-c", ALONE_AND_LACKING]
    found = subprocess.run(
        command, env={"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, check=True, text=True
    )
    assert "Seccomp:\t0" in found.stdout
    if os.geteuid() == 0:
        assert "Uid:\t65534" in found.stdout


# The filter, on both architectures


def verdict(code, audit, number, *arguments):
    """Runs classic BPF on a struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    at = accumulator = 0
    while True:
        one = code[at]
        at += 1
        match one.code:
            case confinement.LOAD:
                (accumulator,) = struct.unpack_from("<I", data, one.k)
            case confinement.EQUAL:
                at += one.jt if accumulator == one.k else one.jf
            case confinement.ANY_BIT:
                at += one.jt if accumulator & one.k else one.jf
            case confinement.RETURN:
                return one.k


@pytest.mark.parametrize("machine", confinement.ARCHITECTURES)
def test_the_filter_of_each_architecture(machine):
    known = confinement.ARCHITECTURES[machine]
    code = list(confinement.program(known, 77))
    refused = confinement.FAIL | errno.EPERM

    def asked(number, *arguments):
        return verdict(code, known.audit, number, *arguments)

    allowed = {number for number in range(600) if asked(number) == confinement.ALLOW}
    assert allowed == {*known.plain, known.mmap, known.mprotect}
    assert asked(known.clone3) == confinement.FAIL | errno.ENOSYS
    assert asked(known.clone, 0x3D0F00) == confinement.ALLOW  # pthread_create
    assert asked(known.clone, 0x1200011) == refused  # fork
    assert asked(known.kill, 77) == asked(known.tgkill, 77, 77) == confinement.ALLOW
    assert asked(known.kill, 78) == asked(known.tgkill, 78) == asked(known.kill, 2**64 - 1) == refused
    assert asked(known.fcntl, 0, fcntl.F_SETLKW) == confinement.ALLOW
    assert asked(known.fcntl, 0, fcntl.F_SETOWN) == refused
    for number in (known.mmap, known.mprotect):
        assert asked(number, 0, 0, mmap.PROT_READ | mmap.PROT_EXEC) == refused
    others = {known.audit for known in confinement.ARCHITECTURES.values()} - {known.audit} | {0x40000003}
    for audit in others:
        assert {verdict(code, audit, number) for number in range(600)} == {refused}

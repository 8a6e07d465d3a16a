"""The server as processes: started, restarted, drained, refused."""

import contextlib
import dataclasses
import os
import pty
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from live_server import ROOT, environment, free_port, start_server
from waiting import waited

import streamsrv.supervisor
from framecodecs.rendering.fonts import find_fonts
from streamsrv import supervisor
from streamsrv.listening import CannotServe, bind, origin_of
from streamsrv.settings import Settings
from streamsrv.supervisor import (
    Supervisor,
    WorkerSlot,
    describe,
    with_fonts,
    worker_count,
)

DEADLINE = 20.0


def workers_of(server):
    """Process ids of the workers."""
    found = subprocess.run(
        ["ps", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "streamsrv.server" in line]


def fetch(server, path):
    with urllib.request.urlopen(server.origin + path, timeout=DEADLINE) as answer:
        return answer.status, answer.read()


def answers(server):
    try:
        return fetch(server, "/health/live")[0] == 200
    except OSError:
        return False


def raw(server, text):
    sock = socket.create_connection(("127.0.0.1", int(server.origin.rpartition(":")[2])), timeout=DEADLINE)
    sock.sendall(text)
    return sock


def received(sock):
    payload = b""
    while piece := sock.recv(65536):
        payload += piece
    sock.close()
    return payload


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for tests that leave it with two workers. The first one needs them ready."""
    running = start_server(tmp_path_factory.mktemp("shared"))
    yield running
    running.end()


@pytest.mark.embedded("it tells the folder of the store")
def test_it_says_where_it_is_and_ends_on_sigterm(server):
    text = waited(lambda: "try: curl" in server.log.read_text() and server.log.read_text())
    assert f"serves {server.origin}/v2 with 2 workers" in text
    assert str(server.data.resolve()) in text
    assert len(workers_of(server)) == 2
    workers = workers_of(server)
    assert server.end() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_a_worker_logs_how_many_requests_it_answered_in_each_way(server_factory):
    server = server_factory(workers=1)
    before = server.log.read_text().count(" plain\n")
    with socket.create_connection(("127.0.0.1", int(server.origin.rpartition(":")[2]))) as client:
        for _ in range(3):
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1 << 16).endswith(b"alive\n")
    server.end()
    log = server.log.read_text()
    assert f"answered: plain {log.count(' plain' + chr(10))}, known-headers 2, cached-frame 0" in log
    assert log.count(" plain\n") > before


def test_ctrl_c_ends_it_too(server_factory):
    server = server_factory(workers=1)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(DEADLINE) == 0


def test_no_worker_takes_every_connection_of_a_burst(shared):
    def sockets(pid):
        links = (os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
        return sum(link.startswith("socket:") for link in links)

    waited(lambda: len(workers_of(shared)) == 2 and "try: curl" in shared.log.read_text())
    before = {pid: sockets(pid) for pid in workers_of(shared)}
    text = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        burst = [stack.enter_context(raw(shared, text)) for _ in range(40)]
        assert all(sock.recv(4096).startswith(b"HTTP/1.1 200 ") for sock in burst)
        taken = [sockets(pid) - count for pid, count in before.items()]
    assert sum(taken) == 40
    assert min(taken) >= 5


def test_a_worker_that_dies_is_replaced_and_nobody_is_refused(shared):
    before = set(workers_of(shared))
    os.kill(min(before), signal.SIGKILL)
    waited(lambda: min(before) not in workers_of(shared))
    for _ in range(50):
        assert fetch(shared, "/health/ready")[0] == 200
    after = waited(lambda: len(workers_of(shared)) == 2 and set(workers_of(shared)))
    assert len(before & after) == 1
    assert "ended with signal SIGKILL" in shared.log.read_text()


def test_all_workers_may_die_at_once(shared):
    workers = workers_of(shared)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    waited(lambda: not set(workers) & set(workers_of(shared)))
    assert fetch(shared, "/health/live") == (200, b"alive\n")  # waits in the queue meanwhile


def test_workers_do_not_outlive_their_supervisor(server):
    workers = workers_of(server)
    server.process.kill()
    server.process.wait()
    waited(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_bodies_in_flight_finish_when_it_ends(server):
    sock = raw(
        server,
        b"POST /v2/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    )
    assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
    idle = raw(server, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
    server.process.send_signal(signal.SIGTERM)
    assert received(idle) == b""  # idle connections end at once
    until = time.monotonic() + DEADLINE
    while answers(server):  # and soon nothing new comes in: each worker stops by itself
        assert time.monotonic() < until
    sock.sendall(b"not DICOM!")
    assert received(sock).startswith(b"HTTP/1.1 409 ")
    assert server.process.wait(DEADLINE) == 0


def test_what_does_not_finish_in_time_is_cut_off(server_factory):
    server = server_factory("--drain-timeout", "0.3", workers=1)
    sock = raw(
        server,
        b"POST /v2/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    )
    assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
    assert server.end() == 0
    assert received(sock) == b""
    assert "cut off" in server.log.read_text()


def test_the_end_of_its_terminal_does_not_end_it(tmp_path):
    """SIGHUP reaches the whole session; standard error cannot be written to any more."""
    port = free_port()
    words = ["serve", "--data", str(tmp_path / "data"), "--port", str(port), "--workers", "1"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "streamsrv", *words], environment())
    origin = f"http://127.0.0.1:{port}/health/ready"

    def is_ready():
        with contextlib.suppress(OSError), urllib.request.urlopen(origin, timeout=5) as answer:
            return answer.status == 200

    try:
        waited(is_ready)
        os.close(terminal)
        time.sleep(0.5)
        for _ in range(5):
            assert is_ready()
            time.sleep(0.1)
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


def all_are_ready(server):
    waited(lambda: "try: curl" in server.log.read_text())


def test_a_worker_that_is_stopped_is_noticed_and_replaced(server_factory):
    server = server_factory("--hang-timeout", "3")
    all_are_ready(server)
    before = set(workers_of(server))
    os.kill(min(before), signal.SIGSTOP)
    waited(lambda: min(before) not in workers_of(server) and len(workers_of(server)) == 2)
    assert max(before) in workers_of(server)
    assert f"worker {min(before)} hangs: it gave no sign of life for 3 s" in server.log.read_text()


@pytest.mark.embedded("the loop of a node does not write")
def test_a_worker_whose_loop_is_blocked_is_replaced_and_its_stack_is_logged(server_factory, tmp_path):
    point = tmp_path / "point"
    variables = {"STREAMSRV_FAILPOINT_FILE": str(point)}
    server = server_factory("--hang-timeout", "3", workers=1, variables=variables)
    (worker,) = workers_of(server)
    draft = tmp_path / "draft"
    draft.write_text("mid-body=pause:60")
    draft.rename(point)
    sock = raw(
        server,
        b"POST /v2/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        b"Content-Length: 9000000\r\n\r\n" + bytes(128) + b"DICM" + bytes(5_000_000),
    )
    waited(lambda: len(workers_of(server)) == 1 and workers_of(server) != [worker])
    assert fetch(server, "/health/ready")[0] == 200
    sock.close()
    said = server.log.read_text()
    assert f"worker {worker} hangs" in said
    assert "failpoints.py" in said  # where it was
    assert "ended with signal SIGKILL" in said


def test_workers_outlive_a_stop_of_the_whole_server(server_factory):
    """Ctrl-Z and fg."""
    server = server_factory("--hang-timeout", "2")
    all_are_ready(server)
    stopped = [server.process.pid, *workers_of(server)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3.5)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    assert {*workers_of(server)} == {*stopped[1:]}
    assert "hangs" not in server.log.read_text()


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "streamsrv", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(),
        cwd=ROOT,
        check=False,
    )


def test_a_second_server_on_the_folder_is_refused(shared):
    second = command("serve", "--data", str(shared.data), "--port", str(free_port()))
    assert second.returncode == 3
    assert "is in use by another streamsrv process" in second.stderr
    assert str(shared.process.pid) in second.stderr


def test_a_port_that_is_taken(shared, tmp_path):
    second = command("serve", "--data", str(tmp_path / "other"), "--port", shared.origin.rpartition(":")[2])
    assert second.returncode == 1
    assert "cannot listen on 127.0.0.1" in second.stderr


def test_others_are_let_in_only_if_told_so_in_words(tmp_path):
    refused = command("serve", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "--allow-remote-without-authentication" in refused.stderr


def test_workers_that_cannot_start_end_the_server(tmp_path):
    (tmp_path / "store.toml").write_text("nonsense = [")
    failed = command("serve", "--data", str(tmp_path), "--port", "0", "--workers", "2")
    assert failed.returncode == 1
    assert "store.toml" in failed.stderr
    assert "workers cannot start" in failed.stderr


def test_a_folder_that_is_not_there_is_not_served_read_only(tmp_path):
    failed = command("serve", "--data", str(tmp_path / "none"), "--port", "0", "--read-only")
    assert failed.returncode == 1
    assert "no store.toml" in failed.stderr


# Pieces


def test_how_a_process_ended():
    assert describe(-9) == "signal SIGKILL"
    assert describe(3) == "exit code 3"
    assert describe(-signal.SIGBUS).startswith("signal SIGBUS: the index could not be read from the disk")


def test_one_worker_a_core_unless_told():
    assert worker_count(Settings()) == len(os.sched_getaffinity(0))
    assert worker_count(dataclasses.replace(Settings(), workers=7)) == 7


def test_every_address_of_a_name_gets_the_same_port():
    listeners = bind("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in listeners}) == 1
        port = listeners[0].getsockname()[1]
        assert origin_of(Settings(), listeners) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    finally:
        for each in listeners:
            each.close()


@pytest.mark.parametrize("host", ["256.1.1.1", "no.such.host.invalid"])
def test_addresses_that_are_none(host):
    with pytest.raises(CannotServe, match="cannot listen"):
        bind(host, 0)


def test_fonts_are_found_once_for_all_processes(tmp_path, monkeypatch, caplog):
    found = with_fonts(Settings()).annotation_fonts
    assert found == find_fonts()
    monkeypatch.setattr(streamsrv.supervisor, "find_fonts", lambda: found[:0])
    assert with_fonts(Settings()).annotation_fonts == ()
    assert "streamsrv[cjk]" in caplog.messages[-1]
    given = dataclasses.replace(Settings(), annotation_fonts=found[-1:])
    assert with_fonts(given) == given
    wrong = dataclasses.replace(Settings(), annotation_fonts=(str(tmp_path / "none.ttf"),))
    with pytest.raises(CannotServe, match=r"annotation_fonts: .*none\.ttf cannot be read"):
        with_fonts(wrong)


def test_the_public_url_is_what_is_printed():
    listeners = bind("127.0.0.1", 0)
    settings = dataclasses.replace(Settings(), public_url="https://pacs.example/")
    assert origin_of(settings, listeners) == "https://pacs.example"
    listeners[0].close()


class Fake:
    """A worker that does what the test says: its process and the write end of its status pipe."""

    def __init__(self, code):
        self.code = code
        self.signals = []
        self.pid = 1
        self.stdin = open(os.devnull, "wb")  # noqa: SIM115 - closed by the supervisor

    def wait(self):
        return self.code

    def send_signal(self, number):
        self.signals.append(number)


@pytest.fixture
def supervised():
    """A supervisor with one slot, and a function by which its worker dies."""
    one = Supervisor(Settings(), [], lambda: None, selectors.DefaultSelector(), [WorkerSlot()])

    def die(*, ready=False, age=0.0, code=-9):
        read, write = os.pipe()
        os.close(write)
        slot = one.slots[0]
        slot.worker = supervisor.Worker(Fake(code), read, time.monotonic() - age, ready)
        one.selector.register(read, selectors.EVENT_READ, slot)
        one._read(slot, read)
        return slot

    yield one, die
    one.selector.close()


def pauses_between(die, times):
    """After deaths of workers that had not lived, in tenths of a second."""
    found = []
    for _ in range(times):
        slot = die()
        found.append(round(slot.due - time.monotonic(), 1))
        assert slot.worker is None
    return found


def test_pauses_between_restarts_grow_until_it_gives_up(supervised):
    one, die = supervised
    assert pauses_between(die, supervisor.START_ATTEMPTS)[:-1] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert one.exit_code == supervisor.EXIT_FAILED
    assert one.kill_time is not None


def test_a_server_that_has_served_never_gives_up(supervised):
    one, die = supervised
    one.serving = True
    assert pauses_between(die, 9) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    assert one.kill_time is None


def test_a_worker_that_had_lived_is_replaced_at_once(supervised):
    one, die = supervised
    one.serving = True
    for _ in range(2 * supervisor.START_ATTEMPTS):
        slot = die(ready=True, age=supervisor.LIVED + 1)
        assert slot.due <= time.monotonic()
    assert one.kill_time is None


def test_an_exit_before_anybody_was_ready_ends_it(supervised):
    one, die = supervised
    die()  # killed by a signal: that says nothing of the next one
    assert one.kill_time is None
    die(code=1)
    assert one.exit_code == supervisor.EXIT_FAILED


def test_told_twice_it_ends_at_once(supervised):
    one, _ = supervised
    one._on_signals(bytes([signal.SIGTERM]))
    assert one.kill_time > time.monotonic() + 1
    one._on_signals(bytes([signal.SIGTERM]))
    assert one.kill_time <= time.monotonic()

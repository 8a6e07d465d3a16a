"""A real server under attack: raw sockets, files made to harm, and the proof that nothing was harmed.

Every refused request carries PLANT, a DELETE of the study that the world holds, in its body and behind it:
who parses one byte of a refused body as a request deletes the study, and `World.unharmed` finds out.
"""

import json
import os
import re
import selectors
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

import store_kinds
from hostile_files import SECRET, instance
from live_server import environment, executable, start_server

DEADLINE = 60.0  # seconds; a loaded machine is slow
READ_AT_ONCE = 1 << 16
SEND_AT_ONCE = 1 << 18
MARK = b"refused-bytes-"  # in every refused body: no segment may hold it
VICTIM = "1.2.826.0.1.5"
PLANT = b"DELETE /v2/studies/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % VICTIM.encode()
SENTINEL = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

BOUNDARY = "frontier"
DICOM = "Content-Type: application/dicom"
RELATED = f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}'


# Requests


def part(payload, *headers):
    lines = (f"--{BOUNDARY}", *(headers or (DICOM,)), "", "")
    return "\r\n".join(lines).encode("latin-1") + payload + b"\r\n"


def related(*payloads):
    return b"".join(part(payload) for payload in payloads) + f"--{BOUNDARY}--\r\n".encode()


def head(line, *headers, host="localhost", version="HTTP/1.1"):
    lines = (f"{line} {version}", *([f"Host: {host}"] if host is not None else []), *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


def post(content_type, body, *headers, line="POST /v2/studies"):
    typed = [content_type] if content_type else []
    return head(line, *typed, *headers, f"Content-Length: {len(body)}") + body


def chunked(body, size=100_000):
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)

    def problem(self):
        """The refusal's detail, after a look at its form (RFC 9457)."""
        assert self.headers["content-type"] == "application/problem+json", self
        told = self.json()
        assert told["status"] == self.status
        assert told["title"]
        assert told["instance"] == self.headers["x-request-id"]
        assert SECRET not in self.body
        return told["detail"]

    def failures(self):
        """(FailureReason, ErrorComment) of each item of the Failed SOP Sequence."""
        assert SECRET not in self.body
        failed = self.json().get("00081198", {}).get("Value", [])
        return [(one["00081197"]["Value"][0], _comment(one)) for one in failed]


def _comment(failed):
    said = failed["00741048"].get("Value", [])
    return " ".join(one["00000902"]["Value"][0] for one in said)


_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})[^\r\n]*\r\n")


def replies(received):
    """All that came back, split into answers: anything that is none fails the test."""
    found = []
    while received:
        begun = _STATUS.match(received)
        assert begun, received[:500]
        block, end, rest = received.partition(b"\r\n\r\n")
        assert end, received[:500]
        lines = block.decode("latin-1").split("\r\n")[1:]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body, received = _dechunked(rest)
        else:
            length = int(headers.get("content-length", 0))
            assert len(rest) >= length, received[:500]
            body, received = rest[:length], rest[length:]
        if begun[1] != b"100":
            found.append(Reply(int(begun[1]), headers, body))
    return found


def _dechunked(rest):
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, rest


def converse(origin, payload, *, half_close=False, seconds=DEADLINE):
    """Send all of it as fast as it is taken, reading meanwhile; everything that comes back until the server
    ends the connection."""
    received, left = bytearray(), memoryview(payload)
    deadline = time.monotonic() + seconds
    with connect(origin) as sock, selectors.DefaultSelector() as selector:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            assert time.monotonic() < deadline, f"the connection was not ended; received {received[:500]!r}"
            for _, ready in selector.select(0.5):
                if ready & selectors.EVENT_WRITE:
                    left = _send_some(sock, left)
                    if not left:
                        selector.modify(sock, selectors.EVENT_READ)
                        if half_close:
                            _shut(sock)
                if ready & selectors.EVENT_READ and not _receive_some(sock, received):
                    return bytes(received)


def connect(origin):
    host, _, port = origin.rpartition("/")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


def _send_some(sock, left):
    """What is left to send; nothing if the server takes no more."""
    try:
        return left[sock.send(left[:SEND_AT_ONCE]) :]
    except BlockingIOError:
        return left
    except ConnectionError:
        return left[:0]


def _shut(sock):
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _receive_some(sock, received):
    """False at the end of the connection, however it came."""
    try:
        piece = sock.recv(READ_AT_ONCE)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    received += piece
    return bool(piece)


class World:
    """A server that holds one study, and how to find out whether it has been harmed."""

    def __init__(self, folder, *flags, workers=2):
        self.server = start_server(folder, *flags, workers=workers)
        self.origin = self.server.origin
        self.uids = {"study": VICTIM, "series": f"{VICTIM}.1", "instance": f"{VICTIM}.1.1"}
        self.stored = instance(**self.uids)
        try:
            assert self.answered(post(DICOM, self.stored)).status == 200
        except BaseException:
            self.server.end()
            raise

    def refused(self, request):
        """Send it with PLANT behind it; the one answer, after which the server has ended the connection."""
        found = replies(converse(self.origin, request + PLANT))
        assert len(found) == 1, found
        assert found[0].headers["connection"] == "close"
        return found[0]

    def answered(self, request):
        """Send it with a harmless request behind it, which must be answered too, and nothing else: the body
        was read to its last byte."""
        found = replies(converse(self.origin, request + SENTINEL))
        assert [each.body for each in found[1:]] == [b"alive\n"], found
        return found[0]

    def get(self, path, *headers):
        return self.answered(head(f"GET {path}", *headers))

    def store(self, *payloads, line="POST /v2/studies"):
        return self.answered(post(RELATED, related(*payloads), line=line))

    def unharmed(self):
        """The study is there and whole, the server lives, and it stores."""
        path = "/v2/studies/{study}/series/{series}/instances/{instance}".format(**self.uids)
        reply = self.get(path, "Accept: application/dicom; transfer-syntax=*")
        assert (reply.status, reply.body) == (200, self.stored)
        assert self.store(instance()).status == 200

    def files(self):
        """And the index, or the files of a node."""
        return sorted(path for path in self.server.data.rglob("*") if path.is_file())

    def end(self):
        """End the server; then nothing of a refused body is on the disk, and `check` finds nothing."""
        assert self.server.end() == 0
        log = self.server.log.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
        assert SECRET.decode() not in log
        for file in self.files():
            assert not holds(file, MARK), file
        checked = subprocess.run(
            [*executable(), "check", "--data", str(self.server.data)],
            env=environment() | store_kinds.variables_of(self.server.data),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert checked.returncode == 0, checked.stdout[-2000:] + checked.stderr[-2000:]


class Probes:
    """Asks in a thread whether the server lives, again and again, for as long as the block lasts."""

    def __init__(self, world, pause=0.005):
        self._world, self._pause = world, pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.seconds = []
        self.failures = []

    def _ask(self):
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                assert self._world.get("/health/live").status == 200
            except Exception as failure:
                self.failures.append(failure)
                return
            self.seconds.append(time.monotonic() - began)
            self._stop.wait(self._pause)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        assert not self.failures

    def percentile(self, share):
        return sorted(self.seconds)[int(len(self.seconds) * share)]


def holds(path, mark):
    """Whether a file holds these bytes."""
    with path.open("rb") as file:
        tail = b""
        while block := file.read(1 << 22):
            if mark in tail + block:
                return True
            tail = block[-len(mark) :]
    return False


def marked(size=0):
    """Filling for refused bodies: PLANT among bytes that no segment may hold."""
    unit = PLANT + MARK + b"\r\n\r\n"
    return (unit * (size // len(unit) + 1))[: max(size, len(unit))]


def resident(pid):
    """Private memory of a process and all below it, in bytes."""
    total = 0
    for process in _family(pid):
        try:
            with open(f"/proc/{process}/status") as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
        except OSError:
            continue
    return total * 1024


def _family(pid):
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                children.setdefault(int(stat.read().rpartition(")")[2].split()[1]), []).append(int(name))
        except OSError:
            continue
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found

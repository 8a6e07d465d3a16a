"""A real server for the tests that need one: `python -m streamsrv serve` on a free loopback port and a
temporary folder, ready before the test begins and ended by its process id."""

import contextlib
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import store_kinds

ROOT = Path(__file__).resolve().parents[1]
READY_WITHIN = 30.0  # seconds; a loaded machine starts Python slowly
END_WITHIN = 20.0


@dataclass
class RunningServer:
    """`url` is the base URL of version 2 without a trailing slash, `origin` the same without version."""

    process: subprocess.Popen
    origin: str
    data: Path
    log: Path
    context: ssl.SSLContext | None = None  # of clients of a server with a certificate

    @property
    def url(self):
        return f"{self.origin}/v2"

    def is_ready(self):
        try:
            url = f"{self.origin}/health/ready"
            with urllib.request.urlopen(url, timeout=5, context=self.context) as answer:
                return answer.status == 200
        except OSError:
            return False

    def wait_until_ready(self):
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.is_ready():
                return
            time.sleep(0.05)
        self.end()
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()}")

    def end(self):
        """SIGTERM and its exit code; a server that does not end in time is killed and fails the test."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end on SIGTERM:\n{self.log.read_text()}") from None


def executable():
    """How the command line is called."""
    named = os.environ.get("STREAMSRV")
    return [named] if named else [sys.executable, "-m", "streamsrv"]


def environment():
    """Without settings of the machine; with the checkout, unless another executable was named."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("STREAMSRV_")}
    if "STREAMSRV" not in variables:
        folders = (ROOT, ROOT / "codecs", ROOT / "tests" / "without_oracles")
        variables["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    return variables


# Below the ports that the kernel hands out: one of those could be somebody else's before the server that it
# is meant for has started. Each process of a test run has its own thousand, and begins somewhere in it, since
# another run may go on beside it.
_FIRST_PORT = 10_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16)
_PORTS = itertools.cycle(_FIRST_PORT + (os.getpid() + number) % 1_000 for number in range(1_000))


def free_port():
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", next(_PORTS))) as listener:
            return listener.getsockname()[1]


def refused_start(folder, *flags, **variables):
    """Exit code and log of a server that must not start."""
    place = ("--data", str(folder / "data"), "--port", "0", "--workers", "1")
    done = subprocess.run(
        [*executable(), "serve", *place, *flags],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout


def start_server(folder, *flags, workers=2, port=None, variables=None, context=None):
    """Starts a server with its data in `folder`/data and waits until it is ready. Its caller ends it.
    `variables` are added to its environment. `context` is that of clients if the flags name a certificate.
    With `pytest --store cluster` the server is a node, if the flags name no place of its store."""
    store_kinds.require_listed()
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    data, log = folder / "data", folder / "server.log"
    command = [*executable(), "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--data", str(data), "--workers", str(workers), *flags]
    place = {} if "--index" in flags else store_kinds.variables_of(data)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment() | place | (variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    scheme = "https" if context else "http"
    server = RunningServer(process, f"{scheme}://127.0.0.1:{port}", data, log, context)
    server.wait_until_ready()
    return server

"""Servers under measurement, and the memory and processor time of their processes.

Strategy: each server that is started here listens on a free loopback port, has a folder of its own, and is
ended by its process id. A server that was started elsewhere has an address and headers, and neither process
nor folder.

Memory is RssAnon + RssShmem of the process tree. Pages of files (RssFile: the mapped index, programs) belong
to the page cache, which can drop them at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from perf.results import NGINX, ORTHANC, OURS

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
READY_WITHIN = 60.0
END_WITHIN = 60.0
SAMPLES_A_SECOND = 20
# The packaged GDCM plugin crashes on each syntax that it encodes, so orthanc.json keeps it to JPEG 2000.
PLUGINS = [Path(f"/usr/share/orthanc/plugins/libOrthanc{name}.so") for name in ("DicomWeb", "Gdcm")]
# File of settings, prefix of the service, and the path that the server answers once it is ready.
PEERS = {
    NGINX: ("nginx.conf", "", "/nginx.conf"),
    ORTHANC: ("orthanc.json", "/dicom-web", "/dicom-web/studies?limit=1"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A server under measurement. `prefix` is the path of the DICOMweb service. `pid` is 0 and `folder` is
    None if it was not started here. `studies` are those that it holds because of a measurement."""

    name: str
    port: int
    prefix: str
    pid: int = 0
    folder: Path | None = None
    host: str = "127.0.0.1"
    tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    studies: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, url: str, headers: Mapping[str, str]) -> Service:
        """A server that runs already. Raises ValueError if the URL is not one of HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no HTTP URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(OURS, port, parts.path.rstrip("/"), host=parts.hostname, tls=tls, headers=headers)

    def target(self, path: str) -> str:
        """The request target of a path below the service, or of `//path` at the root."""
        return path[1:] if path.startswith("//") else self.prefix + path

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def segments(self) -> dict[Path, int]:
        """Segment file to its size in bytes."""
        assert self.folder is not None
        files = (path for path in self.folder.rglob("*") if path.is_file() and "segments" in path.parts)
        return {path: path.stat().st_size for path in files}


@contextlib.contextmanager
def streamsrv(folder: Path, *flags: str) -> Iterator[Service]:
    tls = "--tls-certificate" in flags
    service = Service(OURS, free_port(), "/v2", folder=folder / "data", tls=tls)
    command = [
        sys.executable,
        "-m",
        "streamsrv",
        "serve",
        "--host",
        service.host,
        "--port",
        str(service.port),
    ]
    command += ["--data", str(service.folder), "--log-level", "warning", *flags]
    with running(service, command, folder, "/health/ready") as started:
        yield started


def new_key(service: Service) -> str:
    """A key of the server with the rights to search, read and store."""
    command = [sys.executable, "-m", "streamsrv", "key", "add", "perf", "--rights", "search,read,store"]
    command += ["--data", str(service.folder)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def peer(name: str, folder: Path, other: str = "", **more: str) -> Iterator[Service | None]:
    """nginx, which serves the files of the folder by sendfile, or Orthanc. nginx opens files under many/ for
    each request. `other` is another file of settings, for HTTPS, with `more` words to replace. Yields None if
    the server, or the DICOMweb plugin of Orthanc, is not installed."""
    executable = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if executable is None or (name == ORTHANC and not PLUGINS[0].exists()):
        yield None
        return
    configuration, prefix, probe = PEERS[name]
    configuration, probe = (other, f"/{other}") if other else (configuration, probe)
    service = Service(name, free_port(), prefix, folder=folder, tls=bool(other))
    values = (
        {"ASSOCIATIONS": "false", "ACCEPTING": "4242"}
        | more
        | {
            "FOLDER": str(folder),
            "PORT": str(service.port),
            "USER;": "user root;" if os.geteuid() == 0 else "",
            "PLUGINS": json.dumps([str(path) for path in PLUGINS if path.exists()]),
        }
    )
    text = Path(__file__).with_name(configuration).read_text()
    for word, value in values.items():
        text = text.replace(word, value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / configuration
    path.write_text(text)
    flags = ["-p", str(folder), "-e", "stderr", "-c"] if name == NGINX else []
    with running(service, [executable, *flags, str(path)], folder, probe) as started:
        yield started


@contextlib.contextmanager
def running(service: Service, command: Sequence[str], folder: Path, probe: str) -> Iterator[Service]:
    """The server with its process, once `probe` is answered. Raises RuntimeError if that takes too long."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while not answers(service.url + probe):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{service.name} did not become ready: {folder}/server.log")
            time.sleep(0.05)
        yield dataclasses.replace(service, pid=process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, http.client.HTTPException):
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- processes ---


def family_of(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def private_bytes(pid: int) -> int:
    """RssAnon + RssShmem over the process tree."""
    total = 0
    for process in family_of(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, with that of threads that have ended."""
    ticks = 0
    for process in family_of(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def available_memory() -> int:
    """MemAvailable, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


class MemorySampler:
    """`with MemorySampler(pid) as memory:` measures `memory.growth`, in bytes over the first sample."""

    def __init__(self, pid: int, before: int | None = None) -> None:
        self.pid = pid
        self.before = self.peak = private_bytes(pid) if before is None else before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def growth(self) -> int:
        return self.peak - self.before

    def _sample(self) -> None:
        done = False
        while not done:
            done = self._done.wait(1 / SAMPLES_A_SECOND)
            self.peak = max(self.peak, private_bytes(self.pid))

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

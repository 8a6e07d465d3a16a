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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
READY_WITHIN = 60.0
END_WITHIN = 60.0
SAMPLES_A_SECOND = 20
PLUGINS = Path("/usr/share/orthanc/plugins")
# The packaged GDCM plugin crashes on each syntax that it encodes, so it is kept to JPEG 2000.
GDCM_SYNTAXES = ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"]


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """`prefix` is the path of the DICOMweb service. `pid` is 0 and `folder` is None if the server was not
    started here. `studies` are those that it holds because of a measurement."""

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
    def at(cls, url: str, headers: Mapping[str, str]) -> Server:
        """A server that runs already. Raises ValueError if the URL is not one of HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no HTTP URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        prefix = parts.path.rstrip("/")
        return cls("streamsrv", port, prefix, host=parts.hostname, tls=tls, headers=headers)

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
def streamsrv(folder: Path, *flags: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "streamsrv", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--data", str(folder / "data"), "--log-level", "warning", *flags]
    server = Server("streamsrv", port, "/v2", folder=folder / "data")
    with running(server, command, folder, "/health/ready") as started:
        yield started


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[Server | None]:
    """Serves the files of the folder by sendfile, and takes PUTs under put/. Files under many/ are opened for
    each request. Yields None if nginx is not installed."""
    executable = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if executable is None:
        yield None
        return
    port = free_port()
    text = Path(__file__).with_name("nginx.conf").read_text()
    user = "user root;" if os.geteuid() == 0 else ""
    text = text.replace("USER;", user).replace("FOLDER", str(folder)).replace("PORT", str(port))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(text)
    command = [executable, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running(Server("nginx", port, "", folder=folder), command, folder, "/nginx.conf") as started:
        yield started


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Server | None]:
    """Yields None if Orthanc or its DICOMweb plugin is not installed."""
    executable = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    plugins = [PLUGINS / f"libOrthanc{name}.so" for name in ("DicomWeb", "Gdcm")]
    if executable is None or not plugins[0].exists():
        yield None
        return
    port, data = free_port(), folder / "orthanc"
    settings = {
        "Name": "perf",
        "StorageDirectory": str(data),
        "IndexDirectory": str(data),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(path) for path in plugins if path.exists()],
        "Gdcm": {"RestrictTransferSyntaxes": GDCM_SYNTAXES},
        "DicomWeb": {"Enable": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    server = Server("Orthanc", port, "/dicom-web", folder=data)
    command = [executable, str(folder / "orthanc.json")]
    with running(server, command, folder, "/dicom-web/studies?limit=1") as started:
        yield started


@contextlib.contextmanager
def running(server: Server, command: Sequence[str], folder: Path, probe: str) -> Iterator[Server]:
    """The server with its process, once `probe` is answered. Raises RuntimeError if that takes too long."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while not answers(server, probe):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{server.name} did not become ready: {folder}/server.log")
            time.sleep(0.05)
        yield dataclasses.replace(server, pid=process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(server: Server, path: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(server.host, server.port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status < 300
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
        self.before = private_bytes(pid) if before is None else before
        self.peak = self.before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def growth(self) -> int:
        return self.peak - self.before

    def _sample(self) -> None:
        while not self._done.wait(1 / SAMPLES_A_SECOND):
            self.peak = max(self.peak, private_bytes(self.pid))

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, private_bytes(self.pid))

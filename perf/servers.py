"""Servers under measurement, each on a free loopback port with a folder of its own, ended by its process id;
and the memory of one, sampled while it works.

Memory is RssAnon + RssShmem of the process tree: what the processes hold for themselves. Pages of files
(RssFile: the index, which is mapped, and programs) belong to the page cache and can be dropped at any time.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY_WITHIN = 60.0
END_WITHIN = 60.0
SAMPLES_A_SECOND = 20
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
# For what Orthanc itself does not decode. The packaged one crashes on every syntax that it encodes, so it is
# kept to JPEG 2000.
ORTHANC_CODECS = Path("/usr/share/orthanc/plugins/libOrthancGdcm.so")


@dataclass(frozen=True, slots=True)
class Server:
    """`prefix` is the path of the DICOMweb service."""

    name: str
    pid: int
    port: int
    prefix: str
    folder: Path

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)


@contextlib.contextmanager
def streamsrv(folder: Path, *flags: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "streamsrv", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--data", str(folder / "data"), "--log-level", "warning", *flags]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")])}
    with running(command, folder, environment) as process:
        server = Server("streamsrv", process.pid, port, "/v2", folder / "data")
        wait_until_answered(process, server, "/health/ready")
        yield server


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[Server | None]:
    """Serves the files of the folder with sendfile, those under many/ without a cache of open files, and
    takes PUTs under put/; None if it is not installed."""
    executable = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if executable is None:
        yield None
        return
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(_NGINX.format(port=port, folder=folder))
    command = [executable, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running(command, folder, {}) as process:
        server = Server("nginx", process.pid, port, "", folder)
        wait_until_answered(process, server, "/nginx.conf")
        yield server


_NGINX = """
daemon off;
{{user}}
worker_processes 2;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    open_file_cache max=1000;
    gzip_static on;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location /many/ {{ open_file_cache off; }}
        location /put/ {{
            dav_methods PUT;
            create_full_put_path on;
        }}
    }}
}}
""".replace("{{user}}", "user root;" if os.geteuid() == 0 else "")


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Server | None]:
    """None if it or its DICOMweb plugin is not installed."""
    executable = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if executable is None or not ORTHANC_PLUGIN.exists():
        yield None
        return
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "perf",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(path) for path in (ORTHANC_PLUGIN, ORTHANC_CODECS) if path.exists()],
        "Gdcm": {"RestrictTransferSyntaxes": ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"]},
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([executable, str(folder / "orthanc.json")], folder, {}) as process:
        server = Server("Orthanc", process.pid, port, "/dicom-web", folder / "orthanc")
        wait_until_answered(process, server, "/dicom-web/studies?limit=1")
        yield server


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_answered(process: subprocess.Popen[bytes], server: Server, path: str) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(*server.address, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status < 300:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise RuntimeError(f"{server.name} did not become ready; its log is {server.folder.parent}/server.log")


def family_of(pid: int) -> list[int]:
    """The process and its descendants, as far as they are there this moment."""
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
    """User and system time of a process and its descendants; of threads that have ended too."""
    ticks = 0
    for process in family_of(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def available_memory() -> int:
    """Bytes that programs could have without anything being moved to swap."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")


class MemorySampler:
    """`with MemorySampler(pid) as memory:` then `memory.growth`, in bytes over the first sample."""

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

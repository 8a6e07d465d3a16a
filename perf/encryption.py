"""TLS: answers of the server over its own TLS, without TLS, and through nginx in front; and files of nginx.

Strategy: nginx speaks to the server over a Unix socket. All subjects have one certificate (ECDSA, P-256), and
the same client. It decrypts in Python, so the rates of bulk are those of the slower of the two. The processor
time of the servers tells them apart.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from perf import bodies
from perf.clients import DICOM, FRAME, Client, Load
from perf.results import NGINX, OURS, Row, median_row
from perf.run import Run, in_turns, rates, rows_of
from perf.servers import Service, cpu_seconds

TILE = 21_000
EACH = 3  # GETs of a round
CLIENTS = 16
PLAIN, FRONT = f"{OURS}, without TLS", "nginx in front"


@contextmanager
def certificate(folder: Path) -> Iterator[Path]:
    """A new pair for 127.0.0.1, NAME.pem and NAME.key, that all clients trust within the block."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = folder / "pair"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-keyout", f"{pair}.key", "-out", f"{pair}.pem", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = f"{pair}.pem"
    try:
        yield pair
    finally:
        del os.environ["SSL_CERT_FILE"]
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before


class RetrievalRate:
    """MB/s of EACH GETs of one resource; each call is a round. `pids` are the processes that serve it."""

    def __init__(self, service: Service, path: str, accept: str, pids: Sequence[int]) -> None:
        self.service, self.path, self.accept, self.pids = service, path, accept, pids
        self.processor: list[float] = []

    def __call__(self) -> float:
        before = sum(map(cpu_seconds, self.pids))
        with Client(self.service) as client:
            answers = [client.get(self.path, self.accept) for _ in range(EACH)]
        length = sum(answer.length for answer in answers)
        self.processor.append((sum(map(cpu_seconds, self.pids)) - before) * 1e9 / length)
        return length / 1e6 / sum(answer.seconds for answer in answers)


def tls(run: Run) -> Iterator[Row]:
    slide = bodies.multi_frame(6, run.size.tiles, TILE)
    web, socket = run.folder / "web", run.folder / "proxy.sock"
    with (
        certificate(run.folder) as pair,
        run.streamsrv("plain") as plain,
        run.streamsrv(
            "encrypted",
            *("--tls-certificate", f"{pair}.pem", "--tls-key", f"{pair}.key", "--unix-socket", str(socket)),
        ) as ours,
    ):
        run.store(slide, [plain, ours])
        with Client(ours) as client:
            whole = client.get(slide.path, DICOM).length
        web.mkdir()
        for name, length in (("whole", whole), ("tile", TILE)):
            (web / name).write_bytes(bodies.noise(length))
        with run.peer(NGINX, web, "nginx-tls.conf", PAIR=str(pair), SOCKET=str(socket)) as nginx:
            retrievals = {
                OURS: RetrievalRate(ours, slide.path, DICOM, [ours.pid]),
                PLAIN: RetrievalRate(plain, slide.path, DICOM, [plain.pid]),
            }
            paths = [f"{slide.path}/frames/{number + 1}" for number in range(min(run.size.tiles, 500))]
            loads = {OURS: Load(ours, paths, FRAME), PLAIN: Load(plain, paths, FRAME)}
            if nginx is not None:
                front = replace(nginx, prefix="/v2")
                retrievals[NGINX] = RetrievalRate(nginx, "//whole", "*/*", [nginx.pid])
                retrievals[FRONT] = RetrievalRate(front, slide.path, DICOM, [nginx.pid, ours.pid])
                loads[NGINX] = Load(nginx, ["/tile"])
                loads[FRONT] = Load(front, paths, FRAME)
            measure = f"retrieve one instance of {whole / 1e6:.3g} MB over TLS"
            yield from rows_of(measure, in_turns(run.size.rounds, retrievals))
            for name, each in retrievals.items():
                yield median_row(f"CPU time, {measure}", name, each.processor[1:])
            yield from rates(run, f"frames of 21 kB over TLS, {CLIENTS} at once", loads, CLIENTS)

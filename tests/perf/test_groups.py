"""Every group of measures in its smallest form, without peers: it asks, is answered, and yields the rows of
the table. The figures mean nothing."""

import contextlib
import http.client
import http.server
import random
import threading

import pytest

from perf import archive, bodies, run, servers, table
from perf.__main__ import measured
from perf.archive import calls_in
from perf.clients import Client
from perf.run import Run, Size
from perf.servers import Service, streamsrv
from perf.table import bare

SIZE = Size(
    instances=2,
    rounds=1,
    rates=1,
    seconds=0.2,
    clients=(1,),
    tiles=20,
    cold_bytes=1,
    large=2 * bodies.CT_PIXELS,
    largest=4 * bodies.CT_PIXELS,
    loop=10,
    rest=0,
    asked=3,
    uploaded=2,
)
# Group -> the claims that are judged without a peer.
CLAIMS = {
    "study": [
        "store 2 CT instances of 526 kB, one POST, in relation to cp + fsync",
        "memory growth, store the study",
        "delete 2 CT instances of 526 kB",
        "first byte, retrieve the study, 1 at once",
        "first byte, retrieve the study, 4 at once",
        "memory growth, retrieve the study, 1 at once",
        "memory growth, retrieve the study, 4 at once",
    ],
    "large": [
        "store one instance of 0.00105 GB, in relation to cp + fsync",
        "store one instance of 0.0021 GB, in relation to cp + fsync",
        "memory growth, store one instance of 0.00105 GB",
        "memory growth, store one instance of 0.0021 GB",
        "first byte, retrieve one instance of 0.00105 GB",
        "memory growth, retrieve one instance of 0.00105 GB",
    ],
    "single": [],
    "frames": [],
    "places": [],
    "metadata": ["metadata of 2 instances, the first request after the store"],
    "latency": [
        "99 % of /health/live answered while a study streams cold",
        "99 % of metadata of one instance answered while a study streams cold",
    ],
}
OURS = (
    "streamsrv",
    "cp + fsync",
    "append, sync, commit",
    "streamsrv, quiet",
    "streamsrv, streaming",
    "streamsrv, without TLS",
)
NOT_AT_THIS_SIZE = ("frames of 21 kB, 16 at once", "CPU time, frames of 21 kB, n at once")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with streamsrv(tmp_path_factory.mktemp("measured"), "--workers", "1") as server:
        yield server


@pytest.fixture
def alone(server, monkeypatch):
    """No peers, and one server for all groups."""

    @contextlib.contextmanager
    def shared(folder, *flags):
        yield server
        for study in sorted(server.studies):
            run.forget(server, study)

    monkeypatch.setattr(servers, "streamsrv", shared)
    monkeypatch.setattr(servers, "peer", lambda name, folder, *more, **words: contextlib.nullcontext())
    monkeypatch.setattr(run, "WARMED", 2 << 20)
    monkeypatch.setenv("PATH", "/bin:/usr/sbin")  # without wrk, which measures for a second at least


@pytest.mark.parametrize("name", CLAIMS)
def test_a_group(name, tmp_path, alone):
    rows = list(measured(table.GROUPS[name], Run(tmp_path, SIZE)))
    assert any(row.subject in OURS[:1] + OURS[3:] and row.value is not None for row in rows)
    for row in rows:
        if row.measure not in NOT_AT_THIS_SIZE:
            assert (row.value is None) == (row.note == "not installed"), row
            assert row.subject in OURS or row.value is None, row
    assert [each.text for each in table.judgements(rows, [name])] == CLAIMS[name]


def test_the_group_of_tls(tmp_path, monkeypatch):
    """With servers of its own: they need a certificate."""
    monkeypatch.setattr(run, "WARMED", 2 << 20)
    monkeypatch.setattr(servers, "peer", lambda *words, **more: contextlib.nullcontext())
    rows = list(measured(table.GROUPS["tls"], Run(tmp_path, SIZE)))
    figures = {(row.measure.partition(" over")[0], row.subject) for row in rows if row.value is not None}
    measures = ("retrieve one instance of 0.423 MB", "CPU time, retrieve one instance of 0.423 MB")
    subjects = ("streamsrv", "streamsrv, without TLS")
    assert figures == {(measure, each) for measure in (*measures, "frames of 21 kB") for each in subjects}


# --- a server that was started elsewhere ---

NEEDED = ("X-Needed", "yes")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on if they have the header that is needed."""

    protocol_version = "HTTP/1.1"

    def relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers[NEEDED[0]] != NEEDED[1]:
            self.answer(403, [], b"")
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        with contextlib.closing(behind) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            self.answer(response.status, response.getheaders(), response.read())

    def answer(self, status, headers, payload):
        self.server.statuses.append((self.command, status))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_DELETE = relay

    def log_message(self, *words):
        pass


@pytest.fixture
def proxied(server, tmp_path):
    """A server behind a proxy that demands a header, with one study of its own."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        body = bodies.ct_study(900, 1)
        run.store_study(server, body, body.write(tmp_path / "own.body"))
        proxy.behind, proxy.statuses = server.port, []
        proxy.handle_error = lambda *_: None  # of clients that left
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server, proxy
        proxy.shutdown()
        thread.join()
    run.forget(server, body.study)


def test_a_server_at_a_url(tmp_path, proxied):
    behind, proxy = proxied
    target = Service.at(f"http://127.0.0.1:{proxy.server_address[1]}/v2", dict([NEEDED]))
    rows = []
    names = ("study", "frames", "single")
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        rows += measured(table.GROUPS[name], Run(folder, SIZE, target))
    figures = {row.measure for row in rows if row.value is not None}
    assert {
        "store 2 CT instances of 526 kB, one POST",
        "retrieve the study, 4 at once",
        "frames of 21 kB, 1 at once",
        "store CT instances one a POST, 8 at once",
    } <= figures
    assert {row.subject for row in rows if row.value is not None} == {"streamsrv"}
    reasons = {row.measure: row.note for row in rows if row.value is None and row.subject == "streamsrv"}
    for measure in ("CPU time, store the study", "memory growth, store the study"):
        assert reasons[measure] == "left out: it needs files, processes or settings of the server"
    assert not any(row.subject.startswith(("nginx", "Orthanc", "cp + fsync")) for row in rows)
    inside = [one.name for name in names for one in table.GROUPS[name].measures if "*inside*" in one.how]
    assert sorted(reasons) == sorted([*map(bare, inside), "frames of 21 kB, 16 at once"])
    assert {status for _, status in proxy.statuses} == {200, 204}
    with Client(behind) as client:
        left = client.get("/studies", keep=True).payload
    assert left.count(b'"0020000D"') == 1
    assert bodies.keys_of(900).study.encode() in left


def test_a_server_that_refuses_is_not_measured(tmp_path, proxied):
    target = Service.at(f"http://127.0.0.1:{proxied[1].server_address[1]}/v2", {})
    with pytest.raises(RuntimeError, match="403"):
        list(measured(table.GROUPS["study"], Run(tmp_path, SIZE, target)))


# --- an archive ---

STUDIES = 12
# A day at random may be one without a study.
MAY_BE_EMPTY = {
    "StudyDate, a day",
    "StudyDate, a month",
    "PatientName, beginning",
    "PatientName, within",
    "PerformedProcedureStepStartDate",
}


def test_an_archive_answers_every_key(server):
    archive.grow(server, 0, STUDIES)
    assert archive.grown(server) == STUDIES * archive.A_STUDY
    numbers = random.Random(1)
    with Client(server) as client:
        for name, template in archive.KEYS.items():
            payload = client.get(archive.path_of(template, numbers, STUDIES), keep=True).payload
            assert payload not in (b"", b"[]") or name in MAY_BE_EMPTY, name


SUMMARY = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 93.10    0.052001         433       120           fdatasync
  6.90    0.003850           4       963        12 writev
------ ----------- ----------- --------- --------- ----------------
100.00    0.055851          51      1083        12 total
"""


def test_calls_of_a_summary():
    assert calls_in(SUMMARY) == {"fdatasync": 120, "writev": 963}

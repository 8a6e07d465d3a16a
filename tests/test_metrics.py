"""`/metrics` of a real server: all workers together, also after kill -9; and the cells of the counters."""

import http.client
import os
import re
import signal
import subprocess
import time

import pytest
import store_kinds
from kill_world import children, verb, waited
from live_server import ROOT, executable, free_port, start_server
from prometheus_client.parser import text_string_to_metric_families
from small_client import WHOLE, Client, file_of, key_of, path_of

from streamsrv import errors
from streamsrv.companions.exposition import STORE_DOWN, ServerCollector, StoreReader
from streamsrv.companions.families import DEFINITIONS
from streamsrv.events.hooks import hooks_of
from streamsrv.metrics import (
    STATUSES,
    Gauge,
    MetricsBoard,
    RequestCounts,
    RequestKind,
    ServerCell,
    Way,
)
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.web.actions import KINDS, request_kind
from streamsrv.wire.resources import Kind

PATIENCE = 120.0  # seconds; the scrubber gives way to all other work
FRAME = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


class Monitored:
    def __init__(self, folder, *flags, workers=2):
        self.port = free_port()
        self.server = start_server(folder, "--metrics-port", str(self.port), *flags, workers=workers)
        self.client = Client(self.server.origin)

    def get(self, path="/metrics", method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def families(self):
        status, _, text = self.get()
        assert status == 200
        return {each.name: each for each in text_string_to_metric_families(text.decode())}

    def value(self, name, **labels):
        """The sum of the samples with these labels."""
        samples = self.families()[re.sub(r"_(total|sum|count|bucket)$", "", name)].samples
        return sum(
            each.value for each in samples if each.name == name and labels.items() <= each.labels.items()
        )

    def until(self, expected, name, **labels):
        deadline = time.monotonic() + PATIENCE
        while (found := self.value(name, **labels)) != expected:
            assert time.monotonic() < deadline, (name, labels, found)
            time.sleep(0.1)

    def workers(self):
        return [pid for pid in children(self.server.process.pid) if is_running(pid, "streamsrv.server")]

    def end(self):
        """As systemd does it: every process of the service gets SIGTERM."""
        self.client.close()
        for pid in children(self.server.process.pid):
            if is_running(pid, "streamsrv.companions.exposition"):
                os.kill(pid, signal.SIGTERM)
        assert self.get()[0] == 200
        assert self.server.end() == 0
        assert "ended with code -15" not in self.server.log.read_text()


def is_running(pid, module):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return module.encode() in file.read()
    except OSError:
        return False


@pytest.fixture(scope="module")
def monitored(tmp_path_factory):
    # Nothing listens on the port of the syslog receiver.
    audited = "--audit", "on", "--audit-syslog", "localhost:9", "--hooks"
    one = Monitored(tmp_path_factory.mktemp("metrics"), "--scrub-days", "0.0001", *audited)
    yield one
    one.end()


def test_each_request_is_counted_with_its_bytes(monitored):
    client, key = monitored.client, key_of(1, 1, 1)
    file = file_of(key, 1, 20_000)
    assert client.ask("POST", "/studies", file, **{"Content-Type": "application/dicom"}).status == 200
    for _ in range(6):
        reply = client.ask("GET", f"{path_of(key)}/frames/1", **FRAME)
        assert reply.status == 200
    whole = client.ask("GET", path_of(key), Accept=WHOLE)
    assert client.ask("GET", "/studies/9.9.9/metadata").status == 404
    assert client.ask("GET", "/nothing/here").status == 404
    assert client.ask("DELETE", path_of(key_of(8, 1, 1))).status == 404
    requests = "streamsrv_requests_total"
    monitored.until(1, requests, transaction="store", status="200")
    monitored.until(6, requests, transaction="frames", status="200")
    monitored.until(1, requests, transaction="metadata", status="404")
    monitored.until(1, requests, transaction="other", status="404")
    monitored.until(1, requests, transaction="delete", status="404")
    monitored.until(len(file), "streamsrv_request_bytes_total")
    monitored.until(6 * len(reply.body), "streamsrv_response_bytes_total", transaction="frames")
    monitored.until(len(whole.body), "streamsrv_response_bytes_total", transaction="instances")
    name = "streamsrv_request_duration_seconds"
    assert monitored.value(f"{name}_count", transaction="frames") == 6
    assert monitored.value(f"{name}_bucket", transaction="frames", le="+Inf") == 6
    assert 0 < monitored.value(f"{name}_sum", transaction="frames") < PATIENCE


def test_cached_frames_are_counted(monitored):
    """An instance may be answered from the cache when it is two seconds old."""
    key, deadline = key_of(4, 1, 1), time.monotonic() + PATIENCE
    monitored.client.store([file_of(key, 1, 20_000)])

    def counted():
        samples = monitored.families()["streamsrv_requests"].samples
        cached = [each for each in samples if each.labels.get("way") == "cached-frame"]
        return {each.labels["transaction"] for each in cached if each.value}

    while not (found := counted()):
        assert time.monotonic() < deadline
        for _ in range(5):
            assert monitored.client.ask("GET", f"{path_of(key)}/frames/1", **FRAME).status == 200
    assert found == {"frames"}


def test_a_hook_that_cannot_deliver_is_seen(monitored):
    """Nothing listens on the port of its receiver."""
    data = ("--data", str(monitored.server.data))
    url = f"http://127.0.0.1:{free_port()}"
    assert verb("hook", "add", url, "--name", "a", "--events", "create", "--allow-local", *data)[0] == 0
    hooks = hooks_of(store_kinds.settings_for(monitored.server.data))
    waited(lambda: hooks.state("a").last_id, "the begin of the hook")
    for number in range(3):
        monitored.client.store([file_of(key_of(6, 1, number), 1, 200)])
    monitored.until(1, "streamsrv_hooks", state="failing")
    monitored.until(3, "streamsrv_hook_waiting")
    assert monitored.value("streamsrv_hook_dead_letters") == 0
    assert verb("hook", "remove", "a", *data)[0] == 0
    monitored.until(0, "streamsrv_hooks")


@pytest.mark.embedded("scrub reads segment files")
def test_the_families_are_those_of_the_table(monitored):
    monitored.client.store([file_of(key_of(2, 1, 1), 1, 20_000)])
    monitored.until(0, "streamsrv_scrub_unverified_bytes")
    found = monitored.families()
    expected = {each.full_name.removesuffix("_total"): each for each in DEFINITIONS}
    assert found.keys() == expected.keys()
    for name, family in found.items():
        assert family.type == expected[name].kind
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(expected[name].labels), name


@pytest.mark.embedded("it tells the size of the file of the index")
def test_the_state_of_the_store(monitored):
    monitored.client.store([file_of(key_of(3, 1, number), 1, 20_000) for number in (1, 2)])

    values = {
        name: monitored.value(f"streamsrv_{name}")
        for name in ("store_up", "workers_ready", "damaged_instances", "scrub_period_seconds")
    }
    assert values == {
        "store_up": 1,
        "workers_ready": 2,
        "damaged_instances": 0,
        "scrub_period_seconds": pytest.approx(8.64),
    }
    studies = len(monitored.client.ask("GET", "/studies").json())
    monitored.until(studies, "streamsrv_studies")
    assert monitored.value("streamsrv_segment_bytes", state="live") > 40_000
    assert monitored.value("streamsrv_index_bytes", state="used") > 4_096
    assert monitored.value("streamsrv_disk_free_bytes") > monitored.value("streamsrv_disk_reserve_bytes") > 0
    monitored.until(0, "streamsrv_scrub_unverified_bytes")
    assert monitored.value("streamsrv_scrub_bytes_total") > 0
    assert abs(monitored.value("streamsrv_start_time_seconds") - time.time()) < 600


def test_labels_have_fixed_values(monitored):
    """Whatever a client sends: a series for each path would fill the memory of Prometheus."""
    for number in range(20):
        monitored.client.ask("GET", f"/studies/1.2.3.{number}")
        monitored.client.ask("GET", f"/secret-{number}")
    monitored.until(20, "streamsrv_requests_total", transaction="instances", status="404")
    _, _, text = monitored.get()
    assert b"1.2.3." not in text
    assert b"secret" not in text
    for sample in monitored.families()["streamsrv_requests"].samples:
        assert sample.labels["transaction"] in set(RequestKind)
        assert sample.labels["way"] in set(Way)
        assert int(sample.labels["status"]) in STATUSES


def test_counters_never_decrease_when_workers_are_killed(monitored):
    name = {"name": "streamsrv_requests_total", "transaction": "search"}
    assert monitored.client.store([file_of(key_of(7, 1, 1), 1, 500)]).status == 200
    for _ in range(5):
        monitored.client.ask("GET", "/studies?limit=1")
    time.sleep(0.6)  # a worker copies its counts at each heartbeat
    before, ends = monitored.value(**name), monitored.value("streamsrv_worker_ends_total")
    assert before >= 5
    victims = monitored.workers()
    assert len(victims) == 2
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    monitored.until(ends + 2, "streamsrv_worker_ends_total")
    assert monitored.value(**name) == before
    monitored.until(2, "streamsrv_workers_ready")
    monitored.client.close()
    assert monitored.client.ask("GET", "/studies?limit=1").status == 200
    monitored.until(before + 1, **name)


def test_the_metrics_process_is_replaced(monitored):
    assert monitored.get()[0] == 200  # it has started
    (pid,) = (
        pid
        for pid in children(monitored.server.process.pid)
        if is_running(pid, "streamsrv.companions.exposition")
    )
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while f"the metrics process {pid} ended with code -9" not in monitored.server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert monitored.get()[0] == 200  # it waits in the queue of the socket


def test_only_metrics_are_answered_there(monitored):
    assert monitored.get("/")[0] == monitored.get("/v2/studies")[0] == 404
    assert monitored.get(method="POST")[0] == 405
    assert monitored.client.ask("GET", "/metrics").status == 404
    single = monitored.get("/metrics?name[]=streamsrv_workers")[2].decode()
    assert [line for line in single.splitlines() if not line.startswith("#")] == ["streamsrv_workers 2.0"]
    _, headers, _ = monitored.get(Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    with open("/proc/net/tcp") as file:
        found = [line.split()[1] for line in file if f":{monitored.port:04X} 00000000:0000 0A" in line]
    assert found == [f"0100007F:{monitored.port:04X}"]  # loopback alone


def test_a_port_in_use_ends_the_server_with_a_sentence(tmp_path, monitored):
    flags = ["--port", "0", "--data", str(tmp_path / "d"), "--metrics-port", str(monitored.port)]
    ended = run(flags)
    assert ended.returncode == 1
    assert f"streamsrv: cannot listen on 127.0.0.1 port {monitored.port}: " in ended.stderr


def run(flags):

    return subprocess.run([*executable(), "serve", *flags], capture_output=True, text=True, timeout=PATIENCE)


# Without a server


def test_a_store_that_cannot_be_read_is_a_metric(tmp_path):
    settings = Settings(data=str(tmp_path / "none"))
    assert StoreReader(settings).samples() == STORE_DOWN


def test_an_empty_store_without_a_server(tmp_path):
    settings = Settings(data=str(tmp_path / "data"), max_uploads=8)
    Store.open(tmp_path / "data").close()
    board, reader = MetricsBoard.make(3), StoreReader(settings)
    found = {each.name: each for each in ServerCollector(board, {}, settings, reader).collect()}
    assert found["streamsrv_uploads_limit"].samples[0].value == 24
    assert found["streamsrv_store_up"].samples[0].value == 1
    assert "streamsrv_scrub_oldest_verified_timestamp_seconds" not in found
    first = reader.samples()
    assert reader.samples() is first  # a second scrape reads nothing


def test_a_new_worker_continues_the_block_of_the_former():
    board = MetricsBoard.make(2)
    place = RequestKind.FRAMES, 200, Way.CACHED_FRAME
    for worker in (0, 1):
        counts = RequestCounts(board.block(worker))
        counts.watch(Gauge.UPLOADS, lambda: 3)
        counts.tally(*place).add(10, 1, 0.004)
        assert counts.by_way() == {Way.CACHED_FRAME: 1}
        counts.publish()
    assert board.gauge(Gauge.UPLOADS) == 6
    board.worker_ended(0)
    assert board.gauge(Gauge.UPLOADS) == 3
    again = RequestCounts(board.block(0))
    assert again.by_way() == {}
    again.tally(*place).add(10, 0, 100.0)
    again.tally(RequestKind.OTHER, 999, Way.PLAIN).add(0, 0, 0.0001)
    again.publish()
    board.add(ServerCell.WORKER_ENDS)
    totals = board.totals()[RequestKind.FRAMES]
    assert (totals.sent, totals.received) == (30, 2)
    assert totals.seconds == pytest.approx(100.008)
    assert (sum(totals.buckets), totals.buckets[-1]) == (3, 1)
    assert [each for each in totals.requests if each[2]] == [(200, Way.CACHED_FRAME, 3)]
    assert board.value(ServerCell.WORKER_ENDS) == 1
    assert board.totals()[RequestKind.STORE].sent == 0
    other = board.totals()[RequestKind.OTHER]
    assert (other.buckets[0], (0, Way.PLAIN, 1) in other.requests) == (1, True)


def test_every_status_and_resource_has_its_place():
    found = {value.status for value in vars(errors).values() if hasattr(value, "status")}
    assert found <= set(STATUSES)
    assert KINDS.keys() == set(Kind)
    assert request_kind("OPTIONS", "*") is RequestKind.DESCRIPTION
    assert request_kind("POST", "/v2/studies") is RequestKind.STORE
    assert request_kind("HEAD", "/v2/studies/1.2/metadata") is RequestKind.METADATA
    assert request_kind("PUT", "/v2/studies") is request_kind("-", "-") is RequestKind.OTHER


def test_documentation_and_files_name_existing_metrics():
    known = {each.full_name for each in DEFINITIONS}
    known |= {f"{each.full_name}_{end}" for each in DEFINITIONS for end in ("bucket", "sum", "count")}
    for path in ("conf/grafana-dashboard.json", "conf/prometheus-rules.yml", "docs/monitoring.md"):
        named = set(re.findall(r"\bstreamsrv_[a-z_]+", (ROOT / path).read_text()))
        assert named
        assert named <= known, path
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert not [each.full_name for each in DEFINITIONS if f"| `{each.full_name}` | " not in page]

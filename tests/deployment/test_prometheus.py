"""conf/prometheus.yml, conf/prometheus-rules.yml and conf/grafana-dashboard.json in a real Prometheus, which
scrapes a real server; and each alert rule on series of its own, by promtool."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from conftest import running
from live_server import ROOT, environment, executable, free_port, start_server
from small_client import Client, file_of, key_of, path_of

CONF = ROOT / "conf"
RULES = CONF / "prometheus-rules.yml"
JOB = 'job="streamsrv", instance="a:1"'
PATIENCE = 120.0
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def promtool(*arguments, **options):
    ended = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def rules():
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def expressions():
    """(title of a panel, expression) of the dashboard, with its variables filled in."""
    for panel in json.loads((CONF / "grafana-dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield panel["title"], text


# Alert rules on series of their own


def s(name, values, **labels):
    """A series of one value a minute, in the notation of promtool."""
    more = "".join(f', {label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{JOB}{more}}}", "values": values}


def m(name, values, **labels):
    return s(f"streamsrv_{name}", values, **labels)


def requests(status, values):
    return m("requests_total", values, transaction="frames", status=status, way="plain")


def searches(slow):
    """600 searches a minute, 60 of them over a second or not."""
    name = "request_duration_seconds_bucket"
    fast = "0+540x60" if slow else "0+600x60"
    bounds = {"1.0": fast, "2.5": "0+600x60", "+Inf": "0+600x60"}
    return [m(name, values, transaction="search", le=bound) for bound, values in bounds.items()]


# Alert -> (series that fire it within 50 minutes, series that do not).
CASES = {
    "StreamsrvDown": ([s("up", "0x60")], [s("up", "1x60")]),
    "StreamsrvWorkersMissing": (
        [m("workers", "4x60"), m("workers_ready", "3x60")],
        [m("workers", "4x60"), m("workers_ready", "4x48 3x1 4x10")],
    ),
    "StreamsrvWorkersEnd": ([m("worker_ends_total", "0x40 4x20")], [m("worker_ends_total", "0x40 1x20")]),
    "StreamsrvWorkerHangs": ([m("worker_hangs_total", "0x40 1x20")], [m("worker_hangs_total", "7x60")]),
    "StreamsrvStoreUnreadable": ([m("store_up", "0x60")], [m("store_up", "1x60")]),
    "StreamsrvErrors": (
        [requests("200", "0+900x60"), requests("500", "0+100x60")],
        [requests("200", "0+999x60"), requests("500", "0+1x60"), requests("503", "0+500x60")],
    ),
    "StreamsrvOverloaded": (
        [requests("200", "0+900x60"), requests("503", "0+100x60")],
        [requests("200", "0+999x60"), requests("503", "0+1x60")],
    ),
    "StreamsrvSlowSearches": (searches(slow=True), searches(slow=False)),
    "StreamsrvPixelQueue": (
        [m("pixel_tasks", "3x60", state="queued")],
        [
            m("pixel_tasks", "3 3 0 3 3 0 3 3 0 0x60", state="queued"),
            m("pixel_tasks", "9x60", state="running"),
        ],
    ),
    "StreamsrvPixelProcessesEnd": (
        [m("pixel_process_ends_total", "0+1x60")],
        [m("pixel_process_ends_total", "0x40 3x20")],
    ),
    "StreamsrvUploadsNearLimit": (
        [m("uploads", "60x60"), m("uploads_limit", "64x60")],
        [m("uploads", "60x60"), m("uploads_limit", "0x60")],
    ),
    "StreamsrvConnectionsNearLimit": (
        [m("connections", "990x60"), m("connections_limit", "1000x60")],
        [m("connections", "500x60"), m("connections_limit", "1000x60")],
    ),
    "StreamsrvDiskFull": (
        [m("disk_free_bytes", "5x60"), m("disk_reserve_bytes", "10x60")],
        [m("disk_free_bytes", "15x60"), m("disk_reserve_bytes", "10x60")],
    ),
    "StreamsrvDiskFillsUp": (
        [
            m("disk_free_bytes", "9000-10x60"),
            m("disk_size_bytes", "100000x60"),
            m("disk_reserve_bytes", "100x60"),
        ],
        [
            m("disk_free_bytes", "9000x60"),
            m("disk_size_bytes", "100000x60"),
            m("disk_reserve_bytes", "100x60"),
        ],
    ),
    "StreamsrvDeadBytes": (
        [m("segment_bytes", "20e9x40", state="dead"), m("segment_bytes", "30e9x40", state="live")],
        [m("segment_bytes", "20e9x40", state="dead"), m("segment_bytes", "90e9x40", state="live")],
    ),
    "StreamsrvDamagedInstances": ([m("damaged_instances", "1x60")], [m("damaged_instances", "0x60")]),
    "StreamsrvScrubLate": (
        [
            m("scrub_oldest_verified_timestamp_seconds", "0x40"),
            m("scrub_period_seconds", "600x40"),
        ],
        [m("scrub_oldest_verified_timestamp_seconds", "0x40"), m("scrub_period_seconds", "0x40")],
    ),
    "StreamsrvLostAndFound": ([m("lost_and_found_bytes", "512x60")], [m("lost_and_found_bytes", "0x60")]),
    "StreamsrvRefusals": (
        [requests("401", "0+50x60"), requests("429", "0+50x60")],
        [requests("401", "0+10x60"), requests("404", "0+900x60")],
    ),
    "StreamsrvAuditUnwritten": ([m("audit_waiting", "3x60")], [m("audit_waiting", "3 0 2 0x60")]),
    "StreamsrvAuditUnsent": (
        [m("audit_entries_total", "5x10 5+1x50"), m("audit_unsent", "0x10 0+1x50")],
        [m("audit_entries_total", "5+9x60"), m("audit_unsent", "4x60")],
    ),
    "StreamsrvHookFails": (
        [m("hooks", "1x60", state="failing")],
        [m("hooks", "1 0 1x5 0x60", state="failing")],
    ),
    "StreamsrvHookDeadLetters": ([m("hook_dead_letters", "2x40 3x20")], [m("hook_dead_letters", "2x60")]),
}
# These fire after hours, so their series have one value an hour.
LATE = {"StreamsrvDeadBytes", "StreamsrvScrubLate"}


def unit_test(alert, series, interval, *, fires):
    """A test of promtool: whether the alert fires, after 50 of 60 values, or 39 of 40."""
    at = "39h" if interval == "1h" else "50m"
    state = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    found = [{"labels": "{}", "value": int(fires)}]
    check = {"expr": f"sum({state}) or vector(0)", "eval_time": at, "exp_samples": found}
    return {"interval": interval, "input_series": series, "promql_expr_test": [check]}


@pytest.mark.parametrize("interval", ["1m", "1h"])
def test_each_alert_fires_when_it_should_and_only_then(tmp_path, interval):
    assert CASES.keys() == rules().keys()
    tests = [
        unit_test(alert, series, interval, fires=fires)
        for alert, case in CASES.items()
        if (alert in LATE) == (interval == "1h")
        for series, fires in zip(case, (True, False), strict=True)
    ]
    path = tmp_path / "tests.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}
    path.write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", path)


def test_the_files_are_valid():
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("check", "config", CONF / "prometheus.yml")


def test_every_alert_is_documented():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert not [alert for alert in rules() if f"| `{alert}` | " not in page]


# A real Prometheus


class Prometheus:
    def __init__(self, port, server):
        self.port, self.server = port, server

    def ask(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                raise
            raise AssertionError(error.read().decode()) from None

    def query(self, expression):
        return self.ask("query", query=expression)["result"]

    def until(self, true):
        deadline = time.monotonic() + PATIENCE
        while not (found := true()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """Prometheus with the files of conf/. The ports and the intervals are replaced, and nothing else."""
    folder = tmp_path_factory.mktemp("prometheus")
    metrics, port = free_port(), free_port()
    flags = ("--metrics-port", str(metrics), "--scrub-days", "0.0001", "--scrub-rate", "0")
    server = start_server(folder / "server", *flags, variables={"STREAMSRV_MIN_FREE": "0"})
    text = (CONF / "prometheus.yml").read_text()
    for old, new in {"127.0.0.1:9443": f"127.0.0.1:{metrics}", "interval: 15s": "interval: 1s"}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    (folder / RULES.name).write_bytes(RULES.read_bytes())
    one = Prometheus(port, server)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]

    def is_up():
        try:
            return any(found["value"][1] == "1" for found in one.query('up{job="streamsrv"}'))
        except OSError:
            return False

    client = Client(server.origin)
    try:
        key = key_of(1, 1, 1)
        assert client.store([file_of(key, 1, 20_000)]).status == 200
        with running(command, is_up, folder / "log", env=os.environ | {"GOMAXPROCS": "1"}):
            for _ in range(20):
                assert client.ask("GET", f"{path_of(key)}/frames/1", Accept=FRAME).status == 200
                assert client.ask("GET", "/studies").status == 200
            yield one
    finally:
        client.close()
        server.end()


def test_prometheus_scrapes_the_server(scraped):
    expression = 'sum(streamsrv_requests_total{transaction="frames", status="200"})'
    scraped.until(lambda: [one["value"][1] for one in scraped.query(expression)] == ["20"])
    assert scraped.query("streamsrv_build_info")[0]["metric"]["job"] == "streamsrv"
    with urllib.request.urlopen(f"http://{scraped.query('up')[0]['metric']['instance']}/metrics") as answer:
        text = answer.read()
    promtool("check", "metrics", input=text.decode())


def test_every_panel_of_the_dashboard_has_data(scraped):
    scraped.until(lambda: scraped.query("streamsrv_scrub_oldest_verified_timestamp_seconds"))
    queries = list(expressions())
    assert len(queries) > 25
    for title, expression in queries:
        scraped.until(lambda expression=expression: scraped.query(expression))
        values = [float(one["value"][1]) for one in scraped.query(expression)]
        assert values, title
        # Not a number: the quantile of a transaction without requests.
        assert all(value >= 0 or value != value for value in values), title


def test_every_rule_is_evaluated_and_an_alert_fires(scraped):
    (group,) = scraped.until(lambda: scraped.ask("rules")["groups"])
    scraped.until(lambda: all(one["health"] == "ok" for one in scraped.ask("rules")["groups"][0]["rules"]))
    assert [one["name"] for one in group["rules"]] == list(rules())
    assert not scraped.query('ALERTS{alertname="StreamsrvDamagedInstances"}')
    damage(scraped.server.data)
    verb = [*executable(), "check", "--segments", "--data", str(scraped.server.data)]
    assert subprocess.run(verb, env=environment(), capture_output=True).returncode == 1
    found = scraped.until(
        lambda: scraped.query('ALERTS{alertname="StreamsrvDamagedInstances", alertstate="firing"}')
    )
    assert found[0]["metric"]["severity"] == "critical"


def damage(data):
    """Flip a bit in the pixels of the instance."""
    content = file_of(key_of(1, 1, 1), 1, 20_000)
    (path,) = (path for path in (data / "segments").iterdir() if content in path.read_bytes())
    with path.open("r+b") as file:
        at = path.read_bytes().find(content) + len(content) - 500
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))

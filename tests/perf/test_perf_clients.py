"""The clients of perf/ count whole answers only, and none that was refused."""

import http.server
import os
import threading

import pytest

from perf.answers import within
from perf.clients import Answered, Client, Load, Timed, percentile, run, started, together, wrk_printed
from perf.run import drop_from_memory
from perf.servers import Service, cpu_seconds

PAYLOAD = bytes(range(256)) * 1200


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Accept"], self.headers["Accept-Encoding"]))
        self.server.headers.append(self.headers)
        self.send_response(404 if self.path.endswith("/missing") else 200)
        if self.path.endswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n3\r\nabc\r\n0\r\n\r\n" % (len(PAYLOAD), PAYLOAD))
            return
        if self.path.endswith("/ending"):
            self.send_header("Connection", "close")
        elif self.path.endswith("/cut"):
            self.send_header("Content-Length", str(2 * len(PAYLOAD)))
        else:
            self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write(PAYLOAD)
        self.close_connection = self.path.endswith(("/ending", "/cut"))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body, None))
        self.send_response(409 if self.path.endswith("/refused") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def listening():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.asked, listening.headers = [], []
        listening.handle_error = lambda *_: None  # of clients that left
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture
def server(listening):
    return Service("streamsrv", listening.server_address[1], "/pre", headers={"X-Needed": "yes"})


def load(server, *paths, seconds=0.15, **more):
    return Load(server, paths, "image/jls", "gzip", seconds=seconds, **more)


@pytest.mark.parametrize("path", ["/a", "/ending"])
def test_a_flood_counts_whole_answers(listening, server, path):
    _, total, answers = run(load(server, path, clients=3))
    assert answers
    assert total == len(answers) * len(PAYLOAD)
    assert set(listening.asked) == {("/pre" + path, "image/jls", "gzip")}
    assert all(headers["X-Needed"] == "yes" for headers in listening.headers)


def test_paths_take_turns(listening, server):
    run(load(server, "/a", "/b", "/c", clients=2))
    counts = [sum(path == each for path, *_ in listening.asked) for each in ("/pre/a", "/pre/b", "/pre/c")]
    assert max(counts) - min(counts) <= 2


def test_a_gap_counts_from_the_answer(server):
    _, _, answers = run(load(server, "/a", seconds=0.2, gap=0.03))
    begins = [answer.began for answer in answers]
    ends = [answer.began + answer.seconds for answer in answers]
    assert all(begin >= end + 0.03 for end, begin in zip(ends, begins[1:], strict=False))


@pytest.mark.parametrize(("path", "fault"), [("/missing", RuntimeError), ("/cut", ConnectionError)])
def test_no_refusals_and_no_pieces(server, path, fault):
    with pytest.raises(fault):
        run(load(server, path, seconds=5))
    with Client(server) as client, pytest.raises(fault):
        client.get(path)


def test_a_process_counts_the_same(server):
    answered = load(server, "/a", large=True).answered(2, 0.2)
    assert answered.rate > 0
    assert answered.megabytes == pytest.approx(answered.rate * len(PAYLOAD) / 1e6)
    assert answered.p50 <= answered.p95 <= answered.p99
    with pytest.raises(RuntimeError):
        load(server, "/missing", large=True).answered(1, 0.2)


@pytest.mark.parametrize("first", [False, True])
def test_a_process_asks_until_the_block_ends(listening, server, first):
    with started(Load(server, ["/a"], gap=0.005, first=first)) as seen:
        while len(listening.asked) < 4:
            pass
    assert len(seen.answers) >= 3
    assert seen.answers == sorted(seen.answers)
    assert seen.answered.rate > 0


def test_a_block_that_ends_at_once_waits_for_an_answer(server):
    with started(Load(server, ["/a"], gap=0.005)) as seen:
        pass
    assert len(seen.answers) >= 1


def test_a_client_keeps_or_counts_a_payload(server):
    with Client(server) as client:
        for path, length in (("/a", 0), ("/ending", 0), ("/chunked", 3), ("/a", 0)):
            assert client.get(path).length == len(PAYLOAD) + length
        assert client.get("/a", keep=True).payload == PAYLOAD
        chunked = client.get("/chunked", keep=True)
        assert chunked.payload == PAYLOAD + b"abc"
        assert 0 < chunked.first_byte <= chunked.seconds
        assert client.get("//a").length == len(PAYLOAD)


def test_a_path_at_the_root_is_not_below_the_prefix(listening, server):
    with Client(server) as client:
        client.get("//health")
    assert listening.asked[0][0] == "/health"


def test_a_file_is_posted(listening, server, tmp_path):
    (tmp_path / "body").write_bytes(PAYLOAD)
    with Client(server) as client:
        client.send_file("/a", "text/plain", tmp_path / "body")
        with pytest.raises(RuntimeError, match="409"):
            client.send_file("/refused", "text/plain", tmp_path / "body")
    assert listening.asked == [("/pre/a", PAYLOAD, None), ("/pre/refused", PAYLOAD, None)]


def test_work_is_done_once_by_several_clients(listening, server):
    assert together(3, server, [lambda client, n=n: client.get(f"/{n}") for n in range(9)]) > 0
    assert sorted(path for path, *_ in listening.asked) == [f"/pre/{n}" for n in range(9)]


def test_a_rate_without_wrk(server, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Load(server, ["/a"]).answered(1, 0.2).rate > 0


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("http://host:8080/v2/", ("host", 8080, "/v2", False)),
        ("https://host/dicom-web", ("host", 443, "/dicom-web", True)),
        ("http://host", ("host", 80, "", False)),
    ],
)
def test_a_url(url, where):
    server = Service.at(url, {"A": "b"})
    assert (server.host, server.port, server.prefix, server.tls) == where
    assert (server.pid, server.folder, server.headers) == (0, None, {"A": "b"})


@pytest.mark.parametrize("url", ["host:8080", "ftp://host/", "/v2"])
def test_a_url_of_no_http_server(url):
    with pytest.raises(ValueError):
        Service.at(url, {})


def test_percentiles():
    values = [float(each) for each in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50, 99, 7)
    assert percentile(values[:20], 0.95) == 19
    assert Answered.of(values, 2.0, 4_000_000) == Answered(50.0, 50, 95, 99, 2.0)
    with pytest.raises(RuntimeError):
        Answered.of([], 1.0, 0)


def test_the_line_of_wrk():
    figures = '"requests": 1000, "microseconds": 2000000, "bytes": 3000000, "failed": 0'
    line = f'Requests/sec: 5\n{{{figures}, "times": [1500.0, 2500.0, 9000.0]}}\n'
    assert wrk_printed(line) == Answered(500.0, 1.5, 2.5, 9.0, 1.5)
    for text in (line.replace(": 0,", ": 7,"), "Requests/sec: 5\n"):
        with pytest.raises(RuntimeError):
            wrk_printed(text)


def test_only_requests_that_began_in_time_count():
    answers = [Timed(began, began / 10) for began in (0.9, 1.0, 1.9, 2.0, 3.5, 5.0)]
    assert [one.began for one in within([(1.0, 2.0), (3.0, 4.0)], answers)] == [1.0, 1.9, 3.5]


def test_bytes_beside_a_study_are_not_dropped(tmp_path, monkeypatch):
    path, dropped = tmp_path / "1", []
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr("os.posix_fadvise", lambda fd, *asked: dropped.append(asked[:2]))
    drop_from_memory({path: (10, 30)})
    assert dropped == [(10, 20)]


def test_time_passes():
    before = cpu_seconds(os.getpid())
    while os.times().user + os.times().system < before + 0.1:
        pass
    assert cpu_seconds(os.getpid()) >= before + 0.05

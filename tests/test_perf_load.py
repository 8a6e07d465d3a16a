"""The clients of perf/ count what they were given: each answer whole, and none that was refused."""

import http.server
import threading

import pytest

from perf.flood import Order, flood, run, viewing
from perf.load import Answered, Client, percentile, wrk_said

PAYLOAD = bytes(range(256)) * 1200


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Accept"], self.headers["Accept-Encoding"]))
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/ending":
            self.send_header("Connection", "close")
        elif self.path == "/cut":
            self.send_header("Content-Length", str(2 * len(PAYLOAD)))
        else:
            self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write(PAYLOAD)
        self.close_connection = self.path in ("/ending", "/cut")

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body, None))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.asked = []
        listening.handle_error = lambda *_: None  # of clients that left
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/a", "/ending"])
def test_a_flood_counts_whole_answers(server, path):
    order = Order(server.server_address[1], [path], "image/jls", 3, 0.2, encoding="gzip")
    _, total, latencies = run(order)
    assert latencies
    assert total == len(latencies) * len(PAYLOAD)
    assert set(server.asked) == {(path, "image/jls", "gzip")}


def test_paths_take_turns(server):
    run(Order(server.server_address[1], ["/a", "/b", "/c"], "*/*", 2, 0.2))
    counts = [sum(path == each for each, *_ in server.asked) for path in ("/a", "/b", "/c")]
    assert max(counts) - min(counts) <= 2


def test_a_viewer_asks_at_its_pace(server):
    _, _, latencies = run(Order(server.server_address[1], ["/a"], "*/*", 2, 0.5, pause=0.1))
    assert 1 <= len(latencies) <= 10


@pytest.mark.parametrize(("path", "fault"), [("/missing", RuntimeError), ("/cut", ConnectionError)])
def test_a_flood_takes_no_refusals_and_no_pieces(server, path, fault):
    with pytest.raises(fault):
        run(Order(server.server_address[1], [path], "*/*", 1, 0.5))


def test_a_process_of_its_own(server):
    answered = flood(server.server_address, ["/a"], "*/*", 2, 0.2)
    assert answered.rate > 0
    assert answered.megabytes == pytest.approx(answered.rate * len(PAYLOAD) / 1e6)
    assert answered.p50 <= answered.p95 <= answered.p99


def test_viewers_look_until_the_block_ends(server):
    with viewing(Order(server.server_address[1], ["/a"], "*/*", 1, 0, pause=0.01)) as seen:
        while len(server.asked) < 5:
            pass
    assert seen[0].rate > 0


def test_a_flood_that_is_refused_fails(server):
    with pytest.raises(RuntimeError):
        flood(server.server_address, ["/missing"], "*/*", 1, 0.2)


def test_a_file_goes_by_put(server, tmp_path):
    (tmp_path / "body").write_bytes(PAYLOAD)
    with Client(server.server_address) as client:
        assert client.put_file("/put/a", tmp_path / "body").status == 201
    assert server.asked == [("/put/a", PAYLOAD, None)]


def test_percentiles():
    values = [float(each) for each in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50, 99, 7)
    assert percentile(values[:20], 0.95) == 19
    assert Answered.of(values, 2.0, 4_000_000) == Answered(50.0, 50, 95, 99, 2.0)
    with pytest.raises(RuntimeError):
        Answered.of([], 1.0, 0)


def test_what_wrk_says():
    line = "Requests/sec: 5\nanswered 1000 2000000 3000000 0 1500.000000 2500.000000 9000.000000\n"
    assert wrk_said(line) == Answered(500.0, 1.5, 2.5, 9.0, 1.5)
    with pytest.raises(RuntimeError):
        wrk_said(line.replace(" 0 ", " 7 "))
    with pytest.raises(RuntimeError):
        wrk_said("Requests/sec: 5\n")

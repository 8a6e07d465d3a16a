"""What fairness measures: the requests of the right time, and data that is cold where it should be."""

import http.server
import os
import threading

import pytest

from perf.fairness import Stretch, drop_from_memory, within
from perf.ping import Ping, pinging_apart


def test_only_requests_that_began_in_time_count():
    pings = [Ping(began, began / 10) for began in (0.9, 1.0, 1.9, 2.0, 3.5, 5.0)]
    assert within([(1.0, 2.0), (3.0, 4.0)], pings) == pytest.approx([0.1, 0.19, 0.35])


def test_what_lies_beside_a_stretch_is_not_dropped(tmp_path, monkeypatch):
    path, dropped = tmp_path / "1", []
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *asked: dropped.append(asked))
    drop_from_memory([Stretch(path, 10, 30), Stretch(path, 40, 40)])
    assert dropped == [(10, 20, os.POSIX_FADV_DONTNEED)]


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *said):
        pass


def test_pings_come_from_another_process():
    asked = threading.Semaphore(0)

    class Counted(Hello):
        def do_GET(self):
            super().do_GET()
            asked.release()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pinging_apart(server.server_address, "/", "*/*") as pings:
            for _ in range(3):
                assert asked.acquire(timeout=30)
            assert pings == []
        server.shutdown()
    assert len(pings) >= 3
    assert sorted(pings) == pings
    assert all(ping.seconds > 0 for ping in pings)

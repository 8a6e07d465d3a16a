"""One client that asks for the largest pictures there are does not stop the others.

`SOAK=20 python -m pytest tests/test_pixel_fairness.py` lets the clients go on for twenty times as long."""

import http.client
import io
import itertools
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "retrieve"))

from live_server import start_server
from PIL import Image
from pixel_world import J2K, JPEG_LS, LITTLE, Kind, arrays_of, frames_of_type, image, stored_as
from process_tree import private_bytes, seconds_until_idle, ticks_by_process, wait_until_busy
from retrieve_world import instance_path

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo

SOAK = int(os.environ.get("SOAK", "1"))
SECONDS = SOAK
BOUND = 5.0  # seconds that a small picture may take
# Of all processes together: two that make pictures of 16 million pixels in colour take most of it.
MEMORY = 2 << 30
ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
SMALL = Kind("RGB", 8, 8, rows=64, columns=64)
LARGE = Kind("RGB", 8, 8, rows=3000, columns=3000)
CT = Kind(rows=256, columns=256)
LOOP, PICTURE = instance_path("1.2.7.1", study="1.2.7"), instance_path("1.2.7.2", study="1.2.7")
SLICE = instance_path("1.2.8.1", study="1.2.8")
GREATEST = {
    "animation": (f"{LOOP}/rendered?viewport=2300,2300", "image/gif"),
    "picture": (f"{LOOP}/frames/{{}}/rendered?viewport=4096,4096", "image/jp2"),
    "pictures": (f"{LOOP}/rendered?viewport=4000,4000", 'multipart/related; type="image/webp"'),
    "transcoded": (PICTURE, f'multipart/related; type="application/dicom"; transfer-syntax={J2K}'),
}
# What the attackers ask for: all of it at once; alone with SOAK.
ATTACKS = [tuple(GREATEST)] + [(each,) for each in ("animation", "picture") if SOAK > 1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with filled_server(tmp_path_factory.mktemp("fairness"), "--pixel-workers", "2") as running:
        yield running


@contextmanager
def filled_server(folder, *flags, workers=2):
    running = start_server(folder, "--log-level", "error", *flags, workers=workers)
    try:
        random = np.random.default_rng(1)
        for kind, count, instance in ((SMALL, 12, "1.2.7.1"), (LARGE, 1, "1.2.7.2")):
            noise = random.integers(0, 255, (count, kind.rows, kind.columns, 3), np.uint8)
            post(running, stored_as(image(kind, noise, instance, StudyInstanceUID="1.2.7"), LITTLE))
        info = FrameInfo(CT.rows, CT.columns, bits_allocated=16, bits_stored=12, high_bit=11)
        arrays = arrays_of(CT, 40)
        frames = [registry.encode(array.tobytes(), JPEG_LS, info)[0] for array in arrays]
        post(running, stored_as(image(CT, arrays, "1.2.8.1", StudyInstanceUID="1.2.8"), JPEG_LS, frames))
        yield running
    finally:
        running.end()


def connected(server, address):
    host, port = server.origin.removeprefix("http://").split(":")
    return http.client.HTTPConnection(host, int(port), timeout=60, source_address=(address, 0))


def post(server, content):
    with_body = connected(server, ATTACKER)
    with_body.request("POST", "/v2/studies", content, {"Content-Type": "application/dicom"})
    answer = with_body.getresponse()
    assert (answer.status, answer.read() != b"") == (200, True)
    with_body.close()


def get(server, address, path, accept):
    """Status and body, on a connection of its own."""
    connection = connected(server, address)
    try:
        connection.request("GET", f"/v2{path}", headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Attackers:
    """Eight clients of one address, each asking for one of the greatest pictures after another."""

    def __init__(self, server, kinds):
        self._server, self._ends = server, threading.Event()
        self.statuses, self._connections, self._numbers = [], set(), itertools.count(1)
        chosen = itertools.cycle(GREATEST[kind] for kind in kinds)
        self._threads = [threading.Thread(target=self._ask, args=(next(chosen),)) for _ in range(8)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def _ask(self, asked):
        path, accept = asked
        while not self._ends.is_set():
            connection = connected(self._server, ATTACKER)
            self._connections.add(connection)
            where = path.format(next(self._numbers) % 12 + 1)
            with suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
                connection.request("GET", f"/v2{where}", headers={"Accept": accept})
                answer = connection.getresponse()
                self.statuses.append(answer.status)
                while answer.read(1 << 20) and not self._ends.is_set():
                    pass
            self._connections.discard(connection)
            connection.close()
            if self.statuses[-1:] in ([429], [503]):
                time.sleep(0.2)

    @property
    def are_all_at_work(self):
        return all(thread.is_alive() for thread in self._threads)

    def __exit__(self, *_):
        self._ends.set()
        for connection in list(self._connections):
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(2)
        for thread in self._threads:
            thread.join(60)


def slowest_beside(server, kinds):
    """Seconds that the slowest small picture or frame of another client takes beside the attackers, and the
    most memory in bytes that the server has meanwhile."""
    for path, accept in (small_picture(0), small_frame(0)):
        assert get(server, OTHER, path, accept)[0] == 200  # the processes have started
    times, peak = [], 0
    with Attackers(server, kinds) as attackers:
        time.sleep(1)
        end = time.monotonic() + SECONDS
        for number in itertools.count(1):
            for path, accept in (small_picture(number), small_frame(number)):
                began = time.monotonic()
                status, body = get(server, OTHER, path, accept)
                times.append(time.monotonic() - began)
                assert (status, len(body) > 100) == (200, True)
            peak = max(peak, private_bytes(server))
            assert attackers.are_all_at_work
            if time.monotonic() > end:
                break
    print(f"{kinds}: {len(times)} small ones, the slowest in {max(times):.2f} s, {peak >> 20} MB")
    return max(times), peak


@pytest.mark.parametrize("kinds", ATTACKS, ids="+".join)
def test_small_pictures_of_another_client_never_wait(server, kinds):
    slowest, peak = slowest_beside(server, kinds)
    assert slowest < BOUND
    assert peak < MEMORY
    # The attackers have gone, and what they asked for goes with them.
    assert seconds_until_idle(server, 10) is not None


def test_small_pictures_never_wait_where_there_is_one_process(tmp_path):
    with filled_server(tmp_path, "--pixel-workers", "1", workers=1) as alone:
        slowest, peak = slowest_beside(alone, tuple(GREATEST))
    assert slowest < BOUND
    assert peak < MEMORY


def small_picture(number):
    """One that was not asked for before."""
    side = 20 + number % 1000
    return f"{SLICE}/frames/{number % 40 + 1}/rendered?viewport={side},{side}", "image/jpeg"


def small_frame(number):
    return f"{SLICE}/frames/{number % 40 + 1}", frames_of_type("image/jp2", J2K)


def test_one_client_after_another_has_its_turn(server):
    """A long picture of another client is made among those of the attackers."""
    with Attackers(server, ["picture"]) as attackers:
        time.sleep(1)
        status, body = get(server, OTHER, f"{SLICE}/frames/1/rendered?viewport=4096,4096", "image/jpeg")
        assert attackers.are_all_at_work
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == (4096, 4096)


def test_what_is_over_the_budget_is_refused_before_it_is_begun(server):
    """As 8,000 x 8,000 pixels of 12 frames are."""
    began = time.monotonic()
    for path, accept in (
        (f"{LOOP}/rendered?viewport=8000,8000", "image/gif"),
        (f"{LOOP}/rendered?viewport=2500,2500", "image/gif"),
        (f"{LOOP}/rendered?viewport=8000,8000", 'multipart/related; type="image/jpeg"'),
        (f"{LOOP}/frames/1/rendered?viewport=8000,8000", "image/gif"),
        ("/studies/1.2.7/thumbnail?viewport=8000,8000", "image/png"),
    ):
        status, body = get(server, ATTACKER, path, accept)
        assert (status, b"parameter viewport" in body) == (400, True), body
    assert time.monotonic() - began < BOUND


def test_a_client_that_has_shut_its_side_gets_its_whole_animation(server):
    """The server asks whether it is there, by zeros before the sizes of chunks."""
    path, accept = GREATEST["animation"]
    connection = connected(server, OTHER)
    connection.request("GET", f"/v2{path}", headers={"Accept": accept})
    answer = connection.getresponse()
    connection.sock.shutdown(1)
    content = answer.read()
    connection.close()
    assert (answer.status, Image.open(io.BytesIO(content)).n_frames) == (200, 12)


@pytest.mark.parametrize("kind", ["animation", "pictures"])
def test_a_client_that_leaves_within_an_answer_stops_it(server, kind):
    path, accept = GREATEST[kind]
    connection = connected(server, ATTACKER)
    connection.request("GET", f"/v2{path}", headers={"Accept": accept})
    answer = connection.getresponse()
    assert answer.read(100)
    connection.sock.shutdown(2)
    connection.close()
    answer.close()
    assert seconds_until_idle(server, 5) is not None


@pytest.mark.parametrize("kind", ["picture", "transcoded"])
def test_a_client_that_leaves_while_its_picture_is_made_stops_it(server, kind):
    """Whether or not it only has shut its side: a client that still reads is told."""
    path, accept = GREATEST[kind]
    path = path.format(7).replace("4096,4096", "4095,4095")  # no worker has kept this picture
    connection = connected(server, ATTACKER)
    before = ticks_by_process(server)
    connection.request("GET", f"/v2{path}", headers={"Accept": accept})
    wait_until_busy(server, before)
    connection.sock.shutdown(1)
    began = time.monotonic()
    answer = connection.getresponse()
    assert (answer.status, time.monotonic() - began < 2) == (503, True)
    connection.close()
    assert seconds_until_idle(server, 5) is not None

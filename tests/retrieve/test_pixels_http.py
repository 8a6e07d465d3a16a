"""Pixels over HTTP: a real server with its pixel processes.

Codestreams that crash, hang or grow a decoder are refused by their headers nowadays, so the pixel processes
of this server are taught (by a sitecustomize) to do so when a codestream begins with the word.
"""

import email
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from live_server import ROOT, start_server
from pixel_world import (
    BASELINE,
    HTJ2K,
    J2K,
    JPEG_LOSSLESS,
    JPEG_LS,
    KINDS,
    LITTLE,
    RLE,
    RPCL,
    Kind,
    arrays_of,
    frames_of_type,
    image,
    of_syntax,
    opened,
    shown_values,
    stored_as,
)
from process_tree import family, private_bytes, seconds_until_idle
from retrieve_world import SERIES, STUDY, dataset_of, instance_path, part10

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

TEACHING = """
import sys
if "framecodecs.pool.worker" in sys.orig_argv:
    import ctypes
    from framecodecs import registry
    known = registry.decode
    lessons = {
        b"CRASH": lambda: ctypes.string_at(0),
        b"HANGS": lambda: ctypes.PyDLL(None).poll(None, 0, -1),
        b"GROWS": lambda: bytearray(1 << 34),
    }
    def decode(frame, *arguments, **keywords):
        lesson = lessons.get(bytes(frame[:5]))
        return lesson() if lesson else known(frame, *arguments, **keywords)
    registry.decode = decode
"""
FLAGS = (
    *("--pixel-workers", "2", "--pixel-queue", "1", "--pixel-deadline", "1.5"),
    *("--pixel-memory", str(400 << 20), "--log-level", "error"),
)
CT = Kind(rows=512, columns=512)
BAD = {"CRASH": "1.2.3.4.91", "HANGS": "1.2.3.4.92", "GROWS": "1.2.3.4.93"}
OTHER = "1.2.4"


def taught_server(folder, workers):
    (folder / "sitecustomize.py").write_text(TEACHING)
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "codecs")))
    script = folder / "streamsrv"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} -m streamsrv "$@"\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMSRV", str(script))
        return start_server(folder / "server", *FLAGS, workers=workers)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = taught_server(tmp_path_factory.mktemp("pixels"), workers=1)
    try:
        fill(running)
        yield running
    finally:
        running.end()


def fill(server):
    kind = KINDS["12 in 16"]
    post(server, stored_as(image(kind, arrays_of(kind, 40)), LITTLE))
    report = dataset_of("1.2.3.4.2")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    post(server, part10(report))
    for word, instance in BAD.items():
        dataset = image(kind, arrays_of(kind, 1), instance, StudyInstanceUID="1.2.5")
        post(server, stored_as(dataset, RLE, [word.encode() * 40]))
    post(server, stored_as(image(CT, arrays_of(CT, 1), "1.2.3.4.1", StudyInstanceUID=OTHER), LITTLE))


def post(server, content):
    request = urllib.request.Request(f"{server.url}/studies", content, {"Content-Type": "application/dicom"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def get(server, path, accept="*/*", **headers):
    """Status, headers, body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{server.url}{path}", headers={"Accept": accept, **names})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def parts(headers, body):
    message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    assert message.is_multipart()
    found = []
    for part in message.get_payload():
        # The email parser reads text: the bytes are taken from the body itself.
        head = b"".join(b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in part.items())
        found.append((part["Content-Type"], head))
    boundary = message.get_boundary().encode()
    payloads = body.split(b"--" + boundary)[1:-1]
    return [
        (label, payload.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))
        for (label, _), payload in zip(found, payloads, strict=True)
    ]


ONE = instance_path("1.2.3.4.1")
SYNTAXES = [LITTLE, RLE, JPEG_LOSSLESS, JPEG_LS, J2K, HTJ2K, RPCL]


@pytest.mark.parametrize("uid", SYNTAXES)
@pytest.mark.parametrize("level", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", ONE])
def test_a_syntax_is_named_at_every_level(server, level, uid):
    status, headers, body = get(server, level, of_syntax(uid))
    assert status == 200
    found = parts(headers, body)
    assert found[0][0] == f"application/dicom; transfer-syntax={uid}"
    dataset = opened(found[0][1])
    assert dataset.file_meta.TransferSyntaxUID == uid
    if uid != JPEG_LOSSLESS:  # no decoder of pydicom's without GDCM or libjpeg
        assert np.array_equal(shown_values(dataset), arrays_of(KINDS["12 in 16"], 40))
    assert len(found) == (1 if level == ONE else 2)
    for label, content in found[1:]:
        assert label == f"application/dicom; transfer-syntax={LITTLE}"
        assert "PixelData" not in opened(content)


@pytest.mark.parametrize("uid", SYNTAXES)
def test_frames_in_a_named_syntax(server, uid):
    row = registry.SYNTAXES[uid]
    numbers = [40, 1, 7, 7]
    path = f"{ONE}/frames/{','.join(map(str, numbers))}"
    status, headers, body = get(server, path, frames_of_type(row.media_type, uid))
    assert status == 200
    found = parts(headers, body)
    assert [label for label, _ in found] == [f"{row.media_type}; transfer-syntax={uid}"] * 4
    kind = KINDS["12 in 16"]
    info = FrameInfo(kind.rows, kind.columns, 1, 16, 12, 11)
    arrays = arrays_of(kind, 40)
    assert [registry.decode(frame, uid, info)[0] for _, frame in found] == [
        arrays[number - 1].tobytes() for number in numbers
    ]


def test_a_first_picture_from_the_first_32_kilobytes(server):
    """Stored uncompressed, asked for as HTJ2K with RPCL, in ranges, as Cornerstone does."""
    path = f"{instance_path('1.2.3.4.1', study=OTHER)}/frames/1"
    accept = "multipart/related; type=image/jphc; transfer-syntax=1.2.840.10008.1.2.4.202"
    status, headers, whole = get(server, path, accept)
    assert status == 200
    assert int(headers["Content-Length"]) == len(whole)
    first = get(server, path, accept, Range="bytes=0-32767")
    rest = get(server, path, accept, Range="bytes=32768-")
    assert (first[0], rest[0]) == (206, 206)
    assert first[1]["Content-Range"] == f"bytes 0-32767/{len(whole)}"
    assert first[1]["Content-Type"] == headers["Content-Type"]
    assert first[2] + rest[2] == whole
    assert get(server, path, accept, If_None_Match=headers["ETag"])[0] == 304
    begun = first[2].partition(b"\r\n\r\n")[2]
    assert len(begun) < len(whole) // 4
    picture = imagecodecs.htj2k_decode(begun, skipres=2).squeeze()
    complete = imagecodecs.htj2k_decode(whole.partition(b"\r\n\r\n")[2], skipres=2).squeeze()
    assert np.array_equal(picture, complete)
    truth = arrays_of(CT, 1)[0][::4, ::4].astype(float)
    assert picture.shape == truth.shape
    assert np.corrcoef(picture.ravel(), truth.ravel())[0, 1] > 0.99


@contextmanager
def asked_meanwhile(server, path, accept):
    """The answer to a request that takes its time, once the block has ended."""
    answer = []
    thread = threading.Thread(target=lambda: answer.extend(get(server, path, accept)))
    thread.start()
    yield answer
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("word", BAD)
def test_a_bad_codestream_costs_one_answer(server, word):
    bad = f"{instance_path(BAD[word], study='1.2.5')}/frames/1"
    with asked_meanwhile(server, bad, frames_of_type("application/octet-stream", LITTLE)) as answer:
        for number in range(1, 15):
            with urllib.request.urlopen(f"{server.origin}/health/live", timeout=5) as live:
                assert live.status == 200
            path = f"{ONE}/frames/{number + BAD_TURN[word]}"
            status, _, body = get(server, path, frames_of_type("image/jls", JPEG_LS))
            assert (status, body[:4] != b"") == (200, True)
    status, headers, body = answer
    assert status == 406
    assert headers["Content-Type"] == "application/problem+json"
    assert RLE.encode() in body
    # Without a syntax by name the stored bytes go out.
    status, headers, body = get(server, bad, "*/*")
    assert (status, word.encode() in body) == (200, True)
    assert get(server, f"{bad}/rendered", "image/jpeg")[0] == 406


BAD_TURN = {word: turn * 5 for turn, word in enumerate(BAD)}  # frames that nobody has asked for yet


def test_a_full_queue_is_told_at_once(server):
    """Two processes and one place to wait: the fourth is sent away."""
    hanging = f"{instance_path(BAD['HANGS'], study='1.2.5')}/frames/1"
    threads = [
        threading.Thread(target=get, args=(server, f"{hanging}/rendered?quality={q}", "image/jpeg"))
        for q in (11, 12, 13)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.8)  # they have arrived, and hang for 1.5 s
    status, headers, _ = get(server, f"{ONE}/frames/39/rendered", "image/jpeg")
    assert (status, headers["Retry-After"]) == (429, "1")
    assert get(server, f"{ONE}/frames/39")[0] == 200  # what is stored goes out as ever
    with urllib.request.urlopen(f"{server.origin}/health/live", timeout=5) as live:
        assert live.status == 200
    for thread in threads:
        thread.join(30)
    assert get(server, f"{ONE}/frames/39/rendered", "image/jpeg")[0] == 200


# Long loops


LOOP = Kind(allocated=8, stored=8, rows=128, columns=128)
LONG = 6_000  # frames: 98 MB decoded


@pytest.fixture(scope="module")
def loop(server):
    """An RLE loop of LONG frames, of which sixteen differ."""
    info = FrameInfo(LOOP.rows, LOOP.columns)
    arrays = arrays_of(LOOP, 16)
    frames = [registry.encode(array.tobytes(), RLE, info)[0] for array in arrays]
    dataset = image(LOOP, arrays[:1], "1.2.6.1", StudyInstanceUID="1.2.6", NumberOfFrames=LONG)
    post(server, stored_as(dataset, RLE, frames * (LONG // 16)))
    return instance_path("1.2.6.1", study="1.2.6"), arrays


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("", of_syntax(LITTLE)),
        ("", of_syntax(JPEG_LS)),
        ("/pixeldata", frames_of_type("image/dicom-rle", RLE)),
        ("/pixeldata", frames_of_type("application/octet-stream", LITTLE)),
        ("/rendered", 'multipart/related; type="image/jpeg"'),
    ],
)
def test_long_loops_in_bounded_memory(server, loop, path, accept):
    where, arrays = loop
    get(server, f"{where}/frames/1", frames_of_type("application/octet-stream", LITTLE))
    before, peak, received = private_bytes(server), 0, bytearray()
    request = urllib.request.Request(f"{server.url}{where}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
        while chunk := answer.read(4 << 20):
            received += chunk
            peak = max(peak, private_bytes(server))
    assert peak - before < 60 << 20
    count = received.count(b"Content-Location")
    assert count == (1 if path == "" else LONG)
    if accept == of_syntax(LITTLE):
        assert received.find(b"".join(array.tobytes() for array in arrays) * (LONG // 16)) > 0


def test_nothing_is_made_for_a_client_that_left(server, loop):
    where, _ = loop
    request = urllib.request.Request(f"{server.url}{where}", headers={"Accept": of_syntax(J2K)})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.read(1 << 16)
    assert seconds_until_idle(server, 15) is not None


def test_downloads_that_wait_for_pixels_hold_nobody_up(server, loop):
    """More of them than the server has threads. Some may be told to come back; whoever asks for something
    else notices nothing."""
    where, _ = loop
    host, port = server.url.removeprefix("http://").partition("/")[0].split(":")
    base = "/" + server.url.removeprefix("http://").partition("/")[2]
    text = f"GET {base}{where} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: {of_syntax(J2K)}\r\n\r\n"
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(90)]
        for connection in waiting:
            connection.sendall(text.encode())
        time.sleep(1)
        slowest = 0.0
        for _ in range(5):
            began = time.monotonic()
            assert get(server, f"/studies/{STUDY}/metadata", "application/dicom+json")[0] == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5
        for connection in waiting:
            connection.settimeout(20)
            head = connection.recv(1 << 16)
            refused = head.startswith((b"HTTP/1.1 429 ", b"HTTP/1.1 503 ")) and b"Retry-After" in head
            assert refused or head.startswith(b"HTTP/1.1 200 ")


# Processes for all workers


@pytest.fixture(scope="module")
def crowds():
    """The servers of `crowd`; the last one may run."""
    running = []
    yield running
    if running and running[-1].process.poll() is None:
        running[-1].end()


@pytest.fixture
def crowd(crowds, tmp_path_factory):
    """A server of three workers, which share two pixel processes; another one if a test has ended it."""
    if not crowds or crowds[-1].process.poll() is not None:
        crowds.append(taught_server(tmp_path_factory.mktemp("crowd"), workers=3))
        fill(crowds[-1])
    return crowds[-1]


def children(server, word):
    """Process ids of those whose command line has the word."""
    found = family(server.process.pid)[1:]
    return {pid for pid in found if word in Path(f"/proc/{pid}/cmdline").read_bytes()}


WORKERS, PROCESSES = b"streamsrv.server", b"framecodecs.pool.worker"
HANGING = f"{instance_path(BAD['HANGS'], study='1.2.5')}/frames/1/rendered"


def frames_by_many(server, numbers, clients=6):
    """Statuses; each request has a connection of its own, so all workers take part."""
    with ThreadPoolExecutor(clients) as threads:
        paths = [f"{ONE}/frames/{number}" for number in numbers]
        return {status for status, _, _ in threads.map(partial(get, server, accept=LS), paths)}


LS = frames_of_type("image/jls", JPEG_LS)


def test_all_workers_share_the_processes(crowd):
    assert not children(crowd, PROCESSES)
    assert frames_by_many(crowd, range(1, 41), clients=3) == {200}
    assert frames_by_many(crowd, range(1, 41), clients=3) == {200}
    assert 1 <= len(children(crowd, PROCESSES)) <= 2
    supervisor = crowd.process.pid
    parents = {Path(f"/proc/{pid}/stat").read_text().split()[3] for pid in children(crowd, PROCESSES)}
    assert parents == {str(supervisor)}


def test_a_crash_in_one_worker_costs_no_answer_of_another(crowd):
    crash = f"{instance_path(BAD['CRASH'], study='1.2.5')}/frames/1/rendered"
    with ThreadPoolExecutor(2) as threads:
        paths = [f"{crash}?quality={10 + number}" for number in range(6)]
        crashed = threads.map(lambda path: get(crowd, path, "image/jpeg")[0], paths)
        assert frames_by_many(crowd, range(1, 21), clients=1) == {200}
        assert set(crashed) == {406}


def test_a_worker_that_dies_takes_no_process_with_it(crowd):
    assert frames_by_many(crowd, range(1, 5)) <= {200, 429, 503}
    end = time.monotonic() + 30
    while len(children(crowd, PROCESSES)) > 2 and time.monotonic() < end:
        time.sleep(0.02)  # one that crashed in another test is being replaced
    processes, workers = children(crowd, PROCESSES), children(crowd, WORKERS)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(get_or_fail, crowd, f"{HANGING}?quality=30")
        time.sleep(0.3)
        for pid in workers:  # whoever waits for it
            os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 30
        while children(crowd, WORKERS) & workers and time.monotonic() < end:
            time.sleep(0.02)
        assert frames_by_many(crowd, range(5, 20), clients=1) == {200}
    assert len(children(crowd, PROCESSES) & processes) >= len(processes) - 1  # the other one hung


def get_or_fail(server, path):
    with suppress(OSError, http.client.HTTPException):
        get(server, path, "image/jpeg")


def test_processes_end_with_the_supervisor(crowd):
    assert frames_by_many(crowd, range(1, 5), clients=1) == {200}
    processes = children(crowd, PROCESSES)
    assert processes
    crowd.process.kill()
    crowd.process.wait()
    end = time.monotonic() + 30
    while any(map(is_there, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_there, processes))


def is_there(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def test_what_is_being_made_is_finished_when_the_server_ends(crowd):
    with asked_meanwhile(crowd, f"{HANGING}?quality=40", "image/jpeg") as answer:
        time.sleep(0.5)
        processes = children(crowd, PROCESSES)
        assert crowd.end() == 0
    assert answer[0] == 406
    assert not any(map(is_there, processes))


# dcmtk


DCMTK = [
    (LITTLE, "dcmdump"),
    (RLE, "dcmdrle"),
    (BASELINE, "dcmdjpeg"),
    (JPEG_LOSSLESS, "dcmdjpeg"),
    (JPEG_LS, "dcmdjpls"),
]


# Baseline JPEG holds eight bits.
DCMTK_KINDS = [
    (uid, tool, name)
    for uid, tool in DCMTK
    for name in ("8 bit", "RGB", "12 in 16")
    if (uid, name) != (BASELINE, "12 in 16")
]


@pytest.mark.parametrize(("uid", "tool", "name"), DCMTK_KINDS)
def test_dcmtk_reads_transcoded_instances(server, tmp_path, uid, tool, name):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} of dcmtk is not installed")
    kind = KINDS[name]
    instance = f"1.2.7.{list(KINDS).index(name)}.{DCMTK.index((uid, tool))}"
    arrays = arrays_of(kind, 2)
    post(server, stored_as(image(kind, arrays, instance, StudyInstanceUID="1.2.7"), LITTLE))
    where = instance_path(instance, study="1.2.7")
    status, _, content = get(server, where, f"application/dicom; transfer-syntax={uid}")
    assert status == 200
    made, native = tmp_path / "made.dcm", tmp_path / "native.dcm"
    made.write_bytes(content)
    dump = subprocess.run(["dcmdump", "-q", made], capture_output=True, check=False)
    assert dump.returncode == 0, dump.stderr
    assert not dump.stderr
    if tool == "dcmdump":
        return
    subprocess.run([tool, made, native], check=True, capture_output=True)
    read = pydicom.dcmread(native)
    found = shown_values(read)
    if read.get("PlanarConfiguration") == 1:
        assert found.shape == arrays.shape
    if registry.SYNTAXES[uid].lossy:
        assert np.abs(found.astype(float) - arrays).mean() < 6
    else:
        assert np.array_equal(found, arrays)

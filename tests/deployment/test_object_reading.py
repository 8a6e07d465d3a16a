"""A server that reads its segments from a bucket, beside a server with the same segments on its disk: every
answer over HTTP has the same bytes, and a gateway that dies never makes a short one."""

import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import clinic
import pytest
from live_server import ROOT, environment, free_port, start_server
from object_world import upload
from obstore.store import S3Store
from pydicom.data import get_testdata_file
from seaweed import ADMIN, BUCKET, NODE, variables
from small_client import Client, file_of, key_of, path_of

from streamsrv.store.folder import Layout

SOAK = int(os.environ.get("SOAK", "1"))
REQUESTS = 60 * SOAK
MIB = 1 << 20
LONG = [key_of(9, 1, number) for number in range(110)]
SYNTAXES = (
    *("CT_small.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm", "JPEG2000.dcm", "liver.dcm", "reportsi.dcm"),
    *("MR_small_implicit.dcm", "SC_rgb_rle_2frame.dcm", "color3d_jpeg_baseline.dcm", "emri_small_RLE.dcm"),
)


class ObjectServer:
    """A server process; `end` closes its standard input."""

    def __init__(self, data, places, endpoint, folder, limit, cache):
        self.origin = f"http://127.0.0.1:{(port := free_port())}"
        self.guarded = folder / "guarded"
        self.guarded.mkdir(parents=True)
        self.log = folder / "log"
        given = {"data": str(data), "port": port, "places": places, "endpoint": endpoint, "limit": limit}
        given |= {"url": f"s3://{BUCKET}", "cache": str(cache), "guarded": str(self.guarded)}
        keys = {"AWS_ACCESS_KEY_ID": NODE[0], "AWS_SECRET_ACCESS_KEY": NODE[1], "AWS_REGION": "x"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "object_server.py"), json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment() | keys,
            )
        assert self.process.stdout.readline() == b"ready\n", self.log.read_text()

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(20) == 0, self.log.read_text()
        self.process.stdout.close()
        waited = [path.read_text() for path in self.guarded.iterdir()]
        assert not waited, waited[0]


@contextmanager
def client_of(server):
    client = Client(server.origin)
    try:
        yield client
    finally:
        client.close()


def store_all(server):
    with client_of(server) as client:
        files = [clinic.file_of(made) for made in clinic.everything()]
        files += [Path(get_testdata_file(name)).read_bytes() for name in SYNTAXES]
        assert client.store(files).status in (200, 202)
        assert client.store([file_of(key, 1, 500_000) for key in LONG]).status == 200


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The clinic, files of every syntax, and a study of 110 instances of 500 kB."""
    running = start_server(tmp_path_factory.mktemp("local"), workers=1, variables={"STREAMSRV_MIN_FREE": "0"})
    store_all(running)
    yield running
    running.end()


@pytest.fixture(scope="module")
def gateway(object_store):
    """(process, endpoint)"""
    return object_store.gateway()


@pytest.fixture(scope="module")
def places(local, gateway):
    keys = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "region": "x"}
    store = S3Store(BUCKET, endpoint=gateway[1], client_options={"allow_http": True}, **keys)
    return upload(store, Layout(local.data))


@pytest.fixture
def remote(local, places, gateway, tmp_path):
    """Starts a server with a cache of its own, or of another one; `limit` is that of its cache."""
    running = []

    def start(limit=1 << 30, endpoint=gateway[1], cache="cache"):
        folder = tmp_path / str(len(running))
        running.append(ObjectServer(local.data, places, endpoint, folder, limit, folder / cache))
        return running[-1]

    yield start
    for server in running:
        server.end()


EVERY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
AS_JPEG = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*, */*'
AS_J2K = 'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90'


def surface(client):
    """(path, headers) of requests of every kind whose answers have stored bytes."""
    found = client.ask("GET", "/instances?limit=200&includefield=00280008").json()
    values = [{tag: each[tag]["Value"][0] for tag in UIDS if "Value" in each[tag]} for each in found]
    for study in sorted({each["0020000D"] for each in values}):
        path = f"/studies/{study}"
        for accept in (EVERY, AS_JPEG, "application/zip"):
            yield path, {"Accept": accept}
        yield path, {"Accept": EVERY, "Range": "bytes=5000-900000"}
        yield path, {"Accept": "multipart/related; type=application/octet-stream"}
        yield f"{path}/pixeldata", {"Accept": "*/*"}
        yield f"{path}/metadata", {"Accept": "application/dicom+json"}
        yield f"{path}/rendered", {"Accept": 'multipart/related; type="image/png"'}
        yield f"{path}/thumbnail", {"Accept": "image/jpeg"}
    for each in values:
        if each["00080018"] in [key[2] for key in LONG[2:]]:
            continue
        study, series, instance = (each[tag] for tag in UIDS)
        path = f"/studies/{study}/series/{series}/instances/{instance}"
        uids = f"requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}"
        yield path, {"Accept": "application/dicom; transfer-syntax=*"}
        yield path, {"Accept": "application/dicom", "Want-Repr-Digest": "sha-256=1"}
        yield path, {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"}
        yield path, {"Accept": "application/dicom; transfer-syntax=*", "Range": "bytes=-700"}
        yield f"{path}/frames/1", {"Accept": FRAMES}
        yield f"{path}/frames/1", {"Accept": AS_J2K}
        yield f"{path}/frames/1,2", {"Accept": FRAMES}
        yield f"{path}/rendered", {"Accept": "image/jpeg, text/html, application/pdf"}
        yield f"/wado?{uids}&contentType=application/dicom", {}
        yield f"/wado?{uids}&contentType=image/png&rows=100", {}


UIDS = ("0020000D", "0020000E", "00080018")
VARYING = ("Date", "Last-Modified")


def reply_of(client, path, headers):
    reply = client.ask("GET", path, **{name.replace("-", "_"): value for name, value in headers.items()})
    fixed = [(name, value) for name, value in reply.headers.items() if name not in VARYING]
    return reply.status, fixed, reply.body


def compared(local, server, alike):
    """A sample of the requests; in `make soak` all. The Host header makes URLs and boundaries alike."""
    same = {"Host": local.origin.removeprefix("http://"), "X-Request-ID": "the-same"}
    found = 0
    with client_of(local) as ours, client_of(server) as theirs:
        requests = list(surface(ours))
        for path, headers in random.sample(requests, min(REQUESTS, len(requests))):
            expected, reply = (alike(reply_of(client, path, headers | same)) for client in (ours, theirs))
            assert reply == expected, (path, headers)
            found += expected[0] < 300
    return found


def test_every_answer_is_that_of_the_local_server(local, remote):
    """Through a cache that is smaller than a study."""
    assert compared(local, remote(2 * MIB), lambda reply: reply) > 20


def without_ids(reply):
    """Another store has other ids of records: boundaries and entity tags differ, and times of an archive."""
    status, headers, body = reply
    found = re.search(r"boundary=\"?([^\";]+)", dict(headers).get("Content-Type", ""))
    if found:
        body = body.replace(found[1].encode(), b"boundary")
    if body.startswith(b"PK"):
        body = sorted((each.filename, each.CRC) for each in zipfile.ZipFile(io.BytesIO(body)).infolist())
    kept = [(name, value.split("boundary=")[0]) for name, value in headers if name != "ETag"]
    return status, kept, body


def test_every_answer_of_a_node_is_that_of_the_local_server(local, gateway, database_server, tmp_path):
    """It stores the same files, in PostgreSQL and in the bucket, and reads them without a cache."""
    guarded = tmp_path / "guarded"
    guarded.mkdir()
    flags = ("--index", database_server.url("reading"), "--segments", f"s3://{BUCKET}/reading")
    named = variables(gateway[1]) | {"LOOP_GUARD": str(guarded)}
    node = start_server(tmp_path, *flags, workers=1, variables=named)
    try:
        store_all(node)
        assert compared(local, node, without_ids) > 20
    finally:
        node.end()
    assert not [each.read_text() for each in guarded.glob("waited-*")]


STUDY = f"/v2/studies/{LONG[0][0]}"


def begun(server, host="localhost"):
    """A request for the study, its head read; the client reads no more than its buffers hold."""
    connection = socket.create_connection(server.origin.removeprefix("http://").split(":"), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    connection.sendall(f"GET {STUDY} HTTP/1.1\r\nHost: {host}\r\nAccept: {EVERY}\r\n\r\n".encode())
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200
    connection.close()  # the answer has it
    return answer


def test_a_gateway_that_dies_cuts_the_answer_and_is_503(object_store, local, remote):
    """Bytes in the cache are still served. After the gateway is back all is."""
    process, endpoint = object_store.gateway()
    server = remote(endpoint=endpoint)
    client = Client(server.origin)
    first = client.read(LONG[0])
    answer = begun(server)
    process.kill()
    process.wait()
    with answer, pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    whole = "application/dicom; transfer-syntax=*"
    missing = client.ask("GET", path_of(LONG[-40]), Accept=whole)
    assert (missing.status, missing.headers["Retry-After"]) == (503, "1")
    assert client.read(LONG[0]) == first
    assert client.ask("GET", path_of(LONG[0]), Accept=whole, Range="bytes=0-9").status == 206
    object_store.gateway(int(endpoint.rpartition(":")[2]))
    until = time.monotonic() + 20
    while client.ask("GET", path_of(LONG[-40]), Accept=whole).status != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    expected = Client(local.origin)
    assert [client.read(key) for key in LONG[::9]] == [expected.read(key) for key in LONG[::9]]
    client.close()
    expected.close()


def test_a_gateway_that_stops_keeps_no_other_request_waiting(object_store, remote):
    process, endpoint = object_store.gateway()
    server = remote(endpoint=endpoint)
    client = Client(server.origin)
    first, statuses = client.read(LONG[0]), []
    process.send_signal(signal.SIGSTOP)

    def ask(key):
        with client_of(server) as other:
            statuses.append(other.ask("GET", path_of(key), Accept=EVERY).status)

    threads = [threading.Thread(target=ask, args=(key,)) for key in LONG[70:80]]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert client.read(LONG[0]) == first
    assert client.ask("GET", f"/studies/{LONG[0][0]}/metadata").status == 200
    assert time.monotonic() - began < 4
    process.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 503}
    client.close()


def test_slow_clients_get_the_bytes_of_the_object(local, remote, tmp_path):
    """20 clients stop reading. Another server evicts the cache of 2 MB too, and it is deleted.

    Others get their answers, and memory stays."""
    server, beside = remote(2 * MIB), remote(2 * MIB, cache="../0/cache")
    host = local.origin.removeprefix("http://")
    with begun(local, host) as answer:
        expected = answer.read()
    before = server.memory()
    answers = [begun(server, host) for _ in range(20)]
    with client_of(server) as client:
        assert client.ask("GET", f"/studies/{LONG[0][0]}/metadata").status == 200
        assert len(client.read(LONG[7])) > 500_000
    for answer in answers[::2]:  # these leave
        answer.close()
    with begun(beside, host) as answer:
        assert answer.read() == expected
    for number, answer in enumerate(answers[1::2]):
        if number == 5:
            shutil.rmtree(tmp_path / "0" / "cache")
        assert answer.read() == expected
        answer.close()
    assert server.memory() - before < 200 * MIB

"""Damaged instances over HTTP: a real server with two workers, and bytes that are flipped under it."""

import base64
import contextlib
import hashlib
import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from live_server import start_server
from pixel_world import HTJ2K, KINDS, LITTLE, arrays_of, frames_of_type, image, of_syntax, stored_as
from retrieve_world import SERIES, STUDY

from streamsrv.store.segments.verifying import WRONG_DIGEST, damaged_record, register
from streamsrv.store.store import Store

KIND = KINDS["12 in 16"]
BAD, GOOD = "1.2.3.4.1", "1.2.3.4.2"
ABOVE = f"/studies/{STUDY}/series/{SERIES}"
ONE = f"{ABOVE}/instances/{BAD}"
OCTETS = 'multipart/related; type="application/octet-stream"'
WHOLE = "application/dicom; transfer-syntax=*"
WITHIN = 1.0  # seconds until every worker refuses a damaged instance


def content_of(uid, seed=1):
    return stored_as(image(KIND, arrays_of(KIND, 4, seed), uid), LITTLE)


class KeptConnection:
    """One kept-alive connection, which nothing opens again."""

    def __init__(self, server):
        self._http = http.client.HTTPConnection(urlsplit(server.origin).netloc, timeout=30)
        self._http.connect()
        self._http.auto_open = 0

    def ask(self, path, accept="*/*", method="GET", body=None, **headers):
        fields = {"Accept": accept} | {name.replace("_", "-"): value for name, value in headers.items()}
        self._http.request(method, f"/v2{path}", body, fields)
        answer = self._http.getresponse()
        return answer.status, answer.headers, answer.read()

    def store(self, content):
        kind = "application/dicom"
        return self.ask("/studies", "application/dicom+json", "POST", content, Content_Type=kind)

    def close(self):
        self._http.close()


@pytest.fixture
def connect():
    with contextlib.ExitStack() as opened:
        yield lambda server: opened.enter_context(contextlib.closing(KeptConnection(server)))


def row_of(server, uid=BAD):
    with Store.open(server.data, read_only=True) as store:
        return store.lookup(STUDY, SERIES, uid)[0]


def flip(server, uid=BAD, at=-100):
    """Flip a bit of the stored payload: of its pixels, unless another place is named."""
    location = row_of(server, uid).location
    path = Path(server.data) / "segments" / f"{location.segment:08}.seg"
    place = location.offset + at % location.length
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 16]))


def find_damage(server, uid=BAD):
    """As another process does that has read the bytes."""
    with Store.open(server.data) as store:
        assert register(store.index, [damaged_record(store.lookup(STUDY, SERIES, uid)[0], WRONG_DIGEST)]) == 1


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("damaged") / "server")
    try:
        with contextlib.closing(KeptConnection(server)) as client:
            for uid in (BAD, GOOD):
                assert client.store(content_of(uid))[0] == 200
        flip(server)
        find_damage(server)
        yield server
    finally:
        server.end()


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (ONE, WHOLE),
        (ONE, "*/*"),
        (ONE, of_syntax(HTJ2K)),
        (f"{ONE}/frames/1", "*/*"),
        (f"{ONE}/frames/1,3", OCTETS),
        (f"{ONE}/frames/2", frames_of_type("image/jphc", HTJ2K)),
        (f"{ONE}/rendered", "image/jpeg"),
        (f"{ONE}/frames/2/rendered", "image/png"),
        (f"{ONE}/thumbnail", "image/jpeg"),
        (f"{ONE}/bulkdata/7FE00010", "*/*"),
        (f"{ONE}/bulkdata", "*/*"),
        (f"{ONE}/pixeldata", OCTETS),
        (ABOVE, WHOLE),
        (ABOVE, of_syntax(HTJ2K)),
        (f"{ABOVE}/rendered", "image/jpeg"),
        (f"{ABOVE}/thumbnail", "image/jpeg"),
        (f"/studies/{STUDY}", WHOLE),
        (f"/studies/{STUDY}/pixeldata", OCTETS),
    ],
)
def test_no_representation_is_made_of_damaged_bytes(damaged, connect, path, accept):
    client = connect(damaged)
    status, headers, body = client.ask(path, accept)
    assert status == 500, (status, body[:200])
    told = json.loads(body)
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["ETag"] is None
    assert (told["study"], told["series"], told["sop_instance"]) == (STUDY, SERIES, BAD)
    assert told["detail"].startswith(f"the stored bytes of SOP instance {BAD} are damaged")
    assert told["detail"].endswith("store it again")
    assert client.ask(path, accept, "HEAD")[0] == 500
    assert client.ask(path, "text/plain")[2].count(BAD.encode()) == 2


def test_the_log_names_it_at_level_error_under_the_request_id(damaged, connect):
    _, headers, body = connect(damaged).ask(ONE, WHOLE)
    line = f"ERROR streamsrv.web [{headers['X-Request-ID']}] InstanceDamaged: {json.loads(body)['detail']}"
    assert line in damaged.log.read_text()


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{ONE}/metadata", "application/dicom+json"),
        (f"/studies/{STUDY}/metadata", "application/dicom+json"),
        (f"/studies/{STUDY}/instances", "application/dicom+json"),
        (f"{ABOVE}/instances/{GOOD}", WHOLE),
        (f"{ABOVE}/instances/{GOOD}/frames/1", OCTETS),
        (f"{ABOVE}/instances/{GOOD}/rendered", "image/jpeg"),
    ],
)
def test_what_the_index_says_and_other_instances_go_on(damaged, connect, path, accept):
    assert connect(damaged).ask(path, accept)[0] == 200


# Frames that were answered many times: as stored, made, and as pictures.
HOT = [
    ("", OCTETS),
    ("", frames_of_type("image/jphc", HTJ2K)),
    ("/rendered", "image/jpeg"),
]


def test_hot_frames_are_refused_by_every_worker_on_every_connection(server, connect):
    clients = [connect(server) for _ in range(8)]
    for uid in (BAD, GOOD):
        assert clients[0].store(content_of(uid))[0] == 200
    time.sleep(2.1)  # until then no answer is kept: its date might be that of two changes

    def statuses(above, *numbers):
        paths = [(f"{above}/frames/{number}{kind}", accept) for kind, accept in HOT for number in numbers]
        return {client.ask(*path)[0] for client in clients for path in paths}

    assert statuses(ONE, 1, 2, 3, 1, 2) == {200}
    flip(server)
    find_damage(server)
    for client in clients:
        began = time.monotonic()
        assert client.ask(f"{ONE}/frames/1", OCTETS)[0] == 500
        assert time.monotonic() - began < WITHIN
    assert statuses(ONE, 1, 2) == {500}
    assert statuses(f"{ABOVE}/instances/{GOOD}", 1) == {200}
    assert clients[0].store(content_of(BAD))[0] == 200
    assert statuses(ONE, 1, 2) == {200}


def test_an_instance_whose_segment_is_gone_is_named(server, connect):
    client = connect(server)
    assert client.store(content_of(BAD))[0] == 200
    location = row_of(server).location
    (Path(server.data) / "segments" / f"{location.segment:08}.seg").unlink()
    time.sleep(1.1)  # descriptors linger
    status, _, body = client.ask(ONE, WHOLE)
    assert (status, json.loads(body)["sop_instance"]) == (500, BAD)
    assert "the file of its segment is missing" in json.loads(body)["detail"]
    assert client.ask(f"/studies/{STUDY}", WHOLE)[0] == 500
    assert client.ask(f"{ONE}/metadata", "application/dicom+json")[0] == 200
    assert client.store(content_of(BAD))[0] == 200
    assert client.ask(ONE, WHOLE)[2] == content_of(BAD)


@pytest.mark.parametrize("mode", ["refuse", "accept-identical", "replace"])
def test_a_damaged_instance_is_stored_again_in_every_mode(server_factory, connect, mode):
    server = server_factory("--on-duplicate", mode, workers=1)
    client = connect(server)
    assert client.store(content_of(BAD))[0] == 200
    for again in (content_of(BAD), content_of(BAD, 2)):
        flip(server)
        assert client.ask(ONE, WHOLE)[0] == 200  # nothing has read the bytes yet
        status, _, body = client.store(again)
        assert (status, "00081198" in json.loads(body)) == (200, False)
        assert client.ask(ONE, WHOLE)[2] == again
    assert server.log.read_text().count("damaged, and stored again: instance") == 2 * (mode != "replace")
    assert client.store(content_of(BAD, 2))[0] == (409 if mode == "refuse" else 200)
    assert client.store(content_of(BAD, 3))[0] == (200 if mode == "replace" else 409)


def test_a_digest_is_told_each_time_it_is_asked_for(damaged, connect):
    """Neither known words nor the templates of hot frames answer without it."""
    client, path = connect(damaged), f"{ABOVE}/instances/{GOOD}/frames/1"
    time.sleep(max(0.0, row_of(damaged, GOOD).stored_at / 1e6 + 2.1 - time.time()))
    for _ in range(5):
        assert client.ask(path, OCTETS)[1]["Repr-Digest"] is None
        status, headers, body = client.ask(path, OCTETS, Want_Repr_Digest="sha-256=1")
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert (status, headers["Repr-Digest"]) == (200, f"sha-256=:{digest}:")

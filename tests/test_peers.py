"""Identities of connections over real sockets: certificates of clients, and users that a proxy names.

Every client sends the same bytes, so that an answer of a fast way to the wrong one would be seen.
"""

import http.client
import json
import socket
import subprocess
import sys

import pytest
from access_world import Site
from live_server import start_server
from small_client import file_of, key_of, multipart
from tls_world import authority, connection, made

FILE = file_of(key_of(1, 1, 1), 1, 20_000)
OTHER = file_of(key_of(2, 1, 1), 1, 200)  # stored before each test, so that searches find a study
INSTANCE = "/v2/studies/{}/series/{}/instances/{}".format(*key_of(1, 1, 1))
STORE = {"Content-Type": "multipart/related; type=application/dicom; boundary=between-the-parts"}
TYPE = {"Content_Type": STORE["Content-Type"]}
FRAME = {"Accept": 'multipart/related; type="application/octet-stream"'}


def holder(folder, signer, name):
    return made(folder, name, subject=f"/O=Hospital, West/CN={name}", signer=signer)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that knows holders of certificates, and the contexts of its clients by name."""
    folder = tmp_path_factory.mktemp("certificates")
    pair, signer = made(folder, "server"), authority(folder)
    roles = (
        "viewer -> search read,archivist -> search read store,searcher -> search,"
        "limited -> search read where PatientID=NONE"
    )
    server = start_server(
        folder,
        *pair.flags,
        *("--tls-client-ca", str(signer.certificate), "--tls-client-certificates", "optional"),
        *("--certificate-name", "common-name", "--certificate-roles", roles, "--auth", "required"),
        workers=1,
        context=pair.context(),
    )
    contexts = {
        name: pair.context(holder(folder, signer, name))
        for name in ("viewer", "archivist", "searcher", "limited")
    }
    contexts["unlisted"] = pair.context(holder(folder, signer, "viewer archivist"))
    contexts["unknown"] = pair.context()
    assert asked(server, contexts["archivist"], "/v2/studies", "POST", multipart([OTHER]), STORE)[0] == 200
    yield server, contexts
    assert server.end() == 0


def asked(server, context, path, method="GET", body=None, headers=None):
    line = connection(server, context)
    try:
        line.request(method, path, body, headers or {})
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def test_holders_of_certificates_have_the_rights_of_their_names(guarded):
    server, contexts = guarded
    store = {
        name: asked(server, each, "/v2/studies", "POST", multipart([FILE]), STORE)[0]
        for name, each in contexts.items()
    }
    assert store == {
        "viewer": 403,
        "archivist": 200,
        "searcher": 403,
        "limited": 403,
        "unlisted": 403,
        "unknown": 401,
    }


def test_equal_requests_of_different_holders_are_answered_for_each(guarded):
    """Header blocks and frames are cached by certificate."""
    server, contexts = guarded
    asked(server, contexts["archivist"], "/v2/studies", "POST", multipart([FILE]), STORE)
    expected = {
        "viewer": 200,
        "archivist": 200,
        "searcher": 403,
        "limited": 404,
        "unlisted": 403,
        "unknown": 401,
    }
    lines = {name: connection(server, context) for name, context in contexts.items()}
    for _ in range(4):
        for name, line in lines.items():
            line.request("GET", INSTANCE + "/frames/1", headers=FRAME)
            answer = line.getresponse()
            answer.read()
            assert answer.status == expected[name], name
    for line in lines.values():
        line.close()


def test_a_key_counts_before_the_certificate(guarded):
    server, contexts = guarded
    key = Site(server).key("searcher", "search")
    for context in (contexts["archivist"], contexts["unknown"]):
        bearer = {"Authorization": f"Bearer {key}"}
        assert asked(server, context, "/v2/studies", headers=bearer)[0] == 200
        assert asked(server, context, INSTANCE, headers=bearer)[0] == 403
    assert (
        asked(server, contexts["archivist"], "/v2/studies", headers={"Authorization": "Bearer x"})[0] == 401
    )


def test_a_page_of_another_origin_does_not_use_the_certificate(guarded):
    server, contexts = guarded
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for headers in (foreign, {"Origin": "https://evil.example"}):
        status, _ = asked(
            server, contexts["archivist"], "/v2/studies", "POST", multipart([FILE]), STORE | headers
        )
        assert status == 403
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert asked(server, contexts["viewer"], "/v2/studies", headers=embedded)[0] == 401


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """A server that trusts its Unix socket, and no other peer."""
    folder = tmp_path_factory.mktemp("proxied")
    roles = "* -> search,readers -> search read,Ärzte -> search read,user:anna -> search read store delete"
    server = start_server(
        folder,
        *("--unix-socket", str(folder / "proxy.sock"), "--trusted-proxies", "unix"),
        *("--proxy-user-header", "X-Forwarded-User", "--proxy-groups-header", "X-Forwarded-Groups"),
        *("--proxy-roles", roles),
        workers=1,
    )
    pair = server, folder / "proxy.sock"
    stored = through(pair, "POST", body=multipart([OTHER]), X_Forwarded_User="anna", **TYPE)
    assert stored[0] == 200
    yield pair
    assert server.end() == 0


def through(proxied, method="GET", path="/v2/studies", body=None, **headers):
    line = UnixConnection(proxied[1])
    try:
        line.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def test_a_user_of_the_proxy_has_the_rights_of_the_groups(proxied):
    body, anna = multipart([FILE]), {"X_Forwarded_User": "anna"}
    assert through(proxied, "POST", body=body, **anna, **TYPE)[0] == 200
    expected = {
        (): 401,
        (("X_Forwarded_User", "bob"),): 403,
        (("X_Forwarded_User", "bob"), ("X_Forwarded_Groups", "cooks, readers")): 200,
        (("X_Forwarded_User", "bob"), ("X_Forwarded_Groups", "user:anna")): 403,
        (("X_Forwarded_User", ""), ("X_Forwarded_Groups", "readers")): 401,
        (("X_Forwarded_User", "bob, anna"),): 401,
    }
    for _ in range(3):
        for headers, status in expected.items():
            assert through(proxied, path=INSTANCE + "/metadata", **dict(headers))[0] == status, headers


def test_users_and_groups_are_in_utf_8(proxied):
    named = {"X_Forwarded_User": "jürgen".encode(), "X_Forwarded_Groups": "Ärzte".encode()}
    frames = "/v2/studies/1.2/series/1/instances/1/frames/1"
    assert through(proxied, path=frames, **named)[0] == 404
    named["X_Forwarded_Groups"] = "Ärzte".encode("latin-1")
    assert through(proxied, path=frames, **named)[0] == 404
    assert through(proxied, path=frames, **named | {"X_Forwarded_Groups": "other"})[0] == 403
    assert through(proxied, X_Forwarded_User="a\x9b".encode())[0] == 401
    assert [through(proxied, X_Forwarded_User="a" * length)[0] for length in (256, 257)] == [200, 401]


def test_a_client_that_is_no_proxy_cannot_name_a_user(proxied):
    line = http.client.HTTPConnection("127.0.0.1", int(proxied[0].origin.rpartition(":")[2]), timeout=20)
    for _ in range(3):
        line.request("GET", "/v2/studies", headers={"X-Forwarded-User": "anna"})
        answer = line.getresponse()
        answer.read()
        assert answer.status == 401
    line.close()
    assert through(proxied, X_Forwarded_User="anna")[0] == 200


def test_the_password_that_a_proxy_passes_on_is_not_read(proxied):
    """nginx with auth_basic passes Authorization on."""
    status, body = through(proxied, X_Forwarded_User="anna", Authorization="Basic YW5uYTpzZWNyZXQ=")
    assert status == 200
    assert json.loads(body)


def test_settings_that_name_no_user_are_refused(tmp_path):
    def refused(*flags):
        words = [
            sys.executable,
            "-m",
            "streamsrv",
            "serve",
            "--data",
            str(tmp_path / "data"),
            "--port",
            "0",
            *flags,
        ]
        return subprocess.run(words, capture_output=True, text=True).stderr

    assert "needs trusted_proxies" in refused("--proxy-user-header", "X-Forwarded-User")
    assert "without proxy_user_header" in refused("--proxy-groups-header", "X-Forwarded-Groups")
    assert "certificate_roles" in refused("--certificate-roles", "a -> dance")

"""Access over HTTP: keys that the command line makes beside a running server."""

import http.client
import os
import socket
import time

import pytest
from access_world import Site, basic, command, file_of
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, ct
from live_server import start_server

from streamsrv.web.access.grants import KEY, Grants

FRAME = f"/v2/studies/{CT_STUDY}/series/{CT_SERIES}/instances/{CT_INSTANCES[0]}/frames/1"
WITHIN = 10.0  # seconds; a worker notices after 0.4, and a loaded machine is slower


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("site"), "--auth", "required", workers=2)
    site = Site(server)
    site.store(site.key("writer", "store"), file_of(ct(1)))
    yield site
    site.close()
    assert server.end() == 0


@pytest.fixture(autouse=True)
def closed(site):
    yield
    site.close()


@pytest.fixture(scope="module")
def reader(site):
    return site.key("reader", "search,read")


def test_a_key_works_as_bearer_and_as_basic(site, reader):
    for authorization in (
        f"Bearer {reader}",
        f"bearer  {reader}",
        f"BEARER {reader}",
        basic("reader", reader),
    ):
        assert site.ask(Authorization=authorization).status == 200


def test_a_request_without_valid_credentials_gets_401_and_a_challenge(site, reader):
    wrong = (
        f"Bearer {reader}x",
        f"Bearer {reader[:-1]}",
        basic("other", reader),
        basic("", reader),
        "Basic %%%",
    )
    for headers in ({}, *({"Authorization": each} for each in wrong)):
        for path in ("/v2/studies", "/v2/studies/1.2.3", "/v2/nothing", "/nothing", "/v2/studies/x/y"):
            answer = site.ask(path=path, **headers)
            assert answer.status == 401
            assert answer.getheader("WWW-Authenticate").startswith('Bearer realm="streamsrv"')
            assert ("invalid_token" in answer.getheader("WWW-Authenticate")) is bool(headers)


def test_a_right_that_is_missing_is_403(site, reader):
    answer = site.ask("DELETE", "/v2/studies/1.2.3", Authorization=f"Bearer {reader}")
    assert answer.status == 403
    assert b"the right delete" in answer.body


class Hot:
    """A viewer on several connections, whose frames and searches are answered by the fast ways."""

    def __init__(self, site, key):
        lines = f"Host: localhost:{site.port}\r\nAuthorization: Bearer {key}\r\n\r\n"
        self.requests = [f"GET {path} HTTP/1.1\r\n{lines}".encode() for path in (FRAME, "/v2/studies")]
        self.sockets = [socket.create_connection(("127.0.0.1", site.port), 10) for _ in range(6)]
        self.files = [each.makefile("rb") for each in self.sockets]

    def warm(self, log):
        begin = len(log.read_text())
        deadline, ways = time.monotonic() + 10, {"cached-frame", "known-headers"}
        while not ways <= set(log.read_text()[begin:].split()):
            assert time.monotonic() < deadline
            assert self.statuses() == {200}

    def statuses(self):
        """Of requests one after another, and of pipelined ones, on all connections."""
        found = set()
        for each in (*self.requests, b"".join(self.requests * 2)):
            for connection in self.sockets:
                connection.sendall(each)
            found |= {status_of(file) for file in self.files for _ in range(each.count(b"GET "))}
        return found

    def close(self):
        for each in (*self.files, *self.sockets):
            each.close()


def status_of(file):
    answer = http.client.HTTPResponse(FakeSocket(file))
    answer.begin()
    answer.read()
    return answer.status


class FakeSocket:
    def __init__(self, file):
        self.file = file

    def makefile(self, mode):
        return Kept(self.file)


class Kept:
    """A file that a response does not close."""

    def __init__(self, file):
        self.read, self.readinto, self.readline = file.read, file.readinto, file.readline
        self.flush = self.close = lambda: None


@pytest.fixture
def hot(site):
    opened = []

    def made(*words, name="hot"):
        key = site.key(name, "search,read", *words)
        opened.append(Hot(site, key))
        opened[-1].warm(site.server.log)
        return opened[-1]

    yield made
    for each in opened:
        each.close()


def soon(hot, status):
    """Whether all requests have this status at last, within the time that workers have."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        if hot.statuses() == {status}:
            return True
    return False


def test_a_key_that_is_revoked_while_hot_is_401_on_each_worker(site, hot):
    viewer = hot(name="revoked")
    site.revoke("revoked")
    assert soon(viewer, 401)
    assert viewer.statuses() == {401}


def test_rights_that_change_while_hot_hold_on_each_worker(site, hot):
    viewer = hot(name="changed")
    command("key", "change", "changed", "--data", site.server.data, "--rights", "store")
    assert soon(viewer, 403)
    command("key", "change", "changed", "--data", site.server.data, "--rights", "search,read")
    assert soon(viewer, 200)


def test_a_key_that_ends_while_hot_is_401_at_the_next_request(site, hot):
    began = time.time()
    viewer = hot("--expires", "4s", name="ends")
    end = Grants(site.server.data).named(KEY, "ends").until
    assert began < time.time() < end
    time.sleep(max(0, end - time.time()))
    assert viewer.statuses() == {401}


def test_another_grant_changes_nothing(site, hot):
    viewer = hot(name="stays")
    site.key("another", "read")
    site.revoke("another")
    assert {frozenset(viewer.statuses()) for _ in range(3)} == {frozenset({200})}


def test_files_are_for_their_owner_only(site, reader):
    folder = site.server.data / "access"
    assert [os.stat(each).st_mode & 0o777 for each in (folder, *folder.iterdir())][:2] == [0o700, 0o600]
    assert not any(reader.encode() in each.read_bytes() for each in folder.iterdir())


def test_a_server_for_other_machines_needs_a_way_in(tmp_path):
    done = command("serve", "--host", "0.0.0.0", "--data", str(tmp_path), code=2)
    assert "streamsrv key add" in done.stderr

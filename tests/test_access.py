"""Access over HTTP: keys that the command line makes beside a running server."""

import os
import time

import pytest
from access_world import Site, basic, command
from live_server import start_server

WITHIN = 1.0  # seconds in which every worker notices a change


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("site"), "--auth", "required", workers=2)
    site = Site(server)
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
        assert site.ask(Authorization=authorization).status == 204


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


def test_a_revoked_key_is_401_on_the_same_connection_and_each_worker(site):
    key = site.key("hot", "search,read")
    connections = [site.connect() for _ in range(8)]
    for _ in range(3):
        assert {site.ask(connection=each, Authorization=f"Bearer {key}").status for each in connections} == {
            204
        }
    site.revoke("hot")
    time.sleep(WITHIN)
    assert {site.ask(connection=each, Authorization=f"Bearer {key}").status for each in connections} == {401}


def test_a_key_that_ends_is_401_at_the_next_request(site):
    key = site.key("short", "search", "--expires", "2s")
    began = time.monotonic()
    connection = site.connect()
    statuses = []
    while time.monotonic() < began + 2.2:
        statuses.append(site.ask(connection=connection, Authorization=f"Bearer {key}").status)
        time.sleep(0.02)
    assert statuses[0] == 204
    assert statuses[-1] == 401


def test_files_are_for_their_owner_only(site, reader):
    folder = site.server.data / "access"
    assert [os.stat(each).st_mode & 0o777 for each in (folder, *folder.iterdir())][:2] == [0o700, 0o600]
    assert not any(reader.encode() in each.read_bytes() for each in folder.iterdir())


def test_a_server_for_other_machines_needs_a_way_in(tmp_path):
    done = command("serve", "--host", "0.0.0.0", "--data", str(tmp_path), code=2)
    assert "streamsrv key add" in done.stderr

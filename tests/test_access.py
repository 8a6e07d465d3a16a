"""Access over HTTP: keys that the command line makes beside a running server."""

import http.client
import os
import socket
import subprocess
import time

import pytest
from access_world import Site, basic, bearer, command, file_of, grants_for, within
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, ct
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from live_server import start_server

from streamsrv.cli import main
from streamsrv.config import SettingsError
from streamsrv.settings import Settings
from streamsrv.web.access.grants import KEY, grants_in
from streamsrv.web.access.policy import check_start, needs_principal, remarks

FRAME = f"/v2/studies/{CT_STUDY}/series/{CT_SERIES}/instances/{CT_INSTANCES[0]}/frames/1"
WITHIN = 10.0  # seconds; a worker notices after 0.4, and a loaded machine is slower


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    # Requests with a revoked key go on until all workers refuse it.
    flags = ("--auth", "required", "--failed-logins", "0")
    server = start_server(tmp_path_factory.mktemp("site"), *flags, workers=2)
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
    site.change("changed", "--rights", "store")
    assert soon(viewer, 403)
    site.change("changed", "--rights", "search,read")
    assert soon(viewer, 200)


def test_a_key_that_ends_while_hot_is_401_at_the_next_request(site, hot):
    began = time.time()
    viewer = hot("--expires", "4s", name="ends")
    end = grants_for(site.server.data).named(KEY, "ends").until
    assert began < time.time() < end
    time.sleep(max(0, end - time.time()))
    assert viewer.statuses() == {401}


def test_another_grant_changes_nothing(site, hot):
    viewer = hot(name="stays")
    site.key("another", "read")
    site.revoke("another")
    assert {frozenset(viewer.statuses()) for _ in range(3)} == {frozenset({200})}


@pytest.mark.embedded("keys of a cluster are in its database")
def test_files_are_for_their_owner_only(site, reader):
    folder = site.server.data / "access"
    assert [os.stat(each).st_mode & 0o777 for each in (folder, *folder.iterdir())][:2] == [0o700, 0o600]
    assert not any(reader.encode() in each.read_bytes() for each in folder.iterdir())


def raw(site, *lines, body=b""):
    """The status of a request with these lines, and the bytes behind its head."""
    with socket.create_connection(("127.0.0.1", site.port), 10) as connection:
        head = "\r\n".join((*lines, "Host: localhost", "", "")).encode("latin-1")
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    return int(answer.split()[1]), answer


def test_two_authorization_headers_are_400(site, reader):
    line = f"Authorization: Bearer {reader}"
    for other in (line, "Authorization: Basic eDp5", "authorization: Bearer x"):
        for lines in ((line, other), (other, line)):
            assert raw(site, "GET /v2/studies HTTP/1.1", *lines)[0] == 400
    assert raw(site, "GET /v2/studies HTTP/1.1", f"{line}, Bearer x")[0] == 400


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic",
        "Basic Og==",
        "Digest username=x",
        "Negotiate YII",
        "\xff",
        "Basic /////w==",
    ],
)
def test_odd_credentials_are_401(site, value):
    assert raw(site, "GET /v2/studies HTTP/1.1", f"Authorization: {value}")[0] == 401


def test_a_body_without_credentials_is_not_read_as_a_request(site, reader):
    hidden = f"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\n\r\n".encode()
    for lines in ((f"Content-Length: {len(hidden)}",), ("Transfer-Encoding: chunked",)):
        status, answer = raw(site, "POST /v2/studies HTTP/1.1", *lines, body=hidden)
        assert status == 401
        assert answer.count(b"HTTP/1.1 ") == 1


def test_no_secret_and_no_reason_leaves_the_server(site, reader):
    wrong = f"{reader[:-3]}abc"
    answers = [site.ask(Authorization=each) for each in (f"Bearer {wrong}", basic("reader", wrong))]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body.partition(b"instance")[0] for answer in answers}) == 1
    deadline = time.monotonic() + 10
    while (text := site.server.log.read_text()).count("the key is unknown or revoked") < 2:
        assert time.monotonic() < deadline
    assert wrong not in text
    assert reader not in text


@pytest.mark.embedded("keys of a cluster are in its database")
def test_a_damaged_file_closes_the_door_and_is_named(site):
    key = site.key("rots", "search,read")
    assert site.ask(**bearer(key)).status == 200
    path = site.server.data / "access" / grants_in(site.server.data).named(KEY, "rots").file
    path.write_bytes(path.read_bytes().replace(b"read", b"raed"))
    deadline = time.monotonic() + WITHIN
    while {site.ask(**bearer(key)).status for _ in range(6)} != {401}:
        assert time.monotonic() < deadline
    assert str(path) in site.server.log.read_text()
    path.unlink()


def test_a_script_of_a_browser_gets_no_challenge_for_basic(site):
    for mode, schemes in (("cors", ["Bearer"]), ("navigate", ["Bearer", "Basic"])):
        answer = site.ask(Sec_Fetch_Mode=mode)
        found = answer.headers.get_all("WWW-Authenticate")
        assert [each.split()[0] for each in found] == schemes


def test_clients_send_keys(site, tmp_path):
    """`streamsrv store` with a token and with a password, curl, and dicomweb-client."""
    key = site.key("clients", "search,store")
    (tmp_path / "key").write_text(f"{key}\n")
    (tmp_path / "one.dcm").write_bytes(file_of(ct(2)))
    url, words = site.server.url, (tmp_path / "one.dcm", "--quiet")
    command("store", "--url", url, *words, "--token-file", tmp_path / "key")
    command("store", "--url", url, *words, "--user", "clients", "--password-file", tmp_path / "key")
    assert "credentials" in command("store", "--url", url, *words, code=1).stdout
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/studies"]
    for more in (["-u", f"clients:{key}"], ["--oauth2-bearer", key]):
        assert subprocess.run([*curl, *more], capture_output=True, text=True, check=True).stdout == "200"
    client = DICOMwebClient(url, session=create_session_from_user_pass("clients", key))
    assert [each["0020000D"]["Value"] for each in client.search_for_studies()] == [[CT_STUDY]]


def test_verbs_about_the_store_work_beside_the_folder(site):
    for verb in ("check", "info"):
        within(verb, "--data", site.server.data)


def test_a_server_for_other_machines_needs_a_way_in(tmp_path):
    done = command("serve", "--host", "0.0.0.0", "--data", str(tmp_path), code=2)
    assert "streamsrv key add" in done.stderr
    settings = {"host": "0.0.0.0", "data": str(tmp_path)}
    with pytest.raises(SettingsError, match="auth is none"):
        check_start(Settings(**settings, auth="none"))
    for auth in ("auto", "none", "required"):
        check_start(Settings(**settings, auth=auth, allow_remote_without_authentication=True))
    assert main(["key", "add", "first", "--rights", "read", "--data", str(tmp_path)]) == 0
    for auth in ("auto", "required"):
        check_start(Settings(**settings, auth=auth))
        assert needs_principal(Settings(**settings, auth=auth))


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_secret_of_the_issuer_that_everyone_can_read_is_mentioned(tmp_path, mode, warns):
    secret = tmp_path / "secret"
    secret.touch(mode)
    secret.chmod(mode)
    settings = Settings(data=str(tmp_path), oidc_client_secret_file=str(secret))
    assert any("every user" in each for each in remarks(settings)) is warns


def test_others_lose_the_folder_when_the_server_starts(tmp_path, caplog):
    folder = grants_in(tmp_path).documents.folder
    folder.mkdir()
    for mode, warns in ((0o750, False), (0o777, True)):
        folder.chmod(mode)
        caplog.clear()
        check_start(Settings(data=str(tmp_path)))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ("could write" in caplog.text) is warns

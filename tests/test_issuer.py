"""Requests to an issuer, and the keys that all processes of a server share."""

import http.server
import json
import os
import select
import socket
import threading
import time

import pytest
from certificates import Authority
from fake_issuer import fake_issuer, reply

from streamsrv.companions.issuer import AGAIN, KEPT, REFRESH, KeptKeys, KeyFetcher
from streamsrv.oidc.discovery import fetch_issuer, fetch_keys, read_issuer
from streamsrv.oidc.fetching import FetchFailed, Trust, get_json, post_form
from streamsrv.oidc.key_board import PAUSE, SIZE, KeyBoard

TRUST = Trust()


@pytest.fixture(scope="module")
def shared():
    with fake_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(shared):
    shared.fault = None
    shared.requests.clear()
    yield shared
    shared.fault = None


@pytest.fixture
def board():
    board = KeyBoard.make()
    yield board
    for each in board.descriptors:
        os.close(each)


def test_keys_are_found_by_the_metadata(issuer):
    found = fetch_issuer(issuer.url, TRUST)
    assert found.token_endpoint == f"{issuer.url}/token"
    assert fetch_keys(found, TRUST) == issuer.key_set()["keys"]


def test_private_parts_of_keys_are_not_kept(issuer):
    found = fetch_issuer(issuer.url, TRUST)
    issuer.fault = lambda handler: reply(handler, {"keys": [{"kty": "RSA", "n": "AQ", "d": "secret"}, "x"]})
    assert fetch_keys(found, TRUST) == [{"kty": "RSA", "n": "AQ"}]


def slowly(handler):
    """A byte each 50 ms, for 30 s."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def silent(handler):
    time.sleep(1)


def long(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(80):
        handler.wfile.write(b" " * 65_536)


def elsewhere(handler):
    handler.send_response(302)
    handler.send_header("Location", "/keys")
    handler.end_headers()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (slowly, "within 0.2 s"),
        (silent, "within 0.2 s"),
        (long, "more than 256 kB"),
        (elsewhere, "redirects"),
        (lambda handler: reply(handler, {}, 500), "status 500"),
        (lambda handler: reply(handler, ["no object"]), "without a JSON object"),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), "cannot be reached"),
        (lambda handler: None, "cannot be reached"),
    ],
)
def test_faulty_issuers(issuer, fault, reason):
    issuer.fault = fault
    with pytest.raises(FetchFailed, match=reason):
        get_json(issuer.url, TRUST, deadline=0.2 if "within" in reason else 10)
    assert len(issuer.requests) == 1


def test_tls_is_checked(tmp_path):
    authority = Authority(tmp_path)
    with fake_issuer(authority.issue("issuer")) as issuer:
        trusting = Trust(authority.certificate)
        assert fetch_keys(fetch_issuer(issuer.url, trusting), trusting) == issuer.key_set()["keys"]
        with pytest.raises(FetchFailed, match="is not trusted: unable to get local issuer"):
            get_json(issuer.url, TRUST)
        with pytest.raises(FetchFailed, match="has no certificates in PEM"):
            get_json(issuer.url, Trust(str(tmp_path / "none.pem")))
        issuer.fault = slowly
        with pytest.raises(FetchFailed, match=r"within 0.3 s"):
            get_json(issuer.url, trusting, deadline=0.3)
    with (
        fake_issuer(authority.issue("other", "DNS:login.example")) as issuer,
        pytest.raises(FetchFailed, match="is not trusted: IP address mismatch"),
    ):
        get_json(issuer.url, trusting)


class TunnelProxy(http.server.BaseHTTPRequestHandler):
    """A proxy that connects to the issuer, whatever its name."""

    def do_CONNECT(self):
        self.server.seen.append((self.path, self.headers["Proxy-Authorization"]))
        with socket.create_connection(self.server.target) as there:
            self.send_response(200)
            self.end_headers()
            while ready := select.select([self.connection, there], [], [], 5)[0]:
                for each in ready:
                    piece = each.recv(65_536)
                    if not piece:
                        return
                    (there if each is self.connection else self.connection).sendall(piece)

    def log_message(self, *args):
        pass


def test_a_proxy_of_the_environment(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    trust = Trust(authority.certificate)
    with (
        fake_issuer(authority.issue("issuer", "DNS:login.example")) as issuer,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), TunnelProxy) as proxy,
    ):
        proxy.target, proxy.seen = issuer.server.server_address, []
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://a:b%40c@127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert get_json("https://login.example/realms/clinic/keys", trust) == issuer.key_set()
        with pytest.raises(FetchFailed, match="is not trusted"):
            get_json("https://other.example/", trust)
        with pytest.raises(FetchFailed, match="is not trusted"):
            get_json(issuer.url, trust)  # directly
        proxy.shutdown()
        thread.join()
    assert proxy.seen == [(f"{name}.example:443", "Basic YTpiQGM=") for name in ("login", "other")]


def test_a_closed_port():
    with pytest.raises(FetchFailed, match="refused"):
        get_json("http://127.0.0.1:1/", TRUST)


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "https://", "https://u:p@a.example/", "https://a b/", "http://[1"]
)
def test_urls_that_are_none(url):
    with pytest.raises(FetchFailed, match="no http or https URL"):
        TRUST.check(url)


def test_plain_http_is_for_loopback():
    for url in ("http://localhost:1/", "http://127.0.0.2/", "http://[::1]/", "https://login.example/"):
        TRUST.check(url)
    with pytest.raises(FetchFailed, match="no TLS"):
        TRUST.check("http://login.example/")
    Trust(any_http=True).check("http://login.example/")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"issuer": "https://login.example/"}, "calls itself"),
        ({"issuer": None}, "calls itself"),
        ({"jwks_uri": None}, "no text"),
        ({"jwks_uri": ""}, "no jwks_uri"),
        ({"jwks_uri": "http://login.example/keys"}, "no TLS"),
        ({"token_endpoint": "file:///etc/passwd"}, "no http or https"),
    ],
)
def test_metadata_that_are_refused(issuer, change, reason):
    with pytest.raises(FetchFailed, match=reason):
        read_issuer(issuer.url, issuer.metadata() | change, TRUST)


def test_an_error_of_the_token_endpoint(issuer):
    with pytest.raises(FetchFailed) as error:
        post_form(f"{issuer.url}/token", {"grant_type": "authorization_code"}, TRUST, ("a:b", "c&d"))
    assert error.value.refused == "invalid_grant"
    assert issuer.forms[-1][1] == "Basic YSUzQWI6YyUyNmQ="  # a%3Ab:c%26d


def test_a_reader_never_takes_half_of_a_text(board):
    assert board.read() is None
    board.write({"keys": [1]})
    assert board.read() == (1, {"keys": [1]})
    board.write({"keys": [1]})
    assert board.generation == 1
    other = KeyBoard(*board.descriptors)
    other.write({"keys": [2]})
    assert board.read() == (2, {"keys": [2]})
    other._memory[60:61] = b"x"
    assert board.read() is None
    with pytest.raises(ValueError, match="too long"):
        board.write("x" * SIZE)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_unknown_keys_cause_one_fetch_in_30_seconds(issuer, board):
    clock = Clock()
    fetcher = KeyFetcher(issuer.url, TRUST, board, clock)
    fetcher.fetch_if_due()
    assert len(issuer.requests) == 2  # metadata and keys
    for _ in range(1000):
        fetcher.ask()
        fetcher.fetch_if_due()
    assert len(issuer.requests) == 2
    clock.now += PAUSE
    issuer.rotate("2")
    for _ in range(1000):
        fetcher.ask()
        fetcher.fetch_if_due()
    assert len(issuer.requests) == 3  # the metadata are known
    assert board.read()[1]["keys"][0]["kid"] == "2"
    assert board.state[1:3] == (2, 2)


def test_keys_are_fetched_every_15_minutes(issuer, board):
    clock = Clock()
    fetcher = KeyFetcher(issuer.url, TRUST, board, clock)
    fetcher.fetch_if_due()
    assert fetcher.due == clock.now + REFRESH == clock.now + 900
    clock.now += REFRESH
    fetcher.fetch_if_due()
    assert len(issuer.requests) == 4
    assert board.generation == 1  # the same keys


def test_the_former_keys_stay_while_the_issuer_fails(issuer, board, caplog):
    clock = Clock()
    fetcher = KeyFetcher(issuer.url, TRUST, board, clock)
    fetcher.fetch_if_due()
    former = board.read()
    issuer.fault = elsewhere
    for _ in range(3):
        clock.now = fetcher.due
        fetcher.fetch_if_due()
        assert fetcher.due == clock.now + AGAIN
    assert board.read() == former
    assert len([each for each in caplog.messages if "redirects" in each]) == 1
    issuer.fault = None
    issuer.rotate("3")
    clock.now = fetcher.due
    fetcher.fetch_if_due()
    assert board.read()[1]["keys"][0]["kid"] == "3"


def test_keys_survive_a_restart_while_the_issuer_is_away(issuer, board, tmp_path):
    file = tmp_path / "access" / "issuer.json"
    KeyFetcher(issuer.url, TRUST, board, kept=KeptKeys(file)).fetch_if_due()
    assert file.parent.stat().st_mode & 0o777 == 0o700
    issuer.fault = elsewhere
    later = KeyBoard.make()
    KeyFetcher(issuer.url, TRUST, later, kept=KeptKeys(file)).fetch_if_due()
    assert later.read() == board.read()
    kept = json.loads(file.read_text())
    for text in (
        json.dumps(kept | {"time": time.time() - KEPT}),
        json.dumps(kept | {"issuer": {"name": "https://login.example"}}),
        "{",
        "[]",
    ):
        file.write_text(text)
        assert KeptKeys(file).load(issuer.url) is None
    for each in later.descriptors:
        os.close(each)


def test_keys_that_cannot_be_kept(issuer, board, tmp_path, caplog):
    (tmp_path / "access").write_text("no folder")
    KeyFetcher(issuer.url, TRUST, board, kept=KeptKeys(tmp_path / "access" / "issuer.json")).fetch_if_due()
    assert board.read() is not None
    assert "cannot be kept" in caplog.text


def test_a_process_that_was_killed_while_it_fetched(issuer, board):
    board.begin_fetch()
    assert board.state.fetching
    KeyFetcher(issuer.url, TRUST, board).fetch_if_due()
    assert not board.state.fetching
    assert board.read() is not None

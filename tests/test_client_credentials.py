"""The credentials of `streamsrv store`: where they come from, and where they never go."""

import argparse
import base64
import ssl
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from certificates import Authority
from fake_service import running, write_instance
from live_server import ROOT, environment

from streamsrv import client
from streamsrv.client import credentials as credentials_module
from streamsrv.client.connection import ServiceRefused, StoreConnection
from streamsrv.client.credentials import same_origin
from streamsrv.config import SettingsError

SECRET = "correct-horse.battery_staple~1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four instances."""
    top = tmp_path_factory.mktemp("files")
    for number in range(4):
        write_instance(top / f"{number}.dcm", f"1.2.3.{number}")
    return top


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def service():
    with running() as started:
        yield started


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def store(*words):
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    return client.run(parser.parse_args([str(word) for word in (*words, "--quiet", "--retries", 0)]))


def basic(name, password):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def sent_by(service, *words):
    assert store(*words, "--url", service.url) == 0
    return [headers.get("Authorization") for _, headers, _ in service.requests]


# --- from where ---


def test_a_token_from_a_file(service, folder, secret):
    words = [folder, "--token-file", secret, "--batch", 1, "--parallel", 1]
    assert sent_by(service, *words) == [f"Bearer {SECRET}"] * 4


def test_a_name_with_a_password_from_a_file(service, folder, secret):
    secret.write_text("pass word:ü\r\n")
    assert sent_by(service, folder, "--user", "Anna", "--password-file", secret) == [
        basic("Anna", "pass word:ü")
    ]


def test_a_password_that_is_asked_for(service, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(credentials_module.getpass, "getpass", lambda prompt: f"for {prompt}")
    assert sent_by(service, folder, "--user", "Anna") == [basic("Anna", "for Password of Anna: ")]


def test_a_password_in_an_argument_works_with_a_warning(service, folder, capsys):
    assert sent_by(service, folder, "--user", f"Anna:{SECRET}") == [basic("Anna", SECRET)]
    warning = capsys.readouterr().err
    assert "--password-file" in warning
    assert SECRET not in warning


def test_netrc(service, folder, tmp_path, monkeypatch):
    path = tmp_path / ".netrc"
    path.write_text(f"machine other login x password y\nmachine 127.0.0.1 login Anna password {SECRET}\n")
    assert sent_by(service, folder, "--netrc-file", path) == [basic("Anna", SECRET)]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sent_by(service, folder, "--netrc")[1:] == [basic("Anna", SECRET)]
    path.rename(tmp_path / "_netrc")
    assert sent_by(service, folder, "--netrc")[2:] == [basic("Anna", SECRET)]


def test_headers_from_arguments_and_files(service, folder, secret):
    secret.write_text(f"X-Api-Key: {SECRET}\n\nX-Tenant:  north \n")
    assert store(folder, "--header", f"@{secret}", "--header", "X-Other: a b", "--url", service.url) == 0
    (headers,) = [headers for _, headers, _ in service.requests]
    assert {name: headers[name] for name in headers if name.startswith("X-")} == {
        "X-Api-Key": SECRET,
        "X-Tenant": "north",
        "X-Other": "a b",
    }


def test_a_token_from_standard_input_without_the_functions_of_linux(service, folder):
    from test_client_files import ELSEWHERE

    words = ["store", folder, "--token-file", "-", "--url", service.url, "--batch", 2]
    command = [sys.executable, "-c", ELSEWHERE, *map(str, words)]
    done = subprocess.run(
        command, input=SECRET, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [headers["Authorization"] for _, headers, _ in service.requests] == [f"Bearer {SECRET}"] * 2


# --- refused ---


def test_a_service_that_wants_another_login_is_asked_once(folder, secret, capsys):
    unauthorized = {"status": 401, "early": True, "answer": b'{"detail": "the token %b is unknown"}'}
    unauthorized["answer"] %= SECRET.encode()
    with running(unauthorized) as service:
        words = [folder, "--token-file", secret, "--batch", 1, "--parallel", 1, "--url", service.url]
        assert store(*words) == 1
        assert len(service.requests) == 1
    assert capsys.readouterr().out.splitlines() == [
        "stopped: HTTP status 401 Unauthorized: the token *** is unknown",
        "0 stored, 0 already stored, 1 failed, 0 skipped",
    ]


def test_a_token_that_was_renewed_is_used(folder, secret):
    def renew(parts):
        secret.write_text("second")
        return b"{}"

    with running({"status": 401, "answer": renew}, {}) as service:
        assert sent_by(service, folder, "--token-file", secret) == [f"Bearer {SECRET}", "Bearer second"]


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        (["--token-file", "FILE"], "", "is empty"),
        (["--token-file", "FILE"], f"{SECRET}\n{SECRET}", "more than one line"),
        (["--token-file", "FILE"], f"{SECRET} {SECRET}", "is not a bearer token"),
        (["--token-file", "FILE"], f"{SECRET}ü", "is not a bearer token"),
        (["--token-file", "missing"], "", "No such file"),
        (["--user", "Anna"], "", "no terminal"),
        (["--user", f"Anna:{SECRET}", "--password-file", "FILE"], SECRET, "use one of them"),
        (["--user", "Anna", "--password-file", "FILE"], f"{SECRET}\x07", "control character"),
        (["--password-file", "FILE"], SECRET, "needs --user"),
        (["--netrc-file", "FILE"], f"machine a login b password {SECRET}", "no entry for 127.0.0.1"),
        (["--netrc-file", "FILE"], f"machine a login b {SECRET} c", "line 1: malformed"),
        (["--header", f"X-Key {SECRET}"], "", "`Name: value`"),
        (["--header", f"X-Key: {SECRET}\r\nX-Other: 1"], "", "the value of X-Key"),
        (["--header", "@FILE"], f"X-Key: 1\n{SECRET}", "line 2"),
        (["--header", f"Content-Length: {SECRET}"], "", "the client itself sets Content-Length"),
        (["--header", f"Authorization: {SECRET}", "--token-file", "FILE"], SECRET, "use one of them"),
        (["--cert", "FILE"], SECRET, "https"),
    ],
)
def test_a_refusal_has_a_reason_and_no_secret(
    words, text, reason, service, folder, secret, monkeypatch, capfd
):
    monkeypatch.chdir(secret.parent)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    secret.write_text(text)
    named = [word.replace("FILE", str(secret)) for word in words]
    with pytest.raises(SettingsError, match=reason) as refusal:
        store(folder, "--url", service.url, *named)
    assert SECRET not in refusal.value.detail + "".join(capfd.readouterr())
    assert service.requests == []


@pytest.mark.parametrize(
    "url", [f"http://Anna:{SECRET}@127.0.0.1/v2", f"ftp://a:{SECRET}@h", f"http://{SECRET}@:x"]
)
def test_a_url_has_no_password(url, folder, capsys):
    with pytest.raises(SystemExit) as refusal:
        store(folder, "--url", url)
    assert refusal.value.code == 2
    assert SECRET not in capsys.readouterr().err


def test_two_logins_are_one_too_many(service, folder, secret):
    with pytest.raises(SystemExit):
        store(folder, "--url", service.url, "--token-file", secret, "--netrc")


# --- redirects ---


def test_a_redirect_to_another_origin_carries_nothing(service, folder, secret, capsys):
    there = f"{service.url}/studies?token={SECRET}"
    redirect = {"status": 307, "headers": {"Location": there}, "answer": b""}
    with running(redirect) as first:
        words = [folder, "--token-file", secret, "--header", "X-Key: 1", "--url", first.url, "--parallel", 1]
        assert store(*words) == 1
        assert len(first.requests) == 1
    assert service.requests == []
    assert capsys.readouterr().out.splitlines()[0] == (
        f"stopped: the service redirects to {service.url}: give this URL if it is right"
    )


def test_a_redirect_within_the_origin_is_followed(folder, secret):
    script = [
        {"status": 308, "headers": {"Location": "/dicom/web/studies?x=1"}, "answer": b"", "early": True},
        {},
    ]
    with running(*script) as service:
        assert store(folder, "--token-file", secret, "--url", service.url, "--parallel", 1) == 0
        assert [path for path, _, _ in service.requests] == ["/v2/studies", "/dicom/web/studies?x=1"]
        assert len(service.requests[1][2]) == 4


def test_redirects_have_an_end(folder, capsys):
    with running({"status": 307, "headers": {"Location": "/v2/studies"}, "answer": b""}) as service:
        assert store(folder, "--url", service.url, "--parallel", 1) == 1
    assert "redirects more than 5 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://h/a", "http://h:80/b", True),
        ("https://H/a", "https://h:443/b", True),
        ("http://h", "https://h", False),
        ("http://h", "http://h:81", False),
        ("http://h", "http://h.evil", False),
        ("http://h", "http://evil@h2", False),
        ("http://h", "//h", False),
        ("http://h", "http://h:port", False),
    ],
)
def test_origins(one, other, same):
    assert same_origin(one, other) == same


# --- TLS ---


def server_context(issued, trusted=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued)
    if trusted:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusted)
    return context


def test_over_tls(authority, folder, capsys, monkeypatch):
    with running(context=server_context(authority.issue("server"))) as service:
        words = [folder, "--url", service.url, "--batch", 1, "--parallel", 1]
        assert store(*words) == 1
        first, *_ = capsys.readouterr().out.splitlines()
        assert first.startswith("stopped: the certificate of 127.0.0.1 is not accepted: ")
        assert store(*words, "--cacert", authority.certificate) == 0
        assert "Expect" not in service.requests[0][1]
        monkeypatch.setenv("SSL_CERT_FILE", authority.certificate)
        assert store(*words) == 0


def test_a_certificate_for_another_host(authority, folder, capsys):
    with running(context=server_context(authority.issue("server", "DNS:other.example"))) as service:
        assert store(folder, "--url", service.url, "--cacert", authority.certificate) == 1
        assert service.requests == []
    assert "is not accepted" in capsys.readouterr().out


def test_the_alert_of_a_service_that_wants_a_certificate_stops_the_verb(monkeypatch):
    connection = StoreConnection("https://127.0.0.1:1/v2", 5, lambda sent: None)

    fault = ssl.SSLError(1, "certificate required")
    fault.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    monkeypatch.setattr(connection, "_exchange", Mock(side_effect=fault))
    with pytest.raises(ServiceRefused, match="--cert"):
        connection.store([])


def test_a_certificate_of_the_client(authority, folder, tmp_path, capsys):
    own = authority.issue("client", "DNS:client.example")
    context = server_context(authority.issue("server"), trusted=authority.certificate)
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(file).read_text() for file in own))
    with running(context=context) as service:
        words = [folder, "--url", service.url, "--cacert", authority.certificate]
        assert store(*words, "--parallel", 1) == 1
        assert "0 stored" in capsys.readouterr().out  # the alert may be lost with the connection
        assert store(*words, "--cert", own.certificate, "--key", own.key) == 0
        assert store(*words, "--cert", both) == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cacert", "FILE"], "no certificate in PEM"),
        (["--cacert", "missing"], "No such file"),
        (["--cert", "FILE"], "not a certificate and its private key"),
        (["--cert", "missing"], "No such file"),
        (["--key", "FILE"], "--key needs --cert"),
    ],
)
def test_files_of_tls_that_cannot_be_used(words, reason, folder, secret, monkeypatch):
    monkeypatch.chdir(secret.parent)
    named = [word.replace("FILE", str(secret)) for word in words]
    with pytest.raises(SettingsError, match=reason):
        store(folder, "--url", "https://127.0.0.1:1/v2", *named)


def test_credentials_without_tls_to_another_machine_get_a_warning(secret, capsys, monkeypatch):
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    for host, warned in (
        ("pacs.example", True),
        ("127.0.0.1", False),
        ("[::1]", False),
        ("localhost", False),
    ):
        url = f"http://{host}/v2"
        args = parser.parse_args(["x", "--token-file", str(secret), "--url", url])
        credentials_module.credentials_of(args, url)
        assert ("not https" in capsys.readouterr().err) == warned

"""`streamsrv store --oidc-client-credentials`: tokens of an issuer for a program."""

import argparse
import itertools

import pytest
from fake_issuer import fake_issuer
from fake_service import running, write_instance

from streamsrv import client
from streamsrv.client.client_credentials import ClientLogin
from streamsrv.config import SettingsError


@pytest.fixture(scope="module")
def issuer():
    with fake_issuer() as issuer:
        yield issuer


@pytest.fixture
def file(issuer, tmp_path):
    path = tmp_path / "client.toml"
    path.write_text(
        f'issuer = "{issuer.url}"\nclient_id = "scanner"\nclient_secret = "s:1"\nscope = "dicom"\n'
    )
    issuer.forms.clear()
    issuer.tokens["client_credentials"] = {"access_token": "token-1", "expires_in": 300}
    return path


def store(*words):
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    return client.run(parser.parse_args([str(word) for word in (*words, "--quiet", "--retries", 0)]))


def sent(service):
    return [headers.get("Authorization") for _, headers, _ in service.requests]


def test_one_token_serves_all_requests(issuer, file, tmp_path):
    for number in range(4):
        write_instance(tmp_path / f"{number}.dcm", f"1.2.3.{number}")
    with running() as service:
        words = [tmp_path, "--batch", 1, "--url", service.url, "--oidc-client-credentials", file]
        assert store(*words) == 0
    assert sent(service) == ["Bearer token-1"] * 4
    assert [form for form, _ in issuer.forms] == [{"grant_type": "client_credentials", "scope": "dicom"}]
    assert issuer.forms[0][1] == "Basic c2Nhbm5lcjpzJTNBMQ=="  # scanner:s%3A1


def test_a_token_that_the_service_refuses_is_renewed(issuer, file, tmp_path):
    instance = write_instance(tmp_path / "1.dcm", "1.2.3.1")
    numbers = itertools.count(1)
    issuer.tokens["client_credentials"] = lambda: {"access_token": f"token-{next(numbers)}"}
    with running({"status": 401}, {}) as service:
        assert store(instance, "--url", service.url, "--oidc-client-credentials", file) == 0
    assert sent(service) == ["Bearer token-1", "Bearer token-2"]


def test_a_service_that_refuses_every_token(issuer, file, tmp_path, capsys):
    instance = write_instance(tmp_path / "1.dcm", "1.2.3.1")
    with running({"status": 401}) as service:
        assert store(instance, "--url", service.url, "--oidc-client-credentials", file) == 1
    assert "stopped: HTTP status 401" in capsys.readouterr().out
    assert len(issuer.forms) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("client_secret", "secret_client"), "has no client_secret"),
        (("scope", "skope"), "'skope' is none of"),
        (('"dicom"', "7"), "scope is no text"),
        (('"dicom"', "dicom"), "is not TOML"),
        (("/realms/clinic", "/realms/other"), "calls itself"),
        (("http://", "ftp://"), "no http or https URL"),
    ],
)
def test_files_that_are_refused(file, change, reason, issuer, capsys):
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(SettingsError, match=reason) as error:
        ClientLogin(file, None)()
    assert "s:1" not in error.value.detail


@pytest.mark.parametrize(
    "answer", [None, {}, {"access_token": 1}, {"access_token": "a b"}, {"access_token": "a\nb"}]
)
def test_an_issuer_that_gives_no_token(file, issuer, answer):
    issuer.tokens["client_credentials"] = answer
    with pytest.raises(SettingsError, match="no token"):
        ClientLogin(file, None)()


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        ClientLogin(tmp_path / "none", None)

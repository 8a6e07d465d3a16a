"""Tokens and logins of oidc-provider, a certified OpenID Connect provider from npm."""

import asyncio
import http.cookiejar
import json
import re
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import pytest
from live_server import environment, executable, free_port, start_server

from streamsrv.companions.issuer import KeyFetcher
from streamsrv.config import load
from streamsrv.oidc.fetching import Trust, post_form
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.web.access.issued_tokens import IssuedTokens
from streamsrv.web.access.login import Login
from streamsrv.web.access.principal import Right

PROVIDER = Path(__file__).with_name("oidc_provider.mjs")
PACKAGE = "oidc-provider@9.13.3"
BACK = "http://127.0.0.1:1/back"
SECRET = secrets.token_urlsafe()
ROLES = "reader -> search read,sender -> store"


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """Its URL."""
    folder, port = tmp_path_factory.mktemp("provider"), free_port()
    (folder / "package.json").write_text('{"private": true}')
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", PACKAGE]
    subprocess.run(words, cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL)
    shutil.copy(PROVIDER, folder)
    command = ["node", PROVIDER.name, str(port), SECRET, BACK]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log)
        try:
            lines = iter(running.stdout.readline, b"")
            assert any(line.strip() == b"ready" for line in lines), (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait(10)
            running.stdout.close()


def flags_of(provider):
    return {"oidc_issuer": provider, "oidc_audience": "streamsrv", "oidc_roles": ROLES}


@pytest.fixture(scope="module")
def server(provider, tmp_path_factory):
    words = [
        word for name, value in flags_of(provider).items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    running = start_server(tmp_path_factory.mktemp("oidc"), "--auth", "required", *words, workers=2)
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def login(provider, tmp_path_factory):
    """The login of a worker, with the keys that a companion has fetched."""
    secret = tmp_path_factory.mktemp("login") / "secret"
    secret.write_text(SECRET)
    settings = load(
        flags=flags_of(provider) | {"oidc_client_id": "page", "oidc_client_secret_file": str(secret)}
    )
    board = KeyBoard.make()
    KeyFetcher(provider, Trust(), board).fetch_if_due()
    login = Login(settings, IssuedTokens(settings, board))
    yield login
    login.close()


class Browser(urllib.request.HTTPRedirectHandler):
    """A browser that fills the forms of the provider, and stops when it is sent back."""

    def __init__(self):
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(self, jar)

    def redirect_request(self, *args):
        return None

    def go(self, url, form=None):
        """The parameters with which the provider sends the browser back."""
        for _ in range(12):
            if url.startswith(BACK):
                return dict(parse_qsl(urlsplit(url).query))
            try:
                with self.opener.open(url, form and urlencode(form).encode(), timeout=10) as page:
                    url, form = filled(page.geturl(), page.read().decode())
            except urllib.error.HTTPError as answer:
                if answer.status not in (302, 303):
                    raise
                url, form = urljoin(url, answer.headers["Location"]), None
        raise AssertionError("the provider never sends the browser back")


def filled(url, page):
    """Where the form of the page goes, and its fields."""
    action = re.search(r'<form[^>]* action="([^"]+)"', page)[1]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)"', page))
    if fields.get("prompt") == "login":
        fields |= {"login": "anna", "password": "any"}
    return urljoin(url, action), fields


def ask(server, token, method="GET", path="/studies"):
    request = urllib.request.Request(server.url + path, method=method)
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.status, error.read()


def test_a_program_stores_with_client_credentials(provider, server, tmp_path):
    file = tmp_path / "client.toml"
    file.write_text(
        f'issuer = "{provider}"\nclient_id = "scanner"\nclient_secret = "{SECRET}"\nscope = "dicom"\n'
    )
    for words in (
        ["samples", str(tmp_path / "samples")],
        ["store", str(tmp_path / "samples"), "--url", server.url, "--oidc-client-credentials", str(file)],
    ):
        done = subprocess.run([*executable(), *words], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "3 stored" in done.stdout


def test_a_person_logs_in(login):
    url, attempt = login.begin(BACK)
    found = asyncio.run(login.finish(Browser().go(url), attempt, BACK))
    assert found.principal.name == "oidc:anna@127.0.0.1"
    assert found.principal.rights == Right.SEARCH | Right.READ
    assert found.label == "anna"


def test_the_access_token_lets_in_and_the_id_token_does_not(provider, server, login):
    url, attempt = login.begin(BACK)
    code = Browser().go(url)["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK}
    form |= {"code_verifier": attempt.verifier}
    tokens = post_form(f"{provider}/token", form, Trust(), ("page", SECRET))
    status, body = ask(server, tokens["access_token"])
    assert (status, len(json.loads(body))) == (200, 1)
    assert ask(server, tokens["access_token"], "DELETE", "/studies/1.2")[0] == 403
    assert ask(server, tokens["id_token"])[0] == 401

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
def port():
    """The port of the server, which the provider has to know."""
    return free_port()


@pytest.fixture(scope="module")
def provider(port, tmp_path_factory):
    """Its URL."""
    callbacks = [f"http://{host}:{port}/session/callback" for host in ("127.0.0.1", "localhost")]
    folder, own = tmp_path_factory.mktemp("provider"), free_port()
    (folder / "package.json").write_text('{"private": true}')
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", PACKAGE]
    subprocess.run(words, cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL)
    shutil.copy(PROVIDER, folder)
    command = ["node", PROVIDER.name, str(own), SECRET, BACK, *callbacks]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log)
        try:
            lines = iter(running.stdout.readline, b"")
            assert any(line.strip() == b"ready" for line in lines), (folder / "log").read_text()
            yield f"http://127.0.0.1:{own}"
        finally:
            running.terminate()
            running.wait(10)
            running.stdout.close()


@pytest.fixture(scope="module")
def flags(provider, tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text(SECRET)
    issuer = {"oidc_issuer": provider, "oidc_audience": "streamsrv", "oidc_roles": ROLES}
    return issuer | {"oidc_client_id": "page", "oidc_client_secret_file": str(secret)}


@pytest.fixture(scope="module")
def server(flags, port, tmp_path_factory):
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    running = start_server(tmp_path_factory.mktemp("oidc"), *words, workers=2, port=port)
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def login(provider, flags):
    """The login of a worker, with the keys that a companion has fetched."""
    settings = load(flags=flags)
    board = KeyBoard.make()
    KeyFetcher(provider, Trust(), board).fetch_if_due()
    login = Login(settings, IssuedTokens(settings, board))
    yield login
    login.close()


class Browser(urllib.request.HTTPRedirectHandler):
    """A browser that fills the forms of the provider."""

    def __init__(self):
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(self, jar)

    def redirect_request(self, *args):
        return None

    def back(self, url):
        """The parameters with which the provider sends the browser back."""
        return dict(parse_qsl(urlsplit(self.go(url, BACK)).query))

    def go(self, url, until, form=None):
        """The first URL that begins so, to which the browser is sent."""
        for _ in range(12):
            if url.startswith(until):
                return url
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
    found = asyncio.run(login.finish(Browser().back(url), attempt, BACK))
    assert found.principal.name == "oidc:anna@127.0.0.1"
    assert found.principal.rights == Right.SEARCH | Right.READ
    assert found.label == "anna"


def test_the_access_token_lets_in_and_the_id_token_does_not(provider, server, login):
    url, attempt = login.begin(BACK)
    code = Browser().back(url)["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK}
    form |= {"code_verifier": attempt.verifier}
    tokens = post_form(f"{provider}/token", form, Trust(), ("page", SECRET))
    status, body = ask(server, tokens["access_token"])
    assert (status, len(json.loads(body))) == (200, 1)
    assert ask(server, tokens["access_token"], "DELETE", "/studies/1.2")[0] == 403
    assert ask(server, tokens["id_token"])[0] == 401


def test_a_browser_signs_in_at_the_provider(server):
    browser = Browser()
    page = f"{server.origin}/#"
    assert browser.go(f"{server.origin}/session/login?return=%23/studies", page) == f"{page}/studies"
    with browser.opener.open(f"{server.url}/studies", timeout=20) as answer:
        assert len(json.loads(answer.read())) == 1
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Browser().opener.open(f"{server.url}/studies", timeout=20)


def test_chromium_signs_in_across_sites_and_out(server, provider, browser):
    """The server is `localhost` and the provider 127.0.0.1: two sites, as usual. Chromium sends no cookie
    that is SameSite=Strict on the way back."""
    page, origin = browser, server.origin.replace("127.0.0.1", "localhost")
    page.open(f"{origin}/#/?order=PatientName")
    page.click("a.issuer")
    page.wait("document.querySelector('input[name=login]')")
    page.run("document.querySelector('input[name=login]').value = 'anna'")
    page.run("document.querySelector('input[name=password]').value = 'any'")
    page.click("button[type=submit]")
    page.wait("document.querySelector('input[value=consent]')")
    page.click("button[type=submit]")
    page.wait("document.querySelector('.user')?.innerText === 'anna'")
    page.wait("document.querySelectorAll('tbody tr').length === 1")
    assert page.run("location.hash") == "#/?order=PatientName"
    (cookie,) = page.call("Network.getCookies", urls=[f"{origin}/v2/studies"])["cookies"]
    assert (cookie["sameSite"], cookie["httpOnly"], cookie["session"]) == ("Strict", True, True)
    page.click("button", "Sign out")
    page.wait(f"location.href.startsWith('{provider}/session/end')")
    page.click("button[value=yes], button[autofocus]")
    page.wait(f"location.origin === '{origin}' && document.querySelector('section.sign-in')")
    assert page.call("Network.getCookies", urls=[f"{origin}/v2/studies"])["cookies"] == []

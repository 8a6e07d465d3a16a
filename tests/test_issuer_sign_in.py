"""The sign-in at an issuer over HTTP: the way there and back, sessions and their renewal, attacks on them."""

import base64
import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_client import LINK, PAGE, Browser
from fake_issuer import fake_issuer
from test_oidc import OidcSite, started

from streamsrv.web.access.tokens import LEEWAY

CLIENT, SECRET = "page", "very:secret"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    (folder / "secret").write_text(f"{SECRET}\n")
    with fake_issuer() as issuer:
        flags = ("--oidc-client-id", CLIENT, "--oidc-client-secret-file", str(folder / "secret"))
        server = started(folder / "server", issuer, *flags)
        yield OidcSite(server, issuer)
        assert server.end() == 0


@pytest.fixture
def browser(site):
    site.issuer.fault = None
    site.issuer.tokens.clear()
    return Browser(site)


def begin(browser, back="#/"):
    """Clicks the button of the page. Returns the parameters with which the browser goes to the issuer."""
    browser.headers = PAGE | {"Sec-Fetch-Mode": "navigate"}
    deadline = time.monotonic() + 20
    while True:
        answer = browser.ask(path=f"/session/login?return={back.replace('#', '%23')}")
        there = answer.getheader("Location")
        if "login-unavailable" not in there or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert answer.status == 303
    assert there.startswith(f"{browser.site.issuer.url}/authorize?")
    return {name: values[0] for name, values in parse_qs(urlsplit(there).query).items()}


def issue(site, asked, *, seconds=300, roles=("reader",), refresh="r-1", sub="anna", **more):
    now = int(time.time())
    claims = {"sub": sub, "roles": list(roles), "exp": now + seconds}
    identity = site.issuer.token(
        aud=CLIENT, nonce=asked["nonce"], scope=None, preferred_username="Anna", **claims, **more
    )
    answer = {"access_token": site.issuer.token(**claims), "id_token": identity, "expires_in": seconds}
    site.issuer.tokens["authorization_code"] = answer | ({"refresh_token": refresh} if refresh else {})


def come_back(browser, **parameters):
    browser.headers = LINK
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    answer = browser.ask(path=f"/session/callback?{query}")
    browser.headers = PAGE
    assert answer.status == 303
    assert "code" not in answer.getheader("Location")
    return answer.getheader("Location")


def sign_in(browser, back="#/", **more):
    asked = begin(browser, back)
    issue(browser.site, asked, **more)
    return come_back(browser, state=asked["state"], code="c-1")


def sign_in_briefly(browser, **more):
    """When it returns, the rights of the session have ended. A slow machine needs a longer token."""
    for left in (1, 4, 15):
        there = sign_in(browser, seconds=left - LEEWAY, **more)
        if not there.endswith("login-failed"):
            break
    time.sleep(left + 0.2)


def session_file(site):
    files = sorted(
        (site.server.data / "access").glob("session-*.json"), key=lambda each: each.stat().st_mtime
    )
    return files[-1]


@pytest.mark.embedded("it reads the file of a session")
def test_the_issuer_signs_a_user_in(site, browser):
    assert browser.facts()["signIn"]["oidc"] is True
    asked = begin(browser, "#/studies/1.2")
    attempt = browser.last
    assert attempt.startswith(f"streamsrv-login-{site.port}=")
    assert {"HttpOnly", "SameSite=Lax", "Max-Age=600"} <= set(attempt.split("; "))
    assert (asked["code_challenge_method"], asked["response_type"]) == ("S256", "code")
    assert asked["redirect_uri"] == f"{site.server.origin}/session/callback"
    issue(site, asked)
    there = come_back(browser, state=asked["state"], code="c-1")
    assert there == f"{site.server.origin}/#/studies/1.2"
    assert list(browser.jar) == [f"streamsrv-{site.port}"]
    assert "SameSite=Strict" in browser.last
    assert [browser.ask().status for _ in range(4)] == [204] * 4
    facts = browser.facts()
    assert (facts["user"], facts["kind"], facts["session"]) == ("Anna", "oidc", True)
    assert [right for right, has in facts["allowed"].items() if has] == ["search", "read"]
    text = session_file(site).read_text()
    assert "r-1" not in text
    answer = json.loads(browser.ask("DELETE", "/session").body)
    assert answer["location"].startswith(f"{site.issuer.url}/logout?")
    assert parse_qs(urlsplit(answer["location"]).query)["post_logout_redirect_uri"] == [
        f"{site.server.origin}/"
    ]
    assert browser.jar == {}


@pytest.mark.parametrize(
    "back",
    [
        "https://evil.example/",
        "//evil.example",
        "/v2/studies",
        "#//evil",
        "javascript:alert(1)",
        "#/%0d%0aX:1",
        "",
        "#x",
    ],
)
def test_the_way_back_is_a_place_of_the_page(site, browser, back):
    there = sign_in(browser, back)
    assert urlsplit(there)._replace(fragment="").geturl().rstrip("#") == f"{site.server.origin}/"


@pytest.mark.parametrize("attack", ["state", "no cookie", "other browser", "code", "error", "nonce", "twice"])
def test_an_answer_that_does_not_belong_to_the_attempt(site, browser, attack):
    """An attacker can send a browser to the callback, and has codes of his own account (login CSRF)."""
    asked = begin(browser)
    issue(site, asked)
    given = {"state": asked["state"], "code": "c-1"}
    match attack:
        case "state":
            given["state"] += "x"
        case "no cookie":
            browser.jar.clear()
        case "other browser":
            other = Browser(site)
            given["state"] = begin(other)["state"]
        case "code":
            del given["code"]
        case "error":
            given = {"state": asked["state"], "error": "access_denied"}
        case "nonce":
            issue(site, {"nonce": "other"})
        case "twice":
            come_back(browser, **given)
            browser.jar.clear()
    assert come_back(browser, **given) == f"{site.server.origin}/#/login-failed"
    assert browser.jar == {}
    assert browser.ask().status == 401


def test_a_sign_in_ends_the_former_session(site, browser):
    sign_in(browser)
    first = browser.cookie
    sign_in(browser)
    assert browser.cookie != first
    deadline = time.monotonic() + 20
    while browser.ask(Cookie=first).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def renewed(site, *, seconds=300, roles=("reader",), refresh="r-2", sub="anna"):
    def answer():
        claims = {"sub": sub, "roles": list(roles), "exp": int(time.time()) + seconds}
        return {"access_token": site.issuer.token(**claims), "refresh_token": refresh, "expires_in": seconds}

    site.issuer.tokens["refresh_token"] = answer


def refreshes(site):
    return [form["refresh_token"] for form, _ in site.issuer.forms if form["grant_type"] == "refresh_token"]


def test_a_session_is_renewed_without_the_user(site, browser):
    """Its rights have ended: the request waits for the renewal. All workers together renew it once."""
    site.issuer.forms.clear()
    sign_in(browser, seconds=-25)  # within the leeway, it ends in five seconds
    renewed(site, roles=("reader", "sender"))
    assert browser.ask().status == 204
    deadline = time.monotonic() + 20
    while not browser.facts()["allowed"]["store"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert refreshes(site) == ["r-1"]
    assert browser.facts()["user"] == "Anna"


def test_a_session_whose_rights_have_ended_waits_for_its_renewal(site, browser):
    site.issuer.forms.clear()
    renewed(site)
    sign_in_briefly(browser)
    assert browser.ask().status == 204
    assert refreshes(site) == ["r-1"]


@pytest.mark.parametrize("answer", ["refused", "another user"])
def test_a_user_without_a_session_at_the_issuer_is_signed_out(site, browser, answer):
    sign_in_briefly(browser)
    if answer == "another user":
        renewed(site, sub="mallory")
    assert {browser.ask().status for _ in range(3)} == {401}
    assert browser.facts()["user"] is None
    renewed(site)
    assert browser.ask().status == 401


def test_an_issuer_that_is_away(site, browser):
    """A session lasts until its rights end; the page loads, and a new sign-in says why it fails."""
    sign_in_briefly(browser)
    site.issuer.fault = lambda handler: handler.connection.close()
    assert browser.ask().status == 401
    assert browser.ask(path="/", Accept="text/html").status == 200
    assert browser.facts()["user"] is None
    other = Browser(site)
    asked = begin(other)
    assert come_back(other, state=asked["state"], code="c-1") == f"{site.server.origin}/#/login-unavailable"


def test_without_a_refresh_token_a_session_has_its_own_end(site, browser):
    sign_in_briefly(browser, refresh=None)
    assert browser.ask().status == 204


def test_a_head_request_uses_no_code(site, browser):
    asked = begin(browser)
    issue(site, asked)
    count = len(site.issuer.forms)
    browser.headers = LINK
    assert browser.ask("HEAD", f"/session/callback?state={asked['state']}&code=c-1").status == 200
    assert len(site.issuer.forms) == count
    assert browser.ask(path="/session/other").status == 404


def test_no_log_has_a_code_a_token_or_a_secret(site, browser):
    sign_in(browser)
    log = site.log()
    for secret in (browser.cookie.partition("=")[2], "c-1", "r-1", SECRET, "id_token"):
        assert secret not in log
    assert base64.b64encode(SECRET.encode()).decode() not in log

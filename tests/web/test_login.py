"""Logins of people at the issuer: authorization code with PKCE, without a server."""

import asyncio
import base64
import hashlib
import os
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_issuer import AUDIENCE, fake_issuer

from streamsrv.config import load
from streamsrv.errors import Overloaded
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.web.access.issued_tokens import IssuedTokens
from streamsrv.web.access.login import Login, LoginAttempt, LoginFailed
from streamsrv.web.access.principal import Right

BACK, CLIENT, SECRET = "https://pacs.example/login", "page", "very:secret"


@pytest.fixture(scope="module")
def issuer():
    with fake_issuer() as issuer:
        yield issuer


class Desk:
    """The login of one worker."""

    def __init__(self, issuer, folder, *, known=True):
        secret = folder / "secret"
        secret.write_text(f"{SECRET}\n")
        self.issuer, self.board = issuer, KeyBoard.make()
        flags = {
            "oidc_issuer": issuer.url,
            "oidc_audience": AUDIENCE,
            "oidc_client_id": CLIENT,
            "oidc_client_secret_file": str(secret),
            "oidc_roles": "* -> search,reader -> read",
        }
        if known:
            self.publish()
        self.tokens = IssuedTokens(load(flags=flags), self.board)
        self.login = Login(load(flags=flags), self.tokens)

    def publish(self):
        names = ("jwks_uri", "authorization_endpoint", "token_endpoint", "end_session_endpoint")
        found = {name: self.issuer.metadata()[name] for name in names}
        document = {"name": self.issuer.url, "basic": True, **found}
        self.board.write({"issuer": document, "keys": self.issuer.key_set()["keys"]})

    def identity(self, attempt, **more):
        return self.issuer.token(**{"aud": CLIENT, "nonce": attempt.nonce, "scope": None} | more)

    def finish(self, attempt, answer, **parameters):
        """The browser comes back with a code, for which the issuer gives `answer`."""
        self.issuer.tokens["authorization_code"] = answer
        given = {"state": attempt.state, "code": "c-1"} | parameters
        return asyncio.run(self.login.finish(given, attempt, BACK))

    def close(self):
        self.login.close()
        for each in self.board.descriptors:
            os.close(each)


@pytest.fixture
def desk(issuer, tmp_path):
    issuer.tokens.clear()
    desk = Desk(issuer, tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def attempt(desk):
    return desk.login.begin(BACK)[1]


def half_hash(token):
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()[:16]).decode().rstrip("=")


def test_the_browser_goes_to_the_issuer(desk):
    url, attempt = desk.login.begin(BACK, prompt="none")
    assert url.startswith(f"{desk.issuer.url}/authorize?")
    digest = hashlib.sha256(attempt.verifier.encode()).digest()
    assert parse_qs(urlsplit(url).query) == {
        "response_type": ["code"],
        "client_id": [CLIENT],
        "redirect_uri": [BACK],
        "scope": ["openid profile"],
        "state": [attempt.state],
        "nonce": [attempt.nonce],
        "code_challenge": [base64.urlsafe_b64encode(digest).decode().rstrip("=")],
        "code_challenge_method": ["S256"],
        "prompt": ["none"],
    }
    assert LoginAttempt.parse(attempt.text) == attempt
    assert desk.login.begin(BACK)[1] != attempt
    assert attempt.verifier not in url


def test_the_rights_come_from_the_access_token(desk, attempt):
    access = desk.issuer.token(realm_access={"roles": ["reader"]})
    identity = desk.identity(attempt, preferred_username="Anna", at_hash=half_hash(access))
    answer = {"id_token": identity, "access_token": access, "refresh_token": "r-1"}
    found = desk.finish(attempt, answer, iss=desk.issuer.url)
    assert found.principal == desk.tokens.principal_of("anna", {"roles": ["reader"]}, found.principal.until)
    assert found.principal.rights == Right.SEARCH | Right.READ
    assert found.principal.name == "oidc:anna@127.0.0.1"
    assert (found.label, found.refresh_token) == ("Anna", "r-1")
    form, authorization = desk.issuer.forms[-1]
    assert form == {
        "grant_type": "authorization_code",
        "code": "c-1",
        "redirect_uri": BACK,
        "code_verifier": attempt.verifier,
        "client_id": CLIENT,
    }
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"page:very%3Asecret"


def test_or_from_the_id_token(desk, attempt):
    answer = {
        "id_token": desk.identity(attempt, roles=["reader"]),
        "access_token": "opaque",
        "expires_in": 60,
    }
    found = desk.finish(attempt, answer)
    assert found.principal.rights == Right.SEARCH | Right.READ
    assert (found.label, found.refresh_token) == ("anna", "")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": AUDIENCE}, "udience"),
        ({"azp": "another"}, "another client"),
        ({"aud": [CLIENT, "another"]}, "another client"),
        ({"iss": "https://login.example"}, "issuer"),
        ({"exp": 1}, "expired"),
        ({"at_hash": "AAAA"}, "another access token"),
        ({"sub": "bert"}, "subject"),
        ({"header": {"alg": "none"}}, "algorithm"),
        ({"header": {"kid": "other"}}, "no such key"),
    ],
)
def test_id_tokens_that_are_refused(desk, attempt, more, reason):
    desk.board.begin_fetch()
    desk.board.end_fetch()  # a moment ago, so that nothing is fetched
    identity = desk.identity(attempt, **{name: each for name, each in more.items() if name != "header"})
    if "header" in more:
        head = {"alg": "RS256", "kid": "1"} | more["header"]
        identity = desk.issuer.with_header(head, identity)
    with pytest.raises(LoginFailed) as error:
        desk.finish(attempt, {"id_token": identity, "access_token": desk.issuer.token()})
    assert reason in error.value.reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"state": "another"}, "state"),
        ({"state": "ä"}, "state"),
        ({"code": ""}, "refused"),
        ({"iss": "https://login.example"}, "another issuer"),
    ],
)
def test_answers_of_the_browser_that_are_refused(desk, attempt, parameters, reason):
    before = len(desk.issuer.forms)
    with pytest.raises(LoginFailed) as error:
        desk.finish(attempt, {"id_token": desk.identity(attempt)}, **parameters)
    assert reason in error.value.reason
    assert len(desk.issuer.forms) == before


@pytest.mark.parametrize("answer", [{}, {"access_token": "opaque"}, {"id_token": 7}])
def test_answers_without_an_id_token(desk, attempt, answer):
    with pytest.raises(LoginFailed):
        desk.finish(attempt, answer)


@pytest.mark.parametrize("text", ["", "a.b", "a.b.", "a.b.c.d"])
def test_a_cookie_that_is_no_attempt(text):
    with pytest.raises(LoginFailed, match="not valid"):
        LoginAttempt.parse(text)


def test_a_session_is_renewed(desk, attempt):
    first = desk.finish(
        attempt, {"id_token": desk.identity(attempt), "refresh_token": "r-1", "expires_in": 9}
    )
    desk.issuer.tokens["refresh_token"] = {"access_token": desk.issuer.token(roles=["reader"])}
    found = asyncio.run(desk.login.renew("r-1", first.principal))
    assert desk.issuer.forms[-1][0]["refresh_token"] == "r-1"
    assert found.principal.rights == Right.SEARCH | Right.READ
    assert found.refresh_token == "r-1"
    desk.issuer.tokens["refresh_token"] = {"access_token": desk.issuer.token(sub="bert")}
    with pytest.raises(LoginFailed):
        asyncio.run(desk.login.renew("r-1", first.principal))
    desk.issuer.tokens.clear()
    with pytest.raises(LoginFailed):
        asyncio.run(desk.login.renew("r-1", first.principal))


def test_a_key_that_the_issuer_has_changed_meanwhile(issuer, tmp_path):
    desk = Desk(issuer, tmp_path)
    attempt = desk.login.begin(BACK)[1]
    issuer.rotate("2")

    async def log_in():
        work = asyncio.create_task(desk.login.finish({"state": attempt.state, "code": "c"}, attempt, BACK))
        while not work.done():
            await asyncio.sleep(0.01)
            if desk.board.asked():
                desk.board.begin_fetch()
                desk.publish()
                desk.board.end_fetch()
        return await work

    issuer.tokens["authorization_code"] = {"id_token": desk.identity(attempt)}
    assert asyncio.run(log_in()).principal.name == "oidc:anna@127.0.0.1"
    desk.close()


def test_logout(desk):
    url = desk.login.logout_url("https://pacs.example/")
    assert (
        url
        == f"{desk.issuer.url}/logout?client_id=page&post_logout_redirect_uri=https%3A%2F%2Fpacs.example%2F"
    )


def test_an_issuer_that_is_not_known_or_gone(issuer, tmp_path, desk):
    unknown = Desk(issuer, tmp_path, known=False)
    with pytest.raises(Overloaded):
        unknown.login.begin(BACK)
    unknown.close()
    attempt = desk.login.begin(BACK)[1]
    issuer.fault = lambda handler: None
    with pytest.raises(Overloaded):
        desk.finish(attempt, {})
    issuer.fault = None


def test_other_keys_are_noticed_once(desk):
    assert desk.tokens.refresh()
    assert not desk.tokens.refresh()
    desk.issuer.rotate("3")
    desk.publish()
    assert desk.tokens.accepted(desk.issuer.token()) is not None  # it looks for the keys
    assert desk.tokens.refresh()
    assert not desk.tokens.refresh()

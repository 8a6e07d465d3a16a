"""A server with tokens of an issuer, over HTTP, with two workers."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time

import pydicom
import pytest
from fake_issuer import AUDIENCE, fake_issuer
from live_server import environment, start_server

from streamsrv import samples
from streamsrv.config import SettingsError, load
from streamsrv.web.access.policy import check_start

ROLES = (
    "reader -> search read",
    "sender -> store",
    "ward -> search read where InstitutionName={institution}",
)


class OidcSite:
    def __init__(self, server, issuer):
        self.server, self.issuer = server, issuer
        self.port = int(server.origin.rsplit(":", 1)[1])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self, authorization=None, method="GET", path="/v2/studies", connection=None, body=None, **headers
    ):
        own = connection is None
        connection = connection or self.connect()
        if authorization is not None:
            headers["Authorization"] = authorization
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.body = answer.read()
            return answer
        finally:
            if own:
                connection.close()

    def status(self, token, **more):
        return self.ask(f"Bearer {token}", **more).status

    def log(self):
        return self.server.log.read_text()

    def fetches(self):
        return len([path for path in self.issuer.requests if path.endswith("/keys")])


def started(folder, issuer, *more):
    words = ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--oidc-roles", ",".join(ROLES)]
    return start_server(folder, "--auth", "required", "--failed-logins", "0", *words, *more, workers=2)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """At first the issuer does not answer. A request with a token waits meanwhile, and others do not."""
    with fake_issuer() as issuer:
        answers, gate = [], threading.Event()
        instance = samples.dataset(samples.SAMPLES[0])
        instance.InstitutionName = "Clinic"
        file = tmp_path_factory.mktemp("file") / "instance.dcm"
        pydicom.dcmwrite(file, instance, enforce_file_format=True)
        issuer.fault = lambda handler: gate.wait(60) and issuer.answer_well(handler, b"")
        server = started(tmp_path_factory.mktemp("oidc"), issuer)
        site = OidcSite(server, issuer)
        sender = issuer.token(roles=["sender"])

        def store():
            more = {"method": "POST", "body": file.read_bytes(), "Content-Type": "application/dicom"}
            answers.append(site.status(sender, **more))

        def search():
            answers.append(site.status(reader(site), path="/v2/series?PatientID=none"))

        try:
            deadline = time.monotonic() + 60
            while not issuer.requests:  # the process that asks it has started
                assert time.monotonic() < deadline
                time.sleep(0.02)
            waiting = [threading.Thread(target=each) for each in (store, search)]
            for thread in waiting:
                thread.start()
            others = [site.ask().status for _ in range(6)]
            still = [thread.is_alive() for thread in waiting]
            gate.set()
            for thread in waiting:
                thread.join()
            assert (others, still, sorted(answers)) == ([401] * 6, [True, True], [200, 204])
            yield site
        finally:
            code = server.end()
        assert code == 0


@pytest.fixture(autouse=True)
def healthy(site):
    site.issuer.fault = None
    yield
    site.issuer.fault = None


def reader(site, **more):
    return site.issuer.token(roles=["reader"], **more)


def test_a_token_lets_in(site):
    assert site.status(reader(site)) == 200
    assert site.ask(f"bearer {reader(site)}").status == 200  # RFC 9110 11.1
    assert site.status(reader(site), method="POST", body=b"") == 403
    assert site.status(site.issuer.token()) == 403  # no role


def test_no_token_and_two_headers(site):
    answer = site.ask()
    assert answer.status == 401
    assert "Bearer" in answer.headers["WWW-Authenticate"]
    good = reader(site)
    lines = f"GET /v2/studies HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as sock:
        sock.sendall(f"{lines}Authorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def bad_tokens(issuer):
    now, good = int(time.time()), issuer.token()
    return {
        "algorithm is not allowed": issuer.with_header({"alg": "none"}, good).rpartition(".")[0] + ".",
        "its algorithm is not": issuer.with_header({"alg": "HS256", "kid": next(iter(issuer.keys))}, good),
        "no such key": issuer.token(header={"kid": "other"}),
        "Invalid issuer": issuer.token(iss="https://login.example"),
        "Audience doesn't match": issuer.token(aud="account"),
        "not yet valid": issuer.token(nbf=now + 60),
        "has expired": issuer.token(exp=now - 31),
        "header has jku": issuer.token(header={"jku": "https://evil.example/keys"}),
        "header has crit": issuer.token(header={"crit": ["exp"]}),
        "may be an ID token": issuer.token(scope=None, nonce="1"),
        "bytes, and 8192 are allowed": issuer.token(groups=["x" * 40] * 160),
    }


def test_reasons_stay_in_the_log(site):
    for reason, token in bad_tokens(site.issuer).items():
        answer = site.ask(f"Bearer {token}")
        assert answer.status == 401, reason
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        assert json.loads(answer.body)["detail"] == "the credentials of this request are not valid"
        assert reason in site.log()
        assert token not in site.log()
        assert token.split(".")[2] not in site.log() or not token.split(".")[2]


def test_10_000_claims_never_reach_the_verifier(site):
    token = site.issuer.token(**{f"c{number}": 1 for number in range(10_000)})
    assert site.status(token) == 431


def test_a_token_that_ends_while_it_is_hot(site):
    token = reader(site, exp=int(time.time()) - 28)  # 30 s of leeway: 2 s are left
    connection = site.connect()
    answers = []
    while not answers or (answers[-1] == 200 and len(answers) < 10_000):
        answers.append(site.status(token, connection=connection))
        time.sleep(0.01)
    connection.close()
    assert len(answers) > 10
    assert answers[-1] == 401


def test_a_rule_from_a_claim(site):
    """The instance of the fixture belongs to one institution; the other one sees nothing of it."""
    study = f"/v2/studies/{samples.STUDY_UID}"
    for institution, statuses in {"Clinic": [200, 200], "Other": [204, 404], None: [403, 403]}.items():
        token = site.issuer.token(roles=["ward"], institution=institution)
        paths = ("/v2/studies", f"{study}/metadata")
        assert [site.status(token, path=path) for path in paths] == statuses, institution


def test_a_flood_of_unknown_keys_causes_one_fetch(site):
    before = site.fetches()
    other = site.issuer.token(header={"kid": "other"})
    found = []
    flood = [threading.Thread(target=lambda: found.extend(map(site.status, [other] * 50))) for _ in range(4)]
    for thread in flood:
        thread.start()
    for thread in flood:
        thread.join()
    assert found == [401] * 200
    assert site.fetches() - before <= 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"oidc_issuer": "https://login.example"}, "oidc_audience"),
        ({"oidc_issuer": "http://login.example", "oidc_audience": "a"}, "no TLS"),
        ({"oidc_issuer": "login.example"}, "no URL of an issuer"),
        ({"oidc_roles": "reader -> look"}, "'look' is no right"),
        ({"oidc_issuer": "https://a.example", "oidc_audience": "a", "oidc_ca_file": "/no"}, "cannot be read"),
    ],
)
def test_settings_with_which_no_token_can_be_valid(flags, reason, tmp_path):
    with pytest.raises(SettingsError, match=reason):
        check_start(load(flags={"data": str(tmp_path)} | flags))


def test_a_server_without_an_issuer_does_not_load_cryptography():
    script = "import sys, streamsrv.server; print({'jwt', 'cryptography'} & set(sys.modules))"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

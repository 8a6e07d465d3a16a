"""Failed logins over HTTP: a flood of invalid keys from one address."""

import itertools

import pytest
from access_world import Site, basic, bearer
from browser_client import PAGE, Browser
from kill_world import waited
from live_server import start_server

LIMIT = 20  # failed logins


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    flags = ("--auth", "required", "--failed-logins", str(LIMIT), "--trusted-proxies", "127.0.0.0/8")
    server = start_server(tmp_path_factory.mktemp("site"), *flags, workers=1)
    site = Site(server)
    yield site
    site.close()
    assert server.end() == 0


@pytest.fixture(autouse=True)
def closed(site):
    yield
    site.close()


ADDRESSES = (f"192.0.2.{number}" for number in itertools.count(1))


def test_a_flood_of_bad_keys_is_429_and_good_keys_still_work(site):
    key, address, elsewhere = site.key("good", "search"), next(ADDRESSES), next(ADDRESSES)
    connection = site.connect()

    def ask(source, **credentials):
        answer = site.ask(connection=connection, X_Forwarded_For=source, **credentials)
        return answer.status, answer

    statuses = [ask(address, **bearer(f"streamsrv_bad{number}"))[0] for number in range(LIMIT + 30)]
    assert statuses[:LIMIT] == [401] * LIMIT
    assert set(statuses) == {401, 429}
    assert statuses.count(429) > 20
    status, refused = ask(address, Authorization=basic("good", "wrong"))
    assert (status, 1 <= int(refused.headers["Retry-After"]) <= 60 // LIMIT) == (429, True)
    assert b"too many requests of this address" in refused.body
    assert ask(address, **bearer(key))[0] == 204
    assert ask(address)[0] == 401, "without credentials there is nothing to guess"
    assert ask(elsewhere, **bearer("streamsrv_bad"))[0] == 401
    log = site.server.log.read_text()
    assert log.count(f"too many failed logins from {address}") == 1
    assert "streamsrv_bad" not in log


def test_wrong_keys_of_the_sign_in_are_failed_logins(site):
    address = {"X-Forwarded-For": next(ADDRESSES)}
    browser, key = Browser(site, PAGE | address), site.key("form", "search")
    statuses = [browser.sign_in(key=f"streamsrv_wrong{number}").status for number in range(LIMIT + 10)]
    assert statuses[:LIMIT] == [401] * LIMIT
    assert statuses[-1] == 429
    assert set(statuses) == {401, 429}
    assert browser.sign_in(key=key).status == 200


def test_the_log_has_the_client_of_a_refused_request(site):
    address = next(ADDRESSES)
    assert site.ask(X_Forwarded_For=address, **bearer("streamsrv_bad")).status == 401
    waited(lambda: f'{address} "GET /v2/studies" 401' in site.server.log.read_text(), "the line")

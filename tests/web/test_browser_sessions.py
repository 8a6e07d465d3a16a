"""Sessions and share links as time passes, with a clock of the test; cookies of each address."""

import hmac
import json
import os

import pytest
from access_world import files_of
from web_world import settings_of

from streamsrv.errors import Forbidden, TooManyRequests
from streamsrv.query.rules import rule_of
from streamsrv.web.access.browser import sessions
from streamsrv.web.access.browser.cookies import check_origin, cookie_for, is_embedded, needed_cookie
from streamsrv.web.access.browser.sessions import SESSION, SWEEP, Sessions
from streamsrv.web.access.browser.shares import (
    FIRST_WAIT,
    LONGEST_WAIT,
    SHARE,
    TRIES,
    Shares,
    share_url,
    waiting,
)
from streamsrv.web.access.grants import KEY, Grant, digest_of, grants_in, new_key
from streamsrv.web.access.principal import ALL_RIGHTS, Principal, Right
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

BASE = "https://pacs.example"
DAY = 86_400


@pytest.fixture
def settings(tmp_path):
    return settings_of(data=str(tmp_path), auth="required", failed_logins=3)


class Passing:
    def __init__(self, data):
        self.now = 1_900_000_000.0
        self.grants = grants_in(data)
        self.sessions = Sessions(self.grants, self.grants.find, DAY / 2, lambda: self.now)
        self.shares = Shares(self.grants, lambda: self.now)

    def key(self, until):
        key = new_key()
        with self.grants.changing() as change:
            change.write(Grant(KEY, "anna", digest_of(key), ALL_RIGHTS, None, self.now, until))
        return self.grants.find(KEY, digest_of(key))

    def principal(self, secret, method="GET", **headers):
        sent = {"cookie": f"__Host-streamsrv={secret}"} | headers
        head = Head(method, "/v2/studies", "HTTP/1.1", sent, "127.0.0.1")
        return self.sessions.principal(head, Caller(BASE, "127.0.0.1", "127.0.0.1"))

    def files(self, kind):
        return len(files_of(self.grants, kind))


@pytest.fixture
def time(tmp_path):
    return Passing(tmp_path)


def test_a_session_ends_by_itself_and_its_file_goes(time):
    key = time.key(time.now + 10 * DAY)
    secret = time.sessions.begin_from(key)
    assert time.principal(secret).name == "key:anna"
    assert time.principal(secret).until == time.now + DAY / 2
    time.now += DAY / 2
    assert time.principal(secret) is None
    assert time.files(SESSION) == 1
    time.sessions.begin_from(key)
    assert time.files(SESSION) == 1
    assert SWEEP < DAY / 2


def test_a_link_begins_a_number_of_sessions(time, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_BEGUN", 2)
    share, other = (time.shares.make("1.2", time.now + 30 * DAY, pin=False).grant for _ in range(2))
    for _ in range(2):
        time.sessions.begin_from(share)
    with pytest.raises(TooManyRequests):
        time.sessions.begin_from(share)
    time.sessions.begin_from(other)
    time.now += DAY / 2
    time.sessions.begin_from(share)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_cookies_with_one_name_neither_counts(time, order):
    """A program on another port of this machine can plant one."""
    secret, planted = (time.sessions.begin_from(time.key(time.now + DAY)) for _ in range(2))
    pairs = [f"__Host-streamsrv={each}" for each in (secret, planted)][::order]
    assert time.principal("", cookie=f"a=b; {pairs[0]}; c=d").name == "key:anna"
    assert time.principal("", cookie="; ".join(pairs)) is None


def test_a_session_ends_with_its_key(time):
    secret = time.sessions.begin_from(time.key(time.now + 100))
    assert time.principal(secret).until == time.now + 100
    time.now += 100
    assert time.principal(secret) is None


def test_a_wrong_pin_costs_more_and_more_time(time):
    made = time.shares.make("1.2", time.now + 30 * DAY, pin=True)
    wrong = f"{(int(made.pin) + 1) % 10**6:06}"
    for _ in range(TRIES - 1):
        assert not time.shares.check_pin(made.grant, wrong)
    assert time.shares.check_pin(made.grant, made.pin)  # a right one begins again
    time.shares = Shares(time.grants, lambda: time.now)  # as after a restart
    for _ in range(TRIES):
        assert not time.shares.check_pin(made.grant, wrong)
    wait = FIRST_WAIT
    for _ in range(2):
        with pytest.raises(TooManyRequests) as refusal:
            time.shares.check_pin(made.grant, made.pin)
        assert refusal.value.retry_after == wait
        time.now += wait
        assert not time.shares.check_pin(made.grant, wrong)
        wait *= 2
    assert waiting(TRIES + 20) == LONGEST_WAIT
    time.now += wait
    assert time.shares.check_pin(made.grant, made.pin)


def test_a_try_is_on_the_disk_before_its_pin_is_compared(time, monkeypatch):
    made, done = time.shares.make("1.2", time.now + DAY, pin=True).grant, []
    compare, sync = hmac.compare_digest, os.fsync

    def compared(*texts):
        (tries,) = time.grants.documents.all("share-", ".tries")
        done.append(json.loads(tries.text)["used"])
        return compare(*texts)

    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("synced"), sync(fd)))
    monkeypatch.setattr(hmac, "compare_digest", compared)
    for _ in range(2):
        time.shares.check_pin(made, "x")
    assert done == ["synced", "synced", 1, "synced", "synced", 2]


@pytest.mark.parametrize("rights", [Right.SEARCH | Right.SHARE, Right.SHARE, Right.READ])
def test_a_link_has_the_present_rights_of_its_key(time, rights):
    key = time.key(time.now + DAY)
    maker = Principal("key:anna", key.rights)
    made = time.shares.make("1.2", time.now + DAY, pin=False, by=maker, source=key).grant
    secret = time.sessions.begin_from(made)
    assert time.principal(secret).rights == Right.SEARCH | Right.READ
    with time.grants.changing() as change:
        change.write(key._replace(rights=rights, rule=rule_of(["PatientID=1"])))
    found = time.principal(secret)
    if Right.SHARE in rights:
        assert found.rights == rights & ~Right.SHARE
        assert found.rule == rule_of(["PatientID=1"], ["1.2"])
    else:
        assert found is None


def test_a_pin_has_all_digits_and_is_not_kept(time):
    made = [time.shares.make("1.2", time.now + DAY, pin=True) for _ in range(3)]
    for each in made:
        assert len(each.pin) == 6
        assert each.pin.isdigit()
        assert each.pin not in str(each.grant.extra["pin"])
    assert len({each.grant.extra["pin"]["salt"] for each in made}) == 3
    assert share_url("https://pacs.example/dicom", "x") == "https://pacs.example/dicom/#/share/x"


def test_links_that_have_ended_go_with_their_tries(time):
    made = time.shares.make("1.2", time.now + DAY, pin=True)
    time.shares.check_pin(made.grant, "")
    assert len(list(time.grants.documents.folder.iterdir())) == 2
    time.now += DAY
    assert time.shares.all() == []
    time.shares.make("1.2", time.now + DAY, pin=False)
    assert time.files(SHARE) == len(list(time.grants.documents.folder.iterdir())) == 1


def test_links_need_their_keys_and_one_look_for_all(time, monkeypatch):
    keys = [time.key(time.now + days * DAY) for days in (1, 9, 9, 9)]
    made = [time.shares.make("1.2", time.now + 9 * DAY, pin=False, source=key).grant for key in keys * 2]
    time.shares.make("1.3", time.now + 9 * DAY, pin=False)
    with time.grants.changing() as change:
        change.remove(keys[1])
    time.grants.documents.path_of(keys[2].file).write_text("damaged")
    time.now += DAY
    looked, names = [], time.grants.documents.names
    monkeypatch.setattr(time.grants, "find", lambda *_: looked.append("one"))
    monkeypatch.setattr(time.grants.documents, "names", lambda *of: looked.append("all") or names(*of))
    left = {made[number].digest for number in (2, 3, 6, 7)}
    assert {each.digest for each in time.shares.all("1.2")} == left
    assert time.files(SHARE) == 9
    new = time.shares.make("1.2", time.now + DAY, pin=False).grant
    assert {each.digest for each in time.shares.all("1.2")} == left | {new.digest}
    assert time.files(SHARE) == 6
    assert "one" not in looked
    assert len(looked) <= 11


@pytest.mark.parametrize(
    ("base", "name", "path", "secure"),
    [
        ("https://pacs.example", "__Host-streamsrv", "/", True),
        ("https://pacs.example:8443", "__Host-streamsrv-8443", "/", True),
        ("https://pacs.example/dicom", "__Secure-streamsrv", "/dicom/", True),
        ("http://127.0.0.1:8943", "streamsrv-8943", "/", False),
        ("http://localhost", "streamsrv", "/", False),
        ("http://[::1]:1", "streamsrv-1", "/", False),
    ],
)
def test_cookies_by_address(base, name, path, secure):
    cookie = cookie_for(base)
    assert cookie == (name, path, secure)
    text = cookie.set("x")[1]
    assert ("Secure" in text) is secure
    assert text.startswith(f"{name}=x; Path={path}; HttpOnly; SameSite=Strict")
    assert "Max-Age=0" in cookie.clear()[1]


@pytest.mark.parametrize("base", ["http://pacs.example", "http://10.0.0.1", "http://localhost.evil.example"])
def test_no_cookie_goes_over_a_network_without_tls(base):
    assert cookie_for(base) is None
    with pytest.raises(Forbidden):
        needed_cookie(base)


@pytest.mark.parametrize(
    ("base", "origin"),
    [
        ("https://pacs.example/dicom", "https://pacs.example"),
        ("https://pacs.example:443", "https://pacs.example"),
        ("http://LOCALHOST:80", "http://localhost"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_the_origin_of_a_server(base, origin):
    check_origin({"origin": origin}, base)
    for other in (f"{origin}:81", f"{origin}.evil.example", "null", origin.replace("http", "ftp"), ""):
        with pytest.raises(Forbidden):
            check_origin({"origin": other}, base)
    with pytest.raises(Forbidden):
        check_origin({"origin": origin, "sec-fetch-site": "cross-site"}, base)


def test_embedded_requests():
    assert is_embedded({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"})
    assert not is_embedded({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"})
    assert not is_embedded({})


async def test_a_flood_of_wrong_keys_is_429(http_server_client, port):
    headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{port}"}

    async def status(body):
        answer = await http_server_client.fetch(
            "/session", method="POST", headers=headers, body=body, raise_error=False
        )
        return answer.code

    statuses = [await status('{"key": "streamsrv_x"}') for _ in range(6)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert await status("{}") == 400

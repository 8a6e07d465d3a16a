"""Sessions of browsers and share links over HTTP, against a server with two workers."""

import json
import os
import threading
import time

import clinic as world
import pytest
from access_world import Site, command
from browser_client import PAGE, Browser
from clinic import CT_STUDY, OTHER_STUDY
from live_server import start_server

WITHIN = 1.0  # seconds in which every worker notices a change


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("sessions"), "--auth", "required", workers=2)
    site = Site(server)
    site.everything = site.key("everything", "search,read,store,delete,share,admin")
    files = map(world.file_of, (world.ct(1), world.palette()))
    world.store(f"{server.url}/studies", files, Authorization=f"Bearer {site.everything}")
    yield site
    site.close()
    assert server.end() == 0


@pytest.fixture(autouse=True)
def closed(site):
    yield
    site.close()


@pytest.fixture
def browser(site):
    return Browser(site)


def shared(browser, study=CT_STUDY, **fields):
    answer = browser.ask("POST", f"/v2/studies/{study}/shares", fields)
    assert answer.status == 201, answer.body
    return json.loads(answer.body)


def secret_of(share):
    return share["url"].rpartition("/")[2]


# --- sessions ---


def test_a_key_becomes_a_session(site, browser):
    assert browser.ask().status == 401
    facts = browser.facts()
    assert (facts["user"], facts["signIn"]["needed"], any(facts["allowed"].values())) == (None, True, False)
    answer = browser.sign_in(key=site.key("anna", "search,read"))
    assert (answer.status, json.loads(answer.body)["user"]) == (200, "anna")
    assert answer.getheader("Cache-Control") == "no-store"
    assert browser.last.partition("=")[0] == f"streamsrv-{site.port}"
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(browser.last.split("; "))
    assert [browser.ask().status for _ in range(6)] == [200] * 6
    facts = browser.facts()
    assert (facts["user"], facts["session"], facts["kind"]) == ("anna", True, "key")
    assert [right for right, has in facts["allowed"].items() if has] == ["search", "read"]
    assert browser.ask("DELETE", f"/v2/studies/{CT_STUDY}").status == 403
    secret = browser.cookie.partition("=")[2]
    files = list((site.server.data / "access").iterdir())
    assert files
    assert not [path for path in files if secret in path.name or secret in path.read_text()]


def test_sign_out_ends_the_session_on_every_worker(site, browser):
    browser.sign_in(key=site.everything)
    kept = browser.cookie
    assert [browser.ask().status for _ in range(6)] == [200] * 6
    assert browser.ask("DELETE", "/session").status == 200
    assert browser.cookie == ""
    time.sleep(WITHIN)
    browser.cookie = kept
    assert {browser.ask().status for _ in range(6)} == {401}


def test_a_revoked_key_ends_its_sessions(site, browser):
    browser.sign_in(key=site.key("short", "search"))
    assert [browser.ask().status for _ in range(6)] == [200] * 6
    site.revoke("short")
    time.sleep(WITHIN)
    assert {browser.ask().status for _ in range(6)} == {401}
    assert browser.facts()["user"] is None


def test_each_sign_in_has_a_new_secret(site, browser):
    """A cookie that a client brings never becomes a session (fixation), and the former session ends."""
    planted = f"streamsrv-{site.port}=planted"
    browser.cookie = planted
    browser.sign_in(key=site.everything)
    first = browser.cookie
    assert first != planted
    browser.sign_in(key=site.everything)
    second = browser.cookie
    assert len({planted, first, second}) == 3
    time.sleep(WITHIN)
    for cookie, status in ((planted, 401), (first, 401), (second, 200), (f"{first}; {second}", 401)):
        assert browser.ask(Cookie=cookie).status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this host
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "ORIGIN"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {},
    ],
)
def test_another_origin_changes_nothing(site, browser, headers):
    """Neither with the session (CSRF), nor may it sign a user in or out (login CSRF)."""
    browser.sign_in(key=site.everything)
    study = f"/v2/studies/{world.SLIDE_STUDY}"
    browser.headers = {name: value.replace("ORIGIN", site.server.origin) for name, value in headers.items()}
    for method, path, body in (
        ("DELETE", study, None),
        ("POST", "/v2/studies", b""),
        ("POST", f"/v2/studies/{CT_STUDY}/shares", {}),
        ("POST", "/session", {"key": site.everything}),
        ("DELETE", "/session", None),
    ):
        answer = browser.ask(method, path, body)
        assert (answer.status, answer.getheader("Set-Cookie")) == (403, None), (method, path)
    browser.headers = PAGE
    assert browser.ask().status == 200
    assert browser.ask("DELETE", study).status == 404


def test_origin_counts_for_browsers_without_fetch_metadata(site, browser):
    browser.headers = {"Origin": site.server.origin}
    assert browser.sign_in(key=site.everything).status == 200
    assert browser.ask("DELETE", f"/v2/studies/{world.SLIDE_STUDY}").status == 404


@pytest.mark.parametrize(("site_of", "mode", "status"), [
    ("cross-site", "no-cors", 401),
    ("same-site", "no-cors", 401),
    ("same-site", "cors", 401),
    ("same-site", "navigate", 200),
    ("none", "navigate", 200),
    ("same-origin", "no-cors", 200),
])  # fmt: skip
def test_an_embedded_request_of_another_origin_has_no_session(site, browser, site_of, mode, status):
    browser.sign_in(key=site.everything)
    browser.headers = {"Sec-Fetch-Site": site_of, "Sec-Fetch-Mode": mode}
    assert browser.ask().status == status


def test_a_wrong_key_is_refused_without_a_dialog_of_the_browser(site, browser):
    share = secret_of(shared(Browser(site, {"Authorization": f"Bearer {site.everything}"})))
    for proof in (
        {"key": "streamsrv_x"},
        {"key": share},
        {"share": site.everything},
        {"key": f"{site.everything} "},
    ):
        answer = browser.sign_in(**proof)
        assert (answer.status, browser.cookie) == (401, "")
        assert answer.getheader("WWW-Authenticate") == 'Bearer realm="streamsrv"'
    for body in (b"", b"{", b"[]", b'{"key": 1}', {}, {"key": "a", "share": "b"}, b"[" * 10_000):
        assert browser.ask("POST", "/session", body).status == 400
    assert browser.ask("POST", "/session", b"x" * 20_000).status == 413
    assert (
        browser.ask("POST", "/session", b"key=a", Content_Type="application/x-www-form-urlencoded").status
        == 415
    )
    log = site.server.log.read_text()
    assert site.everything not in log
    assert share not in log


def test_authorization_counts_before_the_cookie(site, browser):
    browser.sign_in(key=site.everything)
    assert browser.ask(Authorization="Bearer streamsrv_x").status == 401
    reader = site.key("before", "search")
    assert browser.ask("DELETE", f"/v2/studies/{CT_STUDY}", Authorization=f"Bearer {reader}").status == 403


def test_a_browser_over_plain_http_from_elsewhere_cannot_sign_in(tmp_path):
    server = start_server(
        tmp_path,
        "--auth",
        "required",
        "--allowed-hosts",
        "pacs.example",
        "--trusted-proxies",
        "127.0.0.1",
        workers=1,
    )
    try:
        key = Site(server).key("a", "search")
        for scheme, status, name in (("http", 403, None), ("https", 200, "__Host-streamsrv")):
            browser = Browser(Site(server), PAGE | {"X-Forwarded-Proto": scheme, "Host": "pacs.example"})
            facts = browser.facts()["signIn"]
            assert facts["possible"] is (status == 200)
            answer = browser.sign_in(key=key)
            assert answer.status == status
            if name:
                assert browser.last.startswith(f"{name}=")
                assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(browser.last.split("; "))
                assert browser.ask().status == 204
                browser.headers |= {"X-Forwarded-Proto": "http"}
                assert browser.ask().status == 401
    finally:
        server.end()


# --- share links ---


def test_a_share_link_shows_its_study(site, browser):
    maker = Browser(site)
    maker.sign_in(key=site.everything)
    share = shared(maker, expires="1d")
    assert share["url"].startswith(f"{site.server.origin}/#/share/")
    assert share["pin"] is False
    answer = browser.sign_in(share=secret_of(share))
    assert json.loads(answer.body)["study"] == CT_STUDY
    assert browser.ask(path=f"/v2/studies/{CT_STUDY}/metadata").status == 200
    assert browser.ask(path=f"/v2/studies/{OTHER_STUDY}/metadata").status == 404
    assert browser.ask().getheader("X-Total-Count") == "1"
    facts = browser.facts()
    assert (facts["kind"], [right for right, has in facts["allowed"].items() if has]) == (
        "share",
        ["search", "read"],
    )
    for method, path in (("DELETE", ""), ("GET", "/shares"), ("POST", "/shares")):
        assert (
            browser.ask(method, f"/v2/studies/{CT_STUDY}{path}", {} if method == "POST" else None).status
            == 403
        )
    assert maker.ask("DELETE", f"/v2/studies/{CT_STUDY}/shares/{share['id']}").status == 204
    time.sleep(WITHIN)
    assert {browser.ask(path=f"/v2/studies/{CT_STUDY}/metadata").status for _ in range(6)} == {401}
    assert browser.sign_in(share=secret_of(share)).status == 401
    assert maker.ask("DELETE", f"/v2/studies/{CT_STUDY}/shares/{share['id']}").status == 404


def test_a_share_link_ends_with_its_key(site, browser):
    key = site.key("leaver", "search,read,share")
    share = shared(Browser(site, {"Authorization": f"Bearer {key}"}))
    assert browser.sign_in(share=secret_of(share)).status == 200
    site.revoke("leaver")
    time.sleep(WITHIN)
    assert {browser.ask().status for _ in range(4)} == {401}
    assert browser.sign_in(share=secret_of(share)).status == 401


def test_a_share_link_shows_no_more_than_its_maker_sees(site, browser):
    key = site.key("narrow", "search,share", "--study", OTHER_STUDY)
    maker = Browser(site, {"Authorization": f"Bearer {key}"})
    assert maker.ask("POST", f"/v2/studies/{CT_STUDY}/shares", {}).status == 404
    assert maker.ask("POST", "/v2/studies/1.2.3/shares", {}).status == 404
    share = shared(maker, OTHER_STUDY)
    assert browser.sign_in(share=secret_of(share)).status == 200
    assert [status_of(browser, path) for path in ("", "/metadata")] == [200, 403]
    command("key", "change", "narrow", "--data", str(site.server.data), "--rights", "search,read,share")
    assert eventually(lambda: status_of(browser, "/metadata") == 200)
    command("key", "change", "narrow", "--data", str(site.server.data), "--study", CT_STUDY)
    assert eventually(lambda: status_of(browser, "/metadata") == 404)
    command("share", "--revoke", share["id"], "--data", str(site.server.data))


def status_of(browser, below):
    """Of a search or a retrieve of the study that is shared."""
    path = f"/v2/studies/{OTHER_STUDY}{below}" if below else f"/v2/studies?StudyInstanceUID={OTHER_STUDY}"
    return browser.ask(path=path).status


def eventually(holds):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if all(holds() for _ in range(4)):  # on both workers
            return True
    return False


def test_users_see_and_end_their_own_links(site):
    admin, one, two = (
        Browser(site, {"Authorization": f"Bearer {key}"})
        for key in (site.everything, *(site.key(name, "share") for name in ("one", "two")))
    )
    share = shared(one, OTHER_STUDY)
    path = f"/v2/studies/{OTHER_STUDY}/shares"
    assert [each["id"] for each in json.loads(one.ask(path=path).body)] == [share["id"]]
    assert json.loads(two.ask(path=path).body) == []
    assert two.ask("DELETE", f"{path}/{share['id']}").status == 404
    assert [each["by"] for each in json.loads(admin.ask(path=path).body)] == ["key:one"]
    assert admin.ask("DELETE", f"{path}/{share['id']}").status == 204


@pytest.mark.parametrize(
    "fields", [{"expires": "31d"}, {"expires": "0d"}, {"expires": "x"}, {"expires": 1}, {"pin": "1"}]
)
def test_wrong_members_of_a_share_are_400(site, fields):
    maker = Browser(site, {"Authorization": f"Bearer {site.everything}"})
    answer = maker.ask("POST", f"/v2/studies/{CT_STUDY}/shares", fields)
    assert answer.status == 400
    assert next(iter(fields)) in json.loads(answer.body)["detail"]


def test_a_pin_has_five_tries_over_all_workers_and_restarts(tmp_path):
    server = start_server(tmp_path, "--auth", "required", workers=2)
    data = str(server.data)
    try:
        links = [
            json.loads(command("share", CT_STUDY, "--data", data, "--pin", "--json").stdout) for _ in range(2)
        ]
        (share, pin), (other, other_pin) = ((secret_of(each), each["pin"]) for each in links)
        site = Site(server)
        wrong = f"{(int(pin) + 1) % 10**6:06}"
        assert len(pin) == 6
        missing = Browser(site).sign_in(share=share)
        assert (missing.status, json.loads(missing.body)["needs"]) == (401, "pin")
        before = Browser(site)
        assert before.sign_in(share=share, pin=pin).status == 200
        found = []
        threads = [
            threading.Thread(
                target=lambda: found.append(Browser(Site(server)).sign_in(share=share, pin=wrong))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(each.status for each in found) == [401] * 5 + [429] * 3
        assert 0 < int(next(each for each in found if each.status == 429).getheader("Retry-After")) <= 900
        assert Browser(site).sign_in(share=share, pin=pin).status == 429
        assert before.facts()["user"]  # a browser that has opened the link goes on
        assert Browser(site).sign_in(share=other, pin=other_pin).status == 200  # and so does another link
        assert server.end() == 0
        server = start_server(tmp_path, "--auth", "required", workers=1)
        site = Site(server)
        assert Browser(site).sign_in(share=share, pin=pin).status == 429
        (tries,) = [path for path in (server.data / "access").glob("*.tries") if path.stat().st_size]
        assert tries.stat().st_mode & 0o777 == 0o600
        os.utime(tries, (time.time() - 901,) * 2)  # as if the time had passed
        assert Browser(site).sign_in(share=share, pin=pin).status == 200
        assert pin not in "".join(path.read_text() for path in (server.data / "access").glob("share-*.json"))
    finally:
        server.end()


def test_the_verb_makes_lists_and_ends_links(site, browser):
    data = str(site.server.data)
    done = command(
        "share", CT_STUDY, "--data", data, "--expires", "1d", "--url", "https://pacs.example/dicom/"
    )
    assert done.stdout.startswith("https://pacs.example/dicom/#/share/")
    assert done.stdout.count("\n") == 1
    assert browser.sign_in(share=done.stdout.strip().rpartition("/")[2]).status == 200
    found = json.loads(command("share", "--list", CT_STUDY, "--data", data, "--json").stdout)
    (share,) = [each for each in found if not each["by"]]
    assert share["id"] in command("share", "--list", "--data", data).stdout
    command("share", "--revoke", share["id"], "--data", data)
    time.sleep(WITHIN)
    assert browser.ask().status == 401
    assert "no share" in command("share", "--revoke", share["id"], "--data", data, code=1).stderr
    assert "UID" in command("share", "1.2.x", "--data", data, code=2).stderr
    assert "--list" in command("share", "--data", data, code=2).stderr
    assert "PIN: " in command("share", OTHER_STUDY, "--data", data, "--pin").stderr

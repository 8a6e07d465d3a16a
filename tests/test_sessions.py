"""Sessions of browsers and share links over HTTP, against a server with two workers."""

import json
import math
import os
import threading
import time
from unittest.mock import patch

import clinic as world
import pytest
import store_kinds
from access_world import Site, grants_for
from browser_client import PAGE, Browser
from clinic import CT_STUDY, OTHER_STUDY
from live_server import start_server
from waiting import waited

from streamsrv import cli
from streamsrv.query.rules import rule_of
from streamsrv.web.access.browser.shares import Shares
from streamsrv.web.access.grants import KEY, Grant, digest_of, new_key
from streamsrv.web.access.principal import ALL_RIGHTS, Principal, rights_from


class Granting(Site):
    """Writes the files of keys, as the verb does."""

    def __init__(self, server):
        super().__init__(server)
        self.grants = grants_for(server.data)

    def key(self, name, rights, study=None, key=None):
        """Makes a key, or changes the one that is given."""
        key, rule = key or new_key(), rule_of((), (study,)) if study else None
        with self.grants.changing() as change:
            row = (KEY, name, digest_of(key), rights_from(rights.split(",")), rule, time.time(), math.inf)
            change.write(Grant(*row))
        return key

    def revoke(self, name):
        with self.grants.changing() as change:
            change.remove(self.grants.named(KEY, name))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    flags = ("--auth", "required", "--allowed-hosts", "pacs.example", "--trusted-proxies", "127.0.0.1")
    server = start_server(tmp_path_factory.mktemp("sessions"), *flags, workers=2)
    site = Granting(server)
    site.everything = site.key("everything", "search,read,store,delete,share,admin")
    files = map(world.file_of, (world.ct(1), world.palette()))
    world.store(f"{server.url}/studies", files, Authorization=f"Bearer {site.everything}")
    yield site
    site.close()
    assert server.end() == 0


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


@pytest.mark.embedded("sessions of a cluster are in its database")
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
    assert eventually(lambda: browser.ask(Cookie=kept).status == 401)


def test_a_revoked_key_ends_its_sessions(site, browser):
    browser.sign_in(key=site.key("short", "search"))
    assert [browser.ask().status for _ in range(6)] == [200] * 6
    site.revoke("short")
    kept = browser.cookie
    assert eventually(lambda: browser.ask(Cookie=kept).status == 401)
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
    assert eventually(lambda: browser.ask(Cookie=first).status == 401)
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


@pytest.mark.parametrize(("scheme", "status"), [("http", 403), ("https", 200)])
def test_a_browser_of_another_machine_signs_in_over_tls_only(site, scheme, status):
    browser = Browser(site, PAGE | {"X-Forwarded-Proto": scheme, "Host": "pacs.example"})
    assert browser.facts()["signIn"]["possible"] is (status == 200)
    assert browser.sign_in(key=site.everything).status == status
    if status == 200:
        assert browser.last.startswith("__Host-streamsrv=")
        assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(browser.last.split("; "))
        assert browser.ask().status == 200
        tls = dict(browser.headers)
        browser.headers |= {"X-Forwarded-Proto": "http"}
        assert browser.ask().status == 401
        browser.headers = tls
        answer = browser.ask("DELETE", "/session")
        assert answer.getheader("Clear-Site-Data") == '"cache"'
        assert browser.cookie == ""


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
    path, kept = f"/v2/studies/{CT_STUDY}/metadata", browser.cookie
    assert eventually(lambda: browser.ask(path=path, Cookie=kept).status == 401)
    assert browser.sign_in(share=secret_of(share)).status == 401
    assert maker.ask("DELETE", f"/v2/studies/{CT_STUDY}/shares/{share['id']}").status == 404


def test_a_share_link_ends_with_its_key(site, browser):
    key = site.key("leaver", "search,read,share")
    share = shared(Browser(site, {"Authorization": f"Bearer {key}"}))
    assert browser.sign_in(share=secret_of(share)).status == 200
    site.revoke("leaver")
    kept = browser.cookie
    assert eventually(lambda: browser.ask(Cookie=kept).status == 401)
    assert browser.sign_in(share=secret_of(share)).status == 401


def test_a_share_link_shows_no_more_than_its_maker_sees(site, browser):
    key = site.key("narrow", "search,share", OTHER_STUDY)
    maker = Browser(site, {"Authorization": f"Bearer {key}"})
    assert maker.ask("POST", f"/v2/studies/{CT_STUDY}/shares", {}).status == 404
    assert maker.ask("POST", "/v2/studies/1.2.3/shares", {}).status == 404
    share = shared(maker, OTHER_STUDY)
    assert browser.sign_in(share=secret_of(share)).status == 200
    assert [status_of(browser, path) for path in ("", "/metadata")] == [200, 403]
    site.key("narrow", "search,read,share", OTHER_STUDY, key)
    assert eventually(lambda: status_of(browser, "/metadata") == 200)
    site.key("narrow", "search,read,share", CT_STUDY, key)
    assert eventually(lambda: status_of(browser, "/metadata") == 404)
    site.revoke("narrow")


def status_of(browser, below):
    """Of a search or a retrieve of the study that is shared."""
    path = f"/v2/studies/{OTHER_STUDY}{below}" if below else f"/v2/studies?StudyInstanceUID={OTHER_STUDY}"
    return browser.ask(path=path).status


def eventually(holds):
    """Each worker notices a change within a second; a loaded machine takes longer."""
    return waited(lambda: all(holds() for _ in range(20)))  # both workers answer some of them


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


def test_a_rule_hides_the_links_of_other_studies(site):
    """Also from one that manages the links of others."""
    everything = Browser(site, {"Authorization": f"Bearer {site.everything}"})
    within = Browser(site, {"Authorization": f"Bearer {site.key('within', 'share,admin', OTHER_STUDY)}"})
    for study, count in ((CT_STUDY, 0), (OTHER_STUDY, 1)):
        made, path = shared(everything, study), f"/v2/studies/{study}/shares"
        assert sum(each["id"] == made["id"] for each in json.loads(within.ask(path=path).body)) == count
        assert within.ask("DELETE", f"{path}/{made['id']}").status == (204 if count else 404)


@pytest.mark.parametrize("member", ["key", "share"])
def test_a_text_that_is_no_unicode_is_400(browser, member):
    answer = browser.ask("POST", "/session", b'{"%b": "\\ud800"}' % member.encode())
    assert answer.status == 400
    assert member in json.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    "fields", [{"expires": "31d"}, {"expires": "0d"}, {"expires": "x"}, {"expires": 1}, {"pin": "1"}]
)
def test_wrong_members_of_a_share_are_400(site, fields):
    maker = Browser(site, {"Authorization": f"Bearer {site.everything}"})
    answer = maker.ask("POST", f"/v2/studies/{CT_STUDY}/shares", fields)
    assert answer.status == 400
    assert next(iter(fields)) in json.loads(answer.body)["detail"]


@pytest.mark.embedded("it changes the file of a link")
def test_a_pin_has_five_tries_over_all_workers(site):
    shares = Shares(site.grants)
    made, other = (shares.make(CT_STUDY, time.time() + 100, pin=True) for _ in range(2))
    wrong = f"{(int(made.pin) + 1) % 10**6:06}"
    missing = Browser(site).sign_in(share=made.secret)
    assert (missing.status, json.loads(missing.body)["needs"]) == (401, "pin")
    before = Browser(site)
    assert before.sign_in(share=made.secret, pin=made.pin).status == 200
    found = []

    def guess():
        found.append(Browser(site).sign_in(share=made.secret, pin=wrong))

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.status for each in found) == [401] * 5 + [429] * 3
    assert 0 < int(next(each for each in found if each.status == 429).getheader("Retry-After")) <= 900
    assert Browser(site).sign_in(share=made.secret, pin=made.pin).status == 429
    assert before.facts()["user"]  # a browser that has opened the link goes on
    assert Browser(site).sign_in(share=other.secret, pin=other.pin).status == 200  # and so does another link
    (tries,) = site.grants.documents.folder.glob("*.tries")
    assert tries.stat().st_mode & 0o777 == 0o600
    known = json.loads(tries.read_bytes())
    tries.write_text(json.dumps(known | {"last": known["last"] - 901}))  # as if the time had passed
    assert Browser(site).sign_in(share=made.secret, pin=made.pin).status == 200
    for share in (made, other):
        shares.revoke(share.grant)


def sharing(site, *words):
    """The exit code of the verb."""
    words = ["share", *words, "--data", str(site.server.data)]
    with patch.dict(os.environ, store_kinds.variables_for(words)):
        return cli.main(words)


def test_the_verb_makes_lists_and_ends_links(site, browser, capsys):
    def run(*words, code=0):
        assert sharing(site, *words) == code
        return capsys.readouterr()

    made = run(CT_STUDY, "--expires", "1d", "--url", "https://pacs.example/dicom/").out
    assert made.startswith("https://pacs.example/dicom/#/share/")
    assert made.count("\n") == 1
    assert browser.sign_in(share=made.strip().rpartition("/")[2]).status == 200
    (share,) = [each for each in json.loads(run("--list", CT_STUDY, "--json").out) if not each["by"]]
    assert share["id"] in run("--list").out
    run("--revoke", share["id"])
    kept = browser.cookie
    assert eventually(lambda: browser.ask(Cookie=kept).status == 401)
    assert "no share" in run("--revoke", share["id"], code=1).err
    assert "UID" in run("1.2.x", code=2).err
    assert "--list" in run(code=2).err
    assert "PIN: " in run(OTHER_STUDY, "--pin").err


def test_the_links_of_a_user_who_has_left(site, capsys):
    """Another maker keeps its link to the same study."""
    anna, ben = (Principal(f"oidc:{name}@login.example", ALL_RIGHTS) for name in ("anna", "ben"))
    shares = Shares(site.grants)
    made = [shares.make(study, time.time() + 100, pin=False, by=anna) for study in (CT_STUDY, OTHER_STUDY)]
    kept = shares.make(CT_STUDY, time.time() + 100, pin=False, by=ben)
    visitor = Browser(site)
    assert visitor.sign_in(share=made[1].secret).status == 200

    def verb(*words):
        capsys.readouterr()
        code = sharing(site, *words)
        return code, capsys.readouterr().out

    listed = json.loads(verb("--list", "--by", anna.name, "--json")[1])
    assert [each["id"] for each in listed] == [each.grant.name for each in made]
    assert verb("--revoke-all", "--by", anna.name, CT_STUDY) == (0, "1 links ended\n")
    assert verb("--revoke-all", "--by", anna.name, "--json") == (0, '{"ended": 1}\n')
    assert verb("--list", "--by", anna.name) == (0, "")
    assert eventually(lambda: visitor.ask().status == 401)
    assert Browser(site).sign_in(share=kept.secret).status == 200
    assert [verb(*words)[0] for words in (("--revoke-all",), ("--by", anna.name))] == [2, 2]
    assert verb("--revoke-all", "--by", ben.name) == (0, "1 links ended\n")

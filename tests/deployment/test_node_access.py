"""Keys, sessions and share links of nodes that serve one store: what one of them gives or takes, all do."""

import contextlib
import json
import os
import time
from unittest import mock

import pytest
from access_world import bearer, within
from browser_client import Browser
from clinic import CT_STUDY
from fake_issuer import AUDIENCE, fake_issuer
from live_server import start_server
from seaweed import BUCKET, variables
from test_issuer_sign_in import CLIENT, SECRET, begin, come_back, issue
from test_oidc import ROLES, OidcSite
from waiting import waited

from streamsrv.store.postgresql.documents import DatabaseDocuments
from streamsrv.web.access.browser.shares import TRIES
from streamsrv.web.access.grants import FOLDER, Grants

SCHEMA = "node_access"


@pytest.fixture(scope="module")
def settings(database_server, object_store):
    """The settings of a node in the environment, as a verb on any machine has them."""
    index, segments = database_server.url(SCHEMA), f"s3://{BUCKET}/{SCHEMA}"
    named = {"STREAMSRV_INDEX": index, "STREAMSRV_SEGMENTS": segments}
    return named | variables(object_store.endpoint)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """Runs a verb on a machine that is no node."""
    folder = tmp_path_factory.mktemp("machine") / "verbs"

    def run(*words, code=0):
        with mock.patch.dict(os.environ, settings):
            return within(*words, "--data", folder, code=code)

    return run


@pytest.fixture(scope="module")
def sites(tmp_path_factory, settings, run):
    """Two nodes behind one name. Their first key was there before them."""
    first = run("key", "add", "first", "--rights", "search,read,store,share,admin")[:-1]
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "secret").write_text(f"{SECRET}\n")
    with fake_issuer() as issuer:
        flags = ["--auth", "required", "--public-url", "https://pacs.example", "--failed-logins", "0"]
        flags += ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--oidc-roles", ",".join(ROLES)]
        flags += ["--oidc-client-id", CLIENT, "--oidc-client-secret-file", str(folder / "secret")]
        named = settings | {"LOOP_GUARD": str(folder)}
        servers = [start_server(folder / name, *flags, workers=1, variables=named) for name in "ab"]
        sites = [OidcSite(server, issuer) for server in servers]
        for site in sites:
            site.first = first
        yield sites
        assert [server.end() for server in servers] == [0, 0]
        assert len(list(folder.glob("armed-*"))) == 2
        assert [each.read_text() for each in folder.glob("waited-*")] == []


def renewals(issuer):
    return len([form for form, _ in issuer.forms if form["grant_type"] == "refresh_token"])


def status(site, key, **more):
    return site.ask(method="GET", **bearer(key), **more).status


def test_a_key_counts_on_all_nodes_until_it_is_revoked(sites, run):
    assert [status(site, site.first) for site in sites] == [204, 204]
    key = run("key", "add", "anna", "--rights", "search")[:-1]
    assert [status(site, key) for site in sites] == [204, 204]
    assert {each["name"] for each in json.loads(run("key", "list", "--json"))} >= {"first", "anna"}
    run("key", "change", "anna", "--rights", "store")
    for site in sites:
        waited(lambda site=site: status(site, key) == 403)
    with contextlib.closing(sites[1].connect()) as connection:  # one that is in use
        assert status(sites[1], key, connection=connection) == 403
        run("key", "revoke", "anna")
        waited(lambda: status(sites[1], key, connection=connection) == 401)
    waited(lambda: status(sites[0], key) == 401)
    assert not [each for site in sites for each in (site.server.data / "access").glob("key-*")]


def test_keys_of_a_folder_come_to_the_nodes(sites, run, tmp_path):
    """As after a move of its store."""
    key = within("key", "add", "moved", "--rights", "search", "--data", tmp_path)[:-1]
    assert [status(site, key) for site in sites] == [401, 401]
    run("key", "copy", tmp_path)
    for site in sites:
        waited(lambda site=site: status(site, key) == 204)


def test_a_session_counts_on_all_nodes_until_it_ends(sites):
    one, two = sites
    browser = Browser(one)
    assert browser.sign_in(key=one.first).status == 200
    browser.site = two
    assert browser.ask().status == 204  # at once
    facts = browser.facts()
    assert (facts["user"], facts["session"]) == ("first", True)
    kept = browser.cookie
    browser.site = one
    assert browser.ask().status == 204
    browser.site = two
    assert browser.ask("DELETE", "/session").status == 200
    for site in sites:
        other = Browser(site)
        waited(lambda other=other: other.ask(Cookie=kept).status == 401)


def test_a_sign_in_at_the_issuer_changes_the_node_on_its_way(sites):
    """Also the renewal of its session takes place where the request is."""
    one, two = sites
    begin(Browser(two))  # which waits until this node knows the issuer
    browser = Browser(one)
    asked = begin(browser, "#/studies/1.2")
    issue(one, asked, seconds=-2)  # its rights end in 28 seconds: less than EARLY
    browser.site = two
    there = come_back(browser, state=asked["state"], code="c-1")
    assert there == "https://pacs.example/#/studies/1.2"
    later = {"access_token": one.issuer.token(sub="anna", roles=["reader"], exp=int(time.time()) + 600)}
    one.issuer.tokens["refresh_token"] = later | {"expires_in": 600, "refresh_token": "r-2"}
    browser.site = one
    assert browser.ask().status == 204
    waited(lambda: renewals(one.issuer) == 1)
    browser.site = two
    assert [browser.ask().status for _ in range(3)] == [204] * 3
    assert renewals(one.issuer) == 1


def test_a_share_link_and_the_tries_of_its_pin_count_on_all_nodes(sites, run):
    one, two = sites
    maker = Browser(one, {"Authorization": f"Bearer {one.first}"})
    path = f"/v2/studies/{CT_STUDY}/shares"
    made = json.loads(run("share", CT_STUDY, "--pin", "--json"))
    secret, wrong = made["url"].rpartition("/")[2], f"{(int(made['pin']) + 1) % 10**6:06}"
    visitor = Browser(one)
    assert visitor.sign_in(share=secret, pin=made["pin"]).status == 200
    statuses = [Browser(sites[number % 2]).sign_in(share=secret, pin=wrong).status for number in range(6)]
    assert statuses == [401] * TRIES + [429]
    assert Browser(two).sign_in(share=secret, pin=made["pin"]).status == 429
    visitor.site = two
    assert visitor.ask().status == 204
    run("share", "--revoke", made["id"])
    for site in sites:
        visitor.site = site
        waited(lambda: visitor.ask().status == 401)
    assert maker.ask(path=path).status in (200, 404)


def test_ended_sessions_and_their_marks_go(sites, settings):
    with contextlib.closing(DatabaseDocuments(settings["STREAMSRV_INDEX"], FOLDER)) as documents:
        grants = Grants(documents)
        before = len(grants.names("session"))
        browser = Browser(sites[0])
        assert browser.sign_in(key=sites[0].first).status == 200
        assert len(grants.names("session")) == before + 1
        assert browser.ask("DELETE", "/session").status == 200
        assert len(grants.names("session")) == before

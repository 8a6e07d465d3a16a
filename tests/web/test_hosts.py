"""Names, proxies and addresses."""

import socket

import pytest
from web_world import settings_of

from streamsrv.errors import BadRequest, Forbidden
from streamsrv.web.hosts import Hosts, is_loopback, party

REMOTE = {"host": "0.0.0.0"}
PROXY = {"trusted_proxies": ("10.0.0.0/8", "::1"), "allowed_hosts": ("pacs.example",)}


def origin(name, peer="127.0.0.1", headers=(), port=0, **settings):
    return Hosts(settings_of(**settings), port).caller(dict(headers), name, peer)


@pytest.mark.parametrize(
    ("host", "settings"),
    [
        ("localhost", {}),
        ("LocalHost:8943", {}),
        ("localhost.:8943", {}),
        ("127.0.0.1:1", {}),
        ("[::1]:8943", {}),
        ("pacs.example", {"allowed_hosts": ("PACS.example.",)}),
        ("any.example", {"allowed_hosts": ("*",)}),
        ("pacs.example:443", {"public_url": "https://pacs.example/dicom"}),
        ("192.168.1.2:8943", REMOTE),
        ("[fe80::1]", REMOTE),
        (socket.gethostname(), REMOTE),
        ("10.1.2.3", {"host": "10.1.2.3"}),
    ],
)
def test_names_that_are_expected(host, settings):
    assert origin(host, **settings).client == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "settings"),
    [
        ("evil.example", {}),
        ("localhost.evil.example", {}),
        ("192.168.1.2", {}),
        ("evil.example", REMOTE),
        ("127.0.0.1.evil.example", REMOTE),
        ("pacs.example", {}),
    ],
)
def test_names_that_are_not(host, settings):
    hosts = Hosts(settings_of(**settings))
    for _ in range(2):  # the verdict is not forgotten, and not mistaken for another
        with pytest.raises(Forbidden, match="allowed_hosts"):
            hosts.caller({}, host, "127.0.0.1")


@pytest.mark.parametrize(
    "host", ["", "a b", "user@localhost", "localhost:x", "localhost:123456", "[::1", "a/b", "localhost,evil"]
)
def test_what_is_no_host(host):
    with pytest.raises(BadRequest):
        origin(host)


def test_the_base_of_urls():
    assert origin("localhost:8943").base == "http://localhost:8943"
    assert origin("localhost", public_url="https://pacs.example/dicom/").base == "https://pacs.example/dicom"


@pytest.mark.parametrize(
    ("host", "peer", "settings", "base"),
    [
        ("localhost", "127.0.0.1", {}, "http://localhost:8943"),
        ("LOCALHOST", "::1", {}, "http://LOCALHOST:8943"),
        ("[::1]", "::1", {}, "http://[::1]:8943"),
        ("127.0.0.1", "127.0.0.9", {}, "http://127.0.0.1:8943"),
        ("localhost:80", "127.0.0.1", {}, "http://localhost:80"),
        ("localhost", "10.1.1.1", {}, "http://localhost"),
        ("pacs.example", "127.0.0.1", {"allowed_hosts": ("pacs.example",)}, "http://pacs.example"),
        ("localhost", "127.0.0.1", {"trusted_proxies": ("127.0.0.1",)}, "http://localhost"),
        ("localhost", "127.0.0.1", {"public_url": "https://pacs.example"}, "https://pacs.example"),
    ],
)
def test_a_loopback_name_without_its_port(host, peer, settings, base):
    assert origin(host, peer, port=8943, **settings).base == base
    assert origin("localhost", port=80).base == "http://localhost"


@pytest.mark.parametrize(
    ("headers", "base", "client"),
    [
        ({}, "http://pacs.example", "10.1.1.1"),
        ({"x-forwarded-proto": "https"}, "https://pacs.example", "10.1.1.1"),
        ({"x-forwarded-host": "evil, pacs.example:8"}, "http://pacs.example:8", "10.1.1.1"),
        ({"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, "http://pacs.example", "1.2.3.4"),
        ({"x-forwarded-for": "1.2.3.4:55555"}, "http://pacs.example", "1.2.3.4"),
        ({"x-forwarded-for": "2001:db8::7"}, "http://pacs.example", "2001:db8::7"),
        ({"x-forwarded-for": "[2001:db8::7]:80"}, "http://pacs.example", "2001:db8::7"),
        ({"x-forwarded-for": "Bearer secret"}, "http://pacs.example", "10.1.1.1"),
        ({"forwarded": "for=6.6.6.6;proto=https;host=evil.example"}, "http://pacs.example", "10.1.1.1"),
    ],
)
def test_what_a_trusted_proxy_says_counts(headers, base, client):
    assert origin("pacs.example", "10.1.1.1", headers, **PROXY)[:2] == (base, client)


@pytest.mark.parametrize(
    ("headers", "base", "client"),
    [
        (
            {"forwarded": 'for=6.6.6.6, for="1.2.3.4";proto=https;host=pacs.example'},
            "https://pacs.example",
            "1.2.3.4",
        ),
        ({"forwarded": "Proto=HTTPS"}, "https://pacs.example", "10.1.1.1"),
        ({"forwarded": "nonsense"}, "http://pacs.example", "10.1.1.1"),
        ({"forwarded": 'for="[2001:db8::7]:4711"'}, "http://pacs.example", "2001:db8::7"),
        ({"forwarded": "for=_hidden-1"}, "http://pacs.example", "_hidden-1"),
        ({"forwarded": "for=sEcReT"}, "http://pacs.example", "10.1.1.1"),
        (
            {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https", "x-forwarded-host": "evil.example"},
            "http://pacs.example",
            "10.1.1.1",
        ),
    ],
)
def test_the_other_family_counts_where_the_setting_names_it(headers, base, client):
    found = origin("pacs.example", "10.1.1.1", headers, forwarded_headers="forwarded", **PROXY)
    assert found[:2] == (base, client)


@pytest.mark.parametrize(
    ("client", "counted"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("_hidden", "_hidden"),
    ],
)
def test_who_counts_as_one_client(client, counted):
    assert party(client) == counted


def test_what_others_say_does_not_count():
    headers = {
        "x-forwarded-host": "evil.example",
        "forwarded": "host=evil.example",
        "x-forwarded-for": "9.9.9.9",
    }
    assert origin("pacs.example", "11.1.1.1", headers, **PROXY)[:2] == ("http://pacs.example", "11.1.1.1")
    assert origin("pacs.example", "not an address", headers, **PROXY).client == "not an address"
    with pytest.raises(Forbidden):
        origin("pacs.example", "10.1.1.1", headers, **PROXY)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("pacs", False),
    ],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback

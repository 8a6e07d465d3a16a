"""Viewers on other origins."""

import pytest
from web_world import Raw, settings_of

from streamsrv.web.cors import Cors

VIEWER = "https://viewer.example"
PREFLIGHT = {"origin": VIEWER, "access-control-request-method": "GET"}


def cors(*origins):
    return Cors(settings_of(cors_origins=origins))


def test_without_the_setting_there_is_nothing():
    assert cors().headers({"origin": VIEWER}) == []
    assert cors().preflight("OPTIONS", PREFLIGHT).headers == []


@pytest.mark.parametrize("listed", [VIEWER, VIEWER + "/", VIEWER.upper()])
def test_a_listed_origin(listed):
    headers = dict(cors(listed).headers({"origin": VIEWER}))
    assert headers["Access-Control-Allow-Origin"] == VIEWER
    assert headers["Vary"] == "Origin"
    assert "ETag" in headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("asking", [{"origin": "https://evil.example"}, {"origin": "null"}, {}])
def test_an_origin_that_is_not_listed(asking):
    assert cors(VIEWER).headers(asking) == [("Vary", "Origin")]


def test_any_origin():
    assert dict(cors("*").headers({"origin": "null"}))["Access-Control-Allow-Origin"] == "*"
    assert cors("*").headers({}) == []


def test_preflights():
    headers = dict(cors(VIEWER).preflight("OPTIONS", PREFLIGHT).headers)
    assert headers["Access-Control-Max-Age"] == "7200"
    for name in ("authorization", "accept", "content-type", "range"):
        assert name in headers["Access-Control-Allow-Headers"]
    assert cors(VIEWER).preflight("GET", PREFLIGHT) is None
    assert cors(VIEWER).preflight("OPTIONS", {"origin": VIEWER}) is None
    assert cors(VIEWER).preflight("OPTIONS", {**PREFLIGHT, "origin": "https://evil.example"}).headers == []


class TestOverHttp:
    @pytest.fixture
    def settings(self):
        return settings_of(cors_origins=(VIEWER,))

    async def test_preflights_come_before_everything_else(self, port):
        """Even before Host and path are looked at: a browser that is refused here never sends the request
        itself."""
        raw = await Raw.connect(port)
        await raw.send(
            b"OPTIONS /v9/nothing HTTP/1.1\r\nHost: elsewhere\r\nOrigin: https://viewer.example\r\n"
            b"Access-Control-Request-Method: GET\r\n\r\n"
        )
        status, headers, _ = await raw.answer()
        assert (status, headers["access-control-allow-origin"]) == (204, VIEWER)
        assert headers["access-control-allow-methods"].startswith("get, head")
        await raw.close()

    @pytest.mark.parametrize("path", ["/v2/studies/1.2", "/v9/nothing"])
    async def test_errors_are_readable_too(self, port, path):
        raw = await Raw.connect(port)
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {VIEWER}\r\n\r\n".encode())
        _, headers, _ = await raw.answer()
        assert headers["access-control-allow-origin"] == VIEWER
        assert "content-range" in headers["access-control-expose-headers"]
        await raw.close()

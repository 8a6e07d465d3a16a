"""Viewers on other origins."""

import pytest
from web_world import Raw, settings_of

from streamsrv.errors import Forbidden
from streamsrv.web.cors import Cors

VIEWER = "https://viewer.example"
SAME, CROSS = (("Cross-Origin-Resource-Policy", f"{word}-origin") for word in ("same", "cross"))
PREFLIGHT = {"origin": VIEWER, "access-control-request-method": "GET"}


def cors(*origins):
    return Cors(settings_of(cors_origins=origins))


def test_without_the_setting_no_other_origin_reads_or_embeds():
    assert cors().headers({"origin": VIEWER}) == cors().headers({"referer": f"{VIEWER}/"}) == [SAME]
    assert cors().preflight("OPTIONS", PREFLIGHT).headers == []


@pytest.mark.parametrize("listed", [VIEWER, VIEWER + "/", VIEWER.upper()])
def test_a_listed_origin(listed):
    headers = dict(cors(listed).headers({"origin": VIEWER}))
    assert headers["Access-Control-Allow-Origin"] == VIEWER
    assert headers["Vary"] == "Origin, Referer"
    assert "ETag" in headers["Access-Control-Expose-Headers"]
    assert CROSS in headers.items()


@pytest.mark.parametrize(
    "asking",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "https://evil.example", "referer": f"{VIEWER}/"},
        {},
        {"referer": "https://evil.example/"},
        {"referer": f"{VIEWER}.evil.example/"},
        {"referer": f"{VIEWER}:8443/"},
        {"referer": f"https://evil.example/{VIEWER}/"},
        {"referer": "nonsense"},
    ],
)
def test_an_origin_that_is_not_listed(asking):
    assert cors(VIEWER).headers(asking) == [SAME, ("Vary", "Origin, Referer")]


@pytest.mark.parametrize("page", [f"{VIEWER}/", VIEWER, f"{VIEWER}/study?a=b"])
def test_a_page_of_a_listed_origin_embeds_pictures(page):
    """The request of an `<img>` has no Origin."""
    assert cors(VIEWER).headers({"referer": page}) == [CROSS, ("Vary", "Origin, Referer")]


def test_any_origin():
    headers = cors("*").headers({"origin": "null"})
    assert dict(headers)["Access-Control-Allow-Origin"] == "*"
    assert CROSS in headers
    # A browser may reuse the answer of an `<img>`, which has no Origin, for a script.
    assert headers == cors("*").headers({}) == cors("*").headers({"referer": "https://evil.example/"})


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


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", None])
def test_a_page_that_may_not_read_changes_nothing(site, origin):
    """A form of any site can send `multipart/form-data` with the credentials that a browser keeps."""
    asked = {"sec-fetch-site": site} | ({"origin": origin} if origin else {})
    with pytest.raises(Forbidden):
        cors(VIEWER).check_change(asked)
    with pytest.raises(Forbidden):
        cors().check_change(asked)


def test_other_clients_may_change():
    cors().check_change({"sec-fetch-site": "same-origin"})
    cors().check_change({"sec-fetch-site": "none"})
    cors().check_change({})
    cors(VIEWER).check_change({"sec-fetch-site": "cross-site", "origin": VIEWER})


@pytest.mark.parametrize(("method", "path"), [("POST", "/v2/studies"), ("DELETE", "/v2/studies/1.2")])
async def test_a_form_of_another_site_is_403(http_server_client, method, path):
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    body = b"" if method == "POST" else None
    answer = await http_server_client.fetch(
        path, method=method, headers=headers, body=body, raise_error=False
    )
    assert answer.code == 403
    assert b"cors_origins" in answer.body

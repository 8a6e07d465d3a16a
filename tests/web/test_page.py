"""The page at `/`: its documents, headers and policy. tests/deployment/test_page_in_browser.py uses it."""

import json
import re
from pathlib import Path

import pytest
from web_world import settings_of

from streamsrv.web.pages import page

FILES = Path(page.__file__).with_name("files")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
FOUND = "the path names no version of this service: supported are /v1 and /v2"


@pytest.fixture
def settings(tmp_path):
    return settings_of(data=str(tmp_path))


async def fetch(client, path, method="GET", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.fetch(path, method=method, headers=named, raise_error=False)


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html;q=0, */*"])
async def test_clients_that_do_not_name_html_get_the_problem(http_server_client, accept):
    answer = await fetch(http_server_client, "/", Accept=accept)
    assert (answer.code, json.loads(answer.body)["detail"]) == (404, FOUND)


async def test_a_browser_gets_a_document_without_inline_code(http_server_client):
    answer = await fetch(http_server_client, "/", Accept=BROWSER)
    assert (answer.code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert {"Accept"} <= {each.strip() for each in answer.headers["Vary"].split(",")}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    text = answer.body.decode()
    assert not re.search(r"<style|style=|\son\w+=|<script>", text)
    policy = dict(each.strip().split(" ", 1) for each in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    for name in re.findall(r'(?:href|src)="([^"]+)"', text):
        part = await fetch(http_server_client, f"/{name}")
        assert part.code == 200
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", part.body), name


async def test_files_are_asked_for_again_by_their_tag(http_server_client):
    plain = await fetch(http_server_client, "/page/app.js")
    assert plain.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert plain.headers["Vary"] == "Accept-Encoding"
    again = await fetch(http_server_client, "/page/app.js", If_None_Match=plain.headers["ETag"])
    assert (again.code, again.body) == (304, b"")
    assert (await fetch(http_server_client, "/page/none.js")).code == 404
    assert (await fetch(http_server_client, "/page/..%2Fpage.py")).code == 404


def test_modules_are_short_and_say_what_they_are():
    for path in FILES.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("/** "), path.name
        assert text.count("\n") < 300, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
            path.name
        )


async def test_the_page_has_no_other_methods(http_server_client):
    answer = await fetch(http_server_client, "/", "DELETE", Accept=BROWSER)
    assert (answer.code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_names_of_attributes(http_server_client):
    names = json.loads((await fetch(http_server_client, "/page/dictionary.json")).body)
    assert names["00100010"] == "Patient's Name"
    assert names["60xx3000"] == "Overlay Data"
    assert len(names) > 5000


async def test_the_facts_say_what_is_allowed_and_which_viewers_there_are(http_server_client, tmp_path):
    facts = json.loads((await fetch(http_server_client, "/page/server.json")).body)
    assert all(facts["allowed"].values())
    assert facts["viewers"] == []
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "viewer.json").write_text("{}")  # beside the running server
    (viewer,) = json.loads((await fetch(http_server_client, "/page/server.json")).body)["viewers"]
    assert viewer["url"].startswith("viewer/viewer?StudyInstanceUIDs=")


class TestReadOnly:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), read_only=True)

    async def test_the_facts_allow_nothing(self, http_server_client):
        facts = json.loads((await fetch(http_server_client, "/page/server.json")).body)
        assert not any(facts["allowed"][right] for right in ("store", "replace", "delete"))
        assert (await fetch(http_server_client, "/v2/studies/1.2", "DELETE")).code == 403


class TestWithoutPage:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), browser=False)

    @pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/server.json"])
    async def test_nothing_of_it_is_served(self, http_server_client, path):
        answer = await fetch(http_server_client, path, Accept=BROWSER)
        assert (answer.code, json.loads(answer.body)["detail"]) == (404, FOUND)

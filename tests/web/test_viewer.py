"""The web viewer at /viewer/, from an installation that the tests write by hand."""

import asyncio
import base64
import gzip
import hashlib
import json
import re

import pytest
from web_world import settings_of

PAGE = (
    b'<html><script>window.PUBLIC_URL="/viewer/"</script>'
    b'<script defer src="/viewer/app.0123abcd.js"></script><link href="/viewer/app.css"></html>'
)
CODE = b"console.log('viewer');\n" * 100


@pytest.fixture
def settings(tmp_path):
    return settings_of(data=str(tmp_path))


def write_viewer(data, page=PAGE, code=CODE):
    place = data / "viewer" / "1"
    place.mkdir(parents=True, exist_ok=True)
    contents = {"index.html": page, "app.0123abcd.js": code, "app.css": b"a{}", "assets/logo.svg": b"<svg/>"}
    rows = {}
    for name, body in contents.items():
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        rows[name] = {"digest": hashlib.sha256(body).hexdigest(), "named": "0123" in name, "codings": []}
    (place / "app.0123abcd.js.gzip").write_bytes(gzip.compress(code))
    rows["app.0123abcd.js"]["codings"] = ["gzip"]
    table = data / "viewer" / "viewer.json"
    draft = table.with_suffix(".new")
    draft.write_text(json.dumps({"folder": "1", "files": rows}))
    draft.rename(table)


async def fetch(client, path, **headers):
    return await client.fetch(path, headers=headers, raise_error=False, follow_redirects=False)


async def test_without_a_viewer_the_problem_says_how_to_install_it(http_server_client, tmp_path):
    missing = await fetch(http_server_client, "/viewer/")
    assert missing.code == 404
    assert "streamsrv viewer install --data DIR" in json.loads(missing.body)["detail"]
    assert missing.headers["Content-Security-Policy"] == "sandbox"
    write_viewer(tmp_path)  # beside the running server
    assert (await fetch(http_server_client, "/viewer/")).body == PAGE


async def test_deep_links_get_the_page_and_missing_files_do_not(http_server_client, tmp_path):
    write_viewer(tmp_path)
    for path in ("", "index.html", "viewer?StudyInstanceUIDs=1.2", "microscopy/dicomweb?a=b", "frames/1"):
        found = await fetch(http_server_client, f"/viewer/{path}")
        assert (found.code, found.body) == (200, PAGE)
        assert found.headers["Cache-Control"] == "no-cache"
    for path in ("missing.js", "assets/%2e%2e/%2e%2e/viewer.json", "..%2fviewer.json", "../viewer.json"):
        assert (await fetch(http_server_client, f"/viewer/{path}")).code == 404
    moved = await fetch(http_server_client, "/viewer")
    assert (moved.code, moved.headers["Location"]) == (308, "/viewer/")
    refused = await http_server_client.fetch("/viewer/", method="POST", body="", raise_error=False)
    assert (refused.code, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_files_with_a_digest_in_their_name_are_kept_forever(http_server_client, tmp_path):
    write_viewer(tmp_path)
    code = await fetch(http_server_client, "/viewer/app.0123abcd.js", **{"Accept-Encoding": "gzip"})
    assert code.body == CODE  # decoded by the client
    assert code.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert code.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert code.headers["X-Content-Type-Options"] == "nosniff"
    assert code.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    style = await fetch(http_server_client, "/viewer/app.css")
    assert style.headers["Cache-Control"] == "no-cache"
    assert (
        await fetch(http_server_client, "/viewer/app.css", **{"If-None-Match": style.headers["ETag"]})
    ).code == 304


async def test_the_policy_names_the_scripts_of_the_page_and_no_other_origin(http_server_client, tmp_path):
    write_viewer(tmp_path)
    policy = (await fetch(http_server_client, "/viewer/")).headers["Content-Security-Policy"]
    inline = base64.b64encode(hashlib.sha256(b'window.PUBLIC_URL="/viewer/"').digest()).decode()
    assert f"script-src 'self' 'unsafe-eval' 'sha256-{inline}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "'unsafe-inline'" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
    code = (await fetch(http_server_client, "/viewer/app.0123abcd.js")).headers["Content-Security-Policy"]
    assert "script-src 'self' 'unsafe-eval';" in code  # that of a worker


async def config_of(client):
    answer = await fetch(client, "/viewer/app-config.js")
    assert answer.headers["Cache-Control"] == "no-store"
    found = re.fullmatch(r"window\.config = (.*);\n", answer.body.decode(), re.DOTALL)
    config = json.loads(found[1])
    (source,) = config["dataSources"]
    return config, source["configuration"]


async def test_the_configuration_has_relative_roots(http_server_client, tmp_path):
    write_viewer(tmp_path)
    config, source = await config_of(http_server_client)
    assert config["routerBasename"] == "/viewer"
    assert (source["qidoRoot"], source["wadoRoot"], source["wadoUriRoot"]) == ("/v2", "/v2", "/wado")
    assert source["singlepart"] == "bulkdata,video,pdf"
    assert source["dicomUploadEnabled"] is True
    assert "stackRetrieveOptions" not in source


async def test_a_new_installation_is_seen_at_once(http_server_client, tmp_path):
    write_viewer(tmp_path)
    assert (await fetch(http_server_client, "/viewer/app.0123abcd.js")).body == CODE
    await asyncio.sleep(0)
    write_viewer(tmp_path, page=PAGE + b"<!-- 2 -->", code=b"2")
    assert (await fetch(http_server_client, "/viewer/")).body == PAGE + b"<!-- 2 -->"
    (tmp_path / "viewer" / "viewer.json").write_text("{}")
    broken = await fetch(http_server_client, "/viewer/")
    assert (broken.code, "install` again" in broken.body.decode()) == (500, True)


class TestReadOnly:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), read_only=True)

    async def test_uploads_are_not_offered(self, http_server_client, tmp_path):
        write_viewer(tmp_path)
        assert (await config_of(http_server_client))[1]["dicomUploadEnabled"] is False


class TestProgressive:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), viewer_progressive=True)

    async def test_images_are_requested_as_htj2k(self, http_server_client, tmp_path):
        write_viewer(tmp_path)
        options = (await config_of(http_server_client))[1]["stackRetrieveOptions"]["retrieveOptions"]
        assert {each["urlArguments"] for each in options.values()} == {
            "accept=image/jphc;transfer-syntax=1.2.840.10008.1.2.4.202"
        }
        assert options["first"]["chunkSize"] == 32768


class TestBehindAPath:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), public_url="https://pacs.example/imaging")

    async def test_page_and_configuration_have_the_path_of_the_proxy(self, http_server_client, tmp_path):
        write_viewer(tmp_path)
        page = (await fetch(http_server_client, "/viewer/")).body.decode()
        assert 'src="/imaging/viewer/app.0123abcd.js"' in page
        assert 'window.PUBLIC_URL="/imaging/viewer/"' in page
        config, source = await config_of(http_server_client)
        assert (config["routerBasename"], source["wadoRoot"]) == ("/imaging/viewer", "/imaging/v2")


class TestLogin:
    @pytest.fixture
    def settings(self, tmp_path):
        return settings_of(data=str(tmp_path), auth="required", public_url="https://pacs.example/imaging")

    @pytest.mark.parametrize("place", ["", "viewer?StudyInstanceUIDs=1.2&a=b%26c", "a%0Ab%23"])
    async def test_a_place_leads_to_the_sign_in_and_back(self, http_server_client, tmp_path, place):
        assert (await fetch(http_server_client, "/viewer/")).code == 404
        write_viewer(tmp_path)
        found = await fetch(http_server_client, f"/viewer/{place}")
        assert (found.code, found.headers["Location"]) == (303, f"/imaging/#/viewer/{place}")
        assert found.headers["Cache-Control"] == "no-store"

    async def test_files_are_open(self, http_server_client, tmp_path):
        write_viewer(tmp_path)
        assert (await fetch(http_server_client, "/viewer/app.0123abcd.js")).code == 200
        assert (await config_of(http_server_client))[1]["dicomUploadEnabled"] is False

"""Viewers of a server that needs credentials, in Chromium: by the cookie of the page on the origin of the
server, over TLS, and by a key in Authorization on another origin. Two users see two lists.
"""

import base64
import json
import os
import re
import shutil

import clinic as world
import numpy as np
import pytest
from access_world import command
from conftest import same_origin
from live_server import ROOT, start_server
from ohif_window import VIEWPORT, files_of, hosted
from tls_world import made
from viewer_archive import CT, DOCUMENT, SIDE, STUDY, VOLUME, fill, hounsfield, middle_of_slide
from viewer_kinds import RECORDED, WIDTH, video

ALL, SOME = "1-8 of 8", "1-2 of 2"


class Login:
    """The server, the keys of two users, and two origins with viewers: `host` has OHIF and the libraries,
    `proxy` has the libraries and the DICOMweb service."""

    def __init__(self, server, keys, host, proxy):
        self.server, self.keys, self.host, self.proxy = server, keys, host, proxy


@pytest.fixture(scope="module")
def login(ohif, library, viewer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("login")
    for source, place in (
        (ohif / "data" / "viewer", "data/viewer"),
        (library, "site"),
        (files_of(ohif), "site/viewer"),
    ):
        shutil.copytree(source, folder / place, copy_function=os.link)
    (folder / "site" / "viewer" / "app-config.js").unlink(missing_ok=True)
    filling = start_server(folder)
    fill(filling)
    world.store(f"{filling.url}/studies", [video(base64.b64decode(viewer.run(RECORDED)))[1]])
    assert filling.end() == 0
    add = ("key", "add", "--data", folder / "data", "--rights", "search,read")
    keys = {
        "anna": command(*add, "anna").stdout.strip(),
        "ben": command(*add, "ben", "--study", VOLUME, "--study", DOCUMENT).stdout.strip(),
    }
    with hosted(folder / "site") as host:
        pair = made(folder, "server")
        flags = ("--auth", "required", "--cors-origins", host, *pair.flags)
        running = start_server(folder, *flags, context=pair.context())
        text = (ROOT / "docs" / "viewers.md").read_text()
        (config,) = re.findall(r"```js\n(window\.config = .*?)```", text, re.DOTALL)
        (extensions,) = re.findall(r"```js\n(extensions: .*?)```", text, re.DOTALL)
        config = config.replace("https://pacs.example", running.origin).replace("extensions: [],", extensions)
        (folder / "site" / "viewer" / "app-config.js").write_text(config)
        with same_origin(folder / "nginx", folder / "site", running, pair) as proxy:
            yield Login(running, keys, host, proxy)
        running.end()


@pytest.fixture(autouse=True)
def quiet(viewer):
    viewer.said.clear()


def with_key(viewer, login, user, place):
    """OHIF on the other origin. Its key is that of a user."""
    blank = f"{login.host}/viewer/manifest.json"
    viewer.open(blank)
    viewer.shows(f"location.href === '{blank}' && document.readyState === 'complete'")
    viewer.run(f"sessionStorage.setItem('key', {json.dumps(login.keys[user])})")
    viewer.open(f"{login.host}/viewer/{place}")


def with_cookie(viewer, login, user, place):
    """OHIF on the origin of the server. Its link leads to the sign-in and back."""
    viewer.call("Network.clearBrowserCookies")
    viewer.open(f"{login.server.origin}/viewer/{place}")
    viewer.shows("location.hash.startsWith('#/viewer/')")
    viewer.click("input[name=key]")
    viewer.write(login.keys[user])
    viewer.press("Enter")
    viewer.shows(f"location.pathname === '/viewer/{place.partition('?')[0]}'")
    cookies = viewer.call("Network.getCookies", urls=[login.server.origin])["cookies"]
    (cookie,) = (each for each in cookies if each["name"].startswith("__Host-streamsrv"))
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")


WAYS = pytest.mark.parametrize("opened", [with_key, with_cookie], ids=lambda way: way.__name__)


@WAYS
def test_two_users_see_two_lists(viewer, login, opened):
    opened(viewer, login, "anna", "")
    viewer.says(ALL, "Müller, Jörg")
    opened(viewer, login, "ben", "")
    viewer.says(SOME)
    assert "Müller" not in viewer.text("body")
    # The configuration on the other origin is a file, so it does not know the rights.
    assert ("Upload" in viewer.text("body")) == (opened is with_key)
    opened(viewer, login, "ben", f"viewer?StudyInstanceUIDs={STUDY}")
    viewer.says("not available")
    assert viewer.errors() == []


@WAYS
def test_slices_thumbnails_and_documents(viewer, login, opened):
    opened(viewer, login, "anna", f"viewer?StudyInstanceUIDs={STUDY}")
    viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
    for number in (1, 5):
        assert (viewer.image(f"/{CT}.{number}/").reshape(SIDE, SIDE) == hounsfield(number)).all()
    viewer.shows("[...document.images].some(each => each.naturalWidth === 256)")
    assert [text for text in viewer.said if "40" in text] == []
    opened(viewer, login, "anna", f"viewer?StudyInstanceUIDs={DOCUMENT}")
    viewer.shows("document.querySelector('object[type=\"application/pdf\"]').data")
    opened(viewer, login, "anna", f"microscopy?StudyInstanceUIDs={world.SLIDE_STUDY}")
    viewer.until(lambda: np.abs(viewer.around_the_middle() - middle_of_slide()).max() <= 25)
    assert viewer.errors() == []


def test_a_video_needs_the_cookie(viewer, login):
    with_cookie(viewer, login, "anna", f"viewer?StudyInstanceUIDs={world.ROOT}.90.20")
    viewer.shows(f"{VIEWPORT}.videoElement.videoWidth === {WIDTH}")
    assert viewer.errors() == []


@pytest.mark.parametrize("way", ["key on another origin", "cookie behind a proxy"])
def test_cornerstone_and_slides_by_themselves(viewer, login, way):
    key = login.keys["anna"]
    origin, root, headers = login.host, login.server.url, {"Authorization": f"Bearer {key}"}
    if way.startswith("cookie"):
        origin, root, headers = login.proxy, "/v2", {}
    viewer.call("Network.clearBrowserCookies")
    viewer.open(f"{origin}/library.html")
    viewer.shows(f"location.origin === '{origin}' && typeof stack === 'function'")
    series = f"'{root}', '{STUDY}', '{CT}'"
    assert viewer.run(f"stack({series}).catch(error => error.status ?? error.request?.status)") == 401
    if not headers:
        begun = (
            "fetch('/session', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            f" body: JSON.stringify({{key: {json.dumps(key)}}})}}).then(answer => answer.status)"
        )
        assert viewer.run(begun) == 200
    assert viewer.run(f"stack({series}, {json.dumps(headers)})") == 7
    assert (viewer.image(f"/{CT}.5/").reshape(SIDE, SIDE) == hounsfield(5)).all()
    series = f"'{root}', '{world.SLIDE_STUDY}', '{world.SLIDE_SERIES}'"
    assert viewer.run(f"slide({series}, {json.dumps(headers)})") == 1
    viewer.until(lambda: np.abs(viewer.around_the_middle() - middle_of_slide()).max() <= 25)
    assert viewer.errors() == []


def test_a_shared_study(viewer, login):
    """The session of a link shows its study, and lists no other."""
    share = ("share", STUDY, "--data", login.server.data, "--url", login.server.origin)
    link = command(*share).stdout.strip()
    viewer.call("Network.clearBrowserCookies")
    viewer.open(link)
    viewer.shows(f"location.hash === '#/studies/{STUDY}'")
    viewer.open_study(login.server, STUDY)
    viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
    assert (viewer.image(f"/{CT}.1/").reshape(SIDE, SIDE) == hounsfield(1)).all()
    viewer.open(f"{login.server.origin}/viewer/")
    viewer.says("1-1 of 1")
    assert viewer.errors() == []

"""The sign-in of the page, share links and their dialog in Chromium, against a real server."""

import time

import clinic as world
import pytest
from access_world import Site, bearer
from clinic import CT_STUDY
from live_server import start_server
from small_client import file_of, key_of
from test_page_in_browser import NARROW, ROWS, axe, problems  # noqa: F401

SIGNED_OUT = "document.querySelector('section.sign-in input[name=key]')"
RIGHTS = "search,read,store,delete,share"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("sign-in"), "--auth", "required", workers=2)
    site = Site(server)
    site.anna = site.key("Anna", RIGHTS)
    files = map(world.file_of, world.everything())
    world.store(f"{server.url}/studies", files, Authorization=f"Bearer {site.anna}")
    yield site
    server.end()


@pytest.fixture
def page(browser, site):
    """Not signed in. Afterwards the page has reported nothing but failed loads."""
    browser.size(1280, 800)
    browser.call("Network.clearBrowserCookies")
    browser.open("about:blank")
    browser.said.clear()
    browser.open(f"{site.server.origin}/")
    browser.wait(SIGNED_OUT)
    yield browser
    browser.run("localStorage.clear()")
    browser.prefer("")
    assert not [each for each in browser.said if not each.startswith("Failed to load resource")]


def sign_in(page, key, within="section.sign-in"):
    page.wait(f"document.activeElement === document.querySelector('{within} input[name=key]')")
    page.write(key)
    page.press("Enter")


def open_study(page):
    page.run(f"location.hash = '#/studies/{CT_STUDY}'")
    page.wait("document.querySelector('.actions')")


def test_a_key_signs_in_and_the_page_shows_what_its_rights_allow(page, site):
    assert not page.run("!!document.querySelector('button.upload, tbody')")
    sign_in(page, "streamsrv_wrong")
    page.wait("document.querySelector('[role=alert]').innerText.includes('not valid')")
    page.run("document.activeElement.value = ''")
    sign_in(page, site.anna)
    page.wait(f"{ROWS} === 3")
    assert page.text(".user") == "Anna"
    assert not page.run("document.cookie")
    assert page.run("!!document.querySelector('button.upload')")
    open_study(page)
    assert {"Share", "Delete"} <= set(page.texts(".study-card button"))
    page.click("button", "Sign out")
    page.wait(SIGNED_OUT)
    sign_in(page, site.key("reader", "search,read"))
    page.wait("document.querySelector('.study-card')")  # the address is still that of the study
    assert page.text(".user") == "reader"
    assert not {"Share", "Delete"} & set(page.texts(".study-card button"))
    assert not page.run("!!document.querySelector('button.upload')")
    site.revoke("reader")


def test_a_session_that_has_ended_loses_nothing(page, site, tmp_path):
    key = site.key("short", RIGHTS)
    sign_in(page, key)
    page.wait(f"{ROWS} === 3")
    page.click("input[name=patient]")
    page.write("P-1")
    page.wait(f"{ROWS} === 2")
    site.revoke("short")
    time.sleep(1)
    made = world.ct(1)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{world.CT_SERIES}.9"
    path = tmp_path / "new.dcm"
    path.write_bytes(world.file_of(made))
    page.click("button.upload")
    page.choose("input[name=files]", [path])
    page.wait("document.querySelector('dialog.sign-in[open]')")
    sign_in(page, site.anna, "dialog")
    page.wait("!document.querySelector('dialog') && document.querySelector('.uploads .done')")
    page.wait(f"{ROWS} === 2 && document.querySelector('input[name=patient]').value === 'P-1'")
    assert page.text(".user") == "Anna"


def test_an_event_source_follows_with_the_session(page, site):
    """It connects again behind its last event when the stream ends, and is refused when the key has ended."""
    sign_in(page, site.key("follower", "search"))
    page.wait(f"{ROWS} === 3")
    page.run(
        "window.told = []; window.opened = 0; window.source = new EventSource('/v2/events?duration=1');"
        " source.onopen = () => opened++; source.onmessage = event => told.push(JSON.parse(event.data));"
        " source.addEventListener('reset', () => told.push('reset')); 0"
    )
    page.wait("opened === 1")
    keys = [key_of(5, 1, number) for number in (1, 2, 3)]
    url, anna = f"{site.server.url}/studies", bearer(site.anna)
    world.store(url, [file_of(keys[0], 1, 200)], **anna)
    page.wait("told.length === 1")
    page.wait("source.readyState === EventSource.CONNECTING")
    world.store(url, [file_of(key, 1, 200) for key in keys[1:]], **anna)
    page.wait("opened > 1 && told.length === 3")
    told = page.run("told.map(each => [each.action, each.sopInstanceUid])")
    assert told == [["create", key[2]] for key in keys]
    assert not page.run("document.cookie")
    site.revoke("follower")
    page.wait("source.readyState === EventSource.CLOSED")
    assert world.ask(f"{url}/{keys[0][0]}", "DELETE", **anna).status == 204


def test_a_sign_out_reaches_the_other_tabs(page, site):
    sign_in(page, site.anna)
    page.wait(f"{ROWS} === 3")
    page.run("new BroadcastChannel('streamsrv').postMessage('out')")
    page.wait("performance.getEntriesByType('navigation')[0].type === 'reload'")


def open_sharing(page, word="Share"):
    """Opens the dialog, which moves when it has the links of the study."""
    open_study(page)
    page.click(".study-card button", word)
    page.wait("performance.getEntriesByType('resource').some(each => each.name.endsWith('/shares'))")


def shared_link(page, *, pin):
    open_sharing(page)
    if not pin:
        page.click("input[name=pin]")
    page.click("dialog.share form.share-form button")
    url = page.wait("document.querySelector('input[name=link]')?.value")
    return url, page.run("document.querySelector('input[name=pin-shown]')?.value")


def test_a_study_is_shared_by_a_link_with_a_pin(page, site):
    sign_in(page, site.anna)
    page.wait(f"{ROWS} === 3")
    url, pin = shared_link(page, pin=True)
    page.wait("document.querySelector('.known li')?.innerText.includes('by Anna')")
    page.call("Network.clearBrowserCookies")
    page.open("about:blank")
    page.open(url)
    page.wait("document.activeElement.name === 'pin'")
    assert page.run("location.hash") == "#/share"
    page.write(f"{(int(pin) + 1) % 10**6:06}")
    page.press("Enter")
    page.wait("document.querySelector('[role=alert]').innerText.includes('not right')")
    page.write(pin)  # the wrong one is selected
    page.press("Enter")
    page.wait("document.querySelectorAll('a.instance').length >= 3")
    page.wait("document.querySelector('.instance img').naturalWidth > 0")
    assert page.run("location.hash") == f"#/studies/{CT_STUDY}"
    assert page.text(".user") == "shared study"
    assert not {"Share", "Delete"} & set(page.texts(".study-card button"))
    page.run("location.hash = '#/'")
    page.wait(f"{ROWS} === 1")  # nothing else is visible


def test_a_link_that_has_ended_says_so(page, site):
    sign_in(page, site.anna)
    page.wait(f"{ROWS} === 3")
    url, pin = shared_link(page, pin=False)
    assert pin is None
    without = "[...document.querySelectorAll('.known li')].filter(each => !each.innerText.includes('PIN'))"
    page.wait(f"{without}.length === 1")
    page.click(".known li:last-child button")  # the newest
    page.wait(f"{without}.length === 0")
    page.press("Escape")
    page.open("about:blank")
    page.open(url)
    page.click("button", "Open the study")  # this browser is signed in
    page.wait("document.querySelector('[role=alert]')?.innerText.includes('has ended')")
    page.click("main a")
    page.wait(f"{ROWS} === 3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_of_the_sign_in_can_be_used_by_all(page, site, axe, scheme):  # noqa: F811
    page.prefer(scheme)
    page.size(NARROW, 740)
    page.click("button.language")

    def check():
        assert problems(page, axe) == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")

    check()
    page.click("input[name=key]")
    sign_in(page, "streamsrv_wrong")
    page.wait("document.querySelector('[role=alert]').innerText")
    check()
    page.run("document.activeElement.value = ''")
    sign_in(page, site.anna)
    page.wait(f"{ROWS} === 3")
    check()
    open_sharing(page, "共享")
    page.click("dialog.share form.share-form button")
    page.wait("document.querySelector('.known li')")
    check()

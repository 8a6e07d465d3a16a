"""The page at `/` in Chromium, against a real server: search, open, preview, upload, delete, keys, languages.

Every test leaves the studies of the clinic as they are. The page must never report an error of its own."""

import io
import json
import shutil
import subprocess
import zipfile

import clinic as world
import pytest
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY, ask
from live_server import start_server
from pydicom.uid import ComprehensiveSRStorage
from small_client import file_of

# There is no function of this name, so a call would be reported as an error. In a name `=` divides groups.
EVIL, EVIL_NAME = "<img src=x onerror=hit()>", "<img src · x onerror · hit()>"
EVIL_STUDY = f"{world.ROOT}.66"
ROWS = "document.querySelectorAll('tbody tr').length"
NARROW = 360
NEW = 7  # studies that tests store
AXE = "4.10.3"


def evil():
    made = world.dataset(
        world.SecondaryCaptureImageStorage, EVIL_STUDY, f"{EVIL_STUDY}.1", f"{EVIL_STUDY}.1.1"
    )
    made.PatientName, made.PatientID, made.StudyDescription = EVIL, EVIL, EVIL
    made.SeriesDescription, made.Modality, made.InstanceNumber = EVIL, "OT", "1"
    made.StudyDate = "20200101"
    return made


def new_study(number):
    """The file of a study that the clinic does not have."""
    made = world.ct(1)
    made.StudyInstanceUID = f"{world.ROOT}.70.{number}"
    made.SeriesInstanceUID = f"{made.StudyInstanceUID}.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{made.StudyInstanceUID}.1.1"
    made.PatientName, made.StudyDate = f"Upload^{number}", "20190101"
    return made


def report_uids():
    study = new_study(NEW).StudyInstanceUID
    return study, f"{study}.1", f"{study}.1.1"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    files = [world.file_of(each) for each in (*world.everything(), evil())]
    running = start_server(tmp_path_factory.mktemp("page") / "server", workers=1)
    world.store(f"{running.url}/studies", files)
    yield running
    running.end()


@pytest.fixture
def page(browser, server):
    """The study list, with all its rows. Afterwards the page has reported nothing but failed loads."""
    browser.size(1280, 800)
    browser.open("about:blank")
    browser.said.clear()
    browser.open(f"{server.origin}/")
    browser.wait(f"{ROWS} === 4")
    yield browser
    browser.run("localStorage.clear()")
    for number in range(1, NEW + 1):
        ask(f"{server.url}/studies/{new_study(number).StudyInstanceUID}", "DELETE")
    assert not [each for each in browser.said if not each.startswith("Failed to load resource")]


def open_instance(page, *uids):
    study, series, instance = uids
    page.run(f"location.hash = '#/studies/{study}/series/{series}/instances/{instance}'")
    page.wait("document.querySelector('.attributes li')")


def write_into(page, selector, text):
    page.click(selector)
    page.write(text)


def is_stored(server, study):
    return ask(f"{server.url}/studies/{study}/series").status == 200


# -- the list


def test_the_list_is_newest_first_and_says_what_the_server_holds(page):
    assert page.texts("td.date .nowrap") == ["2024-02-01", "2024-01-15", "2024-01-15", "2020-01-01"]
    assert page.texts("td.name")[0] == "Müller, Jörg"
    assert "4 studies" in page.wait("document.querySelector('.holds').innerText")


@pytest.mark.parametrize(
    ("field", "text", "studies"),
    [
        ("name", "jor mul", 1),  # words of a name in any order, without accents
        ("patient", "p-1", 2),
        ("accession", "a-", 4),
        ("description", "hora", 3),
    ],
)
def test_a_search_while_typing(page, field, text, studies):
    write_into(page, f"input[name={field}]", text)
    page.wait(f"{ROWS} === {studies}")
    page.wait(f"location.hash.includes('{field}=')")
    page.call("Page.reload")  # the address keeps the search
    page.wait(f"{ROWS} === {studies} && document.querySelector('input[name={field}]').value")
    page.click("button.clear")
    page.wait(f"{ROWS} === 4")


def test_a_search_by_modality_and_dates(page):
    page.run(
        "(field => { field.value = 'SM'; field.dispatchEvent(new Event('change')) })"
        "(document.querySelector('select[name=modality]'))"
    )
    page.wait(f"{ROWS} === 1")
    page.click("button.clear")
    page.wait(f"{ROWS} === 4")
    page.run(
        "(field => { field.value = '2024-01-20'; field.dispatchEvent(new Event('input')) })"
        "(document.querySelector('input[name=from]'))"
    )
    page.wait(f"{ROWS} === 1 && document.querySelector('td.date').innerText.startsWith('2024-02-01')")


def test_the_answer_of_an_earlier_search_is_dropped(page):
    """The first request is held back until the second has been answered."""
    page.run(
        "window.signals = []; const fetched = fetch; window.fetch = async (url, options) => {"
        " if (!String(url).includes('PatientName')) return fetched(url, options);"
        " signals.push(options.signal);"
        " if (signals.length === 1) await new Promise(go => options.signal.addEventListener('abort', go));"
        " return fetched(url, options) }; 0"
    )
    write_into(page, "input[name=name]", "d")
    page.wait("signals.length === 1")
    page.write("oe")
    page.wait(f"{ROWS} === 2 && signals.length === 2")
    assert page.run("signals.map(each => each.aborted)") == [True, False]


def test_columns_sort_and_pages_turn(page):
    page.click("th.name button")
    page.wait("document.querySelector('th.name').ariaSort === 'ascending'")
    page.wait("document.querySelector('td.name').innerText === '<img src · x onerror · hit()>'")
    page.click("th.name button")
    page.wait("document.querySelector('td.name').innerText === 'Müller, Jörg'")
    assert page.text(".range") == "1–4 of 4"


def test_long_lists_have_pages(page, server):
    count = 60
    keys = [(f"1.2.9.{number}", f"1.2.9.{number}.1", f"1.2.9.{number}.1.1") for number in range(count)]
    world.store(f"{server.url}/studies", [file_of(key, 1, 128) for key in keys])
    page.call("Page.reload")
    page.wait("document.querySelector('.range').innerText === '1–50 of 64'")
    page.click("button", "Next")
    page.wait(f"{ROWS} === 14 && document.querySelector('.range').innerText === '51–64 of 64'")
    assert page.run("document.activeElement.closest('tr') === document.querySelector('tbody tr')")
    page.click("button", "Previous")
    page.wait(f"{ROWS} === 50")
    for study, *_ in keys:
        ask(f"{server.url}/studies/{study}", "DELETE")


@pytest.mark.parametrize("text", ["王", "小东", "王小东"])
def test_chinese_names_are_found_by_their_characters(page, server, text):
    made = new_study(NEW)
    made.SpecificCharacterSet, made.PatientName = "ISO_IR 192", "Wang^XiaoDong=王^小东"
    world.store(f"{server.url}/studies", [world.file_of(made)])
    write_into(page, "input[name=name]", text)
    page.wait(f"{ROWS} === 1")
    assert page.text("td.name") == "Wang, XiaoDong · 王小东"


def test_keys_alone_search_open_and_go_back(page):
    page.press("/")
    page.wait("document.activeElement.name === 'name'")
    page.write("doe")
    page.wait(f"{ROWS} === 2")
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press("ArrowUp")
    page.press("Enter")
    page.wait("document.querySelector('study-view h1').innerText === 'Doe, Jane'")
    page.press("Escape")
    page.wait("document.querySelector('study-list')")


# -- one study


def test_a_study_opens_with_series_thumbnails_and_links(page, server):
    page.run(f"location.hash = '#/studies/{CT_STUDY}'")
    page.wait("document.querySelectorAll('a.instance').length === 3")
    page.wait("document.querySelector('.instance img').naturalWidth > 0")
    study, series = page.run("[...document.querySelectorAll('a[download]')].map(each => each.href)")
    assert study == f"{server.url}/studies/{CT_STUDY}?accept=application/zip"
    assert series == f"{server.url}/studies/{CT_STUDY}/series/{CT_SERIES}?accept=application/zip"
    for link, count in ((study, 3), (series, 3)):
        with zipfile.ZipFile(io.BytesIO(ask(link).body)) as archive:
            assert len(archive.namelist()) == count
    page.click("a.instance")
    page.wait("document.querySelector('.attributes li')")
    file = page.run("document.querySelector('a[download]').href")
    assert ask(file).body == world.file_of(world.ct(1))


def test_every_attribute_stands_in_a_tree(page):
    open_instance(page, SLIDE_STUDY, SLIDE_SERIES, SLIDE)
    lines = page.texts(".attributes > ul > li")
    assert any(
        "(0010,0010)" in line and "Patient's Name" in line and "Müller, Jörg" in line for line in lines
    )
    assert not page.run("document.body.innerText.includes('Pixel Spacing')")
    page.click("summary", "Shared Functional Groups")
    page.click("summary", "Pixel Measures")
    page.wait("document.body.innerText.includes('Pixel Spacing')")
    write_into(page, "input[name=filter]", "spacing")
    page.wait("document.querySelectorAll('.attributes li').length === 1")
    assert "Pixel Measures Sequence 1" in page.text(".attributes li")


def pixels(page):
    """The sum of the shown picture's red values."""
    return page.run(
        "(image => { const canvas = document.createElement('canvas');"
        " [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " const {data} = context.getImageData(0, 0, canvas.width, canvas.height);"
        " return data.filter((_, at) => at % 4 === 0).reduce((one, other) => one + other, 0) })"
        "(document.querySelector('img.picture'))"
    )


def slide_to(page, name, value):
    page.wait(f"document.querySelector('input[name={name}]')")
    page.run(
        f"(field => {{ field.value = {value}; field.dispatchEvent(new Event('input')) }})"
        f"(document.querySelector('input[name={name}]'))"
    )


def shown(page, *words):
    """Waits until the URL of the picture has these words."""
    ready = " && ".join(f"document.querySelector('img.picture').src.includes('{word}')" for word in words)
    page.wait(f"{ready} && document.querySelector('img.picture').complete")


def test_the_preview_has_a_window_and_a_slider_through_the_series(page):
    open_instance(page, CT_STUDY, CT_SERIES, CT_INSTANCES[0])
    shown(page, CT_INSTANCES[0])
    before = pixels(page)
    slide_to(page, "center", -500)
    shown(page, "window=-500%2C400")
    assert pixels(page) > before  # a lower centre is brighter
    slide_to(page, "image", 3)
    shown(page, CT_INSTANCES[2], "window=-500%2C400")
    page.wait(f"document.querySelector('.attributes').innerText.includes('{CT_INSTANCES[2]}')")
    assert page.run("location.hash").endswith(CT_INSTANCES[2])


def test_the_preview_shows_each_frame_and_colours_have_no_window(page):
    open_instance(page, SLIDE_STUDY, SLIDE_SERIES, SLIDE)
    shown(page, "frames/1/")
    before = pixels(page)
    slide_to(page, "frame", 4)
    shown(page, "frames/4/")
    assert pixels(page) != before
    assert not page.run("document.querySelector('input[name=center]')")


def test_a_report_is_text_and_a_document_opens(page, server):
    made = world.dataset(world.SecondaryCaptureImageStorage, *report_uids())
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    made.Modality, made.ValueType, made.ContinuityOfContent = "SR", "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = [world.code("126000", "DCM", "Imaging Measurement Report")]
    world.store(f"{server.url}/studies", [world.file_of(made)])
    open_instance(page, *report_uids())
    page.wait("document.querySelector('iframe.report')")
    page.wait("performance.getEntriesByType('resource').some(each => each.name.endsWith('/rendered'))")
    assert page.run("document.querySelector('iframe').sandbox.length") == 0  # nothing is allowed
    open_instance(page, world.OTHER_STUDY, world.LETTER_SERIES, world.LETTER)
    link = page.wait("document.querySelector('image-preview a')?.href")
    assert ask(link, Accept="text/html,*/*").body == world.PDF


def test_a_study_opens_in_the_viewer_if_there_is_one(page, server):
    table = server.data / "viewer" / "viewer.json"
    table.parent.mkdir()
    table.write_text("{}")
    page.call("Page.reload")
    page.wait(f"{ROWS} === 4")
    page.run(f"location.hash = '#/studies/{CT_STUDY}'")
    link = page.wait("document.querySelector('a.main')?.href")
    assert link == f"{server.origin}/viewer/viewer?StudyInstanceUIDs={CT_STUDY}"
    shutil.rmtree(table.parent)


def test_an_instance_that_is_gone_is_a_sentence(page):
    page.run("location.hash = '#/studies/1.2/series/1.2.3/instances/1.2.3.4'")
    page.wait("document.querySelector('[role=alert]')?.innerText.includes('no such SOP instance')")
    page.press("Escape")
    page.wait("document.querySelector('h1')?.innerText.includes('does not exist')")


def test_the_attributes_of_many_frames_are_loaded_on_request(page, server):
    """The metadata of a large slide has many megabytes."""
    made = world.dataset(world.SecondaryCaptureImageStorage, *report_uids())
    made.Modality, made.InstanceNumber, made.NumberOfFrames = "OT", "1", "2001"
    made.Rows = made.Columns = made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", bytes(2001 * 64)
    made["PixelData"].VR = "OB"
    world.store(f"{server.url}/studies", [world.file_of(made)])
    study, series, instance = report_uids()
    page.run(f"location.hash = '#/studies/{study}/series/{series}/instances/{instance}'")
    page.wait("document.querySelector('.tree-place').innerText.includes('2,001 frames')")
    slide_to(page, "frame", 2001)
    shown(page, "frames/2001/")
    page.click(".tree-place button")
    page.wait("document.querySelector('.attributes li')")


def test_an_instance_without_pixels_says_so(page):
    open_instance(page, EVIL_STUDY, f"{EVIL_STUDY}.1", f"{EVIL_STUDY}.1.1")
    page.wait("document.querySelector('image-preview').innerText.includes('no picture')")


def test_markup_in_values_stays_text(page):
    """In the list, the study, its series, the attributes and the question before a deletion."""
    assert [page.texts(f"td.{each}")[-1] for each in ("name", "description")] == [EVIL_NAME, EVIL]
    page.click("tbody tr:last-child a")
    page.wait("document.querySelector('a.instance')")
    assert page.text("study-view h1") == EVIL_NAME
    page.click("button.danger-text")
    assert EVIL in page.wait("document.querySelector('dialog[open]')?.innerText")
    page.press("Escape")
    page.click("a.instance")
    page.wait(f"document.querySelector('.attributes')?.innerText.includes({json.dumps(EVIL)})")
    assert not page.run("document.querySelector('img[src=x]')")


# -- changes


def uploaded(page, number):
    page.wait(f"document.querySelectorAll('.uploads .{number[1]}').length === {number[0]}")


def test_files_are_uploaded_with_a_result_for_each(page, server, tmp_path):
    good, text, known = tmp_path / "new.dcm", tmp_path / "text.txt", tmp_path / "known.dcm"
    good.write_bytes(world.file_of(new_study(1)))
    text.write_text("no DICOM")
    known.write_bytes(world.file_of(world.ct(1)))
    page.click("button.upload")
    page.choose("input[name=files]", [good, text, known])
    page.wait("document.querySelectorAll('.uploads .failed').length === 2")
    page.wait("document.querySelectorAll('.uploads .done').length === 1")
    results = dict(each.split("\n")[:2] for each in page.texts(".uploads .what"))
    assert "already stored" in results["known.dcm"]
    assert "not a DICOM Part 10 file" in results["text.txt"]
    page.wait(f"{ROWS} === 5")  # the list has the new study without a reload
    page.click(".uploads .done a")
    page.wait("document.querySelector('study-view h1').innerText === 'Upload, 1'")
    text.write_bytes(world.file_of(new_study(2)))
    page.choose("input[name=files]", [text])  # the same name again
    page.wait("document.querySelectorAll('.uploads .done').length === 2")


def test_a_dropped_folder_is_read_with_its_folders(page, server, tmp_path):
    (tmp_path / "disc" / "inner").mkdir(parents=True)
    for number, place in ((3, "a"), (4, "inner/b")):
        (tmp_path / "disc" / place).write_bytes(world.file_of(new_study(number)))
    dropped = {"items": [], "files": [str(tmp_path / "disc")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=400, y=300, data=dropped)
    page.wait("document.querySelectorAll('.uploads .done').length === 2")
    assert sorted(page.texts(".uploads .file")) == ["disc/a", "disc/inner/b"]
    for number in (3, 4):
        assert is_stored(server, new_study(number).StudyInstanceUID)


def test_an_upload_shows_progress_can_be_cancelled_and_retried(page, server, tmp_path):
    large = new_study(5)
    large.Rows, large.Columns, large.PixelData = 1024, 1024, bytes(2 << 20)
    path = tmp_path / "large.dcm"
    path.write_bytes(world.file_of(large))
    page.call("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    page.call("Network.emulateNetworkConditions", **slow)
    page.click("button.upload")
    page.choose("input[name=files]", [path])
    page.wait("parseInt(document.querySelector('.uploads .sending .result')?.innerText.split(' ')[1]) > 0")
    page.click(".uploads button", "Cancel")
    page.wait("document.querySelector('.uploads .cancelled')")
    page.call("Network.emulateNetworkConditions", **(slow | {"uploadThroughput": -1}))
    assert not is_stored(server, large.StudyInstanceUID)
    page.click(".uploads button", "Retry")
    page.wait("document.querySelector('.uploads .done')")
    assert is_stored(server, large.StudyInstanceUID)


def test_a_deletion_asks_first(page, server):
    made = new_study(6)
    world.store(f"{server.url}/studies", [world.file_of(made)])
    page.run(f"location.hash = '#/studies/{made.StudyInstanceUID}'")
    page.click("button.danger-text")
    assert "1 instance" in page.wait("document.querySelector('dialog[open]')?.innerText")
    page.click("dialog button", "Keep")
    page.wait("!document.querySelector('dialog')")
    assert is_stored(server, made.StudyInstanceUID)
    page.click("button.danger-text")
    page.click("dialog button", "Delete")
    page.wait(f"{ROWS} === 4")
    assert not is_stored(server, made.StudyInstanceUID)


def test_a_uid_is_copied(page, server):
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.call("Browser.grantPermissions", origin=server.origin, permissions=permissions)
    page.run(f"location.hash = '#/studies/{CT_STUDY}'")
    page.click("button", "Copy UID")
    page.wait("document.querySelector('#messages').innerText.includes('Copied')")
    assert page.run("navigator.clipboard.readText()") == CT_STUDY


# -- readers


def test_chinese_is_chosen_by_the_browser_or_by_the_reader(page, server):
    page.click("button.language")
    page.wait("document.documentElement.lang === 'zh-Hans'")
    assert "患者姓名" in page.texts("label span")
    page.call("Page.reload")
    page.wait("document.querySelector('button.upload')?.innerText === '上传'")
    page.click("button.language")
    page.wait("document.querySelector('button.upload').innerText === 'Upload'")
    page.run("localStorage.clear()")
    agent = page.run("navigator.userAgent")
    page.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage="zh-CN,zh;q=0.9")
    page.call("Page.reload")
    page.wait("document.querySelector('button.upload')?.innerText === '上传'")
    page.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage="en-US")


def test_both_languages_have_the_same_words(page):
    keys = page.run(
        "import('./page/words.js').then(({WORDS}) => [WORDS.en, WORDS.zh].map(words =>"
        " Object.entries(words).map(([key, text]) => [key, text.match(/{\\w+}/g)?.sort() ?? []])))"
    )
    assert sorted(keys[0]) == sorted(keys[1])


def test_a_phone_never_scrolls_sideways(page):
    page.size(NARROW, 740)
    width = "document.documentElement.scrollWidth"
    assert page.run(width) <= NARROW
    page.run(f"location.hash = '#/studies/{EVIL_STUDY}'")
    page.wait("document.querySelector('a.instance')")
    assert page.run(width) <= NARROW
    open_instance(page, SLIDE_STUDY, SLIDE_SERIES, SLIDE)
    for summary in ("Shared Functional Groups", "Pixel Measures"):
        page.click("summary", summary)
    page.click("button.upload")
    assert page.run(width) <= NARROW
    outside = (
        "[...document.querySelectorAll('main *')].filter(each => each.getBoundingClientRect().right > 361)"
    )
    assert page.run(f"{outside}.length") == 0


def test_a_server_that_allows_no_changes_offers_none(browser, server, tmp_path):
    """The store was filled by another server before."""
    copied = tmp_path / "server"
    first = start_server(copied, workers=1)
    world.store(f"{first.url}/studies", [world.file_of(world.ct(1))])
    first.end()
    running = start_server(copied, "--read-only", workers=1)
    try:
        browser.open(f"{running.origin}/#/studies/{CT_STUDY}")
        browser.wait("document.querySelector('a.instance')")
        browser.wait("document.querySelector('header').innerText.includes('read-only')")
        words = browser.texts("button")
        assert not [each for each in words if each in ("Upload", "Delete")]
        assert "Copy UID" in words
    finally:
        running.end()


# -- accessibility (WCAG 2.2 AA), by axe-core


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The text of the library, installed from the npm registry."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [
        npm,
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(folder),
        f"axe-core@{AXE}",
    ]
    done = subprocess.run(command, timeout=90, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the npm registry cannot be reached: {done.stderr[:200]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def problems(page, axe):
    """Serious and critical findings, with the elements that have them."""
    page.run(f"{axe}; 0")
    found = page.run("axe.run(document, {resultTypes: ['violations']}).then(each => each.violations)")
    return [
        (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_can_be_used_by_all(page, server, axe, tmp_path, scheme, language):
    page.prefer(scheme)
    if language == "zh":
        page.click("button.language")
    assert problems(page, axe) == []
    write_into(page, "input[name=name]", "none of them")
    page.wait(f"{ROWS} === 0")
    text = tmp_path / "text.txt"
    text.write_text("no DICOM")
    page.click("button.upload")
    page.choose("input[name=files]", [text])
    page.wait("document.querySelector('.uploads .failed')")
    assert problems(page, axe) == []
    page.run(f"location.hash = '#/studies/{CT_STUDY}'")
    page.wait("document.querySelector('.instance img')?.naturalWidth")
    assert problems(page, axe) == []
    page.click("button.danger-text")
    page.wait("document.querySelector('dialog[open]')")
    assert problems(page, axe) == []
    page.press("Escape")
    open_instance(page, CT_STUDY, CT_SERIES, CT_INSTANCES[0])
    shown(page, CT_INSTANCES[0])
    assert problems(page, axe) == []
    page.prefer("")

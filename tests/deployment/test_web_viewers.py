"""Web viewers from npm in Chromium: OHIF, installed by the verb `viewer`, lists, paints and uploads what the
store has. OHIF and VolView do the same from another origin.

Pixels are compared with their source: those that the viewer has decoded, and those on its canvas.
"""

import base64
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import clinic as world
import numpy as np
import pytest
from chromium import Chromium, found
from live_server import ROOT, environment, executable, start_server
from PIL import Image
from viewer_archive import (
    BLOCK,
    COLOUR_SYNTAXES,
    CT,
    DOCUMENT,
    LARGE,
    LARGE_SIDE,
    PART10,
    SIDE,
    STUDY,
    SYNTAXES,
    VOLUME,
    fill,
    hounsfield,
    noise,
    quarters,
)

WITHIN = 60.0  # seconds; the first page of the viewer parses 17 MB of code
VOLVIEW = "volview@4.4.1"
VIEWPORT = "cornerstone.getRenderingEngines()[0].getViewports()[0]"
# The first component of the canvas in the middle of each block, column by column.
PAINTED = f"""(() => {{
  const viewport = {VIEWPORT}, image = viewport.getImageData().imageData;
  viewport.render();
  const pen = viewport.getCanvas().getContext("2d"), found = [];
  for (let x = {BLOCK // 2}; x < {SIDE}; x += {BLOCK}) {{
    for (let y = {BLOCK // 2}; y < {SIDE}; y += {BLOCK}) {{
      const place = viewport.worldToCanvas(image.indexToWorld([x, y, 0]));
      const [left, top] = place.map(each => Math.round(each * devicePixelRatio));
      found.push(pen.getImageData(left, top, 1, 1).data[0]);
    }}
  }}
  return found;
}})()"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the viewer in it, which npm has downloaded."""
    folder = tmp_path_factory.mktemp("ohif")
    command = [*executable(), "viewer", "install", "--data", str(folder / "data")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class OwnHost(http.server.SimpleHTTPRequestHandler):
    """A web server of files, with deep links of the viewer."""

    def send_head(self):
        if self.path.startswith("/viewer/") and not Path(self.translate_path(self.path)).is_file():
            self.path = "/viewer/index.html"
        return super().send_head()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pages(data):
    """The origin and the folder of a host of its own: VolView at /, OHIF at /viewer/."""
    subprocess.run(["npm", "pack", VOLVIEW, "--silent"], cwd=data, check=True, timeout=300)
    (tarball,) = data.glob("volview-*.tgz")
    subprocess.run(["tar", "xzf", tarball], cwd=data, check=True)
    folder = data / "package" / "dist"
    table = json.loads((data / "data" / "viewer" / "viewer.json").read_bytes())
    shutil.copytree(data / "data" / "viewer" / table["folder"], folder / "viewer")
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(OwnHost, directory=folder))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}", folder
    host.shutdown()
    host.server_close()


@pytest.fixture(scope="module")
def server(data, pages):
    running = start_server(data, "--cors-origins", pages[0])
    fill(running)
    yield running
    running.end()


# -- the browser


class Viewer(Chromium):
    """OHIF in a window of fixed size. The window is kept, so code is loaded from its cache."""

    def __init__(self):
        super().__init__("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
        self.size(1400, 900)

    def until(self, condition):
        """The result of `condition`, as soon as it is true."""
        end = time.monotonic() + WITHIN
        while not (found := condition()):
            assert time.monotonic() < end, f"{self.text('body')}\n{self.said}"
            time.sleep(0.1)
        return found

    def shows(self, script):
        """The value of an expression, as soon as it is true."""
        guarded = f"(async () => {{ try {{ return await {script} }} catch {{ return null }} }})()"
        return self.until(lambda: self.run(guarded))

    def box(self, selector):
        """Left, top, width and height on the page."""
        rectangle = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return self.shows(f"(({{x, y, width, height}}) => width && [x, y, width, height])({rectangle})")

    def says(self, *texts):
        self.shows(f"{json.dumps(texts)}.every(text => document.body.innerText.includes(text))")

    def open_study(self, server, study, place="viewer"):
        self.said.clear()
        self.open(f"{server.origin}/viewer/{place}?StudyInstanceUIDs={study}")

    def errors(self):
        return [text for text in self.said if "Content Security Policy" in text or "Uncaught" in text]

    def pixels(self):
        """The page as it is painted: rows, columns, red green blue."""
        taken = self.call("Page.captureScreenshot", format="png")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def viewer():
    if found() is None:
        pytest.skip("no Chromium is installed")
    started = Viewer()
    yield started
    started.close()


# -- tests


def test_the_study_list(viewer, server):
    viewer.open(f"{server.origin}/viewer/")
    viewer.says("1-7 of 7", r"CT\RTSTRUCT\SEG\SR", "Müller, Jörg")
    assert viewer.errors() == []


def values_of(viewer, side):
    """The values of the image on display, as the viewer has decoded them."""
    found = viewer.shows(f"Array.from({VIEWPORT}.getImageData().scalarData)")
    return np.array(found).reshape(side, side)


def decoded(viewer, number):
    """The values of a slice, which is then on display."""
    viewer.shows(
        f"(async () => {{ const viewport = {VIEWPORT}; const ids = viewport.getImageIds();"
        f" await viewport.setImageIdIndex(ids.findIndex(id => id.includes('/{CT}.{number}/')));"
        " return true })()"
    )
    return values_of(viewer, SIDE)


def test_every_transfer_syntax_is_decoded_and_painted_as_it_was_stored(viewer, server):
    """The deep link opens the study at once."""
    viewer.open_study(server, STUDY)
    viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
    for number, syntax in enumerate(SYNTAXES, 1):
        assert (decoded(viewer, number) == hounsfield(number)).all(), syntax
    painted = viewer.run(PAINTED)
    values = hounsfield(len(SYNTAXES))[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].T.ravel()
    expected = np.clip((values + 160) / 400, 0, 1) * 255
    assert np.abs(np.array(painted) - expected).max() <= 3
    assert viewer.errors() == []


def test_a_segmentation(viewer, server):
    viewer.open_study(server, STUDY)
    voxels = viewer.shows(
        "(async () => { const set = services.displaySetService.getActiveDisplaySets()"
        ".find(each => each.Modality === 'SEG'); await set.load({headers: {}});"
        " return set.labelMapImages.flat().map(each => each.voxelManager.getScalarData()"
        ".reduce((sum, value) => sum + value, 0)) })()"
    )
    assert sum(voxels) == len(SYNTAXES) * 2 * BLOCK * BLOCK
    assert viewer.errors() == []


def test_measurements_of_a_report(viewer, server):
    viewer.open_study(server, STUDY)
    labels = viewer.shows(
        "(async () => { const set = services.displaySetService.getActiveDisplaySets()"
        ".find(each => each.Modality === 'SR'); await set.load();"
        " return set.measurements.map(each => each.labels.map(label => label.value).join()) })()"
    )
    assert len(labels) == 1
    assert "15" in labels[0]
    assert viewer.errors() == []


def test_contours(viewer, server):
    viewer.open_study(server, STUDY)
    (drawn,) = viewer.shows(
        "(async () => { const set = services.displaySetService.getActiveDisplaySets()"
        ".find(each => each.Modality === 'RTSTRUCT'); await set.load({headers: {}});"
        " return set.structureSet.ROIContours.map(each => [each.ROIName, each.contourPoints]) })()"
    )
    assert (drawn[0], len(drawn[1])) == ("lung", len(SYNTAXES))
    assert [(each["x"], each["y"]) for each in drawn[1][0]["points"]] == [(5, 5), (20, 5), (20, 20), (5, 20)]
    assert viewer.errors() == []


@pytest.mark.parametrize("number", range(len(COLOUR_SYNTAXES)))
def test_a_picture_in_colours(viewer, server, number):
    viewer.open_study(server, f"{world.ROOT}.85.{number}")
    found = viewer.shows(f"Array.from({VIEWPORT}.getImageData().scalarData)")
    assert np.abs(np.array(found).reshape(SIDE, SIDE, 3) - quarters().astype(int)).max() <= 3
    assert viewer.errors() == []


def test_a_pdf_is_shown(viewer, server):
    viewer.open_study(server, DOCUMENT)
    viewer.shows("document.querySelector('object[type=\"application/pdf\"]').data")

    def red():
        """A layer of help darkens the page."""
        pixels = viewer.pixels()
        others = pixels[..., 1:].max(axis=-1)
        return (pixels[..., 0] > 4 * others + 20).mean() > 0.1

    viewer.until(red)
    assert viewer.errors() == []


def test_a_slide_is_painted(viewer, server):
    """The corners of the four tiles that meet in the middle. The slide is upside down on its glass."""
    viewer.open_study(server, world.SLIDE_STUDY, "microscopy")
    tiles = [
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in world.tiles(1, 4)
    ]
    expected = [tiles[3][9, 9], tiles[2][9, 54], tiles[1][54, 9], tiles[0][54, 54]]

    def painted():
        x, y, width, height = viewer.box("canvas")
        pixels, row, column = viewer.pixels(), round(y + height / 2), round(x + width / 2)
        found = [pixels[row + down, column + right] for down in (-30, 30) for right in (-30, 30)]
        return np.abs(np.array(found) - np.array(expected)).max() <= 25

    viewer.until(painted)
    assert viewer.errors() == []


def test_upload(viewer, server, tmp_path):
    made = world.ct(2)
    made.StudyInstanceUID, made.SeriesInstanceUID = f"{world.ROOT}.82", f"{world.ROOT}.82.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{world.ROOT}.82.1.1"
    (tmp_path / "upload.dcm").write_bytes(world.file_of(made))
    viewer.open(f"{server.origin}/viewer/")
    viewer.says("Upload", "1-7 of 7")
    viewer.click("button", "Upload")
    viewer.shows("document.querySelector('input[type=file]').multiple")
    viewer.choose("input[type=file]", [tmp_path / "upload.dcm"])
    viewer.says("1 file completed")
    path = f"/studies/{world.ROOT}.82/series/{world.ROOT}.82.1/instances/{world.ROOT}.82.1.1"
    # The viewer counts a file when its last byte is sent.
    viewer.until(lambda: world.ask(server.url + path, Accept=PART10).status == 200)
    stored = world.ask(server.url + path, Accept=PART10)
    assert stored.parts()[0][1] == world.file_of(made)


def test_ohif_on_another_origin(viewer, server, pages):
    """Its configuration is the file of docs/viewers.md, with this server in it."""
    origin, folder = pages
    text = (ROOT / "docs" / "viewers.md").read_text()
    (config,) = re.findall(r"```js\n(window\.config = .*?)```", text, re.DOTALL)
    (folder / "viewer" / "app-config.js").write_text(config.replace("https://pacs.example", server.origin))
    viewer.open(f"{origin}/viewer/viewer?StudyInstanceUIDs={STUDY}")
    viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
    for number in (1, 5):
        assert (decoded(viewer, number) == hounsfield(number)).all()
    assert viewer.errors() == []


def test_volview_on_another_origin(viewer, server, pages):
    """Blocks of the slice in the middle, in the square of the first view."""
    viewer.said.clear()
    viewer.open(f"{pages[0]}/?dicomweb={server.url}/studies/{VOLUME}/series/{VOLUME}.1")
    expected = (hounsfield(3)[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].ravel() + 160) / 400 * 255

    def painted():
        x, y, width, height = viewer.box("canvas")
        scale, pixels = min(width, height) / SIDE, viewer.pixels()
        left, top = x + (width - scale * SIDE) / 2, y + (height - scale * SIDE) / 2
        middles = range(BLOCK // 2, SIDE, BLOCK)
        found = [
            pixels[round(top + row * scale), round(left + column * scale)].mean()
            for row in middles
            for column in middles
        ]
        return np.abs(np.array(found) - expected).max() <= 12

    viewer.until(painted)


@contextmanager
def served(data, *flags):
    running = start_server(data, *flags)
    try:
        yield running
    finally:
        running.end()


def test_progressive_images_arrive_as_htj2k(viewer, server, data):
    """The first picture comes from a range of bytes. In the end the pixels are those that were stored."""
    assert server.end() == 0
    with served(data, "--viewer-progressive", "--read-only") as progressive:
        viewer.open_study(progressive, STUDY)
        viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
        for number in (1, 3):
            viewer.until(lambda number=number: (decoded(viewer, number) == hounsfield(number)).all())
        asked = viewer.run("performance.getEntriesByType('resource').map(each => each.name)")
        frames = [url for url in asked if "/frames/" in url]
        assert frames
        assert all("accept=image/jphc;transfer-syntax=1.2.840.10008.1.2.4.202" in url for url in frames)
        viewer.open(f"{progressive.origin}/viewer/")
        viewer.says("1-8 of 8")
        assert "Upload" not in viewer.text("body")
        viewer.open_study(progressive, LARGE)
        viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length === {LARGE_SIDE} ** 2")
        viewer.until(lambda: (values_of(viewer, LARGE_SIDE) == noise()).all())
        ranges = re.findall(
            rf'"GET /v2/studies/{LARGE}/.*/frames/1" 206 ([0-9]+) ', progressive.log.read_text()
        )
        assert "32768" in ranges
        assert len(ranges) >= 2

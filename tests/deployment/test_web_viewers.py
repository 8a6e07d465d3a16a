"""Web viewers from npm in Chromium: OHIF, installed by the verb `viewer`, lists and paints studies and
uploads a file. OHIF and VolView do the same from another origin.

Pixels are compared with their source: those that the viewer has decoded, and those on its canvas.
"""

import re
import shutil
import subprocess
from contextlib import contextmanager

import clinic as world
import numpy as np
import pytest
from live_server import ROOT, start_server
from ohif_window import VIEWPORT, files_of, hosted
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
    middle_of_slide,
    noise,
    quarters,
    windowed,
)

VOLVIEW = "volview@4.4.1"


@pytest.fixture(scope="module")
def pages(ohif):
    """The origin and the folder of a host of its own: VolView at /, OHIF at /viewer/."""
    subprocess.run(["npm", "pack", VOLVIEW, "--silent"], cwd=ohif, check=True, timeout=300)
    (tarball,) = ohif.glob("volview-*.tgz")
    subprocess.run(["tar", "xzf", tarball], cwd=ohif, check=True)
    folder = ohif / "package" / "dist"
    shutil.copytree(files_of(ohif), folder / "viewer")
    with hosted(folder) as origin:
        yield origin, folder


@pytest.fixture(scope="module")
def server(ohif, pages):
    running = start_server(ohif, "--cors-origins", pages[0])
    fill(running)
    yield running
    running.end()


# -- tests


def test_the_study_list(viewer, server):
    viewer.open(f"{server.origin}/viewer/")
    viewer.says("1-7 of 7", r"CT\RTSTRUCT\SEG\SR", "Müller, Jörg")
    assert viewer.errors() == []


def decoded(viewer, number):
    """The values of a slice, which is then on display."""
    return viewer.image(f"/{CT}.{number}/").reshape(SIDE, SIDE)


def test_every_transfer_syntax_is_decoded_and_painted_as_it_was_stored(viewer, server):
    """The deep link opens the study at once."""
    viewer.open_study(server, STUDY)
    viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
    for number, syntax in enumerate(SYNTAXES, 1):
        assert (decoded(viewer, number) == hounsfield(number)).all(), syntax
    viewer.until(lambda: np.abs(viewer.painted(SIDE, BLOCK)[..., 0] - windowed(len(SYNTAXES))).max() < 1.5)
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
    viewer.open_study(server, world.SLIDE_STUDY, "microscopy")
    viewer.until(lambda: np.abs(viewer.around_the_middle() - middle_of_slide()).max() <= 25)
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
    expected = windowed(3).ravel()

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
def served(folder, *flags):
    running = start_server(folder, *flags)
    try:
        yield running
    finally:
        running.end()


def test_progressive_images_arrive_as_htj2k(viewer, server, ohif):
    """The first picture comes from a range of bytes. In the end the pixels are those that were stored."""
    assert server.end() == 0
    with served(ohif, "--viewer-progressive", "--read-only") as progressive:
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
        viewer.until(lambda: (viewer.image(f"/{LARGE}.1.1/").reshape(noise().shape) == noise()).all())
        ranges = re.findall(
            rf'"GET /v2/studies/{LARGE}/.*/frames/1" 206 ([0-9]+) ', progressive.log.read_text()
        )
        assert "32768" in ranges
        assert len(ranges) >= 2

"""OHIF, installed by the verb `viewer` from npm, in Chromium: lists, paints and uploads what the store has.

Pixels are compared with their source: those that the viewer has decoded, and those on its canvas.
"""

import base64
import io
import json
import subprocess
import time
from contextlib import contextmanager

import clinic as world
import highdicom
import numpy as np
import pydicom
import pytest
from chromium import Chromium, found
from live_server import environment, executable, start_server
from PIL import Image, ImageCms
from pydicom.sr.codedict import codes

WITHIN = 60.0  # seconds; the first page of the viewer parses 17 MB of code
SIDE, BLOCK = 64, 16
STUDY = f"{world.ROOT}.80"
CT, SEG, SR = (f"{STUDY}.{number}" for number in (1, 2, 3))
DOCUMENT = f"{world.ROOT}.81"
SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.5",
)
PART10 = 'multipart/related; type="application/dicom"'
RED = (250, 20, 30)
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


# -- the archive


def hounsfield(number):
    """16 blocks of different values, in the window of 40 +- 200."""
    rows, columns = np.mgrid[:SIDE, :SIDE] // BLOCK
    return (columns * 4 + rows) * 20 + number * 3 - 140


def slice_of(number):
    made = world.ct(1)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = STUDY, CT, "P-80"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{CT}.{number}"
    made.InstanceNumber = str(number)
    made.ImagePositionPatient = [0.0, 0.0, float(number)]
    return world.with_pixels(made, (hounsfield(number) + 1024).astype(np.uint16), bits_stored=12)


def segmentation(sources):
    mask = np.zeros((len(sources), SIDE, SIDE), np.uint8)
    mask[:, BLOCK : 3 * BLOCK, BLOCK : 2 * BLOCK] = 1
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="lung",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Lung,
        algorithm_type="MANUAL",
    )
    made = highdicom.seg.Segmentation(
        *(sources, mask, "BINARY", [segment], SEG, 2, f"{SEG}.1", 1, "maker", "model", "1", "1"),
    )
    made.SeriesDescription = "organs"
    return made


def report(sources):
    person = highdicom.sr.PersonObserverIdentifyingAttributes("Ref^Anna")
    region = highdicom.sr.ImageRegion(
        highdicom.sr.GraphicTypeValues.POLYLINE,
        np.array([[10.0, 10.0], [40.0, 10.0]]),
        highdicom.sr.SourceImageForRegion(sources[0].SOPClassUID, sources[0].SOPInstanceUID),
    )
    group = highdicom.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        highdicom.sr.TrackingIdentifier(f"{SR}.9", "Cornerstone3DTools@^0.1.0:Length"),
        referenced_region=region,
        measurements=[highdicom.sr.Measurement(codes.SCT.Length, 15.0, codes.UCUM.Millimeter)],
        finding_type=codes.SCT.Organ,
    )
    content = highdicom.sr.MeasurementReport(
        highdicom.sr.ObservationContext(highdicom.sr.ObserverContext(codes.DCM.Person, person)),
        codes.LN.CTUnspecifiedBodyRegion,
        [group],
    )
    return highdicom.sr.Comprehensive3DSR(sources, content[0], SR, 3, f"{SR}.1", 1, "maker")


def document():
    stream = io.BytesIO()
    Image.new("RGB", (400, 400), RED).save(stream, "PDF")
    made = world.letter()
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = DOCUMENT, f"{DOCUMENT}.1", "P-81"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{DOCUMENT}.1.1"
    made.EncapsulatedDocument = stream.getvalue() + b"\0" * (stream.tell() % 2)
    made.EncapsulatedDocumentLength = stream.tell()
    return made


def slides():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for made in world.everything()[3:5]:
        made.OpticalPathSequence[0].ICCProfile = profile
        yield made


def in_syntax(url, number, syntax):
    """The file of a slice in another transfer syntax."""
    wanted = f"{PART10}; transfer-syntax={syntax}"
    path = f"/studies/{STUDY}/series/{CT}/instances/{CT}.{number}"
    return world.ask(url + path, Accept=wanted).parts()[0][1]


def fill(server):
    """Slice N of the series is in the transfer syntax N of SYNTAXES."""
    made = [slice_of(number) for number in range(1, len(SYNTAXES) + 1)]
    world.store(f"{server.url}/studies", map(world.file_of, made))
    coded = [in_syntax(server.url, number, syntax) for number, syntax in enumerate(SYNTAXES, 1)]
    assert world.ask(f"{server.url}/studies/{STUDY}", "DELETE").status == 204
    sources = [pydicom.dcmread(io.BytesIO(world.file_of(each))) for each in made]
    more = [segmentation(sources), report(sources), document(), *slides()]
    world.store(f"{server.url}/studies", [*coded, *map(world.file_of, more)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the viewer in it, which npm has downloaded."""
    folder = tmp_path_factory.mktemp("ohif")
    command = [*executable(), "viewer", "install", "--data", str(folder / "data")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(data):
    running = start_server(data)
    fill(running)
    yield running
    running.end()


# -- the browser


class Viewer(Chromium):
    """OHIF in a window of fixed size. The window is kept, so code is loaded from its cache."""

    def __init__(self):
        super().__init__("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
        self.size(1400, 900)

    def shows(self, script):
        until = time.monotonic() + WITHIN
        while True:
            value = self.run(f"(async () => {{ try {{ return await {script} }} catch {{ return null }} }})()")
            if value or value == 0:
                return value
            if time.monotonic() > until:
                raise AssertionError(f"{script}: {self.text('body')}\n{self.said}")
            time.sleep(0.1)

    def says(self, *texts):
        self.shows(f"{json.dumps(texts)}.every(text => document.body.innerText.includes(text))")

    def open_study(self, server, study, place="viewer"):
        self.said.clear()
        self.open(f"{server.origin}/viewer/{place}?StudyInstanceUIDs={study}")

    def errors(self):
        return [text for text in self.said if "Content Security Policy" in text or "Uncaught" in text]

    def picture_now(self):
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
    viewer.says("1-3 of 3", r"CT\SEG\SR", "Müller, Jörg")
    assert viewer.errors() == []


def decoded(viewer, number):
    """The values of a slice, as the viewer has decoded them."""
    found = viewer.shows(
        f"(async () => {{ const viewport = {VIEWPORT}; const ids = viewport.getImageIds(); "
        f"await viewport.setImageIdIndex(ids.findIndex(id => id.includes('/{CT}.{number}/'))); "
        "return Array.from(viewport.getImageData().scalarData) })()"
    )
    return np.array(found).reshape(SIDE, SIDE)


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


def test_a_pdf_is_shown(viewer, server):
    viewer.open_study(server, DOCUMENT)
    viewer.shows("document.querySelector('object[type=\"application/pdf\"]').data")
    until = time.monotonic() + WITHIN
    while True:  # a layer of help darkens the page
        pixels = viewer.picture_now()
        red = (pixels[..., 0] > 4 * pixels[..., 1] + 20) & (pixels[..., 0] > 4 * pixels[..., 2] + 20)
        if red.mean() > 0.1:
            break
        assert time.monotonic() < until, viewer.said
        time.sleep(0.2)
    assert viewer.errors() == []


def test_a_slide_is_painted(viewer, server):
    viewer.open_study(server, world.SLIDE_STUDY, "microscopy")
    tiles = [
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in world.tiles(1, 4)
    ]
    until = time.monotonic() + WITHIN
    viewer.shows("document.querySelector('canvas').width")
    while True:
        box = viewer.run(
            "(box => [box.x, box.y, box.width, box.height])"
            "(document.querySelector('canvas').getBoundingClientRect())"
        )
        pixels = viewer.picture_now()
        middle = (round(box[1] + box[3] / 2), round(box[0] + box[2] / 2))
        near = [pixels[middle[0] + down, middle[1] + right] for down in (-30, 30) for right in (-30, 30)]
        source = [tiles[3][9, 9], tiles[2][9, 54], tiles[1][54, 9], tiles[0][54, 54]]  # upside down
        if all(np.abs(one - other).max() <= 25 for one, other in zip(near, source, strict=True)):
            break
        assert time.monotonic() < until, (near, source, viewer.said)
        time.sleep(0.2)
    assert viewer.errors() == []


def test_upload(viewer, server, tmp_path):
    made = world.ct(2)
    made.StudyInstanceUID, made.SeriesInstanceUID = f"{world.ROOT}.82", f"{world.ROOT}.82.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{world.ROOT}.82.1.1"
    (tmp_path / "upload.dcm").write_bytes(world.file_of(made))
    viewer.open(f"{server.origin}/viewer/")
    viewer.says("Upload", "1-3 of 3")
    viewer.click("button", "Upload")
    viewer.shows("document.querySelector('input[type=file]').multiple")
    viewer.choose("input[type=file]", [tmp_path / "upload.dcm"])
    viewer.says("1 file completed")
    until = time.monotonic() + WITHIN  # the viewer counts a file when its last byte is sent
    path = f"/studies/{world.ROOT}.82/series/{world.ROOT}.82.1/instances/{world.ROOT}.82.1.1"
    while (stored := world.ask(server.url + path, Accept=PART10)).status != 200:
        assert time.monotonic() < until, stored.body
        time.sleep(0.1)
    assert stored.parts()[0][1] == world.file_of(made)


@contextmanager
def served(data, *flags):
    running = start_server(data, *flags)
    try:
        yield running
    finally:
        running.end()


def test_progressive_images_arrive_as_htj2k(viewer, server, data):
    assert server.end() == 0
    with served(data, "--viewer-progressive", "--read-only") as progressive:
        viewer.open_study(progressive, STUDY)
        viewer.shows(f"{VIEWPORT}.getImageData().scalarData.length")
        for number in (1, 3):
            assert (decoded(viewer, number) == hounsfield(number)).all()
        asked = viewer.run("performance.getEntriesByType('resource').map(each => each.name)")
        frames = [url for url in asked if "/frames/" in url]
        assert frames
        assert all("accept=image/jphc;transfer-syntax=1.2.840.10008.1.2.4.202" in url for url in frames)
        viewer.open(f"{progressive.origin}/viewer/")
        viewer.says("1-4 of 4")
        assert "Upload" not in viewer.text("body")

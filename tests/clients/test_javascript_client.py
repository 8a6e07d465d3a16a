"""dicomweb-client, the JavaScript one of OHIF, dicom-microscopy-viewer and VolView, in node: it is installed
from the npm registry into a folder of the tests. node has no XMLHttpRequest, so the script brings one that
knows what the client uses of it. VolView makes these requests only: all studies, the series of a study,
the metadata of a series, the instances of a series, and an instance as image/jpeg."""

import json
import shutil
import subprocess
from pathlib import Path

import clinic as world
import pytest
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY
from live_server import start_server

VERSION = "0.11.3"
SCRIPT = Path(__file__).with_name("javascript_client.mjs")
INSTALL_WITHIN = 90  # seconds


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
    try:
        done = subprocess.run(
            [*command, f"dicomweb-client@{VERSION}"], timeout=INSTALL_WITHIN, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer in time")
    if done.returncode:
        pytest.skip(f"the npm registry cannot be reached: {done.stderr[:200]}")
    return node, folder


@pytest.fixture(scope="module")
def said(installed, server_for_writing, clinic):
    """What the script found out, by the name of each step."""
    node, folder = installed
    arguments = {
        "url": clinic.url,
        "writable": server_for_writing.url,
        "ct": [CT_STUDY, CT_SERIES, CT_INSTANCES[0]],
        "slide": [SLIDE_STUDY, SLIDE_SERIES, SLIDE],
        "palette": [world.OTHER_STUDY, world.PALETTE_SERIES, world.PALETTE],
        "file": world.file_of(world.ct(1)).hex(),
    }
    client = folder / "node_modules" / "dicomweb-client" / "build" / "dicomweb-client.js"
    done = subprocess.run(
        [node, str(SCRIPT), str(client)],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def server_for_writing(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("javascript") / "server", workers=1)
    yield running
    running.end()


def test_searches(said):
    assert [each["0020000D"]["Value"][0] for each in said["studies"]] == [CT_STUDY, world.OTHER_STUDY]
    assert [each["0020000E"]["Value"][0] for each in said["series"]] == [CT_SERIES]
    assert [each["00080018"]["Value"][0] for each in said["instances"]] == CT_INSTANCES
    everything = {each["0020000D"]["Value"][0] for each in said["everything"]}
    assert everything == {CT_STUDY, SLIDE_STUDY, world.OTHER_STUDY}
    assert said["nothing"] in ([], None, "")


def test_metadata(said):
    assert [len(said[name]) for name in ("studyMetadata", "seriesMetadata", "instanceMetadata")] == [3, 3, 1]
    assert said["instanceMetadata"][0]["00080018"]["Value"] == CT_INSTANCES[:1]


def test_instances(said):
    files = [world.file_of(world.ct(number)).hex() for number in (1, 2, 3)]
    assert said["instance"] == files[0]
    assert said["seriesInstances"] == said["studyInstances"] == files


def test_frames_and_pictures(said):
    assert said["frame"] == [world.ct_pixels(1).tobytes().hex()]
    tiles = [tile.hex() for tile in world.tiles(1, 4)]
    assert said["tiles"] == [tiles[1], tiles[3]]
    assert said["rendered"].startswith("ffd8ff")
    assert said["renderedFrame"].startswith("89504e47")


def test_bulk_data(said):
    assert said["bulk"] == [world.palette().RedPaletteColorLookupTableData.hex()]


def test_store(said):
    assert said["storedThen"] == 1


def test_errors(said):
    assert said["missing"] == 404

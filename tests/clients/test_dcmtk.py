"""dcmtk reads what the server sends, and writes what it stores: an implementation that shares no code with
pydicom, which makes the files of the clinic."""

import io
import json
import shutil
import subprocess

import clinic as world
import numpy as np
import pytest
from clinic import CT_SERIES, CT_STUDY, OTHER_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY
from PIL import Image
from pydicom import dcmread

pytestmark = pytest.mark.skipif(shutil.which("dcm2json") is None, reason="dcmtk is not installed")
OURS = {"00081190", "00083002"}  # Retrieve URL and Available Transfer Syntax UID
DECODED = {"00280004"}  # Photometric Interpretation of the tiles
SLIDE_PATH = f"/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}/instances/{SLIDE}"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def saved(folder, reply):
    """The paths of the instances in a multipart answer."""
    paths = [folder / f"{number}.dcm" for number in range(len(reply.parts()))]
    for path, (_, content) in zip(paths, reply.parts(), strict=True):
        path.write_bytes(content)
    return paths


def shown(dataset):
    """VR and values of each attribute. Bulk data have none, because dcmtk has all of them inline."""
    read = {"SQ": shown, "FL": np.float32}
    return {
        tag: (element["vr"], [read.get(element["vr"], str)(value) for value in element.get("Value", ())])
        for tag, element in dataset.items()
        if tag not in OURS
    }


@pytest.mark.parametrize(("study", "instances"), [(CT_STUDY, 3), (SLIDE_STUDY, 2), (OTHER_STUDY, 2)])
def test_metadata_are_those_that_dcmtk_reads(clinic, tmp_path, study, instances):
    url = f"{clinic.url}/studies/{study}"
    said = {one["00080018"]["Value"][0]: shown(one) for one in world.ask(f"{url}/metadata").json()}
    paths = saved(tmp_path, world.ask(url))
    assert len(paths) == len(said) == instances
    for path in paths:
        found = shown(json.loads(run("dcm2json", path)))
        metadata = said[found["00080018"][1][0]]
        differing = {tag for tag in found.keys() | metadata if found.get(tag) != metadata.get(tag)}
        assert differing == (DECODED if study == SLIDE_STUDY else set())


def test_pictures_are_those_that_dcmtk_draws(clinic, tmp_path):
    """A frame of the decoded instance, and a window of the CT."""
    (tile,) = saved(tmp_path, world.ask(clinic.url + SLIDE_PATH))
    drawn = Image.open(io.BytesIO(run("dcmj2pnm", "--frame", "2", tile)))
    reply = world.ask(f"{clinic.url}{SLIDE_PATH}/frames/2/rendered", Accept="image/png")
    assert difference(drawn, reply) <= 3
    path = f"{clinic.url}/studies/{CT_STUDY}/series/{CT_SERIES}/instances/{CT_SERIES}.1"
    (ct,) = saved(tmp_path, world.ask(path))
    drawn = Image.open(io.BytesIO(run("dcmj2pnm", "--set-window", "500", "900", ct)))
    reply = world.ask(f"{path}/rendered?window=500,900,linear", Accept="image/png")
    assert difference(drawn, reply) <= 1


def difference(drawn, reply):
    ours = Image.open(io.BytesIO(reply.body))
    assert ours.mode == drawn.mode
    return np.abs(np.asarray(ours, np.int16) - np.asarray(drawn, np.int16)).max()


def test_files_of_dcmtk_are_stored(server, tmp_path):
    """Implicit VR, big endian and deflated, with sequences of undefined length."""
    source, written = tmp_path / "source.dcm", tmp_path / "written.dcm"
    for number, option in enumerate(("+ti", "+tb", "+td"), 1):
        source.write_bytes(world.file_of(world.ct(number)))
        run("dcmconv", option, "-e", source, written)
        world.store(f"{server.url}/studies", [written.read_bytes()])
        path = f"{server.url}/studies/{CT_STUDY}/series/{CT_SERIES}/instances/{CT_SERIES}.{number}"
        (found,) = saved(tmp_path, world.ask(path))
        assert json.loads(run("dcm2json", found)) == json.loads(run("dcm2json", source))
        named = f"application/dicom; transfer-syntax={dcmread(written).file_meta.TransferSyntaxUID}"
        assert world.ask(path, Accept=named).body == written.read_bytes()

"""The gateways of docs/howto/receive-from-a-pacs.md, as the page prints them: Orthanc and storescp receive
C-STORE of DCMTK's storescu, and send on by STOW-RS."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import clinic as world
import pytest
from clinic import CT_INSTANCES, CT_STUDY
from live_server import READY_WITHIN, ROOT, environment, free_port

PAGE = ROOT / "docs" / "howto" / "receive-from-a-pacs.md"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def block(language, having):
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (found,) = [text for text in blocks if having in text]
    return found


@pytest.fixture
def files(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"{number}.dcm").write_bytes(world.file_of(world.ct(number)))
    return [str(tmp_path / f"{number}.dcm") for number in (1, 2, 3)]


def send(port, title, files):
    """C-STORE of the files, once the receiver listens."""
    command = ["storescu", "--call", title, "127.0.0.1", str(port), *files]
    wait_for(lambda: subprocess.run(command, capture_output=True).returncode == 0)


def wait_for(condition):
    deadline = time.monotonic() + READY_WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stored_in(server):
    reply = world.ask(f"{server.url}/studies/{CT_STUDY}/instances")
    found = reply.json() if reply.status == 200 else []
    return sorted(each["00080018"]["Value"][0] for each in found)


def test_orthanc_sends_on_and_keeps_what_was_not_stored(server, files, tmp_path):
    if shutil.which("Orthanc") is None or not PLUGIN.exists() or shutil.which("storescu") is None:
        pytest.skip("Orthanc, its DICOMweb plugin and DCMTK are not installed")
    dicom, http = free_port(), free_port()
    settings = json.loads(block("json", "GATEWAY").replace("http://127.0.0.1:8943", server.origin))
    assert settings["DicomPort"] == 4242
    settings |= {"DicomPort": dicom, "HttpPort": http, "StableAge": 1, "Plugins": [str(PLUGIN)]}
    settings |= {"StorageDirectory": str(tmp_path / "data"), "IndexDirectory": str(tmp_path / "data")}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    (tmp_path / "forward.lua").write_text(block("lua", "OnStableStudy"))
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(["Orthanc", "orthanc.json"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        send(dicom, settings["DicomAet"], files)
        wait_for(lambda: stored_in(server) == CT_INSTANCES)
        studies = f"http://127.0.0.1:{http}/studies"
        wait_for(lambda: world.ask(studies).json() == [])
        server.end()
        send(dicom, settings["DicomAet"], files)
        wait_for(lambda: "Error in RestApiPost" in (tmp_path / "log").read_text())
        assert len(world.ask(studies).json()) == 1
    finally:
        running.terminate()
        running.wait(30)


def test_storescp_sends_on_and_forgets(server, files, tmp_path):
    if shutil.which("storescp") is None:
        pytest.skip("DCMTK is not installed")
    tool = tmp_path / "bin" / "streamsrv"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m streamsrv "$@"\n')
    tool.chmod(0o755)
    port = free_port()
    script = block("sh", "storescp").replace("http://127.0.0.1:8943", server.origin)
    script = script.replace("11112", str(port)).replace("--eostudy-timeout 10", "--eostudy-timeout 1")
    variables = environment()
    variables["PATH"] = f"{tool.parent}:{variables['PATH']}"
    script = script.replace("storescp ", "exec storescp ", 1)
    running = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, env=variables)
    try:
        send(port, "ANY-SCP", files)
        wait_for(lambda: stored_in(server) == CT_INSTANCES)
        wait_for(lambda: list((tmp_path / "incoming").iterdir()) == [])
    finally:
        running.terminate()
        running.wait(30)

"""conf/streamsrv.service: systemd finds it well and tight, and the server works with its system calls."""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import live_server
import pytest
from live_server import ROOT, start_server
from pydicom.data import get_testdata_file

UNIT = ROOT / "conf" / "streamsrv.service"
FILTERED = Path(__file__).parent / "filtered.py"
MOST_EXPOSURE = 2.0


def systemd(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_exposure():
    found = systemd("security", "--offline=true", str(UNIT))
    level = re.search(r"Overall exposure level for streamsrv.service: ([0-9.]+)", found.stdout)
    assert float(level[1]) <= MOST_EXPOSURE, found.stdout


def test_every_line_is_understood(tmp_path):
    text = UNIT.read_text()
    executable = re.search(r"(?m)^ExecStart=(\S+)", text)[1]
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(executable, sys.executable))
    found = systemd("verify", "--man=no", str(unit))
    assert (found.returncode, found.stderr) == (0, "")


def allowed_calls():
    """The names of SystemCallFilter=, with those of its sets."""
    allowed, refused = set(), set()
    for line in re.findall(r"(?m)^SystemCallFilter=(.+)$", UNIT.read_text()):
        into = refused if line.startswith("~") else allowed
        for name in line.removeprefix("~").split():
            into |= members(name)
    return sorted(allowed - refused)


def members(name):
    if not name.startswith("@"):
        return {name}
    lines = systemd("syscall-filter", name).stdout.splitlines()
    names = [line.strip() for line in lines if line.startswith("    ") and not line.strip().startswith("#")]
    assert names, name
    return set().union(*map(members, names))


@pytest.fixture
def filtered_server(tmp_path, monkeypatch):
    command = [sys.executable, str(FILTERED), ",".join(allowed_calls()), *live_server.executable()]
    monkeypatch.setattr(live_server, "executable", lambda: command)
    running = start_server(tmp_path)
    yield running
    running.end()


def test_the_server_works_with_these_system_calls(filtered_server):
    """Stores, transcodes, draws and deletes. Pixel processes are confined as usual."""
    content = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    headers = {"Content-Type": "application/dicom", "Accept": "application/dicom+json"}
    urllib.request.urlopen(urllib.request.Request(f"{filtered_server.url}/studies", content, headers)).close()
    study = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
    for path, accept in (
        ("rendered", 'multipart/related; type="image/png"'),
        ("", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80'),
        ("metadata", "application/dicom+json"),
    ):
        request = urllib.request.Request(f"{filtered_server.url}/studies/{study}/{path}".rstrip("/"))
        request.add_header("Accept", accept)
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
            assert answer.read()
    deletion = urllib.request.Request(f"{filtered_server.url}/studies/{study}", method="DELETE")
    assert urllib.request.urlopen(deletion).status == 204
    log = filtered_server.log.read_text()
    assert "not permitted" not in log, log
    warnings = [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]
    assert all("runs as root" in line or "no font" in line for line in warnings), log

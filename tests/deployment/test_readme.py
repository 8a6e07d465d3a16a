"""README's `sh` blocks as they stand, in a fresh Debian root: from nothing to a study that the viewer paints.

The times of the commands are printed, and the processor time of all.
"""

import itertools
import os
import re
import resource
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from check_release import tracked
from chromium import Chromium
from conftest import BUNDLE, family_of, pip_configuration
from live_server import ROOT
from pydicom.data import get_testdata_file
from shell_blocks import blocks_of

PORT = 8943  # README names it
ORIGIN = f"http://127.0.0.1:{PORT}"
WITHIN = 600.0  # seconds; a loaded machine is slow
SERVES = "make run"  # a block with this command ends with it and runs on
SOURCE = "root/streamsrv"
CERTIFICATES = "/opt/certificates.crt"
ENVIRONMENT = "HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive"
ENTER = f"""
    mount --bind "$1" "$1" && mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" &&
    exec chroot "$1" /usr/bin/env -i {ENVIRONMENT} /bin/bash -c "$2"
"""
STARTED = re.compile(r"\+ (\d{10}\.\d{6}) (.*)$", re.MULTILINE)  # also after a line without an end
VIEWPORT = "cornerstone.getRenderingEngines()[0].getViewports()[0]"
# The brightness of each pixel of the canvas in its middle row and column.
PAINTED = f"""(() => {{
  const viewport = {VIEWPORT};
  viewport.render();
  const canvas = viewport.getCanvas(), pen = canvas.getContext("2d"), {{width, height}} = canvas;
  const row = pen.getImageData(0, height >> 1, width, 1), column = pen.getImageData(width >> 1, 0, 1, height);
  return [...row.data, ...column.data].filter((_, index) => index % 4 === 0);
}})()"""


class Debian:
    """A fresh root. Each block runs in a shell of its own, which has a namespace of processes: its end is the
    end of all of them."""

    def __init__(self, folder):
        self.folder = folder
        self.times = []
        self.used = 0.0  # seconds of processor time

    def start(self, text, log):
        script = f"cd /{SOURCE}\nPS4='+ $EPOCHREALTIME '\nset -ex\n{text}"
        isolation = ("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL")
        with log.open("wb") as output:
            return subprocess.Popen(
                [*isolation, "sh", "-c", ENTER, "sh", self.folder, script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(self, text, log):
        """Runs commands to their end."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = self.start(text, log)
        try:
            assert process.wait(WITHIN) == 0, log.read_text(errors="replace")[-5000:]
        finally:
            process.kill()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.note(log, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    @contextmanager
    def running(self, text, log):
        """Runs commands until the server that they start is ready, and ends them afterwards."""
        process = self.start(text, log)
        try:
            until = time.monotonic() + WITHIN
            while not ready():
                assert process.poll() is None, log.read_text(errors="replace")[-5000:]
                assert time.monotonic() < until, log.read_text(errors="replace")[-5000:]
                time.sleep(0.1)
            self.note(log, sum(map(processor_time, family_of(process.pid))))
            yield
        finally:
            process.kill()
            process.wait()

    def note(self, log, used):
        """Keeps the seconds from each command to the next one, and the processor time of all of them."""
        self.used += used
        started = [(float(at), command) for at, command in STARTED.findall(log.read_text(errors="replace"))]
        for (at, command), (next_one, _) in itertools.pairwise([*started, (time.time(), "")]):
            self.times.append((next_one - at, command))


def processor_time(pid):
    """Seconds of the process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def ready():
    try:
        with urllib.request.urlopen(f"{ORIGIN}/health/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def free():
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", PORT))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def root(debian, tmp_path_factory):
    """The root with the source, a study in ~/ct, the lists of apt, and the registries of this machine."""
    folder = tmp_path_factory.mktemp("debian")
    subprocess.run(["tar", "-C", folder, "-xf", debian], check=True)
    for name in tracked(ROOT):
        target = folder / SOURCE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    shutil.copy(BUNDLE, folder / CERTIFICATES[1:])
    (folder / "etc/pip.conf").write_text(pip_configuration(CERTIFICATES))
    registry = subprocess.run(
        ["npm", "config", "get", "registry"], capture_output=True, text=True, check=True
    )
    (folder / "root/.npmrc").write_text(f"registry={registry.stdout.strip()}\ncafile={CERTIFICATES}\n")
    (folder / "root/ct").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), folder / "root/ct/1.dcm")
    fresh = Debian(folder)
    fresh.run("apt-get update -qq", folder.parent / "lists.log")
    fresh.times, fresh.used = [], 0.0
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)


def paints(study, pixels):
    """Opens the study in the viewer, and waits until its pixels are there and on the canvas."""
    window = Chromium("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
    try:
        window.size(1400, 900)
        window.open(f"{ORIGIN}/viewer/viewer?StudyInstanceUIDs={study}")
        until = time.monotonic() + WITHIN
        while True:
            script = f"Array.from({VIEWPORT}.getImageData().scalarData)"
            found = window.run(f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()")
            if found:
                break
            assert time.monotonic() < until, (window.text("body"), window.said)
            time.sleep(0.1)
        assert found == pixels.ravel().tolist()
        while np.std(painted := window.run(PAINTED)) < 10:
            assert time.monotonic() < until, painted
            time.sleep(0.1)
    finally:
        window.close()


def test_a_study_of_ones_own_is_painted(root, tmp_path):
    assert free(), f"README's commands need port {PORT}, and a process of this machine has it"
    source = pydicom.dcmread(root.folder / "root/ct/1.dcm")
    began = time.monotonic()
    blocks = blocks_of(Path(ROOT / "README.md"))
    (serving,) = (block.text for block in blocks if SERVES in block.text)
    assert serving == blocks[0].text
    with root.running(serving, tmp_path / "server.log"):
        for number, block in enumerate(blocks[1:]):
            root.run(block.text, tmp_path / f"{number}.log")
        browser = time.monotonic()
        paints(source.StudyInstanceUID, source.pixel_array * source.RescaleSlope + source.RescaleIntercept)
        root.times.append((time.monotonic() - browser, "the study is painted in Chromium"))
    print()
    for seconds, command in root.times:
        print(f"{seconds:7.1f} s  {command}")
    print(f"{time.monotonic() - began:7.1f} s  all; {root.used:.1f} s of processor time in the blocks")

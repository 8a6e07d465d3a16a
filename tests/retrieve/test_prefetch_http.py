"""How many tasks reach the pixel processes of a real server. A sitecustomize has them count."""

import http.client
import os
import random
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from live_server import ROOT, start_server
from pixel_world import JPEG_LS, KINDS, LITTLE, arrays_of, frames_of_type, image, stored_as
from retrieve_world import instance_path

from framecodecs.pool.pipes import unread_in

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

COUNTING = """
import os, sys
if "framecodecs.pool.worker" in sys.orig_argv:
    from framecodecs.pool import messages
    known = messages.transcode_frames
    # Opened before the process gives up its right to open files. It may write to pipes only.
    counted = os.open(os.path.join(os.path.dirname(__file__), "counted"), os.O_WRONLY)
    def transcode_frames(*arguments):
        os.write(counted, b".")
        return known(*arguments)
    transcode_frames.__module__, transcode_frames.__qualname__ = known.__module__, known.__qualname__
    messages.transcode_frames = transcode_frames
"""
FRAMES, ASKED = 1_000, 20
KIND = KINDS["12 in 16"]


@contextmanager
def counting_server(folder, *flags):
    (folder / "sitecustomize.py").write_text(COUNTING)
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "codecs")))
    script = folder / "streamsrv"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} -m streamsrv "$@"\n')
    script.chmod(0o755)
    os.mkfifo(folder / "counted")
    counted = os.open(folder / "counted", os.O_RDWR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMSRV", str(script))
        server = start_server(folder / "server", "--pixel-workers", "2", *flags, workers=1)
    try:
        yield server
    finally:
        server.end()
        os.close(counted)


def tasks(folder):
    counted = os.open(folder / "counted", os.O_RDWR)
    try:
        return unread_in(counted)
    finally:
        os.close(counted)


def post(server, content):
    request = urllib.request.Request(f"{server.url}/studies", content, {"Content-Type": "application/dicom"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def take(server, numbers):
    """Frames, by one client."""
    connection = http.client.HTTPConnection(server.origin.removeprefix("http://"), timeout=60)
    for number in numbers:
        path = f"/v2{instance_path('1.2.3.4.1')}/frames/{number}"
        connection.request("GET", path, headers={"Accept": frames_of_type("image/jls", JPEG_LS)})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    connection.close()


@pytest.mark.parametrize("prefetch", [2, 0])
def test_nothing_is_made_ahead_of_a_client_that_reads_in_random_order(tmp_path, prefetch):
    numbers = random.Random(4).sample(range(1, FRAMES + 1, 2), FRAMES // 10)  # no two are neighbours
    with counting_server(tmp_path, "--prefetch", str(prefetch)) as server:
        post(server, stored_as(image(KIND, arrays_of(KIND, FRAMES)), LITTLE))
        take(server, numbers)
        assert tasks(tmp_path) == len(numbers)


def test_frames_are_made_ahead_of_a_client_that_reads_in_sequence(tmp_path):
    with counting_server(tmp_path, "--prefetch", "2") as server:
        post(server, stored_as(image(KIND, arrays_of(KIND, FRAMES)), LITTLE))
        for asked in range(ASKED, FRAMES, ASKED):
            take(server, range(asked - ASKED + 1, asked + 1))
            assert tasks(tmp_path) <= asked + 2
            if tasks(tmp_path) > asked:
                return
    raise AssertionError("nothing was made ahead")

"""OHIF in Chromium opens each kind of study: it decodes each frame to the values that were stored, and paints
them through their window, inversion or palette. A video plays."""

import base64
import os
import shutil

import clinic as world
import numpy as np
import pytest
from live_server import start_server
from ohif_window import VIEWPORT
from viewer_kinds import BLOCK, CORNERS, KINDS, PLACES, RECORDED, SIDE, WIDTH, video


@pytest.fixture(scope="module")
def server(ohif, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(ohif / "data" / "viewer", folder / "data" / "viewer", copy_function=os.link)
    running = start_server(folder)
    yield running
    running.end()


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_each_frame_is_decoded_and_painted_as_it_was_stored(viewer, server, make):
    kind = make()
    world.store(f"{server.url}/studies", [kind.file])
    viewer.open_study(server, kind.study)
    viewer.shows(f"{VIEWPORT}.getImageIds().length === {len(kind.values)}")
    for frame, values in enumerate(kind.values):
        expected = values[PLACES] if kind.grey is None else kind.grey[frame][PLACES][..., np.newaxis]

        def on_display(frame=frame, values=values, expected=expected):
            """A loop plays by itself, so the frame is chosen again before each look."""
            decoded = viewer.image(f"/frames/{frame + 1}").reshape(SIDE, SIDE, -1)
            decoded = decoded[..., : 3 if kind.grey is None else 1]
            exact = np.abs(decoded - values.reshape(decoded.shape)).max() <= kind.near
            return exact and np.abs(viewer.painted(SIDE, BLOCK) - expected).max() <= max(kind.near, 1)

        viewer.until(on_display)
    assert viewer.errors() == []


def test_a_video_plays(viewer, server):
    """Its four colours are compared on the canvas of the viewer. A browser asks for it by ranges."""
    recorded = base64.b64decode(viewer.run(RECORDED))
    study, file = video(recorded)
    world.store(f"{server.url}/studies", [file])
    viewer.open_study(server, study)
    viewer.shows(f"{VIEWPORT}.videoElement.videoWidth === {WIDTH}")
    # The viewer may load the video once more, which pauses it.
    again = "each.videoElement.paused && (each.pause(), each.play())"
    viewer.shows(f"(each => each.videoElement.currentTime > 0 || ({again}, false))({VIEWPORT})")
    seen = (
        f"(canvas => [.25, .75].flatMap(y => [.25, .75].map(x => [...canvas.getContext('2d').getImageData("
        f"canvas.width * x, canvas.height * y, 1, 1).data].slice(0, 3))))({VIEWPORT}.getCanvas())"
    )
    viewer.until(lambda: np.abs(np.array(viewer.run(seen)) - np.array(CORNERS)).max() <= 8)
    assert '/rendered" 206 ' in server.log.read_text()
    assert viewer.errors() == []

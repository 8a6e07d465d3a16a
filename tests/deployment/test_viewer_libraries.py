"""Cornerstone3D and dicom-microscopy-viewer in Chromium, in a page of their own. It is on the origin of the
server, behind nginx, or on another origin. Pixels are compared with their source.
"""

import clinic as world
import numpy as np
import pytest
from conftest import same_origin
from live_server import start_server
from ohif_window import VIEWPORT
from viewer_archive import BLOCK, CT, SIDE, STUDY, SYNTAXES, fill, hounsfield, middle_of_slide, windowed


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("libraries"), "--cors-origins", "*")
    fill(running)
    yield running
    running.end()


@pytest.fixture(scope="module")
def origin(server, library, tmp_path_factory):
    with same_origin(tmp_path_factory.mktemp("nginx") / "folder", library, server) as found:
        yield found


@pytest.fixture(params=["same origin", "other origin"])
def root(request, server, viewer, origin):
    """The DICOMweb service, as the page names it."""
    viewer.said.clear()
    viewer.open(f"{origin}/library.html")
    viewer.shows("typeof stack === 'function'")
    return "/v2" if request.param == "same origin" else server.url


def test_cornerstone_decodes_and_paints_every_transfer_syntax(viewer, root):
    assert viewer.run(f"stack('{root}', '{STUDY}', '{CT}')") == len(SYNTAXES)
    for number, syntax in enumerate(SYNTAXES, 1):
        assert (viewer.image(f"/{CT}.{number}/").reshape(SIDE, SIDE) == hounsfield(number)).all(), syntax
        viewer.until(
            lambda number=number: np.abs(viewer.painted(SIDE, BLOCK)[..., 0] - windowed(number)).max() < 1.5
        )
    assert viewer.run(f"{VIEWPORT}.getImageIds()[0]").startswith("wadors:http://")
    assert viewer.errors() == []


def test_a_slide_is_painted(viewer, root, server):
    asked = server.log.read_text().count("OPTIONS")
    assert viewer.run(f"slide('{root}', '{world.SLIDE_STUDY}', '{world.SLIDE_SERIES}')") == 1
    viewer.until(lambda: np.abs(viewer.around_the_middle() - middle_of_slide()).max() <= 25)
    assert viewer.errors() == []
    # An Accept with quotes is preflighted, if the origin is another one.
    assert (server.log.read_text().count("OPTIONS") > asked) == root.startswith("http")

"""The clinic of `clinic`, in a real server that any viewer may ask; one for all tests that change nothing."""

import time

import clinic as world
import pytest
from live_server import start_server


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("clinic") / "server", "--cors-origins", "*")
    world.store(f"{running.url}/studies", map(world.file_of, world.everything()))
    time.sleep(2.1)  # until then what was stored has no Last-Modified
    yield running
    running.end()

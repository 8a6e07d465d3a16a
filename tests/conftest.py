"""Fixtures for every room: real servers."""

import pytest
from live_server import start_server


@pytest.fixture
def server(tmp_path):
    """One server, empty, for one test."""
    running = start_server(tmp_path / "server")
    yield running
    running.end()


@pytest.fixture
def server_factory(tmp_path):
    """Starts servers with flags of their own: `server_factory("--read-only", workers=1)`."""
    running = []

    def start(*flags, name="server", **options):
        running.append(start_server(tmp_path / name, *flags, **options))
        return running[-1]

    yield start
    for one in running:
        one.end()

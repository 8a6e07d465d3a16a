"""Fixtures for every room: real servers. In CI a test that is skipped fails the run."""

import os

import pytest
from database_server import DatabaseServer
from live_server import start_server
from seaweed import Seaweed


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """`.ci/run` installs all that tests need, so nothing is left to skip."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1


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


@pytest.fixture(scope="session")
def database_server():
    """PostgreSQL, started when the first test asks for it."""
    server = DatabaseServer()
    yield server
    server.end()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """SeaweedFS with a gateway and a bucket, started when the first test asks for it."""
    started = Seaweed(tmp_path_factory.mktemp("seaweed"))
    started.open_bucket()
    yield started
    started.end()

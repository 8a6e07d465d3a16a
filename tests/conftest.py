"""Fixtures for every room: real servers. In CI a test that is skipped fails the run."""

import gc
import os
import warnings

import pytest
import store_kinds
from ceph import Ceph
from counting import Counting
from database_server import DatabaseServer
from live_server import start_server
from seaweed import Seaweed


def pytest_addoption(parser):
    parser.addoption(
        *("--store",),
        choices=("embedded", "cluster"),
        default="embedded",
        help="of servers: in a folder, or over PostgreSQL and a bucket",
    )
    parser.addoption("--s3", choices=("seaweed", "ceph"), default="seaweed", help="what the bucket is in")


def pytest_configure(config):
    gc.disable()  # until all tests are collected
    config.addinivalue_line("markers", "embedded(why): a test that no store of several nodes can pass")
    if config.getoption("store") == "cluster":  # verbs run in the process of a test, which goes on
        config.addinivalue_line("filterwarnings", "ignore:.*was deleted while still open:ResourceWarning")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    """After that of pytest-cov. With several processes the first one runs no tests."""
    coverage = session.config.pluginmanager.getplugin("_cov")
    controller = coverage and coverage.cov_controller
    if controller and type(controller).__name__ != "DistMaster":
        session.config.pluginmanager.register(Counting(controller))


def pytest_ignore_collect(collection_path, config):
    """On a cluster run the modules of store_kinds.ON_BOTH alone."""
    chosen = config.getoption("store") == "cluster" and collection_path.suffix == ".py"
    return (chosen and store_kinds.path_of(collection_path) not in store_kinds.ON_BOTH) or None


def pytest_collection_modifyitems(config, items):
    """Coverage counts no random tests of these rooms (counting.py). Each line should have its own test."""
    for item in items:
        random = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if random and item.path.parent.name in ("clients", "dicom", "wire"):
            item.add_marker("no_cover")
    if config.getoption("store") == "cluster":
        left_out = [item for item in items if item.get_closest_marker("embedded")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def kind_of_store(request):
    if request.config.getoption("store") == "cluster":
        started = [request.getfixturevalue(name) for name in ("database_server", "object_store")]
        store_kinds.give(*started)
        yield
        with warnings.catch_warnings():  # as above
            warnings.simplefilter("ignore")
            gc.collect()
    else:
        yield


def pytest_collection_finish(session):
    """A collection of garbage would look at a million objects of the tests each time."""
    gc.freeze()
    gc.enable()


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
    server = DatabaseServer(max_connections="400")
    yield server
    server.end()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory, request):
    """SeaweedFS or Ceph with a gateway and a bucket, started when the first test asks for it."""
    kind = Ceph if request.config.getoption("s3") == "ceph" else Seaweed
    started = kind(tmp_path_factory.mktemp("bucket"))
    started.open_bucket()
    yield started
    started.end()

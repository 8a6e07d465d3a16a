"""Folders in memory, for tests that sync hundreds of times and ask nothing of the disk."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_store import Cluster
from seaweed import variables

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def memory_factory():
    """Makes folders, in memory where the system has such; they go with the session."""
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="streamsrv-tests-", dir=place))
    count = iter(range(1_000_000))

    def make():
        folder = root / str(next(count))
        folder.mkdir()
        return folder

    yield make
    shutil.rmtree(root)


@pytest.fixture
def memory(memory_factory):
    """As tmp_path, in memory."""
    return memory_factory()


@pytest.fixture
def environment(object_store, monkeypatch):
    for name, value in variables(object_store.endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cluster(request, memory, database_server, object_store, environment):
    with ExitStack() as held:
        yield Cluster(f"cluster_{memory.name}", memory, database_server, object_store, held)


@pytest.fixture
def nodes(cluster):
    return cluster.node("a"), cluster.node("b")


@pytest.fixture
def one(nodes):
    return nodes[0]


@pytest.fixture
def two(nodes):
    return nodes[1]

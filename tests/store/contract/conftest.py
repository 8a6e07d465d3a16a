"""One store of each engine, as this process and another one see it."""

import os
from unittest.mock import patch

import pytest
from engines import ENGINES, engine_of, schema_of
from other_process import Calls, OtherProcess


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    """One of a bucket sets credentials in the environment, which no other test should have."""
    asked = request.getfixturevalue
    with patch.dict(os.environ):
        yield engine_of(
            request.param, lambda: asked("database_server").url(), lambda: asked("object_store").endpoint
        )


@pytest.fixture(scope="module")
def process(engine):
    process = OtherProcess(engine)
    yield process
    process.end()


@pytest.fixture
def memory(memory, engine, request):
    """With a schema of its own, if the engine is a database."""
    if engine is not engine_of("local", None, None):
        request.getfixturevalue("database_server").url(schema_of(memory))
    return memory


@pytest.fixture
def store(engine, memory):
    with engine(memory).open() as store:
        yield store


@pytest.fixture
def other(process, memory, store):
    """The calls of the store in another process."""
    process.call(("open",), memory)
    yield Calls(process)
    process.call(("close",))

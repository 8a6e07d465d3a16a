"""One store of each engine, as this process and another one see it."""

import pytest
from engines import ENGINES
from other_process import Calls, OtherProcess


@pytest.fixture(scope="session", params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.fixture(scope="session")
def process(engine):
    process = OtherProcess(engine)
    yield process
    process.end()


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

"""A store for each test."""

import pytest

from streamsrv.store.store import Store, StoreOptions


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "data", StoreOptions(min_free=0)) as opened:
        yield opened

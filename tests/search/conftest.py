"""The studies of `search_world` in an index."""

from collections.abc import Iterator

import pytest
from search_world import Holder, populate

from streamsrv.store.index.index import Index


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    index = Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    index.commit(list(populate()), segment=1, committed_end=0)
    yield Holder(index)
    index.close()

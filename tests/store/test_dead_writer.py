"""A writer that died in its commit, before readers were told: nobody decides by what they are shown."""

import pytest
from dead_writer import unannounce
from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.store.maintenance.check import check
from streamsrv.store.rows import OnDuplicate, Outcome

FIRST, SECOND = key_of(1), key_of(2)


@pytest.fixture
def store(memory):
    """One instance is there; a second one was committed by a writer that died in the middle of it."""
    with open_store(memory) as store:
        put(store, payload_of(FIRST))
        put(store, payload_of(SECOND, 300, "s"))
    with open_store(memory) as store:
        unannounce(store.layout.index)
        assert store.index.existing([SECOND]) == [None]
        yield store


def well(store):
    return [str(finding) for finding in check(store, derive)] == []


def test_catching_up(store):
    store.index.catch_up()
    assert store.index.existing([SECOND])[0].key == SECOND
    assert well(store)


def test_its_instance_is_a_duplicate(store):
    assert put(store, payload_of(SECOND, 300, "t")) == [Outcome.DUPLICATE]
    assert get(store, SECOND) == payload_of(SECOND, 300, "s")
    assert well(store)


def test_its_instance_can_be_replaced(store):
    put(store, payload_of(SECOND, 300, "t"), on_duplicate=OnDuplicate.REPLACE)
    assert get(store, SECOND) == payload_of(SECOND, 300, "t")
    assert well(store)


def test_its_segment_is_not_cut(store):
    """Who acquires the segment next appends behind the instance."""
    put(store, payload_of(key_of(3)))
    assert get(store, SECOND) == payload_of(SECOND, 300, "s")
    assert well(store)


def test_its_delete_is_done(memory):
    with open_store(memory) as store:
        put(store, payload_of(FIRST))
        store.delete(*FIRST)
    with open_store(memory) as store:
        unannounce(store.layout.index)
        assert len(store.lookup(*FIRST)) == 1
        assert store.delete(*FIRST) == 0
        assert put(store, payload_of(FIRST, 300, "n")) == [Outcome.STORED]
        assert well(store)


def test_opening_a_store_is_enough(store):
    store.close()
    with open_store(store.layout.root) as other:
        assert get(other, SECOND) == payload_of(SECOND, 300, "s")


def test_the_own_commit_is_not_waited_for(store):
    """While our writer commits, readers are behind, too: but it lives."""
    put(store, payload_of(key_of(4)))
    unannounce(store.layout.index)
    store.index.catch_up()
    assert store.index.existing([key_of(4)]) == [None]
    store.index.seal(1)
    assert store.index.existing([key_of(4)])[0].key == key_of(4)

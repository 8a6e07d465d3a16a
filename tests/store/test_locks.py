import threading
import time

import pytest
from store_world import key_of

from streamsrv.store.fileops import FileOps
from streamsrv.store.locks import END_OF_KEYS, STUDY, Locks, key_offset, study_offset
from streamsrv.store.segments.manifest import Manifest, Slot, State


@pytest.fixture
def locks(tmp_path):
    made = []
    manifest = Manifest(tmp_path / "manifest", FileOps(), b"f" * 16)
    manifest.create()
    manifest.open()

    def make():
        made.append(Locks(manifest))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_closing_gives_everything_up(locks):
    first, second = locks(), locks()
    first.lock([key_of(1)])
    assert first.try_lock_compaction()
    assert not second.try_lock_compaction()
    first.close()
    first.close()
    assert second.try_lock_compaction()
    second.lock([key_of(1)])


def test_keys_are_released_together(locks):
    first, second = locks(), locks()
    first.lock([key_of(1), key_of(2)])
    first.release()
    second.lock([key_of(1), key_of(2)])


def test_other_keys_are_not_waited_for(locks):
    locks().lock([key_of(1), key_of(2)])
    locks().lock([key_of(3), key_of(4)])


def test_a_key_is_waited_for(locks):
    first, second = locks(), locks()
    first.lock([key_of(1), key_of(2)])
    got = []
    waiter = threading.Thread(
        target=lambda: (second.lock([key_of(2), key_of(3)]), got.append(time.monotonic()))
    )
    waiter.start()
    time.sleep(0.1)
    assert got == []
    released = time.monotonic()
    first.release()
    waiter.join(5)
    assert got[0] >= released


def test_crossing_takers_do_not_wait_in_a_circle(locks):
    keys = [key_of(n) for n in range(20)]
    done = []

    def take(order):
        for _ in range(20):
            one = locks()
            one.lock(order)
            time.sleep(0.001)
            one.close()
        done.append(True)

    threads = [threading.Thread(target=take, args=(order,)) for order in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [True, True]


def test_a_study_is_taken_whole(locks):
    first, second = locks(), locks()
    assert first.try_lock_study("1.1")
    assert not second.try_lock_study("1.1")
    assert second.try_lock_study("1.2")
    second.lock([key_of(3), key_of(4)])
    got = []
    waiter = threading.Thread(target=lambda: (second.lock([key_of(1, 7, 7)]), got.append(True)))
    waiter.start()
    time.sleep(0.1)
    assert got == []
    first.release()
    waiter.join(5)
    assert got == [True]
    assert not first.try_lock_study("1.1")


def test_doubts(locks):
    one, other = locks(), locks()
    assert one.dirty() == []
    one.set_dirty(5)
    other.set_dirty(300)
    assert locks().dirty() == [5, 300]
    one.put(5, Slot(State.GROWING, 100))
    other.put(300, Slot(State.SEALED, 200))
    assert locks().dirty() == []


def test_a_doubt_leaves_the_slot_as_it_is(locks):
    one = locks()
    one.put(5, Slot(State.GROWING, 100))
    one.set_dirty(5)
    assert one.slot(5) == (True, Slot(State.GROWING, 100))
    one.ensure(5, Slot(State.GROWING, 100))
    assert one.slot(5) == (False, Slot(State.GROWING, 100))
    assert one.slot(77) == (False, Slot(State.NONE, 0))


def test_key_offsets_stay_in_their_range():
    keys = [key_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)]
    assert len({key_offset(key) for key in keys}) == 125
    assert all(0 <= key_offset(key) < END_OF_KEYS for key in keys)
    assert all(0 <= key_offset(key) - study_offset(key.study) < STUDY for key in keys)

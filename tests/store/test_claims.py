import os
import threading
import time

import pytest
from store_world import key_of

from streamsrv.store.claims import SEGMENTS, STUDY, Claims, key_offset, study_offset
from streamsrv.store.fileops import FileOps


@pytest.fixture
def claims(tmp_path):
    made = []

    def make():
        made.append(Claims(tmp_path / "claims", FileOps()))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_segment_is_borrowed_by_one(claims):
    first, second = claims(), claims()
    assert first.borrow(3)
    assert not second.borrow(3)
    assert second.borrow(4)
    first.give_back(3)
    assert second.borrow(3)


def test_closing_gives_everything_up(claims):
    first, second = claims(), claims()
    first.borrow(3)
    first.take([key_of(1)])
    assert first.compact()
    assert not second.compact()
    first.close()
    first.close()
    assert second.borrow(3)
    assert second.compact()
    second.take([key_of(1)])


def test_releasing_keys_keeps_segments(claims):
    first, second = claims(), claims()
    first.borrow(3)
    first.take([key_of(1)])
    first.release()
    second.take([key_of(1)])
    assert not second.borrow(3)


def test_other_keys_are_not_waited_for(claims):
    claims().take([key_of(1), key_of(2)])
    claims().take([key_of(3), key_of(4)])


def test_a_key_is_waited_for(claims):
    first, second = claims(), claims()
    first.take([key_of(1), key_of(2)])
    got = []
    waiter = threading.Thread(
        target=lambda: (second.take([key_of(2), key_of(3)]), got.append(time.monotonic()))
    )
    waiter.start()
    time.sleep(0.1)
    assert got == []
    released = time.monotonic()
    first.release()
    waiter.join(5)
    assert got[0] >= released


def test_crossing_takers_do_not_wait_in_a_circle(claims):
    keys = [key_of(n) for n in range(20)]
    done = []

    def take(order):
        for _ in range(20):
            one = claims()
            one.take(order)
            time.sleep(0.001)
            one.close()
        done.append(True)

    threads = [threading.Thread(target=take, args=(order,)) for order in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [True, True]


def test_a_study_is_taken_whole(claims):
    first, second = claims(), claims()
    assert first.take_study("1.1")
    assert not second.take_study("1.1")
    assert second.take_study("1.2")
    second.take([key_of(3), key_of(4)])
    got = []
    waiter = threading.Thread(target=lambda: (second.take([key_of(1, 7, 7)]), got.append(True)))
    waiter.start()
    time.sleep(0.1)
    assert got == []
    first.release()
    waiter.join(5)
    assert got == [True]
    assert not first.take_study("1.1")


def test_a_segment_can_be_waited_for(claims):
    first, second = claims(), claims()
    first.borrow(9)
    timer = threading.Timer(0.1, first.close)
    timer.start()
    second.borrow_waiting(9)
    assert not claims().borrow(9)
    timer.join()


def test_doubts(claims):
    one, other = claims(), claims()
    assert one.doubts() == []
    one.set_doubt(5)
    other.set_doubt(300)
    assert claims().doubts() == [5, 300]
    one.clear_doubt(5)
    other.clear_doubt(300)
    assert claims().doubts() == []


def test_key_offsets_stay_in_their_range():
    keys = [key_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)]
    assert len({key_offset(key) for key in keys}) == 125
    assert all(0 <= key_offset(key) < SEGMENTS for key in keys)
    assert all(0 <= key_offset(key) - study_offset(key.study) < STUDY for key in keys)


def test_two_workers_make_the_file_at_once(tmp_path):
    path = tmp_path / "claims"

    class Late(FileOps):
        def create(self, path):
            os.close(FileOps().create(path))
            return super().create(path)

    Claims(path, Late()).close()
    assert path.exists()

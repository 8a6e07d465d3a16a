"""Wishes: fulfilled by whoever is idle, the latest walk first, and never more than a few of them."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from streamsrv.errors import StoreError
from streamsrv.pixels import prefetch as pixelwishes
from streamsrv.pixels.prefetch import SURE, WALKS, Company, Lookout, Wishes


class Workshop:
    """Idle or not as a test says; `made` is what was fulfilled."""

    def __init__(self, idle=True):
        self.idle = idle
        self.made = []
        self.wishes = Wishes(lambda: self.wishes.look(), lambda: self.idle, self.made.append)

    def begin(self):
        self.idle = True
        self.wishes.look()


@pytest.fixture
def workshop():
    return Workshop()


def test_a_wish_is_fulfilled_step_by_step(workshop):
    workshop.wishes.put("walk", iter([1, 2, 3]))
    assert workshop.made == [1, 2, 3]


def test_nothing_is_looked_at_while_nobody_is_idle(workshop):
    looked = []

    def wish():
        looked.append("at")
        yield 1

    workshop.idle = False
    workshop.wishes.put("walk", wish())
    workshop.wishes.put("other", iter([2]))
    assert (looked, workshop.made) == ([], [])
    workshop.begin()
    assert (looked, workshop.made) == (["at"], [2, 1])  # the latest first


def test_the_next_wish_of_a_walk_takes_the_place_of_the_one_before(workshop):
    workshop.idle = False
    for number in range(5):
        workshop.wishes.put("walk", iter([number]))
    workshop.begin()
    assert workshop.made == [4]


def test_a_dropped_wish_is_never_fulfilled(workshop):
    workshop.idle = False
    workshop.wishes.put("walk", iter([1]))
    workshop.wishes.drop("walk")
    workshop.wishes.drop("walk")
    workshop.wishes.put("other", iter([2]))
    workshop.begin()
    assert workshop.made == [2]


def test_few_walks_are_remembered(workshop):
    workshop.idle = False
    for number in range(3 * WALKS):
        workshop.wishes.put(number, iter([number]))
    workshop.begin()
    assert workshop.made == list(range(3 * WALKS - 1, 2 * WALKS - 1, -1))


def test_what_fails_is_forgotten(workshop, monkeypatch):
    told = []
    monkeypatch.setattr(pixelwishes.log, "exception", told.append)

    def failing(error):
        yield 1
        raise error

    workshop.wishes.put("known", failing(StoreError("gone")))
    workshop.wishes.put("unknown", failing(KeyError("bug")))
    workshop.wishes.put("next", iter([2]))
    assert workshop.made == [1, 1, 2]
    assert len(told) == 1


def test_after_the_end_nothing_is_wished(workshop):
    workshop.idle = False
    workshop.wishes.put("walk", iter([1]))
    workshop.wishes.close()
    workshop.wishes.put("walk", iter([2]))
    workshop.begin()
    assert workshop.made == []


def test_one_looks_at_a_time_and_looks_again(workshop):
    """Whoever becomes idle while another one looks is seen by that one."""

    def wish():
        workshop.wishes.look()  # another thread would find the same
        yield 1
        workshop.wishes.put("other", iter([2]))
        yield 3

    workshop.wishes.put("walk", wish())
    assert workshop.made == [1, 3, 2]


def test_what_is_less_certain_comes_last_and_is_kept(workshop):
    workshop.idle = False
    workshop.wishes.keep("any", iter([1, 2]))
    workshop.wishes.keep("any", iter([3]))  # there is one already
    workshop.wishes.put("walk", iter([4]))
    assert workshop.wishes.is_certain
    workshop.begin()
    assert workshop.made == [4, 1, 2]
    assert not workshop.wishes
    workshop.wishes.keep("any", iter([5]))
    assert workshop.made == [4, 1, 2, 5]


def test_what_is_less_certain_is_bounded_dropped_and_closed(workshop):
    workshop.idle = False
    for number in range(3 * WALKS):
        workshop.wishes.keep(number, iter([number]))
    workshop.wishes.drop(3 * WALKS - 1)
    workshop.begin()
    assert workshop.made == list(range(3 * WALKS - 2, 2 * WALKS - 1, -1))
    workshop.idle = False
    workshop.wishes.keep("any", iter([1]))
    workshop.wishes.close()
    workshop.wishes.keep("other", iter([2]))
    assert not workshop.wishes


@dataclass
class Some:
    """Processes; orders of this pool."""

    most: int = 2
    is_idle: bool = True
    unfinished: int = 0


def test_one_process_works_on_what_was_asked_for_or_is_free_for_it(workshop):
    company = Company(workshop.wishes)
    assert company.kept(Some()) == 1
    assert company.kept(Some(unfinished=1)) == 0
    ahead = Future()
    company.make_ahead(ahead)
    assert company.kept(Some(unfinished=1)) == 1
    assert company.kept(Some(unfinished=2)) == 0
    ahead.set_result(None)
    assert company.kept(Some(unfinished=1)) == 0
    workshop.idle = False
    workshop.wishes.put("walk", iter([1]))
    assert company.kept(Some()) == 0


@pytest.mark.parametrize("beside", [Some(unfinished=2), Some(is_idle=False, unfinished=1)])
def test_others_are_left_another_process(workshop, beside):
    """Of this worker, or of another one. One look may deceive, and they may go away."""
    company, alone = Company(workshop.wishes), Some(unfinished=1)
    company.see("a", beside)
    company.see("a", beside)
    assert company.kept(alone) == 0
    for _ in range(SURE):
        company.see("a", beside)
    assert company.kept(alone) == 1
    assert company.kept(Some()) == 2
    for _ in range(SURE):
        company.see("a", alone)
    assert company.kept(alone) == 0
    company.see("a", None)
    company.see("b", alone)
    assert company.kept(alone) == 1  # it went another way just now


def test_where_no_process_can_be_left_nobody_has_to_keep_account(workshop):
    """None of one; none of two while others are about. Before there are any, there may be enough."""
    company, beside = Company(workshop.wishes), Some(unfinished=2)
    assert company.see("a", None)
    assert company.see("a", Some())
    assert not company.see("a", Some(most=1))
    for _ in range(SURE):
        company.see("a", beside)
    assert not company.see("a", beside)
    assert company.see("a", Some(most=3, unfinished=3))


def test_a_lookout_looks_in_a_thread_of_its_own():
    looked = threading.Semaphore(0)
    names = []

    def look():
        names.append(threading.current_thread().name)
        looked.release()

    lookout = Lookout(look)
    for _ in range(2):
        lookout.call()
        assert looked.acquire(timeout=30)
    assert names == ["pixels-ahead"] * 2
    lookout.close()
    lookout.call()
    lookout.close()
    assert len(names) == 2


def test_who_closes_a_lookout_waits_for_it():
    begun, go_on = threading.Event(), threading.Event()
    ended = []

    def look():
        begun.set()
        go_on.wait(30)
        ended.append(True)

    lookout = Lookout(look)
    lookout.call()
    assert begun.wait(30)
    lookout.call()  # never looked for: it ends
    threading.Timer(0.05, go_on.set).start()
    lookout.close()
    assert ended == [True]


def test_without_a_thread_nobody_looks(monkeypatch):
    def failing(self):
        raise RuntimeError("can't start new thread")

    looked = threading.Event()
    lookout = Lookout(looked.set)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", failing)
        lookout.call()
        assert not looked.is_set()
    lookout.call()
    assert looked.wait(30)
    lookout.close()

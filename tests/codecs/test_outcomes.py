"""What will come of some work: for threads that wait, and for those who are told."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from framecodecs.pool.outcomes import Outcome


@pytest.fixture
def outcome():
    return Outcome()


def value_of(outcome):
    return outcome.result(0)


def error_of(outcome):
    return outcome.exception(0)


def test_a_value(outcome):
    assert not outcome.done()
    assert outcome.set_result(b"made")
    assert outcome.done()
    assert (value_of(outcome), error_of(outcome)) == (b"made", None)
    assert not outcome.cancelled()


def test_an_error(outcome):
    error = ValueError("x")
    assert outcome.set_exception(error)
    assert outcome.done()
    assert error_of(outcome) is error
    with pytest.raises(ValueError, match="x"):
        value_of(outcome)


def test_what_was_cancelled(outcome):
    assert outcome.cancel()
    assert outcome.cancelled()
    assert outcome.cancel()  # it is
    for ask in (value_of, error_of):
        with pytest.raises(CancelledError):
            ask(outcome)


def test_what_is_not_there_yet(outcome):
    for ask in (value_of, error_of):
        with pytest.raises(TimeoutError):
            ask(outcome)
    assert not outcome.wait(0)


ENDS = [
    lambda one: one.set_result(1),
    lambda one: one.set_exception(ValueError("x")),
    lambda one: one.cancel(),
]


@pytest.mark.parametrize("end", ENDS)
def test_the_first_one_ends_it(outcome, end):
    outcome.set_result(0)
    assert not end(outcome)
    assert value_of(outcome) == 0
    assert outcome.wait(0)


@pytest.mark.parametrize("end", ENDS)
def test_those_who_are_told(outcome, end, caplog):
    """In their order, once, whatever becomes of the others; at once who comes too late."""
    told = []

    def fail(ended):
        raise RuntimeError("of its own")

    outcome.add_done_callback(lambda ended: told.append((1, ended)))
    outcome.add_done_callback(fail)
    outcome.add_done_callback(lambda ended: told.append((2, ended)))
    assert told == []
    end(outcome)
    assert told == [(1, outcome), (2, outcome)]
    outcome.add_done_callback(fail)
    outcome.add_done_callback(lambda ended: told.append((3, ended.done())))
    assert told[2:] == [(3, True)]
    assert len(caplog.records) == 2


def test_threads_wait(outcome):
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(outcome.result, 30) for _ in range(4)]
        time.sleep(0.02)
        assert not any(one.done() for one in waiting)
        outcome.set_result(7)
        assert [one.result(30) for one in waiting] == [7] * 4


def test_of_many_who_end_it_one_does():
    for _ in range(50):
        outcome, told, start = Outcome(), [], threading.Barrier(4)
        outcome.add_done_callback(told.append)

        def end(number, outcome=outcome, start=start):
            start.wait()
            return outcome.set_result(number)

        with ThreadPoolExecutor(4) as threads:
            ended = list(threads.map(end, range(4)))
        assert ended.count(True) == 1
        assert ended[value_of(outcome)]
        assert told == [outcome]

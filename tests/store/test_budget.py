"""What one search may look at."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamsrv.errors import ContentTooLarge, Overloaded
from streamsrv.query.budget import (
    BRIEF_PORTION,
    BRIEF_ROWS,
    READING,
    READING_WAIT,
    BriefBudget,
    Budget,
    Parsing,
)


def test_a_budget_ends_in_words() -> None:
    budget = Budget(rows=10, metadata=100)
    budget.spend(rows=10, metadata=100)
    with pytest.raises(ContentTooLarge, match="narrow it"):
        budget.spend(rows=1)
    with pytest.raises(ContentTooLarge, match="narrow it"):
        Budget(metadata=100).spend(metadata=101)


def test_no_more_is_read_than_can_be_paid_for() -> None:
    budget = Budget(rows=1000)
    assert budget.portion(500) == 500
    budget.spend(rows=900)
    assert budget.portion(500) == 101


def test_a_brief_budget_allows_few_rows() -> None:
    budget = BriefBudget()
    for _ in range(BRIEF_ROWS // BRIEF_PORTION):
        assert budget.portion(500) == BRIEF_PORTION
        assert budget.spend(rows=BRIEF_PORTION)
    assert budget.portion(500) == 1
    assert (budget.spend(rows=1), budget.spent) == (False, True)
    assert budget.portion(500) == 1
    assert not BriefBudget().spend(metadata=1)


def test_a_brief_budget_is_spent_after_a_page_fault() -> None:
    faults = iter([7, 7, 8, 8])
    budget = BriefBudget(faults=lambda: next(faults))
    assert [budget.spend(rows=1) for _ in range(3)] == [True, False, False]


def test_few_searches_read_metadata_at_the_same_time() -> None:
    parsing, began, goes_on = Parsing(wait=30), threading.Semaphore(0), threading.Event()
    guard, most, reading = threading.Lock(), 0, 0

    def read() -> None:
        nonlocal most, reading
        with parsing.turn():
            with guard:
                reading += 1
                most = max(most, reading)
            began.release()
            assert goes_on.wait(30)
            with guard:
                reading -= 1

    with ThreadPoolExecutor(READING + READING_WAIT + 20) as threads:
        asked = [threads.submit(read) for _ in range(READING + READING_WAIT + 20)]
        for _ in range(READING):
            began.acquire()
        while sum(each.done() for each in asked) < 20:
            pass
        goes_on.set()
        refused = [each.exception() for each in asked if each.exception() is not None]
    assert most == READING
    assert len(refused) == 20
    assert {type(each) for each in refused} == {Overloaded}


def test_a_search_waits_for_its_turn_only_for_a_while() -> None:
    parsing = Parsing(wait=0.01)
    with parsing.turn(), parsing.turn(), pytest.raises(Overloaded), parsing.turn():
        pass
    with parsing.turn():
        pass

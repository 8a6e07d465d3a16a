"""What one search may look at."""

from __future__ import annotations

import pytest

from streamsrv.errors import ContentTooLarge, WouldBlock
from streamsrv.store.budget import BRIEF_PORTION, BRIEF_ROWS, Brief, Budget


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


def test_a_brief_search_goes_elsewhere_when_it_gets_long() -> None:
    brief = Brief()
    for _ in range(BRIEF_ROWS // BRIEF_PORTION):
        assert brief.portion(500) == BRIEF_PORTION
        brief.spend(rows=BRIEF_PORTION)
    assert brief.portion(500) == 1
    with pytest.raises(WouldBlock):
        brief.spend(rows=1)
    with pytest.raises(WouldBlock):
        Brief().spend(metadata=1)


def test_a_brief_search_waits_for_no_disk() -> None:
    waits = iter([7, 7, 8])
    brief = Brief(waits=lambda: next(waits))
    brief.spend(rows=1)
    with pytest.raises(WouldBlock, match="disk"):
        brief.spend(rows=1)

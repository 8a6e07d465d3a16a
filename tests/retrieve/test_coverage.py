"""What of a series is worth making for whoever asks for its frames in any order, and how much of it."""

import random

import pytest

from streamsrv.pixels import coverage as room
from streamsrv.pixels.coverage import AHEAD, COVERAGES, ENOUGH, LONGEST, PAUSE, Coverages

COUNT = 400
PLENTY = 1 << 40


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def coverages(clock):
    return Coverages()


def shuffled(count=COUNT):
    return random.Random(7).sample(range(count), count)


def ask(coverages, places, what="series", mark=0, count=COUNT):
    coverage = None
    for place in places:
        coverage = coverages.ask(what, mark, count, place)
    return coverage


def make(coverages, coverage, size=1, most=PLENTY):
    """All that is worth it, of so many bytes each."""
    made = []
    while (place := coverages.choose(coverage, most)) is not None:
        made.append(place)
        coverages.made(coverage, size)
    return made


APART = [10 * number for number in range(1, ENOUGH + 1)]
APART[-1], APART[-2] = APART[-2], APART[-1]  # no steps of one length


def test_enough_different_ones_are_evidence(coverages):
    assert ask(coverages, APART[:-1] * 3) is None
    assert ask(coverages, APART) is not None


def test_the_nearest_come_first_in_both_directions(coverages):
    here = APART[-1]
    coverage = ask(coverages, [*APART, here])
    assert make(coverages, coverage) == [here + off for off in (1, -1, 2, -2, 3, -3, 4, -4)]


def test_at_the_ends_there_is_one_direction(coverages):
    coverage = ask(coverages, [*APART, COUNT - 1])
    assert make(coverages, coverage) == list(range(COUNT - 2, COUNT - 2 - len(APART) - 1, -1))
    other = ask(coverages, [*APART, 0], "other")
    assert make(coverages, other) == list(range(1, len(APART) + 2))


def test_steps_of_one_length_lead_on(coverages):
    coverage = ask(coverages, range(0, 4 * ENOUGH, 4))
    assert make(coverages, coverage) == [4 * (ENOUGH + number) for number in range(room.STEPS)]
    ask(coverages, [COUNT - 9, COUNT - 6, COUNT - 3])
    assert make(coverages, coverage) == []
    ask(coverages, [COUNT - 3])  # looked at twice
    assert make(coverages, coverage) == []


def test_never_more_is_ahead_than_was_asked_for(coverages):
    """Whatever the order; and in the end nothing was in vain."""
    asked, made, hits = set(), set(), 0
    for place in shuffled():
        hits += place in made
        asked.add(place)
        coverage = ask(coverages, [place])
        if coverage is not None:
            new = make(coverages, coverage)
            assert not set(new) & (asked | made)
            made.update(new)
        assert len(made - asked) <= min(len(asked), AHEAD)
    assert made <= asked
    assert hits > COUNT // 2


def test_a_jump_within_a_long_series_costs_little(coverages):
    coverage = ask(coverages, shuffled(2_000)[:AHEAD], count=2_000)
    made = make(coverages, coverage)
    assert len(made) == AHEAD
    ask(coverages, shuffled(2_000)[: 3 * AHEAD], count=2_000)
    made += make(coverages, coverage)
    assert coverage.ahead.bit_count() == AHEAD


def test_all_together_take_a_share_of_the_cache(coverages):
    first, second = (ask(coverages, shuffled()[:50], what) for what in "ab")
    assert len(make(coverages, first, size=10, most=305)) == 30
    assert len(make(coverages, second, size=10, most=305)) == 1  # which says how large they are
    assert make(coverages, second, size=10, most=400) != []
    assert sum(one.ahead.bit_count() for one in (first, second)) == 40


def test_as_long_as_their_size_is_not_known_one_is_enough(coverages):
    coverage = ask(coverages, APART)
    assert coverages.choose(coverage, PLENTY) is not None
    assert coverages.choose(coverage, PLENTY) is None
    coverages.made(coverage, 10)
    assert coverages.choose(coverage, PLENTY) is not None


def test_who_pauses_begins_anew(coverages, clock):
    coverage = ask(coverages, APART)
    clock.now += PAUSE / 2
    assert ask(coverages, [5]) is coverage
    clock.now += PAUSE + 0.1
    assert coverages.choose(coverage, PLENTY) is None
    assert ask(coverages, APART[:-1]) is None
    assert len(coverages) == 1


def test_other_places_are_another_coverage(coverages):
    """An instance came, or one is gone."""
    coverage = ask(coverages, APART)
    assert ask(coverages, APART[:-1], mark=1) is None
    assert coverages.choose(coverage, PLENTY) is None


def test_what_could_not_be_made_is_not_tried_again(coverages):
    coverage = ask(coverages, APART)
    place = coverages.choose(coverage, PLENTY)
    coverages.passes(coverage, place)
    coverages.made(coverage, 1)
    assert place not in make(coverages, coverage)
    assert coverage.ahead.bit_count() == len(APART)  # it was not in vain


def test_what_was_there_already_is_no_evidence(coverages):
    coverage = ask(coverages, APART)
    coverages.passes(coverage, coverages.choose(coverage, PLENTY), was_there=True)
    assert make(coverages, coverage) == []
    assert ask(coverages, range(201, 200 + 2 * ENOUGH, 2)[: ENOUGH - 1]) is None
    assert ask(coverages, [300]) is coverage


def test_what_a_walk_makes_is_ahead_too(coverages):
    assert coverages.taken("series", 5) is None
    coverage = ask(coverages, APART)
    assert coverages.taken("series", 5) is coverage
    assert coverages.taken("series", APART[0]) is coverage  # asked for: not ahead
    assert coverage.ahead == 1 << 5
    ask(coverages, [5])
    assert coverage.ahead == 0


def test_memory_is_bounded(coverages):
    for number in range(2 * COVERAGES):
        ask(coverages, [1], number)
    assert len(coverages) == COVERAGES
    assert ask(coverages, APART, "long", count=LONGEST + 1) is None
    assert len(coverages) == COVERAGES

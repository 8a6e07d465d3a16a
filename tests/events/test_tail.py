"""Events in order: from each position the rest follows. Studies are complete between the changes."""

import itertools
import json

import pytest
from events_world import World
from small_client import key_of

from streamsrv.events import EventPosition
from streamsrv.events.tail import SETTLED
from streamsrv.query.rules import rule_of

QUIET = 10.0
START = 1_900_000_000.0


class Time:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now

    def nanoseconds(self):
        return int(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch):
    made = Time()
    monkeypatch.setattr("streamsrv.store.index.batch.time.time_ns", made.nanoseconds)
    return made


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "store", keep_changes=0)
    yield made
    made.store.close()


def rest(tail):
    """All events up to now, by pages of two changes."""
    found = []
    while page := tail.read(2):
        found += page
    return found


def shown(events):
    return [(each.name, each.study[-1], each.position.sequence) for each in events]


def told(events):
    return [(each.name, each.data) for each in events]


def history(world, clock):
    """Stores to three studies, with pauses. The second one is deleted before it is complete."""
    for pause, study, number in (
        *((0, 1, 1), (1, 1, 2), (5, 2, 1), (4, 3, 1)),
        *((0.5, 1, 3), (20, 3, 2), (0.5, 1, 4)),
    ):
        clock.now += pause
        world.put(key_of(study, 1, number))
        if (study, number) == (3, 1):
            world.store.delete("1.2.2")
    clock.now += QUIET + SETTLED


def test_studies_are_complete_between_the_changes(world, clock):
    tail = world.tail(QUIET, clock)
    assert tail.begin(EventPosition(0))
    history(world, clock)
    assert shown(rest(tail)) == [
        *(("create", "1", 1), ("create", "1", 2), ("create", "2", 3), ("create", "3", 4)),
        *(("delete", "2", 5), ("create", "1", 6)),
        *(("complete", "3", 6), ("complete", "1", 6)),
        *(("create", "3", 7), ("create", "1", 8)),
        *(("complete", "3", 8), ("complete", "1", 8)),
    ]


def test_the_rest_follows_from_each_position(world, clock):
    tail = world.tail(QUIET, clock)
    tail.begin(EventPosition(0))
    history(world, clock)
    events = rest(tail)
    assert json.loads(events[6].data) == {
        "sequence": 4,
        "studyInstanceUid": "1.2.3",
        "action": "complete",
        "timestamp": "2030-03-17T17:47:00.000000Z",
        "instances": 2,
    }
    for number, event in enumerate(events, 1):
        again = world.tail(QUIET, clock)
        assert again.begin(event.position)
        assert told(rest(again)) == told(events[number:]), event
        if event.name != "complete":
            assert again.begin(EventPosition(event.position.sequence))
            assert told(rest(again)) == told(events[number:]), event


def test_positions_only_grow(world, clock):
    tail = world.tail(QUIET, clock)
    tail.begin(EventPosition(0))
    history(world, clock)
    positions = [each.position for each in rest(tail)]
    for one, other in itertools.pairwise(positions):
        assert one != other
        assert one.further(other) == other
    events = rest(world_tail_at(world, clock, positions[2]))
    assert all(each.is_behind(positions[2]) for each in events)
    assert not any(each.is_behind(positions[-1]) for each in events)


def world_tail_at(world, clock, position):
    tail = world.tail(QUIET, clock)
    tail.begin(position)
    return tail


def test_a_study_is_complete_once_and_only_when_it_is_quiet(world, clock):
    tail = world.tail(QUIET, clock)
    tail.begin(None)
    world.put(key_of(1, 1, 1))
    assert shown(rest(tail)) == [("create", "1", 1)]
    clock.now += QUIET + SETTLED / 2
    assert rest(tail) == []
    late = world.tail(QUIET, clock)
    assert late.begin(None)  # joins before it is told
    clock.now += SETTLED
    assert shown(rest(tail)) == shown(rest(late)) == [("complete", "1", 1)]
    clock.now += 100
    assert rest(tail) == []
    assert world_tail_at(world, clock, None).read() == []
    silent = world.tail(0, clock)
    silent.begin(EventPosition(0))
    assert shown(rest(silent)) == [("create", "1", 1)]


def test_what_cannot_be_told_begins_now(world, clock):
    world.put(key_of(1, 1, 1))
    tail = world.tail(QUIET, clock)
    assert not tail.begin(EventPosition(2))
    assert tail.position.sequence == 1
    assert tail.read() == []
    assert tail.begin(EventPosition(1))


def test_a_view_has_its_own_events(world, clock):
    view = world.store.restricted(rule_of(["PatientID=ID 1.2.1"]))
    tail = world.tail(QUIET, clock, view)
    tail.begin(EventPosition(0))
    history(world, clock)
    assert shown(rest(tail)) == [
        *(("create", "1", 1), ("create", "1", 2), ("create", "1", 6), ("complete", "1", 6)),
        *(("create", "1", 8), ("complete", "1", 8)),
    ]
    assert tail.position.sequence == 8

"""SIGKILL at every named point and at random moments, through the command line, with two workers under
load.

`SOAK=20 python -m pytest tests/test_kill.py` (as `make soak` does) goes through twenty times as many
rounds. The seed makes the clients' choices; when a process dies is up to the machine."""

import os
import random
import time

import pytest
from kill_world import World

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SEED", "20240102")) if SOAK == 1 else random.SystemRandom().randrange(1 << 32)
# How often, where a store replaces what is there and where it is refused.
ROUNDS = SOAK  # at each named point
PASSAGES = {True: (1, 2, 3), False: (3,)}  # of a compaction's: after the copy's sync, the swap, the unlink
WORKERS = {True: 3 * SOAK, False: SOAK}
EVERYTHING, SUPERVISORS = SOAK, SOAK

POINTS = ("mid-body", "before-data-sync", "after-data-sync", "after-commit", "in-delete")
# Where it is refused, few of them without SOAK.
DEATHS = [(True, point) for point in POINTS]
DEATHS += [(False, point) for point in (POINTS if SOAK > 1 else ("after-data-sync", "in-delete"))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    print("seed", SEED)
    world = World(tmp_path_factory.mktemp("killed"), SEED)
    began = time.monotonic()
    yield world
    world.stop()
    # Some 25 times as many, but for a process that runs a few of these tests, in a world of its own.
    assert world.counts["acknowledged"] > world.counts["checks"]
    print(f"in {time.monotonic() - began:.0f} s, seed {SEED}:", dict(world.counts))


@pytest.fixture(scope="module", params=[True, False], ids=["replace", "refuse"])
def replacing(request):
    """For the module, so that the setting changes once."""
    return request.param


@pytest.mark.parametrize(("replacing", "point"), DEATHS, indirect=["replacing"], ids=str)
def test_a_worker_dies_at_a_named_point(world, replacing, point):
    """The supervisor starts another one; the rest of the world does not wait for it."""
    for _ in range(ROUNDS):
        world.serve(replacing)
        world.kill_at(point)


def test_a_compaction_dies(world, replacing):
    for passage in PASSAGES[replacing] * SOAK:
        world.serve(replacing)
        world.kill_compaction(passage)


def test_workers_die_at_random_moments(world, replacing):
    for _ in range(WORKERS[replacing]):
        world.serve(replacing)
        world.kill_a_worker()


def test_everything_dies_at_random_moments(world, replacing):
    for number in range(EVERYTHING + SUPERVISORS):
        world.serve(replacing)
        world.kill_all(supervisor_only=number >= EVERYTHING)


def test_the_index_is_lost(world, replacing):
    world.serve(replacing)
    told = world.same_answers_without_index()
    assert len(told) > 4

"""Workers that are killed under load while their index is in PostgreSQL: the histories of tests/test_kill.py,
at each named point and at random moments."""

import random

import pytest
from kill_world import World


@pytest.mark.parametrize(
    ("replacing", "points"),
    [(True, ("before-data-sync", "in-delete")), (False, ("after-data-sync", "after-commit"))],
    ids=["replace", "refuse"],
)
def test_nothing_acknowledged_is_lost(tmp_path, database_server, replacing, points):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    world = World(tmp_path, seed, database_server.url(f"killed_{replacing}".lower()))
    try:
        for point in points:
            world.serve(replacing)
            world.kill_at(point)
        world.serve(replacing)
        world.kill_a_worker()
        world.kill_all()
    finally:
        world.stop()

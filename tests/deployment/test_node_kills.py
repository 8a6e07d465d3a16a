"""Nodes of one store that are killed under load, at each step of a store, a delete and a compaction.

`SOAK=20 python -m pytest tests/deployment/test_node_kills.py` goes through twenty times as many deaths."""

import os
import random

from cluster_world import ClusterWorld

SOAK = int(os.environ.get("SOAK", "1"))
POINTS = ("mid-body", "before-data-sync", "after-data-sync", "after-commit", "in-delete")


def test_nodes_that_are_killed(tmp_path, database_server, object_store):
    """Nothing acknowledged is lost, nothing that is deleted returns, both nodes agree, and the sweepers leave
    no object behind. So it is when the database is lost and made again from the bucket."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    world = ClusterWorld(tmp_path, seed, "killed_nodes", database_server, object_store)
    try:
        for _ in range(SOAK):
            for point in POINTS:
                world.serve()
                world.kill_at(point)
            world.serve()
            world.kill_node()
            for passage in (1, 2):
                world.kill_compaction(passage)
            world.must_be_swept()
        world.lose_the_database()
    finally:
        print(dict(world.counts))
        world.stop()

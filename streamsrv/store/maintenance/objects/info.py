"""The state and contents of a store whose segments are objects, for the verb `info`."""

from __future__ import annotations

from typing import Any

from streamsrv.errors import StoreError
from streamsrv.store.cluster.store import ClusterStore
from streamsrv.store.maintenance.info import damaged_instances

# A tombstone that waits for so long is a problem, in seconds.
OVERDUE = 600
# States of objects, as docs/cluster.md names them.
STATES = {
    "complete": "complete",
    "intent": "uploads under way",
    "condemned": "wait for their removal",
    "removing": "are being removed",
    "swept": "removed once",
}


def info(store: ClusterStore) -> dict[str, Any]:
    """`objects` has number and bytes by state; `problems` are engines that do not answer, and tombstones that
    the bucket should have. A lost database would bring these instances back."""
    index = store.index.statistics()
    rows = store.index.segments().values()
    counts = store.rooms.table.counts()
    about = store.index.about()
    del about["next_segment"]  # the table of objects gives their numbers
    problems = []
    try:
        store.probe()
    except StoreError as error:
        problems.append(error.detail)
    waiting, age = store.rooms.tombstones.table.left()
    if age > OVERDUE:
        problems.append(f"{waiting} deletions are not noted in the bucket, the oldest for {age} s")
    return {
        "store_id": store.store_id,
        "folder": str(store.layout.root),
        "about": about,
        "index": index,
        "objects": {
            name: dict(zip(("number", "bytes"), counts.get(state, (0, 0)), strict=True))
            for state, name in STATES.items()
        },
        "live": sum(row.live for row in rows),
        "dead": sum(row.dead for row in rows),
        "damaged": index["damage"],
        "damaged_instances": damaged_instances(store),
        "problems": problems,
    }

"""The state and contents of a store, for the verb `info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from streamsrv.store.maintenance.scrub import ScrubState, verified_until
from streamsrv.store.segments import leftovers
from streamsrv.store.store import Store, problems

MOST_NAMED = 100  # damaged instances


def info(store: Store) -> dict[str, Any]:
    """`problems` are parts that cannot be served or trusted, by names and lengths of files. `lost_and_found`
    counts bytes that were cut off segments."""
    numbers = store_numbers(store)
    return {
        "store_id": store.store_id,
        "folder": str(store.layout.root),
        "about": store.index.about(),
        **asdict(numbers),
        "scrub": scrubbed(store),
        "damaged": numbers.index["damage"],
        "damaged_instances": damaged_instances(store),
        "problems": list(map(str, problems(store.layout, store.form, store.manifest, store.index))),
    }


@dataclass(frozen=True, slots=True)
class StoreNumbers:
    """`index` has the number of rows in each database, and the bytes of the file. `bytes`, `live` and `dead`
    are those of all segments."""

    index: dict[str, int]
    segments: int
    sealed: int
    bytes: int
    live: int
    dead: int
    disk_free: int
    disk_total: int
    lost_and_found: int


def store_numbers(store: Store) -> StoreNumbers:
    """Reads the table of segments, and no row of an instance. Raises StoreError and OSError."""
    rows = store.index.segments().values()
    free, total = store.ops.space(store.layout.root)
    return StoreNumbers(
        index=store.index.statistics(),
        segments=len(rows),
        sealed=sum(row.sealed for row in rows),
        bytes=sum(row.committed_end for row in rows),
        live=sum(row.live for row in rows),
        dead=sum(row.dead for row in rows),
        disk_free=free,
        disk_total=total,
        lost_and_found=sum(part.stat().st_size for part in leftovers.parts(store.layout)),
    )


def scrubbed(store: Store) -> dict[str, Any]:
    """The age of the oldest verification; times are UTC."""
    state = ScrubState.load(store.layout.scrub_state)
    oldest, never = verified_until(state, store.index.segments())
    current = state.current
    return {
        "oldest_verified_at": oldest and time_text(oldest),
        "bytes_never_verified": never,
        "walk": f"segment {current.segment}, byte {current.offset}" if current else None,
        "next_at": time_text(state.next) if state.next else None,
    }


def damaged_instances(store: Store) -> dict[str, str]:
    """UIDs, place and reason of the first MOST_NAMED."""
    return {
        "/".join(record.key) if record.key else f"record {record.record_id.hex()}": (
            f"segment {record.location.segment}, byte {record.location.offset}: {record.reason}; "
            f"found {time_text(record.found_at / 1e6)}"
        )
        for record in store.index.damage(limit=MOST_NAMED)
    }


def time_text(seconds: float) -> str:
    """`seconds` since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

"""What a store is and holds, for people and scripts."""

from __future__ import annotations

from typing import Any

from streamsrv.store import lost_and_found
from streamsrv.store.opening import problems
from streamsrv.store.store import Store


def info(store: Store) -> dict[str, Any]:
    """`problems` names each part of it that cannot be served or trusted, as far as names and lengths of files
    tell; `lost_and_found` counts bytes that were cut off segments."""
    rows = store.index.segments().values()
    free, total = store.ops.space(store.layout.root)
    return {
        "store_id": store.store_id,
        "folder": str(store.layout.root),
        "about": store.index.about(),
        "index": store.index.statistics(),
        "segments": len(rows),
        "sealed": sum(row.sealed for row in rows),
        "bytes": sum(row.committed_end for row in rows),
        "live": sum(row.live for row in rows),
        "dead": sum(row.dead for row in rows),
        "disk_free": free,
        "disk_total": total,
        "lost_and_found": sum(part.stat().st_size for part in lost_and_found.parts(store.layout)),
        "problems": list(map(str, problems(store.layout, store.form, store.manifest, store.index))),
    }

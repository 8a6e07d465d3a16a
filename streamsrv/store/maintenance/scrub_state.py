"""When each byte of each segment was last verified: DATA/scrub.json, and which segment is due when.

    {"segments": {"7": {"at": 1732940000.0, "end": 1073741824}},
     "current": {"segment": 8, "offset": 524288, "began": 1732950000.0},
     "next": 1732960000.0}

Times are in seconds since 1970, UTC. `at` is the start of the last whole walk of a segment. Bytes before
`end` were verified after `at`. For a segment that was never walked, `end` is 0 and `at` is when it was first
seen. `current` is an interrupted walk. `next` is the start of the next walk.

Rules of this file
- Nothing depends on it: a missing or unreadable file means that nothing was verified yet.
- Segments are spread over the period, so that each is walked within a period after its last walk, or after it
  was first seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.rows import FIRST_RECORD, SegmentRow

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Verified:
    at: float
    end: int = 0


@dataclass(frozen=True, slots=True)
class WalkPosition:
    """Records of the segment before `offset` are verified, in a walk that began at `began`."""

    segment: int
    offset: int
    began: float


@dataclass(slots=True)
class ScrubState:
    segments: dict[int, Verified] = field(default_factory=dict)
    current: WalkPosition | None = None
    next: float = 0.0

    @classmethod
    def load(cls, path: Path) -> ScrubState:
        try:
            stored = orjson.loads(path.read_bytes())
            segments = {
                int(number): Verified(float(each["at"]), int(each["end"]))
                for number, each in stored["segments"].items()
            }
            current = stored["current"]
            position = current and WalkPosition(
                int(current["segment"]), int(current["offset"]), float(current["began"])
            )
            return cls(segments, position, float(stored["next"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls()

    def save(self, ops: FileOps, path: Path) -> None:
        """Replace the file in one step. Raises OSError."""
        fresh = path.with_suffix(".new")
        if fresh.exists():
            ops.unlink(fresh)
        fd = ops.create(fresh)
        try:
            write_all(ops, fd, [orjson.dumps(self, option=orjson.OPT_NON_STR_KEYS)], 0)
            ops.sync(fd)
        finally:
            os.close(fd)
        ops.rename(fresh, path)

    def see(self, rows: Mapping[int, SegmentRow], now: float) -> None:
        """Add new segments, drop removed ones."""
        self.segments = {number: self.segments.get(number, Verified(now)) for number in rows}
        if self.current is not None and self.current.segment not in rows:
            self.current = None

    def walked(self, segment: int, began: float, end: int) -> None:
        self.segments[segment] = Verified(began, end)
        self.current = None

    def due(self, rows: Mapping[int, SegmentRow], now: float, period: float) -> tuple[int, float] | None:
        """The segment to walk next, and in how many seconds; None without segments. `period` in seconds."""
        waiting = [row for row in rows.values() if row.committed_end > FIRST_RECORD]
        if not waiting:
            return None
        waiting.sort(key=lambda row: self.segments[row.segment].at)
        if self.current is not None:
            return self.current.segment, 0.0
        # Bytes a second, so that each is walked within a period after its last walk.
        needed, total = 0.0, 0
        for row in waiting:
            total += row.committed_end
            left = self.segments[row.segment].at + period - now
            needed = max(needed, total / max(left, 0.001))
        share = waiting[0].committed_end / needed
        self.next = min(self.next or now + share, now + share)
        return waiting[0].segment, max(self.next - now, 0.0)


def verified_until(state: ScrubState, rows: Mapping[int, SegmentRow]) -> tuple[float | None, int]:
    """The oldest time of verification, or None; and the number of bytes never verified."""
    times: list[float] = []
    never = 0
    for number, row in rows.items():
        known = state.segments.get(number, Verified(0.0))
        never += max(row.committed_end - max(known.end, FIRST_RECORD), 0)
        times += [known.at] if known.end else []
    return (min(times) if times else None), never

"""The counts and failures of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence

FAILED = "failed"
MOST_FAULTS = 1_000  # that are kept for JSON


class RunReport:
    """Thread-safe. `names` are the names of its counts, in their order. If `aloud` it prints each failure at
    once."""

    def __init__(self, names: Sequence[str], *, aloud: bool) -> None:
        self._aloud = aloud
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)
        self._bytes = 0
        self._faults: list[str] = []

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self._counts.values())

    def count_bytes(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def fail(self, text: str) -> None:
        with self._lock:
            self._counts[FAILED] += 1
            if self._aloud:
                print(f"failed  {text}")
            elif len(self._faults) < MOST_FAULTS:
                self._faults.append(text)

    def line(self) -> str:
        """For a progress line."""
        counts = "  ".join(f"{count:,} {name}" for name, count in self._counts.items() if count)
        return f"{counts}  {self._bytes / 1e6:,.0f} MB"

    def print(self, *, as_json: bool, quiet: bool, more: Mapping[str, object] | None = None) -> int:
        """Prints the summary, as JSON with `more`; returns the exit code."""
        counts = {**self._counts, "bytes": self._bytes}
        failed = self._counts[FAILED]
        if as_json:
            print(json.dumps({"ok": not failed, **counts, **(more or {}), "failures": self._faults}))
        elif not quiet or failed:
            print(", ".join(f"{count} {name}" for name, count in counts.items()))
        return 1 if failed else 0

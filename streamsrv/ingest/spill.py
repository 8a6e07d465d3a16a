"""What of a store transaction waits for its commit: in memory up to a limit, then in an unnamed temporary
file.

A body may hold 100,000 instances, and nothing of it is committed before its last byte: a store transaction
answers for all its parts or for none.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from typing import IO

from streamsrv.store import Prepared, Record

# Instances kept in memory: 512 of a CT hold 2 MB.
SPILL_AFTER = 512


class Spill:
    """A queue of (Record, Prepared) that holds at most SPILL_AFTER of them in memory; the rest wait in an
    unnamed file."""

    def __init__(self) -> None:
        self._recent: list[tuple[Record, Prepared]] = []
        self._file: IO[bytes] | None = None
        self._records: list[Record] = []  # records hold descriptors: they stay, their instances spill
        self._portions = 0  # in the file

    def append(self, pair: tuple[Record, Prepared]) -> None:
        self._recent.append(pair)
        if len(self._recent) >= SPILL_AFTER:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="streamsrv-")  # noqa: SIM115 - closed by close()
        self._records += (record for record, _ in self._recent)
        # In one go, for neighbours share the text that they keep together.
        pickle.dump([new for _, new in self._recent], self._file, pickle.HIGHEST_PROTOCOL)
        self._portions += 1
        self._recent = []

    def __iter__(self) -> Iterator[tuple[Record, Prepared]]:
        if self._file is not None:
            self._file.seek(0)
            records = iter(self._records)
            for _ in range(self._portions):
                yield from ((next(records), new) for new in pickle.load(self._file))
        yield from self._recent

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._recent, self._records, self._portions = None, [], [], 0

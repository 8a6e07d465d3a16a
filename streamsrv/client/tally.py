"""The result of each file, from the response dataset of a store transaction (PS3.18 10.5.3, Annex I).

Rule: a file is stored only if the response names it. A file that the response does not name has failed.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from streamsrv.client.connection import Reply, failures_of, stored_of
from streamsrv.client.files import Batch, FoundFile

# PS3.18 Table I.2-2, and the reasons of this server.
REASONS = {
    272: "processing failure",
    290: "SOP class not supported",
    43264: "not a DICOM file, or one of its UIDs is missing or malformed",
    43265: "belongs to another study than the one in the URL",
    45070: "already stored",
    49152: "elements not understood",
}
ALREADY_STORED = 45070
NO_REASON = 0  # a failure of the client or of HTTP


class Verdict(enum.Enum):
    STORED = "stored"
    ALREADY = "already stored"
    FAILED = "failed"
    SKIPPED = "skipped"


class Failure(NamedTuple):
    path: Path
    reason: int
    text: str

    def __str__(self) -> str:
        code = f"{self.reason} (0x{self.reason:04X}) " if self.reason else ""
        return f"{self.path}: {code}{self.text}"


@dataclass(slots=True)
class Tally:
    """Counts the results of all files. The threads and the progress bar share it."""

    counts: Counter[Verdict] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    sent: int = 0  # bytes, those sent again included
    done: int = 0  # bytes of files with a result
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, found: FoundFile, verdict: Verdict, failure: Failure | None = None) -> None:
        with self.lock:
            self.counts[verdict] += 1
            self.done += found.size
            if failure is not None:
                self.failures.append(failure)

    def fail(self, found: FoundFile, reason: int, text: str) -> None:
        self.count(found, Verdict.FAILED, Failure(found.path, reason, text))


def judge(batch: Batch, reply: Reply, tally: Tally) -> None:
    """Counts each file of the batch by the response dataset (PS3.18 10.5.3).

    The SOP Instance UID identifies a file; of two files with one UID the first was stored. Failures
    without a UID come in the order of the parts, and belong to the files that the response does not
    name."""
    waiting: dict[str, Batch] = {}
    for found in batch:
        waiting.setdefault(found.uid, []).append(found)

    def take(uid: str) -> FoundFile | None:
        named = waiting.get(uid) if uid else None
        return named.pop(0) if named else None

    dataset = reply.dataset
    for uid in stored_of(dataset):
        if (stored := take(uid)) is not None:
            tally.count(stored, Verdict.STORED)
    unnamed = []
    for uid, reason, comment in failures_of(dataset):
        if (refused := take(uid)) is not None:
            _refuse(refused, reason, comment, tally)
        else:
            unnamed.append((reason, comment))
    rest = sorted((found for named in waiting.values() for found in named), key=batch.index)
    for position, found in enumerate(rest):
        if position < len(unnamed):
            _refuse(found, *unnamed[position], tally)
        else:
            tally.fail(found, NO_REASON, f"the response (status {reply.status}) does not name it")


def _refuse(found: FoundFile, reason: int, comment: str, tally: Tally) -> None:
    if reason == ALREADY_STORED:
        tally.count(found, Verdict.ALREADY)
        return
    text = REASONS.get(reason, "refused")
    tally.fail(found, reason, f"{text}: {comment}" if comment else text)


def summary(tally: Tally) -> Iterator[str]:
    for failure in tally.failures:
        yield f"failed  {failure}"
    yield ", ".join(f"{tally.counts[verdict]} {verdict.value}" for verdict in Verdict)


def succeeded(tally: Tally, *, already_stored_ok: bool) -> bool:
    """Returns whether all files but the skipped ones are in the store, and there is at least one."""
    fine = tally.counts[Verdict.STORED] + (tally.counts[Verdict.ALREADY] if already_stored_ok else 0)
    return fine > 0 and fine == sum(tally.counts.values()) - tally.counts[Verdict.SKIPPED]

"""The scrub process: it reads the segments that are due, and ends when none is due soon.

processes.py says how it starts; its argument has the memory of the counters. Before it ends the process
writes to standard output in how many seconds the next segment is due. It may be killed at any moment: the
next process continues. It runs at the lowest priority of the scheduler and of the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path

from streamsrv.companions.child import STDIN, begin
from streamsrv.errors import StreamsrvError
from streamsrv.metrics import MetricsBoard, ServerCell
from streamsrv.options import store_options
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.store.maintenance.check import Severity
from streamsrv.store.maintenance.scrub import DAY, Pace, Scrub

log = logging.getLogger("streamsrv.scrub")

# Seconds. A process that would wait longer than LONGEST_WAIT ends; the next one starts after LONGEST_PAUSE at
# the latest, and then finds new segments.
SHORTEST_WAIT, LONGEST_WAIT, LONGEST_PAUSE = 1.0, 20.0, 3600.0


class SupervisorGone(Exception):
    pass


def sleep(seconds: float) -> None:
    """Raises SupervisorGone when standard input has ended."""
    if select.select([STDIN], [], [], max(seconds, 0.0))[0] and not os.read(STDIN, 1):
        raise SupervisorGone


class CountedPace(Pace):
    """A pace that counts the bytes."""

    def __init__(self, rate: int, board: MetricsBoard) -> None:
        super().__init__(rate, sleep=sleep)
        self._board = board

    def take(self, length: int) -> None:
        self._board.add(ServerCell.SCRUB_BYTES, length)
        super().take(length)


def scrub_due(store: Store, settings: Settings, board: MetricsBoard) -> float:
    """Reads the segments that are due; returns the seconds until the next one is due."""
    scrub = Scrub(store, CountedPace(settings.scrub_rate, board))
    while True:
        segment, seconds = scrub.due(settings.scrub_days * DAY) or (0, LONGEST_PAUSE)
        if seconds > LONGEST_WAIT:
            return min(seconds, LONGEST_PAUSE)
        sleep(max(seconds, SHORTEST_WAIT))
        for finding in scrub.run(segment):
            level = logging.ERROR if finding.severity is Severity.ERROR else logging.INFO
            log.log(level, "scrub: %s: %s", finding.where, finding.what)
        log.info("scrub: segment %d is verified", segment)
        board.add(ServerCell.SCRUB_SEGMENTS)


def main() -> int:
    board = MetricsBoard(*json.loads(sys.argv[1]))
    settings = begin(signal.SIGINT)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        with Store.open(Path(settings.data), store_options(settings)) as store:
            print(scrub_due(store, settings, board), flush=True)
    except SupervisorGone:
        return 0
    except (StreamsrvError, OSError) as error:
        log.error("scrub: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

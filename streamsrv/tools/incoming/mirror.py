"""Brings the studies of another DICOMweb server to a destination.

Strategy: the studies are listed first. Each thread takes the next one, and asks for the instances that the
table of the run (pulled.py) does not have. The change feed of a source names instances that were replaced
since the last run; they are asked for as well. One request brings a study of which nothing is there, else a
series, else an instance. Instances are stored while they arrive, in batches.

Rules
- An answer that ends early, or lacks instances, is not asked for as a whole again. The missing instances
  are asked for by series, then one by one.
- A failure counts when an instance has failed alone, or when the destination has named it.
- In memory are a page of search results and a piece of an instance for each thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from streamsrv.client.changes import ChangesLost, RemoteChanges
from streamsrv.client.connection import ReplyError, ServiceRefused
from streamsrv.client.downloads import DownloadFailed, InstanceGone
from streamsrv.client.studies import AnswerEnded, PartPieces, RemoteStudies, path_of
from streamsrv.client.verb import Verdict
from streamsrv.errors import StreamsrvError
from streamsrv.tools.incoming.landing import Destination, Landed, Landing
from streamsrv.tools.incoming.pulled import GONE, PlannedStudy, PulledInstances, WantedResource
from streamsrv.tools.incoming.run_report import FAILED, RunReport
from streamsrv.tools.progress import ProgressLine

STUDIES, UNCHANGED, REPLACED = "studies", "unchanged", "replaced at the source"
COUNTED = (STUDIES, UNCHANGED, REPLACED, Verdict.STORED.value, Verdict.ALREADY.value, GONE, FAILED)
KEPT = "the source has replaced it, and the target keeps its own: see on_duplicate"
LOST = "the source does not list all changes since the last run: --again brings replaced instances"


class Mirror:
    """One run."""

    def __init__(
        self,
        remote: RemoteStudies,
        changes: RemoteChanges,
        destination: Destination,
        table: PulledInstances,
        report: RunReport,
    ) -> None:
        self._remote = remote
        self._changes = changes
        self._destination = destination
        self._table = table
        self._report = report
        self._stopped: BaseException | None = None

    def run(
        self,
        parameters: Sequence[tuple[str, str]],
        parallel: int,
        line: ProgressLine,
        *,
        every_instance: bool = False,
        again: bool = False,
    ) -> None:
        """With `every_instance` the number of instances does not tell whether a study has changed. With
        `again` all instances are brought. Raises StreamsrvError if a service fails as a whole."""
        try:
            self._follow(again)
            self._report.add(STUDIES, self._table.plan(self._remote.studies(parameters)))
            self._bring(parallel, line, every_instance)
        except ServiceRefused as fault:
            raise StreamsrvError(str(fault)) from fault
        except (ReplyError, DownloadFailed, InstanceGone) as fault:
            raise StreamsrvError(f"the search failed: {fault}") from fault
        except (ConnectionError, TimeoutError) as fault:
            raise StreamsrvError(
                f"the service does not answer: {fault}: repeat the command to go on"
            ) from fault

    def _follow(self, again: bool) -> None:
        """Looks for instances that the source has replaced since the last run, if it has a change feed."""
        mark = self._table.mark
        if again:
            self._table.forget()
        if not self._changes.find():
            return
        if mark is not None and not again:
            try:
                self._report.add(REPLACED, self._table.want_again(self._changes.replaced(mark)))
            except ChangesLost:
                print(f"warning: {LOST}", file=sys.stderr)
        self._table.remember(self._changes.mark)

    def _bring(self, parallel: int, line: ProgressLine, every_instance: bool) -> None:
        studies, lock = self._table.studies(), threading.Lock()

        def work(number: int) -> None:
            with contextlib.closing(self._destination.landing()) as landing, self._stopping():
                while self._stopped is None:
                    with lock:  # a generator runs in one thread at a time
                        study = next(studies, None)
                    if study is None:
                        break
                    self._take(study, landing, line if number == 0 else None, every_instance)

        with ThreadPoolExecutor(parallel) as threads, self._stopping():
            for worker in [threads.submit(work, number) for number in range(parallel)]:
                worker.result()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """The first fault of a thread ends all."""
        try:
            yield
        except BaseException as fault:
            self._stopped = self._stopped or fault
            raise self._stopped from None

    def _take(
        self, study: PlannedStudy, landing: Landing, line: ProgressLine | None, every_instance: bool
    ) -> None:
        if study.is_same and not every_instance:
            self._report.add(UNCHANGED)
            return
        try:
            self._table.expect(study.uid, self._remote.instances(study.uid))
        except (DownloadFailed, ReplyError) as fault:
            self._report.fail(f"{study.uid}: {fault}")
            return
        except InstanceGone:  # the study was deleted meanwhile
            return
        for level in (self._table.whole, self._table.whole_series, self._table.single):
            for wanted in level(study.uid):
                self._retrieve(wanted, landing, line)
        self._table.finish(study.uid)

    def _retrieve(self, wanted: WantedResource, landing: Landing, line: ProgressLine | None) -> None:
        def take(parts: Iterator[PartPieces]) -> None:
            for pieces in parts:
                if self._stopped is not None:
                    raise StreamsrvError("another thread has failed") from self._stopped
                self._report.count_bytes(landing.take("", pieces))
                if landing.is_full:
                    self._settle(wanted, landing.flush())
                if line is not None:
                    line.show(self._report.line)

        reason, state = "the answer does not have it", FAILED
        try:
            self._remote.retrieve(path_of(*wanted), take, again=bool(wanted.instance))
        except AnswerEnded as fault:
            reason = str(fault)
        except InstanceGone:
            state = GONE
        except (DownloadFailed, ReplyError) as fault:
            reason = str(fault)
        self._settle(wanted, landing.flush())
        if wanted.instance and self._table.is_open(wanted):
            self._table.settle(wanted.study, [(wanted.instance, state, reason)])
            if state == GONE:
                self._report.add(GONE)
            else:
                self._report.fail(f"{' '.join(wanted)}: {reason}")

    def _settle(self, wanted: WantedResource, results: list[Landed]) -> None:
        states = []
        for landed in results:
            uid = landed.uid or wanted.instance
            if landed.verdict is Verdict.ALREADY and self._table.is_replaced(wanted.study, uid):
                landed = landed._replace(verdict=Verdict.FAILED, text=KEPT)
            if landed.verdict is not Verdict.FAILED:
                states.append((uid, landed.verdict.value, ""))
                self._report.add(landed.verdict.value)
            elif uid:  # others are asked for one by one
                states.append((uid, FAILED, landed.text))
                self._report.fail(f"{wanted.study} {uid}: {landed.text}")
        self._table.settle(wanted.study, states)

"""The verb: arguments, threads, progress bar, exit code, and the result of each file, which the response
dataset names (PS3.18 10.5.3, Annex I).

Strategy: each of `--parallel` threads takes the next batch, sends it in one request on its own
connection, and counts the result of each file.

Rules
- A file is stored only if the response names it. A file that the response does not name has failed.
- After a 429 or 503 with Retry-After, or a lost connection, a batch is sent again. A batch that is refused
  as a whole is sent again file by file, so that one bad file does not affect the others.
- If the service accepts no request at all (401, its certificate), the verb stops and says so once.
- The progress bar is on standard error, if that is a terminal. The summary is on standard output.
"""

from __future__ import annotations

import argparse
import enum
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from streamsrv.client import credentials
from streamsrv.client.connection import (
    STORED,
    UNNAMED,
    Reply,
    ReplyError,
    ServiceRefused,
    StoreConnection,
    results_of,
)
from streamsrv.client.credentials import Credentials, service_url
from streamsrv.client.files import Batch, FoundFile, Limit, batches, examine, files_under, size_of
from streamsrv.errors import InstanceRefused, NotDicom

LONGEST_WAIT = 60.0  # seconds between two attempts, also if the service asks for more
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


def find(paths: Sequence[Path], tally: Tally, log: TextIO, *, add_meta: bool) -> Iterator[FoundFile]:
    """Yields the files to send. A file that is no Part 10 file is skipped in a folder, and is a failure if
    the command line names it."""
    for path, by_name in files_under(paths):
        try:
            yield examine(path, add_meta=add_meta)
        except OSError as fault:
            tally.fail(FoundFile(path, 0, ""), NO_REASON, fault.strerror or str(fault))
        except (NotDicom, InstanceRefused) as fault:
            found = FoundFile(path, size_of(path), "")
            if by_name or isinstance(fault, InstanceRefused):
                tally.fail(found, NO_REASON, fault.detail)
            else:
                print(f"skipped {path}: {fault.detail}", file=log)
                tally.count(found, Verdict.SKIPPED)


class Sender:
    """Sends batches in one thread, until each of their files has a result."""

    def __init__(
        self, url: str, tally: Tally, *, retries: int, timeout: float, login: Credentials | None = None
    ) -> None:
        self.tally = tally
        self.retries = retries
        self.connection = StoreConnection(url, timeout, self._count_sent, login)

    def _count_sent(self, sent: int) -> None:
        with self.tally.lock:
            self.tally.sent += sent

    def send(self, batch: Batch) -> None:
        try:
            reply = self.reply_to(batch)
            if reply.status in (200, 202, 409):
                judge(batch, reply, self.tally)
                return
        except ServiceRefused as fault:
            self.tally.stop(str(fault), batch)
            return
        except (OSError, ReplyError) as fault:
            for found in batch:
                self.tally.fail(found, NO_REASON, str(fault) or type(fault).__name__)
            return
        if len(batch) > 1:
            for found in batch:
                self.send([found])
        else:
            self.tally.fail(batch[0], NO_REASON, reply.explanation())

    def reply_to(self, batch: Batch) -> Reply:
        """The first answer other than 429 and 503, or the last one after all retries."""
        for attempt in range(self.retries):
            try:
                reply = self.connection.store(batch)
            except (ConnectionError, TimeoutError):
                time.sleep(min(LONGEST_WAIT, 0.25 * 2**attempt))
                continue
            if reply.status not in (429, 503):
                return reply
            time.sleep(min(LONGEST_WAIT, reply.retry_after()))
        return self.connection.store(batch)


class Bar:
    """The progress bar: one line on a terminal, which a thread draws five times a second."""

    WIDTH = 30

    def __init__(self, tally: Tally, total: int, stream: TextIO) -> None:
        self.tally = tally
        self.total = max(total, 1)
        self.stream = stream
        self.width = 0  # of the last line
        self.started = time.monotonic()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._draw_often, daemon=True)

    def line(self) -> str:
        share = min(1.0, self.tally.done / self.total)
        seconds = max(time.monotonic() - self.started, 1e-3)
        filled = "#" * round(share * self.WIDTH)
        return (
            f"[{filled:.<{self.WIDTH}}] {share:4.0%}  {self.tally.sent / 1e6 / seconds:.0f} MB/s  "
            f"{self.tally.counts[Verdict.STORED]} stored, {self.tally.counts[Verdict.FAILED]} failed"
        )

    def _draw_often(self) -> None:
        while not self.done.wait(0.2):
            self._draw("")

    def _draw(self, end: str) -> None:
        """Blanks cover the end of a longer line. Old terminals of Windows know no escape sequences."""
        line = self.line()
        print(f"\r{line:<{self.width}}", end=end, file=self.stream, flush=True)
        self.width = len(line)

    def __enter__(self) -> Bar:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.done.set()
        self.thread.join()
        self._draw("\n")


def send_all(
    paths: Sequence[Path], url: str, args: argparse.Namespace, tally: Tally, login: Credentials
) -> None:
    source = batches(find(paths, tally, sys.stderr, add_meta=args.add_meta), args.batch)
    lock = threading.Lock()

    def work() -> None:
        sender = Sender(url, tally, retries=args.retries, timeout=args.timeout, login=login)
        try:
            while not tally.refusal:
                with lock:  # a generator runs in one thread at a time
                    batch = next(source, None)
                if batch is None:
                    return
                sender.send(batch)
        finally:
            sender.connection.close()

    with ThreadPoolExecutor(args.parallel) as threads:
        for worker in [threads.submit(work) for _ in range(args.parallel)]:
            worker.result()


def limit_of(text: str) -> Limit:
    """Reads "100" as a number of instances and "64MB" as a size."""
    match = re.fullmatch(r"([1-9]\d*)([kMG]B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of instances (100) nor a size (64MB)")
    number, unit = int(match[1]), match[2]
    return Limit(size=number * {"kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]) if unit else Limit(number)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", type=Path, help="a DICOM file, or a folder with DICOM files")
    add("--url", required=True, type=service_url, help="base URL with version: http://127.0.0.1:8943/v2")
    add(
        "--batch",
        metavar="N",
        type=limit_of,
        default=Limit(),
        help="instances (200) or bytes (256MB) at once",
    )
    add("--parallel", metavar="N", type=positive, default=2, help="connections at once (2)")
    add("--retries", metavar="N", type=int, default=8, help="attempts to send again to a busy service (8)")
    add("--timeout", metavar="S", type=float, default=300.0, help="seconds of silence before giving up (300)")
    add(
        "--add-meta",
        action="store_true",
        help="also send datasets without preamble or file meta information, with both added",
    )
    add("--quiet", action="store_true", help="no progress bar, no summary unless something failed")
    credentials.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    login = credentials.credentials_of(args, args.url)
    tally = Tally(login.redact)
    if sys.stderr.isatty() and not args.quiet:
        total = sum(size_of(path) for path, _ in files_under(args.paths))
        with Bar(tally, total, sys.stderr):
            send_all(args.paths, args.url, args, tally, login)
    else:
        send_all(args.paths, args.url, args, tally, login)
    fine = succeeded(tally)
    if not (fine and args.quiet):
        print("\n".join(summary(tally)))
    return 0 if fine else 1


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
    """Counts the results of all files. The threads and the progress bar share it. `refusal` says why the
    service accepts nothing, or is empty. `redact` removes secrets from a message."""

    redact: Callable[[str], str] = str
    counts: Counter[Verdict] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    sent: int = 0  # bytes, those sent again included
    done: int = 0  # bytes of files with a result
    refusal: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, found: FoundFile, verdict: Verdict, failure: Failure | None = None) -> None:
        with self.lock:
            self.counts[verdict] += 1
            self.done += found.size
            if failure is not None:
                self.failures.append(failure)

    def fail(self, found: FoundFile, reason: int, text: str) -> None:
        self.count(found, Verdict.FAILED, Failure(found.path, reason, self.redact(text)))

    def stop(self, refusal: str, batch: Batch) -> None:
        self.refusal = self.redact(refusal)
        for found in batch:
            self.count(found, Verdict.FAILED)


def judge(batch: Batch, reply: Reply, tally: Tally) -> None:
    """Counts each file of the batch by the response dataset (PS3.18 10.5.3)."""
    for found, reason, comment in results_of(batch, reply):
        if reason == STORED:
            tally.count(found, Verdict.STORED)
        elif reason == UNNAMED:
            tally.fail(found, NO_REASON, comment)
        else:
            _refuse(found, reason, comment, tally)


def _refuse(found: FoundFile, reason: int, comment: str, tally: Tally) -> None:
    if reason == ALREADY_STORED:
        tally.count(found, Verdict.ALREADY)
        return
    text = REASONS.get(reason, "refused")
    tally.fail(found, reason, f"{text}: {comment}" if comment else text)


def summary(tally: Tally) -> Iterator[str]:
    for failure in tally.failures:
        yield f"failed  {failure}"
    if tally.refusal:
        yield f"stopped: {tally.refusal}"
    yield ", ".join(f"{tally.counts[verdict]} {verdict.value}" for verdict in Verdict)


def succeeded(tally: Tally) -> bool:
    """Returns whether all files but the skipped ones are in the store, and there is at least one."""
    fine = tally.counts[Verdict.STORED] + tally.counts[Verdict.ALREADY]
    return fine > 0 and fine == sum(tally.counts.values()) - tally.counts[Verdict.SKIPPED]

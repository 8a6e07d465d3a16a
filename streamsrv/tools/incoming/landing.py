"""Where instances are brought to: a service, in batches from a folder of its own. store_landing.py has the
folder of a store.

Rules
- An instance that is there already has landed.
- One batch of each thread waits, on the disk. A batch ends at BATCH_INSTANCES or BATCH_BYTES.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from streamsrv.client.connection import ReplyError, ServiceRefused
from streamsrv.client.credentials import Credentials
from streamsrv.client.files import FoundFile, examine
from streamsrv.client.verb import NO_REASON, Failure, Sender, Tally, Verdict, judge
from streamsrv.errors import InstanceError, StreamsrvError

BATCH_INSTANCES = 200
BATCH_BYTES = 64 << 20

Pieces: TypeAlias = Iterable[bytes | memoryview]


class Landed(NamedTuple):
    """The result of one instance. `label` is that of its `take`, `uid` its SOP Instance UID or "". `text`
    explains a failure."""

    label: str
    verdict: Verdict
    uid: str
    text: str = ""


class Landing(Protocol):
    """For one thread. Raises StreamsrvError if nothing more can be stored."""

    @property
    def is_full(self) -> bool:
        """Whether `flush` comes next."""

    def take(self, label: str, pieces: Pieces) -> int:
        """Returns the bytes of the instance. Raises the errors of `pieces`; then nothing of it is left."""

    def flush(self) -> list[Landed]:
        """The results of all instances since the last call, durable."""

    def close(self) -> None:
        """Drops instances that were not flushed. Safe to call twice."""


class Destination(Protocol):
    """Threads share it."""

    def landing(self) -> Landing: ...

    def close(self) -> None: ...


class Counted:
    """The pieces of an instance, and the number of bytes that were taken."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self.bytes += len(piece)
            yield piece


@dataclass(slots=True)
class BatchTally(Tally):
    """Keeps the result of each file of a batch."""

    results: dict[Path, tuple[Verdict, str]] = field(default_factory=dict)

    def count(self, found: FoundFile, verdict: Verdict, failure: Failure | None = None) -> None:
        code = f"{failure.reason} (0x{failure.reason:04X}) " if failure and failure.reason else ""
        self.results[found.path] = verdict, code + failure.text if failure else ""


class ServiceDestination:
    """Another service, by STOW-RS (PS3.18 10.5)."""

    def __init__(self, url: str, *, retries: int, timeout: float, login: Credentials) -> None:
        self._url = url
        self._options = retries, timeout, login

    def landing(self) -> ServiceLanding:
        retries, timeout, login = self._options
        return ServiceLanding(
            lambda tally: Sender(self._url, tally, retries=retries, timeout=timeout, login=login),
            login.redact,
        )

    def close(self) -> None:
        pass


class ServiceLanding:
    """Instances wait in files of a temporary folder."""

    def __init__(self, sender: Callable[[Tally], Sender], redact: Callable[[str], str]) -> None:
        self._tally = BatchTally(redact)
        self._sender = sender(self._tally)
        self._folder = tempfile.TemporaryDirectory(prefix="streamsrv-")
        self._labels: dict[Path, str] = {}
        self._files: list[FoundFile] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._labels) >= BATCH_INSTANCES or self._bytes >= BATCH_BYTES

    def take(self, label: str, pieces: Pieces) -> int:
        path = Path(self._folder.name, str(len(self._labels)))
        counted = Counted(pieces)
        with path.open("wb") as file:
            file.writelines(counted)
        self._labels[path] = label
        self._bytes += counted.bytes
        try:
            self._files.append(examine(path))
        except InstanceError as fault:
            self._tally.fail(FoundFile(path, counted.bytes, ""), NO_REASON, fault.detail)
        return counted.bytes

    def flush(self) -> list[Landed]:
        if self._files:
            self._send(self._files)
        uids = {found.path: found.uid for found in self._files}
        landed = [
            Landed(label, verdict, uids.get(path, ""), text)
            for path, label in self._labels.items()
            for verdict, text in (self._tally.results[path],)
        ]
        for path in self._labels:
            path.unlink()
        self._labels, self._files, self._bytes = {}, [], 0
        self._tally.results.clear()
        return landed

    def _send(self, files: list[FoundFile]) -> None:
        try:
            reply = self._sender.reply_to(files)
            if reply.status in (200, 202, 409):
                judge(files, reply, self._tally)
                return
        except (ServiceRefused, OSError, ReplyError) as fault:
            where = self._tally.redact(str(fault) or type(fault).__name__)
            raise StreamsrvError(f"the service that stores: {where}: repeat the command to go on") from fault
        if len(files) == 1:
            self._tally.fail(files[0], NO_REASON, reply.explanation())
            return
        for found in files:
            self._send([found])

    def close(self) -> None:
        self._sender.connection.close()
        self._folder.cleanup()

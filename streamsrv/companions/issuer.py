"""The process that fetches the keys of the issuer for all workers, so that no worker waits for an issuer.

processes.py says how it starts; its argument has the descriptors of the memory that the workers read.

Rules of this file
- The keys are fetched every REFRESH seconds. An unknown key causes one fetch in PAUSE seconds, however many
  workers ask.
- While the issuer cannot be reached, or answers wrongly, the former keys stay in use. A file keeps them over
  a restart, for KEPT seconds: an outage of the issuer does not become one of the server.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamsrv.companions.child import STDIN, begin
from streamsrv.oidc.discovery import Issuer, fetch_issuer, fetch_keys
from streamsrv.oidc.fetching import FetchFailed, Trust
from streamsrv.oidc.key_board import PAUSE, KeyBoard
from streamsrv.web.access.grants import FOLDER
from streamsrv.web.access.policy import trust_of

log = logging.getLogger("streamsrv.issuer")

REFRESH = 900.0  # seconds
AGAIN = PAUSE  # seconds after a failure
KEPT = 24 * 3600.0  # seconds
FILE = "issuer.json"


class KeptKeys:
    """The file of the latest keys, in the folder of grants, which others cannot write to."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self, issuer: str) -> dict[str, Any] | None:
        """None if there are no keys of this issuer, or if they are older than KEPT."""
        try:
            found = json.loads(self._file.read_bytes())
            if found["issuer"]["name"] == issuer and 0 <= time.time() - found["time"] < KEPT:
                return {name: found[name] for name in ("issuer", "keys")}
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return None

    def save(self, value: dict[str, Any]) -> None:
        """The disk may be full or read-only: then only a restart needs the issuer."""
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            draft.write_text(json.dumps(value | {"time": time.time()}))
            draft.replace(self._file)
        except OSError as error:
            log.warning("the keys of the issuer cannot be kept in %s: %s", self._file, error.strerror)


class KeyFetcher:
    """`clock` is the monotonic clock in seconds. Without `kept` no file is used."""

    def __init__(
        self,
        name: str,
        trust: Trust,
        board: KeyBoard,
        clock: Callable[[], float] = time.monotonic,
        kept: KeptKeys | None = None,
    ) -> None:
        self.due = clock()
        self._name = name
        self._trust = trust
        self._board = board
        self._clock = clock
        self._asked_from = self._documents_until = clock()
        self._issuer: Issuer | None = None
        self._failure = ""
        self._kept = kept
        former = kept.load(name) if kept is not None and board.read() is None else None
        if former is not None:
            board.write(former)

    def ask(self) -> None:
        """A worker has met an unknown key."""
        if self._clock() >= self._asked_from:
            self.due = self._clock()

    def fetch_if_due(self) -> None:
        if self._clock() < self.due:
            return
        if self._clock() >= self._documents_until:
            self._issuer, self._documents_until = None, self._clock() + REFRESH
        self._asked_from, self.due = self._clock() + PAUSE, self._clock() + REFRESH
        self._board.begin_fetch()
        try:
            self._fetch()
        except FetchFailed as error:
            self._issuer, self.due = None, self._clock() + AGAIN
            if error.detail != self._failure:
                log.warning("%s; the former keys stay in use", error.detail)
            self._failure = error.detail
        finally:
            self._board.end_fetch()

    def _fetch(self) -> None:
        if self._issuer is None:
            self._issuer = fetch_issuer(self._name, self._trust)
        keys = fetch_keys(self._issuer, self._trust)
        value = {"issuer": self._issuer._asdict(), "keys": keys}
        self._board.write(value)
        if self._kept is not None:
            self._kept.save(value)
        if self._failure or self._board.state.begun == 1:
            log.info("the issuer %s has %d keys", self._name, len(keys))
        self._failure = ""


def main() -> int:
    board = KeyBoard(*json.loads(sys.argv[1]))
    settings = begin(signal.SIGINT)
    kept = None if settings.read_only else KeptKeys(Path(settings.data) / FOLDER / FILE)
    fetcher = KeyFetcher(settings.oidc_issuer, trust_of(settings), board, kept=kept)
    while True:
        fetcher.fetch_if_due()
        wait = max(0.0, fetcher.due - time.monotonic())
        ready = select.select([STDIN, board.wake], [], [], wait)[0]
        if STDIN in ready and not os.read(STDIN, 1):
            return 0
        if board.asked():
            fetcher.ask()


if __name__ == "__main__":
    sys.exit(main())

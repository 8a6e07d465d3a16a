"""Grants of a cluster as one worker knows them: the database has them, and a loop must not wait for it.

Strategy: a grant that is not known is looked up in a thread, while its request waits; requests that come
meanwhile share the next look-up. As long as grants are known, the worker asks the database every REFRESH
seconds for those that have changed. An idle worker knows none, and asks for nothing.

Rules of this file
- No grant counts for longer than MOST_AGE seconds and one REFRESH after the database last answered for it.
- A process that was stopped goes on with the requests that wait, before its timers. So each use looks at the
  age (`is_fresh`), and not only the refresh. An answer that took longer than WAIT is dropped.
- All are forgotten REREAD seconds after the first one was read. So the worker of a client that has left goes
  idle.
- A look-up that fails is not repeated within PAUSE seconds: requests get 503 at once.
- A grant that does not exist is known as such until the next refresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from streamsrv.boot_clock import boot_seconds
from streamsrv.errors import GrantPending, KeysMissing, StoreError
from streamsrv.store import ChangedTexts, NamedText, WatchedDocuments
from streamsrv.web.access.grants import MOST, Grant, GrantDamaged, Grants, file_of, grant_in

log = logging.getLogger("streamsrv.access")

# Seconds.
REFRESH = 0.4  # between two looks at changes of grants
MOST_AGE = 0.7
REREAD = 60.0
PAUSE = 1.0
WAIT = 10.0  # of a request for a look-up
THREADS = 2
UNREADABLE = "the server cannot look up credentials now: try again"
SOURCE = "source"  # of a session or share: the grant that it depends on


class SharedGrants:
    """Used in the loop of a worker. `changed` is called when a grant that was found may not hold any more."""

    def __init__(
        self,
        grants: Grants,
        documents: WatchedDocuments,
        changed: Callable[[], None],
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self._grants = grants
        self._documents = documents
        self._changed = changed
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "grants")
        self._known: dict[str, Grant | GrantDamaged] = {}
        self._absent: set[str] = set()  # apart, so that a flood of them displaces none that is known
        # Of all known ones: their least version, when they were the same, when the first one was read.
        self._version, self._sure, self._first = 0, 0.0, 0.0
        self._heard = 0.0  # when the database last answered, for `is_fresh`
        self._round = 0  # grows when all are forgotten
        self._wanted: set[str] = set()
        self._next: asyncio.Future[None] | None = None  # done after the look-up of the wanted ones
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = self._polling = False
        self._failed = -PAUSE

    def find(self, kind: str, digest: str) -> Grant | None:
        """Raises GrantPending if it has to be looked up, KeysMissing while that fails, and GrantDamaged."""
        file = file_of(kind, digest)
        if not self.is_fresh():
            self.forget_all()
        found = self._known.get(file)
        if found is None and file not in self._absent:
            raise self._unknown(file)
        if isinstance(found, GrantDamaged):
            raise found
        return found

    def is_fresh(self) -> bool:
        """Whether those that were found may still count."""
        return not self._known or self._clock() - self._heard <= MOST_AGE + REFRESH

    def _unknown(self, file: str) -> GrantPending | KeysMissing:
        if self._clock() - self._failed < PAUSE:
            return KeysMissing("the database of the grants does not answer", UNREADABLE)
        self._wanted.add(file)
        return GrantPending("the credentials have to be looked up", UNREADABLE)

    async def fetched(self) -> None:
        """Waits until those that `find` did not know have been looked up, for WAIT seconds at most."""
        if self._wanted:
            await asyncio.wait([self.fetch()], timeout=WAIT)

    def fetch(self) -> asyncio.Future[None]:
        """Begins to look up those that `find` did not know."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if not self._looking:
            self._looking = True
            self._spawn(self._look_up_all())
        return self._next

    async def _look_up_all(self) -> None:
        try:
            while self._next is not None:
                done, self._next = self._next, None
                names, self._wanted = self._wanted, set()
                began = self._clock()
                try:
                    found = await self._in_thread(partial(self._look_up, names))
                    self._keep(found, began)
                except StoreError as error:
                    log.warning("grants cannot be looked up: %s", error.detail)
                    self._failed = self._clock()
                finally:
                    done.set_result(None)
        finally:
            self._looking = False

    def _look_up(self, names: Iterable[str]) -> ChangedTexts:
        """With the grants on which those depend. The version is that of the first look-up."""
        version, texts, wanted = None, dict[str, bytes | None](), set(names)
        while wanted:
            found = self._documents.read_several(sorted(wanted))
            version = found.version if version is None else version
            texts |= found.texts
            wanted = {name for each in found.texts.items() for name in self._sources(*each)} - texts.keys()
        return ChangedTexts(version or 0, texts)

    def _sources(self, file: str, text: bytes | None) -> Iterable[str]:
        found = self._read(file, text)
        source = found.extra.get(SOURCE) if isinstance(found, Grant) else None
        return (file_of(source["kind"], source["digest"]),) if source else ()

    def _read(self, file: str, text: bytes | None) -> Grant | GrantDamaged | None:
        if text is None:
            return None
        try:
            return grant_in(NamedText(file, text), self._grants.where(file))
        except GrantDamaged as error:
            return error

    def _keep(self, found: ChangedTexts, began: float) -> None:
        now = self._clock()
        if now - began > WAIT:
            return
        if not self.is_fresh():
            self.forget_all()
        self._heard = now
        if not self._known:
            self._version, self._sure, self._first = found.version, began, began
        self._version, self._sure = min(self._version, found.version), min(self._sure, began)
        moved = [file for file, text in found.texts.items() if self._differs(file, text)]
        for file, text in found.texts.items():
            grant = self._read(file, text)
            if grant is None:
                self._absent.add(file)
                self._known.pop(file, None)
            else:
                self._known[file] = grant
        while len(self._known) > MOST:  # it is not watched any more
            moved.append(next(iter(self._known)))
            del self._known[moved[-1]]
        if moved:
            self._changed()

    # Changes

    def refresh(self) -> bool:
        """Called every REFRESH seconds. Whether a grant that was found may not hold any more."""
        self._absent.clear()
        if not self._known:
            return False
        now = self._clock()
        if now - self._sure > MOST_AGE or now - self._first > REREAD:
            self.forget_all()
            return True
        if not self._polling:
            self._polling = True
            self._spawn(self._poll())
        return False

    def forget(self, kind: str, digest: str) -> None:
        """It was changed a moment ago."""
        if self._known.pop(file_of(kind, digest), None) is not None:
            self._changed()

    def forget_all(self) -> None:
        self._known = {}
        self._round += 1
        self._changed()

    async def _poll(self) -> None:
        """Forgets those that have changed."""
        before, asked, began = self._round, self._version, self._clock()
        try:
            found = await self._in_thread(partial(self._documents.changed_since, asked))
        except StoreError as error:
            log.warning("changes of grants cannot be looked for: %s", error.detail)
            return
        finally:
            self._polling = False
        if before != self._round:
            return
        if self._version == asked:  # else a long look-up has ended meanwhile, which may lack changes
            self._version, self._sure = found.version, began
            self._heard = max(self._heard, began)
        gone = [file for file, text in found.texts.items() if self._differs(file, text)]
        for file in gone:
            del self._known[file]
        if gone:
            self._changed()

    def _differs(self, file: str, text: bytes | None) -> bool:
        return file in self._known and self._read(file, text) != self._known[file]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _in_thread(self, call: Callable[[], ChangedTexts]) -> asyncio.Future[ChangedTexts]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

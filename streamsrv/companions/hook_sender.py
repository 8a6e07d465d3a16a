"""The process that sends changes to hooks: one event after the other, until the receiver has taken it.

processes.py says how it starts. It reads the index, so no request waits for it.

Strategy: a thread a hook reads the events behind its cursor (events/tail.py), within the rule of the hook.
The cursor moves when the receiver has taken the event, so each arrives at least once. A failure is repeated
after growing pauses; after some of them the event is a dead letter, and the next one follows. delivery.py
posts an event, forwarding.py sends the instances of a study.

Rules of this file
- One process sends the hooks of a store. It holds a lease; another one waits for it.
- At the end of the server it finishes the deliveries that have begun, and then ends its lease.
- The lease is looked at before each delivery, and saving a cursor depends on it. So a process of a cluster
  that was stopped sends and saves nothing when it wakes up, as another one has gone on meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from streamsrv.audit.entries import AuditEntry, Event
from streamsrv.companions.child import STDIN, begin
from streamsrv.companions.delivery import HookTarget, NotDelivered, Webhook
from streamsrv.companions.forwarding import DicomwebPeer, Forwarder, Peer, Refusal, StoredInstance
from streamsrv.errors import StreamsrvError
from streamsrv.events import ChangeTail, EventPosition, ToldEvent
from streamsrv.events.hooks import ASSOCIATIONS, Hook, Hooks, hooks_of
from streamsrv.events.messages import event_id, message_id, position_from
from streamsrv.events.tail import COMPLETE, RESET
from streamsrv.options import audit_trail, store_options
from streamsrv.settings import Settings
from streamsrv.store import Lease, LeaseLost, Store

log = logging.getLogger("streamsrv.hooks")

# Seconds.
LOOK = 0.5
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 300.0
SAVE_EVERY = 1.0
COUNT_EVERY = 5.0  # the changes that wait, while an event does not arrive
AGAIN = 5.0  # until a thread that has failed starts again


def require(lease: Lease) -> None:
    """Raises LeaseLost."""
    if not lease.holds():
        raise LeaseLost("another process sends the hooks of this store")


class LeasedPeer:
    """A peer that gets nothing without the lease."""

    def __init__(self, peer: Peer, lease: Lease) -> None:
        self._peer = peer
        self._lease = lease
        self.close = peer.close

    def send(self, batch: Sequence[StoredInstance]) -> list[Refusal]:
        """Raises LeaseLost, and as the peer does."""
        require(self._lease)
        return self._peer.send(batch)


class HookSender:
    """Sends the events of one hook until `ended`, which waits so many seconds, is True. Raises LeaseLost when
    another process has begun to send."""

    def __init__(
        self,
        hook: Hook,
        hooks: Hooks,
        tail: ChangeTail,
        target: HookTarget,
        epoch: str,
        ended: Callable[[float], bool],
        lease: Lease,
    ):
        self._hook = hook
        self._hooks = hooks
        self._tail = tail
        self._target = target
        self._epoch = epoch
        self._ended = ended
        self._lease = lease
        self._state = self._kept = hooks.state(hook.name)
        self._saved = 0.0

    def run(self) -> None:
        """Raises StreamsrvError and OSError."""
        self._begin()
        self._follow()
        self._count()
        self._save()

    def _follow(self) -> None:
        while not self._ended(0):
            events = self._tail.read()
            for event in events:
                if not self._send(event):
                    return
            if not events:
                if not self._send_again():
                    return
                self._moved(self._tail.position)
                self._count()
                self._save()
                self._ended(LOOK)

    def _begin(self) -> None:
        last = self._state.last_id
        position = position_from(last, self._epoch) if last else None
        if self._tail.begin(position) and (position is not None or not last):
            if not last:
                self._moved(self._tail.position)
                self._save()
            return
        place = self._tail.position
        body = orjson.dumps({"action": RESET, "sequence": place.sequence})
        self._send(ToldEvent(place, RESET, "", body))

    def _send(self, event: ToldEvent) -> bool:
        """False if it has ended before."""
        if event.name not in (*self._hook.events, RESET):
            self._moved(event.position)
            return True
        if not self._delivered(event):
            return False
        self._moved(event.position)
        self._save_sometimes()
        return True

    def _send_again(self) -> bool:
        """Sends the dead letters that the operator wants to be tried again. False if it has ended before."""
        letters = self._hooks.again(self._hook.name)
        for letter in letters:
            members = orjson.loads(letter)
            name, sequence = members["action"], members["sequence"]
            position = EventPosition(sequence, sequence if name == COMPLETE else 0)
            event = ToldEvent(position, name, members.get("studyInstanceUid", ""), letter.encode())
            if name != RESET and not self._delivered(event):
                return False
        if letters:
            self._hooks.forget_again(self._hook.name, self._lease)
            self._state = self._state._replace(dead=len(self._hooks.dead(self._hook.name)))
        return True

    def _delivered(self, event: ToldEvent) -> bool:
        """Whether it was delivered or given up. False if the sender has ended before."""
        name, pause = message_id(self._epoch, event), FIRST_PAUSE
        while not self._ended(0):
            require(self._lease)
            try:
                sent = self._target.deliver(name, event)
            except NotDelivered as error:
                if error.progress:
                    pause = FIRST_PAUSE
                self._failed(error)
                if error.most and self._state.refused >= error.most:
                    self._hooks.bury(self._hook.name, error.letter or event.data, self._lease)
                    log.error("hook %s: an event is a dead letter: %s", self._hook.name, error)
                    self._state = self._state._replace(dead=self._state.dead + 1)
                    break
                self._pause(max(pause, min(error.after, LONGEST_PAUSE)))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                done = self._state.delivered + sent
                self._state = self._state._replace(delivered=done, error="", last_success=time.time())
                break
        else:
            return False
        self._state = self._state._replace(attempts=0, refused=0)
        return True

    def _failed(self, error: NotDelivered) -> None:
        if not self._state.error:
            log.warning("hook %s: %s; it is tried again", self._hook.name, error)
        attempts, refused = self._state.attempts + 1, self._state.refused + (error.most > 0)
        self._state = self._state._replace(attempts=attempts, refused=refused, error=str(error)[:300])
        self._count()
        self._save()

    def _pause(self, seconds: float) -> None:
        while seconds > 0 and not self._ended(min(seconds, COUNT_EVERY)):
            seconds -= COUNT_EVERY
            if seconds > 0:
                self._count()
                self._save()

    def _count(self) -> None:
        """Notes how many changes are behind the cursor."""
        reached = position_from(self._state.last_id, self._epoch) if self._state.last_id else None
        waiting = self._tail.last_sequence() - reached.sequence if reached else 0
        self._state = self._state._replace(waiting=max(waiting, 0))

    def _moved(self, position: EventPosition) -> None:
        self._state = self._state._replace(last_id=event_id(self._epoch, position), attempts=0, refused=0)

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._count()
            self._save()

    def _save(self) -> None:
        if self._kept != self._state:
            self._hooks.save(self._hook, self._state, self._lease)
            self._kept = self._state
        self._saved = time.monotonic()


class HookThreads:
    """A thread for each hook of the store."""

    def __init__(self, settings: Settings, store: Store, hooks: Hooks, lease: Lease) -> None:
        self._settings = settings
        self._store = store
        self._hooks = hooks
        self._lease = lease
        self._trail = audit_trail(settings)
        self._running: dict[Hook, tuple[threading.Thread, threading.Event]] = {}
        self._started: dict[Hook, float] = {}

    def look(self) -> None:
        """Starts threads of new hooks, and of those that have failed; ends those of removed hooks."""
        hooks = set(self._hooks.all())
        for hook in set(self._running) - hooks:
            self._running.pop(hook)[1].set()
            del self._started[hook]
        for hook in hooks:
            alive = hook in self._running and self._running[hook][0].is_alive()
            if not alive and time.monotonic() >= self._started.get(hook, -AGAIN) + AGAIN:
                self._start(hook)

    def end(self) -> None:
        """Waits for the deliveries that have begun."""
        for _, ended in self._running.values():
            ended.set()
        for thread, _ in self._running.values():
            thread.join()

    def _start(self, hook: Hook) -> None:
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(hook, ended.wait), name=hook.name, daemon=True)
        self._running[hook], self._started[hook] = (thread, ended), time.monotonic()
        thread.start()

    def _run(self, hook: Hook, ended: Callable[[float], bool]) -> None:
        view = self._store if hook.rule is None else self._store.restricted(hook.rule)
        if hook.forwards and not self._settings.study_quiet:
            log.error("hook %s: no study is ever complete, because `study_quiet` is 0", hook.name)
        try:
            target = self._forwarder(hook, view) if hook.forwards else Webhook(hook)
            tail = ChangeTail(view, self._store, self._settings.study_quiet)
            epoch = self._store.index.about()["epoch"]
            try:
                HookSender(hook, self._hooks, tail, target, epoch, ended, self._lease).run()
            finally:
                target.close()
        except (StreamsrvError, OSError) as error:
            log.error("hook %s: %s", hook.name, error)

    def _forwarder(self, hook: Hook, view: Store) -> Forwarder:
        def record(study: str) -> None:
            if self._trail is None:
                return
            entry = AuditEntry(time.time(), Event.SENT, user=f"hook:{hook.name}", study=study)
            self._trail.append([entry._replace(detail=hook.url, request=secrets.token_hex(8))])

        return Forwarder(hook, view, LeasedPeer(self._peer(hook, view), self._lease), record)

    def _peer(self, hook: Hook, view: Store) -> Peer:
        if not hook.url.startswith(ASSOCIATIONS):
            return DicomwebPeer(hook)
        # No other hook needs codecs, which take memory.
        module: Any = importlib.import_module("streamsrv.companions.association_peer")
        peer: Peer = module.AssociationPeer(hook, view, self._settings)
        return peer


def main() -> int:
    settings = begin(signal.SIGINT, signal.SIGTERM)
    hooks = hooks_of(settings)
    try:
        with contextlib.closing(hooks.documents):
            pause = LOOK
            while not _has_ended(pause):
                with hooks.sending() as lease:
                    if lease is not None:
                        _send(settings, hooks, lease)
                pause = max(LOOK, hooks.documents.patience)
        return 0
    except (StreamsrvError, OSError) as error:
        log.error("%s", error)
    return 1


def _send(settings: Settings, hooks: Hooks, lease: Lease) -> None:
    """Returns when the supervisor has ended, or the lease is lost."""
    with Store.open(Path(settings.data), store_options(settings), read_only=True) as store:
        threads = HookThreads(settings, store, hooks, lease)
        threads.look()
        while not _has_ended(LOOK):
            if not lease.holds():
                log.warning("another process sends the hooks now: this one was silent for too long")
                break
            threads.look()
        threads.end()


def _has_ended(seconds: float) -> bool:
    """Waits for the end of the supervisor, so many seconds at most."""
    return bool(select.select([STDIN], [], [], seconds)[0]) and not os.read(STDIN, 1)


if __name__ == "__main__":
    sys.exit(main())

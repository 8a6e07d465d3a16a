"""The process that sends changes to hooks: one POST an event, in order, until the receiver has answered 2xx.

processes.py says how it starts. It reads the index, so no request waits for it.

Strategy: a thread a hook reads the events behind its cursor (events/tail.py). The cursor moves when the
receiver has taken the event, so each arrives at least once. A failure is repeated after growing pauses; after
ATTEMPTS the event is a dead letter, and the next one follows.

Rules of this file
- A host is resolved once for each request, all of its addresses are checked, and the connection goes to a
  checked address. Loopback, link-local and the like are refused unless the hook allows them.
- Redirects are not followed: they count as failures.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from streamsrv import __version__
from streamsrv.companions.child import STDIN, begin
from streamsrv.errors import StreamsrvError
from streamsrv.events import ChangeTail, EventPosition, ToldEvent
from streamsrv.events.hooks import RESET, Hook, Hooks, signature
from streamsrv.events.messages import event_id, position_from
from streamsrv.options import store_options
from streamsrv.settings import Settings
from streamsrv.store import Store

log = logging.getLogger("streamsrv.hooks")

# Seconds.
LOOK, DEADLINE = 0.5, 20.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 300.0
ATTEMPTS = 20  # within an hour
SAVE_EVERY = 1.0


class NotDelivered(Exception):
    """The receiver did not take an event."""


def checked_address(host: str, port: int, *, local: bool) -> tuple[str, int]:
    """An address of the host. Raises NotDelivered if one of them is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotDelivered(f"{host} has no address: {error.strerror}") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not local and not is_allowed(address):
            raise NotDelivered(f"{host} has the address {address}, which is not allowed")
    return addresses[0], port


def is_allowed(address: str) -> bool:
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(known, "ipv4_mapped", None) or known
    return not (
        mapped.is_loopback
        or mapped.is_link_local
        or mapped.is_unspecified
        or mapped.is_multicast
        or mapped.is_reserved
    )


class _Connection(http.client.HTTPConnection):
    """To an address that was checked before; `context` is None without TLS."""

    def __init__(self, host: str, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        super().__init__(host, address[1], timeout=DEADLINE)
        self._address = address
        self._context = context

    def connect(self) -> None:
        self.sock = socket.create_connection(self._address, DEADLINE)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def deliver(hook: Hook, message_id: str, body: bytes) -> None:
    """One attempt. Raises NotDelivered."""
    parts, now = urlsplit(hook.url), int(time.time())
    host, secure = parts.hostname or "", parts.scheme == "https"
    address = checked_address(host, parts.port or (443 if secure else 80), local=hook.local)
    connection = _Connection(host, address, ssl.create_default_context() if secure else None)
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        "Content-Type": "application/json",
        "User-Agent": f"streamsrv/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(hook.secret, message_id, now, body),
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotDelivered(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise NotDelivered(f"the receiver answered {status}")


class HookSender:
    """Sends the events of one hook until `ended`, which waits so many seconds, is True."""

    def __init__(
        self, hook: Hook, hooks: Hooks, tail: ChangeTail, epoch: str, ended: Callable[[float], bool]
    ):
        self._hook = hook
        self._hooks = hooks
        self._tail = tail
        self._epoch = epoch
        self._ended = ended
        self._state = hooks.state(hook.name)
        self._saved = 0.0

    def run(self) -> None:
        """Raises StreamsrvError and OSError."""
        self._begin()
        while not self._ended(0):
            events = self._tail.read()
            for event in events:
                if not self._send(event):
                    return
            if not events:
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
        message_id, pause = event_id(self._epoch, event.position), FIRST_PAUSE
        while not self._ended(0):
            try:
                deliver(self._hook, message_id, event.data)
            except NotDelivered as error:
                self._failed(str(error))
                if self._state.attempts >= ATTEMPTS:
                    self._hooks.bury(self._hook.name, event.data)
                    log.error("hook %s: an event is a dead letter: %s", self._hook.name, error)
                    self._state = self._state._replace(dead=self._state.dead + 1)
                    break
                self._ended(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                done = self._state.delivered + 1
                self._state = self._state._replace(delivered=done, error="", last_success=time.time())
                break
        else:
            return False
        self._moved(event.position)
        self._save_sometimes()
        return True

    def _failed(self, reason: str) -> None:
        if not self._state.error:
            log.warning("hook %s: %s; it is tried again", self._hook.name, reason)
        self._state = self._state._replace(attempts=self._state.attempts + 1, error=reason[:300])
        self._save()

    def _moved(self, position: EventPosition) -> None:
        self._state = self._state._replace(last_id=event_id(self._epoch, position), attempts=0)

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        if (
            self._hooks.named(self._hook.name) is not None
            and self._hooks.state(self._hook.name) != self._state
        ):
            self._hooks.save(self._hook.name, self._state)
        self._saved = time.monotonic()


class HookThreads:
    """A thread for each hook of the folder."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._hooks = Hooks(Path(settings.data))
        self._running: dict[Hook, tuple[threading.Thread, threading.Event]] = {}

    def look(self) -> None:
        """Starts threads of new hooks, and of those that have failed; ends those of removed hooks."""
        hooks = set(self._hooks.all())
        for hook in set(self._running) - hooks:
            self._running.pop(hook)[1].set()
        for hook in hooks:
            if hook not in self._running or not self._running[hook][0].is_alive():
                self._start(hook)

    def _start(self, hook: Hook) -> None:
        ended = threading.Event()
        tail = ChangeTail(self._store, self._store, self._settings.study_quiet)
        sender = HookSender(hook, self._hooks, tail, self._store.index.about()["epoch"], ended.wait)
        thread = threading.Thread(target=self._run, args=(hook, sender), name=hook.name, daemon=True)
        self._running[hook] = thread, ended
        thread.start()

    @staticmethod
    def _run(hook: Hook, sender: HookSender) -> None:
        try:
            sender.run()
        except (StreamsrvError, OSError) as error:
            log.error("hook %s: %s", hook.name, error)


def main() -> int:
    settings = begin(signal.SIGINT, signal.SIGTERM)
    try:
        with Store.open(Path(settings.data), store_options(settings), read_only=True) as store:
            threads = HookThreads(settings, store)
            while not (select.select([STDIN], [], [], LOOK)[0] and not os.read(STDIN, 1)):
                threads.look()
            return 0
    except (StreamsrvError, OSError) as error:
        log.error("%s", error)
    return 1


if __name__ == "__main__":
    sys.exit(main())

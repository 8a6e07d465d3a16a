"""The process that sends the audit trail to a syslog receiver, as messages of DICOM PS3.15 A.5 over TLS
(RFC 5424, RFC 5425).

processes.py says how it starts. It reads the files of the trail, so no request waits for it.

Strategy: TCP does not tell whether the receiver has read the sent bytes, but the end of TLS does. A receiver
answers the close_notify of the sender with its own (RFC 5425 4.4), after it has read everything before. So
each batch has a connection of its own, and the cursor moves when the close_notify is there. After any other
end the batch is sent again. So an entry is received at least once, also if the receiver is away for weeks.

Rules of this file
- The receiver proves its name by its certificate. There is no way to send without TLS.
- A receiver that ends without close_notify, but without an error, has read the batch: it closes the
  connection because it has read its end. It may have been killed right then, so a second connection proves
  that it lives.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from streamsrv.audit.cursor import Cursor, Unsent
from streamsrv.audit.messages import syslog_frame
from streamsrv.companions.child import STDIN, begin
from streamsrv.options import audit_folder
from streamsrv.settings import Settings

log = logging.getLogger("streamsrv.audit")

# Seconds: between two looks at the trail, to connect, for the end of a batch, between two attempts.
LOOK, CONNECT, CONFIRM = 0.5, 10.0, 30.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
BATCH = 500  # entries


class ServerEnded(Exception):
    pass


def sleep(seconds: float) -> None:
    """Raises ServerEnded when standard input has ended."""
    if select.select([STDIN], [], [], seconds)[0] and not os.read(STDIN, 1):
        raise ServerEnded


class SyslogReceiver:
    """A syslog receiver. Raises OSError from each method."""

    def __init__(self, settings: Settings) -> None:
        host, _, port = settings.audit_syslog.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self._context = ssl.create_default_context(cafile=settings.audit_syslog_ca or None)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.audit_syslog_certificate:
            self._context.load_cert_chain(settings.audit_syslog_certificate)

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Returns when the receiver has read all frames."""
        with self._connected() as connection:
            for frame in frames:
                connection.sendall(frame)
            try:
                connection.unwrap()
                return
            except ssl.SSLEOFError:
                pass
        with self._connected():
            pass

    @contextlib.contextmanager
    def _connected(self) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection(self._address, CONNECT) as plain,
            self._context.wrap_socket(plain, server_hostname=self._address[0]) as secure,
        ):
            secure.settimeout(CONFIRM)
            yield secure


class AuditSender:
    """Sends the entries behind the cursor. `wait` is called with seconds."""

    def __init__(
        self, cursor: Cursor, receiver: SyslogReceiver, wait: Callable[[float], None] = sleep
    ) -> None:
        self._cursor = cursor
        self._receiver = receiver
        self._wait = wait
        self._host = socket.gethostname()
        self._failed = 0.0  # since when the receiver is away

    def run(self) -> None:
        """Runs until `wait` raises an exception."""
        position, pause = self._cursor.load(), FIRST_PAUSE
        while True:
            batch = list(itertools.islice(self._cursor.unsent(position), BATCH))
            if not batch:
                self._wait(LOOK)
                continue
            if self._send(batch):
                position, pause = batch[-1].after, FIRST_PAUSE
            else:
                self._wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _send(self, batch: Sequence[Unsent]) -> bool:
        frames = [syslog_frame(each.entry, each.number, self._host) for each in batch]
        try:
            self._receiver.deliver(frames)
            self._cursor.save(batch[-1].after)
        except OSError as error:
            if not self._failed:
                log.error("the audit trail cannot be sent: %s; it is sent later", error.strerror or error)
                self._failed = time.monotonic()
            return False
        if self._failed:
            log.warning("the audit trail is sent again, after %d s", time.monotonic() - self._failed)
            self._failed = 0.0
        return True


def main() -> int:
    settings = begin(signal.SIGINT, signal.SIGTERM)
    try:
        AuditSender(Cursor(audit_folder(settings)), SyslogReceiver(settings)).run()
    except ServerEnded:
        return 0
    except OSError as error:
        log.error("the audit trail cannot be sent: %s", error)
    return 1


if __name__ == "__main__":
    sys.exit(main())

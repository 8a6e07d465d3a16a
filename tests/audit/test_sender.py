"""The process that sends the audit trail: its cursor, and a receiver that comes and goes."""

import socket
import ssl
import threading

import pytest
from tls_world import made

from streamsrv.audit.cursor import Cursor, SentPosition
from streamsrv.audit.entries import AuditEntry, Event
from streamsrv.audit.trail import Trail, TrailLimits, files_of
from streamsrv.companions.audit_sender import AuditSender, SyslogReceiver
from streamsrv.settings import Settings

AT = 1_700_000_000.0


class Ended(Exception):
    pass


def filled(folder, count, **limits):
    trail = Trail(folder, TrailLimits(file_size=1_000, **limits))
    trail.append([AuditEntry(AT, Event.QUERY, query=f"/v2/studies?n={number}") for number in range(count)])
    for number in range(count, 2 * count):
        trail.append([AuditEntry(AT, Event.QUERY, query=f"/v2/studies?n={number}")])
    trail.close()


class Flaky:
    """A receiver that fails on every second batch."""

    def __init__(self):
        self.received, self.calls = [], 0

    def deliver(self, frames):
        self.calls += 1
        self.received += frames
        if self.calls % 2:
            raise ConnectionResetError(104, "reset")


def run(sender):
    with pytest.raises(Ended):
        sender.run()


class Waits:
    def __init__(self, most):
        self.waited, self._most = [], most

    def __call__(self, seconds):
        self.waited.append(seconds)
        if len(self.waited) == self._most:
            raise Ended


def test_what_may_be_lost_is_sent_again(tmp_path, monkeypatch):
    monkeypatch.setattr("streamsrv.companions.audit_sender.BATCH", 4)
    filled(tmp_path, 5)
    receiver, waits = Flaky(), Waits(4)
    run(AuditSender(Cursor(tmp_path), receiver, waits))
    assert len(receiver.received) == 20
    assert len(set(receiver.received)) == 10
    assert Cursor(tmp_path).load().entry == 10
    assert waits.waited == [1.0, 1.0, 1.0, 0.5]
    receiver.received.clear()
    run(AuditSender(Cursor(tmp_path), receiver, Waits(1)))
    assert receiver.received == []


def test_a_cursor_goes_on_behind_files_that_were_removed_and_damaged_lines(tmp_path):
    filled(tmp_path, 10)
    paths = list(files_of(tmp_path).values())
    assert len(paths) > 2
    cursor = Cursor(tmp_path)
    assert [each.number for each in cursor.unsent(SentPosition())] == list(range(1, 21))
    fourth = list(cursor.unsent(SentPosition()))[3].after
    cursor.save(fourth)
    assert cursor.load() == fourth
    assert [each.number for each in cursor.unsent(fourth)] == list(range(5, 21))
    with paths[-1].open("ab") as file:
        file.write(b'no entry\n{"n":21,"at":"20')
    assert [each.number for each in cursor.unsent(fourth)][-1] == 20
    paths[0].unlink()
    assert next(cursor.unsent(SentPosition())).number > 1
    (tmp_path / "sent").write_text("nonsense")
    assert cursor.load() == SentPosition()


def test_files_that_were_not_sent_are_not_removed(tmp_path):
    filled(tmp_path, 10, keep_days=1e-9, keep_unsent=True)
    assert 1 in files_of(tmp_path)
    filled(tmp_path / "other", 10, keep_days=1e-9)
    assert 1 not in files_of(tmp_path / "other")


def test_a_receiver_with_a_certificate_of_another_name_gets_nothing(tmp_path):
    pair = made(tmp_path, "receiver", extensions=("subjectAltName=DNS:localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    received = []

    def serve(listener):
        for _ in range(2):
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    received.append(secure.recv(100))
                    secure.unwrap()
            except (ssl.SSLError, OSError):
                received.append(None)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        SyslogReceiver(settings(f"localhost:{port}", pair)).deliver([b"5 hello"])
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            SyslogReceiver(settings(f"127.0.0.1:{port}", pair)).deliver([b"5 hello"])
        thread.join()
    assert received[0] == b"5 hello"
    assert received[1] in (None, b"")


def settings(receiver, pair):
    return Settings(audit_syslog=receiver, audit_syslog_ca=str(pair.certificate))

"""TLS at the level of one socket: each way to send, a client of every pace, the end of either side."""

import asyncio
import contextlib
import os
import random
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from web_world import DEADLINE

sys.path.append(str(Path(__file__).parents[1]))

from tls_world import authority, ended, made

from streamsrv.settings import Settings
from streamsrv.web.connection.certificates import BadCertificate, ServerCertificate
from streamsrv.web.connection.clients import Meter, TurnQueue
from streamsrv.web.connection.tls import PIECE, RECEIVED, TlsSession, TlsSocket
from streamsrv.web.sending.sources import send_file_now
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer, ByteStream, Literal, Span

SIZE = 3 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(folder):
    return made(folder, "server")


@pytest.fixture(scope="module")
def context(pair):
    settings = Settings(tls_certificate=str(pair.certificate), tls_key=str(pair.key))
    return ServerCertificate.make(settings).context(settings)


@pytest.fixture
def segment(tmp_path):
    content = random.Random(7).randbytes(SIZE)
    path = tmp_path / "segment"
    path.write_bytes(content)
    source = os.open(path, os.O_RDONLY)
    yield source, content
    os.close(source)


class Line:
    """The server's end of a connection whose handshake has ended. The client decrypts in memory."""

    def __init__(self, context, pair, version=ssl.TLSVersion.TLSv1_3):
        ours, self.client = socket.socketpair()
        for each in (ours, self.client):
            each.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        self.server = TlsSocket(ours.detach(), TlsSession(context, memoryview(bytearray(RECEIVED))))
        trusting = pair.context()
        trusting.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = trusting.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        done = {"client": False, "server": False}
        while not all(done.values()):
            try:
                self.engine.do_handshake()
                done["client"] = True
            except ssl.SSLWantReadError:
                pass
            self.flush()
            done["server"] = done["server"] or self.server.shake_hands()
            self.receive()

    def flush(self):
        if self.outgoing.pending:
            self.client.send(self.outgoing.read())

    def receive(self, most=1 << 20):
        """Takes ciphertext off the line. False at its end."""
        try:
            received = self.client.recv(most)
        except BlockingIOError:
            return True
        self.incoming.write(received)
        return bool(received)

    def plain(self):
        """All plaintext that has arrived."""
        found = bytearray()
        while True:
            try:
                piece = self.engine.read(1 << 16)
            except ssl.SSLWantReadError:
                return bytes(found)
            if not piece:
                return bytes(found)
            found += piece

    def say(self, data):
        self.engine.write(data)
        self.flush()


@pytest.fixture
def new_line(context, pair):
    with contextlib.ExitStack() as stack:

        def make(**options):
            line = Line(context, pair, **options)
            stack.callback(line.server.close)
            stack.callback(line.client.close)
            return line

        yield make


@pytest.fixture
def line(new_line):
    return new_line()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bytes_of_every_length_arrive_in_order_at_a_client_of_every_pace(new_line, version):
    chance, line = random.Random(3), new_line(version=version)
    text = chance.randbytes(1_500_000)
    sent, received = 0, bytearray()
    while len(received) < len(text):
        if sent < len(text):
            # A later call may be shorter than the one that was not taken.
            piece = text[sent : sent + chance.choice((1, 7, 1000, 20_000, PIECE, 300_000))]
            try:
                taken = line.server.send(piece)
                assert 0 < taken <= len(piece)
                sent += taken
            except BlockingIOError:
                pass
        line.receive(chance.choice((1, 100, 5_000, 100_000)))
        received += line.plain()
        # Bytes that count as sent have left this process, so that a client that stopped is noticed.
        assert len(line.server.session.unsent) <= PIECE + 1000
    assert bytes(received) == text
    assert sent == len(text)


def test_what_counts_as_sent_grows_with_what_the_client_takes(line):
    text, sent = bytes(1 << 20), 0
    while True:
        try:
            sent += line.server.send(memoryview(text)[sent:])
        except BlockingIOError:
            break
    assert 0 < sent < 10 * PIECE
    for _ in range(50):
        line.receive(10_000)
    assert 0 < line.server.send(memoryview(text)[sent:]) < 10 * PIECE


def test_files_are_sent_as_by_sendfile(line, segment):
    source, content = segment
    sent, received = 0, bytearray()
    while len(received) < SIZE - 5:
        try:
            sent += line.server.send_from(source, 5 + sent, SIZE - 5 - sent)
        except BlockingIOError:
            pass
        line.receive()
        received += line.plain()
    assert bytes(received) == content[5:]
    assert line.server.send_from(source, SIZE, 10) == 0  # the end of the file


def test_a_frame_between_its_texts(line, segment):
    source, content = segment
    line.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
    assert send_file_now(line.server, source, 100, 90_000, b"head", b"tail") == 90_008
    line.receive()
    assert line.plain() == b"head" + content[100:90_100] + b"tail"


@pytest.mark.parametrize("pace", [3_000, 1 << 20])
async def test_a_transfer_of_every_kind_of_piece(line, segment, pace):
    source, content = segment
    stream = ByteStream(lambda start, stop: iter([b"made " * 3000, b"now"]), 15_003)
    plan = (
        Literal(b"head"),
        Span(1, 11, 700_000),
        Literal(b"middle"),
        stream,
        Span(1, 5, 3_000),
        Literal(b"."),
    )
    expected = b"head" + content[11:700_011] + b"middle" + b"made " * 3000 + b"now" + content[5:3_005] + b"."
    answer = Answer(200, [], plan, len(expected), file_at=lambda number, at: (source, at))
    with ThreadPoolExecutor(2) as pool:
        transfer = Transfer(line.server, answer, pool, Meter(lambda: None, 0.0), TurnQueue())
        transfer.start()
        received = bytearray()
        async with asyncio.timeout(DEADLINE):
            while len(received) < len(expected):
                line.receive(pace)
                received += line.plain()
                await asyncio.sleep(0)
            await transfer.done
    assert bytes(received) == expected
    assert transfer.sent == len(expected)


def test_reading_takes_what_has_arrived_and_no_more(line):
    buffer = bytearray(10)
    with pytest.raises(BlockingIOError):
        line.server.recv_into(buffer)
    line.say(b"0123456789abcdef")
    assert line.server.recv(1, socket.MSG_PEEK) == b"0"
    assert line.server.recv(1, socket.MSG_PEEK) == b"0"
    assert line.server.recv_into(buffer) == 10
    assert buffer == b"0123456789"
    assert line.server.has_ahead  # the kernel reports nothing of these
    assert line.server.recv(100) == b"abcdef"
    assert not line.server.has_ahead


def test_a_client_that_shuts_its_side_still_reads(line):
    line.say(b"the request")
    with pytest.raises(ssl.SSLWantReadError):
        line.engine.unwrap()
    line.flush()
    assert line.server.recv(100) == b"the request"
    assert line.server.recv(100) == b""
    assert line.server.recv(100) == b""
    line.server.send(b"the answer")
    line.server.shutdown(socket.SHUT_WR)
    line.receive()
    assert line.engine.read(100) == b"the answer"
    assert not line.receive()
    line.engine.unwrap()  # the closing alert of the server has arrived


def test_an_answer_that_was_cut_has_no_closing_alert(line):
    line.server.send(b"half an ans")
    line.server.cut()
    line.server.close()
    line.receive()
    assert line.plain() == b"half an ans"
    assert not line.receive()
    line.incoming.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        line.engine.read(1)


def test_changed_bytes_end_the_connection(line):
    line.engine.write(b"hello")
    record = bytearray(line.outgoing.read())
    record[-1] ^= 1
    line.client.send(record)
    with pytest.raises(ConnectionResetError, match="not TLS"):
        line.server.recv(10)


@pytest.fixture
def settings(pair):
    return {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}


def refusal(**changed):
    with pytest.raises(BadCertificate) as refused:
        ServerCertificate.make(Settings(**changed))
    return refused.value.detail


def test_credentials_that_cannot_be_used_are_named(folder, settings, tmp_path):
    other = made(folder, "other")
    assert "does not belong to the certificate" in refusal(**settings | {"tls_key": str(other.key)})
    assert "/nowhere cannot be read" in refusal(**settings | {"tls_key": "/nowhere"})
    assert "has no certificate" in refusal(**settings | {"tls_certificate": str(Path(__file__))})
    assert "has no private key" in refusal(**settings | {"tls_key": ""})
    assert "no effect without tls_certificate" in refusal(tls_key=settings["tls_key"])
    assert "tls_client_ca" in refusal(**settings | {"tls_client_ca": settings["tls_key"]})
    locked = tmp_path / "locked.key"
    os.system(f"openssl pkey -in {other.key} -aes128 -passout pass:secret -out {locked}")
    assert "is encrypted" in refusal(tls_certificate=str(other.certificate), tls_key=str(locked))


@pytest.mark.parametrize(("mode", "fine"), [(0o600, True), (0o640, True), (0o644, False), (0o660, False)])
def test_the_key_is_for_its_owner_and_group(folder, tmp_path, mode, fine):
    pair = made(tmp_path, "open")
    pair.key.chmod(mode)
    flags = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    if fine:
        assert ServerCertificate.make(Settings(**flags))
    else:
        assert f"mode {mode:04o}" in refusal(**flags)


def test_a_bad_renewal_changes_nothing(tmp_path):
    pair = made(tmp_path, "renewed")
    settings = Settings(tls_certificate=str(pair.certificate), tls_key=str(pair.key))
    certificate = ServerCertificate.make(settings)
    first = os.pread(certificate.pair, 1 << 16, 0)
    pair.key.write_text("half a k")
    with pytest.raises(BadCertificate):
        certificate.renew(settings)
    assert os.pread(certificate.pair, 1 << 16, 0) == first
    certificate.context(settings)
    made(tmp_path, "renewed")
    certificate.renew(settings)
    assert os.pread(certificate.pair, 1 << 16, 0) != first


def remarks(pair, **more):
    settings = Settings(tls_certificate=str(pair.certificate), tls_key=str(pair.key), **more)
    return list(ServerCertificate.make(settings).remarks(settings))


def test_a_certificate_that_clients_refuse_now_or_soon_is_mentioned(tmp_path):
    assert not remarks(made(tmp_path, "good"))
    signer = authority(tmp_path)
    issued = made(tmp_path, "issued", signer=signer)
    assert not remarks(issued, tls_client_ca=str(signer.certificate))
    (soon,) = remarks(made(tmp_path, "soon", days=5))
    assert re.fullmatch(r"the certificate ends on 20\d\d-\d\d-\d\d: renew it, then send SIGHUP", soon)
    assert remarks(ended(tmp_path)) == ["clients refuse the certificate: certificate has expired"]
    client = made(tmp_path, "client", extensions=("extendedKeyUsage=clientAuth",))
    (wrong,) = remarks(client)
    assert wrong.startswith("clients refuse the certificate: ")

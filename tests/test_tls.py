"""HTTPS over the server's own port, the renewal of its certificate, certificates of clients, the Unix socket.

Clients are curl, openssl, dicomweb-client and Python's own.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session
from live_server import free_port, start_server
from pydicom import dcmread
from pydicom.data import get_testdata_file
from small_client import file_of, key_of, multipart
from tls_world import authority, connection, fetched, made
from waiting import waited

KEY = key_of(1, 1, 1)
FILE = file_of(KEY, 1, 3 << 20)
CT = Path(get_testdata_file("CT_small.dcm"))
STORE = {"Content-Type": "multipart/related; type=application/dicom; boundary=between-the-parts"}
WHOLE = {"Accept": "application/dicom; transfer-syntax=*"}
INSTANCE = "/v2/studies/{}/series/{}/instances/{}".format(*KEY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def pair(folder):
    return made(folder, "server")


@pytest.fixture(scope="module")
def server(folder, pair):
    flags = [*pair.flags, "--unix-socket", str(folder / "proxy.sock"), "--head-timeout", "1.5"]
    server = start_server(folder, *flags, "--hsts-max-age", "600", workers=1, context=pair.context())
    assert fetched(server, "/v2/studies", method="POST", body=multipart([FILE]), headers=STORE)[0] == 200
    yield server
    assert server.end() == 0
    assert not (folder / "proxy.sock").exists()
    assert "Traceback" not in server.log.read_text()


def address_of(server):
    return "127.0.0.1", int(server.origin.rpartition(":")[2])


def raw(server, context=None):
    plain = socket.create_connection(address_of(server), timeout=20)
    return (context or server.context).wrap_socket(plain, server_hostname="localhost")


def received(sock):
    pieces = []
    while piece := sock.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def test_curl_retrieves_and_stores(server, pair, tmp_path):
    (tmp_path / "new.dcm").write_bytes(file_of(key_of(1, 1, 2), 1, 100_000))
    words = ["curl", "-sS", "--fail", "--cacert", str(pair.certificate)]
    sent = ["-T", tmp_path / "new.dcm", "-X", "POST", "-H", "Content-Type: application/dicom"]
    sent += ["-H", "Expect: 100-continue", f"{server.url}/studies"]
    done = subprocess.run([*words, *sent], capture_output=True, check=True)
    assert b"https://127.0.0.1" in done.stdout  # the URLs of the answer
    assert b"http://" not in done.stdout
    found = subprocess.run(
        [*words, "-H", f"Accept: {WHOLE['Accept']}", server.origin + INSTANCE],
        capture_output=True,
        check=True,
    )
    assert found.stdout == FILE


def test_dicomweb_client_over_tls(server, pair):
    session = create_session()
    session.trust_env = False  # a variable of the machine would replace the certificate
    session.verify = str(pair.certificate)
    client = DICOMwebClient(server.url, session=session)
    assert client.search_for_studies()[0]["0020000D"]["Value"] == [KEY[0]]
    found = client.retrieve_instance(*KEY)
    assert found.PixelData == dcmread(io.BytesIO(FILE)).PixelData


def test_openssl_agrees_on_http_1_1_and_a_modern_cipher(server, pair):
    port = server.origin.rpartition(":")[2]
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(pair.certificate)]
    for version in ("-tls1_2", "-tls1_3"):
        done = subprocess.run(
            [*words, "-alpn", "h2,http/1.1", version], capture_output=True, text=True, input=""
        )
        assert "Verify return code: 0 (ok)" in done.stdout
        assert "ALPN protocol: http/1.1" in done.stdout
        assert "AES_256_GCM" in done.stdout or "ECDHE-ECDSA-AES" in done.stdout
    old = subprocess.run(
        [*words, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], capture_output=True, text=True, input=""
    )
    assert "Cipher is (NONE)" in old.stdout
    asked = subprocess.run(  # R asks for a new handshake
        [*words, "-tls1_2"], capture_output=True, text=True, input="R\n", timeout=20
    )
    assert "no renegotiation" in asked.stderr


def test_answers_of_all_three_ways_are_the_same_over_tls(server):
    """A frame is cached when its instance is a second or two old."""
    line = connection(server, server.context)
    line.request("POST", "/v2/studies", CT.read_bytes(), {"Content-Type": "application/dicom"})
    path = json.loads(line.getresponse().read())["00081199"]["Value"][0]["00081190"]["Value"][0]
    path = path.removeprefix(server.origin) + "/frames/1"
    frames = set()

    def all_ways_answered():
        line.request("GET", path, headers={"Accept": 'multipart/related; type="application/octet-stream"'})
        answer = line.getresponse()
        frames.add(answer.read())
        assert answer.headers["Strict-Transport-Security"] == "max-age=600"
        lines = [each for each in server.log.read_text().splitlines() if path in each]
        return {each.split()[-1] for each in lines} == {"plain", "known-headers", "cached-frame"}

    waited(all_ways_answered)
    line.close()
    assert len(frames) == 1
    assert dcmread(CT).PixelData in frames.pop()


def test_pipelined_requests_in_one_record_and_in_many(server):
    request = b"GET /v2/studies HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = request.replace(b"Host", b"Connection: close\r\nHost")
    with raw(server) as sock:
        sock.sendall(request * 3 + last)
        assert received(sock).count(b"HTTP/1.1 200 OK") == 4
    with raw(server) as sock:
        for byte in request * 2 + last:
            sock.send(bytes((byte,)))
        assert received(sock).count(b"HTTP/1.1 200 OK") == 3


def test_requests_behind_a_slow_answer_are_read_when_it_has_ended(server):
    """The second request arrives while the server answers, and OpenSSL has decrypted its first byte."""
    request = f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\nAccept: {WHOLE['Accept']}\r\n\r\n".encode()
    with raw(server) as sock:
        for _ in range(3):  # the header block is known from the second request on
            sock.sendall(request)
            time.sleep(0.05)
        sock.sendall(request.replace(b"Host", b"Connection: close\r\nHost"))
        assert received(sock).count(FILE) == 4


def test_a_client_that_shuts_its_side_gets_its_answer(server):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = server.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    request = f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\nAccept: {WHOLE['Accept']}\r\n\r\n".encode()
    with socket.create_connection(address_of(server), timeout=20) as sock:

        def until(step):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        sock.sendall(outgoing.read())
                    piece = sock.recv(1 << 16)
                    incoming.write(piece) if piece else incoming.write_eof()

        until(engine.do_handshake)
        engine.write(request)
        with pytest.raises(ssl.SSLWantReadError):
            engine.unwrap()
        sock.sendall(outgoing.read())
        sock.shutdown(socket.SHUT_WR)
        answer = bytearray()
        with contextlib.suppress(ssl.SSLZeroReturnError):  # the closing alert of the server
            while piece := until(lambda: engine.read(1 << 16)):
                answer += piece
    assert answer.endswith(FILE)


def test_a_plain_request_to_the_port_is_told_to_use_https(server):
    done = subprocess.run(
        ["curl", "-sS", "-i", server.url.replace("https", "http") + "/studies"],
        capture_output=True,
        text=True,
    )
    assert "400 Bad Request" in done.stdout
    assert "this port speaks HTTPS" in done.stdout


def test_handshakes_that_do_not_end_are_closed_and_delay_no_request(server):
    silent = [socket.create_connection(address_of(server), timeout=20) for _ in range(20)]
    for sock in silent[:10]:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the begin of a ClientHello
    assert fetched(server, "/v2/studies")[0] == 200
    began = time.monotonic()
    for sock in silent:
        assert sock.recv(100) == b""
        sock.close()
    assert time.monotonic() - began > 0.5
    assert fetched(server, "/v2/studies")[0] == 200


def test_garbage_ends_the_handshake_and_is_counted_in_one_line(server):
    for _ in range(5):
        with socket.create_connection(address_of(server), timeout=20) as sock:
            sock.sendall(b"\x16\x03\x01\x00\x05hello and more")
            received(sock)
    waited(lambda: "TLS handshakes failed" in server.log.read_text())
    assert server.log.read_text().count("TLS handshakes failed") < 5


def test_many_handshakes_at_once(server):
    def one(_):
        return fetched(server, "/health/live")[0]

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(one, range(200))) == {200}


def test_a_proxy_reaches_the_unix_socket(server, folder):
    path = folder / "proxy.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    words = ["curl", "-sS", "--unix-socket", str(path), "-H", "Accept: application/dicom+json"]
    headers = ["-H", "X-Forwarded-Proto: https", "-H", "X-Forwarded-For: 10.1.2.3"]
    done = subprocess.run([*words, *headers, "http://localhost/v2/studies"], capture_output=True, check=True)
    url = json.loads(done.stdout)[0]["00081190"]["Value"][0]
    assert url.startswith("http://localhost/v2/")  # its peer is not in trusted_proxies
    waited(lambda: ' unix "GET /v2/studies"' in server.log.read_text())


def test_a_second_server_does_not_take_the_socket(server, folder, tmp_path):
    def refused(path):
        words = [
            "serve",
            "--data",
            str(tmp_path / "data"),
            "--port",
            str(free_port()),
            "--unix-socket",
            str(path),
        ]
        done = subprocess.run([sys.executable, "-m", "streamsrv", *words], capture_output=True, text=True)
        assert done.returncode != 0
        return done.stderr

    assert "another process listens on" in refused(folder / "proxy.sock")
    assert fetched(server, "/v2/studies")[0] == 200
    (tmp_path / "file").write_text("mine")
    assert "exists, and is no socket" in refused(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_socket_that_was_left_over_is_replaced_and_its_peer_can_be_trusted(tmp_path):
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    flags = ["--unix-socket", str(path), "--unix-socket-mode", "600", "--trusted-proxies", "unix"]
    server = start_server(tmp_path, *flags, workers=1)
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        words = ["curl", "-sS", "--unix-socket", str(path), "-H", "X-Forwarded-Proto: https"]
        words += ["-H", "X-Forwarded-Host: localhost:8443", "-H", "X-Forwarded-For: 10.1.2.3"]
        words += [
            "-H",
            "Content-Type: application/dicom",
            "--data-binary",
            "@-",
            "http://localhost/v2/studies",
        ]
        done = subprocess.run(words, capture_output=True, check=True, input=FILE)
        assert b"https://localhost:8443/v2/" in done.stdout
        waited(lambda: ' 10.1.2.3 "POST /v2/studies"' in server.log.read_text())
    finally:
        assert server.end() == 0
    assert not path.exists()


def peer_serial(server, context):
    with raw(server, context) as sock:
        return hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()


def test_a_renewed_certificate_serves_new_connections_and_a_transfer_goes_on(tmp_path):
    """A slow download and a kept connection live through a bad and a good renewal, of two workers."""
    pair = made(tmp_path, "renewed")
    server = start_server(tmp_path, *pair.flags, workers=2, context=pair.context())
    big = file_of(KEY, 1, 7 << 20)
    try:
        assert fetched(server, "/v2/studies", method="POST", body=multipart([big]), headers=STORE)[0] == 200
        first, untrusting = peer_serial(server, server.context), ssl._create_unverified_context()
        kept = connection(server, server.context)
        kept.request("GET", INSTANCE, headers=WHOLE)
        answer = kept.getresponse()
        digest = hashlib.sha256(answer.read(1 << 16))

        good = pair.key.read_text()
        pair.key.write_text("not a key")
        server.process.send_signal(signal.SIGHUP)
        waited(lambda: "the old one stays: tls_key" in server.log.read_text())
        assert {peer_serial(server, untrusting) for _ in range(4)} == {first}
        pair.key.write_text(good)

        made(tmp_path, "renewed")
        server.process.send_signal(signal.SIGHUP)
        waited(lambda: first not in {peer_serial(server, untrusting) for _ in range(6)})
        while piece := answer.read(1 << 20):
            digest.update(piece)
        answer.close()
        assert digest.digest() == hashlib.sha256(big).digest()
        kept.request("GET", "/health/live")
        assert kept.getresponse().read()
        kept.close()
        assert fetched(server, "/health/live", context=pair.context())[0] == 200
    finally:
        assert server.end() == 0


def test_certificates_of_clients_are_required(tmp_path):
    pair = made(tmp_path, "server")
    signer = authority(tmp_path)
    known = made(
        tmp_path, "known", subject="/CN=viewer", extensions=("subjectAltName=email:a@b.c",), signer=signer
    )
    stranger = made(tmp_path, "stranger", subject="/CN=viewer")
    flags = [*pair.flags, "--tls-client-ca", str(signer.certificate)]
    server = start_server(tmp_path, *flags, workers=1, context=pair.context(known))
    try:
        assert fetched(server, "/v2/studies")[0] == 204
        for context in (pair.context(), pair.context(stranger)):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                fetched(server, "/v2/studies", context=context)
        words = ["curl", "-sS", "--cacert", pair.certificate, "--cert", known.certificate, "--key", known.key]
        done = subprocess.run([*words, f"{server.url}/studies", "-w", "%{http_code}"], capture_output=True)
        assert done.stdout == b"204"
    finally:
        assert server.end() == 0


def test_a_key_that_everyone_can_read_is_refused_at_the_start(tmp_path):
    pair = made(tmp_path, "server")
    pair.key.chmod(0o644)
    words = ["serve", "--data", str(tmp_path / "data"), "--port", str(free_port()), *pair.flags]
    done = subprocess.run([sys.executable, "-m", "streamsrv", *words], capture_output=True, text=True)
    assert done.returncode != 0
    assert "mode 0644" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_key_is_in_the_settings_or_in_the_arguments_of_a_process(server, pair):
    secret = pair.key.read_text().splitlines()[1]
    pid = server.process.pid
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    for each in (pid, *children):
        for name in ("cmdline", "environ"):
            with open(f"/proc/{each}/{name}", "rb") as file:
                assert secret.encode() not in file.read()
    shown = subprocess.run([sys.executable, "-m", "streamsrv", "settings", *pair.flags], capture_output=True)
    assert secret.encode() not in shown.stdout
    assert secret not in server.log.read_text()
    assert os.path.exists(pair.key)

"""DIMSE in TLS: dcmtk as the client with and without a certificate, and as the destination of C-MOVE."""

import socket
import ssl
import subprocess

import pytest
from dimse_archive import Archive, dataset_of
from dimse_client import associate_request
from dimse_studies import STUDY, files
from kill_world import verb, waited
from live_server import free_port
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove
from tls_world import authority, made

FILES = {uid: file for uid, file in files().items() if uid.startswith(STUDY)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def pair(folder):
    return made(folder, "server", key="rsa")


@pytest.fixture(scope="module")
def clients(folder):
    """The authority of the clients, and a client."""
    of_clients = authority(folder, "clients")
    return of_clients, made(folder, "client", subject="/CN=CT1", signer=of_clients, key="rsa")


@pytest.fixture(scope="module")
def destination():
    return free_port()


@pytest.fixture(scope="module")
def archive(folder, pair, clients, destination):
    flags = ["--dimse-peers", "CT1 -> store search read", "--dimse-tls", *pair.flags]
    flags += ["--tls-client-ca", str(clients[0].certificate), "--tls-client-certificates", "optional"]
    flags += ["--dimse-destinations", f"SCP@localhost:{destination} tls,WRONG@127.0.0.2:{destination} tls"]
    flags += ["--dimse-ca", str(pair.certificate), "--head-timeout", "3"]
    running = Archive(folder / "archive", *flags, context=pair.context())
    yield running
    running.end()


def dcmtk(tool, pair, port, *words, client=None):
    shown = ["+tla"] if client is None else ["+tls", str(client.key), str(client.certificate)]
    command = [tool, *shown, "+cf", str(pair.certificate), "-aet", "CT1", "-aec", "STREAMSRV"]
    command += ["localhost", str(port), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_dcmtk_stores_and_moves(archive, pair, clients, destination, folder):
    (folder / "sent").mkdir()
    for uid, file in FILES.items():
        (folder / "sent" / f"{uid}.dcm").write_bytes(file)
    assert dcmtk("echoscu", pair, archive.port).returncode == 0
    sent = [folder / "sent" / f"{uid}.dcm" for uid in FILES if uid != f"{STUDY}.1.2"]
    assert dcmtk("storescu", pair, archive.port, *sent, client=clients[1]).returncode == 0
    rle = folder / "sent" / f"{STUDY}.1.2.dcm"
    assert dcmtk("storescu", pair, archive.port, "-xr", rle).returncode == 0
    command = ["storescp", "+tls", str(pair.key), str(pair.certificate), "+cf", str(pair.certificate)]
    command += ["-aet", "SCP", "+xa", "-B", "-od", str(folder), "-fe", ".got", str(destination)]
    receiver = subprocess.Popen(command)
    try:
        waited(lambda: accepts(destination), "storescp")
        moved, wrong = (move(archive, pair, title) for title in ("SCP", "WRONG"))
        assert (moved.Status, moved.NumberOfCompletedSuboperations) == (0, len(FILES))
        assert wrong.Status == 0xA702
        assert "CERTIFICATE_VERIFY_FAILED" in archive.log()
    finally:
        receiver.terminate()
        receiver.wait(20)
    got = sorted(dataset_of(path.read_bytes()) for path in folder.glob("*.got"))
    assert got == sorted(map(dataset_of, FILES.values()))


def move(archive, pair, title):
    """The final response; dcmtk has no movescu with TLS."""
    ae, model = AE("CT1"), StudyRootQueryRetrieveInformationModelMove
    ae.add_requested_context(model)
    association = ae.associate(
        *("localhost", archive.port),
        ae_title="STREAMSRV",
        tls_args=(pair.context(), "localhost"),
    )
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", STUDY
    (*_, (answer, _)) = association.send_c_move(asked, title, model)
    association.release()
    return answer


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_versions_and_plain_bytes(archive, pair):
    for version, name in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
        context = pair.context()
        context.maximum_version = version
        with (
            socket.create_connection(("localhost", archive.port), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secure,
        ):
            assert secure.version() == name
    with socket.create_connection(("localhost", archive.port), timeout=10) as plain:
        plain.sendall(associate_request())
        assert plain.recv(100)[:1] in (b"", b"\x15")  # an alert
    with socket.create_connection(("localhost", archive.port), timeout=10) as silent:
        silent.settimeout(10)
        assert silent.recv(100) == b""


def test_settings_that_do_not_fit(tmp_path):
    flags = ("serve", "--data", str(tmp_path), "--dimse-port", "1", "--dimse-any-peer")
    code, said = verb(*flags, "--dimse-tls")
    assert code == 2
    assert "dimse_tls needs tls_certificate" in said
    code, said = verb(*flags, "--dimse-ca", str(tmp_path / "none.pem"))
    assert code == 2
    assert "dimse_ca" in said
    code, said = verb(*flags, "--dimse-key", str(tmp_path / "none.key"))
    assert code == 2
    assert "dimse_key has no effect" in said
    code, said = verb(*flags, "--dimse-certificate", str(tmp_path / "none.pem"))
    assert code == 2
    assert "none.pem cannot be read" in said
    (tmp_path / "wrong.pem").write_text("no certificate")
    (tmp_path / "wrong.pem").chmod(0o600)
    code, said = verb(*flags, "--dimse-certificate", str(tmp_path / "wrong.pem"))
    assert code == 2
    assert "dimse_certificate" in said

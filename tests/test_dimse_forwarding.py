"""Forwarding to DICOM peers: storescp of dcmtk, which is away at first, and Orthanc."""

import json
import subprocess

import clinic
import pydicom
import pytest
from dimse_studies import OTHER, STUDY, files
from kill_world import verb, waited
from live_server import free_port, start_server
from orthanc_peer import Orthanc
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from tls_world import authority, made

FILES = {uid: file for uid, file in files().items() if uid.startswith((f"{STUDY}.", f"{OTHER}."))}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The certificate of a peer."""
    return made(tmp_path_factory.mktemp("tls"), "peer", key="rsa")


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The authority of clients, and the certificate of the server as one of them."""
    folder = tmp_path_factory.mktemp("clients")
    of_clients = authority(folder)
    return of_clients, made(folder, "client", subject="/CN=SENDER", signer=of_clients, key="rsa")


@pytest.fixture(scope="module")
def source(tmp_path_factory, pair, clients):
    flags = ["--hooks", "--study-quiet", "0.3", "--aet", "SENDER", "--dimse-ca", str(pair.certificate)]
    flags += ["--dimse-certificate", str(clients[1].certificate), "--dimse-key", str(clients[1].key)]
    running = start_server(tmp_path_factory.mktemp("source"), *flags, workers=1)
    yield running
    running.end()


def row_of(source, name):
    rows = json.loads(verb("hook", "list", "--json", "--data", str(source.data))[1])
    return next(row for row in rows if row["name"] == name)


def forward(source, url, name, *words, allow=("--allow-local",)):
    code, said = verb("hook", "forward", url, "--name", name, *allow, *words, "--data", str(source.data))
    assert code == 0, said
    waited(lambda: row_of(source, name)["sequence"] is not None, "the begin of the hook")


def received(folder):
    """Syntax and pixels of each instance, by its UID."""
    found = [pydicom.dcmread(each) for each in folder.iterdir()]
    return {each.SOPInstanceUID: (each.file_meta.TransferSyntaxUID, each) for each in found}


def test_studies_arrive_at_dicom_peers(source, pair, clients, tmp_path):
    """Peers that take every syntax, with TLS and certificates of clients too, and implicit VR only; the last
    one is away at first."""
    ports = {title: free_port() for title in ("ALL", "TLS", "PLAIN", "ORTHANC")}
    for title, port in ports.items():
        scheme = "aets" if title == "TLS" else "aet"
        forward(source, f"{scheme}://{title}@localhost:{port}", title.lower())
    forward(source, "aet://LOCAL@localhost:104", "local", allow=())
    folders = {title: tmp_path / title for title in ports}
    for folder in folders.values():
        folder.mkdir()

    def storescp(title, *flags):
        command = [
            "storescp",
            *flags,
            "--aetitle",
            title,
            "-od",
            str(folders[title]),
            "-uf",
            str(ports[title]),
        ]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    shown = ("+tls", str(pair.key), str(pair.certificate), "--require-peer-cert")
    shown += ("+cf", str(clients[0].certificate))
    running = [storescp("ALL", "+xa"), storescp("TLS", *shown, "+xa")]
    try:
        with Orthanc(tmp_path, 1, dicom=ports["ORTHANC"]) as orthanc:
            assert clinic.store(f"{source.url}/studies", list(FILES.values())).status == 200
            waited(lambda: row_of(source, "plain")["error"], "a failure")
            running.append(storescp("PLAIN", "+xi"))
            for name in ("all", "tls", "plain", "orthanc"):
                waited(lambda name=name: row_of(source, name)["delivered"] == 2, name)
            kept = orthanc.get("/instances?expand")
            assert {each["MainDicomTags"]["SOPInstanceUID"] for each in kept} == set(FILES)
            again = clinic.store(f"{source.url}/studies", [clinic.file_of(clinic.ct(1))])
            assert again.status == 200
            waited(lambda: len(list(folders["ALL"].iterdir())) == len(FILES) + 1, "a later study")
    finally:
        for each in running:
            each.terminate()
            each.wait(20)
    stored = {uid: pydicom.dcmread(pydicom.filebase.DicomBytesIO(file)) for uid, file in FILES.items()}
    everything, plain = received(folders["ALL"]), received(folders["PLAIN"])
    assert everything.pop(clinic.CT_INSTANCES[0])[0] == ExplicitVRLittleEndian
    assert {syntax for syntax, _ in plain.values()} == {ImplicitVRLittleEndian}
    assert {syntax for syntax, _ in everything.values()} == {ExplicitVRLittleEndian, RLELossless}
    for uid, dataset in stored.items():
        assert everything[uid][1] == dataset
        if "PixelData" in dataset:
            assert (plain[uid][1].pixel_array == dataset.pixel_array).all()
            assert plain[uid][1].AnatomicRegionSequence == dataset.AnatomicRegionSequence
    assert "not allowed" in row_of(source, "local")["error"]
    assert {row_of(source, name)["dead"] for name in ("all", "tls", "plain", "orthanc", "local")} == {0}
    assert set(received(folders["TLS"])) >= set(FILES)


def test_instances_that_a_peer_does_not_take_are_dead_letters(source, tmp_path):
    """It takes CT only."""
    port = free_port()
    profile = tmp_path / "storescp.cfg"
    profile.write_text(
        "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianExplicit\n"
        "[[PresentationContexts]]\n[CT]\nPresentationContext1 = CTImageStorage\\Plain\n"
        "[[Profiles]]\n[Default]\nPresentationContexts = CT\n"
    )
    command = ["storescp", "--aetitle", "CT", "-od", str(tmp_path), "-xf", str(profile), "Default", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        forward(source, f"aet://CT@127.0.0.1:{port}", "ct", "--query", f"StudyInstanceUID={OTHER}9")
        study = f"{OTHER}9"
        other = clinic.dataset(clinic.SecondaryCaptureImageStorage, study, f"{study}.1", f"{study}.1.1")
        clinic.store(f"{source.url}/studies", [clinic.file_of(other)])
        waited(lambda: row_of(source, "ct")["dead"], "a dead letter")
    finally:
        running.terminate()
        running.wait(20)
    said = verb("hook", "list", "--dead", "--data", str(source.data))[1]
    assert f'"{OTHER}9.1.1":"the peer takes no transfer syntax' in said


@pytest.mark.parametrize(
    "url", ["aet://", "aet://A@host", "aet://A@host:0", "aet://TOO-LONG-FOR-A-TITLE@h:1"]
)
def test_wrong_peers(tmp_path, url):
    with pytest.raises(SystemExit, match="2"):
        verb("hook", "forward", url, "--name", "x", "--data", str(tmp_path))


def test_a_dicom_peer_has_no_credentials(source, tmp_path):
    (tmp_path / "token").write_text("t")
    words = ("--token-file", str(tmp_path / "token"), "--data", str(source.data))
    assert verb("hook", "forward", "aet://A@host:104", "--name", "x", *words)[0] == 2

"""The commands of docs/howto/receive-from-a-pacs.md for DIMSE, as the page prints them, by DCMTK: names of
hosts, ports and files are replaced by those of the test."""

import re
import socket
import subprocess
import tomllib

import clinic
import pytest
from clinic import CT_INSTANCES, CT_STUDY
from kill_world import waited
from live_server import ROOT, free_port, start_server
from shell_blocks import blocks_of
from tls_world import authority, made

PAGE = ROOT / "docs" / "howto" / "receive-from-a-pacs.md"
PROGRAMS = ("echoscu", "storescu", "findscu", "getscu", "movescu")
BLOCKS = [each.text for each in blocks_of(PAGE) if each.text.split()[0] in PROGRAMS]
STUDY, PORT, TLS_PORT = "1.2.3", "11112", "2762"


def settings_of_page():
    """The tables [dimse] of the page, those with TLS apart."""
    found = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    tables = [tomllib.loads(text) for text in found]
    return [each for each in tables if "tls" not in each], [each for each in tables if "tls" in each]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made_here = tmp_path_factory.mktemp("page")
    for name in ("FOLDER", "moved", "got"):
        (made_here / name).mkdir()
    for number in (1, 2, 3):
        (made_here / "FOLDER" / f"{number}.dcm").write_bytes(clinic.file_of(clinic.ct(number)))
    return made_here


@pytest.fixture(scope="module")
def destination(folder):
    """storescp, as each destination of the page."""
    port = free_port()
    running = subprocess.Popen(["storescp", "-od", str(folder / "moved"), str(port)])
    waited(lambda: accepts(port), "storescp")
    yield port
    running.terminate()
    running.wait(30)


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def flags_of(tables, port, destination):
    """The settings of the tables together, with the addresses of the test."""
    both = [each["dimse"] for each in tables]
    peers = [re.sub(r"@[\d./]+ ", "@127.0.0.1 ", text) for each in both for text in each["dimse_peers"]]
    places = [text for each in both for text in each.get("dimse_destinations", ())]
    places = list({re.sub(r"@[\w.-]+:\d+", f"@127.0.0.1:{destination}", text) for text in places})
    flags = ["--dimse-port", str(port), "--dimse-peers", ",".join(peers)]
    return [*flags, "--dimse-destinations", ",".join(places)]


def run(text, folder, port, host="127.0.0.1"):
    text = (
        text.replace("HOST", host).replace(f"={STUDY}", f"={CT_STUDY}").replace("FOLDER", f"{folder}/FOLDER")
    )
    text = text.replace(f" {PORT}", f" {port}").replace(f" {TLS_PORT}", f" {port}")
    done = subprocess.run(
        ["sh", "-ec", text], cwd=folder / "got", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (text, done.stderr)
    return done.stdout + done.stderr


def test_the_commands_of_the_page(folder, destination):
    plain, _ = settings_of_page()
    port = free_port()
    server = start_server(folder / "plain", *flags_of(plain, port, destination), workers=1)
    try:
        said = {text.split()[0]: run(text, folder, port) for text in BLOCKS if "+tls" not in text}
        assert sorted(said) == sorted({text.split()[0] for text in BLOCKS})
        stored = clinic.ask(f"{server.url}/studies/{CT_STUDY}/instances").json()
        assert sorted(each["00080018"]["Value"][0] for each in stored) == CT_INSTANCES
        assert "Pending" in said["findscu"]
        for name in ("got", "moved"):
            assert len(list((folder / name).iterdir())) == len(CT_INSTANCES), name
    finally:
        server.end()


def test_the_commands_with_tls(folder, destination):
    _, ((table),) = settings_of_page()
    hospital = authority(folder, "hospital")
    server_pair, client = (
        made(folder, name, subject=f"/CN={name}", signer=hospital, key="rsa") for name in ("server", "ct1")
    )
    port = free_port()
    flags = [*flags_of([table], port, destination), "--dimse-tls", *server_pair.flags]
    flags += ["--dimse-ca", str(hospital.certificate)]
    context = hospital.context()
    server = start_server(folder / "secure", *flags, workers=1, context=context)
    try:
        (text,) = [each for each in BLOCKS if "+tls" in each]
        for name, path in (("ct1.key", client.key), ("ct1.pem", client.certificate)):
            text = text.replace(name, str(path))
        text = text.replace("hospital.pem", str(hospital.certificate))
        run(text, folder, port, host="localhost")
    finally:
        server.end()

"""Orthanc as a client: its DICOMweb plugin searches, retrieves, stores and deletes here. Orthanc as a service
with a login: `streamsrv store` sends to it, and a server forwards to it."""

import io
import json
import shutil
import subprocess
import time
from pathlib import Path

import clinic as world
import pytest
import store_kinds
from clinic import CT_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY
from kill_world import waited
from live_server import READY_WITHIN, free_port
from PIL import Image

from streamsrv.cli import main
from streamsrv.events.hooks import hooks_of

AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Orthanc:
    """A running Orthanc that knows one DICOMweb server. `more` are settings."""

    def __init__(self, folder, url, **more):
        port = free_port()
        self.origin = f"http://127.0.0.1:{port}"
        settings = {
            "StorageDirectory": str(folder / "data"),
            "IndexDirectory": str(folder / "data"),
            "HttpPort": port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Servers": {"streamsrv": {"Url": f"{url}/", "HasDelete": True}}},
        } | more
        path = folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        with (folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen(["Orthanc", str(path)], stdout=log, stderr=log)
        deadline = time.monotonic() + READY_WITHIN
        while not self.answers():
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError((folder / "orthanc.log").read_text())
            time.sleep(0.05)

    def answers(self):
        try:
            return self.ask("system").status in (200, 401)
        except OSError:
            return False

    def ask(self, path, **arguments):
        body = json.dumps(arguments).encode() if arguments else None
        return world.ask(f"{self.origin}/{path}", "POST" if arguments else "GET", body)

    def call(self, verb, **arguments):
        """The result of a request to the server."""
        reply = self.ask(f"dicom-web/servers/streamsrv/{verb}", Synchronous=True, **arguments)
        assert reply.status == 200, reply.body
        return reply.json()

    def end(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def orthanc(server, tmp_path):
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed")
    world.store(f"{server.url}/studies", map(world.file_of, world.everything()))
    running = Orthanc(tmp_path, server.url)
    yield running
    running.end()


def test_orthanc_searches_retrieves_deletes_and_stores(server, orthanc):
    files = {world.file_of(world.ct(number)) for number in (1, 2, 3)}
    found = orthanc.call("qido", Uri="/studies", Arguments={"PatientID": "P-2"})
    assert [study["0020000D"]["Value"] for study in found] == [SLIDE_STUDY]
    asked = orthanc.call("retrieve", Resources=[{"Study": CT_STUDY}, {"Study": SLIDE_STUDY}])
    assert asked["ReceivedInstancesCount"] == "5"
    (study,) = orthanc.ask("tools/find", Level="Study", Query={"StudyInstanceUID": CT_STUDY}).json()
    ids = [each["ID"] for each in orthanc.ask(f"studies/{study}/instances").json()]
    assert {orthanc.ask(f"instances/{each}/file").body for each in ids} == files
    below = f"/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}/instances/{SLIDE}/frames/2/rendered"
    headers = {"Accept": "image/png"}
    picture = orthanc.ask("dicom-web/servers/streamsrv/get", Uri=below, HttpHeaders=headers)
    assert Image.open(io.BytesIO(picture.body)).size == (world.TILE, world.TILE)
    orthanc.call("delete", Level="Study", StudyInstanceUID=CT_STUDY)
    assert world.ask(f"{server.url}/studies/{CT_STUDY}/metadata").status == 404
    orthanc.call("stow", Resources=[study])
    again = world.ask(f"{server.url}/studies/{CT_STUDY}")
    assert {payload for _, payload in again.parts()} == files


@pytest.fixture
def locked(tmp_path):
    """An Orthanc with a user."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed")
    login = {"AuthenticationEnabled": True, "RegisteredUsers": {"Anna": "pass word"}}
    running = Orthanc(tmp_path, "http://127.0.0.1:1", **login)
    yield running
    running.end()


def test_files_are_sent_to_orthanc_with_its_login(locked, tmp_path, capsys):
    files, password, netrc = (tmp_path / name for name in ("files", "password", "netrc"))
    files.mkdir()
    for number in (1, 2, 3):
        (files / f"{number}.dcm").write_bytes(world.file_of(world.ct(number)))
    netrc.write_text('machine 127.0.0.1 login Anna password "pass word"\n')

    def store(*words):
        main(
            ["store", str(files), "--url", f"{locked.origin}/dicom-web", "--parallel", "1", *map(str, words)]
        )
        return capsys.readouterr().out.splitlines()

    refused = "stopped: HTTP status 401 Unauthorized"
    assert store()[0] == refused
    password.write_text("pass  word\n")
    assert store("--user", "Anna", "--password-file", password)[0] == refused
    password.write_text("pass word\n")
    stored = ["3 stored, 0 already stored, 0 failed, 0 skipped"]
    assert store("--user", "Anna", "--password-file", password) == stored
    assert store("--netrc-file", netrc) == stored
    assert store("--header", "Authorization: Basic QW5uYTpwYXNzIHdvcmQ=") == stored


def test_studies_are_pulled_from_orthanc(server, locked, tmp_path, capsys):
    """A second run brings what is new."""
    files = [world.file_of(each) for each in world.everything()]
    (tmp_path / "password").write_text("pass word")
    login = ("--user", "Anna", "--password-file", str(tmp_path / "password"))
    service = f"{locked.origin}/dicom-web"

    def pulled():
        words = ("--from", service, *login, "--data", str(server.data), "--json")
        with store_kinds.naming(server.data):
            assert main(["pull", *words]) == 0, capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    sent = files[:2], files[2:]
    for number, some in enumerate(sent):
        world.store(f"{service}/studies", some, Authorization="Basic QW5uYTpwYXNzIHdvcmQ=")
        report = pulled()
        assert (report["stored"], report["failed"], report["unchanged"]) == (len(some), 0, 0), number
    assert pulled()["unchanged"] == 3
    stored = {
        payload
        for study in (CT_STUDY, SLIDE_STUDY, world.OTHER_STUDY)
        for _, payload in world.ask(f"{server.url}/studies/{study}", Accept=AS_STORED).parts()
    }
    assert stored == set(files)


def test_studies_are_forwarded_to_orthanc_with_its_login(locked, server_factory, tmp_path):
    source = server_factory("--hooks", "--study-quiet", "0.5", workers=1)
    password = tmp_path / "password"
    password.write_text("pass word\n")
    login = ("--user", "Anna", "--password-file", str(password))
    words = ("--name", "pacs", "--allow-local", "--query", "Modality=CT", "--data", str(source.data))
    with store_kinds.naming(source.data):
        assert main(["hook", "forward", f"{locked.origin}/dicom-web", *words, *login]) == 0
    waited(
        lambda: hooks_of(store_kinds.settings_for(source.data)).state("pacs").last_id, "the begin of the hook"
    )
    files = [world.file_of(world.ct(number)) for number in (1, 2, 3)]
    world.store(f"{source.url}/studies", files[:2])
    waited(
        lambda: hooks_of(store_kinds.settings_for(source.data)).state("pacs").delivered == 1,
        "the first part of the study",
    )
    (tmp_path / "3.dcm").write_bytes(files[2])  # the peer has it before
    assert main(["store", str(tmp_path / "3.dcm"), "--url", f"{locked.origin}/dicom-web", *login]) == 0
    world.store(f"{source.url}/studies", [files[2], *map(world.file_of, (world.palette(), world.letter()))])
    waited(lambda: hooks_of(store_kinds.settings_for(source.data)).state("pacs").delivered == 2, "the rest")
    state = hooks_of(store_kinds.settings_for(source.data)).state("pacs")
    assert (state.dead, state.error) == (0, "")
    headers = {"Authorization": "Basic QW5uYTpwYXNzIHdvcmQ="}
    url = f"{locked.origin}/instances"
    found = world.ask(url, **headers).json()
    assert {world.ask(f"{url}/{each}/file", **headers).body for each in found} == set(files)


@pytest.mark.embedded("it imports into the folder of a store")
@pytest.mark.parametrize("compressed", [False, True])
def test_the_storage_folder_of_orthanc_is_imported(server, tmp_path, capsys, compressed):
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed")
    folder = tmp_path / "orthanc"
    folder.mkdir()
    running = Orthanc(folder, "http://127.0.0.1:1", StorageCompression=compressed)
    files = [world.file_of(each) for each in world.everything()]
    words = ["import", "orthanc", str(folder / "data"), "--data", str(server.data)]
    try:
        world.store(f"{running.origin}/dicom-web/studies", files)
        with store_kinds.naming(server.data):
            assert main(words) == 1
        assert "Orthanc runs" in capsys.readouterr().err
    finally:
        running.end()
    with store_kinds.naming(server.data):
        assert main(words) == 0
    assert capsys.readouterr().out.startswith(
        "7 stored, 0 already stored, 0 done before, 0 skipped, 0 failed"
    )
    assert main([*words, "--run", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.startswith("0 stored, 7 already stored, ")
    urls = [f"{server.url}/studies/{study}" for study in (CT_STUDY, SLIDE_STUDY, world.OTHER_STUDY)]
    stored = {payload for url in urls for _, payload in world.ask(url, Accept=AS_STORED).parts()}
    assert stored == set(files)

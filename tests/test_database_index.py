"""A server whose index is in PostgreSQL, over HTTP and on the command line."""

import os
import subprocess

import pytest
from change_readers import EventClient
from dimse_archive import sample
from dimse_client import DimseClient
from fake_service import running, uids_of
from kill_world import verb
from live_server import environment, executable, free_port, refused_start, start_server
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import AE, build_role, evt
from small_client import Client, file_of, key_of, path_of
from test_tutorial import run_through, steps_of_page
from waiting import waited
from webhook_receiver import Receiver

from streamsrv.events.hooks import hooks_in

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
KEYS = [key_of(study, series, number) for study in (1, 2) for series in (1, 2) for number in range(3)]
FILES = {key: file_of(key, 1, 20_000) for key in KEYS}


@pytest.fixture(scope="module")
def url(database_server):
    return database_server.url("over_http")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The folder of reports about the event loop."""
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def dimse_port():
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory, url, guarded, dimse_port):
    folder = tmp_path_factory.mktemp("database")
    flags = ("--index", url, "--hooks", "--study-quiet", "0.5")
    flags += ("--dimse-port", str(dimse_port), "--dimse-peers", "CT1 -> store,WS -> search read")
    running = start_server(folder, *flags, variables={"LOOP_GUARD": str(guarded)})
    waited(lambda: len(list(guarded.glob("armed-*"))) == 2)  # both workers
    yield running
    running.end()


@pytest.fixture(scope="module")
def client(server):
    client = Client(server.origin)
    yield client
    client.close()


def waits(guarded):
    return [each.read_text() for each in guarded.glob("waited-*")]


def test_every_kind_of_request(client, guarded):
    assert client.store(list(FILES.values())).status == 200
    assert client.store([FILES[KEYS[0]]]).status == 409
    assert {key: client.read(key) for key in KEYS} == FILES
    assert client.keys() == set(KEYS)
    study = f"/studies/{KEYS[0][0]}"
    found = client.ask("GET", f"{study}/series?includefield=all")
    assert len(found.json()) == 2
    tag = client.ask("GET", f"{study}/metadata").headers["ETag"]
    assert client.ask("GET", f"{study}/metadata", If_None_Match=tag).status == 304
    for _ in range(3):  # from the second on, headers are known
        frame = client.ask(
            "GET",
            path_of(KEYS[0]) + "/frames/1",
            Accept='multipart/related; type="application/octet-stream"; transfer-syntax=*',
        )
        assert frame.status in (200, 404)
    assert client.ask("GET", f"{study}/rendered", Accept="image/png").status in (200, 400, 404, 406)
    assert client.ask("GET", "/changefeed").status == 200
    assert client.ask("GET", "/changefeed/latest").status == 200
    events = client.ask("GET", "/events?offset=0&duration=2", Accept="text/event-stream")
    assert events.body.count(b'"action":"create"') == len(KEYS), events.body
    assert client.delete(KEYS[-1])
    assert not client.delete(KEYS[-1])
    assert client.keys() == set(KEYS[:-1])
    assert client.store([FILES[KEYS[-1]]]).status == 200
    assert waits(guarded) == []


def test_peers_of_dimse(client, dimse_port, guarded):
    """Store with a client of bytes, find and get with pynetdicom."""
    key, dataset = sample(41, 1)
    peer = DimseClient(dimse_port)
    assert [peer.store(key[2], dataset, number) for number in (1, 2)] == [0, 0]
    peer.release()
    assert client.read(key)[-len(dataset) :] == dataset
    received = []
    ae = AE("WS")
    for each in (FIND, GET, SecondaryCaptureImageStorage):
        ae.add_requested_context(each)
    association = ae.associate(
        *("127.0.0.1", dimse_port),
        ae_title="STREAMSRV",
        ext_neg=[build_role(SecondaryCaptureImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, lambda event: received.append(event.dataset.SOPInstanceUID) or 0)],
    )
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", key[0]
    assert [status.Status for status, _ in association.send_c_find(asked, FIND)] == [0xFF00, 0]
    assert [status.Status for status, _ in association.send_c_get(asked, GET)][-1] == 0
    association.release()
    assert received == [key[2]]
    assert client.delete(key)
    assert waits(guarded) == []


def test_the_tutorial(tmp_path, database_server):
    url = database_server.url("of_the_tutorial")
    running = start_server(tmp_path / "tutorial", "--index", url)
    try:
        run_through(steps_of_page(), f"{running.origin}/v2", drawn_samples(tmp_path), tmp_path)
    finally:
        running.end()


def drawn_samples(folder):
    subprocess.run([*executable(), "samples", "samples"], cwd=folder, check=True, env=environment())
    return folder / "samples"


def test_the_verbs_that_look_after_a_store(server, client, url, tmp_path, monkeypatch):
    where = ("--data", str(server.data), "--index", url)
    client.store(list(FILES.values()))
    assert verb("check", *where) == (0, "all is well\n")
    assert "instances: 12" in verb("info", *where)[1]
    client.delete(KEYS[0])
    assert verb("compact", *where)[0] == 0
    assert client.read(KEYS[1]) == FILES[KEYS[1]]
    assert verb("backup", *where, str(tmp_path / "backup"))[0] == 0
    assert verb("restore", "--data", str(tmp_path / "restored"), str(tmp_path / "backup"))[0] == 0
    assert "instances: 11" in verb("info", "--data", str(tmp_path / "restored"))[1]
    assert verb("migrate-index", "--index", url) == (0, "the index has layout 2: nothing was changed\n")
    monkeypatch.setenv("STREAMSRV_INDEX", url)
    code, said = verb("reindex", "--data", str(server.data))
    assert (code, "names a database" in said) == (2, True)


@pytest.fixture(scope="module")
def receiver(server):
    """Of a hook, and a service that all studies are forwarded to."""
    made = Receiver()
    where = ("--allow-local", "--data", str(server.data))
    assert verb("hook", "add", made.url, "--name", "told", *where)[0] == 0
    with running() as made.service:
        assert verb("hook", "forward", made.service.url, "--name", "sent", *where)[0] == 0
        yield made
    made.close()


def test_hooks(server, client, receiver, database_server):
    hooks = hooks_in(server.data)
    waited(lambda: all(hooks.state(each).last_id for each in ("told", "sent")))
    for study in (7, 8):
        key = key_of(study, 1, 1)
        assert client.store([file_of(key, 1, 500)]).status == 200
        waited(lambda key=key: key[0] in receiver.told("complete"))
        waited(lambda key=key: [key[2]] in [uids_of(parts) for *_, parts in receiver.service.requests])
        if study == 7:
            database_server.stop("immediate")
            database_server.start()
            waited(server.is_ready)
    assert receiver.told("create") >= {"1.2.7", "1.2.8"}


def test_requests_while_the_database_is_away(server, client, database_server, guarded):
    client.store(list(FILES.values()))
    follower = EventClient(f"{server.url}/events?duration=40", Last_Event_ID="0")
    assert next(follower.events())[1]["sequence"] == 1
    database_server.stop("immediate")
    assert b"still here" not in follower.answer.read()  # it ends at once, with its last chunk
    follower.close()
    for path in ("/studies", path_of(KEYS[1]), "/events"):
        reply = client.ask("GET", path)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert b"does not answer" in reply.body or b"cannot be reached" in reply.body
    assert client.store([file_of(key_of(3, 1, 1), 1, 500)]).status == 503
    waited(lambda: not server.is_ready())
    database_server.start()
    waited(server.is_ready)
    assert client.read(KEYS[1]) == FILES[KEYS[1]]
    assert client.read(key_of(3, 1, 1)) is None
    assert client.store([file_of(key_of(3, 1, 1), 1, 500)]).status == 200
    assert waits(guarded) == []


def test_a_server_that_cannot_start_says_why(tmp_path, url, server):
    assert refused_start(tmp_path, "--index", "mysql://x")[0] == 2
    code, said = refused_start(tmp_path, "--index", url)
    assert code == 1
    assert "this database has the index of another store: nothing was changed" in said
    code, said = refused_start(tmp_path, "--index", url.replace("streamsrv@", "stranger:secret-word@"))
    assert code == 1
    assert 'role "stranger" does not exist' in said
    assert "secret-word" not in said


def test_without_the_packages_of_the_extra(tmp_path, url):
    missing = tmp_path / "missing"
    missing.mkdir()
    for name in ("psycopg", "obstore"):
        (missing / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name='{name}')\n")
    path = os.pathsep.join([str(missing), environment()["PYTHONPATH"]])
    code, said = refused_start(tmp_path, "--index", url, PYTHONPATH=path)
    assert code == 1
    assert "needs the package psycopg: install streamsrv[cluster]" in said
    code, said = refused_start(tmp_path, "--index", url, "--segments", "s3://a/b", PYTHONPATH=path)
    assert code == 1
    assert "a bucket for the segments needs the package" in said
    embedded = start_server(tmp_path / "embedded", workers=1, variables={"PYTHONPATH": path})
    assert embedded.end() == 0

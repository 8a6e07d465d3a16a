"""Nodes that serve one store over PostgreSQL and SeaweedFS, over HTTP."""

import contextlib
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

import pytest
from change_readers import Follow, Poll, told_once
from kill_world import children, is_worker, verb, waited
from live_server import environment, executable, refused_start, start_server
from obstore import delete, get, put
from obstore import list as listed
from seaweed import ADMIN, BUCKET, variables
from small_client import Client, file_of, key_of, path_of
from test_tutorial import run_through, steps_of_page

KEYS = [key_of(study, series, number) for study in (1, 2) for series in (1, 2) for number in range(3)]
FILES = {key: file_of(key, 1, 20_000) for key in KEYS}


@pytest.fixture(scope="module")
def gateway(object_store):
    """(process, endpoint) of a gateway for the nodes of this module."""
    return object_store.gateway()


@pytest.fixture(scope="module")
def flags(database_server):
    return ("--index", database_server.url("two_nodes"), "--segments", f"s3://{BUCKET}/two_nodes")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The folder of reports about the event loop."""
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, flags, gateway, guarded):
    folder = tmp_path_factory.mktemp("nodes")
    named = variables(gateway[1]) | {"LOOP_GUARD": str(guarded)}
    running = [start_server(folder / name, *flags, workers=1, variables=named) for name in "ab"]
    yield running
    for node in running:
        node.end()


@pytest.fixture
def clients(nodes):
    """New ones, because a node closes connections that are idle."""
    made = [Client(node.origin) for node in nodes]
    yield made
    for client in made:
        client.close()


def health(node):
    try:
        with urllib.request.urlopen(f"{node.origin}/health/ready", timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def drawn_samples(folder):
    subprocess.run([*executable(), "samples", "samples"], cwd=folder, check=True, env=environment())
    return folder / "samples"


def waits(guarded):
    return [each.read_text() for each in guarded.glob("waited-*")]


def test_a_node_serves_what_another_one_stored(clients, guarded):
    one, two = clients
    assert one.store(list(FILES.values())).status == 200
    assert two.store([FILES[KEYS[0]]]).status == 409
    for client in clients:
        assert {key: client.read(key) for key in KEYS} == FILES
        assert client.keys() == set(KEYS)
    study = f"/studies/{KEYS[0][0]}"
    whole = [client.ask("GET", study, Accept="application/zip") for client in clients]
    assert [reply.status for reply in whole] == [200, 200]
    assert whole[0].body == whole[1].body
    assert whole[0].headers["ETag"] == whole[1].headers["ETag"]
    assert len(two.ask("GET", f"{study}/series?includefield=all").json()) == 2
    assert two.delete(KEYS[-1])
    assert one.read(KEYS[-1]) is None
    assert one.store([FILES[KEYS[-1]]]).status == 200
    assert two.read(KEYS[-1]) == FILES[KEYS[-1]]
    feeds = [client.ask("GET", "/changefeed?includemetadata=false").json() for client in clients]
    assert feeds[0] == feeds[1]
    assert waits(guarded) == []


def test_each_node_tells_the_changes_of_all_once_and_in_order(nodes, clients):
    """While both store, delete, and are read by pages and by events."""
    polls, follows = [Poll(node) for node in nodes], [Follow(node) for node in nodes]
    for follow in follows:
        follow.start()

    def work(client, study):
        for number in range(12):
            keys = [key_of(study, 1, 10 * number + each) for each in range(3)]
            assert client.store([file_of(key, 1, 128) for key in keys]).status == 200
            assert client.delete(keys[0])

    made = [Client(node.origin) for node in nodes]
    threads = [threading.Thread(target=work, args=each) for each in zip(made, (51, 52), strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for poll in polls:
            poll.read()
    (last,) = {client.ask("GET", "/changefeed/latest").json()["sequence"] for client in clients}
    for poll in polls:
        waited(lambda poll=poll: not poll.read(), "the last page")
        poll.close()
    for follow in follows:
        waited(lambda follow=follow: follow.changes and follow.changes[-1]["sequence"] == last, "events")
        follow.ending.set()
        follow.join()
    told, *others = [told_once(each.changes) for each in (*polls, *follows)]
    assert len(told) == last
    assert all(each == told for each in others)
    for study in (51, 52):
        counts = Counter(action for action, uid in told if uid.startswith(f"1.2.{study}."))
        assert counts == {"create": 36, "delete": 12}
    for client, study in zip(made, (51, 52), strict=True):
        assert client.delete([f"1.2.{study}"])
        client.close()


def test_the_tutorial_against_a_node(tmp_path, nodes):
    run_through(steps_of_page(), f"{nodes[1].origin}/v2", drawn_samples(tmp_path), tmp_path)


def test_the_verbs_of_a_cluster(tmp_path, clients, flags, gateway, monkeypatch):
    clients[0].store(list(FILES.values()))
    for name, value in variables(gateway[1]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STREAMSRV_SEGMENTS", flags[3])
    monkeypatch.setenv("STREAMSRV_INDEX", flags[1])
    where = ("--data", str(tmp_path / "node"))
    code, said = verb("export", *where, str(tmp_path / "out"), "--query", f"StudyInstanceUID={KEYS[0][0]}")
    assert (code, len(list((tmp_path / "out").rglob("*.dcm")))) == (0, 6), said
    assert verb("check", *where) == (0, "all is well\n")
    assert clients[0].delete(KEYS[0])
    for emptied in (True, False):
        code, said = verb("compact", *where, "--all")
        assert (code, "objects: 0" not in said.splitlines()) == (0, emptied), said
    assert clients[1].read(KEYS[1]) == FILES[KEYS[1]]
    assert clients[0].store([FILES[KEYS[0]]]).status == 200
    code, said = verb("info", *where)
    assert (code, "index instances: 12" in said) == (0, True), said
    assert verb("check", "--segments", *where) == (0, "all is well\n")
    code, said = verb("backup", str(tmp_path / "copy"), *where)
    assert (code, "with pg_dump or pg_basebackup, then copy or replicate the bucket" in said) == (2, True)
    assert verb("reindex", *where) == (
        3,
        "streamsrv: nodes or verbs have this database open: end them first\n",
    )


PARTS = ("", "/frames/1", "/rendered", "/bulkdata/7FE00010")


def test_an_object_that_is_lost_and_comes_back(tmp_path, object_store, clients, flags, gateway, monkeypatch):
    """A node names the instance, registers it, and serves all others; it is stored again, or its object is
    brought back."""
    one, two = clients
    keys = [key_of(31, 1, number) for number in (1, 2, 3)]
    files = {key: file_of(key, 1, 20_000) for key in keys}
    for key in keys:  # an object each
        assert one.store([files[key]]).status == 200
    bucket = object_store.store(ADMIN, BUCKET)
    places = {key: place_of(bucket, files[key]) for key in keys}
    for name, value in (variables(gateway[1]) | settings_of(flags)).items():
        monkeypatch.setenv(name, value)
    where = ("--data", str(tmp_path / "node"))
    for key, part in zip(keys[:2], ("/frames/1", ""), strict=True):
        delete(bucket, places[key][0])
        reply = two.ask("GET", path_of(key) + part)
        assert (reply.status, reply.json()["sop_instance"]) == (500, key[2]), reply.body
        assert b"its object is not in the bucket" in reply.body
    for client in clients:
        for part in PARTS:
            assert client.ask("GET", path_of(keys[0]) + part).status == 500, part
        assert client.ask("GET", f"{path_of(keys[0])}/metadata").status == 200
        assert client.read(keys[2]) == files[keys[2]]
        reply = client.ask("GET", f"/studies/{keys[0][0]}")
        assert (reply.status, reply.json()["sop_instance"]) == (500, keys[0][2])
    code, said = verb("info", *where)
    assert (code, "damaged: 2" in said) == (1, True), said
    code, said = verb("check", *where)
    assert (code, said.count("its object is not in the bucket")) == (1, 2), said
    assert two.store([files[keys[0]]]).status == 200  # again
    put(bucket, *places[keys[1]])
    assert two.ask("GET", path_of(keys[1])).status == 500
    assert verb("check", "--segments", *where) == (0, "all is well\n")
    for client in clients:
        assert {key: client.read(key) for key in keys} == files
    assert verb("info", *where)[0] == 0
    assert one.delete(keys[0][:1])


def place_of(bucket, content):
    """The key and the bytes of the object that has `content`."""
    for page in listed(bucket, "two_nodes/segments/"):
        for each in page:
            found = bytes(get(bucket, each["path"]).bytes())
            if content in found:
                return each["path"], found
    raise AssertionError("it is not there")


def test_requests_while_the_bucket_is_away(object_store, nodes, clients, gateway, guarded):
    one, two = clients
    known, unknown = key_of(7, 1, 1), key_of(8, 1, 1)
    files = {key: file_of(key, 1, 30_000) for key in (known, unknown)}
    for body in files.values():  # an object each
        assert one.store([body]).status == 200
    assert one.read(known) == files[known]
    process, endpoint = gateway
    process.kill()
    process.wait()
    assert one.read(known) == files[known]
    assert one.ask("GET", f"{path_of(unknown)}/metadata").status == 200
    for reply in (one.ask("GET", path_of(unknown)), two.store([file_of(key_of(9, 1, 1), 1, 500)])):
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1"), reply.body
        assert b"the gateway does not answer" in reply.body
    waited(lambda: "the bucket failed" in health(nodes[1]), "a probe")
    object_store.gateway(urlsplit(endpoint).port)
    waited(lambda: all(node.is_ready() for node in nodes), "both nodes")
    assert one.read(unknown) == files[unknown]
    assert two.read(key_of(9, 1, 1)) is None
    assert two.store([file_of(key_of(9, 1, 1), 1, 500)]).status == 200
    assert waits(guarded) == []


def test_a_node_that_is_stopped_cannot_commit_what_was_given_up(tmp_path, database_server, object_store):
    """It is stopped before its commit, and wakes up when its lease has ended."""
    url = database_server.url("stopped_node")
    flags = ("--index", url, "--segments", f"s3://{BUCKET}/stopped_node")
    point = tmp_path / "point"
    named = variables(object_store.endpoint) | {"STREAMSRV_FAILPOINT_FILE": str(point)}
    one = start_server(tmp_path / "a", *flags, "--upload-lease", "1", workers=1, variables=named)
    two = start_server(tmp_path / "b", *flags, "--upload-lease", "1", workers=1, variables=named)
    key, other = key_of(1, 1, 1), key_of(1, 1, 2)
    try:
        replies = []

        def store():
            with contextlib.closing(Client(one.origin)) as client:
                replies.append(client.store([file_of(key, 1, 20_000)]))

        point.write_text("after-data-sync=pause:1")
        thread = threading.Thread(target=store)
        thread.start()
        waited(lambda: not point.exists(), "the end of the upload")
        (worker,) = [each for each in children(one.process.pid) if is_worker(each)]
        os.kill(worker, signal.SIGSTOP)
        states = "SET search_path = stopped_node; SELECT state FROM objects"
        waited(lambda: database_server.sql(states) == "swept", "the sweeper of the other node")
        with contextlib.closing(Client(two.origin)) as client:
            assert client.store([file_of(other, 1, 500)]).status == 200
            os.kill(worker, signal.SIGCONT)
            thread.join()
            assert (replies[0].status, replies[0].headers["Retry-After"]) == (503, "1")
            assert b"this node was silent for too long" in replies[0].body
            assert client.keys() == {other}
    finally:
        for node in (one, two):
            node.end()


def test_a_node_that_cannot_start_says_why(tmp_path, flags, nodes, gateway, database_server):
    named = variables(gateway[1])
    assert refused_start(tmp_path, "--segments", "s3://archive/x", **named) == (
        2,
        "streamsrv: segments in a bucket need an index in PostgreSQL: set `index` too\n",
    )
    assert refused_start(tmp_path, "--segments", "http://archive/x")[0] == 2
    code, said = refused_start(tmp_path, *flags, **named | {"AWS_SECRET_ACCESS_KEY": "another one"})
    assert (code, "gives them no right to this bucket. See AWS_ACCESS_KEY_ID" in said) == (1, True)
    code, said = refused_start(tmp_path, *flags[:2], "--segments", f"s3://{BUCKET}/other", **named)
    assert (code, "and the bucket has no store.toml: nothing was changed" in said) == (1, True)
    # Two clusters on one bucket, and a bucket that is not ours.
    empty = database_server.url("empty_database")
    bucket = ("--segments", flags[3])
    code, said = refused_start(tmp_path, "--index", empty, *bucket, **named)
    assert (code, "If the database is lost, `streamsrv reindex` makes it again" in said) == (1, True)
    other = ("--index", database_server.url("other_cluster"), "--segments", f"s3://{BUCKET}/other_cluster")
    start_server(tmp_path / "other", *other, workers=1, variables=named).end()
    code, said = refused_start(tmp_path, *other[:2], *bucket, **named)
    assert (code, "each store has a database and a prefix of its own" in said) == (1, True)
    code, said = refused_start(tmp_path, "--index", empty, "--segments", "s3://not-ours/x", **named)
    assert (code, "it refuses the credentials" in said) == (1, True)
    database_server.sql("UPDATE other_cluster.head SET layout = 99")
    code, said = refused_start(tmp_path, *other, **named)
    assert (code, "has layout 99, and this program knows only up to" in said) == (1, True)
    database_server.sql(
        "UPDATE other_cluster.head SET layout = 2; UPDATE other_cluster.cluster SET filling = 'lost'"
    )
    code, said = refused_start(tmp_path, *other, **named)
    assert (code, "`streamsrv reindex` is filling this database, or has broken off" in said) == (1, True)
    assert not (tmp_path / "data" / "store.toml").exists()


def test_verbs_make_no_store(tmp_path, gateway, database_server, object_store, monkeypatch):
    """A misspelt prefix would look like an empty store."""
    where = ("--index", database_server.url("no_store"), "--segments", f"s3://{BUCKET}/no_store")
    for name, value in (variables(gateway[1]) | settings_of(where)).items():
        monkeypatch.setenv(name, value)
    for name in (("check",), ("check", "--segments"), ("compact",), ("info",)):
        code, said = verb(*name, "--data", str(tmp_path / "node"))
        assert (code, "start a node once, which makes the store" in said) == (1, True), said
    code, said = verb("reindex", "--data", str(tmp_path / "node"))
    assert (code, "the bucket has no store.toml" in said) == (1, True), said
    assert [each for page in listed(object_store.store(ADMIN, BUCKET), "no_store/") for each in page] == []


def settings_of(flags):
    return {"STREAMSRV_INDEX": flags[1], "STREAMSRV_SEGMENTS": flags[3]}

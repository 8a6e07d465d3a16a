"""Two PostgreSQL servers with synchronous replication: the primary is killed while instances are stored, the
other one is promoted, and nothing acknowledged is lost. An operator may cancel the wait for the other one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from database_server import DatabaseServer
from live_server import start_server
from small_client import Client, file_of, key_of, path_of
from waiting import waited

from streamsrv.errors import IndexUnreachable
from streamsrv.store.postgresql import connections, open_index
from streamsrv.store.postgresql.object_table import ObjectTable

CANCELLED = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
LOOKING_UP = f"{WAITING} AND query LIKE 'SELECT 1 %'"


@pytest.fixture
def servers():
    primary = DatabaseServer(fsync="on")
    standby = DatabaseServer(primary=primary)
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.sql("SELECT pg_reload_conf()")
    yield primary, standby
    primary.end()
    standby.end()


def test_nothing_acknowledged_is_lost(servers, tmp_path):
    primary, standby = servers
    hosts = f"host={primary.folder},{standby.folder}"
    url = f"postgresql://streamsrv@/postgres?{hosts}&target_session_attrs=read-write"
    running = start_server(tmp_path / "served", "--index", url)
    acknowledged, unsure, done = {}, {}, threading.Event()

    def store(study):
        client = Client(running.origin)
        for number in range(10_000):
            if done.is_set():
                break
            key = key_of(study, 1, number)
            file = file_of(key, 1, 500)
            (acknowledged if client.store([file]).status == 200 else unsure)[key] = file
        client.close()

    threads = [threading.Thread(target=store, args=(study,)) for study in (1, 2, 3)]
    for thread in threads:
        thread.start()
    try:
        waited(lambda: len(acknowledged) > 30)
        primary.stop("immediate")
        standby.promote()
        before = len(acknowledged)
        waited(lambda: len(acknowledged) > before + 30)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    client = Client(running.origin)
    try:
        assert {key: client.read(key) for key in acknowledged} == acknowledged
        stored = client.keys()
        assert set(acknowledged) <= stored <= acknowledged.keys() | unsure.keys()
    finally:
        client.close()
        assert running.end() == 0


def test_a_commit_without_its_standby_is_not_acknowledged(servers, tmp_path):
    """An operator cancels the wait for it. PostgreSQL reports the commit, and warns."""
    primary, standby = servers
    running = start_server(tmp_path / "served", "--index", primary.url())
    client, key, answers = Client(running.origin), key_of(1, 1, 1), []
    try:
        assert client.store([file_of(key_of(1, 1, 2), 1, 500)]).status == 200
        standby.stop()
        thread = threading.Thread(target=lambda: answers.append(client.store([file_of(key, 1, 500)]).status))
        thread.start()
        waited(lambda: int(primary.sql(CANCELLED)))
        waited(lambda: int(primary.sql(LOOKING_UP)))
        assert answers == []
        standby.start()
        thread.join()
        assert answers == [200]
        assert standby.sql("SELECT count(*) FROM instances") == "2"
    finally:
        client.close()
        assert running.end() == 0


def test_a_commit_that_no_standby_confirms_is_refused(servers, monkeypatch):
    monkeypatch.setattr(connections, "SETTLING", 1.0)
    primary, standby = servers
    index = open_index(primary.url())
    standby.stop()
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(index.add_segment)
        waited(lambda: int(primary.sql(CANCELLED)) or added.done())
        with pytest.raises(IndexUnreachable, match="whether the last commit happened is not known"):
            added.result()
    index.close()


def test_an_intent_without_its_standby_is_written_again(servers):
    """A failover would lose it, and then nothing would remove its object."""
    primary, standby = servers
    open_index(primary.url()).close()
    pool = connections.Connections(primary.url())
    standby.stop()
    with ThreadPoolExecutor(1) as executor:
        begun = executor.submit(ObjectTable(pool, "node").begin, 600)
        waited(lambda: int(primary.sql(CANCELLED)))
        waited(lambda: int(primary.sql(WAITING)) or begun.done())
        assert not begun.done()
        standby.start()
        place = begun.result()
    assert standby.sql("SELECT key FROM objects ORDER BY segment").split()[1:] == [place.key]
    pool.close()


def test_nothing_that_was_lost_is_remembered(tmp_path):
    """A failover to a copy that lacks a replacement: another commit gets its number. The node runs on."""
    primary = DatabaseServer()
    copy = DatabaseServer(primary)
    url = f"postgresql://streamsrv@/postgres?host={primary.folder},{copy.folder}"
    flags = ("--index", f"{url}&target_session_attrs=read-write", "--on-duplicate", "replace")
    running = start_server(tmp_path / "served", *flags, workers=1)
    client, key, head = Client(running.origin), key_of(1, 1, 1), "SELECT version FROM head"
    path = f"{path_of(key)}/frames/1"
    kept, lost = (file_of(key, version, 20_000)[-10_000:] for version in (1, 2))

    def frame():
        reply = client.ask("GET", path, Accept='multipart/related; type="application/octet-stream"')
        assert reply.status == 200, reply.body
        return reply.body

    try:
        assert client.store([file_of(key, 1, 20_000)]).status == 200
        waited(lambda: copy.sql(head) == primary.sql(head))
        copy.stop()
        assert client.store([file_of(key, 2, 20_000)]).status == 200
        waited(lambda: lost in frame() and "cached-frame" in running.log.read_text())
        number = primary.sql(head)
        primary.stop("immediate")
        copy.start()
        copy.promote()
        copy.sql("UPDATE head SET version = version + 1")  # as any commit does
        assert copy.sql(head) == number
        assert kept in frame()
    finally:
        client.close()
        running.end()
        primary.end()
        copy.end()

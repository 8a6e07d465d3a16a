"""Leases of a version of the index in PostgreSQL: what at hand is right, and what removals wait for."""

import threading
import time
from types import SimpleNamespace

import pytest
from index_examples import element, new_instance
from test_postgresql import Between, once
from waiting import waited

from streamsrv.errors import AnnouncementLost, IndexUnreachable
from streamsrv.query.rules import rule_of
from streamsrv.store import DamagedRecord
from streamsrv.store.ordered_map import COMMIT_BITS, same_server
from streamsrv.store.postgresql import freshness, open_index
from streamsrv.store.postgresql.link import PipelineLink
from streamsrv.store.rows import Location

LONG = 600.0  # seconds: a lease that no test outlasts


@pytest.fixture
def schema(memory):
    return "of_" + memory.name


@pytest.fixture
def url(database_server, schema):
    return database_server.url(schema)


@pytest.fixture
def index(url):
    index = open_index(url)
    index.add_segment()
    index.commit([new_instance(("1.1", "1.1.1", f"1.1.1.{number}"), number) for number in range(1, 5)], **AT)
    yield index
    index.close()


@pytest.fixture
def reader(url, index):
    """The index of another node."""
    reader = open_index(url)
    yield reader
    reader.close()


@pytest.fixture
def sql(database_server, schema):
    return lambda statement: database_server.sql(f"SET search_path = {schema}; {statement}")


@pytest.fixture
def clock(monkeypatch):
    """The time that leases are compared with."""
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(freshness, "boot_seconds", lambda: now.time)
    monkeypatch.setattr("streamsrv.store.postgresql.database.boot_seconds", lambda: now.time)
    return now


AT = {"segment": 1, "committed_end": 1}


def remove(index, number, how):
    (row,) = index.rows(limit=1)
    if how == "delete":
        index.delete(index.packed_rows([row.key]), dead_bytes=1, **AT)
    elif how == "replace":
        index.commit([new_instance(row.key, 100 + number)], replaced=[row], **AT)
    else:
        index.register_damage([DamagedRecord(row.record_id, row.key, Location(1, 0, 1), "x", 1)])


def fresh(index):
    """A version that is at hand, for a moment."""
    waited(lambda: index.version() == index.version_at_hand())
    return index.version()


def test_a_version_may_be_used_for_a_while(reader, clock):
    assert reader.version_at_hand() is None
    version = reader.version()
    clock.time += freshness.VERSION_LEASE / 4
    assert reader.version_at_hand() == version
    clock.time += freshness.VERSION_LEASE * 3 / 4
    assert reader.version_at_hand() is None


def test_the_time_before_the_question_counts(reader, clock, monkeypatch):
    """A node that is stopped while it asks wakes up without a lease."""
    ask = PipelineLink.ask

    def stopped(*arguments):
        answers = ask(*arguments)
        clock.time += 1
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(PipelineLink, "ask", stopped)
        reader.version()
    assert reader.version_at_hand() is None


def test_a_lease_is_renewed_while_requests_come_and_an_idle_node_asks_nothing(reader, clock, monkeypatch):
    asked, ask = [], PipelineLink.ask

    def counted(link, statements, patience):
        asked.append(threading.current_thread().name)
        return ask(link, statements, patience)

    monkeypatch.setattr(PipelineLink, "ask", counted)
    version = reader.version()
    first = len(asked)
    for renewal in range(1, 4):
        clock.time += freshness.VERSION_LEASE - freshness.RENEWED / 2
        assert [reader.version_at_hand() for _ in range(100)] == [version] * 100
        waited(lambda: not reader._environment._freshness._asking)
        assert len(asked) == first + renewal
    assert asked[first:] == ["freshness"] * 3
    clock.time += 1
    assert [reader.version_at_hand() for _ in range(100)] == [None] * 100
    assert len(asked) == first + 3


def test_a_database_that_is_away_gives_no_lease(reader, database_server, clock):
    reader.version()
    database_server.stop("immediate")
    try:
        clock.time += freshness.VERSION_LEASE - freshness.RENEWED / 2
        assert reader.version_at_hand() is not None
        waited(lambda: not reader._environment._freshness._asking)
        clock.time += freshness.RENEWED
        assert reader.version_at_hand() is None
        with pytest.raises(IndexUnreachable):
            reader.version()
    finally:
        database_server.start()
    assert reader.version() == reader.version_at_hand()


@pytest.mark.parametrize("how", ["delete", "replace", "damage"])
def test_no_node_has_an_older_version_at_hand_when_a_removal_commits(index, reader, url, monkeypatch, how):
    monkeypatch.setattr(freshness, "VERSION_LEASE", 0.3)
    looking = open_index(url)
    row, version = looking.rows(limit=1), fresh(reader)
    thread = threading.Thread(target=remove, args=(index, 1, how))
    thread.start()
    while looking.rows(limit=1) == row and not looking.damage():
        pass
    assert reader.version_at_hand() is None
    thread.join()
    assert fresh(reader) == version + 1
    looking.close()


def test_new_instances_take_no_lease_away(index, reader, monkeypatch):
    monkeypatch.setattr(freshness, "VERSION_LEASE", LONG)
    version = reader.version()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("a store waits"))
    index.commit([new_instance(("2.1", "2.1.1", "2.1.1.1"), 50)], **AT)
    assert reader.version_at_hand() == version
    assert reader.version() == version + 1


def test_a_removal_that_is_announced_gives_no_lease(index, reader, monkeypatch):
    monkeypatch.setattr(freshness, "VERSION_LEASE", 0)
    with index.removing():
        monkeypatch.setattr(freshness, "VERSION_LEASE", LONG)
        reader.version()
        assert reader.version_at_hand() is None
    version = reader.version()
    assert reader.version_at_hand() == version


def test_a_block_of_removals_waits_once(index, sql, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with index.removing():
        for number in range(3):
            remove(index, number, "delete")
        assert sql("SELECT count(*) FROM removals") == "1"
    assert waits == [freshness.VERSION_LEASE + freshness.MARGIN]
    assert sql("SELECT count(*) FROM removals") == "0"
    assert len(index.rows()) == 1


def test_an_announcement_that_was_lost_is_made_again(index, sql, monkeypatch):
    waits = []

    def lost(seconds):
        waits.append(seconds)
        if len(waits) <= 2:
            sql("DELETE FROM removals")

    monkeypatch.setattr(time, "sleep", lost)
    remove(index, 1, "delete")
    assert (len(waits), len(index.rows())) == (3, 3)
    monkeypatch.setattr(time, "sleep", lambda _: sql("DELETE FROM removals"))
    with pytest.raises(AnnouncementLost) as refused:
        remove(index, 1, "delete")
    assert (refused.value.status, len(index.rows())) == (503, 3)


def test_an_announcement_that_ages_is_made_again(index, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(freshness, "AGED", -1)
    with index.removing():
        for number in range(3):
            remove(index, number, "delete")
    assert len(waits) == 4


@pytest.mark.parametrize("made", ["now() - interval '1 minute'", "now() + interval '1 hour'"])
def test_the_announcement_of_a_dead_node_goes(reader, sql, made):
    sql(f"INSERT INTO removals VALUES ('dead', {made}), ('alive', now())")
    reader.version()
    assert reader.version_at_hand() is None
    assert sql("SELECT encode(token, 'escape') FROM removals") == "alive"


def test_a_removal_that_was_refused_leaves_no_announcement(index, sql):
    (row,) = index.rows(limit=1)
    with pytest.raises(Exception, match="segment 9"):
        index.delete(index.packed_rows([row.key]), segment=9, committed_end=1, dead_bytes=1)
    assert sql("SELECT count(*) FROM removals") == "0"


@pytest.fixture
def between(memory, database_server):
    between = Between(memory, database_server.folder)
    yield between
    between.close()


def test_a_removal_whose_commit_is_looked_up_has_waited(
    url, index, reader, between, memory, database_server, monkeypatch
):
    """Its connection breaks in the commit, so that nobody knows for a while."""
    broken = open_index(url.replace(str(database_server.folder), str(memory)))
    between.lose = once("after")
    monkeypatch.setattr(freshness, "VERSION_LEASE", 0.3)
    version = fresh(reader)
    broken.delete(index.packed("1.1", limit=1), dead_bytes=1, **AT)
    assert between.lose.state["done"]
    assert reader.version_at_hand() is None
    assert fresh(reader) == version + 1
    broken.close()


def test_a_view_remembers_nothing_of_a_server_that_lost_commits(index, sql, database_server):
    """Another commit has the number of a lost one, and the same sequence of changes."""

    def stored(patient):
        index.commit(
            [new_instance(("2.1", "2.1.1", "2.1.1.1"), 50, {"00100020": element("LO", patient)})], **AT
        )

    view = index.restricted(rule_of(["PatientID=P2"]))
    stored("P1")
    version, (last,) = index.version(), index.changes(after=4)
    assert view.lookup("2.1") == []
    index.delete(index.packed("2.1"), dead_bytes=1, **AT)
    stored("P2")
    sql(f"DELETE FROM changes WHERE key > '\\x{last.sequence:016x}'")
    sql(f"UPDATE head SET version = {version}")
    database_server.stop("immediate")
    database_server.start()
    assert index.version() % (1 << COMMIT_BITS) == version
    assert not same_server(index.version(), version)
    assert len(view.lookup("2.1")) == 1

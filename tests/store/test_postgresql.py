"""The index on PostgreSQL beside the embedded one, and the faults that only a database has."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from datetime import date, timedelta
from functools import partial
from itertools import islice

import psycopg
import pytest
from index_examples import element, name, new_instance

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import IndexUnreachable, StoreError, WrongStore
from streamsrv.query.attributes import NEWEST, Level, Position
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.query.matching import MatchingOptions
from streamsrv.query.rules import rule_of
from streamsrv.store import DamagedRecord, Index, Store, StoreOptions
from streamsrv.store.index.ordered import value_reader
from streamsrv.store.postgresql import connections, migrate, open_index, transactions
from streamsrv.store.postgresql.database import Database
from streamsrv.store.postgresql.link import PipelineLink
from streamsrv.store.rows import InstanceKey, Location

# All maps but `about`: its epoch and format differ.
COMPARED = ("instances", "metadata", "frames", "bulk", "variants", "studies", "series", "attributes", "uids")


@pytest.fixture
def url(database_server, memory):
    return database_server.url("of_" + memory.name)


@pytest.fixture
def index(url):
    index = open_index(url)
    index.add_segment()
    yield index
    index.close()


def instances(numbers, count, first):
    for number in range(first, first + count):
        study, series = numbers.randrange(6), numbers.randrange(3)
        key = InstanceKey(f"1.{study}", f"1.{study}.{series}", f"9.{numbers.randrange(100)}.{number}")
        attributes = {
            "00100010": name(numbers.choice(("Doe^Jane", "Roe^Ann", "Poe^Edgar"))),
            "00080020": element("DA", *numbers.choice((["20240131"], ["20230101"], []))),
            "00080060": element("CS", numbers.choice(("CT", "MR"))),
        }
        text = b'{"n":%d}' % number
        size = numbers.choice((16, 16, 20_000))
        kind = FrameKind.TABLE if numbers.random() < 0.3 else FrameKind.NATIVE
        table = bytes(16) * 3 if kind is FrameKind.TABLE else b""
        bulk = [BulkValue(f"0009{each:04}", "OB", 1, 2) for each in range(numbers.randrange(3))]
        new = new_instance(
            key, number, attributes, text=text.ljust(size), table=table, bulk=bulk, frame_kind=kind
        )
        if size == 16:  # a text that may share a row with its neighbours
            new.metadata, new.text = [], text.ljust(size)
        yield new


@pytest.mark.parametrize("seed", range(2))
def test_the_rows_are_those_of_the_embedded_index(index, memory, seed):
    embedded = Index.open(memory / "index")
    embedded.add_segment()
    numbers, first = random.Random(seed), 1
    for _ in range(12):
        new = list(instances(numbers, numbers.randint(1, 40), first))
        first += len(new)
        stored = embedded.rows(limit=1000)
        again = [row for row in stored if numbers.random() < 0.05]
        replacing = [
            new_instance(row.key, first + number, {"00100010": name("New^Name")})
            for number, row in enumerate(again)
        ]
        first += len(again)
        gone = [row for row in stored if numbers.random() < 0.2 and row not in again]
        damaged = [DamagedRecord(row.record_id, row.key, row.location, "x", 1) for row in gone[:2]]
        moves = [(row, Location(1, 7, row.location.length)) for row in stored if numbers.random() < 0.1]
        answers = []
        for each in (embedded, index):
            each.commit([*new, *replacing], segment=1, committed_end=first, replaced=again)
            rows = each.packed_rows(sorted(row.key for row in gone))
            answers.append(
                (
                    each.relocate(moves, segment=1, committed_end=first),
                    each.register_damage(damaged),
                    each.delete(rows, segment=1, committed_end=0, dead_bytes=1),
                )
            )
        assert answers[0] == answers[1]
    for database in COMPARED:
        assert list(index.dump(database)) == list(embedded.dump(database)), database
    assert keys_of(index.changes()) == keys_of(embedded.changes())
    assert counts_of(index) == counts_of(embedded)
    rule = rule_of(["StudyDate=20240131"])
    for ours, theirs in ((index, embedded), (index.restricted(rule), embedded.restricted(rule))):
        for level in Level:
            for wanted in ({}, {"PatientName": "*o*"}, {"StudyDate": "20230101-"}, {"Modality": "CT"}):
                query = query_of(level, None, None, list(wanted.items()))
                assert hits_of(ours, query) == hits_of(theirs, query)
                assert ours.total(query, 100) == theirs.total(query, 100)
    embedded.close()


WORDS = ("Knie ÄÖ", "KNIE äö", "100%_[x]", "'quoted' $1", "膝関節", "Knee", "x" * 90)


@pytest.mark.parametrize("at_once", [20_000, 20])
def test_parts_of_text_are_found_as_in_the_embedded_index(index, memory, monkeypatch, at_once):
    """In lists whose values have one study each and in those with many, in batches that end anywhere."""
    monkeypatch.setattr(Database, "keys_at_once", at_once)
    embedded = Index.open(memory / "index")
    embedded.add_segment()
    new = []
    for number in range(250):
        uid, text = f"1.{number}", f"{WORDS[number % len(WORDS)]} {number}"
        attributes = {"00081030": element("LO", text), "00080060": element("CS", ("CT", "MR")[number > 200])}
        attributes["00200010"] = element("SH", f"{'abc'[number // 100]}{number // 20 * 20 % 140}")
        new.append(new_instance((uid, f"{uid}.1", f"{uid}.1.1"), number, attributes))
    for each in (embedded, index):
        each.commit(new, segment=1, committed_end=1)
    parts = [part for word in WORDS for part in (f"*{word[1:4]}*", f"*{word[-3:]} 1*")]
    parts += ["*KNIE*", "*q?o*", "*Ä*", "*$*", "*K*N*", "*n*i*e*9*"]
    wanted = [{"StudyDescription": part} for part in parts]
    wanted += [
        {"Modality": "*T*"},
        {"Modality": "*r*"},
        {"ModalitiesInStudy": "M*", "StudyDescription": "*n*"},
    ]
    wanted += [{"StudyID": part} for part in ("*0", "*2*", "b*", "*c8*", "?1*")]
    rule = rule_of(["ModalitiesInStudy=MR"])
    for ours, theirs in ((index, embedded), (index.restricted(rule), embedded.restricted(rule))):
        for each in wanted:
            for caseless in (False, True):
                options = MatchingOptions(caseless=caseless)
                query = query_of(Level.STUDY, None, None, list(each.items()), options)
                for asked in (query, query.page(3, NEWEST, None)):
                    assert hits_of(ours, asked) == hits_of(theirs, asked), each
    assert hits_of(index, query_of(Level.STUDY, None, None, [("StudyDescription", "*ÄÖ 7*")]))
    embedded.close()


def keys_of(changes):
    return [(change.sequence, change.kind, change.key) for change in changes]


def counts_of(index):
    return {name: count for name, count in index.statistics().items() if not name.startswith("bytes")}


def hits_of(index, query):
    return [(hit.study, hit.series, hit.instance) for hit in index.search(query)]


def round_trips(monkeypatch, act):
    """How many round trips to the database the call takes."""
    count = 0
    ask = PipelineLink.ask

    def counted(*arguments):
        nonlocal count
        count += 1
        return ask(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineLink, "ask", counted)
        act()
    return count


def series_of(count, first=1):
    return [
        new_instance(("1.1", "1.1.1", f"1.1.1.{number}"), number) for number in range(first, first + count)
    ]


def test_no_round_trip_for_each_instance(index, monkeypatch):
    few, many = series_of(10), series_of(800, 100)
    for new in (few, many):
        commit = partial(index.commit, new, segment=1, committed_end=1)
        assert round_trips(monkeypatch, commit) == 4
    keys = [each.row.key for each in many]
    assert round_trips(monkeypatch, lambda: index.existing(keys)) == 1
    assert round_trips(monkeypatch, lambda: index.lookup("1.1", limit=1000)) == 1
    rows = index.packed("1.1", limit=1000)
    assert len(rows) == 810
    delete = partial(index.delete, rows, segment=1, committed_end=1, dead_bytes=1)
    assert round_trips(monkeypatch, delete) < 24


SEARCHES = [
    (Level.STUDY, {}, 1),
    (Level.STUDY, {"PatientID": "P7"}, 2),
    (Level.STUDY, {"StudyDate": "20200101-20200131"}, 1),
    (Level.STUDY, {"PatientName": "*ame^7*"}, 4),
    (Level.SERIES, {"StudyInstanceUID": "1.7"}, 2),
    (Level.SERIES, {}, 2),
    (Level.SERIES, {"PatientName": "Name^5*"}, 3),
    (Level.SERIES, {"Modality": "CT"}, 3),  # the series of all studies: no list helps
    (Level.INSTANCE, {"StudyInstanceUID": "1.7"}, 3),
]


def test_a_search_takes_few_round_trips(index, monkeypatch):
    index.commit([*dated(600)], segment=1, committed_end=1)
    for level, wanted, most in SEARCHES:
        query = query_of(level, None, None, list(wanted.items())).page(50, NEWEST, None)

        def search(query=query):
            assert list(islice(index.search(query), 49))

        assert round_trips(monkeypatch, search) <= most, wanted
    query = query_of(Level.SERIES, None, None, [("Modality", "CT")])
    found = index.searching(query.page(50, NEWEST, None), Budget())
    assert len(list(islice(found.hits(), 49))) == 49
    assert found.total == 600  # which costs no further question
    assert round_trips(monkeypatch, lambda: index.total(query, 100)) == 1
    assert index.total(query, 100) == 600


@pytest.mark.parametrize("wanted", [2, 7, 1000])
def test_pages_of_series_end_and_begin_anywhere(index, memory, wanted):
    """Also within a study with more series than are read together, between studies with one."""
    new = [
        new_instance(
            (f"1.{study}", f"1.{study}.{series:03}", f"1.{study}.{series:03}.1"), study * 200 + series
        )
        for study in range(40)
        for series in range(130 if study == 20 else 1 + study % 2)
    ]
    found, value_of = {}, value_reader(NEWEST)
    embedded = Index.open(memory / "index")
    embedded.add_segment()
    for each in (embedded, index):
        each.commit(new, segment=1, committed_end=1)
        pages, hits = [], None
        while hits is None or len(hits) == wanted:
            last = hits[-1] if hits else None
            after = Position(value_of(last.study_row), last.study, last.series) if last else None
            query = query_of(Level.SERIES, None, None, []).page(wanted, NEWEST, after)
            hits = list(islice(each.search(query), wanted))
            pages.append([(hit.study, hit.series) for hit in hits])
        found[each] = pages
    embedded.close()
    assert found[index] == found[embedded]
    assert len({hit for page in found[index] for hit in page}) == len(new)


def dated(count):
    """Studies of one instance."""
    for number in range(count):
        day = date(2020, 1, 1) + timedelta(number)
        attributes = {
            "00080020": element("DA", f"{day:%Y%m%d}"),
            "00100010": name(f"Name^{number}"),
            "00100020": element("LO", f"P{number}"),
            "00080060": element("CS", "CT"),
        }
        yield new_instance((f"1.{number}", f"1.{number}.1", f"1.{number}.1.1"), number, attributes)


class Between:
    """A Unix socket in front of the server. `lose` is called with what the client sends, and says whether the
    connection ends "before" or "after" the server has seen it."""

    def __init__(self, folder, server):
        self._path, self._server = folder / ".s.PGSQL.5432", server
        self.lose = None
        self._open = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            self._open += [client, server]
            server.connect(str(self._server / ".s.PGSQL.5432"))
            ended = threading.Event()
            for source, target in ((client, server), (server, client)):
                work = (source, target, source is client, ended)
                threading.Thread(target=self._copy, args=work, daemon=True).start()

    def _copy(self, source, target, from_client, ended):
        try:
            while data := source.recv(1 << 16):
                how = self.lose(data) if from_client and self.lose else None
                if how == "after":
                    ended.set()  # the answer of the server is dropped
                if not from_client and ended.is_set():
                    break
                if how == "before":
                    break
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        for each in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def between(memory, database_server):
    between = Between(memory, database_server.folder)
    yield between
    between.close()


def once(how):
    """Lose the first COMMIT of a writer, which follows its update of the head row."""
    state = {"wrote": False, "done": False}

    def lose(data):
        state["wrote"] |= b"UPDATE head" in data
        if state["wrote"] and b"COMMIT" in data and not state["done"]:
            state["done"] = True
            return how
        return None

    lose.state = state
    return lose


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_commit_whose_connection_broke_is_looked_up(url, index, between, memory, database_server, how):
    broken = open_index(url.replace(str(database_server.folder), str(memory)))
    between.lose = once(how)
    new = series_of(3)
    if how == "before":
        with pytest.raises(IndexUnreachable):
            broken.commit(new, segment=1, committed_end=1)
        assert index.rows() == []
    else:
        broken.commit(new, segment=1, committed_end=1)
    assert between.lose.state["done"]
    assert len(index.rows()) == (0 if how == "before" else 3)
    broken.commit(series_of(1, 50), segment=1, committed_end=2)
    assert broken.rows() == index.rows()
    broken.close()


def test_the_change_decides_whether_a_commit_happened(url, index, database_server):
    """After a failover the number of a lost transaction may be that of another one."""
    number = int(database_server.sql("SELECT pg_current_xact_id()"))  # of a commit that is not ours
    index.commit(series_of(2), segment=1, committed_end=1)
    pool = connections.Connections(url)
    key, value = list(index.dump("changes"))[-1]
    assert pool.settle(number, (key, value))
    assert not pool.settle(number, (key, value[:-1] + b"9"))
    assert pool.settle(number, None)


def test_a_look_up_of_a_commit_outlasts_a_refusal(url, index, monkeypatch):
    """A database that takes over may refuse for a moment, in words of a wrong setting."""
    pool = connections.Connections(url)
    with contextlib.closing(pool.connect()) as connection:
        (number,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    refusals = [
        "SSL SYSCALL error: EOF detected",
        "SSL error: unexpected eof while reading",
        'no pg_hba.conf entry for host "db"',
    ]
    connected = connections._connected

    def refusing(url):
        if refusals:
            raise psycopg.OperationalError(refusals.pop(0))
        return connected(url)

    monkeypatch.setattr(connections, "_connected", refusing)
    with pytest.raises(IndexUnreachable):
        pool.connect()
    assert pool.settle(int(number), None)
    assert refusals == []


def test_calls_go_on_after_a_restart_of_the_database(url, index, database_server):
    index.commit(series_of(2), segment=1, committed_end=1)
    database_server.stop("immediate")
    with pytest.raises(IndexUnreachable):
        index.rows()
    with pytest.raises(IndexUnreachable):
        index.commit(series_of(1, 9), segment=1, committed_end=2)
    database_server.start()
    index.commit(series_of(1, 10), segment=1, committed_end=2)
    assert len(index.rows()) == 3


def test_writers_of_several_processes_take_turns(url, index):
    """Each thread has its own index, as a process has."""

    def write(number):
        own = open_index(url)
        for batch in range(10):
            own.commit(series_of(5, 1000 * number + 10 * batch), segment=1, committed_end=1)
        own.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    seen = [0]
    while any(thread.is_alive() for thread in threads):
        seen += [change.sequence for change in index.changes(seen[-1])]
    for thread in threads:
        thread.join()
    seen += [change.sequence for change in index.changes(seen[-1])]
    assert seen == list(range(201))
    assert index.total(query_of(Level.INSTANCE, None, None, [])) == len(index.rows()) == 200


STOPPED = """
import os, signal, sys
from index_examples import new_instance
from streamsrv.errors import IndexUnreachable
from streamsrv.store.postgresql import batches, connections, open_index

connections.SESSION["idle_in_transaction_session_timeout"] = "1s"
index = open_index(sys.argv[1])
finish = batches.TableBatch.finish

def stopped(batch):
    os.kill(os.getpid(), signal.SIGSTOP)
    finish(batch)

batches.TableBatch.finish = stopped
try:
    index.commit([new_instance(("1.1", "1.1.1", "1.1.1.9"))], segment=1, committed_end=1)
except IndexUnreachable as error:
    print(error)
"""


def test_a_node_that_was_stopped_in_a_commit_is_refused_when_it_goes_on(url, index):
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STOPPED, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as node:
        os.waitpid(node.pid, os.WUNTRACED)
        # This waits until the database has ended the session of the node.
        index.commit(series_of(2), segment=1, committed_end=1)
        os.kill(node.pid, signal.SIGCONT)
        assert "does not answer while writing to the index" in node.stdout.read()
    assert len(index.rows()) == 2
    assert [change.sequence for change in index.changes()] == [1, 2]


def test_a_host_that_does_not_answer_is_passed_over(url, database_server, memory):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(memory / ".s.PGSQL.5432"))
        silent.listen()
        with pytest.raises(IndexUnreachable, match="no answer in time"):
            open_index(url.replace(str(database_server.folder), str(memory)))
        open_index(url.replace("host=", f"host={memory},")).close()


def test_a_database_that_stops_answering(url, index, between, memory, database_server, monkeypatch):
    monkeypatch.setattr(transactions, "READING", 0.3)
    silent = open_index(url.replace(str(database_server.folder), str(memory)))
    assert silent.rows() == []
    goes_on = threading.Event()
    between.lose = lambda _: goes_on.wait() and None
    with pytest.raises(IndexUnreachable, match="does not answer in time"):
        silent.rows()
    goes_on.set()
    assert silent.rows() == []
    silent.close()


def test_no_more_connections_than_allowed(url, index, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 2)
    monkeypatch.setattr(connections, "WAITING", 0.1)
    pool = connections.Connections(url)
    taken = [pool.take(), pool.take()]
    with pytest.raises(IndexUnreachable, match=r"every connection .* is in use"):
        pool.take()
    pool.give_back(taken[0], usable=True)
    assert pool.take() is taken[0]
    for each in taken:
        pool.give_back(each, usable=False)
    pool.close()


# Opening


def test_a_database_of_another_store_is_refused(url, memory):
    first, second = memory / "first", memory / "second"
    options = StoreOptions(min_free=0, index=url)
    Store.open(first, options).close()
    with pytest.raises(WrongStore, match="another store"):
        Store.open(second, options)
    with Store.open(first, options, read_only=True) as store:
        assert store.lookup("1.1") == []


def test_a_folder_with_its_own_index_is_refused(url, memory):
    Store.open(memory / "data", StoreOptions(min_free=0)).close()
    with pytest.raises(StoreError, match="has its own index"):
        Store.open(memory / "data", StoreOptions(min_free=0, index=url))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("/postgres?", "/nothing?"), "setting `index`: .* cannot be opened: .*nothing.* does not exist"),
        (("streamsrv@", "nobody@"), "setting `index`: .* cannot be opened: .*nobody.* does not exist"),
        (("postgresql://", "postgresql://[/"), "setting `index`: this URL cannot be used"),
        (("host=", "connect_timeout=1&host=/missing"), "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_opened(url, change, sentence):
    with pytest.raises(StoreError, match=sentence):
        open_index(url.replace(*change))


@pytest.mark.parametrize("url", ["postgresql://u:%swordfish@db/x", "postgresql://db/x?a=1&swordfish"])
def test_no_error_has_the_password(url):
    with pytest.raises(StoreError, match="this URL cannot be used") as refused:
        open_index(url)
    assert "swordfish" not in str(refused.value)


@pytest.mark.parametrize("host", ["/missing", "127.0.0.1"])
def test_only_the_log_has_the_address_of_a_database(host, caplog):
    with pytest.raises(IndexUnreachable, match=r"reached: (Connection refused|No such file)") as refused:
        open_index(f"postgresql://u@/x?host={host}&port=1")
    assert host in caplog.text
    assert host not in str(refused.value)


def test_a_reader_makes_no_tables(url):
    with pytest.raises(StoreError, match="has no index"):
        open_index(url, read_only=True)
    with pytest.raises(StoreError, match="has no index"):
        migrate(url)


def test_layouts(url, index, database_server, memory):
    assert migrate(url) == (2, 2)
    schema = f"of_{memory.name}"
    database_server.sql(
        f"SET search_path = {schema}; DROP TABLE tombstones, documents, document_kinds, leases, removals; "
        "ALTER TABLE cluster DROP COLUMN filling; ALTER TABLE objects DROP COLUMN moved; "
        "UPDATE head SET layout = 1"
    )
    assert migrate(url) == (1, 2)
    with contextlib.closing(open_index(url)) as migrated, migrated.removing():
        pass
    database_server.sql(f"UPDATE of_{memory.name}.head SET layout = 3")
    for call in (open_index, migrate):
        with pytest.raises(StoreError, match="layout 3, and this program knows only up to 2"):
            call(url)
    database_server.sql(f"UPDATE of_{memory.name}.head SET layout = 0")
    with pytest.raises(StoreError, match="migrate-index"):
        open_index(url)
